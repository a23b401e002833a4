"""The ledger by its verbs: no threads, no clock, no I/O."""

import contextvars
import random
import threading
from queue import SimpleQueue

import pytest

from arrea_nb._broadcast import Watch
from arrea_nb._commands import BadCommand, PythonCall, ShellCommand
from arrea_nb._ledger import LEGAL, Ledger
from arrea_nb._options import BatchOptions
from arrea_nb._policy import Decision, Policy
from arrea_nb._records import BatchRecord, JobRecord, Outcome
from arrea_nb.errors import InvalidCommandError, JobCancelled, JobTimeout
from arrea_nb.events import BatchEnded, BatchStarted, JobEnded, JobStarted, JobState

CANCELLED, SKIPPED, TIMED_OUT = JobState.CANCELLED, JobState.SKIPPED, JobState.TIMED_OUT


def _batch(name, commands, *, workers=2, timeout=30.0):
    # Whoever runs the test is asked what comes next.
    options = BatchOptions(workers=workers, timeout=timeout, policy=Policy(on_error=str), name=name)
    batch = BatchRecord(name, options, contextvars.copy_context())
    made = {
        "p": lambda: PythonCall(int),
        "s": lambda: ShellCommand(line="true"),
        "b": lambda: BadCommand(InvalidCommandError("bad"), "bad"),
    }
    batch.jobs = [JobRecord(batch, at, made[kind](), None) for at, kind in enumerate(commands)]
    batch.heard = True
    return batch


def _ledger(max_workers=100):
    events = []
    return Ledger(events.append, max_workers), events


def _admitted(commands="ppp", *, max_workers=100, **options):
    ledger, events = _ledger(max_workers)
    batch = _batch("one", commands, **options)
    ledger.admit(batch, 0.0)
    return ledger, batch, events


def _failed(step="continue", delay=0.0):
    outcome = Outcome(None, ValueError("no"))
    outcome.decision = Decision(step, delay)
    return outcome


def _ended(ledger, job, outcome, now, at):
    """The end of an attempt, and what its policy says to that: the decision of the outcome."""
    due = ledger.ended(job, outcome, now, at)
    if job.asking:
        assert due is None
        due = ledger.decided(job, getattr(outcome, "decision", None), now, at)
    return due


def test_states_that_are_terminal_have_no_legal_move():
    assert {state for state in JobState if not LEGAL[state]} == {state for state in JobState if state.ended}


def test_an_empty_batch_has_succeeded():
    _, batch, events = _admitted("")
    assert (batch.state, batch.end_clock) == ("succeeded", 0.0)
    assert [type(event) for event in events] == [BatchStarted, BatchEnded]


def test_bad_commands_have_failed_at_once():
    ledger, batch, events = _admitted("bp")
    assert [job.state for job in batch.jobs] == ["failed", "queued"]
    assert events[0].start_failures == (0,)
    assert ledger.take(1.0, 1.0) is batch.jobs[1]


def test_first_attempts_begin_in_the_order_given_and_no_more_than_workers():
    ledger, batch, _ = _admitted("ppppp", workers=2)
    assert [ledger.take(0.0, 0.0), ledger.take(0.0, 0.0)] == batch.jobs[:2]
    assert ledger.take(0.0, 0.0) is None
    _ended(ledger, batch.jobs[0], Outcome(), 1.0, 1.0)
    assert ledger.take(1.0, 1.0) is batch.jobs[2]
    assert ledger.take(1.0, 1.0) is None


def test_batches_take_turns_under_the_global_limit():
    ledger, _ = _ledger(max_workers=1)
    first, second = _batch("first", "ppp"), _batch("second", "ppp")
    ledger.admit(first, 0.0)
    ledger.admit(second, 0.0)
    order = []
    while (job := ledger.take(0.0, 0.0)) is not None:
        order.append(job.batch.id)
        assert ledger.take(0.0, 0.0) is None
        _ended(ledger, job, Outcome(), 0.0, 0.0)
    assert order == ["first", "second"] * 3


def test_a_shell_job_is_running_once_its_process_is():
    ledger, batch, events = _admitted("s")
    job = ledger.take(0.0, 0.0)
    assert job.state == "queued"
    ledger.started(job, 42, 1.0, 1.0)
    assert (job.state, job.pid) == ("running", 42)
    assert isinstance(events[-1], JobStarted)


