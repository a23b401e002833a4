"""One shell job: its process, what it prints, its deadline, its stop, its outcome.

Guarantees: the worker's thread waits in one poll for output, the end of the process and orders to stop;
nothing polls at an interval and there is no further thread. A job that is cancelled before its process is
spawned gets none. The job ends when its process exits, whoever still holds its pipes, in this order: the
pidfd is ready, kill the rest of the group, read what is readable and no more, unregister from the guard,
reap (why in this order, `_process.py` says).
"""

from __future__ import annotations

import codecs
import contextlib
import errno
import logging
import os
import select
import signal
import time
from collections.abc import Callable
from typing import Any

from arrea_nb._commands import NOT_EXECUTABLE, NOT_FOUND, ShellCommand
from arrea_nb._progress import ProgressReader
from arrea_nb._records import Desk, JobRecord, Outcome
from arrea_nb.errors import CommandFailed, JobCrashed
from arrea_nb.workers._process import Process

_log = logging.getLogger("arrea_nb")

SUPPORTED = hasattr(os, "pidfd_open")
_CHUNK = 65536
# What a pipe can hold: after the end no more than this is read, so that a process in another session that
# writes for ever cannot keep the job from ending.
_PIPE_HOLDS = 1 << 20
_REMEDIES = {
    errno.EMFILE: "the kernel may open no more (ulimit -n); raise that, or run fewer at once (workers=)",
    errno.ENFILE: "the whole machine has no file left to open; run fewer at once (workers=)",
    errno.EAGAIN: "no more processes are allowed (ulimit -u); end some, or run fewer at once (workers=)",
    errno.ENOMEM: "there is no memory left for it; free some, or run fewer at once (workers=)",
}


def run_shell(job: JobRecord, desk: Desk, wake_fd: Callable[[], int]) -> Outcome:
    """Runs the command of a shell job to its end.

    Args:
        job: The job.
        desk: Where its output and its news go.
        wake_fd: The descriptor that becomes readable when it shall stop.
    """
    outcome = _ShellRun(job, desk, wake_fd).run()
    if outcome.error is not None:
        outcome.told = str(outcome.error)
    return outcome


class _ShellRun:
    """One attempt."""

    def __init__(self, job: JobRecord, desk: Desk, wake_fd: Callable[[], int]) -> None:
        self._wake_fd = wake_fd
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

    def run(self) -> Outcome:
        """Spawns the process and sees it to its end."""
        import resource  # not on Windows, where nothing gets here

        own_peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        process = None
        guard = None
        try:
            try:
                process = self._begin()
            except (OSError, ValueError, MemoryError) as error:
                return self._could_not_start(error)
            if process is None:
                return _not_begun()
            guard = self._desk.guard()
            self._see_to(guard)
            guard.add(process.pid)
            self._desk.started(self._job, process.pid)
            if process.pidfd >= 0:
                self._pump(process, guard)
            status = process.exit_status()
            if status is None:
                self._drain()
                guard.remove(process.pid)
                return Outcome(
                    None, JobCrashed("its exit status is lost: something else waited for its process")
                )
            left_behind = process.kill_the_rest()
            self._drain()
            guard.remove(process.pid)
            return self._outcome(status, process.reap(), own_peak, left_behind=left_behind)
        finally:
            if process is not None:
                if not process.reaped:
                    _give_up(process, guard)
                process.close()
            for fd in (*self._streams, *self._others):
                os.close(fd)
            self._output.close()

    def _begin(self) -> Process | None:
        """Makes the descriptors and spawns the process; None if the job was cancelled meanwhile."""
        ends: list[int] = []
        try:
            self._wake = self._wake_fd()
            for stream in range(len(self._decoders)):
                reading, end = os.pipe()
                self._streams[reading] = stream
                self._poll.register(reading, select.POLLIN)
                ends.append(end)
            if self._job.stop is not None:
                return None
            return self._spawn(ends[0], ends[1])
        finally:
            for end in ends:
                os.close(end)

    def _spawn(self, out_end: int, err_end: int) -> Process:
        batch = self._job.batch
        command = self._job.command
        assert isinstance(command, ShellCommand)  # noqa: S101 - for the type checker
        return Process(
            [batch.shell, "-c", command.line] if command.line is not None else command.argv,
            (out_end, err_end),
            cwd=batch.options.cwd,
            env=batch.env,
            marks={
                "ARREA_KERNEL_ID": self._desk.kernel_id,
                "ARREA_BATCH_ID": batch.id,
                "ARREA_JOB_INDEX": str(self._job.index),
            },
        )

    def _could_not_start(self, error: Exception) -> Outcome:
        code = NOT_FOUND if isinstance(error, FileNotFoundError) else NOT_EXECUTABLE
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        number = errno.ENOMEM if isinstance(error, MemoryError) else getattr(error, "errno", None)
        advice = f"; {_REMEDIES[number]}" if number in _REMEDIES else ""
        where = self._job.batch.options.cwd
        if isinstance(error, FileNotFoundError) and error.filename == where:
            reason = f"its working directory {where} is gone"
            advice = "; make it again, or pass another cwd="
        failure = CommandFailed(f"could not start: {reason} (exit {code}){advice}", code)
        failure.__cause__ = error
        outcome = Outcome(None, failure)
        outcome.could_not_start = True
        outcome.exit_code = code
        return outcome

    def _pump(self, process: Process, guard: Any) -> None:
        """Reads output until the process has exited and, when it is being stopped, its helpers too."""
        job = self._job
        timeout = job.batch.options.timeout
        deadline = None if timeout is None else (job.clock or 0.0) + timeout
        guard_fd = guard.pidfd
        for fd in (process.pidfd, self._wake):
            self._poll.register(fd, select.POLLIN)
        if guard_fd >= 0:
            self._poll.register(guard_fd, select.POLLIN)
        while not self._exited or self._others:
            if job.stop is not None:
                self._stop(process)
            until = deadline if job.stop is None else self._ends_at
            for fd, _ in self._poll.poll(_milliseconds(until)):
                if fd in self._streams:
                    self._read(fd)
                elif fd == process.pidfd:
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

    def _stop(self, process: Process) -> None:
        """SIGTERM at the first call; SIGKILL once the grace is over."""
        if self._killed:
            return
        now = time.monotonic()
        if self._stopped_at is None:
            self._stopped_at = now
            if self._job.grace > 0:
                # The grace is the others' as well: the job ends when they have, or when it is over.
                for fd in process.signal(signal.SIGTERM, watch=True):
                    self._others.add(fd)
                    self._poll.register(fd, select.POLLIN)
        self._ends_at = self._stopped_at + self._job.grace
        if now >= self._ends_at:
            self._killed = True
            self._ends_at = None
            process.signal(signal.SIGKILL)
            for fd in list(self._others):
                self._forget(fd)

    def _forget(self, fd: int) -> None:
        self._others.discard(fd)
        self._poll.unregister(fd)
        os.close(fd)

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


def _not_begun() -> Outcome:
    """It was cancelled before there was a process."""
    outcome = Outcome(None, JobCrashed("stopped"))  # the ledger puts the right error in its place
    outcome.could_not_start = True
    return outcome


def _give_up(process: Process, guard: Any) -> None:
    """After a fault on the way: nothing is left running, and the guard forgets the group."""
    process.kill()
    if guard is not None:
        guard.remove(process.pid)
    with contextlib.suppress(ChildProcessError):
        process.reap()


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
