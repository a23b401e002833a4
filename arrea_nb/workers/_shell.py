"""One shell job: spawn, pump, deadline, stop, reap.

Guarantees: the process has a session of its own, stdin at /dev/null, both outputs in pipes. The worker's
thread waits in one poll for output, the end of the process and orders to stop; nothing polls at an interval
and there is no further thread. The job ends when its process exits, whoever still holds its pipes, in this
order: the pidfd is ready, `waitid(WNOWAIT)`, kill the rest of the group while the zombie still holds its
id, read what is readable, unregister from the guard, `wait4`, set `popen.returncode`.
"""

from __future__ import annotations

import codecs
import contextlib
import errno
import logging
import os
import select
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

from arrea_nb._commands import NOT_EXECUTABLE, NOT_FOUND, ShellCommand
from arrea_nb._progress import ProgressReader
from arrea_nb._records import Desk, JobRecord, Outcome
from arrea_nb.errors import CommandFailed, JobCrashed
from arrea_nb.workers._guard_script import processes_with

_log = logging.getLogger("arrea_nb")

if TYPE_CHECKING:
    from arrea_nb.workers._threads import Worker

SUPPORTED = hasattr(os, "pidfd_open")
_CHUNK = 65536
# What a pipe can hold: after the end no more than this is read, so that a process in another session that
# writes for ever cannot keep the job from ending.
_PIPE_HOLDS = 1 << 20
_LOWEST_PRIORITY = 19
# A flag of a process in /proc, set from its fork to its exec. Popen returns after either that or its end.
_PF_FORKNOEXEC = 0x40
_REMEDIES = {
    errno.EMFILE: "the kernel may open no more (ulimit -n); raise that, or run fewer at once (workers=)",
    errno.ENFILE: "the whole machine has no file left to open; run fewer at once (workers=)",
    errno.EAGAIN: "no more processes are allowed (ulimit -u); end some, or run fewer at once (workers=)",
    errno.ENOMEM: "there is no memory left for it; free some, or run fewer at once (workers=)",
}


def run_shell(worker: Worker, job: JobRecord, desk: Desk) -> Outcome:
    """Runs the command of a shell job to its end, and asks the policy when it failed."""
    outcome = _ShellRun(worker, job, desk).run()
    if outcome.error is not None:
        outcome.told = str(outcome.error)
        if job.stop != "cancelled":
            outcome.decision = job.batch.policy.decide(outcome.error, job.attempt, desk.public(job))
    return outcome


