"""The process that outlives the kernel by a moment (C14, C17), and forked children, which leave it alone."""

import ast
import os
import select
import signal
import subprocess
import sys
import threading
import time
import uuid
import warnings
from pathlib import Path

import pytest

from arrea_nb.workers import _guard_script
from arrea_nb.workers._guard import Guard
from arrea_nb.workers._guard_script import processes_with
from arrea_nb.workers._output import Spool

PATIENCE = 15.0


@pytest.fixture
def kernel_id():
    return uuid.uuid4().hex


@pytest.fixture
def spool(kernel_id):
    spool = Spool(kernel_id)
    yield spool
    spool.remove()


@pytest.fixture
def guard(kernel_id, spool):
    guard = Guard(kernel_id, spool.directory)
    yield guard
    guard.close()


@pytest.fixture
def start():
    """Starts `sleep` in a session of its own, with variables added to its environment."""
    started = []

    def start(*command, **variables):
        process = subprocess.Popen(
            command or ["sleep", "1000"], env={**os.environ, **variables}, start_new_session=True
        )
        started.append(process)
        return process

    yield start
    for process in started:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def wait_for_end(pid, timeout=PATIENCE):
    """Waits until the process has ended, whoever its parent is."""
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    try:
        assert poll.poll(timeout * 1000), f"process {pid} did not end"
    finally:
        os.close(pidfd)


