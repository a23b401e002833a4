"""Every row of DESIGN §2 "From Arrea", and every clause of the paragraph below it."""

import inspect
import logging
import logging.handlers
import os
import select
import threading
from queue import SimpleQueue

import pytest

import arrea_nb
from arrea_nb.errors import AllWorkersFailedError, BatchFailed, CommandFailed, TooManyCommandsError
from arrea_nb.events import BatchEnded, BatchRemoved, CustomEvent, JobEnded, JobOutput, JobStarted
from arrea_nb.workers._guard_script import processes_with

LONG = 30.0


def _attend(leader):
    """Reads the events of a Leader until one of this type comes; fails when none does."""
    events = leader.subscribe()

    def wait_for(kind):
        for event in iter(lambda: events.get(timeout=LONG), None):
            if isinstance(event, kind):
                return event
        return None

    return wait_for


# The rows.


def test_execute_returns_a_batch_with_an_id():
    """`execute(commands, opts)` → `{:ok, id}` | `execute(commands, …)` → `Batch` with `.id`."""
    batch = arrea_nb.execute(["true"], workers=1)
    assert isinstance(batch, arrea_nb.Batch)
    assert len(bytes.fromhex(batch.id)) == 8
    assert batch.id != arrea_nb.execute(["true"]).id


def test_bad_commands_are_failed_jobs_and_the_others_run():
    """`{:ok, id, %{started: n, failed: m}}` | the bad commands are failed jobs, the others run.

    In full: `batch.counts`, `batch.start_failures`: the bad commands are failed jobs, the others run.
    """
    batch = arrea_nb.execute(["true", "", ["no-such-program-here"], lambda: 4])
    assert batch.wait(timeout=LONG)
    assert [job.state for job in batch] == ["succeeded", "failed", "failed", "succeeded"]
    assert (batch.counts["succeeded"], batch.counts["failed"]) == (2, 2)
    assert set(batch.counts) == set(arrea_nb.JobState)
    assert batch.start_failures == (batch[1], batch[2])


def test_all_workers_failed_is_raised():
    """`{:error, {:all_workers_failed, n}}` | raises `AllWorkersFailedError`: not one command could start."""
    with pytest.raises(AllWorkersFailedError) as raised:
        arrea_nb.execute(["", ["no-such-program-here"]])
    assert raised.value.count == len(raised.value.errors) == 2
    assert isinstance(raised.value.errors[1], CommandFailed)


def test_too_many_commands_is_raised_and_nothing_started():
    """`{:error, {:too_many_commands, count, max}}` | raises `TooManyCommandsError`, nothing started."""
    with pytest.raises(TooManyCommandsError) as raised:
        arrea_nb.execute(["true"] * 101)
    assert (raised.value.count, raised.value.limit) == (101, 100)
    assert not arrea_nb.get_state().batches
    assert arrea_nb.get_state().stats["started"] == 0


def test_workers_timeout_log_and_policy_keep_their_names(monkeypatch):
    """`:workers`, `:timeout`, `:log`, `:policy` | the same names; seconds, not ms."""
    logger = logging.getLogger("arrea_nb")
    lines = SimpleQueue()
    monkeypatch.setattr(logger, "handlers", [logging.handlers.QueueHandler(lines)])
    monkeypatch.setattr(logger, "propagate", False)
    policy = arrea_nb.Policy(on_error="stop")
    batch = arrea_nb.execute(["exit 3"], workers=2, timeout=7.5, log=True, policy=policy)
    assert batch.wait(timeout=LONG)
    assert (batch.workers, batch.timeout, batch.policy) == (2, 7.5, policy)
    batch = arrea_nb.execute(["sleep 60"], timeout=0.05)
    with pytest.raises(BatchFailed):
        batch.results(timeout=LONG)
    assert lines.get(timeout=LONG).getMessage() == "[0] exit 3: attempt 1 started"
    assert lines.get(timeout=LONG).getMessage() == "[0] exit 3: failed (exit 3)"
    assert str(batch[0].error).startswith("timed out after 0.05 s")


def test_max_workers_of_a_batch_became_max_commands():
    """`:max_workers` (commands in a batch, 100) | `max_commands`, since `max_workers` means threads.

    In full: `max_commands`, since `max_workers` means threads to a Python reader.
    """
    assert arrea_nb.Leader.instance().max_commands == 100
    assert len(arrea_nb.execute([int] * 101, max_commands=101).results(timeout=LONG)) == 101
    with pytest.raises(TypeError, match=r"max_workers: a batch has workers= \(at once\) and max_commands="):
        arrea_nb.execute(["true"], max_workers=3)


def test_leaders_are_made_by_instance_and_as_context_managers():
    """`start_link(max_workers: 100)`, `child_spec` | `Leader.instance()`, `Leader(max_workers=100)`.

    In full: `Leader.instance()`, `Leader(max_workers=100)` as a context manager.
    """
    assert arrea_nb.Leader.instance() is arrea_nb.Leader.instance()
    assert arrea_nb.Leader.instance().max_workers == 100
    with arrea_nb.Leader(max_workers=7) as leader:
        assert leader is not arrea_nb.Leader.instance()
        assert leader.get_state().max_workers == 7
        assert leader.execute([lambda: "mine"]).results(timeout=LONG) == ["mine"]
        assert arrea_nb.get_state().stats["started"] == 0
    with pytest.raises(RuntimeError, match="closed"):
        leader.execute(["true"])


