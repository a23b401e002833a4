"""`%%arrea` and `%arrea`: parse, submit, display; nothing else.

Guarantees: whatever is wrong with the options or the cell stops it before anything starts, as one line and
as an error of the cell, so that Run All, nbclient and papermill stop too. The batch is in `_arrea` (and in
the variable of `--out`) before anything can raise. An interrupt cancels this cell's batch and no other.
"""

from __future__ import annotations

import numbers
import os
import sys
import traceback
from argparse import Namespace
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar, cast

from IPython.core import magic_arguments
from IPython.core.magic import Magics, cell_magic, line_magic, magics_class

from arrea_nb import _views
from arrea_nb._engine import Engine
from arrea_nb._leader import Leader, engine_of
from arrea_nb._section import HoldInterrupts
from arrea_nb.errors import ArreaError, BatchFailed, TooManyCommandsError
from arrea_nb.events import JobState
from arrea_nb.notebook._cells import (
    CellSyntaxError,
    UsageError,
    count,
    duration,
    lost_effects,
    one_of,
    parsed_line,
    refuse_unfinished,
    shell_blocks,
    shell_lines,
    statements,
    variable,
)
from arrea_nb.notebook._listing import logged, numbered, table
from arrea_nb.notebook._presenter import Presenter
from arrea_nb.notebook._words import counted, in_states

if TYPE_CHECKING:
    from IPython.core.interactiveshell import InteractiveShell

    from arrea_nb._batch import Batch

_OURS = str(Path(__file__).resolve().parent.parent)

_Method = TypeVar("_Method", bound=Callable[..., Any])
# IPython's own have no types.
_IPYTHON: Any = magic_arguments


def _option(*names: str, **settings: Any) -> Callable[[_Method], _Method]:
    return cast("Callable[[_Method], _Method]", _IPYTHON.argument(*names, **settings))


def _magic(kind: Any, title: str) -> Callable[[_Method], _Method]:
    """Makes the parser of the options below it, the text that `%%arrea?` shows, and the magic."""

    def finish(method: _Method) -> _Method:
        finished = _IPYTHON.magic_arguments(title)(method)
        # `--work` shall not mean `--workers` today and something else with the next option.
        finished.parser.allow_abbrev = False
        return cast("_Method", kind("arrea")(finished))

    return finish


@dataclass(frozen=True)
class _Origin:
    """Where a batch came from: the cell, and whether its failure is to stop who waits for it."""

    cell: str
    raises: bool


