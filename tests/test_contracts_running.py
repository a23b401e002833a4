"""C5 to C10: how jobs run, are stopped, fail and are tried again; and the hostile list."""

import asyncio
import os
import select
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from queue import SimpleQueue

import pytest

import arrea_nb
from arrea_nb.errors import BatchFailed, CommandFailed, JobCancelled, JobCrashed, JobTimeout
from arrea_nb.events import BatchEnded, JobEnded, JobOutput, JobRetrying, JobStarted
from arrea_nb.workers import _process, _shell
from arrea_nb.workers._guard_script import processes_with

LONG = 60.0
# Above what any wait in a test takes, and yet far below LONG: who waits for it to end has hung.
NEVER = 300


def _carriers(batch):
    """The processes that carry this batch's id in their environment."""
    return list(processes_with({"ARREA_BATCH_ID": batch.id}))


def _heard(batch):
    """All events of a batch, once it has ended."""
    assert batch.wait(timeout=LONG)
    with arrea_nb.subscribe(batch=batch) as events:
        return list(events)


def _until(events, kind, **fields):
    """The next event of this type with these fields."""
    while True:
        event = events.get(timeout=LONG)
        if isinstance(event, kind) and all(getattr(event, key) == value for key, value in fields.items()):
            return event


def _gone(pid):
    """Whether a process has ended; waits, since one that was killed may need a moment to die."""
    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return bool(select.select([fd], [], [], LONG / 4)[0])
    finally:
        os.close(fd)


# C5


def test_c5_a_shell_job_has_its_ids_in_its_environment_and_a_session_of_its_own():
    line = (
        "echo $ARREA_KERNEL_ID $ARREA_BATCH_ID $ARREA_JOB_INDEX $PYTHONUNBUFFERED; readlink /proc/$$/fd/0; "
        "ps -o pid=,pgid=,sid= -p $$; readlink /proc/$$/fd/1 /proc/$$/fd/2"
    )
    batch = arrea_nb.execute(["true", line])
    job = batch[1]
    ids, stdin, session, out, err = job.result(timeout=LONG).stdout.splitlines()
    assert ids == f"{arrea_nb.Leader.instance()._engine.kernel_id} {batch.id} 1 1"
    assert stdin == "/dev/null"
    assert {int(word) for word in session.split()} == {job.pid}
    assert out.startswith("pipe:")
    assert err.startswith("pipe:")
    assert out != err


def test_c5_python_is_the_kernels_own():
    batch = arrea_nb.execute(["command -v python", ["python", "-c", "import sys; print(sys.executable)"]])
    for result in batch.results(timeout=LONG):
        assert Path(result.stdout.strip()).parent == Path(sys.executable).parent


def test_c5_env_and_cwd_are_passed_on(tmp_path):
    batch = arrea_nb.execute(['echo "$GREETING"; pwd'], env={"GREETING": "a  b"}, cwd=tmp_path)
    assert batch.results(timeout=LONG)[0].stdout == f"a  b\n{tmp_path}\n"


def test_c5_exit_code_0_is_success_and_anything_else_is_failure():
    batch = arrea_nb.execute(["exit 0", "exit 1", "exit 255"])
    assert batch.wait(timeout=LONG)
    assert [(job.state, job.exit_code) for job in batch] == [("succeeded", 0), ("failed", 1), ("failed", 255)]


def test_c5_what_was_left_in_the_background_is_stopped_and_noted():
    """It ends when its process exits, whoever still holds its pipes."""
    batch = arrea_nb.execute([f"sleep {NEVER} & echo $!", "echo alone"])
    assert batch.wait(timeout=LONG)
    assert [job.state for job in batch] == ["succeeded"] * 2
    assert batch[0].note == "stopped what it left running in the background"
    assert batch[1].note is None
    assert _gone(int(batch[0].stdout))


def test_c5_a_program_that_made_a_session_of_its_own_lives_on(tmp_path):
    line = f"setsid sh -c 'echo $$ > {tmp_path}/pid; mv {tmp_path}/pid {tmp_path}/there; sleep {NEVER}' & "
    line += f"until [ -e {tmp_path}/there ]; do sleep 0.01; done"
    batch = arrea_nb.execute([line])
    assert batch.wait(timeout=LONG)
    assert batch.state == "succeeded"
    pid = int((tmp_path / "there").read_text())
    os.kill(pid, 0)
    os.killpg(pid, signal.SIGKILL)
    assert _gone(pid)


