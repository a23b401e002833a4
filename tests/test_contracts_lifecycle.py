"""C18 to C21: cleaning up, costing nothing, forking, leaving, and surviving a bug."""

import gc
import os
import signal
import subprocess
import sys
import threading
import time
import weakref
from queue import SimpleQueue

import pytest

import arrea_nb
from arrea_nb.errors import BatchFailed, JobCancelled, JobCrashed, UnknownBatchError
from arrea_nb.events import BatchRemoved
from arrea_nb.workers import _threads
from arrea_nb.workers._guard_script import processes_with

LONG = 60.0


def _removed(events, number=1):
    found = []
    while len(found) < number:
        event = events.get(timeout=LONG)
        if isinstance(event, BatchRemoved):
            found.append(event.batch_id)
    return found


def _ours():
    return [thread for thread in threading.enumerate() if thread.name.startswith("arrea-")]


def _join_all():
    """Waits for our threads to end of their own accord."""
    for thread in _ours():
        thread.join(LONG / 4)
    return _ours()


# C18


@pytest.mark.stops_callables
def test_c18_the_latest_are_kept_and_the_oldest_go():
    with arrea_nb.Leader(cleanup_interval=0.01, batch_retention=0.0, keep_batches=2) as leader:
        events = leader.subscribe()
        go, batches = threading.Event(), []
        # The oldest of all, and never removed while it runs.
        runs = leader.execute([lambda: go.wait(LONG)])
        for _ in range(5):
            batches.append(leader.execute([int]))
            assert batches[-1].wait(timeout=LONG)
        assert _removed(events, 3) == [batch.id for batch in batches[:3]]
        assert list(leader.get_state().batches) == [batch.id for batch in (runs, *batches[3:])]
        with pytest.raises(UnknownBatchError):
            leader.cancel(batches[0].id)
        go.set()


def test_c18_young_batches_stay():
    with arrea_nb.Leader(cleanup_interval=0.01, batch_retention=1000.0, keep_batches=0) as leader:
        batch = leader.execute([int])
        assert batch.wait(timeout=LONG)
        # The timer's own thread looks again and again; a few of its looks are enough.
        looks = threading.Semaphore(0)
        sweep = leader._engine._sweep

        def counted(now, at, gone):
            looks.release()
            return sweep(now, at, gone)

        leader._engine._sweep = counted
        for _ in range(3):
            assert looks.acquire(timeout=LONG)
        assert list(leader.get_state().batches) == [batch.id]


def test_c18_a_batch_that_was_young_goes_at_a_later_look():
    """Nothing happens between the looks: no other batch ends that would plan one."""
    with arrea_nb.Leader(cleanup_interval=0.01, batch_retention=0.5, keep_batches=0) as leader:
        events = leader.subscribe()
        batch = leader.execute([int])
        assert batch.wait(timeout=LONG)
        assert _removed(events) == [batch.id]
        assert leader.get_state().batches == {}


def test_c18_a_batch_that_left_keeps_working(tmp_path):
    with arrea_nb.Leader(cleanup_interval=0.01, batch_retention=0.0, keep_batches=0) as leader:
        events = leader.subscribe()
        batch = leader.execute({"a": "echo hello; [ -e there ]", "b": lambda: 5}, cwd=tmp_path)
        assert _removed(events) == [batch.id]
        assert batch.done()
        assert batch["a"].stdout == "hello\n"
        assert batch.results(return_exceptions=True)[1] == 5
        batch.cancel()
        assert [record["state"] for record in batch.records()] == ["failed", "succeeded"]
        assert [job.index for job in batch.as_completed(timeout=LONG)] == [0, 1]
        (tmp_path / "there").touch()
        assert batch.retry_failed().results(timeout=LONG)[0].stdout == "hello\n"


def test_c18_the_timer_sleeps_when_nothing_could_be_removed():
    with arrea_nb.Leader(cleanup_interval=0.01, batch_retention=0.0, keep_batches=5) as leader:
        assert leader.execute([int]).wait(timeout=LONG)
        assert _join_all() == []
        assert len(leader.get_state().batches) == 1


# C19


def test_c19_a_thousand_batches_leave_no_thread_and_no_descriptor():
    with arrea_nb.Leader(keep_batches=0, batch_retention=0.0, cleanup_interval=0.05) as leader:
        assert leader.execute(["true", int]).wait(timeout=LONG)
        assert _join_all() == []
        before = len(os.listdir("/proc/self/fd"))
        running = []
        for at in range(1000):
            commands = [int, lambda: print("x")]
            if at % 20 == 0:
                commands += ["true", "head -c 300000 /dev/zero", "exit 3"]
            running.append(leader.execute(commands, timeout=LONG))
            if len(running) == 50:
                for batch in running:
                    assert batch.wait(timeout=LONG)
                running = []
        assert _join_all() == []
        batch = None
        gc.collect()
        assert len(os.listdir("/proc/self/fd")) <= before
        stats = leader.get_state().stats
        assert stats["started"] == stats["finished"] + stats["failed"]
        assert stats["started"] == 2 + 2000 + 150


