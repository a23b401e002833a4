"""From what the user wrote to what a worker runs: `ShellCommand`, `PythonCall`, or why neither.

Guarantees: `read_commands` takes every form of the public API, reads an iterable to at most one command
past the limit, and never raises for a single bad command: that becomes a `BadCommand`, which is a job that
failed to start. Options are checked here too, and each complaint names the option, what was expected and
what came.
"""

from __future__ import annotations

import functools
import math
import os
import shlex
import shutil
from collections.abc import Callable, Iterable, Mapping, Sized
from pathlib import Path
from typing import Any, Literal

from arrea_nb._foreign import as_float, plain_number, short_repr
from arrea_nb.errors import ArreaError, CommandFailed, InvalidCommandError, TooManyCommandsError

Kind = Literal["shell", "python"]

NOT_FOUND = 127
NOT_EXECUTABLE = 126
_FORMS = "a shell line (str), a program with its arguments (list of str), or a callable of no arguments"


class ShellCommand:
    """A line for the shell, or a program and its arguments."""

    __slots__ = ("argv", "line")
    kind: Kind = "shell"

    def __init__(self, line: str | None = None, argv: tuple[str, ...] = ()) -> None:
        self.line = line
        self.argv = argv

    @property
    def name(self) -> str:
        """The line itself, or the arguments quoted as a shell would want them."""
        return self.line if self.line is not None else shlex.join(self.argv)


class PythonCall:
    """A callable of no arguments."""

    __slots__ = ("function",)
    kind: Kind = "python"

    def __init__(self, function: Callable[[], Any]) -> None:
        self.function = function

    @property
    def name(self) -> str:
        """How a reader would write the call."""
        return name_of(self.function)


class BadCommand:
    """What could not be made a command, and why."""

    __slots__ = ("error", "kind", "name")

    def __init__(self, error: ArreaError, name: str, kind: Kind = "shell") -> None:
        self.error = error
        self.name = name
        self.kind = kind


Command = ShellCommand | PythonCall | BadCommand


def name_of(function: object) -> str:
    """The name of a callable: `fit`, `Model.fit`, `fit(0.1, seed=3)` for a partial."""
    if isinstance(function, functools.partial):
        words = [short_repr(argument) for argument in function.args]
        words += [f"{key}={short_repr(argument)}" for key, argument in function.keywords.items()]
        return f"{name_of(function.func)}({', '.join(words)})"
    name = getattr(function, "__qualname__", None)
    if not isinstance(name, str):
        return type(function).__name__
    return name.rpartition("<locals>.")[2]


def read_commands(
    commands: object, limit: int, *, cwd: str | None, path: str | None
) -> tuple[list[Command], list[str] | None, list[object]]:
    """Reads what the user gave to `execute`.

    Args:
        commands: An iterable of commands, or a mapping from name to command.
        limit: How many commands a batch takes.
        cwd: Where the programs will be started. None: here.
        path: The PATH on which they will be looked up.

    Returns:
        The commands, their names (None when none were given), and what the user wrote.

    Raises:
        TypeError: If `commands` is a single command, or not iterable.
        TooManyCommandsError: If there are more than `limit`.
    """
    if isinstance(commands, str | bytes | bytearray):
        raise TypeError(
            f"commands: expected several commands, got one {type(commands).__name__}; wrap it in a list: "
            f"[{short_repr(commands)}]"
        )
    if callable(commands) and not isinstance(commands, Iterable):
        raise TypeError("commands: expected several commands, got one callable; wrap it in a list")
    names: list[str] | None = None
    if isinstance(commands, Mapping):
        for name in commands:
            if not isinstance(name, str) or not name.strip():
                raise TypeError(f"commands: expected names that are not empty, got {short_repr(name)}")
        names = list(commands)
        commands = commands.values()
    if not isinstance(commands, Iterable):
        raise TypeError(
            f"commands: expected an iterable or a mapping of commands, got {type(commands).__name__}"
        )
    written: list[object] = []
    for command in commands:
        written.append(command)
        if len(written) > limit:
            count = len(commands) if isinstance(commands, Sized) else len(written)
            raise TooManyCommandsError(
                f"{count} commands, but a batch takes {limit}; pass max_commands={count}, "
                "or set %config Leader.max_commands",
                count,
                limit,
            )
    programs = _Programs(cwd, path)
    return [_read(command, programs) for command in written], names, written


def _read(command: object, programs: _Programs) -> Command:
    if isinstance(command, str):
        return _read_line(command)
    if callable(command):
        return PythonCall(command)
    if isinstance(command, list | tuple):
        return _read_argv(command, programs)
    if isinstance(command, bytes | bytearray):
        return _bad(command, "bytes; decode it to a str")
    return _bad(command, type(command).__name__)


def _bad(command: object, came: str) -> BadCommand:
    return BadCommand(InvalidCommandError(f"expected {_FORMS}, got {came}"), short_repr(command))


def _read_line(line: str) -> Command:
    if not line.strip():
        return _bad(line, "an empty line")
    if "\0" in line:
        return _bad(line, "a line with a NUL byte")
    return ShellCommand(line=line)


