"""From what the user wrote to what a worker runs: `ShellCommand`, `PythonCall`, or why neither.

Guarantees: `read_commands` takes every form of the public API, reads an iterable to at most one command
past the limit, and never raises for a single bad command: that becomes a `BadCommand`, which is a job that
failed to start.
"""

from __future__ import annotations

import dis
import functools
import inspect
import os
import shlex
import shutil
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import AsyncGeneratorType, CodeType, FunctionType, GeneratorType, MethodType
from typing import Any, Literal

from arrea_nb._foreign import (
    REPR_SECONDS,
    Reprs,
    exact,
    must_pass,
    short_repr,
    type_attribute,
    type_name,
)
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
    """A callable of no arguments.

    Args:
        function: What to call.
        reprs: Show its arguments, if it is a partial; shared by a batch. None: there is no hurry.
    """

    __slots__ = ("_name", "_reprs", "function")
    kind: Kind = "python"

    def __init__(self, function: Callable[[], Any], reprs: Reprs | None = None) -> None:
        self.function = function
        self._name: str | None = None
        self._reprs = reprs

    @property
    def name(self) -> str:
        """How a reader would write the call. Made when it is first asked for: it may take its time."""
        if self._name is None:
            self._name = name_of(self.function, self._reprs or Reprs())
            self._reprs = None
        return self._name


class BadCommand:
    """What could not be made a command, and why."""

    __slots__ = ("error", "kind", "name")

    def __init__(self, error: ArreaError, name: str, kind: Kind = "shell") -> None:
        self.error = error
        self.name = name
        self.kind = kind


Command = ShellCommand | PythonCall | BadCommand


def name_of(function: object, reprs: Reprs) -> str:
    """The name of a callable: `fit`, `Model.fit`, `fit(0.1, seed=3)` for a partial."""
    try:
        if issubclass(type(function), functools.partial):
            partial: functools.partial[Any] = function  # type: ignore[assignment]
            words = [reprs.of(argument) for argument in partial.args]
            words += [f"{key}={reprs.of(argument)}" for key, argument in partial.keywords.items()]
            return f"{name_of(partial.func, reprs)}({', '.join(words)})"
        name = getattr(function, "__qualname__", None)
    except BaseException as raised:
        if must_pass(raised):
            raise
        name = None
    if not issubclass(type(name), str):
        return type_name(function)
    return exact(name).rpartition("<locals>.")[2]


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
    kind = type(commands)
    if issubclass(kind, str | bytes | bytearray):
        raise TypeError(
            f"commands: expected several commands, got one {type_name(commands)}; wrap it in a list: "
            f"[{short_repr(commands)}]"
        )
    if callable(commands) and not issubclass(kind, Iterable):
        raise TypeError("commands: expected several commands, got one callable; wrap it in a list")
    if not issubclass(kind, Iterable):
        raise TypeError(f"commands: expected an iterable or a mapping of commands, got {type_name(commands)}")
    names: list[str] | None = None
    several: Iterable[Any] = commands  # type: ignore[assignment]
    if issubclass(kind, Mapping):
        names = []
        several = commands.items()  # type: ignore[attr-defined]
    written: list[object] = []
    for one in several:
        if names is None:
            written.append(one)
        else:
            name, command = one
            names.append(_name_given(name))
            written.append(command)
        if len(written) > limit:
            count = max(_length(commands), len(written))
            raise TooManyCommandsError(
                f"{count} commands, but a batch takes {limit}; pass max_commands={count}, "
                "or set %config Leader.max_commands",
                count,
                limit,
            )
    programs = _Programs(cwd, path)
    reprs = Reprs(REPR_SECONDS)
    return [_read(command, programs, reprs) for command in written], names, written


def _name_given(name: object) -> str:
    if issubclass(type(name), str):
        plain = exact(name)
        if plain.strip():
            return plain
    raise TypeError(f"commands: expected names that are not empty, got {short_repr(name)}")


def _length(commands: object) -> int:
    """How many there are, if they know."""
    try:
        return len(commands)  # type: ignore[arg-type]
    except BaseException as raised:
        if must_pass(raised):
            raise
        return 0


def _read(command: object, programs: _Programs, reprs: Reprs) -> Command:
    kind = type(command)  # and not its __class__, which may be anything, and raise
    if kind is FunctionType and not command.__code__.co_flags & _RUNS_NOTHING:  # type: ignore[attr-defined]  # by `is`
        return PythonCall(command, reprs)  # type: ignore[arg-type]  # the same: the usual command of a large batch
    try:
        if issubclass(kind, str):
            return _read_line(exact(command), reprs)
        if callable(command):
            return _read_call(command, reprs)
        if issubclass(kind, list | tuple):
            return _read_argv(command, programs, reprs)  # type: ignore[arg-type]
    except BaseException as raised:
        if must_pass(raised):
            raise
        return _bad(
            command, f"a {type_name(command)} that raised {type_name(raised)} when it was read", reprs
        )
    if issubclass(kind, bytes | bytearray):
        return _bad(command, "bytes; decode it to a str", reprs)
    return _bad(command, type_name(command), reprs)


def _bad(command: object, came: str, reprs: Reprs) -> BadCommand:
    return BadCommand(InvalidCommandError(f"expected {_FORMS}, got {came}"), reprs.of(command))