def test_c19_a_loop_over_as_completed_that_is_left_early_leaves_nothing():
    """What a running batch rings at each job's end goes with the loop that listened."""
    go = threading.Event()
    batch = arrea_nb.execute([int, lambda: go.wait(LONG)], workers=2)

    def leave_early():
        for job in batch.as_completed(timeout=LONG):
            assert job.index == 0
            break

    leave_early()
    before = _queues()
    for _ in range(20):
        leave_early()
    assert _queues() < before + 10
    go.set()
    assert batch.wait(timeout=LONG)


def _queues():
    gc.collect()
    return sum(type(one) is SimpleQueue for one in gc.get_objects())


def test_c19_an_idle_leader_has_no_worker_and_no_timer():
    assert arrea_nb.execute(["true"] * 8, timeout=LONG).wait(timeout=LONG)
    assert arrea_nb.execute([int] * 8, timeout=LONG).wait(timeout=LONG)
    assert arrea_nb.execute(["false"], policy={"retries": 1, "retry_delay": 0.01}).wait(timeout=LONG)
    assert _join_all() == []


def test_c19_a_cancelled_retry_keeps_no_timer():
    with arrea_nb.subscribe() as events:
        batch = arrea_nb.execute(["false"], policy={"retries": 1, "retry_delay": 60.0})
        while events.get(timeout=LONG).type != "job_retrying":
            pass
        batch.cancel()
    assert arrea_nb.execute([int], timeout=LONG).wait(timeout=LONG)
    assert _join_all() == []


def test_c19_values_that_nobody_holds_are_let_go():
    class Value:
        pass

    with arrea_nb.Leader(keep_batches=0, batch_retention=0.0, cleanup_interval=0.01) as leader:
        events = leader.subscribe()
        batch = leader.execute([Value])
        value = weakref.ref(batch.results(timeout=LONG)[0])
        assert value() is not None
        _removed(events)
        del batch
        assert _join_all() == []
        gc.collect()
        assert value() is None


# C20


def test_c20_close_cancels_what_runs_and_can_be_repeated():
    leader = arrea_nb.Leader(grace=0.2)
    events = leader.subscribe()
    batch = leader.execute(
        ["trap '' TERM; echo up; while :; do sleep 300; done", "sleep 300", int], workers=1
    )
    while events.get(timeout=LONG).type != "job_output":
        pass
    leader.close()
    leader.close()
    assert [job.state for job in batch] == ["cancelled"] * 3
    assert batch.wait(timeout=0)
    with pytest.raises(BatchFailed) as raised:
        batch.results()
    assert {type(error) for error in raised.value.exceptions} == {JobCancelled}


@pytest.mark.stops_callables
def test_c20_a_closed_leader_sweeps_nothing_and_hires_nobody():
    """Closed with more batches than are kept, and a retry that waits for a place."""
    go = threading.Event()
    with arrea_nb.Leader(max_workers=1, keep_batches=0, grace=LONG) as leader, leader.subscribe() as events:
        leader.execute([])
        again = leader.execute(["false"], policy={"retries": 1, "retry_delay": 0.0})
        takes_the_place = leader.execute([lambda: go.wait(LONG)], timeout=0)
        while (
            event := events.get(timeout=LONG)
        ).batch_id != takes_the_place.id or event.type != "job_started":
            pass
        while not again._record.due:
            time.sleep(0.001)
        threading.Timer(0.0, go.set).start()
    assert _join_all() == []


def test_c20_a_forked_child_has_a_leader_of_its_own():
    script = """
import os, sys, threading
import arrea_nb
leader = arrea_nb.Leader.instance()
go = threading.Event()
batch = arrea_nb.execute(["echo up; sleep 300", lambda: go.wait(60)])
with arrea_nb.subscribe(batch=batch) as events:
    while not batch[0].stdout:
        events.get(timeout=60)
spool = leader._engine.spool.directory
child = os.fork()
if child == 0:
    code = 3
    try:
        assert arrea_nb.Leader.instance() is not leader
        for call in (lambda: batch.wait(timeout=5), batch.cancel, lambda: batch[0].result(timeout=5)):
            try:
                call()
            except RuntimeError as error:
                assert "parent process" in str(error), error
            else:
                raise AssertionError("the inherited batch did not raise")
        mine = arrea_nb.execute(["echo mine", lambda: 6], timeout=30)
        assert mine.results(timeout=30)[1] == 6
        assert mine[0].stdout == "mine\\n"
        arrea_nb.Leader.instance().close()
        leader.close()
        code = 0
    finally:
        if code:
            import traceback
            traceback.print_exc()
    if len(sys.argv) == 1:
        os._exit(code)
    sys.exit(code)
_, status = os.waitpid(child, 0)
assert os.waitstatus_to_exitcode(status) == 0, status
assert batch[0].state == "running", batch[0].state
os.kill(batch[0].pid, 0)
go.set()
batch[0].cancel()
assert batch.wait(timeout=60)
assert batch[1].value is True
print("parent is fine")
"""
    for arguments in ([], ["exit"]):
        done = subprocess.run(
            [sys.executable, "-c", script, *arguments],
            capture_output=True,
            text=True,
            timeout=LONG,
            check=False,
        )
        assert (done.returncode, done.stdout) == (0, "parent is fine\n"), done.stderr


