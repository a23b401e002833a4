"""The Leader: admits batches, hands jobs to workers, publishes events, sweeps old batches.

It has traits and public verbs, and an engine that does the work:

     Leader ──has──▶ Engine ─────────────────────────────── Settings, which the traits write
        │              │
     execute ──▶ prepare, admit ──▶ Ledger ──▶ worker thread ──▶ process / callable
                                    ▲    │            │
                       Places ◀─────┤    └─ publish ──┼──▶ mailboxes ──▶ subscribers, views
                    (who is next)   └── report ◀──────┘  (the end of one attempt; returns the next job)

Guarantees: options are checked before anything starts, and every public method works from any thread. What
goes on inside, and the one lock, is in `_engine.py`.
"""

from __future__ import annotations

import functools
import inspect
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import fields
from types import MappingProxyType
from typing import Any

from traitlets import Float, Int, Unicode
from traitlets.config import SingletonConfigurable

from arrea_nb import _lifetime, _views
from arrea_nb._batch import Batch, record_of
from arrea_nb._broadcast import Callback, Subscription
from arrea_nb._engine import Engine, Stage
from arrea_nb._foreign import plain_number
from arrea_nb._log import writer_for
from arrea_nb._options import DEFAULT, Settings, checked_count, unknown_option
from arrea_nb._policy import Policy
from arrea_nb._records import BatchRecord
from arrea_nb._section import HoldInterrupts
from arrea_nb._state import LeaderState
from arrea_nb.events import CustomEvent


class _Count(Int[int, Any]):
    """A whole number, also of numpy's."""

    def validate(self, obj: Any, value: Any) -> Any:
        number = plain_number(value)
        return super().validate(obj, number if isinstance(number, int) else value)


class _Seconds(Float[Any, Any]):
    """Seconds, also as numpy has them."""

    def validate(self, obj: Any, value: Any) -> Any:
        number = plain_number(value)
        return super().validate(obj, value if number is None else number)