def _read_line(line: str, reprs: Reprs) -> Command:
    if not line.strip():
        return _bad(line, "an empty line", reprs)
    if "\0" in line:
        return _bad(line, "a line with a NUL byte", reprs)
    return ShellCommand(line=line)


def _read_argv(argv: Iterable[object], programs: _Programs, reprs: Reprs) -> Command:
    words = []
    for word in argv:
        if not issubclass(type(word), str | os.PathLike):
            return _bad(argv, f"an argument of type {type_name(word)}", reprs)
        plain = word if issubclass(type(word), str) else os.fspath(word)  # type: ignore[call-overload]
        if not issubclass(type(plain), str):
            return _bad(argv, "an argument that is a path of bytes", reprs)
        plain = exact(plain)
        if "\0" in plain:
            return _bad(argv, "an argument with a NUL byte", reprs)
        words.append(plain)
    if not words:
        return _bad(argv, f"an empty {type_name(argv)}", reprs)
    if not words[0]:
        return _bad(argv, "an empty program name", reprs)
    problem = programs.problem(words[0])
    if problem is not None:
        return BadCommand(problem, shlex.join(words))
    return ShellCommand(argv=tuple(words))


def _read_call(function: Callable[[], Any], reprs: Reprs) -> Command:
    code, called = _code_of(function)
    if code is None or not code.co_flags & _RUNS_NOTHING:
        return PythonCall(function, reprs)
    name = name_of(function, reprs)
    if called:
        call = name if name.endswith(")") else f"{name}()"
        remedy = f"lambda: list({call})"
    else:
        remedy = "lambda: list(f()), where f is that object"
    what, remedy = _unrun(code, remedy)
    subject = code.co_qualname.rpartition("<locals>.")[2]
    message = f"{subject} is {what} function, and calling it would run nothing; write {remedy}"
    return BadCommand(InvalidCommandError(message), name, "python")


_RUNS_NOTHING = inspect.CO_GENERATOR | inspect.CO_ASYNC_GENERATOR
_MOST_LAYERS = 100  # a partial may hold itself
_partial_of = vars(functools.partial)["func"].__get__


def _code_of(function: object) -> tuple[CodeType | None, bool]:
    """The code that a call runs in the end, as far as types tell; and whether it is not a `__call__`."""
    called = True
    for _ in range(_MOST_LAYERS):
        if issubclass(type(function), functools.partial):
            function = _partial_of(function)
        elif type(function) is MethodType:
            function = function.__func__
        elif type(function) is FunctionType:
            return function.__code__, called
        elif called:
            called = False
            function = type_attribute(function, "__call__")
        else:
            break
    return None, called


def _unrun(code: CodeType, remedy: str) -> tuple[str, str]:
    """What such code makes, and what to write instead; `remedy` for a plain generator."""
    if code.co_flags & inspect.CO_ASYNC_GENERATOR:
        return "an async generator", "a coroutine function that goes through it with async for"
    if code.co_flags & inspect.CO_ITERABLE_COROUTINE:
        return "a generator-based coroutine", "a coroutine function that awaits it"
    return "a generator", remedy


def unrun(value: object) -> str | None:
    """What to say of a generator that a callable returned and none of whose code has run; else None."""
    if type(value) is GeneratorType:
        begun = inspect.getgeneratorstate(value) != inspect.GEN_CREATED
        code = value.gi_code
    elif type(value) is AsyncGeneratorType:
        begun = _async_generator_has_begun(value)
        code = value.ag_code
    else:
        return None
    if begun:
        return None
    name = code.co_qualname.rpartition("<locals>.")[2]
    what, remedy = _unrun(code, "a callable that goes through it: lambda: list(...)")
    return f"it returned {what} ({name}) that has run nothing; write {remedy}"


def _async_generator_has_begun(value: AsyncGeneratorType[Any, Any]) -> bool:
    if sys.version_info >= (3, 12):
        return inspect.getasyncgenstate(value) != inspect.AGEN_CREATED
    frame = value.ag_frame  # None: it is at its end
    return frame is None or frame.f_code.co_code[frame.f_lasti] != dis.opmap["RETURN_GENERATOR"]


def awaitable(value: object) -> bool:
    """Whether it has to be awaited for its code to run.

    It can be awaited, and is no future, which runs by itself and says `done`: that is a value like others.
    """
    kind = type(value)
    if type(kind) is type and kind in _NEVER_AWAITED:
        return False
    return type_attribute(value, "__await__") is not None and type_attribute(value, "done") is None


# What callables return most often, so that these cost next to nothing.
_NEVER_AWAITED = frozenset({type(None), bool, int, float, str, bytes, list, tuple, dict, set})


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
        try:
            return self._look_at(there, program)
        except OSError as error:  # a directory that may not be entered, a name that is too long
            return CommandFailed(f"{program}: {error.strerror} (exit 126)", NOT_EXECUTABLE)

    @staticmethod
    def _look_at(there: Path, program: str) -> CommandFailed | None:
        if there.is_file():
            if os.access(there, os.X_OK):
                return None
            return CommandFailed(f"{program}: not executable (exit 126); chmod +x it", NOT_EXECUTABLE)
        if there.exists():
            return CommandFailed(f"{program}: not a program (exit 126)", NOT_EXECUTABLE)
        return CommandFailed(f"{program}: no such file (exit 127)", NOT_FOUND)