class _ShellRun:
    """One attempt."""

    def __init__(self, worker: Worker, job: JobRecord, desk: Desk) -> None:
        self._worker = worker
        self._job = job
        self._desk = desk
        self._wake = -1
        self._output = job.output = desk.new_output()
        self._streams: dict[int, int] = {}  # from the descriptor to 0 (stdout) or 1 (stderr)
        self._decoders = [codecs.getincrementaldecoder("utf-8")("replace") for _ in range(2)]
        self._readers = [ProgressReader(), ProgressReader()]
        self._others: set[int] = set()  # pidfds of the other processes that were asked to end
        self._poll = select.poll()
        self._exited = False
        self._stopped_at: float | None = None
        self._killed = False
        self._ends_at: float | None = None  # the end of grace
        self._pid = 0
        self._popen: subprocess.Popen[bytes] | None = None
        self._ids = {
            "ARREA_KERNEL_ID": desk.kernel_id,
            "ARREA_BATCH_ID": job.batch.id,
            "ARREA_JOB_INDEX": str(job.index),
        }

    def run(self) -> Outcome:
        """Spawns the process and sees it to its end."""
        import resource  # not on Windows, where nothing gets here

        own_peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        pidfd = -1
        guard = None
        try:
            try:
                popen = self._begin()
                pidfd = self._pidfd_of(popen)
            except (OSError, ValueError, MemoryError) as error:
                return self._could_not_start(error)
            guard = self._desk.guard()
            self._see_to(guard)
            guard.add(popen.pid)
            self._desk.started(self._job, popen.pid)
            if pidfd >= 0:
                self._pump(pidfd, guard)
            try:
                status = os.waitid(os.P_PID, popen.pid, os.WEXITED | os.WNOWAIT)
            except ChildProcessError:
                self._drain()
                guard.remove(popen.pid)
                self._pid = popen.returncode = 0
                return Outcome(
                    None, JobCrashed("its exit status is lost: something else waited for its process")
                )
            left_behind = self._kill_the_rest()
            self._drain()
            guard.remove(popen.pid)
            usage = os.wait4(popen.pid, 0)[2]
            self._pid = popen.returncode = 0  # so that Popen does not wait for it as well
            return self._outcome(status, usage, own_peak, left_behind=left_behind)
        finally:
            if self._pid:
                self._give_up(guard)
            for fd in (*self._streams, *self._others, pidfd):
                if fd >= 0:
                    os.close(fd)
            self._output.close()

    def _begin(self) -> subprocess.Popen[bytes]:
        """Makes the descriptors and spawns the process."""
        ends: list[int] = []
        try:
            self._wake = self._worker.wake_fd()
            for stream in range(len(self._decoders)):
                reading, end = os.pipe()
                self._streams[reading] = stream
                self._poll.register(reading, select.POLLIN)
                ends.append(end)
            popen = self._popen = self._spawn(*ends)
            if _was_killed_unborn(popen):
                popen = self._popen = self._spawn(*ends)
        finally:
            for end in ends:
                os.close(end)
        self._pid = popen.pid
        return popen

    def _pidfd_of(self, popen: subprocess.Popen[bytes]) -> int:
        """The descriptor that tells of its end; -1 if it is gone. Without one the process is ended again."""
        try:
            return os.pidfd_open(popen.pid)
        except ProcessLookupError:
            return -1  # it has ended, and something else waited for it
        except BaseException:
            self._give_up(None)
            raise

    def _give_up(self, guard: Any) -> None:
        """After a fault on the way: nothing is left running, and the guard forgets the group."""
        with contextlib.suppress(OSError):
            os.killpg(self._pid, signal.SIGKILL)
        if guard is not None:
            guard.remove(self._pid)
        with contextlib.suppress(ChildProcessError):
            os.wait4(self._pid, 0)
        assert self._popen is not None  # noqa: S101 - for the type checker
        self._pid = self._popen.returncode = 0

    def _spawn(self, out_end: int, err_end: int) -> subprocess.Popen[bytes]:
        job = self._job
        command = job.command
        assert isinstance(command, ShellCommand)  # noqa: S101 - for the type checker
        argv = [job.batch.shell, "-c", command.line] if command.line is not None else list(command.argv)
        env = dict(job.batch.env)
        for name, value in self._ids.items():
            env[name.encode()] = value.encode()
        return subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=out_end,
            stderr=err_end,
            cwd=job.batch.cwd,
            env=env,
            start_new_session=True,
        )

    def _could_not_start(self, error: Exception) -> Outcome:
        code = NOT_FOUND if isinstance(error, FileNotFoundError) else NOT_EXECUTABLE
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        number = errno.ENOMEM if isinstance(error, MemoryError) else getattr(error, "errno", None)
        advice = f"; {_REMEDIES[number]}" if number in _REMEDIES else ""
        failure = CommandFailed(f"could not start: {reason} (exit {code}){advice}", code)
        failure.__cause__ = error
        outcome = Outcome(None, failure)
        outcome.could_not_start = True
        outcome.exit_code = code
        return outcome

    def _pump(self, pidfd: int, guard: Any) -> None:
        """Reads output until the process has exited and, when it is being stopped, its helpers too."""
        job = self._job
        timeout = job.batch.timeout
        deadline = None if timeout is None else (job.clock or 0.0) + timeout
        guard_fd = guard.pidfd
        for fd in (pidfd, self._wake):
            self._poll.register(fd, select.POLLIN)
        if guard_fd >= 0:
            self._poll.register(guard_fd, select.POLLIN)
        while not self._exited or self._others:
            if job.stop is not None:
                self._stop()
            until = deadline if job.stop is None else self._ends_at
            for fd, _ in self._poll.poll(_milliseconds(until)):
                if fd in self._streams:
                    self._read(fd)
                elif fd == pidfd:
                    self._exited = True
                    self._poll.unregister(fd)
                elif fd == self._wake:
                    _reset(fd)
                elif fd in self._others:
                    self._forget(fd)
                else:  # the guard died
                    self._poll.unregister(fd)
                    self._see_to(guard)
                    if guard.pidfd >= 0:
                        self._poll.register(guard.pidfd, select.POLLIN)
            if (
                deadline is not None
                and job.stop is None
                and not self._exited
                and time.monotonic() >= deadline
            ):
                self._desk.expired(job)

    @staticmethod
    def _see_to(guard: Any) -> None:
        """Starts the guard if it does not run. Not for the main thread, where an interrupt could tear it."""
        try:
            guard.ensure()
        except (OSError, MemoryError) as error:
            _log.warning("the guard could not be started (%s): a crash now would leave processes", error)

    def _read(self, fd: int) -> int:
        data = os.read(fd, _CHUNK)
        stream = self._streams[fd]
        if not data:
            self._poll.unregister(fd)
            del self._streams[fd]
            os.close(fd)
            text = self._decoders[stream].decode(b"", final=True)
            if text:
                self._desk.printed(self._job, stream, text)
            return 0
        self._output.write(stream, data)
        text = self._decoders[stream].decode(data)
        self._desk.printed(self._job, stream, text, self._readers[stream].feed(data))
        return len(data)

    def _drain(self) -> None:
        """Reads what is in the pipes now, and no more than they can hold."""
        for fd in list(self._streams):
            poll = select.poll()
            poll.register(fd, select.POLLIN)
            left = _PIPE_HOLDS
            while left > 0 and fd in self._streams and poll.poll(0):
                left -= self._read(fd)

    # Stopping

    def _stop(self) -> None:
        """SIGTERM at the first call; SIGKILL once the grace is over."""
        if self._killed:
            return
        now = time.monotonic()
        if self._stopped_at is None:
            self._stopped_at = now
            if self._job.grace > 0:
                self._signal(signal.SIGTERM, watch=True)
        self._ends_at = self._stopped_at + self._job.grace
        if now >= self._ends_at:
            self._killed = True
            self._ends_at = None
            self._signal(signal.SIGKILL, watch=False)
            for fd in list(self._others):
                self._forget(fd)

    def _signal(self, number: signal.Signals, *, watch: bool) -> None:
        """To the group, and to whoever carries the job's ids in its environment."""
        for pid in processes_with(self._ids):
            if watch and pid != self._pid:
                self._watch(pid)
            try:
                if os.getpgid(pid) != self._pid:
                    os.kill(pid, number)
            except (ProcessLookupError, PermissionError):  # pragma: no cover - it ended in between
                continue
        try:
            os.killpg(self._pid, number)
        except (ProcessLookupError, PermissionError):  # pragma: no cover - it runs as another user now
            return

    def _watch(self, pid: int) -> None:
        """The grace is theirs as well: the job ends when they have, or when it is over."""
        try:
            fd = os.pidfd_open(pid)
        except OSError:
            return
        self._others.add(fd)
        self._poll.register(fd, select.POLLIN)

    def _forget(self, fd: int) -> None:
        self._others.discard(fd)
        self._poll.unregister(fd)
        os.close(fd)

    def _kill_the_rest(self) -> bool:
        """Kills what is left of the group. Returns whether there was anything."""
        try:
            # The zombie is a member of its group and hides whether there are others. It can be told apart
            # by its priority: give it the lowest, and ask for the highest in the group.
            os.setpriority(os.PRIO_PROCESS, self._pid, _LOWEST_PRIORITY)
            left = os.getpriority(os.PRIO_PGRP, self._pid) < _LOWEST_PRIORITY
        except OSError:  # pragma: no cover - it ran as another user
            left = False
        try:
            os.killpg(self._pid, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):  # pragma: no cover - macOS says so of a lone zombie
            return left
        return left

    # The end

    def _outcome(self, status: Any, usage: Any, own_peak: int, *, left_behind: bool) -> Outcome:
        job = self._job
        outcome = Outcome()
        outcome.cpu_seconds = usage.ru_utime + usage.ru_stime
        outcome.max_rss_bytes = usage.ru_maxrss * 1024 if usage.ru_maxrss > own_peak else None
        if left_behind and job.stop is None:
            outcome.note = "stopped what it left running in the background"
        if status.si_code == os.CLD_EXITED:
            outcome.exit_code = status.si_status
        else:
            outcome.signal = status.si_status
        if job.stop == "timed_out":
            outcome.error = self._desk.timeout_error(job)
        elif job.stop is not None:
            outcome.error = JobCrashed("stopped")  # the ledger puts the right error in its place
        elif outcome.exit_code != 0:
            tail = self._last_lines()
            what = f"exit {outcome.exit_code}"
            if outcome.signal is not None:
                what = f"killed by {_signal_name(outcome.signal)}"
            last = tail.strip().splitlines()[-1:]
            message = what if not last else f"{what}: {last[0].strip()[:200]}"
            outcome.error = CommandFailed(message, outcome.exit_code, outcome.signal, tail)
        return outcome

    def _last_lines(self, lines: int = 20) -> str:
        """The end of stderr; of all output when it printed nothing there."""
        segments, _, _ = self._output.since(max(0, self._output.size - 16384), 16384)
        stderr = "".join(text for stream, text in segments if stream == "stderr")
        text = stderr if stderr.strip() else "".join(text for _, text in segments)
        return "".join(text.splitlines(keepends=True)[-lines:])


