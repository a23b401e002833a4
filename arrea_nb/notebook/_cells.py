"""Reading a `%%arrea` cell: the options on its line; its body as shell lines, blocks, or Python statements.

Guarantees: the text reaches the shell or Python as it was written, nothing in it is expanded. What cannot be
run as it stands is refused before anything starts, and the message has the line's number as an editor shows
it (the magic's own line is 1). The shell is asked with `-n`, which reads and never executes: in the usual
case once for all commands, however many.
"""

from __future__ import annotations

import argparse
import ast
import keyword
import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from IPython.core import error

if TYPE_CHECKING:
    from IPython.core.interactiveshell import InteractiveShell


class UsageError(error.UsageError):
    """A wrong option or a wrong cell, shown as one line.

    A class of its own, because IPython writes the errors of exactly its own class to stderr and leaves no
    error in the notebook: papermill would take such a run for a success.
    """

    def _render_traceback_(self) -> list[str]:
        return [f"UsageError: {self}"]


class CellSyntaxError(SyntaxError):
    """A `--python` cell that is not Python. IPython shows a plain SyntaxError with our frames above it."""


_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "": 1.0}


def duration(text: str) -> float:
    """Seconds, from 500ms, 30s, 10m, 2h or a plain number."""
    match = re.fullmatch(r"(\d+(?:\.\d*)?|\.\d+)\s*(ms|s|m|h|)", text.strip())
    if match is None:
        raise argparse.ArgumentTypeError(f"expected a time such as 500ms, 30s, 10m or 2h, got {text!r}")
    return float(match[1]) * _UNITS[match[2]]


def count(least: int) -> Callable[[str], int]:
    """A reader of whole numbers of at least `least`."""

    def read(text: str) -> int:
        if not text.isdecimal() or int(text) < least:
            raise argparse.ArgumentTypeError(f"expected a whole number of at least {least}, got {text!r}")
        return int(text)

    return read


def one_of(*choices: str) -> Callable[[str], str]:
    """A reader of one of a few words."""

    def read(text: str) -> str:
        if text not in choices:
            expected = f"{', '.join(choices[:-1])} or {choices[-1]}"
            raise argparse.ArgumentTypeError(f"expected {expected}, got {text!r}")
        return text

    return read


def variable(text: str) -> str:
    """The name of a Python variable."""
    if not text.isidentifier() or keyword.iskeyword(text):
        raise argparse.ArgumentTypeError(f"expected the name of a variable, got {text!r}")
    return text


def parsed_line(magic: Any, line: str) -> argparse.Namespace:
    """The options on the magic's own line; UsageError for what is none."""
    title = magic.parser.prog
    if title == "arrea" and line.startswith("-"):
        raise UsageError(f"%arrea takes no options; a batch is a cell: %%arrea {line}")
    try:
        options, rest = magic.parser.parse_known_args(shlex.split(line))
    except (error.UsageError, ValueError) as problem:
        raise UsageError(f"%{title}: {problem}; %{title}? lists the options") from None
    if rest and rest[0].startswith("-"):
        raise UsageError(f"%{title}: no option {rest[0]}; %{title}? lists those there are")
    if rest:
        hint = "commands go into the lines below" if title == "%arrea" else "commands go into a cell: %%arrea"
        raise UsageError(f"%{title}: did not expect {shlex.join(rest)} here; {hint}")
    return options  # type: ignore[no-any-return]


@dataclass(frozen=True)
class CellCommand:
    """A shell command as it stands in the cell. `first` and `last` are line numbers, from 2."""

    text: str
    first: int
    last: int

    @property
    def place(self) -> str:
        """Where it stands, for a message."""
        return f"line {self.first}" if self.first == self.last else f"lines {self.first}-{self.last}"


def shell_lines(body: str) -> list[CellCommand]:
    """A command is a line; blank and `#` lines are passed over; a trailing backslash continues a line."""
    commands = []
    lines = list(_numbered(body))
    at = 0
    while at < len(lines):
        first = at
        if _is_idle(lines[at][1]):
            at += 1
            continue
        while _is_continued(lines[at][1]) and at + 1 < len(lines) and lines[at + 1][1].strip():
            at += 1
        commands.append(_command(lines[first : at + 1]))
        at += 1
    return commands


