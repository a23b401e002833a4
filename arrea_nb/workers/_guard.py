r"""The process that outlives the kernel by a moment, to stop what its shell jobs left running.

    kernel: Guard ──"+123\n" "-123\n"──▶ pipe ──▶ guard: this file, run as a script
                                                   waits for the end of the pipe, or of the kernel;
                                                   kills, removes the spool, exits

Guarantees: it holds nothing of the kernel's but the pipe's reading end, whose other end nobody inherits; a
signal to the kernel's group or terminal does not reach it. It never kills a group whose id was taken by
others meanwhile. A guard that dies is replaced, and the new one is told of every group. Talking to it never
blocks. Imports nothing but the standard library, as the script is run with `-I -S`.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
import time

# The variable in the environment of every shell job that says which kernel it belongs to.
KERNEL_ID = "ARREA_KERNEL_ID"

# By name: Windows, where no guard is ever started, has not all of them.
_IGNORED = [
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGQUIT") if hasattr(signal, name)
]
# How long the guard goes on killing what keeps coming back, in seconds.
_SWEEP_LIMIT = 10.0
# Between two looks at the processes, in seconds: what was killed takes a moment to go.
_SWEEP_PAUSE = 0.02
# How long `close` waits for the sweep, in seconds.
_CLOSE_LIMIT = 3.0
# So many guards in a row, each dead within so many seconds, and no further is started for the jobs that run.
_MOST_DEATHS = 5
_SHORT_LIFE = 1.0
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
        # Of guards that died. A worker may be polling them, so their numbers must not be used again.
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
            pid, pidfd, old = self._pid, self._pidfd, self._old_pidfds
            self._flush()
            self._close_pipe()
            self._pid = self._pidfd = -1
            self._old_pidfds = []
            self._groups.clear()
        try:
            if pid >= 0 and not _wait(pid, pidfd, _CLOSE_LIMIT):
                _kill(pid)
        finally:
            _close(pidfd, *old)

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

    def _dead(self) -> bool:
        if self._pid < 0:
            return True
        if self._pidfd >= 0:
            return _readable(self._pidfd)
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
        self._pid = self._pidfd = -1

    def _spawn(self, reading: int) -> int:
        import subprocess

        environment = {name: value for name, value in os.environ.items() if name != KERNEL_ID}
        arguments = (self._kernel_id, self._spool_directory, str(os.getpid()), str(reading))
        # A child inherits what its parent's thread blocks: so it is safe before the script can ignore them.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, _IGNORED)
        try:
            process = subprocess.Popen(
                [sys.executable, "-I", "-S", os.path.abspath(__file__), *arguments],
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


def processes_with(variables: dict[str, str]) -> list[int]:
    """The processes that carry all these variables in their environment; none where there is no /proc."""
    wanted = [b"\0%s=%s\0" % (os.fsencode(name), os.fsencode(value)) for name, value in variables.items()]
    try:
        entries = os.listdir("/proc")
    except OSError:
        return []
    found = []
    for entry in entries:
        if entry.isdigit():
            environment = _environment(entry)
            if environment and all(item in environment for item in wanted):
                found.append(int(entry))
    return found


def _environment(pid: int | str) -> bytes | None:
    """The environment with a zero byte around each item; None if it cannot be read."""
    try:
        with open(f"/proc/{pid}/environ", "rb", buffering=0) as file:
            return b"\0" + (file.read() or b"")
    except OSError:
        return None


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
            _readable(pidfd, left)
        else:
            time.sleep(_SWEEP_PAUSE)


def _kill(pid: int) -> None:
    """Kills a child that was not reaped yet, and reaps it."""
    with contextlib.suppress(ProcessLookupError, ChildProcessError):
        if os.waitpid(pid, os.WNOHANG)[0] == 0:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


def _readable(descriptor: int, timeout: float = 0.0) -> bool:
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    return bool(poll.poll(timeout * 1000))


def _hung_up(descriptor: int) -> bool:
    poll = select.poll()
    poll.register(descriptor, 0)
    return bool(poll.poll(0))


def _close(*descriptors: int) -> None:
    for descriptor in descriptors:
        if descriptor >= 0:
            with contextlib.suppress(OSError):
                os.close(descriptor)


# From here on: the script.


def _main(kernel_id: str, spool_directory: str, kernel: int, pipe: int) -> None:
    for number in _IGNORED:
        signal.signal(number, signal.SIG_IGN)
    groups = _Groups()
    _await_end(pipe, kernel, groups)
    groups.kill(kernel_id)
    _sweep(kernel_id)
    _remove(spool_directory)


def _await_end(pipe: int, kernel: int, groups: _Groups) -> None:
    """Listens until the pipe ends, or the kernel does."""
    os.set_blocking(pipe, False)
    poll = select.poll()
    poll.register(pipe, select.POLLIN)
    if hasattr(os, "pidfd_open"):
        # A forked child of the kernel may hold the pipe open after it.
        try:
            poll.register(os.pidfd_open(kernel), select.POLLIN)
        except ProcessLookupError:
            kernel = -1
        except OSError:
            pass  # forbidden here: the pipe alone has to do
    alive = os.getppid() == kernel  # if not, the kernel ended before we looked, and its id may be another's
    while True:
        ready = poll.poll() if alive else []
        if any(descriptor != pipe for descriptor, _ in ready):
            alive = False
        if not groups.listen(pipe) or not alive:
            return


class _Groups:
    """The groups that the kernel told of, each with the time at which its leader started."""

    def __init__(self) -> None:
        self._started: dict[int, bytes | None] = {}
        self._unread = b""

    def listen(self, pipe: int) -> bool:
        """Reads all that is there. Returns whether more may come."""
        while True:
            try:
                data = os.read(pipe, 65536)
            except BlockingIOError:
                return True
            if not data:
                return False
            *lines, self._unread = (self._unread + data).split(b"\n")
            for line in lines:
                group = int(line[1:])
                if line[:1] == b"+":
                    self._started[group] = _start_time(group)
                else:
                    self._started.pop(group, None)

    def kill(self, kernel_id: str) -> None:
        for group, started in self._started.items():
            if self._is_ours(group, started, kernel_id):
                with contextlib.suppress(OSError):
                    os.killpg(group, signal.SIGKILL)

    def _is_ours(self, group: int, started: bytes | None, kernel_id: str) -> bool:
        """Whether the group is still the one that was told of. Its id can have been given to others since."""
        now = _start_time(group)
        if now is not None and started is not None:
            return now == started
        if now is None and started is not None:
            return True  # the leader has ended; while a member lives its id is nobody else's
        if not sys.platform.startswith("linux"):
            return True
        # The leader had ended before we heard of it: ask the members.
        wanted = b"\0%s=%s\0" % (KERNEL_ID.encode(), os.fsencode(kernel_id))
        return any(wanted in (_environment(pid) or wanted) for pid in _members(group))


def _members(group: int) -> list[int]:
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            with contextlib.suppress(OSError):
                if os.getpgid(int(entry)) == group:
                    found.append(int(entry))
    return found


def _start_time(pid: int) -> bytes | None:
    try:
        with open(f"/proc/{pid}/stat", "rb", buffering=0) as file:
            # The name, in parentheses, may contain anything; the start time is the 20th field after it.
            return file.read().rpartition(b")")[2].split()[19]
    except (OSError, IndexError):
        return None


def _sweep(kernel_id: str) -> None:
    """Kills whoever carries the kernel's id, until twice in a row there is nobody."""
    deadline = time.monotonic() + _SWEEP_LIMIT
    clear = 0
    while clear < 2 and time.monotonic() < deadline:
        found = [pid for pid in processes_with({KERNEL_ID: kernel_id}) if pid != os.getpid()]
        for pid in found:
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        clear = 0 if found else clear + 1
        if clear < 2:
            time.sleep(_SWEEP_PAUSE)


def _remove(directory: str) -> None:
    """Removes the spool, which is flat; without shutil, whose imports would double our start-up."""
    if os.path.islink(directory):
        return
    with contextlib.suppress(OSError):
        for name in os.listdir(directory):
            with contextlib.suppress(OSError):
                os.unlink(os.path.join(directory, name))
        os.rmdir(directory)


if __name__ == "__main__":
    _main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
