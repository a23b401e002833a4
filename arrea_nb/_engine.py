"""The engine of a Leader: the one lock, who works, what is due, closing step by step.

It is the `Host` of batches and jobs and the `Desk` of workers (see `_records.py`), and knows no traits, no
views and no public verbs: those are the Leader's, which has one.

     OPEN ──close()──▶ CLOSING ──its last step──▶ CLOSED
                        stop all, see them out, join, deliver, forget, end guard and spool

Guarantees: there is one lock, and everything under it is short: no user code, no I/O, no widget. Publishing
happens under it and only enqueues, so that every subscriber sees one order. `with hold, lock, section` is the
only way in, except for the workers' `report`, which is the hot path and needs no care for interrupts. Closing
can be torn at any step by an interrupt, and goes on from there when it is called again.
"""

from __future__ import annotations

import contextvars
import logging
import math
import os
import secrets
import threading
import time
import warnings
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from enum import Enum, auto
from queue import SimpleQueue
from typing import Any, cast

from arrea_nb import _waits
from arrea_nb._batch import Batch, record_of
from arrea_nb._broadcast import Broadcast, Callback, Subscription, Watch
from arrea_nb._commands import BadCommand, Command, read_commands
from arrea_nb._job import Job
from arrea_nb._ledger import Ledger
from arrea_nb._options import Settings, checked_count, checked_shell, read_options
from arrea_nb._policy import Decision
from arrea_nb._progress import running
from arrea_nb._records import BatchRecord, Host, JobRecord, Latch, Outcome, brief
from arrea_nb._section import HoldInterrupts, Section
from arrea_nb._timer import Timer
from arrea_nb.errors import (
    AllWorkersFailedError,
    ArreaError,
    JobCancelled,
    JobCrashed,
    JobTimeout,
    UnknownBatchError,
)
from arrea_nb.events import Event, JobState
from arrea_nb.workers import _capture
from arrea_nb.workers._guard import Guard
from arrea_nb.workers._output import Output, Spool
from arrea_nb.workers._python import Attempt
from arrea_nb.workers._shell import SUPPORTED
from arrea_nb.workers._slot import ABANDONED, DROPPED
from arrea_nb.workers._threads import Worker

_log = logging.getLogger("arrea_nb")
INTERRUPT_GRACE = 1.0
_STEP_BACK = 0.0001  # seconds
# So many workers in a row that died of a bug before they had a job, and no further is hired.
_MOST_STILLBORN = 3
# How long an interrupted cell waits for its jobs to end, in seconds: their grace is 1 s then.
_PATIENCE = 3.0
# How long callbacks have to take the last events when their Leader closes, in seconds.
_LAST_EVENTS = 1.0
_LOG_MAILBOX = 10_000  # events


class Stage(Enum):
    """Where an engine is in its life."""

    OPEN = auto()
    """It takes batches."""
    CLOSING = auto()
    """It takes none any more; some step of closing is still to come."""
    CLOSED = auto()
    """Nothing of it is left."""


