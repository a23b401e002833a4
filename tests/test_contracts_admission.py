"""C1 to C4: what `execute` takes, how many jobs run at once, and in which order they begin."""

import asyncio
import json
import threading
import time

import pytest

import arrea_nb
from arrea_nb.events import JobStarted

LONG = 60.0


def test_c1_execute_returns_before_its_jobs_end():
    go = threading.Event()
    batch = arrea_nb.execute([lambda: go.wait(LONG)])
    assert not batch.done()
    go.set()
    assert batch.results(timeout=LONG) == [True]


def test_c1_execute_may_be_called_from_a_job():
    with arrea_nb.Leader(max_workers=1) as leader:
        outer = leader.execute([lambda: leader.execute([lambda: 7])])
        inner = outer.results(timeout=LONG)[0]
        assert inner.results(timeout=LONG) == [7]


def test_c1_no_commands_make_an_empty_batch_that_has_succeeded():
    with arrea_nb.subscribe() as events:
        batch = arrea_nb.execute([])
        assert [events.get(timeout=LONG).type for _ in range(2)] == ["batch_started", "batch_ended"]
    assert (batch.state, batch.done(), len(batch), batch.results()) == ("succeeded", True, 0, [])
    assert list(batch.as_completed()) == []


def _most_at_once(intervals):
    """The largest number of intervals that have a moment in common."""
    moments = sorted([(start, 1) for start, _ in intervals] + [(end, -1) for _, end in intervals])
    now = most = 0
    for _, step in moments:
        now += step
        most = max(most, now)
    return most


# Each job writes when it began and when it ended, as late and as early as it can. One that is killed leaves
# no end: its interval is taken to end where it last knew that it lived.
def _line(path, python, *, then="exit 0"):
    script = (
        "import os, sys, time\n"
        "began = time.monotonic()\n"
        "out = open(sys.argv[1], 'a')\n"
        "ends = began + float(sys.argv[2])\n"
        "while True:\n"
        "    out.write(f'{os.getpid()} {began} {time.monotonic()}\\n'); out.flush()\n"
        "    if time.monotonic() >= ends: break\n"
        "    time.sleep(0.005)\n"
    )
    return f"{python} -S -c \"{script}\" '{path}' {then}"


def _intervals(folder):
    """From the file of each job the attempts that it noted, as pairs of first and last moment."""
    intervals = {}
    for path in folder.iterdir():
        for line in path.read_text().splitlines():
            words = line.split()
            if len(words) == 3:
                intervals[path.name, words[0]] = (float(words[1]), float(words[2]))
    return intervals


def test_c2_never_more_than_workers_and_that_many_reached(tmp_path):
    """Judged by what the jobs write, with failures, retries, timeouts and cancels mixed in.

    And two batches share.
    """
    folders = [tmp_path / name for name in ("first", "second")]
    for folder in folders:
        folder.mkdir()
    barriers = [threading.Barrier(3), threading.Barrier(2)]

    def call(path, seconds):
        def work():
            began = time.monotonic()
            threading.Event().wait(seconds)
            with path.open("a") as out:
                out.write(f"{threading.get_ident()}-{began} {began} {time.monotonic()}\n")

        return work

    def meet(barrier, path):
        """Jobs that wait for each other show that so many really run at once."""

        def work():
            began = time.monotonic()
            barrier.wait(LONG)
            with path.open("a") as out:
                out.write(f"{threading.get_ident()}-{began} {began} {time.monotonic()}\n")

        return work

    def batch_for(folder, barrier, size):
        python = "python"
        commands = [meet(barrier, folder / f"meet{at}") for at in range(size)]
        for at in range(3):
            commands += [
                _line(folder / f"fine{at}", python, then="0.02"),
                _line(folder / f"fails{at}", python, then="0.02; exit 3"),
                _line(folder / f"slow{at}", python, then="30"),
                call(folder / f"call{at}", 0.02),
                _line(folder / f"cancelled{at}", python, then="30"),
            ]
        return commands

    policy = {"retries": 1, "retry_delay": 0.01}
    with arrea_nb.Leader(max_workers=4, grace=0.2) as leader:
        events = leader.subscribe()
        first = leader.execute(batch_for(folders[0], barriers[0], 3), workers=3, timeout=2.0, policy=policy)
        second = leader.execute(batch_for(folders[1], barriers[1], 2), workers=2, timeout=2.0, policy=policy)
        batches = {first.id: first, second.id: second}
        left = 6
        while left:
            event = events.get(timeout=LONG)
            if isinstance(event, JobStarted) and event.attempt == 1:
                job = batches[event.batch_id][event.job]
                if "cancelled" in job.name:
                    job.cancel()
                    left -= 1
        for batch in (first, second):
            assert batch.wait(timeout=LONG)
            counts = batch.counts
            assert (counts["cancelled"], counts["timed_out"], counts["failed"]) == (3, 3, 3)
            assert counts["succeeded"] == len(batch) - 9
        stats = leader.get_state().stats
        assert stats["running"] == 0
        assert stats["started"] == stats["finished"] + stats["failed"] + stats["cancelled"]
    seen = [_intervals(folder) for folder in folders]
    assert _most_at_once(list(seen[0].values())) == 3
    assert _most_at_once(list(seen[1].values())) == 2
    assert _most_at_once([*seen[0].values(), *seen[1].values()]) <= 4
    # Those that fail and those that time out were run twice.
    assert len({pid for name, pid in seen[0] if name == "fails0"}) == 2