class Leader(SingletonConfigurable):
    """Runs batches of commands. One for a kernel: `Leader.instance()`.

    `Leader(max_workers=8)`, with or without `with`, is one of its own, to be closed by its owner.

    Raises:
        TraitError: For an option of the wrong type.
        TypeError: For an unknown option.

    Example:
        >>> with Leader(max_workers=8) as leader:        # doctest: +SKIP
        ...     leader.execute(["true"]).wait()
    """

    workers = _Count(Settings.workers, min=1, help="Jobs of a batch that run at once.").tag(config=True)
    timeout = _Seconds(
        Settings.timeout,
        allow_none=True,
        help="Seconds for each attempt, time in the queue not counted; 0: no limit.",
    ).tag(config=True)
    max_commands = _Count(Settings.max_commands, min=1, help="Commands in one batch.").tag(config=True)
    max_workers = _Count(Settings.max_workers, min=1, help="Jobs that run at once over all batches.").tag(
        config=True
    )
    cleanup_interval = _Seconds(
        Settings.cleanup_interval, min=0.001, help="Seconds between two looks for old batches."
    ).tag(config=True)
    batch_retention = _Seconds(
        Settings.batch_retention, min=0, help="Seconds that an ended batch is kept."
    ).tag(config=True)
    keep_batches = _Count(
        Settings.keep_batches, min=0, help="So many ended batches are kept in any case."
    ).tag(config=True)
    grace = _Seconds(Settings.grace, min=0, help="Seconds from SIGTERM to SIGKILL; 0 kills at once.").tag(
        config=True
    )
    shell = Unicode(Settings.shell, help="The shell that runs lines, by name or path.").tag(config=True)
    max_output_bytes = _Count(
        Settings.max_output_bytes, min=0, help="Output of one job that is kept, in bytes."
    ).tag(config=True)
    memory_output_bytes = _Count(
        Settings.memory_output_bytes, min=1024, help="Of which so much in memory, in bytes."
    ).tag(config=True)

    def __init__(self, **options: Any) -> None:
        unknown = [name for name in options if name not in self.trait_names()]
        if unknown:
            raise TypeError(f"{unknown[0]}: no such option of a Leader; it has {', '.join(_own_options())}")
        super().__init__(**options)
        settings = Settings(**{field.name: getattr(self, field.name) for field in fields(Settings)})
        self._engine = Engine(settings, writer_for)
        self.observe(self._set, [field.name for field in fields(Settings)])
        _lifetime.began(self._engine)

    @classmethod
    def instance(cls, *args: Any, **options: Any) -> Leader:
        """The kernel's Leader, made at the first call.

        Raises:
            ValueError: If there is one already and `options` ask for another.
        """
        if cls.initialized():
            there = super().instance()
            engine = there._engine  # noqa: SLF001 - a Leader as well
            if engine.stage is Stage.CLOSED or engine.torn:
                there.close()  # it was torn from closing by the stop button, and goes on from there
        plain = {name: value for name, value in options.items() if name not in {"parent", "config"}}
        if plain and cls.initialized():
            name, value = next(iter(plain.items()))
            raise ValueError(
                f"{name}: expected no options, because the kernel has a Leader already, got {value!r}; "
                f"set %config Leader.{name} = {value!r}, or make one of your own with Leader(...)"
            )
        return super().instance(*args, **options)

    def __enter__(self) -> Leader:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def execute(
        self,
        commands: Any,
        *,
        workers: int = DEFAULT,
        timeout: float | None = DEFAULT,
        log: bool = False,
        policy: Policy | Mapping[str, Any] | None = None,
        max_commands: int = DEFAULT,
        name: str | None = None,
        shell: str | None = None,
        cwd: str | os.PathLike[str] | None = None,
        env: Mapping[str, str] | None = None,
        **unknown: Any,
    ) -> Batch:
        """Admits a batch and returns at once; the jobs run in worker threads.

        Args:
            commands: An iterable of commands, or a mapping from name to command. A command is a shell line
                (str), a program and its arguments (list or tuple), or a callable of no arguments.
            workers: How many of them run at once, at the most. Default: `Leader.workers`, 4.
            timeout: Seconds for each attempt. None or 0: no limit. Default: `Leader.timeout`, 30.
            log: Write each attempt's start, end and retry to the logger `arrea_nb`, shown on stderr.
            policy: What happens after a failure. None: the others go on.
            max_commands: How many commands a batch takes. Default: `Leader.max_commands`, 100.
            name: Shown with the batch.
            shell: Runs the lines. None: `Leader.shell`, /bin/sh.
            cwd: Where they run. None: the kernel's current directory.
            env: Variables to add to the environment.
            **unknown: Refused, with a hint.

        Raises:
            TypeError: For an option of the wrong type or name, or a lone command.
            ValueError: For an option out of its range.
            TooManyCommandsError: If there are more than `max_commands`.
            AllWorkersFailedError: If not one command could start.

        Example:
            >>> execute(["make -C a", "make -C b"], workers=2).wait()    # doctest: +SKIP
            True
        """
        __tracebackhide__ = True  # a user's mistake is shown without the way that it took through here
        if unknown:
            raise TypeError(unknown_option(next(iter(unknown))))
        given = {
            "workers": workers,
            "timeout": timeout,
            "log": log,
            "policy": policy,
            "max_commands": max_commands,
            "name": name,
            "shell": shell,
            "cwd": cwd,
            "env": env,
        }
        return self._engine.admit(self._engine.prepare(commands, given))

    def run(self, commands: Any, **options: Any) -> list[Any]:
        """Executes, shows, waits, and returns the values; an interrupt cancels the batch.

        Args:
            commands: As for `execute`.
            **options: As for `execute`.

        Raises:
            BatchFailed: If a job did not succeed.
        """
        __tracebackhide__ = True
        # What it is handed in is the user's code: it can be interrupted, and may be endless.
        record = self._engine.prepare(commands, options)
        with HoldInterrupts():
            batch = self._engine.admit(record)
            view = _views.show(batch)
            try:
                self._engine.see_out(batch)
                _views.waited(batch)
            finally:
                if view is not None:
                    view.finish()
        return batch.results()

    def map(self, function: Callable[..., Any], *iterables: Iterable[Any], **options: Any) -> list[Any]:
        """Runs `function` once for each tuple of arguments, and returns the values in order.

        Args:
            function: What to call.
            *iterables: As for the built-in `map`; the shortest one ends it.
            **options: As for `execute`.

        Raises:
            BatchFailed: If a call failed.

        Example:
            >>> arrea_nb.map(pow, [2, 3], [3, 2])        # doctest: +SKIP
            [8, 9]
        """
        __tracebackhide__ = True
        if not callable(function):
            raise TypeError(f"function: expected a callable, got {type(function).__name__}")
        if not iterables:
            raise TypeError("iterables: expected at least one, got none")
        return self.run(_Calls(function, iterables), **options)

    def subscribe(
        self,
        callback: Callback | None = None,
        *,
        batch: Batch | str | None = None,
        mailbox_size: int = 10_000,
    ) -> Subscription:
        """Tells `callback`, or a mailbox, what happens from now on.

        Args:
            callback: Called with each event, on a thread of its own. None: a mailbox to iterate.
            batch: A Batch or an id: only its events, beginning with what happened already. None: all.
            mailbox_size: So many events wait, before output and progress are dropped and counted.

        Raises:
            TypeError: If `callback` cannot be called.
            UnknownBatchError: If there is no such batch.
        """
        if callback is not None and not callable(callback):
            raise TypeError(f"callback: expected a callable, got {type(callback).__name__}")
        mailbox_size = checked_count("mailbox_size", mailbox_size)
        return self._engine.subscribe(callback, self._record_of(batch), mailbox_size)

    def unsubscribe(self, whom: Subscription | Callback) -> None:
        """Ends a subscription, named by itself or by its callback; an unknown one does nothing."""
        if isinstance(whom, Subscription):
            self._engine.leave(whom)
            return
        while (found := self._engine.find(whom)) is not None:
            self._engine.leave(found)

    def notify_event(self, event: Mapping[str, Any]) -> None:
        """Tells every subscriber of something of your own, as a CustomEvent.

        Args:
            event: Any mapping with a `"type"`.

        Raises:
            TypeError: If it is not a mapping.
            ValueError: If it has no `"type"`.
        """
        if not isinstance(event, Mapping):
            raise TypeError(f"event: expected a mapping with a 'type', got {type(event).__name__}")
        if "type" not in event:
            raise ValueError(
                f"event: expected a mapping with a 'type', got the keys {sorted(map(str, event))}"
            )
        self._engine.publish(CustomEvent(None, time.time(), MappingProxyType(dict(event))))

    def get_state(self) -> LeaderState:
        """What the Leader knows now."""
        return LeaderState.of(self._engine)

    def cancel(self, batch_id: str, job: int | None = None) -> None:
        """Cancels a batch, or one job of it.

        Args:
            batch_id: The id, or the beginning of it.
            job: The job's index. None: the whole batch.

        Raises:
            ValueError: If the id is empty.
            UnknownBatchError: If there is no such batch.
            IndexError: If it has no such job.
        """
        if not batch_id:
            raise ValueError(
                f"batch_id: expected the id of a batch or the beginning of one, got {batch_id!r}"
            )
        self._engine.stop(record_of(self._engine.batch(batch_id)), job)

    def close(self, grace: float | None = None) -> None:
        """Ends its batches, threads, guard and spool; more than once is fine.

        When it returns, the Leader is closed, also if another thread began with it. An interrupt may tear it:
        then jobs have a grace of 1 s at the most, and the next call goes on from there.

        Args:
            grace: Seconds from SIGTERM to SIGKILL. None: `Leader.grace`.

        Raises:
            RuntimeError: In a job of this Leader, which would wait for its own end.
        """
        self._engine.close(grace)
        there: Any = Leader._instance  # what traitlets says of its type is wrong
        if there is self:
            Leader.clear_instance()
        _lifetime.ended()

    def _record_of(self, batch: object) -> BatchRecord | None:
        if batch is None:
            return None
        if isinstance(batch, Batch):
            return record_of(batch)
        if isinstance(batch, str):
            return record_of(self._engine.batch(batch))
        raise TypeError(f"batch: expected a Batch or an id, got {type(batch).__name__}")

    def _set(self, change: Any) -> None:
        if change.name == "max_workers":
            self._engine.set_max_workers(change.new)
        else:
            setattr(self._engine.settings, change.name, change.new)