class Engine:
    """What runs the batches of one Leader.

    Args:
        settings: What can be set, read whenever it is needed.
        log_writer: Makes of the record of a batch with `log=True` who writes it to the log.
    """

    def __init__(self, settings: Settings, log_writer: Callable[[BatchRecord], Callback]) -> None:
        self.settings = settings
        self._log_writer = log_writer
        self.kernel_id = secrets.token_hex(8)
        self.process = os.getpid()
        self.stage = Stage.OPEN
        self.section = Section()
        self.hold = self.section.hold
        self.lock = self.section.lock
        self.broadcast = Broadcast()
        self.ledger = Ledger(self.broadcast.publish, settings.max_workers)
        self.timer = Timer(_weakly(self.tick))
        self.workers: set[Worker] = set()
        self.spool = Spool(self.kernel_id, _weakly(self._watch_spool))
        self.keeper = Guard(self.kernel_id, str(self.spool.directory))
        self._worker_number = 0
        self._stillborn = 0
        self._batches: weakref.WeakValueDictionary[str, Batch] = weakref.WeakValueDictionary()
        self._sweep_at: float | None = None
        # What stopped attempts executed after their stop: to be cancelled when their grace is over.
        self._orphans: list[tuple[float, Engine, BatchRecord]] = []
        # Batches of other engines to be cancelled, outside our lock, with their grace.
        self._elsewhere: deque[tuple[Engine, BatchRecord, float]] = deque()
        # Held while a step of closing is taken.
        self._closer = threading.RLock()
        self._steps_taken = 0
        self._all_told = False
        self._ending: list[BatchRecord] = []
        self._leaving: list[threading.Thread] = []
        self._deadline = 0.0

    def __del__(self) -> None:
        # Nobody can reach it, its batches and its workers included: nobody is inside, and nothing runs.
        if getattr(self, "_steps_taken", None) is None or self.process != os.getpid():
            return
        self.timer.end()
        if self.stage is Stage.CLOSED:
            return
        self.stage = Stage.CLOSED
        for one in self.broadcast:
            one.end()
        self.keeper.abandon()
        self.spool.remove()
        with suppress(Exception):  # where warnings are errors there is nobody who could catch it
            warnings.warn(
                "a Leader was dropped without close(); close it, or use it with `with`", ResourceWarning, 2
            )

    # Admission

    def prepare(
        self, commands: Any, given: Mapping[str, Any], env: Mapping[str, str] | None = None
    ) -> BatchRecord:
        """The record of a batch that is ready to be admitted. Reads what users hand in; nothing starts.

        Args:
            commands: What the user asks to run.
            given: The options of `execute` that were given.
            env: In the place of the kernel's own environment, for a batch that is run again.

        Raises:
            TypeError: For an option of the wrong type or name, or a lone command.
            ValueError: For an option out of its range.
            TooManyCommandsError: If there are too many commands.
            AllWorkersFailedError: If not one command could start.
            ArreaError: For a shell command where there are no process groups.
        """
        __tracebackhide__ = True  # a user's mistake is shown without the way that it took through here
        self.check_usable()
        options = read_options(self.settings, given, env)
        made, names, written = read_commands(
            commands, options.max_commands, cwd=options.cwd, path=options.path
        )
        _refuse_if_none_can_start(made)
        batch = BatchRecord(secrets.token_hex(8), options, contextvars.copy_context(), names)
        # A batch that a job executes does not print into that job.
        batch.context.run(running.set, None)
        batch.jobs = [JobRecord(batch, at, made[at], written[at]) for at in range(len(made))]
        kinds = {command.kind for command in made}
        if "shell" in kinds:
            if not SUPPORTED:
                raise ArreaError("shell commands need Linux (pidfd_open); here only callables run")
            batch.shell = options.shell or checked_shell(self.settings.shell, options.path)
            batch.env = {os.fsencode(key): os.fsencode(value) for key, value in options.env.items()}
        if "python" in kinds or options.policy.asks:  # which runs callables of the user's too
            _capture.install()
        return batch

    def admit(self, batch: BatchRecord) -> Batch:
        """Takes a batch in; its jobs begin.

        Raises:
            RuntimeError: If the engine closes, or in a forked child.
            JobCancelled: In a job that was abandoned.
        """
        self.check_usable()
        owner = running.get()
        if owner is not None:
            owner.adopt(batch, self)
        made = Batch(batch, cast("Host", self))
        log = None
        try:
            if batch.options.log:
                log = Subscription(_weakly(self.leave), batch.id, _LOG_MAILBOX)
                log.start(self._log_writer(batch))
            with self.hold, self.lock, self.section:
                self.check_usable()
                if log is not None:
                    self.broadcast.add(log)
                batch.clock = time.monotonic()
                batch.started_at = time.time()
                batch.heard = self.broadcast.wants(batch.id)
                self.ledger.admit(batch, batch.started_at)
                self._batches[batch.id] = made
                self._stillborn = 0
                self._hire()
                if batch.end_clock is not None:
                    self._plan_sweep(batch.clock)
        except BaseException as error:
            # An interrupt at the end of the section, for one: nobody has this Batch, so it shall not go on.
            if batch.counts:
                self.stop(batch, interrupted=isinstance(error, KeyboardInterrupt))
            elif log is not None:
                log.discard()
            raise
        return made

    def again(self, batch: BatchRecord, jobs: Sequence[JobRecord], options: Mapping[str, Any]) -> Batch:
        """Runs some jobs of a batch once more, as a new batch with the same options."""
        names = [batch.names[job.index] for job in jobs] if batch.names is not None else None
        written = [job.written for job in jobs]
        kept = batch.options
        given = {
            "workers": batch.workers,
            "timeout": kept.timeout,
            "log": kept.log,
            "policy": kept.policy,
            "name": kept.name,
            "shell": batch.shell or kept.shell,
            "cwd": kept.cwd,
            "max_commands": max(len(jobs), kept.max_commands),
        }
        commands: Any = written if names is None else dict(zip(names, written, strict=True))
        return self.admit(self.prepare(commands, {**given, **options}, kept.env))

    # For batches and jobs (Host)

    def stop(self, batch: BatchRecord, job: int | None = None, *, interrupted: bool = False) -> None:
        """Cancels a batch or one of its jobs."""
        self.check_usable(closed=True)
        if job is not None and not 0 <= job < len(batch.jobs):
            count = len(batch.jobs)
            there = f"{count}: 0 to {count - 1}" if count else "none"
            raise IndexError(f"no job {job} in batch {batch.id[:4]}… (it has {there})")
        grace = min(self.settings.grace, INTERRUPT_GRACE) if interrupted else self.settings.grace
        self.section.order(lambda: self._stop(batch, job, grace))

    def waiting(self, target: BatchRecord | JobRecord, *, each_job: bool = False) -> _waits.Wait:
        """A wait for the end of a batch, of a job, or of each job of a batch."""
        return _waits.Wait(self, target, each_job=each_job)

    def await_end(self, target: BatchRecord | JobRecord, timeout: float | None) -> bool:
        """Waits for the end of a batch or of one job. Returns whether it has come."""
        return _waits.await_end(self, target, timeout)

    def see_out(self, batch: Batch) -> None:
        """Waits for the end of a batch, inside `HoldInterrupts`; an interrupt cancels it.

        So there is no moment at which an interrupt, or a second one, could leave the batch running: it is
        raised when interrupts are let go of, after whatever else the caller does at the end.
        """
        record = record_of(batch)
        try:
            _waits.see_out(self, record)
        except BaseException:
            self.stop(record, interrupted=True)  # whatever ends the waiting: nobody else has this batch
            raise
        if HoldInterrupts.came():
            self.stop(record, interrupted=True)
            self.await_end(record, _PATIENCE)

    def register(self, target: BatchRecord | JobRecord, latch: Latch, *, each_job: bool) -> bool:
        """Lets `latch` know of the end, or of each job's end. Returns whether it has ended already."""
        self.check_usable(closed=True)
        with self.hold, self.lock, self.section:
            if target.end_clock is not None:
                return True
            if each_job and isinstance(target, BatchRecord):
                target.job_latches += (latch,)
            else:
                target.latches += (latch,)
        return False

    def unregister(self, target: BatchRecord | JobRecord, latch: Latch) -> None:
        """It need not know any more."""

        def drop() -> None:
            target.latches = tuple(one for one in target.latches if one is not latch)
            if isinstance(target, BatchRecord):
                target.job_latches = tuple(one for one in target.job_latches if one is not latch)

        self.section.order(drop)

    # For workers (Desk)

    def report(self, worker: Worker, job: JobRecord | None, result: object = None) -> JobRecord | None:
        """Takes the end of one attempt and returns what to do next: the hot path, one section for each job.

        What comes back is the next job; or the same, if its policy is to be asked first; or None.

        Who finds another worker in the queue for the lock steps back first. In a queue the lock is handed to
        a thread that has yet to get Python's own, and each job costs a switch between threads: with callables
        that return at once 15 us a job instead of 6.
        """
        section = self.section
        queue = section.queue
        if queue:
            time.sleep(_STEP_BACK)
        queue.add(worker)
        with self.lock:
            section.owner = worker.ident
            try:
                queue.discard(worker)
                slot = worker.slot
                if slot is not None:
                    worker.slot = None
                    slot.close()
                # Read inside the lock, so that the order of events is that of their times.
                now = time.monotonic()
                at = time.time()
                if worker.lost:
                    self._dismiss(worker)
                    return None
                if job is None:
                    section.shelters[worker.ident] = worker
                elif job.stop is None and type(result) is not Outcome:
                    self.ledger.returned(job, result, now, at)
                    if job.batch.end_clock is not None:
                        self._plan_sweep(now)
                else:
                    self._keep_orphans(worker, slot, now)
                    outcome = result if type(result) is Outcome else Outcome()
                    self._follow(job, self.ledger.ended(job, outcome, now, at), now)
                    if job.verdict is not None:
                        worker.grace_ends = None
                        return job
                return self._next(worker, now, at)
            finally:
                if section.later:
                    section.drain()
                section.owner = 0

    def decided(
        self, worker: Worker, job: JobRecord, decision: Decision | None, note: str | None
    ) -> JobRecord | None:
        """Takes what a policy's callable said of a failed attempt, and returns as `report` does."""
        with self.lock:
            self.section.owner = worker.ident
            try:
                slot = worker.slot
                if slot is not None:
                    worker.slot = None
                    slot.close()
                now = time.monotonic()
                at = time.time()
                if worker.lost:
                    self._dismiss(worker)
                    return None
                self._keep_orphans(worker, slot, now)
                self.section.shelters[worker.ident] = worker
                self._follow(job, self.ledger.decided(job, decision, now, at, note), now)
                return self._next(worker, now, at)
            finally:
                self.section.drain()
                self.section.owner = 0

    def _next(self, worker: Worker, now: float, at: float) -> JobRecord | None:
        """Hands it the next job; with none it is not one of the workers any more."""
        ledger = self.ledger
        following = ledger.take(now, at) if self.stage is Stage.OPEN else None
        worker.job = following
        worker.grace_ends = None
        if following is None:
            self.workers.discard(worker)
            self.section.shelters.pop(worker.ident, None)
            if not ledger.places.taken and self.timer.next != math.inf:
                self.timer.plan(now)  # it looks again, and ends when nothing is planned
            return None
        timeout = following.batch.options.timeout
        if timeout is not None and following.command.kind == "python" and now + timeout < self.timer.next:
            self.timer.plan(now + timeout)
        if ledger.places.wanting:
            self._hire()
        return following

    def _dismiss(self, worker: Worker) -> None:
        """The thread of an abandoned job has ended after all."""
        self.workers.discard(worker)
        self.section.shelters.pop(worker.ident, None)
        self.ledger.stray_ended()

    def crashed(self, worker: Worker, error: BaseException) -> None:
        """A worker died of a bug of ours: its job has failed, and another takes its place."""
        crash = JobCrashed(f"its worker died of a bug in arrea_nb: {brief(error)}")
        if isinstance(error, MemoryError):
            crash = JobCrashed("the kernel has no memory left; free some, and run it again: retry_failed()")
        crash.__cause__ = error
        with self.hold, self.lock, self.section:
            now = time.monotonic()
            at = time.time()
            if worker.slot is not None:
                slot, worker.slot = worker.slot, None
                slot.close()
            self.workers.discard(worker)
            self.section.queue.discard(worker)
            self.section.shelters.pop(worker.ident, None)
            if worker.lost:
                self.ledger.stray_ended()
            # Not only its own: it may have died while it was handed the next.
            self.ledger.crashed({one.job for one in self.workers if one.job is not None}, crash, now, at)
            self._stillborn = self._stillborn + 1 if worker.job is None else 0
            worker.job = None
            if self._stillborn < _MOST_STILLBORN:
                self._hire()
            else:
                self.ledger.fail_ready(crash, now, at)
            self._plan_sweep(now)

    def stand_in(self, worker: Worker) -> bool:
        """A worker with nothing to do looks once for the timer, if that can have no thread of its own.

        Returns:
            Whether it did, and shall ask for a job again.
        """
        if not self.timer.orphaned:
            return False
        with self.hold, self.lock, self.section:
            who = self.timer.adopt()
            if who is None:
                return False
        self.timer.look()
        with self.hold, self.lock, self.section:
            self.timer.leave(who)
            self.workers.add(worker)
        return True

    def started(self, job: JobRecord, pid: int) -> None:
        """A shell job's process runs."""
        with self.hold, self.lock, self.section:
            self.ledger.started(job, pid, time.monotonic(), time.time())

    def printed(self, job: JobRecord, stream: int, text: str, fraction: float | None = None) -> None:
        """A job printed; also in a finaliser that broke into a section of its thread."""
        if self.section.nested:
            self.section.later.append(lambda: self._printed(job, stream, text, fraction))
            return
        with self.hold, self.lock, self.section:
            self._printed(job, stream, text, fraction)

    def _printed(self, job: JobRecord, stream: int, text: str, fraction: float | None) -> None:
        at = time.time()
        self.ledger.printed(job, stream, text, at)
        if fraction is not None:
            self.ledger.progressed(job, fraction, None, None, job.message, at)

    def progressed(
        self, job: JobRecord, fraction: float | None, done: float | None, total: float | None, message: str
    ) -> None:
        """A callable told its progress."""

        def tell() -> None:
            if job.state is JobState.RUNNING:
                self.ledger.progressed(job, fraction, done, total, message, time.time())

        self.section.order(tell)

    def expired(self, job: JobRecord) -> None:
        """A shell job's deadline passed."""
        with self.hold, self.lock, self.section:
            self.ledger.stop(job, JobState.TIMED_OUT, self.settings.grace, time.monotonic(), time.time())

    @contextmanager
    def sheltered(self, slot: Attempt) -> Iterator[None]:
        """Keeps the stop exception of a callable out of what is written for it outside the lock."""
        if slot.ident != threading.get_ident():
            yield  # a thread of the callable's own, into which nothing is injected
            return
        with self.lock:
            # In this order: one that is pending since before the lock may arrive in the call.
            slot.take_back()
            slot.sheltered += 1
        try:
            yield
        finally:
            with self.lock:
                slot.sheltered -= 1
                slot.give_again()

    def stop_was_dropped(self, slot: Attempt) -> None:
        """The stop exception was raised in a finaliser, where Python drops it."""
        with self.lock:
            slot.drop()
            # Not from here: it would be raised in the finaliser's own end, and dropped again.
            self.timer.plan(time.monotonic())

    def timeout_error(self, job: JobRecord) -> JobTimeout:
        """The error of a job that ran past its deadline."""
        return self.ledger.timeout_error(job)

    def new_output(self) -> Output:
        """Where a job's output goes."""
        return Output(self.spool, self.settings.memory_output_bytes, self.settings.max_output_bytes)

    def guard(self) -> Guard:
        """The process that outlives the kernel by a moment."""
        return self.keeper

    def public(self, job: JobRecord) -> Job:
        """The Job that the user knows."""
        return self.public_batch(job.batch).jobs[job.index]

    # For attempts that wait or execute (Desk)

    def step_aside(self, slot: Attempt, latch: Latch, batch: BatchRecord) -> bool:
        """A thread of an attempt waits for a batch. The first of them gives the attempt's place up."""
        with self.hold, self.lock, self.section:
            if slot.over:
                return False
            own = any(one is batch for _, one in slot.owned)
            first = not slot.latches
            slot.latches += ((latch, own),)
            if own and slot.paused_at is None:
                slot.paused_at = time.monotonic()
            if first and not slot.job.away:
                self.ledger.places.step_aside(slot.job)
                self._hire()
            if slot.job.stop is not None and slot.ident != threading.get_ident():
                latch.put(None)
            return True

    def step_back(self, slot: Attempt, latch: Latch, bell: Latch) -> bool:
        """It has waited. The last of its threads takes the place back.

        Returns:
            Whether it may go on; else it waits for `bell`, and calls again.
        """
        with self.hold, self.lock, self.section:
            first = any(one is latch for one, _ in slot.latches)
            slot.latches = tuple(
                pair for pair in slot.latches if pair[0] is not latch and pair[0] is not bell
            )
            if (
                first
                and not slot.latches
                and not slot.over
                and not self.ledger.places.step_back(slot.job, bell)
            ):
                slot.latches = ((bell, slot.paused_at is not None),)
                return False
            if not first and slot.latches and not slot.over and not slot.job.away:
                # It got the place back just when another of its threads had begun to wait without one.
                self.ledger.places.step_aside(slot.job)
                self._hire()
            if slot.paused_at is not None and not any(own for _, own in slot.latches):
                slot.paused += time.monotonic() - slot.paused_at
                slot.paused_at = None
                deadline = _deadline(slot.job, slot)
                if deadline is not None:
                    self.timer.plan(deadline)
            return True

    def adopt(self, slot: Attempt, batch: BatchRecord, engine: Engine) -> None:
        """An attempt executes a batch: it is the attempt's own until that returns or raises by itself."""
        with self.hold, self.lock, self.section:
            if slot.state is ABANDONED:
                raise JobCancelled("the job that executes this was stopped, and its time to end is over")
            if not slot.over:
                live = tuple(pair for pair in slot.owned if pair[1].end_clock is None)
                slot.owned = (*live, (engine, batch))

    # Closing

    def close(self, grace: float | None = None) -> None:
        """Takes the steps of closing that are still to be taken; see `Leader.close`.

        Raises:
            RuntimeError: In a job of its own, which could not end before it; where it broke into a section.
        """
        if self.process != os.getpid() or self.stage is Stage.CLOSED:
            return
        attempt = running.get()
        if isinstance(attempt, Attempt) and attempt.desk is self and not attempt.over:
            raise RuntimeError(
                "a job cannot close the Leader that runs it, since it would wait for its own end; "
                "close it from outside, or cancel the batch"
            )
        with self.hold:  # refuses who broke into a section
            pass
        if self._closer._is_owned():  # type: ignore[attr-defined]  # noqa: SLF001 - Condition asks it as well
            raise RuntimeError(
                "called by a finaliser or a signal handler that broke into close(), which goes on afterwards"
            )
        grace = self.settings.grace if grace is None else min(grace, self.settings.grace)
        with self._closer:
            try:
                while self._steps_taken < len(_STEPS):
                    _STEPS[self._steps_taken](self, grace)
                    self._steps_taken += 1
            except KeyboardInterrupt:
                # Somebody is impatient: who ignores SIGTERM is killed soon, also if nobody closes further.
                with self.hold, self.lock, self.section:
                    for record in self._ending:
                        self._stop(record, None, min(grace, INTERRUPT_GRACE))
                raise

    @property
    def torn(self) -> bool:
        """Whether an interrupt tore it from closing, so that nobody is at it any more."""
        if self.stage is not Stage.CLOSING or self._closer._is_owned():  # type: ignore[attr-defined]  # noqa: SLF001 - as above
            return False
        attempt = running.get()
        if isinstance(attempt, Attempt) and attempt.desk is self and not attempt.over:
            return False  # a job of its own, which cannot close it
        if not self._closer.acquire(blocking=False):
            return False
        self._closer.release()
        return True

    def _stop_all(self, grace: float) -> None:
        with self.hold, self.lock, self.section:
            self.stage = Stage.CLOSING
            self._ending = list(self.ledger.live.values())
            for record in self._ending:
                self._stop(record, None, grace)
            self._leaving = [worker.thread for worker in self.workers if not worker.lost]
        self._deadline = time.monotonic() + self.settings.grace + 2.0

    def _see_the_end(self, _: float) -> None:
        for record in self._ending:
            self.await_end(record, max(0.0, self._deadline - time.monotonic()))

    def _join(self, _: float) -> None:
        for thread in self._leaving:
            if thread is not threading.current_thread() and thread.ident is not None:
                thread.join(max(0.0, self._deadline - time.monotonic()))

    def _deliver_the_last(self, _: float) -> None:
        with self.hold, self.lock, self.section:
            self._all_told = True
            for one in self.broadcast:
                self.broadcast.remove(one)
                one.end()
            told = self.broadcast.finishing()
        until = time.monotonic() + _LAST_EVENTS
        for one in told:
            one.finish(max(0.0, until - time.monotonic()))

    def _forget_all(self, _: float) -> None:
        with self.hold, self.lock, self.section:
            # Dropped after the lock is released: with them goes what users gave.
            known = [self.ledger.batches, self.ledger.live, self.ledger.over]
            self.ledger.batches, self.ledger.live, self.ledger.over = {}, {}, {}
            self._sweep_at = None
            self.timer.end()
            self._leaving = []
            ending, self._ending = self._ending, []
        del known, ending

    def _end_processes(self, _: float) -> None:
        self.keeper.close()
        self.spool.remove()
        self.stage = Stage.CLOSED

    # For the Leader and the notebook side

    def check_usable(self, *, closed: bool = False) -> None:
        """Refuses a forked child, and a Leader that closes unless that is fine.

        Raises:
            RuntimeError: In these cases.
        """
        if self.process != os.getpid():
            raise RuntimeError(
                "this belongs to the parent process; in a forked child execute a batch of its own"
            )
        if self.stage is not Stage.OPEN and not closed:
            raise RuntimeError("this Leader is closed; make another, or take Leader.instance()")

    def batches(self) -> list[Batch]:
        """The batches that it still knows, newest first."""
        with self.hold, self.lock, self.section:
            records = list(self.ledger.batches.values())
        return [self.public_batch(record) for record in reversed(records)]

    def batch(self, prefix: str = "") -> Batch:
        """The batch whose id begins so; the latest for an empty prefix.

        Raises:
            UnknownBatchError: If there is none, or more than one.
        """
        with self.hold, self.lock, self.section:
            exact = self.ledger.batches.get(prefix)
            known = list(self.ledger.batches) if exact is None else []
            found = [one for one in reversed(known) if one.startswith(prefix)]
            record = exact or (self.ledger.batches[found[0]] if found else None)
        if prefix and len(found) > 1:
            raise UnknownBatchError(
                f"{prefix} is short for {', '.join(one[:8] for one in found)}; say more of it"
            )
        if record is None:
            there = ", ".join(one[:8] for one in reversed(known)) or "none"
            raise UnknownBatchError(f"no batch {prefix or 'yet'}; there are: {there}")
        return self.public_batch(record)

    def public_batch(self, record: BatchRecord) -> Batch:
        """The one Batch of this record that users have."""
        with self.lock:
            found = self._batches.get(record.id)
            if found is None:
                found = self._batches[record.id] = Batch(record, cast("Host", self))
            return found

    def subscribe(
        self, callback: Callback | None, record: BatchRecord | None, mailbox_size: int
    ) -> Subscription:
        """See `Leader.subscribe`.

        Raises:
            RuntimeError: If there will be no further event to hear of.
        """
        self.check_usable(closed=True)
        batch_id = None if record is None else record.id
        made = Subscription(_weakly(self.leave), batch_id, mailbox_size)
        with self.hold, self.lock, self.section:
            over = record is not None and record.end_clock is not None and bool(record.counts)
            self.check_usable(closed=over or not self._all_told)
            there = None if callback is None else self.broadcast.find(callback, batch_id)
            if there is not None:
                return there
            if callback is not None:
                made.start(callback)  # first of all: it may be that no thread can be started
            if record is not None and record.counts:
                for event in self.ledger.replay(record, time.time()):
                    made.deliver(event)
            if over:
                made.end()
            else:
                self.broadcast.add(made)
                for one in self.ledger.live.values() if record is None else (record,):
                    one.heard = True
        return made

    def find(self, callback: Callback) -> Subscription | None:
        """A subscription of this callback, for whichever batch."""
        with self.hold, self.lock, self.section:
            return self.broadcast.find(callback, any_batch=True)

    def leave(self, subscription: Subscription) -> None:
        """Ends a subscription; an unknown one does nothing."""

        def leave() -> None:
            self.broadcast.remove(subscription)
            subscription.discard()
            for record in self.ledger.live.values():
                record.heard = self.broadcast.wants(record.id)

        self.section.order(leave)

    def publish(self, event: Event) -> None:
        """Tells every subscriber."""
        self.section.order(lambda: self.broadcast.publish(event))

    def watch(self, batch: Batch, bell: SimpleQueue[None]) -> Watch:
        """A mailbox of which jobs of this batch changed; `bell` is rung when there is something in it."""
        record = record_of(batch)
        made = Watch(self._unwatch, record, self.lock, bell)
        with self.hold, self.lock, self.section:
            record.watches += (made,)
        return made

    def set_workers(self, batch_id: str, workers: int) -> None:
        """Changes how many jobs of a batch run at once."""
        workers = checked_count("workers", workers)
        record = record_of(self.batch(batch_id))
        with self.hold, self.lock, self.section:
            record.workers = workers
            self.ledger.places.more_room()
            self.ledger.places.offer(record)
            self._hire()

    def set_max_workers(self, most: int) -> None:
        """Changes how many jobs run at once over all batches."""
        with self.hold, self.lock, self.section:
            self.settings.max_workers = self.ledger.places.most = most
            self.ledger.places.more_room()
            self._hire()

    def forget(self) -> None:
        """In a forked child: whoever held a lock at that moment is not here to release it."""
        self.stage = Stage.CLOSED  # a callable that forked and returns in the child is handed no further job
        self.section.forget()
        self.hold = self.section.hold
        self._closer = threading.RLock()
        for batch in {*self.ledger.batches.values(), *map(record_of, self._batches.values())}:
            for job in batch.jobs:
                if job.output is not None:
                    job.output.forget()
        self.keeper.forget()

    # Inside

    def _watch_spool(self) -> None:
        """A kernel with callables alone needs the guard too, once there is a spool."""
        if not SUPPORTED or self.process != os.getpid():
            return
        try:
            with HoldInterrupts():
                self.keeper.ensure()
        except (OSError, MemoryError) as error:
            _log.warning("the guard could not be started (%s): a crash now would leave spooled output", error)

    def _hire(self) -> None:
        """Starts as many workers as could have a job now."""
        if self.stage is not Stage.OPEN:
            return
        for _ in range(self.ledger.places.wanted() - sum(worker.job is None for worker in self.workers)):
            error = self._start_worker(None)
            if error is not None:
                self._go_on_without(error)
                return

    def _start_worker(self, job: JobRecord | None) -> Exception | None:
        """Returns why that cannot be, or None."""
        self._worker_number += 1
        worker = Worker(self, self._worker_number, job)
        self.workers.add(worker)
        try:
            worker.thread.start()
        except (RuntimeError, MemoryError) as error:
            self.workers.discard(worker)
            return error
        return None

    def _go_on_without(self, error: Exception) -> None:
        """No thread could be started: who works goes on with the next job; where nobody does, none runs."""
        going_on = sum(not one.lost and not (one.job is not None and one.job.away) for one in self.workers)
        _log.warning("no further thread could be started (%s); %d workers go on", error, going_on)
        now = time.monotonic()
        if going_on:
            return
        if self.timer.adopted:
            self.timer.plan(now)  # a worker stands in for the timer: it takes what is ready afterwards
            return
        failure = JobCrashed(
            "could not start: no thread could be started for it; end what uses up this user's processes "
            "(ulimit -u) or memory, and run it again: retry_failed()"
        )
        failure.__cause__ = error
        self.ledger.fail_ready(failure, now, time.time())
        self._plan_sweep(now)

    def _stop(self, batch: BatchRecord, job: int | None, grace: float) -> None:
        """Cancels it, and whatever its attempts have executed, and theirs."""
        now = time.monotonic()
        at = time.time()
        orders = deque([(batch, job)])
        while orders:
            batch, index = orders.popleft()
            if index is None:
                jobs = self.ledger.halt(batch, JobState.CANCELLED, now, at)
            else:
                jobs = [batch.jobs[index]]
            for one in jobs:
                if self.ledger.stop(one, JobState.CANCELLED, grace, now, at) or one.handed_out:
                    orders += [(owned, None) for owned in self._tell_worker(one, now)]
            if batch.end_clock is not None:
                self._plan_sweep(now)

    def _tell_worker(self, job: JobRecord, now: float) -> list[BatchRecord]:
        """Has who runs it stop. Returns the batches that it executed, of this engine."""
        for worker in self.workers:
            if worker.job is job and not worker.lost:
                if job.command.kind == "python" or job.asking:
                    ends = now + job.grace
                    worker.grace_ends = ends if worker.grace_ends is None else min(worker.grace_ends, ends)
                    self.timer.plan(worker.grace_ends)
                if worker.slot is not None:
                    worker.slot.stop()
                    return self._own(worker.slot, job.grace)
        return []

    def _own(self, slot: Attempt, grace: float) -> list[BatchRecord]:
        """What an attempt has executed is to be cancelled: returns what is ours, and notes the rest."""
        owned, slot.owned = slot.owned, ()
        for engine, batch in owned:
            if engine is not self:
                self._elsewhere.append((engine, batch, grace))
                self.timer.plan(time.monotonic())
        return [batch for engine, batch in owned if engine is self and batch.end_clock is None]

    def _keep_orphans(self, worker: Worker, slot: Attempt | None, now: float) -> None:
        """A stopped attempt has ended: what it executed after its stop has the rest of its grace."""
        if slot is None or not slot.owned or slot.job.stop is None:
            return
        until = now if worker.grace_ends is None else worker.grace_ends
        self._orphans += [(until, engine, batch) for engine, batch in slot.owned]
        self.timer.plan(until)

    def _follow(self, job: JobRecord, due: float | None, now: float) -> None:
        """What follows from the end of an attempt beyond the ledger."""
        if due is not None:
            self.timer.plan(due)
        batch = job.batch
        if batch.abort:
            batch.abort = False
            self._stop(batch, None, self.settings.grace)
        if batch.end_clock is not None:
            self._plan_sweep(now)

    def tick(self) -> None:
        """Does what is due, and tells the timer when the next thing is."""
        with self.hold, self.lock, self.section:
            now = time.monotonic()
            at = time.time()
            gone: list[BatchRecord] = []  # let go of after the lock: with them goes what users gave
            plans = [self.ledger.due(now), self._sweep(now, at, gone), self._end_orphans(now)]
            for worker in list(self.workers):
                job = worker.job
                if job is not None and not worker.lost:
                    plans.append(self._look_at(worker, job, now, at))
            plans.append(self._sweep_at)
            self._hire()
            self.timer.settle(min((plan for plan in plans if plan is not None), default=None))
        while self._elsewhere:
            engine, batch, grace = self._elsewhere.popleft()
            engine.section.order(lambda: engine._stop(batch, None, min(grace, engine.settings.grace)))  # noqa: B023, SLF001 - carried out at once or by its own thread; another Engine
        del gone

    def _look_at(self, worker: Worker, job: JobRecord, now: float, at: float) -> float | None:
        """What is due for one worker. Returns when the next thing is."""
        slot = worker.slot
        if worker.grace_ends is not None and worker.grace_ends <= now:
            self._abandon(worker, job, now, at)
            return None
        if slot is not None and slot.state is DROPPED:
            slot.stop()
        deadline = _deadline(job, slot)
        if deadline is None or deadline > now:
            return worker.grace_ends or deadline
        self.ledger.stop(job, JobState.TIMED_OUT, self.settings.grace, now, at)
        for batch in self._tell_worker(job, now):
            self._stop(batch, None, self.settings.grace)
        return worker.grace_ends

    def _abandon(self, worker: Worker, job: JobRecord, now: float, at: float) -> None:
        """Its grace is over: the job ends without its thread, and what it executed is cancelled."""
        worker.lost = True
        slot = worker.slot
        owned = []
        if slot is not None:
            slot.abandon()
            owned = self._own(slot, 0.0)
        if self.ledger.abandon(job, now, at):
            error = self._start_worker(job)
            if error is not None:
                note = f"policy.on_error: not asked, since no thread could be started ({error})"
                self.ledger.decided(job, None, now, at, note)
        for batch in owned:
            self._stop(batch, None, self.settings.grace)
        self._follow(job, None, now)

    def _end_orphans(self, now: float) -> float | None:
        due = [one for one in self._orphans if one[0] <= now]
        self._orphans = [one for one in self._orphans if one[0] > now]
        for _, engine, batch in due:
            if engine is self:
                self._stop(batch, None, self.settings.grace)
            else:
                self._elsewhere.append((engine, batch, self.settings.grace))
        return min((one[0] for one in self._orphans), default=None)

    def _plan_sweep(self, now: float) -> float | None:
        """Sees to it that the timer sweeps while there is a batch that could be removed."""
        if self._sweep_at is None and len(self.ledger.over) > self.settings.keep_batches:
            self._sweep_at = now + self.settings.cleanup_interval
            self.timer.plan(self._sweep_at)
        return self._sweep_at

    def _sweep(self, now: float, at: float, gone: list[BatchRecord]) -> float | None:
        """Lets go of old batches. Returns when the next look is."""
        if self._sweep_at is None or self._sweep_at > now:
            return self._sweep_at
        over = self.ledger.over
        for one in list(over.values())[: max(0, len(over) - self.settings.keep_batches)]:
            if now - (one.end_clock or now) <= self.settings.batch_retention:
                break  # those after it ended later
            self.ledger.remove(one, at)
            gone.append(one)
        self._sweep_at = None
        return self._plan_sweep(now)

    def _unwatch(self, watch: Watch) -> None:
        def leave() -> None:
            watch.batch.watches = tuple(one for one in watch.batch.watches if one is not watch)

        self.section.order(leave)


