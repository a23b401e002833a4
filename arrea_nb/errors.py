"""The errors of arrea_nb, all below `ArreaError`.

Guarantees: each can be pickled and loaded again with its attributes, and each message says what was
expected, what came, and what to do about it.
"""

from __future__ import annotations

from collections.abc import Sequence

__all__ = [
    "AllWorkersFailedError",
    "ArreaError",
    "BatchFailed",
    "CommandFailed",
    "InvalidCommandError",
    "JobCancelled",
    "JobCrashed",
    "JobTimeout",
    "TooManyCommandsError",
    "UnknownBatchError",
]


class ArreaError(Exception):
    """The base of every error that arrea_nb raises for reasons of its own."""

    def __str__(self) -> str:
        # Attributes travel in `args`, so that pickling needs no code; only the first is the message.
        return str(self.args[0]) if self.args else ""


class TooManyCommandsError(ArreaError, ValueError):
    """A batch was given more commands than `max_commands`; nothing was started.

    Attributes:
        count: How many commands came; for an endless iterable, the limit plus one.
        limit: How many commands a batch takes.
    """

    def __init__(self, message: str, count: int, limit: int) -> None:
        super().__init__(message, count, limit)
        self.count = count
        self.limit = limit


class AllWorkersFailedError(ArreaError):
    """Not one command of a batch could start.

    Attributes:
        count: How many commands there were.
        errors: Why each could not start, in the order given.
    """

    def __init__(self, message: str, count: int, errors: Sequence[Exception]) -> None:
        super().__init__(message, count, tuple(errors))
        self.count = count
        self.errors = tuple(errors)


class InvalidCommandError(ArreaError, TypeError):
    """A command is neither a shell line, nor an argv, nor a callable of no arguments."""


class CommandFailed(ArreaError):  # noqa: N818 - a public name of the design, in the field's past tense
    """A shell job ended with an exit code other than 0, died of a signal, or could not start.

    Attributes:
        exit_code: The exit code; None when a signal ended it. 127 and 126 as a shell gives them.
        signal: The number of the signal that ended it, or None.
        output: The last lines that it printed, stderr first choice.
    """

    def __init__(
        self, message: str, exit_code: int | None = None, signal: int | None = None, output: str = ""
    ) -> None:
        super().__init__(message, exit_code, signal, output)
        self.exit_code = exit_code
        self.signal = signal
        self.output = output


class JobTimeout(ArreaError, TimeoutError):  # noqa: N818 - a public name of the design
    """A job ran past its deadline and was stopped; what it printed is kept."""


class JobCancelled(ArreaError):  # noqa: N818 - a public name of the design
    """A job was cancelled or skipped."""


class JobCrashed(ArreaError):  # noqa: N818 - a public name of the design
    """A job ended by SystemExit or KeyboardInterrupt, or lost its worker; `__cause__` says which."""


class BatchFailed(ArreaError, ExceptionGroup[Exception]):  # noqa: N818 - a public name of the design
    """Jobs of a batch did not succeed; its members are their errors, in the order of the jobs."""

    def __str__(self) -> str:
        # ExceptionGroup would add "(2 sub-exceptions)", which the message has said better.
        return self.message

    def derive(self, excs: Sequence[Exception]) -> BatchFailed:  # type: ignore[override]
        """Keeps the type through `split` and `except*`."""
        return BatchFailed(self.message, excs)


class UnknownBatchError(ArreaError, LookupError):
    """No batch has this id, or the Leader has let go of it."""