@pytest.mark.parametrize("moment", ["while it is watched", "before it is watched"])
def test_c5_a_process_whose_exit_status_went_to_somebody_else_has_crashed(tmp_path, monkeypatch, moment):
    pidfd_open = os.pidfd_open

    def once_it_is_gone(pid):
        while Path(f"/proc/{pid}").exists():
            time.sleep(0.001)
        return pidfd_open(pid)

    waits = f"import os, time\nwhile not os.path.exists('{tmp_path}/go'): time.sleep(0.01)\nprint('done')"
    with arrea_nb.Leader() as leader, leader.subscribe() as events:
        leader.execute(["true"]).results(timeout=LONG)  # starts the guard
        before = signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the system reaps it, and tells nobody
        try:
            if moment == "before it is watched":
                (tmp_path / "go").touch()
                monkeypatch.setattr(os, "pidfd_open", once_it_is_gone)
            batch = leader.execute([[sys.executable, "-c", waits]], policy={"retries": 1, "retry_delay": 0})
            _until(events, JobStarted, batch_id=batch.id)
            (tmp_path / "go").touch()
            assert batch.wait(timeout=LONG)
        finally:
            signal.signal(signal.SIGCHLD, before)
            monkeypatch.undo()
    assert isinstance(batch[0].error, JobCrashed)
    assert str(batch[0].error) == "its exit status is lost: something else waited for its process"
    assert (batch[0].stdout, batch[0].attempt) == ("done\n", 2)


def test_c5_a_job_that_is_cancelled_before_its_process_is_spawned_gets_none(monkeypatch, tmp_path):
    """It has been handed to a worker, which made what it needs for it: there is nothing to stop yet."""
    with arrea_nb.Leader() as leader:
        new_output, handed = leader._engine.new_output, SimpleQueue()

        def cancelled_meanwhile():
            handed.get(timeout=LONG).cancel()
            return new_output()

        monkeypatch.setattr(leader._engine, "new_output", cancelled_meanwhile)
        batch = leader.execute([f"touch {tmp_path}/began"])
        handed.put(batch)
        assert batch.wait(timeout=LONG)
        with leader.subscribe(batch=batch) as events:
            heard = [type(event) for event in events]
        job = batch[0]
        assert (job.state, job.pid, job.attempts) == ("cancelled", None, [])
        assert JobStarted not in heard
        assert JobEnded in heard
        assert leader.get_state().stats["started"] == 0
    assert not (tmp_path / "began").exists()


def test_c5_a_working_directory_that_is_gone_is_named(tmp_path):
    place = tmp_path / "gone"
    place.mkdir()
    batch = arrea_nb.execute([f"rmdir {place}", "true", ["/bin/true"]], workers=1, cwd=place)
    assert batch.wait(timeout=LONG)
    assert [job.state for job in batch] == ["succeeded", "failed", "failed"]
    for job in batch.jobs[1:]:
        assert str(job.error) == (
            f"could not start: its working directory {place} is gone (exit 127); "
            "make it again, or pass another cwd="
        )
        assert (job.exit_code, job.pid, job.attempts) == (127, None, [])


def test_c5_who_holds_the_pipe_and_writes_for_ever_does_not_keep_a_job_from_ending(monkeypatch):
    """It is in another session, and faster than we read: after the end no more is read than a pipe holds."""
    read = _shell._ShellRun._read
    after_the_end = 0

    def read_and_wait_for_more(self, fd):
        nonlocal after_the_end
        count = read(self, fd)
        if self._exited:
            after_the_end += count
            select.select([fd], [], [], LONG)
        return count

    drain = _shell._ShellRun._drain

    def wait_for_some_and_drain(self):
        select.select(list(self._streams), [], [], LONG)
        drain(self)

    monkeypatch.setattr(_shell._ShellRun, "_read", read_and_wait_for_more)
    monkeypatch.setattr(_shell._ShellRun, "_drain", wait_for_some_and_drain)
    batch = arrea_nb.execute(["setsid yes & sleep 0.2"])
    assert batch[0].result(timeout=LONG).stdout.startswith("y\ny\n")
    assert 0 < after_the_end <= _shell._PIPE_HOLDS + _shell._CHUNK


# C6


def test_c6_a_group_that_ignores_sigterm_is_killed_after_the_grace():
    with arrea_nb.Leader(grace=0.2) as leader:
        batch = leader.execute([f"trap '' TERM; echo up; sleep {NEVER}; sleep {NEVER}"], timeout=1.0)
        assert batch.wait(timeout=LONG)
        job = batch[0]
        assert (job.state, job.signal, job.exit_code) == ("timed_out", signal.SIGKILL, None)
        assert job.stdout == "up\n"
        assert job.duration >= 1.2
        assert all(map(_gone, _carriers(batch)))