def _read_argv(argv: list[object] | tuple[object, ...], programs: _Programs) -> Command:
    if not argv:
        return _bad(argv, f"an empty {type(argv).__name__}")
    words = []
    for word in argv:
        if not isinstance(word, str | os.PathLike):
            return _bad(argv, f"an argument of type {type(word).__name__}")
        plain = os.fspath(word)
        if not isinstance(plain, str):
            return _bad(argv, "an argument that is a path of bytes")
        if "\0" in plain:
            return _bad(argv, "an argument with a NUL byte")
        words.append(plain)
    if not words[0]:
        return _bad(argv, "an empty program name")
    problem = programs.problem(words[0])
    if problem is not None:
        return BadCommand(problem, shlex.join(words))
    return ShellCommand(argv=tuple(words))


class _Programs:
    """Looks programs up once for all commands of a batch."""

    def __init__(self, cwd: str | None, path: str | None) -> None:
        self._cwd = cwd
        self._path = path
        self._known: dict[str, CommandFailed | None] = {}

    def problem(self, program: str) -> CommandFailed | None:
        """Why this program cannot be started, or None."""
        if program not in self._known:
            self._known[program] = self._look_up(program)
        return self._known[program]

    def _look_up(self, program: str) -> CommandFailed | None:
        if "/" not in program:
            if shutil.which(program, path=self._path) is not None:
                return None
            return CommandFailed(f"{program}: no such program on PATH (exit 127)", NOT_FOUND)
        there = Path(self._cwd or ".", program)
        if there.is_file():
            if os.access(there, os.X_OK):
                return None
            return CommandFailed(f"{program}: not executable (exit 126); chmod +x it", NOT_EXECUTABLE)
        if there.exists():
            return CommandFailed(f"{program}: not a program (exit 126)", NOT_EXECUTABLE)
        return CommandFailed(f"{program}: no such file (exit 127)", NOT_FOUND)


def checked_count(name: str, value: object, *, least: int = 1) -> int:
    """A whole number of at least `least`, or TypeError/ValueError naming the option."""
    count = plain_number(value)
    if not isinstance(count, int):
        raise TypeError(f"{name}: expected a whole number of at least {least}, got {short_repr(value)}")
    if count < least:
        raise ValueError(f"{name}: expected a whole number of at least {least}, got {count}")
    return count


def checked_seconds(name: str, value: object) -> float | None:
    """Seconds, or None for no limit (None, 0), or TypeError/ValueError naming the option."""
    if value is None:
        return None
    seconds = plain_number(value)
    if seconds is None:
        hint = "; as a number: 600, not '10m'" if issubclass(type(value), str) else ""
        raise TypeError(f"{name}: expected seconds, or None for no limit, got {short_repr(value)}{hint}")
    if math.isnan(as_float(seconds)) or seconds < 0:
        raise ValueError(f"{name}: expected seconds of at least 0 (0: no limit), got {seconds}")
    seconds = as_float(seconds)
    return None if seconds == 0 or math.isinf(seconds) else seconds


def checked_text(name: str, value: object) -> str | None:
    """A str or None, or TypeError naming the option."""
    if value is None or isinstance(value, str):
        return value
    raise TypeError(f"{name}: expected a str, got {short_repr(value)}")


def checked_cwd(value: object) -> str | None:
    """A directory that exists, or None for the current one; ValueError/TypeError naming the option."""
    if value is None:
        return None
    if not isinstance(value, str | os.PathLike):
        raise TypeError(f"cwd: expected a path, got {short_repr(value)}")
    cwd = os.fsdecode(value)
    if "\0" in cwd or not Path(cwd).is_dir():
        raise ValueError(f"cwd: expected a directory, got {cwd!r}, which is not there; make it first")
    return str(Path(cwd).absolute())


def checked_env(value: object) -> dict[str, str]:
    """Variables to add to the environment; TypeError/ValueError naming the option."""
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise TypeError(f"env: expected a mapping from name to value, got {type(value).__name__}")
    env = {}
    for key, text in value.items():
        if not isinstance(key, str) or not isinstance(text, str | os.PathLike):
            raise TypeError(
                f"env: expected names and values of type str, got {short_repr(key)}: {type(text).__name__}"
            )
        plain = os.fsdecode(text)
        if not key or "=" in key or "\0" in key or "\0" in plain:
            raise ValueError(f"env: expected a name without '=' and no NUL byte, got {key!r}")
        env[key] = plain
    return env


def checked_shell(value: object, path: str | None) -> str:
    """The path of a shell that takes `-c LINE`; TypeError/ValueError naming the option."""
    if isinstance(value, os.PathLike):
        value = os.fspath(value)
    if not isinstance(value, str):
        raise TypeError(f"shell: expected the name or path of a shell, got {short_repr(value)}")
    found = shutil.which(value, path=path) if value and "\0" not in value else None
    if found is None:
        raise ValueError(
            f"shell: expected a shell such as /bin/sh or bash, got {value!r}, which is not there"
        )
    return found
