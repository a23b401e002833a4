"""The Leader's one lock, as a critical section that nothing can tear.

Four things can break into Python code that holds a lock, and each is provided for:

- An interrupt on the main thread: while the section lasts SIGINT is only noted, and raised at its end.
- Any other signal that has a handler in Python: the same.
- A finaliser that the garbage collector runs inside the section, or just before it: `nested` says so there.
  An order that needs no answer is left in `later`, which the owner carries out before it lets go; who needs
  an answer gets an error, and never waits while its own thread holds the lock.
- The exception that stops a callable: its thread takes it back on entry and is given it again at the end
  (`Shelter`, which the worker threads are).

Use: `with section.hold, section.lock, section:`. What holds signals back comes first, in Python; then the
RLock's own `__enter__`, which is C and cannot be torn; then the inside.
"""

from __future__ import annotations

import contextlib
import logging
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from queue import Empty, SimpleQueue
from types import FrameType, TracebackType
from typing import Any, ClassVar, TypeVar

_log = logging.getLogger("arrea_nb")
T = TypeVar("T")
_LOOK_UP = 0.5  # seconds
_get_ident = threading.get_ident
# Signals for which a program may have a handler in Python; SIGINT is held by HoldInterrupts.
_SIGNALS = tuple(
    getattr(signal, name)
    for name in ("SIGALRM", "SIGVTALRM", "SIGPROF", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2", "SIGCHLD")
    if hasattr(signal, name)
)
_BUSY = (
    "called by a finaliser or a signal handler that broke into arrea_nb at work, where nothing can wait; "
    "have the handler set a flag or start a thread, and call it from there"
)


class Stop(BaseException):
    """The base of what stops a callable: nobody should catch it."""


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
                cls._before = None  # not ours to swap: set in C, or ignored anyway
            else:
                cls.noted = False
                cls._before = before
                try:
                    # An interrupt before this call raises here, and nothing has happened yet.
                    signal.signal(signal.SIGINT, _note)
                except BaseException:  # another signal's handler ran just now, and raised
                    cls._before = None
                    signal.signal(signal.SIGINT, before)
                    raise
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

    @classmethod
    @contextlib.contextmanager
    def ringing(cls, bell: SimpleQueue[Any]) -> Iterator[None]:
        """An interrupt that is noted meanwhile rings `bell`, which the main thread waits for."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        cls.bell = bell
        try:
            yield
        finally:
            cls.bell = None

    @classmethod
    def came(cls) -> bool:
        """Whether the stop button was pressed in what is held here."""
        return cls.noted and threading.current_thread() is threading.main_thread()


def take_from(queue: SimpleQueue[T], timeout: float | None) -> T:
    """`queue.get(timeout=timeout)`, which an interrupt always ends.

    A signal that arrives on the main thread between Python's last look and the moment the thread sleeps does
    not wake it (measured: an interrupt came 30 s late). So the main thread, and no other, looks up now and
    then.

    Raises:
        Empty: If nothing came by then.
    """
    if timeout is not None:
        timeout = min(max(0.0, timeout), threading.TIMEOUT_MAX)
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


class _Inside(threading.local):
    depth = 0  # 1 from just before the lock is taken until it was let go of


_inside = _Inside()


class _Hold:
    """What is entered before the lock: signals wait from here on, and what breaks in can know it."""

    def __init__(self, section: Section) -> None:
        self._section = section
        self._interrupts = HoldInterrupts()

    def __enter__(self) -> None:
        if self._section.nested:
            raise RuntimeError(_BUSY)
        if _get_ident() == threading.main_thread().ident:
            # The others first: while they are held nothing but an interrupt can raise.
            _Others.depth += 1
            try:
                _Others.hold()
                self._interrupts.__enter__()
            except BaseException:  # a handler of the user's ran just before its turn, and raised
                _Others.let_come()
                raise
        # Last of all, and no call after it: between this and the lock nothing can raise.
        _inside.depth = 1

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        _inside.depth = 0  # again, for one that was stopped on its way in
        if _get_ident() == threading.main_thread().ident:
            try:
                self._interrupts.__exit__(kind, error, trace)
            finally:
                _Others.let_come()


class _Others:
    """The other signals with a handler in Python: held back as SIGINT is, for the main thread alone.

    A handler may break in between two steps of this, enter and leave a section of its own, of whichever
    engine, and raise. So there is one note of what was replaced, of all sections: what one of them could not
    put back the next one does.
    """

    depth = 0
    held: ClassVar[dict[signal.Signals, Any]] = {}  # the user's handlers
    noted: ClassVar[list[int]] = []

    @classmethod
    def hold(cls) -> None:
        for number in _SIGNALS:
            handler = signal.getsignal(number)
            if callable(handler) and handler is not _note_other:
                cls.held[number] = handler
                signal.signal(number, _note_other)

    @classmethod
    def let_come(cls) -> None:
        cls.depth = max(0, cls.depth - 1)
        if cls.depth:
            return
        try:
            cls.put_back()
        finally:
            noted = cls.noted[:]
            del cls.noted[: len(noted)]
            _raise_all(noted)

    @classmethod
    def put_back(cls) -> None:
        held = cls.held
        try:
            while held:
                number, handler = next(iter(held.items()))
                signal.signal(number, handler)
                held.pop(number, None)
        except BaseException:  # it came at once, and raised
            cls.put_back()
            raise

    @classmethod
    def forget(cls) -> None:
        """In a forked child."""
        cls.depth = 0
        cls.noted.clear()
        cls.put_back()


def _note_other(number: int, frame: FrameType | None) -> None:  # noqa: ARG001 - a signal handler's arguments
    if number not in _Others.noted:
        _Others.noted.append(number)


def _raise_all(numbers: list[int]) -> None:
    """Has each handler run, also when one before it raises."""
    for at, number in enumerate(numbers):
        try:
            signal.raise_signal(number)
        except BaseException:
            _raise_all(numbers[at + 1 :])
            raise


class Section:
    """The inside of the lock: one for each engine."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.hold = _Hold(self)
        self.owner = 0  # the thread that is inside
        # Orders of finalisers that found the section entered by their own thread.
        self.later: deque[Callable[[], object]] = deque()
        # The workers that wait for the lock to report: a hint, written outside it.
        self.queue: set[Shelter] = set()
        # From a thread's id to what must be held back there; written by worker threads for themselves.
        self.shelters: dict[int, Shelter] = {}

    @property
    def nested(self) -> bool:
        """Whether what asks has broken into a section of its own thread, of this engine or of another."""
        return self.owner == _get_ident() or _inside.depth > 0

    def forget(self) -> None:
        """In a forked child, whose parent may have been inside in another thread."""
        self.lock._at_fork_reinit()  # type: ignore[attr-defined]  # noqa: SLF001 - as `threading` does it; others hold the lock too
        self.hold = _Hold(self)
        self.owner = 0
        self.later.clear()
        self.queue.clear()
        self.shelters.clear()

    def order(self, order: Callable[[], object]) -> None:
        """Carries out a verb without a result; from inside a section, when that ends."""
        if self.nested:
            self.later.append(order)
            return
        with self.hold, self.lock, self:
            order()

    def __enter__(self) -> None:
        mine = _get_ident()
        shelter = self.shelters.get(mine)
        if shelter is not None:
            shelter.take_back()
        self.owner = mine  # last of all: what a shelter takes back could have been raised until here

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.drain()
        shelter = self.shelters.get(self.owner)
        try:
            if shelter is not None:
                shelter.give_again()  # which may raise it here and now
        finally:
            self.owner = 0
            _inside.depth = (
                0  # before the lock is free: from then on anybody can have a callable stopped here
            )

    def drain(self) -> None:
        """Carries out what was left in `later`; an order that fails is logged, and the section goes on."""
        while self.later:
            try:
                self.later.popleft()()
            except Exception:  # noqa: BLE001 - a bug in an order must not leave the section entered
                _log.exception("an order that was put off failed of a bug")


def forget_inside() -> None:
    """In a forked child, which may have been forked by a thread that was inside."""
    _inside.depth = 0
    _Others.forget()


class Shelter:
    """What a worker thread does to keep its stop exception out of a section."""

    def take_back(self) -> None:
        """Takes a pending exception back."""

    def give_again(self) -> None:
        """Lets the exception that was taken back come again."""