class _Calls:
    """The calls of `map`: as many as the shortest iterable has items, if that can be told."""

    def __init__(self, function: Callable[..., Any], iterables: tuple[Iterable[Any], ...]) -> None:
        self._function = function
        self._iterables = iterables

    def __iter__(self) -> Iterator[Callable[[], Any]]:
        for each in zip(*self._iterables, strict=False):
            yield functools.partial(self._function, *each)

    def __len__(self) -> int:
        return min(len(each) for each in self._iterables)  # type: ignore[arg-type]  # where one has none, len() says so


def engine_of(leader: Leader) -> Engine:
    """Its engine, for the modules of this package: its users see none."""
    return leader._engine  # noqa: SLF001 - the one way to it


def verb(name: str) -> Callable[..., Any]:
    """A method of Leader as a function that asks the kernel's Leader of the moment of the call."""
    method = getattr(Leader, name)

    @functools.wraps(method)
    def call(*args: Any, **options: Any) -> Any:
        __tracebackhide__ = True
        return getattr(Leader.instance(), name)(*args, **options)

    signature = inspect.signature(method)
    call.__signature__ = signature.replace(  # type: ignore[attr-defined]
        parameters=list(signature.parameters.values())[1:]
    )
    return call


def _own_options() -> list[str]:
    return sorted(Leader.class_own_traits(config=True))


if hasattr(os, "register_at_fork"):
    _lifetime.IN_FORKED_CHILD.append(Leader.clear_instance)
