"""What is inside a Leader: the one lock, the workers it hires, the timer's duties, the sweep.

It is the `Host` of batches and jobs and the `Desk` of workers (see `_records.py`); `Leader` adds the public
verbs and the options.

Guarantees: there is one lock, and everything under it is short: no user code, no I/O, no widget. Publishing
happens under it and only enqueues, so that every subscriber sees one order. `with self._lock, self._section`
is the only way in, except for the workers' `report`, which is the hot path and needs no care for interrupts.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import secrets
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from queue import Empty, SimpleQueue
from typing import Any, cast

from arrea_nb._batch import Batch
from arrea_nb._broadcast import Broadcast, Subscription, Watch
from arrea_nb._job import Job
from arrea_nb._ledger import Ledger
from arrea_nb._progress import running
from arrea_nb._records import FAILED_STATES, BatchRecord, Host, JobRecord, Latch, Outcome, brief
from arrea_nb._section import HoldInterrupts, Section, take_from
from arrea_nb._timer import Timer
from arrea_nb.errors import JobCrashed, JobTimeout
from arrea_nb.events import JobState
from arrea_nb.workers._guard import Guard
from arrea_nb.workers._output import Output, Spool
from arrea_nb.workers._shell import SUPPORTED
from arrea_nb.workers._threads import Worker

_log = logging.getLogger("arrea_nb")
INTERRUPT_GRACE = 1.0
_STEP_BACK = 0.0001  # seconds
# So many workers in a row that died of a bug before they had a job, and no further is hired.
_MOST_STILLBORN = 3


class Engine:
    """The state and the duties of a Leader that no user calls."""

    # The options, which are traits of Leader.
    max_workers: Any
    cleanup_interval: Any
    batch_retention: Any
    keep_batches: Any
    grace: Any
    max_output_bytes: Any
    memory_output_bytes: Any

    def _begin(self) -> None:
        self.kernel_id = secrets.token_hex(8)
        self._section = Section()
        self._lock = self._section.lock
        self._broadcast = Broadcast()
        self._ledger = Ledger(self._broadcast.publish, self.max_workers)
        self._timer = Timer(self._tick)
        self._workers: set[Worker] = set()
        self._worker_number = 0
        self._stillborn = 0
        self._batches: weakref.WeakValueDictionary[str, Batch] = weakref.WeakValueDictionary()
        self._spool = Spool(self.kernel_id, self._watch_spool)
        self._guard = Guard(self.kernel_id, str(self._spool.directory))
        self._sweep_at: float | None = None
        self._process = os.getpid()
        self._closed = False

    # For batches and jobs (Host)

    def stop(self, batch: BatchRecord, job: int | None = None, *, interrupted: bool = False) -> None:
        """Cancels a batch or one of its jobs."""
        self._check_usable(closed=True)
        if job is not None and not 0 <= job < len(batch.jobs):
            count = len(batch.jobs)
            there = f"{count}: 0 to {count - 1}" if count else "none"
            raise IndexError(f"no job {job} in batch {batch.id[:4]}… (it has {there})")
        grace = min(self.grace, INTERRUPT_GRACE) if interrupted else self.grace
        self._order(lambda: self._stop(batch, job, grace))

    def await_end(self, batch: BatchRecord, job: JobRecord | None, timeout: float | None) -> bool:
        """Waits for the end of a batch or of one job. A callable gives up its place meanwhile."""
        self._check_usable(closed=True)
        latch: SimpleQueue[Any] = SimpleQueue()
        target = batch if job is None else job
        with self._lock, self._section:
            if _has_ended(target):
                return True
            target.latches += (latch,)
        try:
            with self.away(latch), contextlib.suppress(Empty):
                take_from(latch, timeout)
        finally:
            with self._lock, self._section:
                target.latches = tuple(one for one in target.latches if one is not latch)
        return _has_ended(target)

    @contextmanager
    def away(self, latch: Latch) -> Iterator[None]:
        """Around a wait for a batch: a callable gives up its place meanwhile, and its stop rings `latch`."""
        worker: Worker | None = getattr(running.get(), "worker", None)
        if worker is None or worker.ident != threading.get_ident():
            yield  # not a callable, or a thread of its own, which has no place
            return
        with self._lock, self._section:
            job = worker.job
            left = job is not None and worker.open and self._ledger.give_place(job)
            if left:
                worker.latch = latch
                self._hire()
        if not left or job is None:
            yield
            return
        try:
            yield
        finally:
            with self._lock, self._section:
                worker.latch = bell = None if worker.lost else self._ledger.want_place(job)
            if bell is not None:
                bell.get()  # also rung by a stop
                worker.latch = None

    def add_latch(self, batch: BatchRecord, latch: Latch, *, each_job: bool = False) -> bool:
        """Lets `latch` know of the end, or of each job's end. Returns whether it has ended already."""
        self._check_usable(closed=True)
        with self._lock, self._section:
            if batch.end_clock is not None:
                return True
            if each_job:
                batch.job_latches += (latch,)
            else:
                batch.latches += (latch,)
        return False

    def drop_latch(self, batch: BatchRecord, latch: Latch) -> None:
        """It need not know any more."""

        def drop() -> None:
            batch.latches = tuple(one for one in batch.latches if one is not latch)
            batch.job_latches = tuple(one for one in batch.job_latches if one is not latch)

        self._order(drop)

    # For workers (Desk)

    def report(  # noqa: C901 - one section for each job: two calls more would cost a tenth of it
        self, worker: Worker, job: JobRecord | None, outcome: Outcome | None, value: object = None
    ) -> JobRecord | None:
        """Takes the end of one job and returns the next: the hot path, one section for each job.

        Who finds another worker in the queue for the lock steps back first. In a queue the lock is handed to
        a thread that has yet to get Python's own, and each job costs a switch between threads: with callables
        that return at once 15 us a job instead of 6.
        """
        ledger = self._ledger
        section = self._section
        queue = section.queue
        if queue:
            time.sleep(_STEP_BACK)
        queue.add(worker)
        with self._lock:
            queue.discard(worker)
            worker.open = False
            if worker.injected:
                worker.close()
            section.entered += 1
            try:
                # Read inside the lock, so that the order of events is that of their times.
                now = time.monotonic()
                at = time.time()
                if worker.lost:
                    self._workers.discard(worker)
                    section.shelters.pop(worker.ident, None)
                    ledger.stray_ended()
                    return None
                if job is None:
                    section.shelters[worker.ident] = worker
                elif outcome is None:
                    ledger.returned(job, value, now, at)
                    if job.batch.end_clock is not None:
                        self._plan_sweep(now)
                else:
                    due = ledger.ended(job, outcome, now, at)
                    if due is not None:
                        self._timer.plan(due)
                    elif job.state in FAILED_STATES and outcome.decision and outcome.decision.step == "abort":
                        self._stop(job.batch, None, self.grace)
                    if job.batch.end_clock is not None:
                        self._plan_sweep(now)
                following = None if self._closed else ledger.take(now, at)
                if following is None:
                    worker.begin(None, None)
                    self._workers.discard(worker)
                    section.shelters.pop(worker.ident, None)
                    if not ledger.places and self._timer.next != math.inf:
                        self._timer.plan(now)  # it looks again, and ends when nothing is planned
                else:
                    timeout = following.batch.timeout
                    deadline = None
                    if timeout is not None and following.command.kind == "python":
                        deadline = now + timeout
                        if deadline < self._timer.next:
                            self._timer.plan(deadline)
                    worker.begin(following, deadline)
                    if ledger.wanting:
                        self._hire()
                return following
            finally:
                section.drain()
                section.entered -= 1

    def crashed(self, worker: Worker, error: BaseException) -> None:
        """A worker died of a bug of ours: its job has failed, and another takes its place."""
        crash = JobCrashed(f"its worker died of a bug in arrea_nb: {brief(error)}")
        if isinstance(error, MemoryError):
            crash = JobCrashed("the kernel has no memory left; free some, and run it again: retry_failed()")
        crash.__cause__ = error
        with self._lock, self._section:
            now = time.monotonic()
            at = time.time()
            if worker.open:
                worker.close()
            self._workers.discard(worker)
            self._section.queue.discard(worker)
            self._section.shelters.pop(worker.ident, None)
            if worker.lost:
                self._ledger.stray_ended()
            # Not only its own: it may have died while it was handed the next.
            self._ledger.crashed({one.job for one in self._workers if one.job is not None}, crash, now, at)
            self._stillborn = self._stillborn + 1 if worker.job is None else 0
            worker.job = None
            if self._stillborn < _MOST_STILLBORN:
                self._hire()
            else:
                self._ledger.fail_ready(crash, now, at)
            self._plan_sweep(now)

    def stand_in(self, worker: Worker) -> bool:
        """A worker with nothing to do looks once for the timer, if that can have no thread of its own.

        Returns:
            Whether it did, and shall ask for a job again.
        """
        if not self._timer.orphaned:
            return False
        with self._lock, self._section:
            who = self._timer.adopt()
            if who is None:
                return False
        self._timer.look()
        with self._lock, self._section:
            self._timer.leave(who)
            self._workers.add(worker)
        return True

    def started(self, job: JobRecord, pid: int) -> None:
        """A shell job's process runs."""
        with self._lock, self._section:
            self._ledger.started(job, pid, time.monotonic(), time.time())

    def printed(self, job: JobRecord, stream: int, text: str, fraction: float | None = None) -> None:
        """A job printed."""
        with self._lock, self._section:
            at = time.time()
            self._ledger.printed(job, stream, text, at)
            if fraction is not None:
                self._ledger.progressed(job, fraction, None, None, job.message, at)

    def progressed(
        self, job: JobRecord, fraction: float | None, done: float | None, total: float | None, message: str
    ) -> None:
        """A callable told its progress."""
        with self._lock, self._section:
            if job.state is JobState.RUNNING:
                self._ledger.progressed(job, fraction, done, total, message, time.time())

    def expired(self, job: JobRecord) -> None:
        """A shell job's deadline passed."""
        with self._lock, self._section:
            self._ledger.stop(job, JobState.TIMED_OUT, self.grace, time.monotonic(), time.time())

    @contextmanager
    def sheltered(self, worker: Worker) -> Iterator[None]:
        """Keeps the stop exception of a callable out of what is written for it outside the lock."""
        if worker.ident != threading.get_ident():
            yield  # a thread of the callable's own, into which nothing is injected
            return
        with self._lock:
            # In this order: one that is pending since before the lock may arrive in the call.
            worker.take_back()
            worker.sheltered += 1
        try:
            yield
        finally:
            with self._lock:
                worker.sheltered -= 1
                worker.give_again()

    def stop_was_dropped(self, worker: Worker) -> None:
        """The stop exception was raised in a finaliser, where Python drops it."""
        with self._lock:
            worker.dropped = True
            # Not from here: it would be raised in the finaliser's own end, and dropped again.
            self._timer.plan(time.monotonic())

    def timeout_error(self, job: JobRecord) -> JobTimeout:
        """The error of a job that ran past its deadline."""
        return self._ledger.timeout_error(job)

    def new_output(self) -> Output:
        """Where a job's output goes."""
        return Output(self._spool, self.memory_output_bytes, self.max_output_bytes)

    def guard(self) -> Guard:
        """The process that outlives the kernel by a moment."""
        return self._guard

    def public(self, job: JobRecord) -> Job:
        """The Job that the user knows."""
        return self._public_batch(job.batch).jobs[job.index]

    # Inside

    def _check_usable(self, *, closed: bool = False) -> None:
        if self._process != os.getpid():
            raise RuntimeError(
                "this belongs to the parent process; in a forked child execute a batch of its own"
            )
        if self._closed and not closed:
            raise RuntimeError("this Leader is closed; make another, or take Leader.instance()")

    def _watch_spool(self) -> None:
        """A kernel with callables alone needs the guard too, once there is a spool."""
        if not SUPPORTED or self._process != os.getpid():
            return
        try:
            with HoldInterrupts():
                self._guard.ensure()
        except (OSError, MemoryError) as error:
            _log.warning("the guard could not be started (%s): a crash now would leave spooled output", error)

    def _forget(self) -> None:
        """In a forked child: whoever held a lock at that moment is not here to release it."""
        self._closed = True  # a callable that forked and returns in the child is handed no further job
        self._section.forget()
        for batch in {*self._ledger.batches.values(), *(one._record for one in self._batches.values())}:  # noqa: SLF001
            for job in batch.jobs:
                if job.output is not None:
                    job.output.forget()
        self._guard.forget()

    def _order(self, order: Callable[[], object]) -> None:
        """Carries out a verb without a result; from inside the section, when the section ends."""
        with self._lock:
            if self._section.mine:
                self._section.later.append(order)
                return
            with self._section:
                order()

    def _admit(self, batch: BatchRecord) -> Batch:
        made = Batch(batch, cast("Host", self))
        try:
            with self._lock, self._section:
                batch.clock = time.monotonic()
                batch.started_at = time.time()
                batch.heard = self._broadcast.wants(batch.id)
                self._ledger.admit(batch, batch.started_at)
                self._batches[batch.id] = made
                self._stillborn = 0
                self._hire()
                if batch.end_clock is not None:
                    self._plan_sweep(batch.clock)
        except KeyboardInterrupt:
            # It came at the end of the section: nobody will have this Batch, so nothing of it shall go on.
            if batch.counts:
                self.stop(batch, interrupted=True)
            raise
        return made

    def _hire(self) -> None:
        """Starts as many workers as could have a job now."""
        for _ in range(self._ledger.wanted() - sum(worker.job is None for worker in self._workers)):
            self._worker_number += 1
            worker = Worker(self, self._worker_number)
            self._workers.add(worker)
            try:
                worker.thread.start()
            except (RuntimeError, MemoryError) as error:
                self._workers.discard(worker)
                self._go_on_without(error)
                return

    def _go_on_without(self, error: Exception) -> None:
        """No thread could be started: who works goes on with the next job; where nobody does, none runs."""
        going_on = sum(not one.lost and not (one.job is not None and one.job.away) for one in self._workers)
        _log.warning("no further thread could be started (%s); %d workers go on", error, going_on)
        now = time.monotonic()
        if going_on:
            return
        if self._timer.adopted:
            self._timer.plan(now)  # a worker stands in for the timer: it takes what is ready afterwards
            return
        failure = JobCrashed(
            "could not start: no thread could be started for it; end what uses up this user's processes "
            "(ulimit -u) or memory, and run it again: retry_failed()"
        )
        failure.__cause__ = error
        self._ledger.fail_ready(failure, now, time.time())
        self._plan_sweep(now)

    def _stop(self, batch: BatchRecord, job: int | None, grace: float) -> None:
        now = time.monotonic()
        at = time.time()
        if job is None:
            jobs = self._ledger.halt(batch, JobState.CANCELLED, now, at)
        else:
            jobs = [batch.jobs[job]]
        for one in jobs:
            if self._ledger.stop(one, JobState.CANCELLED, grace, now, at) or one.handed_out:
                self._tell_worker(one, now)
        if batch.end_clock is not None:
            self._plan_sweep(now)

    def _tell_worker(self, job: JobRecord, now: float) -> None:
        for worker in self._workers:
            if worker.job is job:
                worker.stop()
                if job.command.kind == "python":
                    ends = now + job.grace
                    worker.grace_ends = ends if worker.grace_ends is None else min(worker.grace_ends, ends)
                    self._timer.plan(worker.grace_ends)

    def _tick(self) -> None:
        """Does what is due, and tells the timer when the next thing is."""
        with self._lock, self._section:
            now = time.monotonic()
            at = time.time()
            plans = [self._ledger.due(now), self._sweep(now, at)]
            for worker in list(self._workers):
                job = worker.job
                if job is None or worker.lost:
                    continue
                if worker.grace_ends is not None and worker.grace_ends <= now:
                    worker.lost = True
                    worker.open = False
                    worker.withheld = False
                    self._ledger.abandon(job, now, at)
                    if job.batch.end_clock is not None:
                        plans.append(self._plan_sweep(now))
                    continue
                if worker.unstopped:
                    worker.stop()
                if worker.deadline is not None and worker.deadline <= now and job.stop is None:
                    self._ledger.stop(job, JobState.TIMED_OUT, self.grace, now, at)
                    worker.stop()
                    worker.grace_ends = now + self.grace
                plans.append(worker.grace_ends or worker.deadline)
            self._hire()
            self._timer.settle(min((plan for plan in plans if plan is not None), default=None))

    def _plan_sweep(self, now: float) -> float | None:
        """Sees to it that the timer sweeps while there is a batch that could be removed."""
        ended = sum(one.end_clock is not None for one in self._ledger.batches.values())
        if self._sweep_at is None and ended > self.keep_batches:
            self._sweep_at = now + self.cleanup_interval
            self._timer.plan(self._sweep_at)
        return self._sweep_at

    def _sweep(self, now: float, at: float) -> float | None:
        """Lets go of old batches. Returns when the next look is."""
        if self._sweep_at is None or self._sweep_at > now:
            return self._sweep_at
        ended = [one for one in self._ledger.batches.values() if one.end_clock is not None]
        ended.sort(key=lambda one: one.end_clock or 0.0)
        for one in ended[: max(0, len(ended) - self.keep_batches)]:
            if now - (one.end_clock or now) > self.batch_retention:
                self._ledger.remove(one, at)
        self._sweep_at = None
        return self._plan_sweep(now)

    def _public_batch(self, record: BatchRecord) -> Batch:
        found = self._batches.get(record.id)
        if found is None:
            found = self._batches[record.id] = Batch(record, cast("Host", self))
        return found

    def _unsubscribe(self, subscription: Subscription) -> None:
        def leave() -> None:
            self._broadcast.remove(subscription)
            subscription.discard()
            for record in self._ledger.batches.values():
                record.heard = self._broadcast.wants(record.id)

        self._order(leave)

    def _refresh_listeners(self, record: BatchRecord | None) -> None:
        for one in self._ledger.batches.values() if record is None else (record,):
            one.heard = True

    def _unwatch(self, watch: Watch) -> None:
        def leave() -> None:
            watch.batch.watches = tuple(one for one in watch.batch.watches if one is not watch)

        self._order(leave)

    def _set_max_workers(self, change: Any) -> None:
        with self._lock, self._section:
            self._ledger.max_workers = change.new
            self._hire()


def _has_ended(record: BatchRecord | JobRecord) -> bool:
    return record.end_clock is not None
