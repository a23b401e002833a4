"""C20: closing has steps, which an interrupt can tear, and which whoever closes next goes on with.

Besides: who may close, who may still come in, which events arrive at the end, and what a Leader that nobody
closed leaves behind.
"""

import atexit
import gc
import json
import os
import signal
import subprocess
import sys
import threading
import time
import traceback
import warnings
import weakref
from pathlib import Path

import psutil
import pytest
from jupyter_client.manager import KernelManager

import arrea_nb
from arrea_nb.events import BatchRemoved

LONG = 60.0
STUBBORN = "trap '' TERM; echo up; while :; do sleep 0.05; done"
LIFECYCLE = {"batch_started", "job_started", "job_ended", "batch_ended"}


def until(condition, patience=20.0):
    """Waits until `condition()` is true, and returns what it gave."""
    deadline = time.monotonic() + patience
    while not (value := condition()):
        assert time.monotonic() < deadline, "the condition never came true"
        time.sleep(0.005)
    return value


def _up(batch):
    until(lambda: all(job.stdout for job in batch))


def _processes_of(batch_id):
    mark, found = f"ARREA_BATCH_ID={batch_id}".encode(), []
    for one in psutil.process_iter():
        try:
            if mark in Path(f"/proc/{one.pid}/environ").read_bytes().split(b"\0"):
                found.append(one.pid)
        except OSError:
            continue  # it has ended meanwhile
    return found


def _processes(batch):
    return _processes_of(batch.id)


def _ours():
    return [one for one in threading.enumerate() if one.name.startswith("arrea-")]


def _alone(code, *, patience=LONG):
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=patience, check=False
    )
    assert done.returncode == 0, done.stderr
    return done


# Torn from closing


def _interrupt_when(condition):
    """Sends SIGINT once the condition is true."""

    def press():
        until(condition)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=press)
    thread.start()
    return thread


def _in_close(leader):
    """Whether all of it was told to stop: the main thread waits for that, or is about to."""
    return all(record.halted is not None for record in leader._engine.ledger.live.values())


def test_an_interrupt_tears_close_and_the_processes_die_soon_without_anybody_closing_further():
    leader = arrea_nb.Leader(grace=LONG)
    batch = leader.execute([STUBBORN] * 2, timeout=None)
    _up(batch)
    press = _interrupt_when(lambda: _in_close(leader))
    with pytest.raises(KeyboardInterrupt):
        leader.close()
    press.join()
    assert not batch.done()
    until(lambda: not _processes(batch), 10.0)
    assert batch.wait(timeout=LONG)
    assert [job.state for job in batch] == ["cancelled"] * 2
    with pytest.raises(RuntimeError, match="closed"):
        leader.execute([int])
    leader.close()
    leader.close()
    assert _ours() == []
    assert leader.get_state().batches == {}


def test_close_goes_on_where_an_interrupt_tore_it():
    """The second call does not wait for the whole grace either."""
    leader = arrea_nb.Leader(grace=LONG)
    batch = leader.execute([STUBBORN], timeout=None)
    _up(batch)
    press = _interrupt_when(lambda: _in_close(leader))
    with pytest.raises(KeyboardInterrupt):
        leader.close()
    press.join()
    began = time.monotonic()
    leader.close()
    assert time.monotonic() - began < 10.0
    assert batch.done()
    assert _processes(batch) == []