def test_c20_an_interpreter_that_exits_says_what_it_cancelled():
    script = """
import arrea_nb
batch = arrea_nb.execute(["echo up; sleep 300", "sleep 300"], workers=1)
with arrea_nb.subscribe(batch=batch) as events:
    while not batch[0].stdout:
        events.get(timeout=60)
print(batch.id)
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=LONG, check=False
    )
    assert done.returncode == 0
    assert done.stderr == (
        "arrea_nb: 2 jobs had not ended at exit and were cancelled; wait() waits for them\n"
    )
    assert list(processes_with({"ARREA_BATCH_ID": done.stdout.strip()})) == []


def test_c20_an_interpreter_that_exits_with_nothing_running_is_silent():
    script = "import arrea_nb; print(arrea_nb.run(['echo hello', int])[1])"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=LONG, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[-1] == "0"


def test_c20_an_interrupt_of_run_cancels_the_batch_and_raises():
    script = """
import os, signal, arrea_nb
def stop(event):
    if event.type == "job_output":
        os.kill(os.getpid(), signal.SIGINT)
arrea_nb.subscribe(stop)
try:
    arrea_nb.run(["echo up; sleep 300", "sleep 300"])
except KeyboardInterrupt:
    print([str(job.state) for job in arrea_nb.Leader.instance()._engine.batches()[0]])
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=LONG, check=False
    )
    assert done.stdout.splitlines()[-1] == "['cancelled', 'cancelled']", done.stderr


@pytest.mark.parametrize("_", range(10))
def test_an_interrupt_ends_the_waiting_and_not_the_batch(_):
    """Sent just when the main thread begins to wait, where CPython alone would not see it (10 tries)."""
    go = threading.Event()
    batch = arrea_nb.execute([lambda: go.wait(LONG)], timeout=LONG)

    def interrupt(event):
        if event.type == "custom_event":
            os.kill(os.getpid(), signal.SIGINT)

    def wait():
        arrea_nb.notify_event({"type": "now"})
        batch.wait(timeout=LONG)

    arrea_nb.subscribe(interrupt)
    with pytest.raises(KeyboardInterrupt):
        wait()
    assert not batch.done()
    go.set()
    assert batch.results(timeout=LONG) == [True]


# C21


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_c21_a_worker_that_dies_of_a_bug_is_replaced_and_its_job_crashed(monkeypatch):
    run_shell = _threads.run_shell

    def buggy(job, desk, wake_fd):
        if job.index == 1:
            raise ZeroDivisionError("a bug of ours")
        return run_shell(job, desk, wake_fd)

    monkeypatch.setattr(_threads, "run_shell", buggy)
    batch = arrea_nb.execute(["true", "true", "true", int], workers=1)
    assert batch.wait(timeout=LONG)
    assert [job.state for job in batch] == ["succeeded", "failed", "succeeded", "succeeded"]
    error = batch[1].error
    assert isinstance(error, JobCrashed)
    assert isinstance(error.__cause__, ZeroDivisionError)
    stats = arrea_nb.get_state().stats
    assert stats["running"] == 0
    assert stats["started"] == stats["finished"] + stats["failed"] + stats["cancelled"]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_c21_a_timer_that_dies_of_a_bug_is_replaced():
    with arrea_nb.Leader() as leader:
        sweep, bugs = leader._engine._sweep, [ZeroDivisionError("a bug of ours")]

        def buggy(now, at, gone):
            if bugs:
                raise bugs.pop()
            return sweep(now, at, gone)

        leader._engine._sweep = buggy
        assert leader.execute([int], timeout=0.001).wait(timeout=LONG)
        leader._engine.timer.plan(0.0)
        assert _join_all() == []
        assert not bugs
        batch = leader.execute(["false"], policy={"retries": 2, "retry_delay": 0.01})
        assert batch.wait(timeout=LONG)
        assert batch[0].attempt == 3