def test_c2_max_workers_holds_over_all_batches():
    lock = threading.Lock()
    seen = [0, 0]
    met = threading.Barrier(3)

    def work():
        with lock:
            seen[0] += 1
            seen[1] = max(seen)
        met.wait(LONG)
        with lock:
            seen[0] -= 1

    with arrea_nb.Leader(max_workers=3) as leader:
        for batch in [leader.execute([work] * 6, workers=5) for _ in range(3)]:
            batch.results(timeout=LONG)
    assert seen == [0, 3]


def test_c2_a_short_batch_is_not_starved_by_a_long_one():
    order = []
    gate = threading.Event()
    with arrea_nb.Leader(max_workers=1) as leader:
        first = leader.execute([lambda: gate.wait(LONG)])
        long = leader.execute([lambda: order.append("long")] * 50)
        short = leader.execute([lambda: order.append("short")] * 2)
        gate.set()
        for batch in (first, long, short):
            batch.results(timeout=LONG)
    assert order[:4] == ["long", "short", "long", "short"]


def _by_wait(batch):
    assert batch.wait(timeout=LONG)
    return sum(job.value for job in batch)


def _by_results(batch):
    return sum(batch.results(timeout=LONG))


def _by_result(batch):
    return sum(job.result(timeout=LONG) for job in batch)


def _by_as_completed(batch):
    return sum(job.value for job in batch.as_completed(timeout=LONG))


def _by_await(batch):
    async def waits():
        return sum(await batch)

    return asyncio.run(waits())


@pytest.mark.parametrize(
    "way",
    [
        _by_wait,
        _by_results,
        _by_result,
        _by_as_completed,
        _by_await,
    ],
)
def test_c2_a_callable_that_waits_gives_up_its_place(way):
    """Nesting three deep on one worker does not lock up."""
    with arrea_nb.Leader(max_workers=1) as leader:

        def nested(depth):
            if not depth:
                return 1
            return way(leader.execute([lambda: nested(depth - 1)] * 2, workers=1, timeout=20.0))

        batch = leader.execute([lambda: nested(2)] * 2, timeout=20.0)
        assert batch.results(timeout=LONG) == [4, 4]
        assert leader.get_state().stats["running"] == 0


@pytest.mark.stops_callables
def test_c2_an_abandoned_thread_counts_towards_no_limit():
    go = threading.Event()
    with arrea_nb.Leader(max_workers=1, grace=0.0) as leader:
        stuck = leader.execute([lambda: go.wait(LONG)], timeout=0.05)
        assert stuck.wait(timeout=LONG)
        assert (stuck[0].state, stuck[0].abandoned) == ("timed_out", True)
        assert leader.get_state().abandoned == 1
        assert leader.execute([lambda: 5]).results(timeout=LONG) == [5]
        go.set()