def until(condition):
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def kernel(code, kernel_id):
    """Runs `code` as a kernel would run, with a guard; it prints what the test wants to know, and waits."""
    prelude = f"""
import os, signal, subprocess, sys, time
from arrea_nb.workers._guard import Guard
from arrea_nb.workers._output import Spool
spool = Spool({kernel_id!r})
guard = Guard({kernel_id!r}, spool.directory)
guard.ensure()
def job(*command, **variables):
    return subprocess.Popen(
        command, start_new_session=True, stdout=subprocess.DEVNULL,
        env={{**os.environ, "ARREA_KERNEL_ID": {kernel_id!r}, **variables}}).pid
def tell(*numbers):
    print(guard._pid, *numbers, flush=True)
"""
    process = subprocess.Popen(
        [sys.executable, "-W", "error", "-c", prelude + code + "\nsys.stdin.read()"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    numbers = [int(word) for word in process.stdout.readline().split()]
    return process, numbers


def end(process):
    process.kill()
    process.wait()
    process.stdin.close()
    process.stdout.close()


def test_close_without_a_guard_does_nothing(guard):
    assert guard.pidfd == -1
    guard.close()
    guard.close()


def test_close_kills_the_groups_that_are_still_registered_and_no_other(guard, start):
    guard.ensure()
    registered, gone, stranger = start(), start(), start()
    guard.add(registered.pid)
    guard.add(gone.pid)
    guard.remove(gone.pid)
    guard.close()
    assert registered.wait(PATIENCE) == -signal.SIGKILL
    assert gone.poll() is None
    assert stranger.poll() is None


def test_close_kills_whoever_carries_the_kernels_id(guard, kernel_id, start):
    guard.ensure()
    ours, others = start(ARREA_KERNEL_ID=kernel_id), start(ARREA_KERNEL_ID=kernel_id + "0")
    guard.close()
    assert ours.wait(PATIENCE) == -signal.SIGKILL
    assert others.poll() is None


def test_close_removes_the_spool_and_leaves_no_child(guard, spool):
    guard.ensure()
    path = Path(spool.new_path())
    path.write_bytes(b"output")
    guard.close()
    assert not Path(spool.directory).exists()
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)


def test_a_sigkill_of_the_kernel_leaves_no_process_and_no_spool(kernel_id, spool):
    process, (guard, shell, stray) = kernel(
        """
guard.add(shell := job("sh", "-c", "env -i sleep 1000; true"))
stray = job("setsid", "sleep", "1000")
spool.new_path()
tell(shell, stray)
""",
        kernel_id,
    )
    assert Path(spool.directory).exists()
    end(process)
    for pid in (shell, stray, guard):
        wait_for_end(pid)
    assert not Path(spool.directory).exists()


def test_a_kernel_that_ends_by_itself_is_noticed_without_a_warning(kernel_id):
    process, (guard, job) = kernel('guard.add(p := job("sleep", "1000"))\ntell(p)', kernel_id)
    process.stdin.close()
    assert process.wait(PATIENCE) == 0
    process.stdout.close()
    for pid in (guard, job):
        wait_for_end(pid)


def test_a_forked_child_that_holds_the_pipe_does_not_hide_the_kernels_end(kernel_id):
    process, (guard, job, child) = kernel(
        """
guard.add(p := job("sleep", "1000"))
child = os.fork()
if child == 0:
    time.sleep(1000)
tell(p, child)
""",
        kernel_id,
    )
    end(process)
    try:
        for pid in (guard, job):
            wait_for_end(pid)
    finally:
        os.kill(child, signal.SIGKILL)


def test_a_kernel_that_ended_before_the_guard_looked_is_noticed(kernel_id, start):
    job = start(ARREA_KERNEL_ID=kernel_id)
    reading, writing = os.pipe()
    orphan = subprocess.Popen(
        [sys.executable, "-I", "-S", _guard_script.__file__, kernel_id, "/nonexistent", "1", str(reading)],
        pass_fds=[reading],
    )
    os.close(reading)
    assert orphan.wait(PATIENCE) == 0
    os.close(writing)
    assert job.wait(PATIENCE) == -signal.SIGKILL


def test_processes_that_keep_coming_are_killed_until_none_is_left(kernel_id):
    process, (guard, _) = kernel(
        """
p = job("sh", "-c", "while :; do setsid sleep 1000 & sleep 0.01; done")
guard.add(p)
tell(p)
""",
        kernel_id,
    )
    until(lambda: len(processes_with({"ARREA_KERNEL_ID": kernel_id})) > 10)
    end(process)
    wait_for_end(guard)
    assert processes_with({"ARREA_KERNEL_ID": kernel_id}) == []


def test_signals_to_the_guard_do_not_end_it_not_even_while_it_starts(guard, start):
    guard.ensure()
    job = start()
    guard.add(job.pid)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
        os.kill(guard._pid, number)
    guard.close()
    assert job.wait(PATIENCE) == -signal.SIGKILL


def test_the_guard_begins_without_our_package_and_without_what_takes_long_to_import():
    tree = ast.parse(Path(_guard_script.__file__).read_text())
    imports = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            imports |= {one.name for one in node.names}
    assert imports == {"__future__", "contextlib", "os", "select", "signal", "sys", "time"}


def test_the_guard_stands_apart_from_the_kernel(guard, monkeypatch):
    monkeypatch.setenv("ARREA_KERNEL_ID", "of an outer kernel")
    guard.ensure()
    pid = guard._pid
    assert os.getsid(pid) == pid
    assert os.readlink(f"/proc/{pid}/cwd") == "/"
    assert b"ARREA_KERNEL_ID" not in Path(f"/proc/{pid}/environ").read_bytes()
    assert {os.readlink(f"/proc/{pid}/fd/{number}") for number in range(3)} == {"/dev/null"}


def test_no_process_that_the_kernel_starts_inherits_the_pipe(guard):
    guard.ensure()
    listed = subprocess.run(
        [sys.executable, "-c", "import os; print(*os.listdir('/proc/self/fd'))"],
        capture_output=True,
        check=True,
        close_fds=False,
        text=True,
    )
    assert not {str(guard._pipe), str(guard.pidfd)} & set(listed.stdout.split())


def test_ensure_starts_one_guard_however_many_ask(guard):
    threads = [threading.Thread(target=guard.ensure) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    pid = guard._pid
    guard.ensure()
    assert guard._pid == pid
    os.waitpid(-1, os.WNOHANG)


def test_a_dead_guard_is_noticed_by_whoever_polls_and_its_successor_knows_the_groups(guard, start):
    guard.ensure()
    job = start()
    guard.add(job.pid)
    first = guard._pid
    poll = select.poll()
    poll.register(guard.pidfd, select.POLLIN)
    assert poll.poll(0) == []
    os.kill(first, signal.SIGKILL)
    assert poll.poll(PATIENCE * 1000)
    guard.ensure()
    assert guard._pid != first
    assert job.poll() is None
    guard.close()
    assert job.wait(PATIENCE) == -signal.SIGKILL


def test_a_guard_that_died_unnoticed_is_replaced_when_it_is_told_something(guard, start):
    guard.ensure()
    first = guard._pid
    os.kill(first, signal.SIGKILL)
    wait_for_end(first)
    job = start()
    guard.add(job.pid)
    assert guard._pid != first
    guard.close()
    assert job.wait(PATIENCE) == -signal.SIGKILL


def test_close_has_the_jobs_killed_although_the_guard_had_died(guard, start):
    guard.ensure()
    job = start()
    guard.add(job.pid)
    os.kill(guard._pid, signal.SIGKILL)
    wait_for_end(guard._pid)
    guard.close()
    assert job.wait(PATIENCE) == -signal.SIGKILL


def test_a_dead_guard_does_not_end_a_kernel_whose_user_changed_sigpipe(guard):
    guard.ensure()
    os.kill(guard._pid, signal.SIGKILL)
    wait_for_end(guard._pid)
    before = signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    try:
        guard.add(os.getpid())
        guard.remove(os.getpid())
    finally:
        signal.signal(signal.SIGPIPE, before)


def test_a_guard_that_is_stopped_blocks_nobody_and_is_replaced_in_the_end(guard, start):
    guard.ensure()
    first = guard._pid
    job = start()
    guard.add(job.pid)
    os.kill(first, signal.SIGSTOP)
    for group in range(10**6, 10**6 + 80_000):
        guard.add(group)
        guard.remove(group)
    assert guard._pid != first
    assert job.poll() is None
    guard.close()
    assert job.wait(PATIENCE) == -signal.SIGKILL


def test_more_than_a_pipe_holds_arrives_in_full(guard, start):
    guard.ensure()
    jobs = [start() for _ in range(3)]
    for group in range(10**6, 10**6 + 20_000):
        guard.add(group)
        guard.remove(group)
    for job in jobs:
        guard.add(job.pid)
    until(lambda: guard._flush() and not guard._unsent)
    guard.close()
    assert [job.wait(PATIENCE) for job in jobs] == [-signal.SIGKILL] * 3


def test_a_group_whose_id_was_given_to_others_is_left_alone(start, kernel_id):
    ours, others = start(), start()
    groups = _guard_script._Groups()
    groups._started = {ours.pid: _guard_script._start_time(ours.pid), others.pid: b"1"}
    groups.kill(kernel_id)
    assert ours.wait(PATIENCE) == -signal.SIGKILL
    assert others.poll() is None


def test_a_group_whose_leader_had_ended_when_it_was_told_is_known_by_its_members(start, kernel_id):
    ours, others = start(ARREA_KERNEL_ID=kernel_id), start()
    groups = _guard_script._Groups()
    groups._started = {ours.pid: None, others.pid: None}
    groups.kill(kernel_id)
    assert ours.wait(PATIENCE) == -signal.SIGKILL
    assert others.poll() is None


@pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")
def test_a_forked_child_closes_what_it_inherited_and_touches_nothing(guard, start):
    guard.ensure()
    job = start()
    guard.add(job.pid)
    pipe, pidfd, pid = guard._pipe, guard.pidfd, guard._pid
    name = os.readlink(f"/proc/self/fd/{pipe}")
    child = os.fork()
    if child == 0:
        status = 1
        try:
            guard._lock.acquire()  # as if another thread had held it at the fork
            guard.forget()
            guard.forget()
            guard.add(1)
            guard.remove(job.pid)
            guard.close()
            try:
                guard.ensure()
            except RuntimeError:
                links = [f"/proc/self/fd/{number}" for number in os.listdir("/proc/self/fd")]
                left = [link for link in links if os.path.lexists(link) and os.readlink(link) == name]
                status = int(bool(left) or guard.pidfd != -1)
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    guard.forget()
    guard.ensure()
    assert (guard._pipe, guard.pidfd, guard._pid) == (pipe, pidfd, pid)
    assert job.poll() is None


def test_a_closed_guard_can_be_started_again_and_leaks_nothing(guard):
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        guard.ensure()
        os.kill(guard._pid, signal.SIGKILL)
        wait_for_end(guard._pid)
        guard.ensure()
        guard.close()
    assert len(os.listdir("/proc/self/fd")) == before
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)


def test_an_unclosed_guard_is_collected_without_a_warning(kernel_id, spool):
    guard = Guard(kernel_id, spool.directory)
    guard.ensure()
    pipe, pidfd, pid = guard._pipe, guard._pidfd, guard._pid
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        del guard
    assert caught == []
    os.close(pipe)
    os.close(pidfd)
    os.waitpid(pid, 0)


@pytest.mark.parametrize("pidfd", [True, False])
def test_an_abandoned_guard_does_its_work_and_leaves_no_zombie_and_no_descriptor(
    guard, spool, start, monkeypatch, pidfd
):
    if not pidfd:
        monkeypatch.delattr(os, "pidfd_open")
    before = len(os.listdir("/proc/self/fd"))
    guard.ensure()
    os.kill(guard._pid, signal.SIGKILL)
    until(lambda: guard.ensure() or guard._deaths == 1)
    job = start()
    guard.add(job.pid)
    Path(spool.new_path()).write_bytes(b"output")
    pid = guard._pid
    os.kill(pid, signal.SIGSTOP)  # whoever waited for it now would wait for ever
    guard.abandon()
    guard.abandon()
    assert guard.pidfd == -1
    os.kill(pid, signal.SIGCONT)
    assert job.wait(PATIENCE) == -signal.SIGKILL
    until(lambda: not os.path.exists(f"/proc/{pid}"))
    until(lambda: len(os.listdir("/proc/self/fd")) == before)
    assert not Path(spool.directory).exists()


def test_a_guard_that_is_in_use_is_not_abandoned(guard, start):
    """A finaliser runs where it likes, also in the thread that holds the lock."""
    guard.ensure()
    job = start()
    guard.add(job.pid)
    with guard._lock:
        guard.abandon()
    assert not _guard_script.readable(guard.pidfd)
    assert job.poll() is None


def test_a_guard_is_abandoned_also_when_no_thread_can_be_started(guard, monkeypatch):
    def none(function, arguments):
        raise RuntimeError("can't start new thread")

    before = len(os.listdir("/proc/self/fd"))
    guard.ensure()
    pid = guard._pid
    monkeypatch.setattr("arrea_nb.workers._guard._thread.start_new_thread", none)
    guard.abandon()
    assert len(os.listdir("/proc/self/fd")) == before
    assert os.waitpid(pid, 0)[1] == 0


def test_guards_that_die_leave_few_descriptors(guard, monkeypatch):
    monkeypatch.setattr("arrea_nb.workers._guard._MOST_OLD", 2)
    monkeypatch.setattr("arrea_nb.workers._guard._SHORT_LIFE", 0.0)
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(6):
        guard.ensure()
        os.kill(guard._pid, signal.SIGKILL)
        wait_for_end(guard._pid)
    guard.ensure()
    assert len(os.listdir("/proc/self/fd")) == before + 2 + 2  # the pipe's end and the pidfd
    guard.close()
    assert len(os.listdir("/proc/self/fd")) == before


def test_without_pidfd_the_pipe_alone_serves(guard, start, monkeypatch):
    monkeypatch.delattr(os, "pidfd_open")
    guard.ensure()
    assert guard.pidfd == -1
    first = guard._pid
    job = start()
    guard.add(job.pid)
    os.kill(first, signal.SIGKILL)
    until(lambda: guard.ensure() or guard._pid != first)
    guard.close()
    assert job.wait(PATIENCE) == -signal.SIGKILL


def test_processes_with_finds_those_that_carry_every_variable_exactly(start):
    name = f"ARREA_TEST_{uuid.uuid4().hex}"
    both = start(**{name: "1", name + "_B": "ä 2"})
    one = start(**{name: "1"})
    start(**{name: "10"})
    start(**{"X" + name: "1"})
    assert sorted(processes_with({name: "1"})) == sorted([both.pid, one.pid])
    assert processes_with({name: "1", name + "_B": "ä 2"}) == [both.pid]
    assert processes_with({name: "2"}) == []