STEPS = ["_stop_all", "_see_the_end", "_join", "_deliver_the_last", "_forget_all", "_end_processes"]


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("after", [False, True])
def test_an_interrupt_before_or_after_each_step(monkeypatch, step, after):
    from arrea_nb import _engine

    steps = list(_engine._STEPS)
    at = [one.__name__ for one in steps].index(step)
    real, torn = steps[at], []

    def tear(engine, grace):
        if after:
            real(engine, grace)
        if not torn:
            torn.append(step)
            signal.raise_signal(signal.SIGINT)
        if not after:
            real(engine, grace)

    steps[at] = tear
    monkeypatch.setattr(_engine, "_STEPS", tuple(steps))
    leader = arrea_nb.Leader(grace=LONG)
    heard = []
    leader.subscribe(heard.append)
    batch = leader.execute([STUBBORN, int], timeout=None)
    until(lambda: batch[0].stdout)
    stops = after or step != "_stop_all"
    if step in STEPS[2:] or (step, after) == ("_see_the_end", True):
        leader._engine.settings.grace = 0.2  # the first call waits for the end
    with pytest.raises(KeyboardInterrupt):
        leader.close()
    if stops:
        until(lambda: not _processes(batch), 10.0)
    leader._engine.settings.grace = 0.2
    leader.close()
    assert torn == [step]
    assert batch.wait(timeout=0)
    assert _processes(batch) == []
    assert _ours() == []
    assert [event.type for event in heard].count("batch_ended") == 1
    with pytest.raises(RuntimeError, match="closed"):
        leader.subscribe()


def test_the_kernels_leader_that_was_torn_from_closing_is_followed_by_a_usable_one():
    leader = arrea_nb.Leader.instance()
    leader.grace = LONG
    batch = leader.execute([STUBBORN], timeout=None)
    _up(batch)
    press = _interrupt_when(lambda: _in_close(leader))
    with pytest.raises(KeyboardInterrupt):
        leader.close()
    press.join()
    following = arrea_nb.Leader.instance()
    assert following is not leader
    assert following is arrea_nb.Leader.instance()
    assert batch.done()
    assert arrea_nb.execute(["echo hi", int]).results(timeout=LONG)[0].stdout == "hi\n"
    assert _processes(batch) == []


def test_the_kernels_leader_that_was_torn_at_the_very_end_of_closing_is_followed_by_another(monkeypatch):
    leader = arrea_nb.Leader.instance()
    assert leader.execute([int]).wait(timeout=LONG)

    def torn():
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(arrea_nb.Leader, "clear_instance", torn)
        with pytest.raises(KeyboardInterrupt):
            leader.close()
    assert arrea_nb.Leader.instance() is not leader
    assert arrea_nb.run([int]) == [0]


# In a notebook


class Kernel:
    """A kernel in a folder of its own, and what a person does with it."""

    def __init__(self, folder):
        self.folder = folder
        self.manager = KernelManager(kernel_name="python3")
        self.manager.start_kernel(cwd=folder, extra_arguments=["--IPKernelApp.log_level=CRITICAL"])
        self.client = self.manager.client()
        self.client.start_channels(hb=False)
        self.client.wait_for_ready(timeout=60)

    def close(self):
        self.client.stop_channels()
        self.manager.shutdown_kernel(now=True)
        self.manager.cleanup_resources()
        self.manager.context.destroy()

    def send(self, code):
        return self.client.execute(code)

    def ended(self, request):
        """Waits for the end of the cell; returns its outputs as messages."""
        outputs = []
        while True:
            message = self.client.get_iopub_msg(timeout=20.0)
            if message["parent_header"].get("msg_id") != request:
                continue
            kind, content = message["msg_type"], message["content"]
            if kind == "status" and content["execution_state"] == "idle":
                break
            outputs.append((kind, content))
        while self.client.get_shell_msg(timeout=20.0)["parent_header"]["msg_id"] != request:
            pass
        return outputs

    def run(self, code):
        """What a cell printed; an error of it is one of the test."""
        outputs = self.ended(self.send(code))
        for kind, content in outputs:
            assert kind != "error", "\n".join(content["traceback"])
        return "".join(content["text"] for kind, content in outputs if kind == "stream")

    def until(self, name):
        """Waits until something made this file."""
        deadline = time.monotonic() + 20.0
        while not (self.folder / name).exists():
            assert time.monotonic() < deadline, f"{name} did not come"
            time.sleep(0.002)

    def press(self, moment="first"):
        """Presses the stop button once the moment is reached, and lets the cell go on."""
        self.until(f"{moment}-reached")
        self.manager.interrupt_kernel()
        (self.folder / f"{moment}-go").touch()