def test_subscribe_gives_a_mailbox_of_events_and_unsubscribe_ends_it():
    """`subscribe/0`, `unsubscribe/0`, `{:leader_event, event}` | `subscribe()`, `unsubscribe()`, a mailbox.

    In full: `subscribe()`, `unsubscribe()`, a mailbox of events.
    """
    mailbox = arrea_nb.subscribe()
    batch = arrea_nb.execute(["echo hello"])
    heard = []
    while not heard or not isinstance(heard[-1], BatchEnded):
        heard.append(mailbox.get(timeout=LONG))
    assert [event.type for event in heard] == [
        "batch_started",
        "job_started",
        "job_output",
        "job_ended",
        "batch_ended",
    ]
    assert {event.batch_id for event in heard} == {batch.id}
    arrea_nb.unsubscribe(mailbox)
    arrea_nb.unsubscribe(mailbox)
    assert arrea_nb.get_state().subscribers == ()
    with pytest.raises(StopIteration):
        mailbox.get(timeout=LONG)


def test_notify_event_and_get_state():
    """`notify_event/1`, `get_state/0` | `notify_event`, `get_state`."""
    with arrea_nb.subscribe() as mailbox:
        arrea_nb.notify_event({"type": "halfway", "n": 3})
        event = mailbox.get(timeout=LONG)
        state = arrea_nb.get_state()
        assert state.subscribers == (mailbox,)
    assert isinstance(event, CustomEvent)
    assert (event.batch_id, dict(event.data)) == (None, {"type": "halfway", "n": 3})
    assert isinstance(state, arrea_nb.LeaderState)
    assert dict(state.stats) == {"started": 0, "finished": 0, "failed": 0, "cancelled": 0, "running": 0}


def test_old_batches_are_cleaned_up_and_running_ones_never(tmp_path):
    """Cleanup of old batches every 60 s | `cleanup_interval`, `batch_retention`; running batches are spared.

    In full: `cleanup_interval`, `batch_retention`; running batches are never removed.
    """
    assert (arrea_nb.Leader.instance().cleanup_interval, arrea_nb.Leader.instance().batch_retention) == (
        60.0,
        300.0,
    )
    with arrea_nb.Leader(cleanup_interval=0.01, batch_retention=0.0, keep_batches=0) as leader:
        wait_for = _attend(leader)
        runs = leader.execute([f"until [ -e {tmp_path}/go ]; do sleep 0.01; done"])
        old = leader.execute([int])
        assert wait_for(BatchRemoved).batch_id == old.id
        assert list(leader.get_state().batches) == [runs.id]
        (tmp_path / "go").touch()
        assert wait_for(BatchRemoved).batch_id == runs.id
        assert runs.state == "succeeded"


# Arrea's code falls short of its own page; this one must not.


def test_workers_limits_what_runs_at_once():
    """`workers` limits what runs at once."""
    lock = threading.Lock()
    seen = [0, 0]
    both = threading.Barrier(2)

    def work():
        with lock:
            seen[0] += 1
            seen[1] = max(seen)
        both.wait(timeout=LONG)
        with lock:
            seen[0] -= 1

    arrea_nb.execute([work] * 20, workers=2).results(timeout=LONG)
    assert seen == [0, 2]


def test_timeout_is_each_jobs(tmp_path):
    """`timeout` is each job's."""
    slow = "sleep 60"
    batch = arrea_nb.execute([slow, "true", slow, "true"], workers=1, timeout=0.3)
    assert batch.wait(timeout=LONG)
    assert [job.state for job in batch] == ["timed_out", "succeeded", "timed_out", "succeeded"]
    assert batch.duration > batch.timeout * 2


def test_results_are_kept():
    """Results are kept."""
    batch = arrea_nb.execute(["echo one", lambda: 2, ["echo", "three"]])
    assert batch.results(timeout=LONG) == [(0, "one\n", ""), 2, (0, "three\n", "")]
    assert batch.results() == batch.results()
    assert arrea_nb.Leader.instance()._engine.batch(batch.id)[1].value == 2


def test_the_cleanup_spares_running_batches():
    """The cleanup spares running batches."""
    go = threading.Event()
    with arrea_nb.Leader(cleanup_interval=0.001, batch_retention=0.0, keep_batches=0) as leader:
        wait_for = _attend(leader)
        runs = leader.execute([lambda: go.wait(LONG)])
        for _ in range(5):
            leader.execute([int])
            wait_for(BatchRemoved)
        assert list(leader.get_state().batches) == [runs.id]
        go.set()
        assert runs.results(timeout=LONG) == [True]


