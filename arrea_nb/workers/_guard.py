r"""The kernel's side of the process that outlives it by a moment, to stop what its shell jobs left running.

    kernel: Guard ──"+123\n" "-123\n"──▶ pipe ──▶ guard: `_guard_script.py`
                                                   waits for the end of the pipe, or of the kernel;
                                                   kills, removes the spool, exits

Guarantees: the guard holds nothing of the kernel's but the pipe's reading end, whose other end nobody
inherits; a signal to the kernel's group or terminal does not reach it. A guard that dies is replaced, and the
new one is told of every group. Talking to it never blocks.
"""

from __future__ import annotations

import _thread
import contextlib
import os
import select
import signal
import sys
import time

from arrea_nb.workers import _guard_script
from arrea_nb.workers._guard_script import IGNORED, KERNEL_ID, PAUSE, readable

# How long `close` waits for the sweep, in seconds.
_CLOSE_LIMIT = 3.0
# So many guards in a row, each dead within so many seconds, and no further is started for the jobs that run.
_MOST_DEATHS = 5
_SHORT_LIFE = 1.0
# So many guards later every worker has heard of a guard's death.
_MOST_OLD = 16
# More that could not be told, in bytes, means that the guard is stuck.
_MOST_UNSENT = 1 << 20


class Guard:
    """The kernel's side. Works from any thread.

    Args:
        kernel_id: What the jobs of this kernel carry in their environment as ARREA_KERNEL_ID.
        spool_directory: What to remove when the kernel is gone.
    """

    def __init__(self, kernel_id: str, spool_directory: str) -> None:
        import threading

        self._kernel_id = kernel_id
        self._spool_directory = spool_directory
        self._creator = os.getpid()
        # Guards everything below. Held while a guard is started and for one write to the pipe, never while
        # one is waited for.
        self._lock = threading.Lock()
        self._groups: set[int] = set()
        self._pid = -1
        self._pidfd = -1
        self._pipe = -1
        self._unsent = bytearray()
        self._born = 0.0  # when the one that runs was started
        self._deaths = 0  # how many in a row died as soon as they began
        # Of guards that died. A worker may be polling them until it hears of that: their numbers must not be
        # used again so soon.
        self._old_pidfds: list[int] = []

    @property
    def pidfd(self) -> int:
        """Readable when the guard has died; -1 if there is none. Ask again after `ensure`."""
        return self._pidfd

    def ensure(self) -> None:
        """Starts the guard, or another in place of one that died. Does not wait for it.

        Raises:
            OSError: If no process can be started.
            RuntimeError: In a forked child, whose processes are not the parent's guard's.
        """
        if os.getpid() != self._creator:
            raise RuntimeError("this guard belongs to the parent process")
        with self._lock:
            if self._dead():
                self._count_deaths()
                self._replace()

    def add(self, group: int) -> None:
        """Tells it of a process group that must not outlive the kernel."""
        if os.getpid() != self._creator:
            return
        with self._lock:
            self._groups.add(group)
            self._tell(b"+%d\n" % group)

    def remove(self, group: int) -> None:
        """Tells it that the group is gone. To be called before the leader is reaped."""
        if os.getpid() != self._creator:
            return
        with self._lock:
            self._groups.discard(group)
            self._tell(b"-%d\n" % group)

    def close(self) -> None:
        """Has the guard kill what is left and exit, and waits for that; what is still busy then is killed."""
        if os.getpid() != self._creator:
            self.forget()
            return
        with self._lock:
            if self._pid >= 0 and self._dead():
                with contextlib.suppress(OSError):
                    self._replace()
            pid, pidfd, old = self._let_go()
        try:
            if pid >= 0 and not _wait(pid, pidfd, _CLOSE_LIMIT):
                _kill(pid)
        finally:
            _close(pidfd, *old)

    def abandon(self) -> None:
        """The same for a finaliser: it waits for nothing, and whoever uses the guard just now keeps it.

        A guard that has died already is not replaced: what it would have stopped and removed stays.
        """
        if os.getpid() != self._creator:
            self.forget()
            return
        # The finaliser may have come in the middle of another call, in the thread that holds the lock.
        if not self._lock.acquire(blocking=False):
            return
        try:
            pid, pidfd, old = self._let_go()
        finally:
            self._lock.release()
        _close(*old)
        if pid < 0:
            return
        try:
            # Not a Thread: its start waits for the thread to run.
            _thread.start_new_thread(_reap, (pid, pidfd))
        except (RuntimeError, MemoryError):
            _close(pidfd)  # it stays a zombie until the kernel's end

    def forget(self) -> None:
        """In a forked child: closes what was inherited, and leaves the guard to the parent."""
        import threading

        if os.getpid() == self._creator:
            return
        # The lock may have been held in the parent by a thread that is not here to release it.
        self._lock = threading.Lock()
        self._close_pipe()
        _close(self._pidfd, *self._old_pidfds)
        self._pid = self._pidfd = -1
        self._old_pidfds = []
        self._groups = set()

    def _let_go(self) -> tuple[int, int, list[int]]:
        """Ends the pipe, for which the guard waits. Returns its pid and pidfd, and those of dead ones."""
        left = self._pid, self._pidfd, self._old_pidfds
        self._flush()
        self._close_pipe()
        self._pid = self._pidfd = -1
        self._old_pidfds = []
        self._groups.clear()
        return left

    def _dead(self) -> bool:
        if self._pid < 0:
            return True
        if self._pidfd >= 0:
            return readable(self._pidfd)
        try:
            return os.waitpid(self._pid, os.WNOHANG)[0] != 0
        except ChildProcessError:
            return True

    def _count_deaths(self) -> None:
        """Refuses to start one more after several in a row that died as soon as they began."""
        if self._pid < 0:
            return
        self._deaths = self._deaths + 1 if time.monotonic() - self._born < _SHORT_LIFE else 0
        if self._deaths >= _MOST_DEATHS:
            self._deaths -= 1  # whoever asks again may try once
            self._bury()
            raise ChildProcessError(f"{sys.executable} died {_MOST_DEATHS} times as soon as it began")

    def _replace(self) -> None:
        self._bury()
        reading, self._pipe = os.pipe()
        try:
            os.set_blocking(self._pipe, False)
            self._pid = self._spawn(reading)
        except BaseException:
            self._close_pipe()
            raise
        finally:
            os.close(reading)
        self._born = time.monotonic()
        if hasattr(os, "pidfd_open"):
            with contextlib.suppress(OSError):
                self._pidfd = os.pidfd_open(self._pid)
        self._unsent += b"".join(b"+%d\n" % group for group in self._groups)
        self._flush()

    def _bury(self) -> None:
        """Ends and reaps the one there is, if it has not ended by itself."""
        if self._pid >= 0:
            # Before the pipe ends: one that is stuck would take that for the kernel's end later on.
            _kill(self._pid)
        self._close_pipe()
        if self._pidfd >= 0:
            self._old_pidfds.append(self._pidfd)
            if len(self._old_pidfds) > _MOST_OLD:
                _close(self._old_pidfds.pop(0))
        self._pid = self._pidfd = -1

    def _spawn(self, reading: int) -> int:
        import subprocess

        environment = {name: value for name, value in os.environ.items() if name != KERNEL_ID}
        arguments = (self._kernel_id, self._spool_directory, str(os.getpid()), str(reading))
        # A child inherits what its parent's thread blocks: so it is safe before the script can ignore them.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, IGNORED)
        try:
            process = subprocess.Popen(
                [sys.executable, "-I", "-S", os.path.abspath(_guard_script.__file__), *arguments],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                cwd="/",
                env=environment,
                pass_fds=(reading,),
                start_new_session=True,
            )
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        # We reap it by its id; without this, Popen would warn of a child that it thinks is running.
        process.returncode = 0
        return process.pid

    def _tell(self, line: bytes) -> None:
        if self._pid < 0:
            return
        self._unsent += line
        if not self._flush() or len(self._unsent) > _MOST_UNSENT:
            # No room for another process: the groups are kept, and the next `ensure` tries again.
            with contextlib.suppress(OSError):
                self._replace()

    def _flush(self) -> bool:
        """Sends what fits into the pipe. Returns whether there is somebody to read it."""
        try:
            while self._unsent:
                # Asked first: a user may have set SIGPIPE back to its default, which ends the process.
                if _hung_up(self._pipe):
                    return False
                del self._unsent[: os.write(self._pipe, self._unsent[: select.PIPE_BUF])]
        except BlockingIOError:
            return True
        except OSError:
            return False
        return True

    def _close_pipe(self) -> None:
        pipe, self._pipe = self._pipe, -1
        _close(pipe)
        self._unsent.clear()