@pytest.fixture(scope="module")
def the_kernel(tmp_path_factory):
    kernel = Kernel(tmp_path_factory.mktemp("kernel"))
    kernel.run("import arrea_nb, os, signal, threading, time")
    yield kernel
    kernel.close()


def _press_in_unload(kernel, cell):
    """A stubborn job runs in the background; `cell` is interrupted while it waits for that."""
    kernel.run("%load_ext arrea_nb")
    kernel.run("arrea_nb.Leader.instance().grace = 60.0")
    kernel.run(f"%%arrea --bg -t 0 -o stubborn\n{STUBBORN}\n{STUBBORN}")
    kernel.run("while not all(job.stdout for job in stubborn): time.sleep(0.01)")
    # Told by what the job is told, from a thread: the cell itself is IPython's.
    kernel.run(
        "def tell():\n"
        "    record = stubborn._record\n"
        "    while record.halted is None: time.sleep(0.001)\n"
        "    open('first-reached', 'w').close()\n"
        "threading.Thread(target=tell).start()"
    )
    request = kernel.send(cell)
    kernel.press("first")
    for file in kernel.folder.iterdir():
        file.unlink()
    outputs = kernel.ended(request)
    assert [content["ename"] for kind, content in outputs if kind == "error"] == ["KeyboardInterrupt"], (
        outputs
    )


@pytest.mark.parametrize("cell", ["%unload_ext arrea_nb", "%reload_ext arrea_nb"])
@pytest.mark.parametrize(
    "then", ["%load_ext arrea_nb", "pass", "%reload_ext arrea_nb", "%unload_ext arrea_nb"]
)
def test_stop_during_unload_or_reload_leaves_a_usable_kernel(the_kernel, cell, then):
    kernel = the_kernel
    _press_in_unload(kernel, cell)
    kernel.run(then)
    if then.startswith("%unload"):
        kernel.run("assert 'arrea' not in get_ipython().magics_manager.magics['cell']")
        kernel.run("%load_ext arrea_nb")
    kernel.run("%%arrea -o hi\necho hi")
    assert kernel.run("print(hi[0].stdout, end='')") == "hi\n"
    batch = kernel.run("print(stubborn.wait(20), *[job.state for job in stubborn], stubborn.id)").split()
    assert batch[:-1] == ["True", "cancelled", "cancelled"]
    assert _processes_of(batch[-1]) == []
    kernel.run("assert arrea_nb.Leader.instance() in get_ipython().configurables")
    kernel.run("%config Leader.workers = 3")
    assert kernel.run("print(arrea_nb.Leader.instance().workers)") == "3\n"
    kernel.run("%unload_ext arrea_nb")
    kernel.run("assert not arrea_nb.Leader.initialized()")
    left = kernel.run("print([one.name for one in threading.enumerate() if one.name.startswith('arrea-')])")
    assert left == "[]\n"


def test_stop_while_the_magics_are_taken_back_leaves_none(the_kernel):
    """IPython would take the extension for loaded, and `%load_ext` would do nothing."""
    kernel = the_kernel
    kernel.run("%load_ext arrea_nb")
    kernel.run(
        "from arrea_nb.notebook import _magic\n"
        "real = _magic._unregister\n"
        "def torn(shell):\n"
        "    real(shell)\n"
        "    signal.raise_signal(signal.SIGINT)\n"
        "_magic._unregister = torn"
    )
    outputs = kernel.ended(kernel.send("%unload_ext arrea_nb"))
    assert [content["ename"] for kind, content in outputs if kind == "error"] == ["KeyboardInterrupt"]
    kernel.run("_magic._unregister = real")
    kernel.run("%load_ext arrea_nb")
    kernel.run("%%arrea -o hi\necho hi")
    assert kernel.run("print(hi[0].stdout, end='')") == "hi\n"
    kernel.run("%unload_ext arrea_nb")


