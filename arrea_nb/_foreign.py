"""Touching objects that are the user's: numbers, names, whatever a command or an option may be.

Guarantees: nothing here raises because of what such an object does, be it in its `__repr__`, its `__class__`
or its `__getattr__`, and be it SystemExit. What is meant for the thread and not for the object passes: the
stop button's KeyboardInterrupt, and the exception that stops a callable. Every str is exactly a str.
"""

from __future__ import annotations

import math
import reprlib
import threading
import time
from numbers import Integral, Real
from typing import Any

REPR_SECONDS = 0.25
"""So long may the reprs of one batch's arguments take, all together. In seconds."""
_MOST = 40  # characters of one repr
_QUICK = frozenset({int, float, complex, bool, str, bytes, type(None)})

# Of any type, whatever its metaclass has by these names.
_type_name = type.__dict__["__name__"].__get__
_type_module = type.__dict__["__module__"].__get__
_mro = type.__dict__["__mro__"].__get__
_dict = type.__dict__["__dict__"].__get__


def must_pass(raised: BaseException) -> bool:
    """Whether this was not raised by the object that was touched, but in the thread that touched it."""
    if isinstance(raised, KeyboardInterrupt):
        return threading.current_thread() is threading.main_thread()
    if isinstance(raised, Exception):
        return False
    module = _type_module(type(raised))
    return issubclass(type(module), str) and exact(module).startswith("arrea_nb.")


def exact(text: Any) -> str:
    """The same text as a plain str, whatever methods its own class has."""
    return str.__str__(text)


def type_name(value: object) -> str:
    """The name of its type."""
    return exact(_type_name(type(value)))


def plain_number(value: object) -> int | float | None:
    """An int or a float of the same value, also of numpy's or a Fraction; None for a bool and for others."""
    kind = type(value)
    if kind is int or kind is float:
        return value  # type: ignore[return-value]
    if issubclass(kind, bool):
        return None
    try:
        if issubclass(kind, Integral):
            return int(value)  # type: ignore[call-overload, no-any-return]
        if issubclass(kind, Real):
            return as_float(value)
    except BaseException as raised:
        if must_pass(raised):
            raise
    return None


def type_attribute(value: object, name: str) -> Any:
    """What its type has by this name; None if nothing. Neither it nor its type is asked."""
    for base in _mro(type(value)):
        if name in (there := _dict(base)):
            return there[name]
    return None


def as_float(value: Any) -> float:
    """What `float` makes of a number; one that is too large is infinite."""
    try:
        return float(value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf


class Reprs(reprlib.Repr):
    """Short reprs of what may take long to show, which share a time: once it is spent, types are named.

    One repr that takes long is waited for; those that come after it pay for it.

    Args:
        seconds: So long may all of them take together.
    """

    def __init__(self, seconds: float = math.inf) -> None:
        super().__init__()
        self.maxstring = self.maxother = _MOST
        self._left = seconds
        self._until = math.inf  # when what is being shown has used up the rest, on the monotonic clock

    def of(self, value: object) -> str:
        """A repr of bounded length, or its type where there is no time for it or it raises."""
        began = time.monotonic()
        self._until = began + self._left
        try:
            return exact(self.repr(value))
        except BaseException as raised:
            if must_pass(raised):
                raise
            return _only_type(value)
        finally:
            self._left -= time.monotonic() - began

    def repr1(self, x: Any, level: int) -> str:
        """The repr of a value, or of one inside another."""
        if type(x) not in _QUICK and time.monotonic() >= self._until:
            return _only_type(x)
        return super().repr1(x, level)


def _only_type(value: object) -> str:
    return f"<{type_name(value)[: _MOST - 2]}>"


def short_repr(value: object) -> str:
    """A repr of bounded length that never raises."""
    return Reprs().of(value)