@magics_class
class ArreaMagics(Magics):
    """The two magics. One for a shell."""

    def __init__(self, shell: InteractiveShell, presenter: Presenter) -> None:
        super().__init__(shell=shell)
        self._shell = shell
        self._presenter = presenter
        self._origins: dict[str, _Origin] = {}
        self._before: tuple[tuple[type[BaseException], ...], Any] | None = None

    @_magic(cell_magic, "%arrea")
    @_option("-w", "--workers", type=count(1), metavar="N", help="How many run at once. Default: 4.")
    @_option("-t", "--timeout", type=duration, metavar="TIME", help="For each: 500ms, 30s, 10m; 0: none.")
    @_option("--retries", type=count(0), metavar="N", help="How often a failed command is tried again.")
    @_option("--retry-delay", type=duration, metavar="TIME", help="Until the first retry; then doubled.")
    @_option("--on-error", type=one_of("continue", "stop", "abort"), help="continue, stop or abort the rest.")
    @_option("--name", help="Shown with the batch.")
    @_option("-o", "--out", type=variable, metavar="VAR", help="A variable for the Batch, besides _arrea.")
    @_option("--bg", action="store_true", help="Do not wait for the end.")
    @_option("--blocks", action="store_true", help="A command is a block of lines between blank lines.")
    @_option("--python", action="store_true", help="A job for each top-level Python statement.")
    @_option("-e", "--export", type=variable, metavar="VAR", action="append", help='For "$VAR"; repeatable.')
    @_option("--cwd", metavar="DIR", help="Where the commands run.")
    @_option("--shell", help="What runs them: bash, for instance. Default: /bin/sh.")
    @_option("--max-commands", type=count(0), metavar="N", help="How many a batch takes. Default: 100.")
    @_option("--no-raise", action="store_true", help="A failure does not stop the cell with BatchFailed.")
    @_option("--dry-run", action="store_true", help="Print the numbered commands and stop.")
    @_option("--log", action="store_true", help="Log each attempt's start, end and retry to stderr.")
    def run(self, line: str, cell: str) -> None:
        r"""Runs each line of the cell as a shell command, several at once, and waits for them.

        Blank lines and # lines are passed over, and a \ at the end continues a line. Nothing in the cell
        is expanded by Python: {} and $ are the shell's. Each line has a shell of its own, so a cd holds
        for its line only. When a command fails the cell raises BatchFailed; the Batch is in _arrea.

        A failed command leaves the others alone (--on-error continue); stop starts nothing more, abort
        stops the running ones too. With --python each top-level statement is a job in your namespace,
        and the value of an expression its result. -e puts a variable (str, number or path) into the
        environment, where "$VAR" is quoted safely. Defaults are the Leader's: %config Leader
        """
        options = parsed_line(self.run, line)
        with_options = self._options(options)
        commands = self._commands(options, cell)
        if options.dry_run:
            _write(numbered(commands))
            return
        leader = _leader_of(self._shell)
        engine = engine_of(leader)
        origin = _Origin(self._cell(line, cell), raises=not options.no_raise)
        self._tell_what_still_runs(engine, origin.cell)
        batch: Batch | None = None
        try:
            with HoldInterrupts():
                batch = _executed(leader, commands, with_options)
                self._keep(batch, options.out, origin)
                view = _views.show(batch)
                try:
                    if not options.bg or HoldInterrupts.came():
                        engine.see_out(batch)
                        _views.waited(batch)
                finally:
                    if view is not None and (not options.bg or HoldInterrupts.came()):
                        view.finish()
        except KeyboardInterrupt as interrupt:
            if batch is not None:
                came_to = ", ".join(in_states(batch.counts)) or "no jobs"
                _shown_in_one_line(interrupt, f"{came_to}. Batch: _arrea")
            raise
        if origin.raises and not options.bg:
            _raise_if_failed(batch, "_arrea")

    @_magic(line_magic, "arrea")
    @_option("verb", nargs="?", type=one_of("show", "wait", "cancel", "log"), help="Without it: list all.")
    @_option("batch", nargs="?", metavar="ID", help="The first digits of its id. Default: the latest.")
    def manage(self, line: str) -> None:
        """Lists the batches, or shows one, waits for it, cancels it, or prints what its jobs printed."""
        options = parsed_line(self.manage, line)
        engine = engine_of(_leader_of(self._shell))
        if options.verb is None:
            _write(table(engine.batches()))
            return
        try:
            batch = engine.batch(options.batch or "")
        except ArreaError as problem:
            raise UsageError(f"%arrea {options.verb}: {problem}") from None
        if options.verb == "show":
            _views.show(batch)
        elif options.verb == "cancel":
            _cancel(engine, batch)
        elif options.verb == "log":
            _write(logged(batch))
        else:
            self._wait(engine, batch)

    def report_failures(self) -> None:
        """Sees to it that a BatchFailed is an error of its cell; IPython only prints groups to stderr."""
        self._before = before, others = (self._shell.custom_exceptions, self._shell.CustomTB)

        def report(
            shell: Any,
            kind: type[BaseException],
            value: BaseException,
            trace: TracebackType,
            tb_offset: Any = None,
        ) -> list[str]:
            if not isinstance(value, BatchFailed | CellSyntaxError):
                return cast("list[str]", others(kind, value, trace, tb_offset=tb_offset))
            lines = _error_lines(shell, value, trace)
            shell._showtraceback(kind, value, lines)  # noqa: SLF001 - what IPython has front ends override
            return lines

        set_custom_exc: Any = self._shell.set_custom_exc
        set_custom_exc((*before, BatchFailed, CellSyntaxError), report)

    def leave(self) -> None:
        """Ends the views, and puts back what `report_failures` changed, unless somebody changed it since."""
        _views.show_with(None)
        self._presenter.close()
        if self._before is not None and BatchFailed in self._shell.custom_exceptions:
            self._shell.custom_exceptions, self._shell.CustomTB = self._before
        self._before = None

    def _wait(self, engine: Engine, batch: Batch) -> None:
        try:
            with HoldInterrupts():
                view = _views.show(batch)
            batch.wait()
        except KeyboardInterrupt as interrupt:
            _shown_in_one_line(interrupt, f"batch {_short(engine, batch)} goes on")
            raise
        if view is not None:
            view.finish()
        origin = self._origins.get(batch.id)
        if origin is None or origin.raises:
            latest = self._shell.user_ns.get("_arrea") is batch
            _raise_if_failed(batch, "_arrea" if latest else _short(engine, batch))

    def _commands(self, options: Namespace, cell: str) -> list[Any]:
        if options.python:
            for name in ("blocks", "shell", "cwd", "export"):
                if getattr(options, name):
                    raise UsageError(f"--{name} is for shell commands; leave it out, or leave out --python")
            return list(statements(cell, self._shell))
        commands = shell_blocks(cell) if options.blocks else shell_lines(cell)
        refuse_unfinished(commands, options.shell or Leader.instance().shell, blocks=options.blocks)
        for warning in lost_effects(commands, blocks=options.blocks):
            sys.stderr.write(f"{warning}\n")
        return [command.text for command in commands]

    def _options(self, options: Namespace) -> dict[str, Any]:
        """The options of `execute` that were given; the Leader has the defaults of the others."""
        policy = {
            name: value
            for name in ("retries", "retry_delay", "on_error")
            if (value := getattr(options, name)) is not None
        }
        given = {
            name: getattr(options, name) for name in ("workers", "timeout", "name", "shell", "max_commands")
        }
        given["cwd"] = None if options.cwd is None else os.path.expanduser(options.cwd)
        given["log"] = options.log or None
        given["policy"] = policy or None
        given["env"] = {name: self._exported(name) for name in options.export or ()} or None
        return {name: value for name, value in given.items() if value is not None}

    def _exported(self, name: str) -> str:
        if name not in self._shell.user_ns:
            raise UsageError(f"-e {name}: there is no variable {name}; set it in a cell before this one")
        value = self._shell.user_ns[name]
        if isinstance(value, bool) or not isinstance(value, str | numbers.Number | os.PathLike):
            came = type(value).__name__
            raise UsageError(
                f"-e {name}: expected a str, a number or a path, got a {came}; -e takes no other type"
            )
        return os.fsdecode(value) if isinstance(value, os.PathLike) else str(value)

    def _cell(self, line: str, cell: str) -> str:
        """What tells this cell from others: the id that the front end gave it, or else its text."""
        get_parent: Callable[[], Mapping[str, Any]] | None = getattr(self._shell, "get_parent", None)
        metadata = {} if get_parent is None else get_parent().get("metadata") or {}
        return str(metadata.get("cellId") or f"{line}\n{cell}")

    def _tell_what_still_runs(self, engine: Engine, cell: str) -> None:
        known = engine.ledger.live
        self._origins = {key: one for key, one in self._origins.items() if key in engine.ledger.batches}
        for key, origin in self._origins.items():
            if origin.cell == cell and key in known:
                short = _short(engine, engine.batch(key))
                sys.stderr.write(f"batch {short} from this cell still runs: %arrea cancel {short}\n")

    def _keep(self, batch: Batch, out: str | None, origin: _Origin) -> None:
        self._origins[batch.id] = origin
        self._shell.user_ns["_arrea"] = batch
        if out is not None:
            self._shell.user_ns[out] = batch


