"""How much processor and memory the running jobs use, with all their descendants.

Guarantees: looks at the processes of this machine at most once an `interval`, and only when it is asked.
Whatever vanishes meanwhile, or is not ours to look at, counts for nothing. Never called under a lock.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping

import psutil

_INTERVAL = 1.0  # seconds, at the least
_SHARE = 0.02  # of one processor, at the most, for looking


class Usage:
    """What process trees use.

    Attributes:
        of: From the number of a job to percent of one processor and bytes of memory, as last measured.
        interval: Seconds from one look to the next; longer where there are many processes.
    """

    def __init__(self) -> None:
        self.of: dict[int, tuple[int, int]] = {}
        self.interval = _INTERVAL
        self._spent: dict[tuple[int, int], tuple[float, float]] = {}  # from job and pid to clock and seconds

    def measure(self, pids: Mapping[int, int], now: float) -> set[int]:
        """Looks at the process trees of these jobs; returns the jobs of which something else is known now.

        Args:
            pids: From the number of a job to its process.
            now: The monotonic time.
        """
        before, self.of = self.of, {}
        spent: dict[tuple[int, int], tuple[float, float]] = {}
        if pids:
            begun = time.perf_counter()
            children = _children()
            for job, pid in pids.items():
                seconds, memory, age = _sum(pid, children)
                if not memory:
                    continue
                # The first time, since it began.
                at, then = self._spent.get((job, pid), (now - age, 0.0))
                spent[job, pid] = (now, seconds)
                percent = 100 * max(0.0, seconds - then) / max(now - at, 0.01)
                # In steps: what trembles by a page need not be sent.
                self.of[job] = (round(percent), round(memory, -5))
            self.interval = max(_INTERVAL, (time.perf_counter() - begun) / _SHARE)
        self._spent = spent
        return {job for job in before.keys() | self.of.keys() if before.get(job) != self.of.get(job)}


def _children() -> dict[int, list[psutil.Process]]:
    found: dict[int, list[psutil.Process]] = {}
    for process in psutil.process_iter():
        try:
            found.setdefault(process.ppid(), []).append(process)
        except psutil.Error:
            continue
    return found


def _sum(pid: int, children: Mapping[int, list[psutil.Process]]) -> tuple[float, int, float]:
    """Seconds of processor, bytes of memory, and age in seconds of a process and all that came from it."""
    seconds, memory, age = 0.0, 0, 0.0
    for process in _tree(pid, children):
        try:
            with process.oneshot():
                # The children that were waited for are in it: so the sum does not fall when one ends.
                seconds += sum(process.cpu_times()[:4])
                memory += process.memory_info().rss
                age = max(age, time.time() - process.create_time())
        except psutil.Error:
            continue
    return seconds, memory, age


def _tree(pid: int, children: Mapping[int, list[psutil.Process]]) -> Iterator[psutil.Process]:
    try:
        yield psutil.Process(pid)
    except psutil.Error:
        return
    todo = [pid]
    while todo:
        for child in children.get(todo.pop(), ()):
            yield child
            todo.append(child.pid)
