"""One thread, asleep until the earliest of: cleanup, retry delays, callables' deadlines, ends of grace.

Guarantees: it wakes when something is due and at no other time, and ends when nothing is planned. What
is due is for `tick` to know: it does it and says when the next thing is. A thread that dies of a bug is
replaced with the next plan. Methods are called under the Leader's lock.
"""

from __future__ import annotations

import contextlib
import logging
import math
import threading
import time
from collections.abc import Callable
from queue import Empty, SimpleQueue

_log = logging.getLogger("arrea_nb")


class Timer:
    """Calls `tick` at the times planned.

    Args:
        tick: Does what is due; returns the monotonic time of the next call, or None when nothing is
            planned, upon which the thread ends. It takes the Leader's lock and calls `settle` in it.
    """

    def __init__(self, tick: Callable[[], float | None]) -> None:
        self._tick = tick
        self.next = math.inf  # when the thread will look the next time
        self._bell: SimpleQueue[None] = SimpleQueue()
        self._thread: threading.Thread | None = None

    def plan(self, when: float) -> None:
        """Sees to it that `tick` is called at the monotonic time `when`, or before."""
        alive = self._thread is not None and self._thread.is_alive()
        if alive and when >= self.next:
            return
        self.next = when
        if alive:
            self._bell.put(None)
        else:
            self._thread = threading.Thread(target=self._run, daemon=True, name="arrea-timer")
            self._thread.start()

    def settle(self, when: float | None) -> None:
        """Called by `tick` at its end, still under the lock: the next look; None ends the thread."""
        self.next = math.inf if when is None else when
        if when is None:
            self._thread = None

    def _run(self) -> None:
        try:
            when: float | None = self.next
            while when is not None:
                with contextlib.suppress(Empty):
                    self._bell.get(timeout=max(0.0, when - time.monotonic()))
                when = self._tick()
        except BaseException:
            _log.exception("the timer thread died of a bug; another takes its place")
            self._thread = None
            raise