def _executed(leader: Leader, commands: list[Any], options: dict[str, Any]) -> Batch:
    try:
        return leader.execute(commands, **options)
    except TooManyCommandsError as problem:
        raise UsageError(
            f"{problem.count} commands, but a batch takes {problem.limit}; "
            f"pass --max-commands {problem.count}, or set %config Leader.max_commands"
        ) from None
    except (ArreaError, TypeError, ValueError) as problem:
        raise UsageError(str(problem)) from problem


def _raise_if_failed(batch: Batch, where: str) -> None:
    if batch.state is not JobState.SUCCEEDED:
        failure = batch.failure()
        raise BatchFailed(f"{failure}. Batch: {where}", failure.exceptions)


def _error_lines(shell: Any, problem: BaseException, trace: TracebackType) -> list[str]:
    """What to show of an error: the message alone if a magic raised it, and never a frame of ours."""
    if isinstance(problem, SyntaxError):
        plain = SyntaxError(*problem.args)
        return cast("list[str]", shell.SyntaxTB.structured_traceback(SyntaxError, plain, []))
    frames = [frame for frame, _ in traceback.walk_tb(trace)]
    if frames[-1].f_globals.get("__name__") == __name__:
        return [f"{type(problem).__name__}: {problem}"]
    told = traceback.TracebackException(type(problem), problem, trace.tb_next or trace)
    told.stack[:] = [frame for frame in told.stack if not frame.filename.startswith(_OURS)]
    return "".join(told.format()).splitlines()