def test_c3_first_attempts_begin_in_the_order_given_and_results_come_in_it():
    began = []

    def work(at):
        began.append(at)
        if at % 3 == 0:
            raise ValueError(at)
        return at

    commands = [lambda at=at: work(at) for at in range(30)]
    batch = arrea_nb.execute(commands, workers=1, policy={"retries": 1, "retry_delay": 0})
    results = None
    assert batch.wait(timeout=LONG)
    firsts = list(dict.fromkeys(began))
    assert firsts == list(range(30))
    results = batch.results(return_exceptions=True)
    assert [result if isinstance(result, int) else result.args[0] for result in results] == list(range(30))
    assert [job.index for job in batch.jobs] == list(range(30))


def test_c3_shell_jobs_begin_in_the_order_given():
    with arrea_nb.subscribe() as events:
        batch = arrea_nb.execute(["true"] * 12, workers=1)
        assert batch.wait(timeout=LONG)
        started = []
        while len(started) < 12:
            event = events.get(timeout=LONG)
            if isinstance(event, JobStarted):
                started.append(event.job)
    assert started == list(range(12))


def test_c4_options_are_checked_before_anything_starts(tmp_path):
    """The table is in test_bad_input.py; here: what is accepted at the edges."""
    edges = arrea_nb.execute([lambda: 1], workers=1, timeout=0, cwd=tmp_path, env={}, name="", log=False)
    assert edges.results(timeout=LONG) == [1]
    assert edges.timeout is None
    assert arrea_nb.execute([lambda: 1], timeout=None).timeout is None
    assert arrea_nb.execute([lambda: 1], timeout=float("inf")).timeout is None
    assert arrea_nb.execute([], max_commands=0).state == "succeeded"


def test_c4_every_form_of_a_command_is_taken(tmp_path):
    class Model:
        def fit(self):
            return "fitted"

    async def coroutine():
        await asyncio.sleep(0)
        return "awaited"

    from functools import partial

    commands = {
        "line": "echo $PWD",
        "argv": ["echo", "a b", tmp_path],
        "tuple": ("printf", "%s", "x"),
        "function": Model,
        "bound": Model().fit,
        "coroutine": coroutine,
        "partial": partial(json.dumps, [1], indent=None),
        "lambda": lambda: None,
    }
    batch = arrea_nb.execute(commands, cwd=tmp_path)
    assert batch.wait(timeout=LONG)
    assert batch.state == "succeeded"
    assert [job.name for job in batch] == list(commands)
    assert batch["line"].stdout == f"{tmp_path}\n"
    assert batch["argv"].stdout == f"a b {tmp_path}\n"
    assert batch["tuple"].value == (0, "x", "")
    assert batch["bound"].value == "fitted"
    assert batch["coroutine"].value == "awaited"
    assert batch["partial"].value == "[1]"
    unnamed = arrea_nb.execute([partial(json.dumps, [1], indent=None), Model().fit, ["echo", "a b"]])
    assert unnamed.wait(timeout=LONG)
    assert unnamed[0].name == "dumps([1], indent=None)"
    assert unnamed[1].name == "Model.fit"
    assert unnamed[2].name == "echo 'a b'"


def test_c4_a_program_that_vanishes_before_its_turn_failed_to_start(tmp_path):
    program = tmp_path / "here-and-gone"
    program.write_text("#!/bin/sh\necho hello\n")
    program.chmod(0o755)
    events = arrea_nb.subscribe()
    batch = arrea_nb.execute([program.unlink, [program]], workers=1)
    heard = []
    while not heard or heard[-1].type != "batch_ended":
        heard.append(events.get(timeout=LONG))
    job = batch[1]
    assert (job.state, job.exit_code, job.attempt) == ("failed", 127, 0)
    assert str(job.error) == "could not start: No such file or directory (exit 127)"
    assert batch.start_failures == (job,)
    assert [event.type for event in heard if getattr(event, "job", None) == 1] == ["job_ended"]