def test_an_illegal_move_raises_with_the_history_and_changes_nothing():
    ledger, batch, events = _admitted("p")
    job = ledger.take(0.0, 0.0)
    _ended(ledger, job, Outcome(), 1.0, 1.0)
    heard, counts = list(events), dict(batch.counts)
    with pytest.raises(AssertionError, match="illegal move of job 0 of batch one: succeeded to running"):
        ledger.started(job, None, 2.0, 2.0)
    with pytest.raises(AssertionError, match="illegal move of job 0 of batch one: succeeded to failed"):
        ledger._end(job, JobState.FAILED, None, 2.0, 2.0)
    assert (job.state, batch.counts, events) == ("succeeded", counts, heard)


def test_a_retry_waits_for_its_delay_and_frees_its_place():
    ledger, batch, _ = _admitted("pp", workers=1)
    job = ledger.take(0.0, 0.0)
    assert _ended(ledger, job, _failed("retry", 5.0), 1.0, 1.0) == 6.0
    assert (job.state, ledger.places.taken) == ("waiting", 0)
    other = ledger.take(1.0, 1.0)
    assert other is batch.jobs[1]
    _ended(ledger, other, Outcome(), 2.0, 2.0)
    assert ledger.due(5.9) == 6.0
    assert ledger.take(5.9, 5.9) is None
    assert ledger.due(6.0) is None
    assert ledger.take(6.0, 6.0) is job
    assert job.attempt == 2
    _ended(ledger, job, Outcome(value=7), 7.0, 7.0)
    assert (job.state, job.value, job.error, batch.state) == ("succeeded", 7, None, "succeeded")
    assert job.told is None


def test_a_cancelled_retry_is_not_waited_for():
    ledger, batch, _ = _admitted("p")
    job = ledger.take(0.0, 0.0)
    _ended(ledger, job, _failed("retry", 60.0), 1.0, 1.0)
    ledger.stop(job, CANCELLED, 2.0, 2.0, 2.0)
    assert (job.state, job.told, batch.state) == ("cancelled", "cancelled", "cancelled")
    assert ledger.due(3.0) is None


def test_stop_skips_the_rest_and_abort_says_who_runs():
    ledger, batch, _ = _admitted("pppp", workers=2)
    first, second = ledger.take(0.0, 0.0), ledger.take(0.0, 0.0)
    _ended(ledger, first, _failed("stop"), 1.0, 1.0)
    assert [job.state for job in batch.jobs] == ["failed", "running", "skipped", "skipped"]
    assert ledger.halt(batch, CANCELLED, 2.0, 2.0) == [second]
    _ended(ledger, second, Outcome(), 3.0, 3.0)
    assert (second.state, batch.state) == ("succeeded", "failed")


def test_what_a_stopped_job_returns_changes_nothing():
    for why, state, kind in ((TIMED_OUT, "timed_out", JobTimeout), (CANCELLED, "cancelled", JobCancelled)):
        ledger, batch, _ = _admitted("p")
        job = ledger.take(0.0, 0.0)
        assert ledger.stop(job, why, 2.0, 1.0, 1.0) is True
        assert ledger.stop(job, CANCELLED, 1.0, 1.0, 1.0) is False
        assert job.grace == 1.0
        _ended(ledger, job, Outcome(value=5), 2.0, 2.0)
        assert (job.state, job.value, type(job.error)) == (state, None, kind)


def test_an_abandoned_job_frees_its_place_once():
    ledger, batch, _ = _admitted("p", max_workers=1)
    job = ledger.take(0.0, 0.0)
    ledger.stop(job, TIMED_OUT, 0.0, 1.0, 1.0)
    assert ledger.abandon(job, 1.0, 1.0)
    ledger.decided(job, None, 1.0, 1.0)
    assert (ledger.places.taken, ledger.abandoned, job.abandoned, batch.state) == (0, 1, True, "failed")
    ledger.stray_ended()
    assert ledger.abandoned == 0


def test_an_abandoned_job_that_had_given_up_its_place_gives_up_no_other():
    ledger, batch, _ = _admitted("pp", max_workers=2)
    job, other = ledger.take(0.0, 0.0), ledger.take(0.0, 0.0)
    ledger.places.step_aside(job)
    ledger.stop(job, CANCELLED, 0.0, 1.0, 1.0)
    ledger.abandon(job, 1.0, 1.0)
    assert (ledger.places.taken, batch.running) == (1, 1)
    _ended(ledger, other, Outcome(), 2.0, 2.0)
    assert (ledger.places.taken, batch.running) == (0, 0)