def _shown_in_one_line(problem: BaseException, message: str) -> None:
    hook = "_render_traceback_"  # IPython asks any exception for it
    setattr(problem, hook, lambda: [f"{type(problem).__name__}: {message}"])


def _cancel(engine: Engine, batch: Batch) -> None:
    if batch.done():
        _write(f"batch {_short(engine, batch)} has ended already: {batch.state}\n")
        return
    going = sum(number for state, number in batch.counts.items() if not state.ended)
    batch.cancel()
    _write(f"batch {_short(engine, batch)}: {counted(going, 'job')} cancelled\n")


def _short(engine: Engine, batch: Batch) -> str:
    """The first digits of its id, so many that they name no other batch."""
    others = [one.id for one in engine.batches() if one.id != batch.id]
    length = 4
    while length < len(batch.id) and any(other.startswith(batch.id[:length]) for other in others):
        length += 1
    return batch.id[:length]


def _write(text: str) -> None:
    sys.stdout.write(text)


def load(shell: InteractiveShell) -> None:
    """Registers the magics, the Leader's settings and the views with a shell; more than once is fine."""
    _unregister(shell)
    _leader_of(shell)
    presenter = Presenter(shell)
    _views.show_with(presenter.show, presenter.widget, presenter.waited)
    magics = ArreaMagics(shell, presenter)
    shell.register_magics(magics)
    magics.report_failures()


def unload(shell: InteractiveShell) -> None:
    """Undoes `load` and closes the Leader: running batches are cancelled. More than once is fine.

    One that an interrupt tears from closing has not unloaded: IPython has it as loaded, and so it is.
    """
    if Leader.initialized():
        Leader.instance().close()
    with HoldInterrupts():
        _unregister(shell)
        # An interrupt is raised at the end of this, and IPython would take it for loaded.
        extensions: Any = shell.extension_manager
        extensions.loaded.discard("arrea_nb")


def _leader_of(shell: InteractiveShell) -> Leader:
    """The kernel's Leader, known to `%config`: another one, if that of before was closed."""
    leader = Leader.instance(parent=shell)
    configurables: list[Any] = shell.configurables
    if not any(one is leader for one in configurables):
        if leader.parent is not shell:
            leader.update_config(shell.config)
        configurables[:] = [one for one in configurables if not isinstance(one, Leader)]
        configurables.append(leader)
    return leader


def _unregister(shell: InteractiveShell) -> None:
    magics = shell.magics_manager.registry.pop(ArreaMagics.__name__, None)
    if isinstance(magics, ArreaMagics):
        magics.leave()
    for kind in ("line", "cell"):
        shell.magics_manager.magics[kind].pop("arrea", None)
    configurables: list[Any] = shell.configurables
    configurables[:] = [one for one in configurables if not isinstance(one, Leader | ArreaMagics)]