# Who closes


def test_a_job_cannot_close_its_own_leader():
    with arrea_nb.Leader() as leader:
        batch = leader.execute([leader.close, int, "echo hi"], workers=1, timeout=LONG)
        assert batch.wait(timeout=LONG)
        assert [job.state for job in batch] == ["failed", "succeeded", "succeeded"]
        error = batch[0].error
        assert type(error) is RuntimeError
        assert "cannot close the Leader that runs it" in str(error)
        assert leader.execute([int]).results(timeout=LONG) == [0]


def test_a_job_of_the_kernels_leader_that_executes_while_that_closes_is_told_so():
    """It is not told that it cannot close the Leader, which it did not try."""
    leader = arrea_nb.Leader.instance()
    leader.grace = 5.0
    up, told = threading.Event(), []

    def work():
        up.set()
        try:
            while True:
                time.sleep(0.005)
        finally:
            for call in (lambda: arrea_nb.execute([int]), arrea_nb.get_state):
                try:
                    call()
                except RuntimeError as error:
                    told.append(str(error))

    batch = leader.execute([work], timeout=None)
    assert up.wait(LONG)
    leader.close()
    assert batch.done()
    assert len(told) == 1
    assert "is closed" in told[0]


def test_two_who_close_at_once_both_return_when_it_is_closed():
    leader = arrea_nb.Leader(grace=0.3)
    batch = leader.execute([STUBBORN] * 2, timeout=None)
    _up(batch)
    guard = leader._engine.keeper._pid
    both, found = threading.Barrier(3), []

    def close():
        both.wait()
        leader.close()
        found.append((psutil.pid_exists(guard), batch.done(), leader._engine.stage.name, _processes(batch)))

    threads = [threading.Thread(target=close) for _ in range(2)]
    for one in threads:
        one.start()
    close()
    for one in threads:
        one.join(LONG)
    assert found == [(False, True, "CLOSED", [])] * 3


# Dropped


def _use(leader, kind):
    commands = {
        "shell": ["echo hi", "head -c 300000 /dev/zero"],
        "callables": [int, lambda: print("x" * 300_000)],
    }
    assert leader.execute(commands[kind], timeout=LONG).wait(timeout=LONG)
    return leader._engine.keeper._pid


@pytest.mark.parametrize("kind", ["shell", "callables"])
@pytest.mark.parametrize("subscribed", [False, True])
def test_a_dropped_leader_says_so_and_leaves_nothing(kind, subscribed):
    with arrea_nb.Leader(memory_output_bytes=1024) as first:  # imports what is imported when it is needed
        _use(first, kind)
    gc.collect()
    hooks, descriptors = atexit._ncallbacks(), len(os.listdir("/proc/self/fd"))
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        leader = arrea_nb.Leader(memory_output_bytes=1024)
        if subscribed:
            leader.subscribe(lambda event: None)
        guard = _use(leader, kind)
        spool = leader._engine.spool.directory
        assert guard > 0
        assert Path(spool).exists()
        until(lambda: {one.name for one in _ours()} <= {"arrea-subscriber"})
        gone = weakref.ref(leader)
        del leader
        until(lambda: (gc.collect() and gone() is None) or gone() is None)
        until(lambda: gc.collect() is not None and any(one.category is ResourceWarning for one in told))
    [said] = [str(one.message) for one in told if one.category is ResourceWarning]
    assert "dropped without close()" in said
    until(lambda: not psutil.pid_exists(guard))
    until(lambda: not Path(spool).exists())
    until(lambda: _ours() == [])
    until(lambda: len(os.listdir("/proc/self/fd")) <= descriptors)
    assert atexit._ncallbacks() == hooks


