"""One process in a session of its own: spawned, watched, signalled, what it left behind ended, reaped.

Guarantees: it is reaped by its pid, once and never by Popen, so that the pid is nobody else's before its
group is dealt with: learn of its end (pidfd, `waitid(WNOWAIT)`), kill the rest of the group while the
zombie still holds its id, `wait4`, set `popen.returncode`. Who left for another session is reached through
the marks, variables that the process and its descendants carry in their environment. Only `exit_status` and
`reap` wait.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from typing import Any

from arrea_nb.workers._guard_script import processes_with

_LOWEST_PRIORITY = 19
# A flag of a process in /proc, set from its fork to its exec. Popen returns after either that or its end.
_PF_FORKNOEXEC = 0x40


class Process:
    """One process, from its spawn until it was reaped. For one thread.

    Args:
        argv: The program and its arguments.
        outputs: What its stdout and stderr are; the caller closes them.
        cwd: Where it runs. None: here.
        env: Its environment, without the marks.
        marks: Variables that tell it and its descendants from all others.

    Attributes:
        pid: Its id, and that of its session and group.
        pidfd: Readable once it has ended; -1 if it was gone at once, since something else waited for it.
        reaped: Whether the pid may be another's by now.

    Raises:
        OSError: If it could not be spawned, or not be watched; then it is not left running.
        ValueError: If the system cannot take such arguments.
        MemoryError: If there is none left for it.
    """

    def __init__(
        self,
        argv: Sequence[str],
        outputs: tuple[int, int],
        *,
        cwd: str | None,
        env: Mapping[bytes, bytes],
        marks: dict[str, str],
    ) -> None:
        self.reaped = False
        self.pidfd = -1
        self._marks = marks
        full = dict(env)
        for name, value in marks.items():
            full[name.encode()] = value.encode()
        popen = _spawn(argv, outputs, cwd, full)
        if _was_killed_unborn(popen):
            popen = _spawn(argv, outputs, cwd, full)
        self._popen = popen
        self.pid = popen.pid
        try:
            self.pidfd = os.pidfd_open(self.pid)
        except ProcessLookupError:
            return  # it has ended, and something else waited for it
        except BaseException:
            self.kill()
            with contextlib.suppress(ChildProcessError):
                self.reap()
            raise

    def signal(self, number: signal.Signals, *, watch: bool = False) -> list[int]:
        """Sends it to the group, and to whoever carries the marks.

        Returns:
            A pidfd of each of the latter, if they are to be watched.
        """
        watched = []
        for pid in processes_with(self._marks):
            if watch and pid != self.pid:
                with contextlib.suppress(OSError):
                    watched.append(os.pidfd_open(pid))
            try:
                if os.getpgid(pid) != self.pid:
                    os.kill(pid, number)
            except (ProcessLookupError, PermissionError):  # pragma: no cover - it ended in between
                continue
        with contextlib.suppress(ProcessLookupError, PermissionError):  # it may run as another user now
            os.killpg(self.pid, number)
        return watched

    def exit_status(self) -> Any:
        """Waits for its end and leaves it to be reaped. None: something else waited for it, and took it."""
        try:
            return os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOWAIT)
        except ChildProcessError:
            self._let_go()
            return None

    def kill_the_rest(self) -> bool:
        """Kills what is left of the group, once it has ended itself. Returns whether there was anything."""
        try:
            # The zombie is a member of its group and hides whether there are others. It can be told apart
            # by its priority: give it the lowest, and ask for the highest in the group.
            os.setpriority(os.PRIO_PROCESS, self.pid, _LOWEST_PRIORITY)
            left = os.getpriority(os.PRIO_PGRP, self.pid) < _LOWEST_PRIORITY
        except OSError:  # pragma: no cover - it ran as another user
            left = False
        try:
            os.killpg(self.pid, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):  # pragma: no cover - macOS says so of a lone zombie
            return left
        return left

    def kill(self) -> None:
        """Kills the group, whatever state it is in."""
        with contextlib.suppress(OSError):
            os.killpg(self.pid, signal.SIGKILL)

    def reap(self) -> Any:
        """Waits for its end and takes it away. Returns what it and its children used, as `getrusage` has it.

        Raises:
            ChildProcessError: If something else waited for it.
        """
        try:
            return os.wait4(self.pid, 0)[2]
        finally:
            self._let_go()

    def close(self) -> None:
        """Closes its pidfd."""
        if self.pidfd >= 0:
            os.close(self.pidfd)
            self.pidfd = -1

    def _let_go(self) -> None:
        self.reaped = True
        self._popen.returncode = 0  # so that Popen does not wait for it as well


def _spawn(
    argv: Sequence[str], outputs: tuple[int, int], cwd: str | None, env: Mapping[bytes, bytes]
) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        argv,
        stdin=subprocess.DEVNULL,
        stdout=outputs[0],
        stderr=outputs[1],
        cwd=cwd,
        env=env,
        start_new_session=True,
    )


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