def test_c6_whoever_ends_at_sigterm_is_timed_out_even_with_exit_0():
    line = f"trap 'echo bye; exit 0' TERM; echo up; while :; do sleep {NEVER} & wait; done"
    with arrea_nb.Leader(grace=LONG) as leader:
        batch = leader.execute([line], timeout=0.5)
        assert batch.wait(timeout=LONG)
        job = batch[0]
        assert (job.state, job.exit_code, job.stdout) == ("timed_out", 0, "up\nbye\n")
        assert isinstance(job.error, JobTimeout)
        assert str(job.error) == (
            "timed out after 0.5 s; give it longer with -t 10m, or %config Leader.timeout"
        )


def test_c6_grandchildren_in_other_sessions_are_stopped_too():
    """Whoever carries the job's ids in its environment."""
    line = f"setsid sleep {NEVER} & setsid sh -c 'trap \"\" TERM; echo up; sleep {NEVER}' & sleep {NEVER}"
    with arrea_nb.Leader(grace=0.2) as leader:
        events = leader.subscribe()
        batch = leader.execute([line, "true"])
        _until(events, JobOutput, job=0)
        batch[0].cancel()
        assert batch.wait(timeout=LONG)
        assert (batch[0].state, batch[1].state) == ("cancelled", "succeeded")
        assert all(map(_gone, _carriers(batch)))


def test_c6_a_helper_that_cannot_be_watched_is_asked_to_end_all_the_same(monkeypatch):
    """No descriptor is left for it: the job does not wait for its end, but it gets its signal."""
    pidfd_open = os.pidfd_open

    def not_for_the_helper(pid):
        if pid == helper:
            raise OSError(24, "Too many open files")
        return pidfd_open(pid)

    line = f"sleep {NEVER} & echo $!; wait"
    with arrea_nb.subscribe() as events, monkeypatch.context() as full:
        batch = arrea_nb.execute([line])
        helper = int(_until(events, JobOutput).text)
        full.setattr(os, "pidfd_open", not_for_the_helper)
        batch.cancel()
        assert batch.wait(timeout=LONG)
    assert batch[0].state == "cancelled"
    assert _gone(helper)


def test_c6_a_later_cancel_does_not_lengthen_the_grace_of_an_earlier_one():
    """Somebody waits at the stop button, whoever cancels it besides."""
    with arrea_nb.Leader(grace=LONG / 2) as leader, leader.subscribe() as events:
        batch = leader.execute(["trap '' TERM; echo up; while :; do sleep 0.05; done"])
        _until(events, JobOutput)
        leader._engine.stop(batch._record, interrupted=True)
        batch.cancel()
        assert batch.wait(timeout=LONG / 4)
        assert (batch[0].state, batch[0].signal) == ("cancelled", signal.SIGKILL)


def test_c6_without_a_grace_it_is_killed_at_once():
    with arrea_nb.Leader(grace=0.0) as leader, leader.subscribe() as events:
        batch = leader.execute([f"trap '' TERM; echo ready; sleep {NEVER}"])
        _until(events, JobOutput)
        batch.cancel()
        assert batch.wait(timeout=LONG)
        assert batch[0].state == "cancelled"
        assert all(map(_gone, _carriers(batch)))


def test_c6_cancel_is_prompt():
    """Nothing polls at an interval: with a grace of a minute it ends as soon as it is told to."""
    with arrea_nb.Leader(grace=LONG) as leader:
        events = leader.subscribe()
        batch = leader.execute([f"echo up; sleep {NEVER}"], timeout=LONG)
        _until(events, JobOutput)
        batch.cancel()
        batch.cancel()
        assert batch.wait(timeout=LONG / 2)
        assert (batch.state, batch[0].state, batch[0].stdout) == ("cancelled", "cancelled", "up\n")
        assert isinstance(batch[0].error, JobCancelled)


def test_cancel_before_start_never_runs_the_command(tmp_path):
    go = threading.Event()
    batch = arrea_nb.execute([lambda: go.wait(LONG), ["touch", str(tmp_path / "ran")]], workers=1)
    batch[1].cancel()
    assert batch[1].state == "cancelled"
    go.set()
    assert batch.wait(timeout=LONG)
    assert batch.state == "cancelled"
    assert not list(tmp_path.iterdir())
    with pytest.raises(BatchFailed) as raised:
        batch.results()
    assert [type(error) for error in raised.value.exceptions] == [JobCancelled]


# C7


def _spin():
    while True:
        time.sleep(0.001)


def _spin_until(told):
    while not told():
        time.sleep(0.001)