def test_a_subscriber_that_comes_late_is_told_what_it_missed():
    ledger, batch, _ = _admitted("ppp", workers=2)
    first = ledger.take(0.0, 0.0)
    ledger.take(0.0, 0.0)
    _ended(ledger, first, Outcome(), 1.0, 1.0)
    assert [event.type for event in ledger.replay(batch, 2.0)] == [
        "batch_started",
        "job_ended",
        "job_started",
    ]


def test_a_late_subscriber_is_told_of_a_retry_that_waits():
    ledger, batch, _ = _admitted("p")
    _ended(ledger, ledger.take(0.0, 0.0), _failed("retry", 5.0), 1.0, 1.0)
    told = ledger.replay(batch, 2.0)[-1]
    assert (told.type, told.error) == ("job_retrying", "ValueError: no")


def test_progress_is_told_to_those_who_watch_also_when_nobody_wants_events():
    ledger, batch, events = _admitted("p")
    job = ledger.take(0.0, 0.0)
    told = len(events)
    bell = SimpleQueue()
    watch = Watch(lambda watch: None, batch, threading.Lock(), bell)
    batch.heard, batch.watches = False, (watch,)
    ledger.progressed(job, 0.5, 1.0, 2.0, "", 1.0)
    ledger.progressed(job, 0.5, 1.0, 2.0, "", 1.0)  # no news
    ledger.progressed(job, 1.0, 2.0, 2.0, "", 1.0)
    assert len(events) == told
    assert (watch.take(), watch.take(), bell.qsize()) == ({0}, set(), 1)


def test_a_callable_that_returned_as_it_was_cancelled_is_cancelled():
    ledger, batch, _ = _admitted("p")
    job = ledger.take(0.0, 0.0)
    ledger.stop(job, CANCELLED, 2.0, 1.0, 1.0)
    ledger.returned(job, 7, 2.0, 2.0)
    assert (job.state, job.value, batch.state) == ("cancelled", None, "cancelled")


