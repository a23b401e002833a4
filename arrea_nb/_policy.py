"""What happens after a job fails: continue, stop, abort, retry.

Guarantees: a `Policy` never changes and is checked when it is made. Everything here is pure: a callable of
the user's is asked by the worker (`workers/_python.py`), never under a lock.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal, NamedTuple

from arrea_nb._foreign import as_float, plain_number, short_repr

Step = Literal["continue", "stop", "abort", "retry"]
STEPS: tuple[Step, ...] = ("continue", "stop", "abort")
ANSWERS: tuple[Step, ...] = (*STEPS, "retry")
"""What a callable may say."""


class Decision(NamedTuple):
    """What to do after a failure: the step, and for a retry the seconds until it is due."""

    step: Step
    delay: float = 0.0


@dataclass(frozen=True)
class Policy:
    """What happens after a job of a batch fails or times out.

    Attributes:
        on_error: `"continue"` (the others go on), `"stop"` (nothing new starts, running jobs finish, the
            rest are skipped), `"abort"` (running jobs are cancelled too), or a callable
            `f(error, attempt, job)` that is asked after each failure and returns one of these or
            `"retry"`; with a callable, `retries` is not looked at.
        retries: How often a failed job is tried again, at the most.
        retry_delay: Seconds from the first failure to the next attempt.
        backoff: What the delay is multiplied with after each further failure.
        max_delay: The longest delay, in seconds.

    Raises:
        TypeError: For a value of the wrong type.
        ValueError: For a value out of its range.

    Example:
        >>> Policy(on_error="stop", retries=2).plain(1)
        Decision(step='retry', delay=1.0)
    """

    on_error: str | Callable[[Exception, int, Any], str] = "continue"
    retries: int = 0
    retry_delay: float = 1.0
    backoff: float = 2.0
    max_delay: float = 60.0

    def __post_init__(self) -> None:
        if not callable(self.on_error) and self.on_error not in STEPS:
            raise ValueError(
                f"policy.on_error: expected one of {', '.join(STEPS)} or a callable, got {self.on_error!r}"
            )
        retries = plain_number(self.retries)
        if not isinstance(retries, int):
            raise TypeError(f"policy.retries: expected a whole number, got {short_repr(self.retries)}")
        if retries < 0:
            raise ValueError(f"policy.retries: expected 0 or more, got {retries}")
        object.__setattr__(self, "retries", retries)
        for name, least in (("retry_delay", 0.0), ("backoff", 1.0), ("max_delay", 0.0)):
            value = plain_number(getattr(self, name))
            if value is None:
                raise TypeError(f"policy.{name}: expected a number, got {short_repr(getattr(self, name))}")
            if not math.isfinite(as_float(value)) or value < least:
                raise ValueError(
                    f"policy.{name}: expected a finite number of at least {least:g}, got {value}"
                )
            object.__setattr__(self, name, value)

    @classmethod
    def of(cls, value: Policy | Mapping[str, Any] | None) -> Policy:
        """Takes a Policy, a mapping with the same keys, or None (the default policy)."""
        if value is None:
            return _DEFAULT
        if isinstance(value, Policy):
            return value
        if not isinstance(value, Mapping):
            raise TypeError(f"policy: expected a Policy or a mapping, got {type(value).__name__}")
        known = [field.name for field in fields(cls)]
        unknown = [key for key in value if key not in known]
        if unknown:
            raise TypeError(f"policy: expected keys among {', '.join(known)}, got {unknown[0]!r}")
        return cls(**value)

    @property
    def asks(self) -> bool:
        """Whether a callable of the user's is asked after each failure."""
        return callable(self.on_error)

    def plain(self, attempt: int) -> Decision:
        """What comes after attempt number `attempt` (from 1) failed, where there is nobody to ask."""
        return self.after(attempt, "retry" if attempt <= self.retries else str(self.on_error))

    def last(self) -> Decision:
        """The same for an attempt that cannot be followed by another."""
        return Decision(str(self.on_error))  # type: ignore[arg-type]

    def after(self, attempt: int, step: str) -> Decision:
        """What one of the words means after this attempt."""
        if step == "retry":
            return Decision("retry", self.delay_after(attempt))
        return Decision(step)  # type: ignore[arg-type]

    def delay_after(self, attempt: int) -> float:
        """Seconds from the failure of attempt number `attempt` to the next one."""
        try:
            delay = self.retry_delay * self.backoff ** (attempt - 1)
        except OverflowError:
            return self.max_delay
        return min(delay, self.max_delay)


_DEFAULT = Policy()