def test_commands_over_the_global_limit_wait_and_none_is_dropped():
    """Commands over the global limit wait, none is dropped."""
    lock = threading.Lock()
    seen = [0, 0]

    def work():
        with lock:
            seen[0] += 1
            seen[1] = max(seen)
        with lock:
            seen[0] -= 1
        return 1

    with arrea_nb.Leader(max_workers=2) as leader:
        batches = [leader.execute([work] * 50, workers=10) for _ in range(4)]
        assert [sum(batch.results(timeout=LONG)) for batch in batches] == [50] * 4
    assert seen[1] <= 2


def test_a_retry_really_runs_again(tmp_path):
    """A retry really runs again."""
    line = f"echo x >> {tmp_path}/runs; [ $(wc -l < {tmp_path}/runs) -eq 3 ]"
    batch = arrea_nb.execute([line], policy={"retries": 5, "retry_delay": 0})
    assert batch.wait(timeout=LONG)
    assert batch.state == "succeeded"
    assert (tmp_path / "runs").read_text() == "x\n" * 3
    assert [attempt.state for attempt in batch[0].attempts] == ["failed", "failed", "succeeded"]


def test_a_non_zero_exit_is_a_failure():
    """A non-zero exit is a failure."""
    batch = arrea_nb.execute(["echo why >&2; exit 3"])
    assert batch.wait(timeout=LONG)
    assert (batch.state, batch[0].state, batch[0].exit_code) == ("failed", "failed", 3)
    error = batch[0].error
    assert isinstance(error, CommandFailed)
    assert (error.exit_code, error.signal, error.output) == (3, None, "why\n")
    assert str(error) == "exit 3: why"


def test_the_counters_add_up():
    """The counters add up."""
    cancelled = threading.Event()

    def check():
        stats = arrea_nb.get_state().stats
        assert stats["started"] == (
            stats["finished"] + stats["failed"] + stats["cancelled"] + stats["running"]
        )
        return stats

    seen = []
    arrea_nb.subscribe(lambda event: seen.append(check()) if isinstance(event, JobEnded) else None)
    first = arrea_nb.execute(
        ["true", "false", "", int, lambda: 1 / 0], policy={"retries": 1, "retry_delay": 0}
    )
    second = arrea_nb.execute(["sleep 60", lambda: cancelled.wait(0), "sleep 60"], workers=3, timeout=0.2)
    third = arrea_nb.execute(["echo up; sleep 60", "sleep 61"], workers=1)
    assert check()["running"] >= 0
    assert first.wait(timeout=LONG)
    assert second.wait(timeout=LONG)
    with arrea_nb.subscribe(batch=third) as events:
        while not isinstance(events.get(timeout=LONG), JobStarted):
            pass
    third.cancel()
    assert third.wait(timeout=LONG)
    stats = check()
    assert stats["running"] == 0
    assert (stats["finished"], stats["failed"], stats["cancelled"]) == (3, 4, 1)
    assert third.counts["cancelled"] == 2


@pytest.mark.stops_callables
def test_partial_output_survives_a_timeout():
    """Partial output survives a timeout."""
    go = threading.Event()

    def work():
        print("begun")
        go.wait(LONG)

    batch = arrea_nb.execute(
        ["echo before; echo worse >&2; sleep 60", work],
        timeout=0.5,
    )
    assert batch.wait(timeout=LONG)
    go.set()
    assert [job.state for job in batch] == ["timed_out"] * 2
    assert (batch[0].stdout, batch[0].stderr) == ("before\n", "worse\n")
    assert batch[1].stdout == "begun\n"


def test_no_operating_system_process_is_orphaned():
    """No operating-system process is orphaned."""
    leader = arrea_nb.Leader.instance()
    wait_for = _attend(leader)
    batch = leader.execute(["(sleep 60 & sleep 60) & sleep 60 & echo up; sleep 60"])
    assert wait_for(JobStarted).pid == batch[0].pid
    wait_for(JobOutput)
    batch.cancel()
    assert batch.wait(timeout=LONG)
    # That nothing with a kernel's id is left is what `nothing_left_behind` looks at after every test; here
    # the Leader is still open. One that was killed may need a moment to die.
    for pid in processes_with({"ARREA_BATCH_ID": batch.id}):
        try:
            fd = os.pidfd_open(pid)
        except ProcessLookupError:
            continue
        assert select.select([fd], [], [], LONG)[0]
        os.close(fd)


def test_the_signatures_are_the_designs():
    """The names, defaults and order of `execute`, as the page gives them."""
    assert list(inspect.signature(arrea_nb.execute).parameters) == [
        "commands",
        "workers",
        "timeout",
        "log",
        "policy",
        "max_commands",
        "name",
        "shell",
        "cwd",
        "env",
        "unknown",
    ]


def test_log_is_shown_on_stderr_and_changes_nobodys_logging(capsys, monkeypatch):
    """`log=True` writes to the logger `arrea_nb`, shown on stderr; level and handlers stay as they were."""
    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    logger = logging.getLogger("arrea_nb")
    before = (logger.level, list(logger.handlers))
    batch = arrea_nb.execute(["true"], log=True)
    assert batch.wait(timeout=LONG)
    lines = ""
    while "[0] true: succeeded\n" not in lines:
        lines += capsys.readouterr().err
    assert lines.startswith("[0] true: attempt 1 started\n")
    assert (logger.level, logger.handlers) == before