def test_many_leaders_leave_no_hook_at_exit():
    hooks = atexit._ncallbacks()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        for at in range(20):
            leader = arrea_nb.Leader()
            assert leader.execute([int]).wait(timeout=LONG)
            if at % 2:
                leader.close()
        del leader
        until(lambda: gc.collect() is not None and _ours() == [])
    assert atexit._ncallbacks() == hooks


@pytest.mark.parametrize("kind", ["shell", "callable"])
def test_a_batch_that_somebody_holds_runs_on_without_its_leader(tmp_path, kind):
    def work():
        until((tmp_path / "go").exists)

    commands = {"shell": ["until [ -e go ]; do sleep 0.02; done"] * 3, "callable": [work] * 3}[kind]
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        batch = arrea_nb.Leader().execute(commands, cwd=tmp_path, workers=1, timeout=LONG)
        gc.collect()
        (tmp_path / "go").touch()
        assert batch.wait(timeout=LONG)
        assert [str(job.state) for job in batch] == ["succeeded"] * 3
        assert told == []
        del batch
        until(lambda: gc.collect() is not None and any(one.category is ResourceWarning for one in told))
    until(lambda: _ours() == [])


# Who still comes in


@pytest.mark.parametrize("way", ["execute", "logged", "subscribe"])
def test_whoever_races_with_close_works_or_is_told(caplog, way):
    for _ in range(25):
        leader = arrea_nb.Leader(grace=1.0)
        begin, made, problems = threading.Barrier(5), [], []

        def come(leader=leader, begin=begin, made=made, problems=problems):
            begin.wait()
            for _ in range(20):
                try:
                    if way == "subscribe":
                        made.append(leader.subscribe(lambda event: None))
                    else:
                        made.append(leader.execute([int, int], log=way == "logged"))
                except RuntimeError as error:
                    problems.append(str(error))

        threads = [threading.Thread(target=come) for _ in range(4)]
        for one in threads:
            one.start()
        begin.wait()
        time.sleep(0.0005 * (_ % 5))
        leader.close()
        for one in threads:
            one.join(LONG)
            assert not one.is_alive()
        assert len(made) + len(problems) == 80
        assert all("is closed" in one for one in problems)
        if way != "subscribe":
            assert all(batch.wait(timeout=LONG) for batch in made)
        until(lambda: _ours() == [])
        leader.close()


def test_the_kernels_leader_may_be_closed_while_others_execute():
    """Each call takes the Leader of its moment."""
    end, problems, ended = threading.Event(), [], []

    def come():
        while not end.is_set():
            try:
                batch = arrea_nb.execute([int])
            except RuntimeError as error:
                problems.append(str(error))
            else:
                ended.append(batch.wait(timeout=LONG))

    threads = [threading.Thread(target=come) for _ in range(3)]
    for one in threads:
        one.start()
    for _ in range(30):
        before = len(ended)
        until(lambda before=before: len(ended) > before)
        arrea_nb.Leader.instance().close()
    end.set()
    for one in threads:
        one.join(LONG)
        assert not one.is_alive()
    assert all(ended)
    assert all("is closed" in one for one in problems)


@pytest.mark.parametrize("log", [False, True])
def test_commands_that_close_the_leader_while_they_are_read(log):
    leader = arrea_nb.Leader()

    def commands():
        yield int
        leader.close()
        yield "true"

    with pytest.raises(RuntimeError, match="is closed"):
        leader.execute(commands(), log=log)
    until(lambda: _ours() == [])
    assert leader.get_state().batches == {}


# The last events


