"""Progress: told by callables through `progress()` and `track()`, read from the output of any job.

Guarantees: `progress` and `track` outside a job do nothing, and cost nothing. Reading never fails,
whatever a job prints, and keeps at most one line of it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Sized
from contextvars import ContextVar
from typing import Protocol, TypeVar

T = TypeVar("T")


class Reporter(Protocol):
    """The attempt that runs here, as far as what it runs may know it."""

    def progressed(self, fraction: float | None, done: float, total: float | None, message: str) -> None: ...

    def wrote(self, stream: int, text: str) -> None: ...


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
    for name, value in (("done", done), ("total", total)):
        if value is None and name == "total":
            continue
        try:
            float(value)  # type: ignore[arg-type]
        except (TypeError, ValueError):
            raise TypeError(f"progress: {name}: expected a number, got {value!r}") from None
    if total is None:
        reporter.progressed(_clamp(float(done)), float(done), None, str(message))
    else:
        reporter.progressed(_fraction(float(done), float(total)), float(done), float(total), str(message))


def track(iterable: Iterable[T], total: float | None = None) -> Iterator[T]:
    """Yields what `iterable` yields, and tells the progress of the running callable.

    Args:
        iterable: What to go through.
        total: How many items there are. None: `len(iterable)`, if it has one.

    Example:
        >>> list(track([1, 2]))
        [1, 2]
    """
    reporter = running.get()
    if reporter is None:
        yield from iterable
        return
    if total is None and isinstance(iterable, Sized):
        total = len(iterable)
    for done, item in enumerate(iterable):
        reporter.progressed(_fraction(done, total), done, total, "")
        yield item
        reporter.progressed(_fraction(done + 1, total), done + 1, total, "")


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
