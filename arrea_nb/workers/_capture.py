"""Stdout, stderr and `input` that know which job is printing.

In place of each stands a proxy that asks `_progress.running`: in an attempt what is written goes to that
attempt, and `input()` raises; everywhere else the proxy is the original.

Guarantees: what is written outside a job passes unchanged, through whatever others put before or behind the
proxy. What others patch onto it (IPython replaces `write` for the length of a cell) sees what is written
outside jobs only. `install` and `uninstall` can be repeated in any order; what cannot be taken out because
somebody else holds it passes everything on.
"""

from __future__ import annotations

import builtins
import codecs
import getpass
import io
import sys
from collections.abc import Callable, Iterable
from contextvars import ContextVar
from typing import Any

from arrea_nb._progress import Reporter, running

_NAMES = ("stdout", "stderr")
_installed = False


def install() -> None:
    """Puts the proxies in place where they are not. Called again, it looks whether they still are."""
    global _installed  # noqa: PLW0603 - there is one sys.stdout
    _installed = True
    for stream, name in enumerate(_NAMES):
        there = getattr(sys, name)
        if there is not None and not isinstance(there, _Stream):
            setattr(sys, name, _Stream(there, stream))
    for module, name in ((builtins, "input"), (getpass, "getpass")):
        there = getattr(module, name)
        if not isinstance(there, _Question):
            setattr(module, name, _Question(there, name))


def look_again() -> None:
    """Does what `install` does, if the proxies are installed: ipykernel sets `input` anew for each cell."""
    if _installed:
        install()


def uninstall() -> None:
    """Takes out the proxies that nobody has replaced; those that somebody holds pass everything on."""
    global _installed  # noqa: PLW0603 - as above
    _installed = False
    for module, name in ((sys, "stdout"), (sys, "stderr"), (builtins, "input"), (getpass, "getpass")):
        there = getattr(module, name)
        while isinstance(there, _Stream | _Question):
            there = there.__wrapped__
            setattr(module, name, there)


def _attempt() -> Reporter | None:
    return running.get() if _installed else None


class _Stream:
    """In place of sys.stdout or sys.stderr. Attributes are read from the original, but never set on it."""

    def __init__(self, wrapped: Any, stream: int) -> None:
        self.__wrapped__ = wrapped
        self._stream = stream
        # What somebody set as our `write`; None: the original's.
        self._patch: Callable[[str], Any] | None = None

    def __repr__(self) -> str:
        return f"<{_NAMES[self._stream]} of arrea_nb, over {self.__wrapped__!r}>"

    def __getattr__(self, name: str) -> Any:
        if name == "__wrapped__":
            raise AttributeError(name)  # a copy in the making
        return getattr(self.__wrapped__, name)

    # A property, and not a method that a patch would hide: what a job writes must not pass through the patch
    # of the cell that happens to run. Who patches calls what was here before, and puts that back in the end.
    @property
    def write(self) -> Callable[[str], Any]:
        """Writes to the attempt that runs here, else to the original."""
        return _Write(self, self._patch)

    @write.setter
    def write(self, value: Callable[[str], Any]) -> None:
        self._patch = value.patch if isinstance(value, _Write) and value.proxy is self else value

    def writelines(self, lines: Iterable[str]) -> None:
        """Writes each of them."""
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        """Nothing in an attempt, which buffers nothing."""
        if _attempt() is None:
            self.__wrapped__.flush()

    def isatty(self) -> bool:
        """No attempt writes to a terminal."""
        return _attempt() is None and bool(self.__wrapped__.isatty())

    def fileno(self) -> int:
        """The original's; an attempt has none."""
        if _attempt() is not None:
            raise io.UnsupportedOperation(
                f"sys.{_NAMES[self._stream]} of a job has no file descriptor; "
                "have a subprocess write to a pipe, and print what it wrote"
            )
        number: int = self.__wrapped__.fileno()
        return number

    def close(self) -> None:
        """Closes the original, but not from an attempt."""
        if _attempt() is None:
            self.__wrapped__.close()

    def writable(self) -> bool:
        """Always, in an attempt."""
        return _attempt() is not None or bool(self.__wrapped__.writable())

    @property
    def buffer(self) -> Any:
        """Takes bytes."""
        reporter = _attempt()
        return self.__wrapped__.buffer if reporter is None else _Bytes(reporter, self._stream)


# `isinstance(sys.stdout, io.TextIOBase)` stays true, without a base class whose finaliser closes the stream.
io.TextIOBase.register(_Stream)


class _Write:
    """The `write` of a proxy as it was when it was read: with the patch that was there, and no later one."""

    __slots__ = ("patch", "proxy")

    def __init__(self, proxy: _Stream, patch: Callable[[str], Any] | None) -> None:
        self.proxy = proxy
        self.patch = patch

    def __call__(self, text: str, /) -> Any:
        reporter = _attempt()
        if reporter is None:
            return (self.patch or self.proxy.__wrapped__.write)(text)
        if not isinstance(text, str):
            raise TypeError(f"write() argument must be str, not {type(text).__name__}")
        if text:
            reporter.wrote(self.proxy._stream, text)  # noqa: SLF001 - one thing in two classes
        return len(text)


# The decoders of the attempt that runs in this context: characters may be written a byte at a time.
_decoders: ContextVar[tuple[Reporter, list[codecs.IncrementalDecoder]] | None] = ContextVar(
    "arrea_nb_decoders", default=None
)


class _Bytes(io.RawIOBase):
    """The `buffer` of a proxy in an attempt."""

    def __init__(self, reporter: Reporter, stream: int) -> None:
        self._reporter = reporter
        self._stream = stream

    def writable(self) -> bool:
        return True

    def write(self, data: Any, /) -> int:
        given = bytes(memoryview(data))
        known = _decoders.get()
        if known is None or known[0] is not self._reporter:
            make = codecs.getincrementaldecoder("utf-8")
            known = (self._reporter, [make("replace") for _ in _NAMES])
            _decoders.set(known)
        text = known[1][self._stream].decode(given)
        if text:
            self._reporter.wrote(self._stream, text)
        return len(given)


class _Question:
    """In place of `input` or `getpass`: nobody can be asked in a job."""

    def __init__(self, wrapped: Callable[..., str], name: str) -> None:
        self.__wrapped__ = wrapped
        self.__name__ = name
        self.__doc__ = wrapped.__doc__

    def __repr__(self) -> str:
        return f"<{self.__name__} of arrea_nb, over {self.__wrapped__!r}>"

    def __call__(self, *args: Any, **kwargs: Any) -> str:
        if _attempt() is not None:
            raise RuntimeError(
                f"{self.__name__}() cannot be asked for in a job; "
                "ask before the jobs start, and give them the answer as an argument"
            )
        return self.__wrapped__(*args, **kwargs)
