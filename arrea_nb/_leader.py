"""The Leader: admits batches, hands jobs to workers, publishes events, sweeps old batches.

Orders go down as verbs, news comes up in the past tense:

     execute ──▶ Ledger.admit ──▶ worker thread ──▶ process / callable
                    ▲   │              │
                    │   └─ publish ────┼──▶ mailboxes ──▶ subscribers, views
                    └── report ◀───────┘  (the end of one job; returns the next)

Guarantees: options are checked before anything starts, and every public method works from any thread. What
goes on inside, and the one lock, is in `_engine.py`.
"""

from __future__ import annotations

import atexit
import functools
import inspect
import itertools
import logging
import math
import os
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from queue import SimpleQueue
from types import MappingProxyType
from typing import Any, ClassVar

from traitlets import Float, Int, Unicode
from traitlets.config import SingletonConfigurable

from arrea_nb._admission import DEFAULT, read_batch, unknown_option
from arrea_nb._batch import Batch
from arrea_nb._broadcast import Callback, Subscription, Watch
from arrea_nb._commands import checked_count
from arrea_nb._engine import INTERRUPT_GRACE, Engine
from arrea_nb._log import LogWriter
from arrea_nb._policy import Policy
from arrea_nb._progress import running
from arrea_nb._records import BatchRecord, JobRecord
from arrea_nb._section import HoldInterrupts, take_from
from arrea_nb._state import BatchSnapshot, JobSnapshot, LeaderState
from arrea_nb.errors import UnknownBatchError
from arrea_nb.events import CustomEvent, JobState
from arrea_nb.workers import _capture
from arrea_nb.workers._threads import hear_no_more

_log = logging.getLogger("arrea_nb")
_leaders: weakref.WeakSet[Leader] = weakref.WeakSet()
# How long an interrupted cell waits for its jobs to end, in seconds: their grace is 1 s then.
_PATIENCE = 3.0


@dataclass
class _Views:
    """Who shows batches; the notebook side registers itself here."""

    show: Callable[[Batch], Any] | None = None
    widget: Callable[[Batch], Any] | None = None
    waited: Callable[[Batch], None] | None = None