def test_a_callback_that_is_slow_at_first_still_hears_all_that_happened():
    leader = arrea_nb.Leader(grace=1.0)
    free, first, heard = threading.Event(), threading.Event(), []

    def slow(event):
        heard.append(event)
        first.set()
        assert free.wait(LONG)

    leader.subscribe(slow)
    batches = [leader.execute([int] * 20) for _ in range(5)]
    for batch in batches:
        assert batch.wait(timeout=LONG)
    running = leader.execute(["sleep 300", "sleep 300"], workers=1)
    assert first.wait(LONG)
    threading.Timer(0.1, free.set).start()
    leader.close()
    for batch in (*batches, running):
        types = [event.type for event in heard if event.batch_id == batch.id]
        assert types.count("batch_ended") == 1
        assert types.count("job_ended") == len(batch)
    assert heard[-1].type in LIFECYCLE | {"batch_removed"}


@pytest.mark.parametrize("of_batch", [False, True])
def test_a_callback_that_hears_of_one_batch_hears_its_end_at_close(of_batch):
    """It was ended by the end of its batch before the Leader closes, and has not taken that yet."""
    leader = arrea_nb.Leader()
    free, heard = threading.Event(), []

    def slow(event):
        assert free.wait(LONG)
        heard.append(event.type)

    batch = leader.execute([lambda: free.is_set() or time.sleep(0.05)] * 5)
    leader.subscribe(slow, batch=batch if of_batch else None)
    assert batch.wait(timeout=LONG)
    threading.Timer(0.1, free.set).start()
    leader.close()
    assert heard.count("job_ended") == 5
    assert heard.count("batch_ended") == 1


def test_a_callback_that_asks_the_kernels_leader_at_close_hears_the_end():
    """It waits for nobody: who closes waits for it."""
    leader = arrea_nb.Leader.instance()
    free, heard = threading.Event(), []

    def ask(event):
        assert free.wait(LONG)
        arrea_nb.get_state()
        heard.append(event.type)

    leader.subscribe(ask)
    batch = leader.execute(["sleep 300"] * 3)
    threading.Timer(0.2, free.set).start()
    leader.close()
    assert batch.done()
    assert heard.count("job_ended") == 3
    assert heard[-1] == "batch_ended"


def test_a_callback_that_never_returns_costs_close_a_second_and_is_not_called_again():
    leader = arrea_nb.Leader(grace=0.5)
    free, first, calls = threading.Event(), threading.Event(), []

    def hang(event):
        calls.append(event.type)
        first.set()
        free.wait(LONG)

    leader.subscribe(hang)
    batch = leader.execute([int] * 5)
    assert batch.wait(timeout=LONG)
    assert first.wait(LONG)
    began = time.monotonic()
    leader.close()
    assert time.monotonic() - began < 3.0
    free.set()
    until(lambda: _ours() == [])
    assert calls == ["batch_started"]


def test_a_script_that_ends_at_once_has_all_the_lines_of_its_log():
    done = _alone("""
import arrea_nb
arrea_nb.execute(["sleep 300"] * 3 + [int] * 20, log=True, workers=30, timeout=None)
""")
    lines = done.stderr.splitlines()
    for at in range(3):
        assert f"[{at}] sleep 300: cancelled" in "\n".join(lines)
    for at in range(3, 23):
        assert [line for line in lines if line.startswith(f"[{at}] ") and " attempt " not in line], (
            done.stderr
        )


def test_a_script_whose_log_is_slow_has_the_lines_of_a_batch_that_has_ended():
    """The subscriber was ended by the end of its batch, and writes on when the interpreter exits."""
    done = _alone("""
import logging, sys, time
import arrea_nb
class Slow(logging.Handler):
    def emit(self, record):
        time.sleep(0.01)
        sys.stderr.write(record.getMessage() + "\\n")
logging.getLogger("arrea_nb").addHandler(Slow())
assert arrea_nb.execute([int] * 20, log=True).wait(timeout=60)
""")
    ends = [line for line in done.stderr.splitlines() if line.endswith(": succeeded")]
    assert len(ends) == 20, done.stderr


# What is let go of


class Value:
    pass


class Failure(Exception):  # noqa: N818 - what it is
    pass


