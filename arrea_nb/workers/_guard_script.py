"""What the guard process runs: waits for the kernel's end, kills what is left of its jobs, removes the spool.

Guarantees: it never kills a group whose id was taken by others meanwhile, and does not stop before nobody
carries the kernel's id. It is run by its path with `-I -S`: it imports nothing but the standard library, and
little of that, since it begins while a kernel's first jobs do. The kernel imports from here what both have to
know of processes.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
import time

KERNEL_ID = "ARREA_KERNEL_ID"
"""The variable in the environment of every shell job that says which kernel it belongs to."""
# By name: Windows, where no guard is ever started, has not all of them.
IGNORED = [
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGQUIT") if hasattr(signal, name)
]
"""What is sent to a kernel's group or terminal, and does not end the guard."""
PAUSE = 0.02
"""Between two looks at a process, in seconds: what was killed takes a moment to go."""
# How long the guard goes on killing what keeps coming back, in seconds.
_SWEEP_LIMIT = 10.0


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


def readable(descriptor: int, timeout: float = 0.0) -> bool:
    """Whether there is something to read from it, or to hear of its end, within `timeout` seconds."""
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    return bool(poll.poll(timeout * 1000))


def _main(kernel_id: str, spool_directory: str, kernel: int, pipe: int) -> None:
    for number in IGNORED:
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
            time.sleep(PAUSE)


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