def _wait(pid: int, pidfd: int, timeout: float) -> bool:
    """Waits for a child to end and reaps it. Returns whether it has."""
    deadline = time.monotonic() + timeout
    while True:
        try:
            if os.waitpid(pid, os.WNOHANG)[0]:
                return True
        except ChildProcessError:
            return True
        left = deadline - time.monotonic()
        if left <= 0:
            return False
        if pidfd >= 0:
            readable(pidfd, left)
        else:
            time.sleep(PAUSE)


def _reap(pid: int, pidfd: int) -> None:
    """Waits for a child to end, however long that takes, and reaps it."""
    with contextlib.suppress(OSError):
        if pidfd >= 0:
            os.waitid(os.P_PIDFD, pidfd, os.WEXITED)
        else:
            os.waitpid(pid, 0)
    _close(pidfd)


def _kill(pid: int) -> None:
    """Kills a child that was not reaped yet, and reaps it."""
    with contextlib.suppress(ProcessLookupError, ChildProcessError):
        if os.waitpid(pid, os.WNOHANG)[0] == 0:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


def _hung_up(descriptor: int) -> bool:
    poll = select.poll()
    poll.register(descriptor, 0)
    return bool(poll.poll(0))


def _close(*descriptors: int) -> None:
    for descriptor in descriptors:
        if descriptor >= 0:
            with contextlib.suppress(OSError):
                os.close(descriptor)