class Call:
    """A callable that can be watched."""

    def __init__(self, work):
        self.work = work

    def __call__(self):
        return self.work()


def _fail():
    raise Failure


def _hang():
    while True:
        time.sleep(0.005)


LET_GO = {
    "values": (Value, {}),
    "errors": (_fail, {}),
    "tried again": (_fail, {"policy": {"retries": 2, "retry_delay": 0.001}}),
    "asked": (_fail, {"policy": {"on_error": lambda error, attempt, job: "continue"}}),
    "timed out": (_hang, {"timeout": 0.05}),
    "cancelled": (_hang, {"timeout": None}),
    "logged": (_fail, {"log": True}),
}


@pytest.mark.stops_callables
@pytest.mark.parametrize("what", LET_GO)
@pytest.mark.parametrize("subscribed", [None, "mailbox", "callback", "of the batch"])
def test_what_the_user_gave_is_free_after_the_next_sweep(what, subscribed):
    work, options = LET_GO[what]
    removed = threading.Event()

    def note(event):
        if isinstance(event, BatchRemoved):
            removed.set()

    with arrea_nb.Leader(keep_batches=0, batch_retention=0.0, cleanup_interval=0.01, grace=5.0) as leader:
        leader.subscribe(note)
        if subscribed == "callback":
            leader.subscribe(lambda event: None)

        def use():
            call = Call(work)
            batch = leader.execute([call] * 2, **options)
            events = None
            if subscribed == "mailbox":
                events = leader.subscribe(batch=batch)
            elif subscribed == "of the batch":
                leader.subscribe(lambda event: None, batch=batch)
            if what == "cancelled":
                until(lambda: all(job.state == "running" for job in batch))
                batch.cancel()
            assert batch.wait(timeout=LONG)
            if events is not None:
                assert [event.type for event in events][-1] == "batch_ended"
            found = [weakref.ref(batch), weakref.ref(call)]
            return found + [weakref.ref(job.error or job.value) for job in batch]

        found = use()
        assert removed.wait(LONG)
        until(lambda: gc.collect() is not None and all(one() is None for one in found), 5.0)


@pytest.fixture
def no_gc():
    """What the collector finds in the middle of a section it frees there: that is nobody's doing."""
    gc.disable()
    yield
    gc.enable()


def test_a_finaliser_of_a_value_does_not_run_under_the_lock(no_gc):
    told = []
    with arrea_nb.Leader(keep_batches=0, batch_retention=0.0, cleanup_interval=0.01) as leader:
        engine = leader._engine

        class Last:
            def __del__(self):
                under = engine.lock._is_owned()
                told.append((under, traceback.format_stack() if under else None))

        class LastWords(Exception):  # noqa: N818 - what it is
            __del__ = Last.__del__

        class LastCall:
            __del__ = Last.__del__

            def __call__(self):
                return Last()

        def fail():
            raise LastWords

        for at in range(50):
            leader.execute([LastCall(), fail, Last], workers=1 + at % 3)
        until(lambda: gc.collect() is not None and len(told) >= 200)
        until(lambda: not leader.get_state().batches)
        kept = leader.execute([Last, fail], policy={"retries": 2, "retry_delay": 0.0})
        assert kept.wait(timeout=LONG)
        del kept
    gc.collect()
    assert [one for one in told if one[0]] == []


def test_the_finaliser_of_a_dropped_leader_waits_for_nothing():
    """It is called by whoever drops the last reference, in the middle of whatever that does."""
    done = _alone("""
import gc, json, time, warnings
import arrea_nb
warnings.simplefilter("ignore")
leader = arrea_nb.Leader()
assert leader.execute(["echo hi", int]).wait(timeout=60)
while leader._engine.workers: time.sleep(0.01)
began = time.monotonic()
del leader
gc.collect()
print(json.dumps(time.monotonic() - began))
""")
    assert json.loads(done.stdout) < 1.0