@pytest.mark.stops_callables
def test_c7_a_loop_is_stopped_and_except_exception_does_not_catch_it():
    cleaned = []

    def work():
        while True:
            try:
                while True:
                    time.sleep(0.001)
            except Exception:  # noqa: BLE001 - what users write
                continue
            finally:
                cleaned.append(True)

    batch = arrea_nb.execute([work], timeout=0.2)
    assert batch.wait(timeout=LONG)
    assert (batch[0].state, batch[0].abandoned) == ("timed_out", False)
    assert isinstance(batch[0].error, JobTimeout)
    assert cleaned == [True]


@pytest.mark.stops_callables
def test_c7_whatever_it_then_returns_or_raises_it_is_timed_out():
    def returns():
        try:
            _spin()
        finally:
            return "late"  # noqa: B012 - that is the case

    def raises():
        try:
            _spin()
        finally:
            raise ValueError("late")

    batch = arrea_nb.execute([returns, raises], timeout=0.2)
    assert batch.wait(timeout=LONG)
    assert [(job.state, job.value) for job in batch] == [("timed_out", None)] * 2


@pytest.mark.stops_callables
def test_c7_a_call_in_c_delays_it_and_past_its_grace_it_is_abandoned():
    go = threading.Event()
    with arrea_nb.Leader(max_workers=1, grace=0.1) as leader:
        batch = leader.execute([lambda: go.wait(LONG)], timeout=0.1, policy={"retries": 3, "retry_delay": 0})
        assert batch.wait(timeout=LONG)
        job = batch[0]
        assert (job.state, job.abandoned, job.attempt) == ("timed_out", True, 1)
        state = leader.get_state()
        assert (state.abandoned, state.stats["running"], len(state.workers)) == (1, 0, 0)
        assert leader.execute([lambda: "next"]).results(timeout=LONG) == ["next"]
        stray = [thread for thread in threading.enumerate() if thread.name.startswith("arrea-worker")]
        go.set()
        for thread in stray:
            thread.join(LONG)
        assert leader.get_state().abandoned == 0
        assert leader.get_state().stats == state.stats | {"started": 2, "finished": 1}


def test_c7_a_coroutine_is_cancelled_through_its_loop():
    seen = []

    async def work():
        try:
            await asyncio.sleep(NEVER)
        except asyncio.CancelledError:
            seen.append("cancelled")
            raise

    batch = arrea_nb.execute([work], timeout=0.1)
    assert batch.wait(timeout=LONG)
    assert (batch[0].state, batch[0].abandoned, seen) == ("timed_out", False, ["cancelled"])


@pytest.mark.stops_callables
def test_c7_our_own_waits_wake():
    go = threading.Event()
    with arrea_nb.Leader(grace=LONG) as leader:
        inner = leader.execute([lambda: go.wait(LONG)])
        ways = [inner.wait, inner.results, inner[0].result]
        outer = leader.execute(ways, timeout=0.1)
        assert outer.wait(timeout=LONG / 2)
        assert [job.state for job in outer] == ["timed_out"] * 3
        assert [job.abandoned for job in outer] == [False] * 3
        go.set()
        assert inner.results(timeout=LONG) == [True]


@pytest.mark.stops_callables
def test_c7_as_completed_wakes_too():
    go = threading.Event()
    with arrea_nb.Leader(grace=LONG) as leader:
        inner = leader.execute([lambda: go.wait(LONG)])
        outer = leader.execute([lambda: list(inner.as_completed())], timeout=0.1)
        assert outer.wait(timeout=LONG / 2)
        assert (outer[0].state, outer[0].abandoned) == ("timed_out", False)
        go.set()
        assert inner.results(timeout=LONG) == [True]


@pytest.mark.stops_callables
def test_c7_a_cancelled_callable_is_stopped():
    with arrea_nb.subscribe() as events:
        batch = arrea_nb.execute([_spin])
        _until(events, JobStarted)
        batch.cancel()
        assert batch.wait(timeout=LONG)
    assert (batch[0].state, batch[0].abandoned) == ("cancelled", False)


@pytest.mark.stops_callables
def test_c7_what_a_stopped_callable_cleans_up_is_not_stopped_again():
    """What it prints or tells in `finally` takes the Leader's lock; the exception comes once all the same."""

    def work():
        try:
            while True:
                time.sleep(0.001)
        finally:
            for step in range(3):
                print("step", step)
                arrea_nb.progress(step, 3)

    job = arrea_nb.execute([work], timeout=0.05)[0]
    with pytest.raises(JobTimeout):
        job.result(timeout=LONG)
    assert job.stdout == "step 0\nstep 1\nstep 2\n"