def test_a_job_whose_end_was_cut_short_by_a_bug_is_ended_to_the_end(monkeypatch):
    ledger, batch, events = _admitted("pp", workers=1)
    job = ledger.take(0.0, 0.0)
    with monkeypatch.context() as broken:
        broken.setattr(ledger, "_finish", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            _ended(ledger, job, Outcome(), 1.0, 1.0)
    ledger.crashed(set(), ValueError("bug"), 2.0, 2.0)
    assert (job.state, batch.open_jobs, ledger.places.taken) == ("succeeded", 1, 0)
    assert isinstance(events[-1], JobEnded)
    assert ledger.take(3.0, 3.0) is batch.jobs[1]


def test_what_is_ready_fails_where_nobody_can_run_it_and_what_runs_goes_on():
    ledger, batch, _ = _admitted("ppp", workers=1)
    job = ledger.take(0.0, 0.0)
    ledger.fail_ready(ValueError("no threads"), 1.0, 1.0)
    assert [one.state for one in batch.jobs] == ["running", "failed", "failed"]
    _ended(ledger, job, Outcome(), 2.0, 2.0)
    assert batch.state == "failed"


def test_a_place_that_was_given_up_comes_back_before_anything_new_starts():
    ledger, batch, _ = _admitted("pp", workers=1)
    job = ledger.take(0.0, 0.0)
    bell = SimpleQueue()
    assert ledger.places.step_back(job, bell)  # it has it
    ledger.places.step_aside(job)
    assert ledger.places.step_back(job, bell)
    assert (bell.get_nowait(), batch.running, ledger.take(1.0, 1.0)) == (None, 1, None)


def test_a_callable_that_ended_while_it_wanted_its_place_back_has_none():
    ledger, batch, _ = _admitted("ppp", workers=1)
    job = ledger.take(0.0, 0.0)
    ledger.places.step_aside(job)
    other = ledger.take(1.0, 1.0)
    bell = SimpleQueue()
    assert not ledger.places.step_back(job, bell)
    ledger.stop(job, CANCELLED, 0.0, 2.0, 2.0)
    ledger.abandon(job, 2.0, 2.0)
    _ended(ledger, other, Outcome(), 3.0, 3.0)
    assert (bell.qsize(), batch.running) == (0, 0)
    assert ledger.take(4.0, 4.0) is batch.jobs[2]


@pytest.mark.parametrize("seed", range(300))
def test_whatever_happens_the_counters_add_up_and_every_job_ends_once(seed):
    dice = random.Random(seed)
    limit = dice.randint(1, 4)
    ledger, events = _ledger(limit)
    batches = [
        _batch(str(at), dice.choices("psb", (5, 5, 1), k=dice.randint(0, 8)), workers=dice.randint(1, 3))
        for at in range(3)
    ]
    for batch in batches:
        ledger.admit(batch, 0.0)
    held, now = [], 0.0
    for step in range(10_000):
        now += 1.0
        if all(batch.end_clock is not None for batch in batches):
            break
        ledger.due(now)
        verb = dice.choices(("take", "end", "stop", "halt"), (5, 5, 1, 0.1))[0]
        if verb == "take" and (job := ledger.take(now, now)) is not None:
            held.append(job)
        elif verb == "end" and held:
            job = held.pop(dice.randrange(len(held)))
            if job.command.kind == "shell" and dice.random() < 0.8:
                ledger.started(job, step, now, now)
                outcome = dice.choice((Outcome(), _failed(), _failed("retry", 3.0), _failed("stop")))
            elif job.command.kind == "shell":
                outcome = Outcome(None, ValueError("no"))
                outcome.could_not_start = True
            else:
                outcome = dice.choice((Outcome(), _failed(), _failed("retry", 3.0), _failed("stop")))
            _ended(ledger, job, outcome, now, now)
        elif verb == "stop":
            batch = dice.choice(batches)
            if batch.jobs:
                job = dice.choice(batch.jobs)
                why = dice.choice((CANCELLED, TIMED_OUT)) if job.state == "running" else CANCELLED
                ledger.stop(job, why, 1.0, now, now)
        elif verb == "halt":
            ledger.halt(dice.choice(batches), dice.choice((CANCELLED, SKIPPED)), now, now)
        assert ledger.places.taken == len(held) <= limit
        for batch in batches:
            assert batch.running <= batch.workers
            assert sum(batch.counts.values()) == len(batch.jobs)
    assert all(batch.end_clock is not None for batch in batches)
    stats = ledger.stats
    assert stats["started"] == stats["finished"] + stats["failed"] + stats["cancelled"]
    for batch in batches:
        mine = [event for event in events if event.batch_id == batch.id]
        assert sorted(event.job for event in mine if isinstance(event, JobEnded)) == list(
            range(len(batch.jobs))
        )
        assert [isinstance(event, BatchEnded) for event in mine].index(True) == len(mine) - 1


# C23


def _taken(ledger, count, now=0.0):
    return [ledger.take(now, now) for _ in range(count)]


def test_c23_the_usual_duration_of_ended_jobs_is_what_queued_and_running_ones_will_take():
    ledger, batch, _ = _admitted("p" * 6, workers=2)
    assert batch.eta(5.0) is None
    first, second = _taken(ledger, 2)
    assert batch.eta(5.0) is None
    ledger.returned(first, None, 10.0, 10.0)
    _taken(ledger, 1, 10.0)
    ledger.returned(second, None, 10.0, 10.0)
    _taken(ledger, 1, 10.0)
    assert batch.eta(14.0) == pytest.approx((2 * 10.0 + 2 * 6.0) / 2)


def test_c23_a_job_that_takes_longer_than_was_usual_raises_what_is_expected_of_the_queued():
    ledger, batch, _ = _admitted("pppp", workers=2)
    quick, slow = _taken(ledger, 2)
    ledger.returned(quick, None, 1.0, 1.0)
    _taken(ledger, 1, 1.0)
    assert batch.eta(1.0) == pytest.approx(1.0)
    ledger.progressed(batch.jobs[2], 0.5, None, None, "", 2.0)
    # What is known at 19: 1 s, 36 s by its progress, and the slow one, past their mean, with 19 s or more.
    assert batch.eta(19.0) == pytest.approx(max((18.0 + (1 + 36 + 19) / 3) / 2, 18.0))
    assert slow.state == "running"


def test_c23_when_only_jobs_past_the_usual_are_left_nothing_is_said():
    ledger, batch, _ = _admitted("pp", workers=2)
    quick, slow = _taken(ledger, 2)
    ledger.returned(quick, None, 1.0, 1.0)
    assert batch.eta(1.0) == 0.0
    assert batch.eta(30.0) is None
    ledger.progressed(slow, 0.75, None, None, "", 30.0)
    assert batch.eta(30.0) == pytest.approx(10.0)