class Leader(Engine, SingletonConfigurable):
    """Runs batches of commands. One for a kernel: `Leader.instance()`.

    `Leader(max_workers=8)`, with or without `with`, is one of its own, to be closed by its owner.

    Raises:
        TraitError: For an option of the wrong type.
        TypeError: For an unknown option.

    Example:
        >>> with Leader(max_workers=8) as leader:        # doctest: +SKIP
        ...     leader.execute(["true"]).wait()
    """

    workers = Int(4, min=1, help="Jobs of a batch that run at once.").tag(config=True)
    timeout = Float(
        30.0, allow_none=True, help="Seconds for each attempt, time in the queue not counted; 0: no limit."
    ).tag(config=True)
    max_commands = Int(100, min=1, help="Commands in one batch.").tag(config=True)
    max_workers = Int(100, min=1, help="Jobs that run at once over all batches.").tag(config=True)
    cleanup_interval = Float(60.0, min=0.001, help="Seconds between two looks for old batches.").tag(
        config=True
    )
    batch_retention = Float(300.0, min=0, help="Seconds that an ended batch is kept.").tag(config=True)
    keep_batches = Int(20, min=0, help="So many ended batches are kept in any case.").tag(config=True)
    grace = Float(2.0, min=0, help="Seconds from SIGTERM to SIGKILL; 0 kills at once.").tag(config=True)
    shell = Unicode("/bin/sh", help="The shell that runs lines, by name or path.").tag(config=True)
    max_output_bytes = Int(1 << 30, min=0, help="Output of one job that is kept, in bytes.").tag(config=True)
    memory_output_bytes = Int(256 << 10, min=1024, help="Of which so much in memory, in bytes.").tag(
        config=True
    )

    views: ClassVar[_Views] = _Views()

    def __init__(self, **options: Any) -> None:
        unknown = [name for name in options if name not in self.trait_names()]
        if unknown:
            raise TypeError(f"{unknown[0]}: no such option of a Leader; it has {', '.join(_own_options())}")
        super().__init__(**options)
        self._begin()
        self.observe(self._set_max_workers, "max_workers")
        _leaders.add(self)
        atexit.register(_close_at_exit, weakref.ref(self))

    @classmethod
    def instance(cls, *args: Any, **options: Any) -> Leader:
        """The kernel's Leader, made at the first call.

        Raises:
            ValueError: If there is one already and `options` ask for another.
        """
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

    # Public verbs

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
        self._check_usable()
        if not isinstance(log, bool):
            raise TypeError(f"log: expected True or False, got {log!r}")
        batch = read_batch(
            commands,
            limit=self.max_commands if max_commands is DEFAULT else max_commands,
            workers=self.workers if workers is DEFAULT else workers,
            timeout=self.timeout if timeout is DEFAULT else timeout,
            policy=policy,
            name=name,
            shell=shell,
            default_shell=self.shell,
            cwd=cwd,
            env=env,
        )
        if any(job.command.kind == "python" for job in batch.jobs):
            _capture.install()
        if log:
            self.subscribe(LogWriter(batch).write, batch=batch)
        return self._admit(batch)

    def run(self, commands: Any, **options: Any) -> list[Any]:
        """Executes, shows, waits, and returns the values; an interrupt cancels the batch.

        Args:
            commands: As for `execute`.
            **options: As for `execute`.

        Raises:
            BatchFailed: If a job did not succeed.
        """
        __tracebackhide__ = True
        if isinstance(commands, Iterator):
            # A generator is the user's code: it can be interrupted, and may be endless.
            limit = options.get("max_commands", self.max_commands)
            commands = list(itertools.islice(commands, limit + 1)) if isinstance(limit, int) else commands
        with self.uninterrupted():
            batch = self.execute(commands, **options)
            view = self.show(batch)
            try:
                self.see_out(batch)
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
        from functools import partial

        __tracebackhide__ = True
        if not callable(function):
            raise TypeError(f"function: expected a callable, got {type(function).__name__}")
        if not iterables:
            raise TypeError("iterables: expected at least one, got none")
        return self.run((partial(function, *each) for each in zip(*iterables, strict=False)), **options)

    def subscribe(
        self,
        callback: Callback | None = None,
        *,
        batch: Batch | BatchRecord | str | None = None,
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
        checked_count("mailbox_size", mailbox_size)
        record = self._record_of(batch)
        made = None
        with self._lock, self._section:
            batch_id = None if record is None else record.id
            if callback is not None:
                made = self._broadcast.find(callback, batch_id)
            if made is None:
                made = Subscription(self._unsubscribe, batch_id, mailbox_size)
                if callback is not None:
                    made.start(callback)  # first of all: it may be that no thread can be started
                if record is not None and record.counts:
                    for event in self._ledger.replay(record, time.time()):
                        made.deliver(event)
                if record is not None and record.end_clock is not None and record.counts:
                    made.end()
                else:
                    self._broadcast.add(made)
                    self._refresh_listeners(record)
        return made

    def unsubscribe(self, whom: Subscription | Callback) -> None:
        """Ends a subscription, named by itself or by its callback; an unknown one does nothing."""
        if isinstance(whom, Subscription):
            self._unsubscribe(whom)
            return
        while True:
            with self._lock, self._section:
                found = self._broadcast.find(whom, any_batch=True)
            if found is None:
                return
            self._unsubscribe(found)

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
        custom = CustomEvent(None, time.time(), MappingProxyType(dict(event)))
        self._order(lambda: self._broadcast.publish(custom))

    def get_state(self) -> LeaderState:
        """What the Leader knows now."""
        with self._lock, self._section:
            batches = [BatchSnapshot.of(one) for one in self._ledger.batches.values()]
            # Without their names, which are made outside the lock: the repr of an argument is user code.
            at_work = [
                (worker.number, job, JobSnapshot.of(job))
                for worker in self._workers
                if (job := worker.job) is not None and job.state is JobState.RUNNING
            ]
            stats = dict(self._ledger.stats)
            abandoned = self._ledger.abandoned
            subscribers = tuple(self._broadcast)
        stats["running"] = stats["started"] - stats["finished"] - stats["failed"] - stats["cancelled"]
        workers = {number: replace(one, name=job.name) for number, job, one in at_work}
        return LeaderState(
            batches=MappingProxyType({one.id: one for one in batches}),
            workers=MappingProxyType(workers),
            subscribers=subscribers,
            stats=MappingProxyType(stats),
            max_workers=self.max_workers,
            abandoned=abandoned,
        )

    def cancel(self, batch_id: str, job: int | None = None) -> None:
        """Cancels a batch, or one job of it.

        Args:
            batch_id: The id, or the beginning of it.
            job: The job's index. None: the whole batch.

        Raises:
            UnknownBatchError: If there is no such batch.
            IndexError: If it has no such job.
        """
        self.stop(self.batch(batch_id)._record, job)  # noqa: SLF001

    def close(self, grace: float | None = None) -> None:
        """Ends its batches, threads, guard and spool; more than once is fine.

        Args:
            grace: Seconds from SIGTERM to SIGKILL. None: `Leader.grace`.
        """
        if self._process != os.getpid() or self._closed:
            return
        self._closed = True
        with self._lock, self._section:
            records = [one for one in self._ledger.batches.values() if one.end_clock is None]
            for record in records:
                self._stop(record, None, self.grace if grace is None else min(grace, self.grace))
            threads = [worker.thread for worker in self._workers if not worker.lost]
        deadline = time.monotonic() + self.grace + 2.0
        for record in records:
            self.await_end(record, None, max(0.0, deadline - time.monotonic()))
        for thread in threads:
            if thread is not threading.current_thread():
                thread.join(max(0.0, deadline - time.monotonic()))
        with self._lock, self._section:
            self._ledger.batches.clear()
            self._sweep_at = None
            for one in self._broadcast:
                self._broadcast.remove(one)
                one.discard()
            if self._timer.next != math.inf:
                self._timer.plan(0.0)  # it looks again, and ends
        self._guard.close()
        self._spool.remove()
        if Leader.initialized() and Leader.instance() is self:
            Leader.clear_instance()
        if not any(not one._closed for one in _leaders):  # noqa: SLF001
            _capture.uninstall()
            hear_no_more()

    # For the notebook side

    def batches(self) -> list[Batch]:
        """The batches that the Leader still knows, newest first."""
        with self._lock, self._section:
            records = list(self._ledger.batches.values())
        return [self._public_batch(record) for record in reversed(records)]

    def batch(self, prefix: str = "") -> Batch:
        """The batch whose id begins so; the latest for an empty prefix.

        Raises:
            UnknownBatchError: If there is none, or more than one.
        """
        batches = self.batches()
        found = [one for one in batches if one.id.startswith(prefix)]
        if prefix and len(found) > 1:
            raise UnknownBatchError(
                f"{prefix} is short for {', '.join(one.id[:8] for one in found)}; say more of it"
            )
        if not found:
            there = ", ".join(one.id[:8] for one in batches) or "none"
            raise UnknownBatchError(f"no batch {prefix or 'yet'}; there are: {there}")
        return found[0]

    def watch(self, batch: Batch, bell: SimpleQueue[None]) -> Watch:
        """A mailbox of which jobs of this batch changed; `bell` is rung when there is something in it."""
        record = batch._record  # noqa: SLF001
        made = Watch(self._unwatch, record, self._lock, bell)
        with self._lock, self._section:
            record.watches += (made,)
        return made

    def set_workers(self, batch_id: str, workers: int) -> None:
        """Changes how many jobs of a batch run at once."""
        checked_count("workers", workers)
        record = self.batch(batch_id)._record  # noqa: SLF001
        with self._lock, self._section:
            record.workers = workers
            self._ledger._offer(record)  # noqa: SLF001
            self._hire()

    @classmethod
    def show_with(
        cls,
        show: Callable[[Batch], Any] | None,
        widget: Callable[[Batch], Any] | None = None,
        waited: Callable[[Batch], None] | None = None,
    ) -> None:
        """Registers what shows the batches of every Leader in this process; None: nothing does."""
        cls.views.show, cls.views.widget, cls.views.waited = show, widget, waited

    @contextmanager
    def uninterrupted(self) -> Iterator[None]:
        """Holds SIGINT back on the main thread, and raises it at the end."""
        with HoldInterrupts():
            yield

    @property
    def interrupted(self) -> bool:
        """Whether the stop button was pressed in what `uninterrupted` holds here."""
        return HoldInterrupts.noted and threading.current_thread() is threading.main_thread()

    def see_out(self, batch: Batch) -> None:
        """Waits for the end of a batch, inside `uninterrupted`; an interrupt cancels it.

        So there is no moment at which an interrupt, or a second one, could leave the batch running: it is
        raised when `uninterrupted` ends, after whatever else the caller does at the end.
        """
        record = batch._record  # noqa: SLF001
        bell: SimpleQueue[Any] = SimpleQueue()
        HoldInterrupts.bell = bell if threading.current_thread() is threading.main_thread() else None
        try:
            if not self.add_latch(record, bell) and not self.interrupted:
                with self.away(bell):
                    take_from(bell, None)
        finally:
            HoldInterrupts.bell = None
            self.drop_latch(record, bell)
        if self.interrupted:
            batch.cancel(interrupted=True)
            batch.wait(_PATIENCE)
        else:
            self.waited(batch)

    def show(self, batch: Batch) -> Any:
        """Shows a batch, if something that can is registered. Returns its view, or None."""
        if self.views.show is None:
            print(repr(batch))  # noqa: T201 - what a cell's last value does without the extension
            return None
        return self.views.show(batch)

    def widget(self, batch: Batch) -> Any:
        """The live view as a widget."""
        if self.views.widget is None:
            raise RuntimeError("batch.widget needs the notebook extension; run: %load_ext arrea_nb")
        return self.views.widget(batch)

    def waited(self, batch: Batch) -> None:
        """Tells the views that somebody waited for this batch and it has ended."""
        if self.views.waited is not None:
            self.views.waited(batch)

    def again(self, batch: BatchRecord, jobs: Sequence[JobRecord], options: Mapping[str, Any]) -> Batch:
        """Runs some jobs of a batch once more, as a new batch with the same options."""
        names = [batch.names[job.index] for job in jobs] if batch.names is not None else None
        written = [job.written for job in jobs]
        env = {os.fsdecode(key): os.fsdecode(value) for key, value in batch.env.items()} or None
        defaults = {
            "workers": batch.workers,
            "timeout": batch.timeout,
            "policy": batch.policy,
            "name": batch.name,
            "shell": batch.shell or None,
            "cwd": batch.cwd,
            "env": env,
            "max_commands": max(len(jobs), self.max_commands),
        }
        commands = written if names is None else dict(zip(names, written, strict=True))
        return self.execute(commands, **{**defaults, **options})

    # Inside

    def _record_of(self, batch: Batch | BatchRecord | str | None) -> BatchRecord | None:
        if batch is None or isinstance(batch, BatchRecord):
            return batch
        if isinstance(batch, Batch):
            return batch._record  # noqa: SLF001
        if not isinstance(batch, str):
            raise TypeError(f"batch: expected a Batch or an id, got {type(batch).__name__}")
        return self.batch(batch)._record  # noqa: SLF001


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


def _close_at_exit(reference: weakref.ref[Leader]) -> None:
    leader = reference()
    if leader is None or leader._process != os.getpid() or leader._closed:  # noqa: SLF001
        return
    live = sum(one.open_jobs for one in leader._ledger.batches.values())  # noqa: SLF001
    if live:
        print(
            f"arrea_nb: {live} jobs had not ended at exit and were cancelled; wait() waits for them",
            file=sys.__stderr__,
        )
    leader.close(grace=INTERRUPT_GRACE)


def _after_fork_in_child() -> None:
    for leader in _leaders:
        leader._forget()  # noqa: SLF001
    Leader.clear_instance()
    HoldInterrupts.forget()
    # A callable that forked is nobody's job here: what it prints and waits for is the child's own.
    running.set(None)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