@pytest.mark.stops_callables
def test_c7_a_stop_that_a_finaliser_swallowed_comes_again():
    class Slow:
        def __del__(self):
            spin()

    def spin():
        end = time.perf_counter() + 0.02
        while time.perf_counter() < end:
            pass

    def work():
        while True:
            Slow()
            spin()

    with arrea_nb.Leader(grace=LONG) as leader:
        hook = sys.unraisablehook
        # Of eight, half of whose time is a finaliser's, hardly all are hit outside of it at the first try.
        batch = leader.execute([work] * 8, timeout=0.1, workers=8)
        assert batch.wait(timeout=LONG / 2)
        assert {job.state for job in batch} == {"timed_out"}
        assert not any(job.abandoned for job in batch)
    assert sys.unraisablehook is hook


@pytest.mark.stops_callables
def test_c7_a_hook_for_dropped_exceptions_that_somebody_put_over_ours_is_left_alone(monkeypatch):
    told = []
    monkeypatch.setattr(sys, "unraisablehook", told.append)

    def loops():
        while True:
            time.sleep(0.001)

    class Faulty:
        def __del__(self):
            raise ValueError("dropped")

    with arrea_nb.Leader() as leader:
        assert leader.execute([loops], timeout=0.05).wait(timeout=LONG)
        ours = sys.unraisablehook

        def over(what):
            ours(what)

        sys.unraisablehook = over
        assert leader.execute([loops], timeout=0.05).wait(timeout=LONG)
        Faulty()
        sys.unraisablehook = ours
    assert [what.exc_type for what in told] == [ValueError]


@pytest.mark.stops_callables
def test_c7_a_stop_that_came_while_it_waited_to_print_spoils_nothing_for_the_next_job():
    go = threading.Event()
    idents = SimpleQueue()

    def prints():
        idents.put(threading.get_ident())
        go.wait(LONG)
        print("x")

    def loops():
        idents.put(threading.get_ident())
        while True:
            time.sleep(0.001)

    with arrea_nb.Leader(max_workers=1, grace=LONG) as leader:
        batch = leader.execute([prints, loops])
        ident = idents.get(timeout=LONG)
        with leader._engine.lock:
            go.set()
            while sys._current_frames()[ident].f_code.co_name != "sheltered":
                time.sleep(0.001)  # until it waits for the lock that is held here
            batch[0].cancel()
        assert idents.get(timeout=LONG) == ident
        batch[1].cancel()
        assert batch.wait(timeout=LONG / 2)
        assert [job.state for job in batch] == ["cancelled", "cancelled"]
        assert not any(job.abandoned for job in batch)


@pytest.mark.stops_callables
@pytest.mark.parametrize("moment", ["handed out", "returned"])
def test_c7_a_stop_outside_of_the_callable_is_for_its_job_only(moment):
    """It comes when the worker has got the job and not called it yet, or when the callable has returned."""
    with arrea_nb.Leader(max_workers=1, grace=LONG) as leader:
        report, ran = leader._engine.report, []

        def cancel():
            # Not by the worker itself, which would get the exception before it has left cancel().
            other = threading.Thread(target=batch[1].cancel)
            other.start()
            while other.is_alive():
                time.sleep(0.001)

        def reported(worker, job, result=None):
            if moment == "returned" and job is not None and job.index == 1:
                cancel()
            following = report(worker, job, result)
            if moment == "handed out" and following is not None and following.index == 1:
                cancel()
            return following

        leader._engine.report = reported
        commands = [lambda at=at: ran.append((at, threading.get_ident())) or at for at in range(3)]
        with leader._engine.lock:
            batch = leader.execute(commands)
        assert batch.wait(timeout=LONG / 4)
        assert [job.state for job in batch] == ["succeeded", "cancelled", "succeeded"]
        assert [job.value for job in batch] == [0, None, 2]
        assert [at for at, _ in ran] == ([0, 2] if moment == "handed out" else [0, 1, 2])
        # One worker ran them all: the stop took none down.
        assert len({ident for _, ident in ran}) == 1


@pytest.mark.stops_callables
def test_c7_a_stop_never_lands_in_another_job():
    """Short callables around their deadline: each ends as its own, and the counters add up."""
    ran = []
    deadline = 0.002

    def work(at):
        end = time.monotonic() + deadline
        while time.monotonic() < end:
            pass
        ran.append(at)
        return at

    commands = [lambda at=at: work(at) for at in range(300)]
    with arrea_nb.Leader() as leader:
        batch = leader.execute(commands, workers=4, timeout=deadline, max_commands=300)
        assert batch.wait(timeout=LONG)
        for job in batch:
            assert job.state in {"succeeded", "timed_out"}, job.error
            assert job.value == (job.index if job.state == "succeeded" else None)
        stats = leader.get_state().stats
        assert (stats["started"], stats["finished"] + stats["failed"]) == (300, 300)


# C8, C9, C10