_STEPS: tuple[Callable[[Engine, float], None], ...] = (
    Engine._stop_all,  # noqa: SLF001 - its own
    Engine._see_the_end,  # noqa: SLF001 - its own
    Engine._join,  # noqa: SLF001 - its own
    Engine._deliver_the_last,  # noqa: SLF001 - its own
    Engine._forget_all,  # noqa: SLF001 - its own
    Engine._end_processes,  # noqa: SLF001 - its own
)


def _deadline(job: JobRecord, slot: Attempt | None) -> float | None:
    """When a callable is to be stopped; None: not, or not while it waits for a batch of its own."""
    timeout = job.batch.options.timeout
    if (
        timeout is None
        or job.clock is None
        or job.stop is not None
        or job.command.kind != "python"
        or job.asking
    ):
        return None
    if slot is None:
        return job.clock + timeout
    return None if slot.paused_at is not None else job.clock + timeout + slot.paused


def _weakly(method: Callable[..., Any]) -> Callable[..., Any]:
    """A method that does not keep its engine: once that is gone it does nothing."""
    reference = weakref.WeakMethod(method)

    def call(*args: Any) -> Any:
        there = reference()
        return None if there is None else there(*args)

    return call


def _refuse_if_none_can_start(commands: Sequence[Command]) -> None:
    errors = [command.error for command in commands if isinstance(command, BadCommand)]
    if commands and len(errors) == len(commands):
        raise AllWorkersFailedError(
            f"none of {len(errors)} commands could start; the first: {errors[0]}", len(errors), errors
        )
