"""Progress: told by callables through `progress()` and `track()`, read from the output of any job.

Guarantees: `progress` and `track` outside a job do nothing, and cost nothing. Reading never fails,
whatever a job prints, and keeps at most one line of it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator
from contextvars import ContextVar
from time import monotonic
from typing import Any, Protocol, TypeVar

from arrea_nb._foreign import exact, must_pass, short_repr

T = TypeVar("T")

_INTERVAL = 0.1  # seconds between two words of a loop: a view shows no more


class Reporter(Protocol):
    """The attempt that runs here, as far as what it runs may know it."""

    def progressed(self, fraction: float | None, done: float, total: float | None, message: str) -> None: ...

    def wrote(self, stream: int, text: str) -> None: ...

    # For `_waits.py` and `_engine.py`: what it waits for, and what it executes.

    def step_aside(self, latch: Any, batch: Any) -> bool: ...

    def step_back(self, latch: Any, bell: Any) -> bool: ...

    def check(self) -> None: ...

    def adopt(self, batch: Any, engine: Any) -> None: ...


# The attempt that runs in this context. Set in a fresh copy of the batch's context for each attempt, so
# that it follows the callable into asyncio tasks and threads that take the context along.
running: ContextVar[Reporter | None] = ContextVar("arrea_nb_running", default=None)


def progress(done: float, total: float | None = None, message: str = "") -> None:
    """Tells how far the running callable is; outside a job it does nothing.

    Args:
        done: How much is done: steps out of `total`, or a fraction from 0 to 1 when `total` is None.
        total: How much there is to do. None: `done` is a fraction.
        message: A short text to show beside the bar.

    Raises:
        TypeError: If `done` or `total` is not a number.

    Example:
        >>> progress(3, 10, "epoch 3")
    """
    reporter = running.get()
    if reporter is None:
        return
    much = _number("progress: done", done)
    whole = None if total is None else _number("progress: total", total)
    fraction = _clamp(much) if whole is None else _fraction(much, whole)
    reporter.progressed(fraction, much, whole, exact(str(message)))


def track(iterable: Iterable[T], total: float | None = None) -> Iterator[T]:
    """Yields what `iterable` yields, and tells the progress of the running callable.

    It tells of the beginning, of the first item and of the end, and in between as often as a view can show
    it; what it told last is never more than what is done, also when the loop is left early.

    Args:
        iterable: What to go through.
        total: How many items there are. None: `len(iterable)`, if it has one.

    Raises:
        TypeError: If `total` is not a number.

    Example:
        >>> list(track([1, 2]))
        [1, 2]
    """
    reporter = running.get()
    if reporter is None:
        yield from iterable
        return
    size = _length(iterable) if total is None else _number("track: total", total)
    told = done = 0
    reporter.progressed(_fraction(0, size), 0, size, "")
    due = -math.inf
    for item in iterable:
        yield item
        done += 1
        # Each item asks for the time, which takes 40 ns. Asked only every so many items, as their speed
        # allows, it would be too late for the first slow ones after many quick ones (cached, say).
        now = monotonic()
        if now >= due:
            due = now + _INTERVAL
            told = done
            reporter.progressed(_fraction(done, size), done, size, "")
    if told != done:
        reporter.progressed(_fraction(done, size), done, size, "")


def _number(what: str, value: Any) -> float:
    try:
        return float(value)
    except BaseException as raised:
        if must_pass(raised):
            raise
    raise TypeError(f"{what}: expected a number, got {short_repr(value)}")


def _length(iterable: Any) -> int | None:
    try:
        return len(iterable)
    except BaseException as raised:
        if must_pass(raised):
            raise
        return None


def _clamp(fraction: float) -> float | None:
    return min(max(fraction, 0.0), 1.0) if math.isfinite(fraction) else None


def _fraction(done: float, total: float | None) -> float | None:
    return _clamp(done / total) if total else None


_PERCENT = re.compile(rb"(?<![\d.])(\d{1,3}(?:\.\d+)?)\s?%")
_TERMINAL = re.compile(rb"\x1b\]9;4;1;(\d{1,3})(?:\x07|\x1b\\|\x9c)")
_MOST_OF_A_LINE = 1024


class ProgressReader:
    """Reads one stream: a percentage on a line that is redrawn, or the terminal's sequence."""

    def __init__(self) -> None:
        self._line = b""  # what came after the last newline, its end only

    def feed(self, data: bytes) -> float | None:
        """The newest progress in `data`, as a fraction from 0 to 1; None when there is none."""
        if b"\r" not in data and b"\x1b]" not in data and not self._line:
            # The usual output has neither; what follows the last newline may still begin a redrawn line.
            self._line = data[data.rfind(b"\n") + 1 :][-_MOST_OF_A_LINE:]
            return None
        text = self._line + data
        self._line = text[text.rfind(b"\n") + 1 :][-_MOST_OF_A_LINE:]
        found = None
        for line in text.replace(b"\r\n", b"\n").split(b"\n")[-64:]:
            if b"\r" in line:
                percents = _PERCENT.findall(line[-_MOST_OF_A_LINE:])
                if percents and float(percents[-1]) <= 100:
                    found = float(percents[-1]) / 100
        terminal = _TERMINAL.findall(text)
        if terminal and int(terminal[-1]) <= 100:
            found = int(terminal[-1]) / 100
        return found