@pytest.mark.stops_callables
def test_c8_cancelling_one_batch_touches_no_other(tmp_path):
    with arrea_nb.subscribe() as events:
        go = tmp_path / "go"
        line = f"echo up; until [ -e {go} ]; do sleep 0.01; done"
        kept = arrea_nb.execute([line, lambda: _spin_until(go.exists)])
        dropped = arrea_nb.execute([f"echo up; sleep {NEVER}", _spin])
        for batch, job in ((kept, 0), (kept, 1), (dropped, 0), (dropped, 1)):
            while batch[job].state == "queued" or (job == 0 and not batch[job].stdout):
                events.get(timeout=LONG)
        dropped.cancel()
        assert dropped.wait(timeout=LONG)
        assert not kept.done()
        assert [job.state for job in kept] == ["running", "running"]
        go.touch()
        assert kept.wait(timeout=LONG)
    assert (kept.state, dropped.state) == ("succeeded", "cancelled")


def test_c8_the_stop_button_does_not_hit_a_process_before_it_has_a_session_of_its_own(monkeypatch):
    """SIGINT goes to the kernel's process group, and for a moment a new child belongs to it."""
    spawn = subprocess.Popen
    hit = []

    def interrupted(*args, **options):
        if hit:
            return spawn(*args, **options)
        hit.append(True)
        return spawn(*args, **options, preexec_fn=lambda: signal.raise_signal(signal.SIGKILL))

    monkeypatch.setattr(_process.subprocess, "Popen", interrupted)
    job = arrea_nb.execute(["echo hello"])[0]
    assert job.result(timeout=LONG).stdout == "hello\n"
    assert len(job.attempts) == 1


def test_c8_one_job_of_a_batch_is_cancelled_and_the_others_run(tmp_path):
    with arrea_nb.subscribe() as events:
        batch = arrea_nb.execute([f"sleep {NEVER}", f"until [ -e {tmp_path}/go ]; do sleep 0.01; done"])
        _until(events, JobStarted, job=0)
        arrea_nb.Leader.instance().cancel(batch.id[:6], 0)
        _until(events, JobEnded, job=0, state="cancelled")
        (tmp_path / "go").touch()
        assert batch.wait(timeout=LONG)
    assert [job.state for job in batch] == ["cancelled", "succeeded"]


@pytest.mark.stops_callables
def test_c9_every_job_ends_once_and_batch_ended_comes_after_all():
    policy = {"retries": 1, "retry_delay": 0.01}
    with arrea_nb.subscribe() as events:
        batch = arrea_nb.execute(
            ["true", "false", "", int, lambda: 1 / 0, f"sleep {NEVER}", ["no-such-program-here"], _spin],
            timeout=0.5,
            policy=policy,
        )
        heard = []
        while not heard or not isinstance(heard[-1], BatchEnded):
            heard.append(events.get(timeout=LONG))
    ended = [event.job for event in heard if isinstance(event, JobEnded)]
    assert sorted(ended) == list(range(8))
    assert heard[-1].counts == batch.counts
    assert sum(heard[-1].counts.values()) == 8
    assert heard[-1].state == batch.state == "failed"
    # Terminal states never change: neither by a cancel nor by waiting.
    before = [(job.state, job.error) for job in batch]
    batch.cancel()
    for job in batch:
        job.cancel()
    assert [(job.state, job.error) for job in batch] == before


def test_c10_a_retry_runs_again_after_the_delay_and_frees_the_worker():
    order = []

    def fails():
        order.append("fails")
        if order.count("fails") < 3:
            raise ValueError("again")
        return "at last"

    policy = arrea_nb.Policy(retries=2, retry_delay=0.2, backoff=1.5)
    with arrea_nb.subscribe() as events:
        batch = arrea_nb.execute([fails, lambda: order.append("other")], workers=1, policy=policy)
        delays = [_until(events, JobRetrying).delay for _ in range(2)]
        last = _until(events, JobEnded, job=0)
    assert batch.results(timeout=LONG)[0] == "at last"
    assert order == ["fails", "other", "fails", "fails"]
    assert delays == pytest.approx([0.2, 0.3])
    assert batch[0].duration >= 0.5
    assert [attempt.state for attempt in batch[0].attempts] == ["failed", "failed", "succeeded"]
    assert [str(attempt.error) for attempt in batch[0].attempts] == ["again", "again", "None"]
    assert (last.state, last.error) == ("succeeded", None)


def test_c10_cancel_cuts_the_delay_short():
    with arrea_nb.subscribe() as events:
        batch = arrea_nb.execute(["exit 3"], policy={"retries": 1, "retry_delay": 60.0})
        _until(events, JobRetrying)
        assert (batch[0].state, batch[0].error) == ("waiting", None)
        batch.cancel()
        last = _until(events, JobEnded)
        assert batch.wait(timeout=LONG / 2)
    assert (batch[0].state, batch[0].attempt) == ("cancelled", 1)
    assert (last.state, last.error) == ("cancelled", "cancelled")


