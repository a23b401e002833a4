"""C21: a bug of ours, wherever it strikes, loses no job, no place and no deadline; made here on purpose."""

import contextvars
import queue
import threading
import time

import pytest

import arrea_nb
from arrea_nb._ledger import Ledger
from arrea_nb._places import Places
from arrea_nb.errors import JobCrashed
from arrea_nb.workers import _process
from arrea_nb.workers._guard import Guard
from arrea_nb.workers._guard_script import processes_with

LONG = 60.0


class Bug(Exception):  # noqa: N818 - what it is
    pass


@pytest.fixture
def leader():
    with arrea_nb.Leader() as leader:
        yield leader


def _break(monkeypatch, what, name, *, before=True, times=1):
    """Makes a method raise the first few times it is called, before or after it did its work."""
    original = getattr(what, name)
    left = [None] * times

    def broken(*args, **kwargs):
        if before and left:
            left.pop()
            raise Bug(name)
        result = original(*args, **kwargs)
        if left:
            left.pop()
            raise Bug(name)
        return result

    monkeypatch.setattr(what, name, broken)


def _forever():
    while True:
        time.sleep(0.001)


def _adds_up(leader):
    stats = leader.get_state().stats
    assert stats["running"] == 0
    assert stats["started"] == stats["finished"] + stats["failed"] + stats["cancelled"]
    assert leader._engine.ledger.places.taken == 0
    assert leader.execute([int, "true"] * 3, workers=6).results(timeout=LONG)


@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize(
    "name", ["take", "started", "returned", "ended", "_free", "_end", "offer", "next", "_move"]
)
def test_a_bug_in_the_ledger_costs_a_job_at_the_most(monkeypatch, leader, name, before):
    """Before the verb did its work, or after it, when half an outcome is applied or a job handed out."""

    def fail():
        raise ValueError("no")

    _break(monkeypatch, Ledger if hasattr(Ledger, name) else Places, name, before=before)
    if name == "offer":
        with pytest.raises(Bug):
            leader.execute([int])
    batch = leader.execute([int, "true", fail, "exit 1"] * 3, workers=2, timeout=None)
    assert batch.wait(timeout=LONG)
    crashed = [job for job in batch if isinstance(job.error, JobCrashed)]
    assert len(crashed) <= 2
    for job in crashed:
        assert isinstance(job.error.__cause__, Bug)
        assert str(job.error) == f"its worker died of a bug in arrea_nb: Bug: {name}"
    assert {str(job.state) for job in batch} == {"succeeded", "failed"}
    _adds_up(leader)


@pytest.mark.parametrize("kind", ["job_started", "job_ended", "batch_ended"])
def test_a_bug_while_an_event_is_told_lets_nobody_wait_for_ever(monkeypatch, leader, kind):
    publish, told, ends = leader._engine.ledger._publish, [], queue.SimpleQueue()

    def broken(event):
        if event.type == kind and not told:
            told.append(event)
            raise Bug(kind)
        publish(event)

    monkeypatch.setattr(leader._engine.ledger, "_publish", broken)
    with leader.subscribe():
        go = threading.Event()
        batch = leader.execute([lambda: go.wait(LONG), "true", int], workers=1, timeout=None)
        # Not the main thread, which looks up now and then by itself.
        waits = [batch[0].result, batch.wait] if kind != "job_started" else [batch.wait]
        waiting = [threading.Thread(target=lambda one=one: ends.put(one()), daemon=True) for one in waits]
        for thread in waiting:
            thread.start()
        go.set()
        assert [ends.get(timeout=LONG) for _ in waiting] == [True] * len(waiting)
    assert sum(isinstance(job.error, JobCrashed) for job in batch) == (kind == "job_started")
    _adds_up(leader)


def test_a_bug_that_stays_fails_what_is_ready_and_hires_nobody_for_ever(monkeypatch, leader):
    with monkeypatch.context() as broken:
        _break(broken, Ledger, "take", times=1_000_000)
        batch = leader.execute([int, "true"] * 3, workers=2)
        assert batch.wait(timeout=LONG)
        assert [str(job.state) for job in batch] == ["failed"] * 6
        assert all(isinstance(job.error, JobCrashed) for job in batch)
    _adds_up(leader)