def _was_killed_unborn(popen: subprocess.Popen[bytes]) -> bool:
    """Whether it died before it became its program; reaps it then.

    The stop button's SIGINT goes to the kernel's process group, to which a child belongs until `setsid`.
    """
    try:
        with open(f"/proc/{popen.pid}/stat", "rb", buffering=0) as file:
            # The name, in parentheses, may contain anything; the flags are the 7th field after it.
            flags = int(file.read().rpartition(b")")[2].split()[6])
    except OSError:  # pragma: no cover - there is no /proc on macOS
        return False
    if not flags & _PF_FORKNOEXEC:
        return False
    os.waitpid(popen.pid, 0)
    popen.returncode = 0
    return True


def _milliseconds(until: float | None) -> int | None:
    if until is None:
        return None
    # Rounded up: woken a fraction too early it would spin until the moment comes.
    return max(0, min(int((until - time.monotonic()) * 1000) + 1, 2**31 - 1))


def _reset(fd: int) -> None:
    try:
        os.eventfd_read(fd)
    except BlockingIOError:  # pragma: no cover - nobody else reads it, and poll said that it is readable
        return


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def own_path(path: str) -> str:
    """PATH with the directory of the kernel's own Python first, so that `python` is the notebook's."""
    return (
        os.pathsep.join([os.path.dirname(sys.executable), path]) if path else os.path.dirname(sys.executable)
    )