def shell_blocks(body: str) -> list[CellCommand]:
    """A command is a block of lines between blank lines; comments before its first line are passed over."""
    commands = []
    block: list[tuple[int, str]] = []
    for number, line in [*_numbered(body), (0, "")]:
        if line.strip() and (block or not _is_idle(line)):
            block.append((number, line))
        elif block and not line.strip():
            commands.append(_command(block))
            block = []
    return commands


def _numbered(body: str) -> Iterator[tuple[int, str]]:
    # Not splitlines(): a form feed or U+2028 is no line end to a shell.
    for number, line in enumerate(body.removesuffix("\n").split("\n"), start=2):
        yield number, line.removesuffix("\r")


def _is_idle(line: str) -> bool:
    return not line.strip() or line.lstrip().startswith("#")


def _is_continued(line: str) -> bool:
    return (len(line) - len(line.rstrip("\\"))) % 2 == 1


def _command(lines: Sequence[tuple[int, str]]) -> CellCommand:
    command = CellCommand("\n".join(line for _, line in lines).strip(), lines[0][0], lines[-1][0])
    if _is_continued(lines[-1][1]):
        raise UsageError(f"line {command.last}: it ends in \\, but no line follows that could continue it")
    return command


# Closes a group, and then breaks whatever the command before may have left open: a quote ends at the first
# mark of its own kind, and what follows that is an error; to a complete command it is a comment.
_SEPARATOR = "}  # ' )) \" )) ` ))"
_UNFINISHED = re.compile(
    r"end.of.file|\bEOF\b|unterminated|unmatched|missing '[)}]|unexpected end|not balanced|to balance",
    re.IGNORECASE,
)


def refuse_unfinished(commands: Sequence[CellCommand], shell: str, *, blocks: bool) -> None:
    """Asks the shell whether each command is complete.

    Args:
        commands: What would run.
        shell: Its name or path. One that is not there, or does not know `-n`, is not asked.
        blocks: Whether the commands are blocks already.

    Raises:
        UsageError: For the first one that is not; it names `--blocks`.
    """
    program = shutil.which(shell)
    if program is None:
        return
    for command, complaint in _rejected(program, commands):
        if _complaint(program, "") is not None:
            return  # it does not know -n
        if complaint is not None and _UNFINISHED.search(complaint) is None:
            continue  # wrong, but not for want of more lines: the job will fail and say so itself
        what = _shortened(command.text) + (f" ({complaint})" if complaint else "")
        remedy = (
            "with --blocks a blank line ends a command; take it out, or run a script of its own (%%writefile)"
            if blocks
            else "each line is a command of its own; make it one line, end its lines with \\, "
            "or use --blocks, where blank lines divide the commands"
        )
        raise UsageError(f"{command.place}: unfinished: {what}; {remedy}")


def _rejected(program: str, commands: Sequence[CellCommand]) -> Iterator[tuple[CellCommand, str | None]]:
    """The commands that are not complete, each with what the shell said to it alone, if anything."""
    if not commands:
        return
    # The last line of a heredoc could stand in another block: such a command is asked about alone.
    heredocs = [command for command in commands if "<<" in command.text] if len(commands) > 1 else []
    groups = [commands, *([command] for command in heredocs)]
    if all(_complaint(program, _grouped(group)) is None for group in groups):
        return
    if len(commands) == 1:
        yield commands[0], _complaint(program, commands[0].text + "\n")
        return
    half = len(commands) // 2
    yield from _rejected(program, commands[:half])
    yield from _rejected(program, commands[half:])


def _grouped(commands: Iterable[CellCommand]) -> str:
    return "".join(f"{{ {command.text}\n{_SEPARATOR}\n" for command in commands)


def _complaint(program: str, script: str) -> str | None:
    """What the shell says to a script without executing it; None when it has nothing against it."""
    environment = {name: value for name, value in os.environ.items() if name not in {"BASH_ENV", "ENV"}}
    answer = subprocess.run(
        [program, "-n"],
        input=script.encode("utf-8", "surrogateescape"),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env={**environment, "LC_ALL": "C"},
        check=False,
    )
    if answer.returncode == 0:
        return None
    said = answer.stderr.decode("utf-8", "replace").strip().partition("\n")[0]
    return re.sub(r"^.*?: (line )?\d+: (syntax error: )?", "", said, flags=re.IGNORECASE)


