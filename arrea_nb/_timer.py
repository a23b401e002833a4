"""One thread, asleep until the earliest of: cleanup, retry delays, callables' deadlines, ends of grace.

Guarantees: it wakes when something is due and at no other time, and ends when nothing is planned. What
is due is for `tick` to know: it does it and says when the next thing is. A bug in `tick` is logged, and it
is called again a second later. Where no thread can be started, every further plan tries again, and a thread
that has nothing else to do may stand in. Methods are called under the engine's lock.
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
# From a tick that failed of a bug to the next, in seconds.
_AFTER_A_BUG = 1.0


class Timer:
    """Calls `tick` at the times planned.

    Args:
        tick: Does what is due. It takes the engine's lock and calls `settle` in it. Does not keep its engine.
    """

    def __init__(self, tick: Callable[[], object]) -> None:
        self._tick = tick
        self.next = math.inf  # when somebody will look the next time
        self.adopted = False  # whether who looks is a thread that stands in
        self._bell: SimpleQueue[None] = SimpleQueue()
        self._thread: object | None = None  # or what stands for one

    @property
    def orphaned(self) -> bool:
        """Whether something is planned and nobody is there to look; may be asked without the lock."""
        return self.next != math.inf and self._thread is None

    def plan(self, when: float) -> None:
        """Sees to it that `tick` is called at the monotonic time `when`, or before."""
        if self._thread is not None:
            if when < self.next:
                self.next = when
                self._bell.put(None)
            return
        self.next = min(self.next, when)
        thread = self._thread = threading.Thread(target=self._run, daemon=True, name="arrea-timer")
        try:
            thread.start()
        except (RuntimeError, MemoryError) as error:
            self._thread = None
            _log.warning("the timer's thread could not be started (%s): deadlines and retries wait", error)

    def settle(self, when: float | None) -> None:
        """Called by `tick` at its end, still under the lock: the next look; None ends the thread."""
        self.next = math.inf if when is None else when
        if when is None:
            self._thread = None

    def end(self) -> None:
        """Nobody needs it any more; called without the lock, by who may not wait."""
        self._thread = None
        self.next = math.inf
        self._bell.put(None)

    def adopt(self) -> object | None:
        """Lets the calling thread look once, if there is nobody to look and something planned.

        Returns:
            What to give to `leave`; None if nobody is needed.
        """
        if not self.orphaned:
            return None
        self.adopted = True
        self._thread = object()
        return self._thread

    def leave(self, who: object) -> None:
        """The thread that stood in has looked, and goes."""
        self.adopted = False
        if self._thread is who:
            self._thread = None

    def look(self) -> None:
        """Waits until something is due and calls `tick`. Not to be called under the lock."""
        with contextlib.suppress(Empty):
            self._bell.get(timeout=min(max(0.0, self.next - time.monotonic()), threading.TIMEOUT_MAX))
        try:
            self._tick()
        except Exception:  # noqa: BLE001 - C21: a bug of ours must not end all deadlines
            _log.exception("the timer failed of a bug; it looks again in %g s", _AFTER_A_BUG)
            self.next = time.monotonic() + _AFTER_A_BUG

    def _run(self) -> None:
        mine = self._thread  # not current_thread(): callables can tamper with what that knows
        while self._thread is mine:
            self.look()