@pytest.mark.parametrize("name", ["started", "guard", "new_output", "public"])
def test_a_bug_around_a_process_leaves_none(monkeypatch, leader, name):
    _break(monkeypatch, leader._engine, name)
    batch = leader.execute(["sleep 300", "exit 3"], workers=1, timeout=0.5)
    assert batch.wait(timeout=LONG)
    assert [str(job.state) for job in batch].count("failed") >= 1
    assert processes_with({"ARREA_BATCH_ID": batch.id}) == []


def test_a_process_that_cannot_be_watched_is_ended_and_reaped(monkeypatch, leader):
    """pidfd_open fails after the spawn: the last descriptor went to somebody else meanwhile."""

    def none(pid):
        raise OSError(24, "Too many open files")

    with monkeypatch.context() as broken:
        broken.setattr(_process.os, "pidfd_open", none)
        batch = leader.execute(["sleep 300"])
        assert batch.wait(timeout=LONG)
    assert str(batch[0].error).startswith("could not start: Too many open files (exit 126); the kernel may")
    # What the shell started was killed with it, and is gone as soon as it gets to run.
    while processes_with({"ARREA_BATCH_ID": batch.id}):
        time.sleep(0.01)
    _adds_up(leader)


@pytest.mark.stops_callables
def test_a_bug_of_the_timer_costs_a_second_and_no_deadline(monkeypatch, leader):
    _break(monkeypatch, Ledger, "due")
    batch = leader.execute([_forever], timeout=0.05)
    assert batch.wait(timeout=LONG)
    assert batch.counts["timed_out"] == 1


@pytest.mark.stops_callables
def test_a_timeout_of_centuries_does_not_end_the_timer(leader):
    """Longer than a thread can sleep."""
    batch = leader.execute([int, lambda: leader.execute([int], timeout=1e11).results()], timeout=1e12)
    assert batch.results(timeout=LONG) == [0, [0]]
    waits = leader.execute([_forever], timeout=0.05)
    assert waits.wait(timeout=LONG)
    assert waits.counts["timed_out"] == 1


def test_an_order_that_was_put_off_and_fails_leaves_the_section(caplog, leader):
    def fail():
        raise Bug("order")

    with leader._engine.hold, leader._engine.lock, leader._engine.section:
        leader._engine.section.order(fail)
        leader._engine.section.order(lambda: heard.append(1))
        heard = []
    assert heard == [1]
    assert "an order that was put off failed of a bug" in caplog.text
    _adds_up(leader)


class Witness:
    """Tells whether the lock was free when it was let go."""

    def __init__(self, leader, told):
        self._lock = leader._engine.lock
        self._told = told

    def __del__(self):
        # Asked by another thread: the one that holds it may enter again.
        asks = threading.Thread(target=self._ask)
        asks.start()
        asks.join()

    def _ask(self):
        free = self._lock.acquire(timeout=5)
        if free:
            self._lock.release()
        self._told.put(free)


def test_what_a_coroutine_left_in_its_context_is_let_go_of_outside_the_lock(leader):
    """A `__del__` is the user's code, and may wait for somebody who needs the lock."""
    told = queue.SimpleQueue()
    variable = contextvars.ContextVar("variable")

    async def in_its_context():
        variable.set(Witness(leader, told))

    leader.execute([in_its_context, int], workers=1).wait(timeout=LONG)
    assert told.get(timeout=LONG) is True


def test_a_guard_that_dies_at_once_is_not_started_for_ever(monkeypatch, caplog, leader):
    """The kernel's own Python cannot run any more: the jobs do, and somebody is told."""
    started = []
    spawn = Guard._spawn

    def counted(guard, reading):
        started.append(1)
        return spawn(guard, reading)

    monkeypatch.setattr(Guard, "_spawn", counted)
    monkeypatch.setattr("arrea_nb.workers._guard.sys.executable", "/bin/false")
    batch = leader.execute(["sleep 0.5; echo done"] * 3)
    assert [result.stdout for result in batch.results(timeout=LONG)] == ["done\n"] * 3
    assert len(started) < 20
    assert "the guard could not be started (/bin/false died 5 times as soon as it began)" in caplog.text


def test_a_guard_that_cannot_be_started_keeps_no_job_from_running(monkeypatch, caplog, leader, tmp_path):
    monkeypatch.setattr("arrea_nb.workers._guard.sys.executable", str(tmp_path / "python"))
    assert leader.execute(["echo done"]).results(timeout=LONG)[0].stdout == "done\n"
    assert "a crash now would leave processes" in caplog.text