_ASSIGNMENT = re.compile(r"[A-Za-z_]\w*\+?=")
_SETTERS = frozenset({"export", "unset", "declare", "typeset", "readonly"})
_READERS = frozenset({"source", ".", "alias", "unalias", "set", "shopt", "umask", "ulimit"})
_MOVERS = frozenset({"cd", "pushd", "popd"})


def lost_effects(commands: Iterable[CellCommand], *, blocks: bool) -> Iterator[str]:
    """A warning for each command that does nothing, because each has a shell of its own."""
    others = "block" if blocks else "line"
    for command in commands:
        words = _plain_words(command.text)
        if words and (remedy := _remedy(words, command.text.rstrip("; "))):
            yield (
                f"{command.place}: {_shortened(command.text)} has no effect on any other {others}, "
                f"because each has a shell of its own; {remedy}"
            )


def _plain_words(text: str) -> list[str]:
    """The words of a simple command; none if it is more than that."""
    if "\n" in text or "`" in text or "$(" in text:
        return []
    lexer = shlex.shlex(text, posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    try:
        words = list(lexer)
    except ValueError:
        return []
    if words and words[-1] == ";":
        words.pop()
    return [] if any(not set(word) - set("();<>|&") for word in words) else words


def _remedy(words: Sequence[str], text: str) -> str | None:
    chained = f"write: {text} && COMMAND"
    if all(_ASSIGNMENT.match(word) for word in words) or words[0] in _SETTERS:
        names = [word.partition("=")[0].rstrip("+") for word in words if _ASSIGNMENT.match(word)]
        return f"-e {names[0] if names else 'NAME'} passes a Python variable to all of them; or {chained}"
    if words[0] in _MOVERS:
        where = words[1] if len(words) > 1 and "$" not in words[1] else "DIR"
        return f"--cwd {where} is for all of them; or {chained}"
    return chained if words[0] in _READERS else None


class Statement:
    """One top-level statement as a callable of no arguments, named after its source."""

    def __init__(self, source: str, code: Any, namespace: dict[str, Any]) -> None:
        self.__qualname__ = source
        self._code = code
        self._namespace = namespace

    def __repr__(self) -> str:
        return f"<Statement {_shortened(self.__qualname__)!r}>"

    def __call__(self) -> Any:
        # With a top-level await in it this is a coroutine, which the worker runs.
        return eval(self._code, self._namespace)  # noqa: S307 - to run the user's code is what it is for


def statements(body: str, shell: InteractiveShell) -> list[Statement]:
    """Each top-level statement, to be run in the user's namespace; the value is the expression's.

    Raises:
        CellSyntaxError: If it is not Python; nothing has run then.
    """
    source = "\n" + body  # so that line numbers are those of the cell
    name = shell.compile.cache(source, shell.displayhook.prompt_count)
    flags = shell.compile.flags | ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
    try:
        tree = compile(source, name, "exec", flags | ast.PyCF_ONLY_AST, dont_inherit=True)
        made = []
        for node in tree.body:
            expression = isinstance(node, ast.Expr)
            part = ast.Expression(node.value) if isinstance(node, ast.Expr) else ast.Module([node], [])
            code = compile(part, name, "eval" if expression else "exec", flags, dont_inherit=True)
            made.append(Statement(_source_of(node, source), code, shell.user_ns))
    except SyntaxError as problem:
        raise CellSyntaxError(*problem.args) from None
    except ValueError as problem:  # a NUL byte, for one
        raise UsageError(f"--python: {problem}") from None
    return made


def _source_of(node: ast.stmt, source: str) -> str:
    written = ast.get_source_segment(source, node) or ast.unparse(node)
    marks = [ast.get_source_segment(source, mark) for mark in getattr(node, "decorator_list", [])]
    return "\n".join([*(f"@{mark}" for mark in marks), written])


def _shortened(text: str) -> str:
    first, _, rest = text.partition("\n")
    return first[:57] + "..." if rest or len(first) > 60 else first