def test_c10_output_is_the_last_attempts(tmp_path):
    line = f"echo x >> {tmp_path}/n; wc -l < {tmp_path}/n; [ $(wc -l < {tmp_path}/n) -eq 2 ]"
    batch = arrea_nb.execute([line], policy={"retries": 1, "retry_delay": 0})
    assert batch.wait(timeout=LONG)
    assert batch[0].stdout.strip() == "2"


# Policies


def test_policy_stop_lets_running_jobs_finish_and_skips_the_rest(tmp_path):
    runs = f"until [ -e {tmp_path}/go ]; do sleep 0.01; done"
    with arrea_nb.subscribe() as events:
        batch = arrea_nb.execute([runs, "exit 3", "true", "true"], workers=2, policy={"on_error": "stop"})
        _until(events, JobEnded, job=3)
        (tmp_path / "go").touch()
        assert batch.wait(timeout=LONG)
    assert [job.state for job in batch] == ["succeeded", "failed", "skipped", "skipped"]
    assert str(batch[2].error) == "skipped: the policy stopped the batch before it started"
    with pytest.raises(BatchFailed, match=r"^1 of 4 failed: \[1\] exit 3: exit 3$"):
        batch.results()


@pytest.mark.stops_callables
def test_policy_abort_cancels_running_jobs_too():
    fail = threading.Event()

    def fails():
        fail.wait(LONG)
        raise ValueError("over")

    with arrea_nb.subscribe() as events:
        batch = arrea_nb.execute(
            [f"sleep {NEVER}", _spin, fails, "true"], workers=3, policy={"on_error": "abort"}
        )
        _until(events, JobStarted, job=0)
        fail.set()
        assert batch.wait(timeout=LONG)
    assert [job.state for job in batch] == ["cancelled", "cancelled", "failed", "skipped"]
    assert batch.state == "failed"


@pytest.mark.stops_callables
@pytest.mark.parametrize("command", [_spin, f"sleep {NEVER}"], ids=["callable", "shell"])
@pytest.mark.parametrize("asked", [False, True])
def test_policy_is_not_asked_about_a_job_that_was_cancelled(command, asked):
    failures = []
    on_error = (lambda error, *_: failures.append(error) or "abort") if asked else "abort"
    with arrea_nb.Leader() as leader, leader.subscribe() as events:
        batch = leader.execute([command, command], workers=2, policy={"on_error": on_error})
        for _ in batch:
            _until(events, JobStarted)
        batch[0].cancel()
        assert _until(events, JobEnded).job == 0
        leader.get_state()  # waits for the section in which it ended
        assert (batch[1]._record.stop, failures) == (None, [])
    assert [job.state for job in batch] == ["cancelled"] * 2


def test_policy_callable_is_asked_after_each_failure():
    asked = []

    def decide(error, attempt, job):
        asked.append((str(error), attempt, job.name))
        return "retry" if attempt < 3 else "stop"

    batch = arrea_nb.execute(
        {"bad": "exit 3", "never": "true"}, workers=1, policy={"on_error": decide, "retry_delay": 0}
    )
    assert batch.wait(timeout=LONG)
    assert asked == [("exit 3", 1, "bad"), ("exit 3", 2, "bad"), ("exit 3", 3, "bad")]
    # A waiting retry frees the worker, so that the next job may have run meanwhile.
    assert batch["bad"].state == "failed"
    assert batch["bad"].attempt == 3


def test_policy_callable_that_raises_lets_the_batch_go_on():
    def decide(error, attempt, job):
        raise LookupError("oh")

    batch = arrea_nb.execute(["exit 3", "true"], policy={"on_error": decide})
    assert batch.wait(timeout=LONG)
    assert [job.state for job in batch] == ["failed", "succeeded"]
    assert batch[0].note == "policy.on_error: raised LookupError: oh; the batch goes on"
    assert not hasattr(batch[0].error, "__notes__")


def test_policy_callable_that_answers_something_else_lets_the_batch_go_on():
    batch = arrea_nb.execute(["exit 3", "true"], policy={"on_error": lambda *_: "go on"})
    assert batch.wait(timeout=LONG)
    assert [job.state for job in batch] == ["failed", "succeeded"]
    expected = "expected one of continue, stop, abort or retry, got 'go on'"
    assert batch[0].note == f"policy.on_error: {expected}; the batch goes on"


def test_policy_delays_that_no_number_can_hold_are_the_longest_delay():
    assert arrea_nb.Policy(retries=2000, backoff=10.0).delay_after(1000) == 60.0


