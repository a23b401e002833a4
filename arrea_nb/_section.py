"""The Leader's one lock, as a critical section that neither an interrupt nor a finaliser can tear.

Three things can break into Python code that holds a lock, and each is provided for:

- An interrupt on the main thread: while the section lasts SIGINT is only noted, and raised at its end.
- A finaliser or signal handler that runs inside the section, in the thread that owns it: it finds
  `entered` set and leaves its order in `later`, which the owner carries out before it lets go.
- The exception that stops a callable: its thread takes it back on entry and is given it again at the end
  (`shelter`, set by the worker threads).

Use: `with lock, section:`. The RLock's own `__enter__` is C and cannot be torn; ours comes second.
"""

from __future__ import annotations

import logging
import signal
import threading
import time
from collections import deque
from collections.abc import Callable
from queue import Empty, SimpleQueue
from types import FrameType, TracebackType
from typing import Any, TypeVar

_log = logging.getLogger("arrea_nb")
T = TypeVar("T")
_LOOK_UP = 0.5  # seconds
_get_ident = threading.get_ident


class HoldInterrupts:
    """Holds SIGINT back on the main thread; the outermost one raises it at its end."""

    depth = 0  # of the main thread, the only one that ever writes it
    noted = False
    # Rung by an interrupt that is noted: what the main thread waits for meanwhile.
    bell: SimpleQueue[Any] | None = None
    _before: Any = None

    @classmethod
    def forget(cls) -> None:
        """In a forked child, whose parent's main thread may have held interrupts back."""
        before, cls._before = cls._before, None
        cls.depth, cls.noted, cls.bell = 0, False, None
        if before is not None:
            signal.signal(signal.SIGINT, before)

    def __enter__(self) -> None:
        cls = HoldInterrupts
        if _get_ident() != threading.main_thread().ident:
            return
        if cls.depth == 0:
            before = signal.getsignal(signal.SIGINT)
            if before is None or before is signal.SIG_IGN:
                before = None  # not ours to swap: set in C, or ignored anyway
            else:
                cls.noted = False
                # An interrupt before this call raises here, and nothing has happened yet.
                signal.signal(signal.SIGINT, _note)
            cls._before = before
        cls.depth += 1

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        cls = HoldInterrupts
        if _get_ident() != threading.main_thread().ident:
            return
        cls.depth -= 1
        if cls.depth == 0 and cls._before is not None:
            before, cls._before = cls._before, None
            noted, cls.noted = cls.noted, False
            # From here on interrupts raise again; `noted` is known to this frame alone.
            if noted:
                try:
                    signal.signal(signal.SIGINT, before)
                finally:
                    signal.raise_signal(signal.SIGINT)
            else:
                signal.signal(signal.SIGINT, before)
                if cls.noted:  # it came between reading and restoring
                    cls.noted = False
                    signal.raise_signal(signal.SIGINT)


def take_from(queue: SimpleQueue[T], timeout: float | None) -> T:
    """`queue.get(timeout=timeout)`, which an interrupt always ends.

    A signal that arrives on the main thread between Python's last look and the moment the thread sleeps does
    not wake it (measured: an interrupt came 30 s late). So the main thread, and no other, looks up now and
    then.

    Raises:
        Empty: If nothing came by then.
    """
    if timeout is not None:
        timeout = min(timeout, threading.TIMEOUT_MAX)
    if _get_ident() != threading.main_thread().ident:
        return queue.get(timeout=timeout)
    deadline = None if timeout is None else time.monotonic() + timeout
    while True:
        rest = _LOOK_UP if deadline is None else min(_LOOK_UP, max(0.0, deadline - time.monotonic()))
        try:
            return queue.get(timeout=rest)
        except Empty:
            if deadline is not None and time.monotonic() >= deadline:
                raise


def _note(number: int, frame: FrameType | None) -> None:  # noqa: ARG001 - a signal handler's arguments
    HoldInterrupts.noted = True
    bell = HoldInterrupts.bell
    if bell is not None:
        bell.put(None)


class Section:
    """The inside of the lock: one for each Leader, entered after its RLock."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.entered = 0
        # Orders of finalisers and signal handlers that found the section entered by their own thread.
        self.later: deque[Callable[[], object]] = deque()
        # The workers that wait for the lock to report: a hint, written outside it.
        self.queue: set[Shelter] = set()
        # From a thread's id to what must be held back there; written by worker threads for themselves.
        self.shelters: dict[int, Shelter] = {}
        self._interrupts = HoldInterrupts()

    def forget(self) -> None:
        """In a forked child, whose parent may have been inside in another thread."""
        self.lock._at_fork_reinit()  # type: ignore[attr-defined]  # noqa: SLF001 - as `threading` does it; others hold the lock too
        self.entered = 0
        self.later.clear()
        self.queue.clear()
        self.shelters.clear()

    @property
    def mine(self) -> bool:
        """Whether this thread is inside already: then only `later` may be used. Ask while holding `lock`."""
        return self.entered > 0

    def __enter__(self) -> None:
        self._interrupts.__enter__()
        shelter = self.shelters.get(_get_ident())
        if shelter is not None:
            shelter.take_back()
        self.entered += 1

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.drain()
        self.entered -= 1
        shelter = self.shelters.get(_get_ident())
        if shelter is not None:
            shelter.give_again()
        self._interrupts.__exit__(kind, error, trace)

    def drain(self) -> None:
        """Carries out what was left in `later`; an order that fails is logged, and the section goes on."""
        while self.later:
            try:
                self.later.popleft()()
            except Exception:  # noqa: BLE001 - a bug in an order must not leave the section entered
                _log.exception("an order that was put off failed of a bug")


class Shelter:
    """What a worker thread does to keep its stop exception out of a section."""

    def take_back(self) -> None:
        """Takes a pending exception back."""

    def give_again(self) -> None:
        """Lets the exception that was taken back come again."""