# What callables raise


def test_a_callable_that_raises_keeps_its_exception_and_its_own_traceback():
    def inside():
        raise KeyError("mine")

    def work():
        inside()

    batch = arrea_nb.execute([work])
    with pytest.raises(BatchFailed, match=r"^1 of 1 failed: \[0\] work: KeyError: 'mine'$"):
        batch.results(timeout=LONG)
    error = batch[0].error
    assert isinstance(error, KeyError)
    assert error.__traceback__.tb_frame.f_code.co_name == "work"
    with pytest.raises(KeyError):
        batch[0].result()


@pytest.mark.parametrize("kind", [SystemExit, KeyboardInterrupt, GeneratorExit])
def test_a_callable_that_exits_has_crashed(kind):
    def work():
        raise kind

    batch = arrea_nb.execute([work, int])
    assert batch.wait(timeout=LONG)
    assert [job.state for job in batch] == ["failed", "succeeded"]
    assert isinstance(batch[0].error, JobCrashed)
    assert isinstance(batch[0].error.__cause__, kind)


# The hostile list: each ends in the right state with the right message, and nothing is left running.

HOSTILE = {
    "ignores SIGTERM": (
        f"trap '' TERM; while :; do sleep {NEVER}; done",
        "timed_out",
        "timed out after 1 s; give it longer with -t 10m, or %config Leader.timeout",
    ),
    "forks grandchildren": (
        f"for i in 1 2 3; do (trap '' TERM; sleep {NEVER} & sleep {NEVER}) & done; wait",
        "timed_out",
        "timed out after 1 s; give it longer with -t 10m, or %config Leader.timeout",
    ),
    "leaves a background process holding its pipes": (f"sleep {NEVER} & echo left", "succeeded", None),
    "floods stdout": (
        "exec yes",
        "timed_out",
        "timed out after 1 s; give it longer with -t 10m, or %config Leader.timeout",
    ),
    "exits at once": ("exit 7", "failed", "exit 7"),
    "dies of a signal": ("kill -SEGV $$", "failed", "killed by SIGSEGV"),
    "dies of a signal without a name": ("kill -40 $$", "failed", "killed by signal 40"),
    "kills its whole group": ("sleep 9 & kill -KILL 0", "failed", "killed by SIGKILL"),
    "does not exist": ("/no/such/program", "failed", None),
    "prints 10 MB without a newline": ("head -c 10000000 /dev/zero | tr '\\0' x", "succeeded", None),
    "prints invalid UTF-8": ("printf 'a\\377\\303b'", "succeeded", None),
    "closes its outputs": ("exec >&- 2>&-; exit 4", "failed", "exit 4"),
    "stops itself": (
        "kill -STOP $$",
        "timed_out",
        "timed out after 1 s; give it longer with -t 10m, or %config Leader.timeout",
    ),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_jobs_end_in_the_right_state_and_leave_nothing(case):
    line, state, message = HOSTILE[case]
    with arrea_nb.Leader(grace=0.2, max_output_bytes=50_000_000) as leader:
        batch = leader.execute([line, "echo fine"], timeout=1.0 if state == "timed_out" else LONG)
        assert batch.wait(timeout=LONG)
        job, other = batch
        assert job.state == state
        if message is not None:
            assert str(job.error) == message
        if state == "succeeded":
            assert job.error is None
        assert other.stdout == "fine\n"
        assert all(map(_gone, _carriers(batch)))
        if case == "does not exist":
            assert job.exit_code == 127
            assert str(job.error).startswith("exit 127: ")
            assert "not found" in str(job.error)
        elif case == "prints 10 MB without a newline":
            assert job.stdout == "x" * 10_000_000
        elif case == "prints invalid UTF-8":
            assert job.output_bytes == b"a\xff\xc3b"
            assert job.stdout == "a\ufffd\ufffdb"
        elif case == "dies of a signal":
            assert (job.exit_code, job.signal) == (None, signal.SIGSEGV)
            assert isinstance(job.error, CommandFailed)
        elif case == "floods stdout":
            assert job.stdout.startswith("y\ny\n")


def test_c21_a_bug_after_the_spawn_leaves_no_process(monkeypatch, tmp_path):
    """The process of a job whose worker hits a bug is killed and reaped, and the job says JobCrashed."""

    def buggy(self, process, guard):
        raise ZeroDivisionError("a bug of ours")

    monkeypatch.setattr(_shell._ShellRun, "_pump", buggy)
    batch = arrea_nb.execute(["sleep 300"])
    assert batch.wait(timeout=30.0)
    assert isinstance(batch[0].error, JobCrashed)
    with pytest.raises(ProcessLookupError):
        os.kill(batch[0].pid, 0)
