"""All mutable job state, and the table of legal moves. No threads, no clock, no I/O.

Guarantees: every job reaches exactly one terminal state and one JobEnded, BatchEnded comes after all of
them, a job's state and what it came to change together, and `started = finished + failed + cancelled +
running` at any moment. An illegal move raises with the job's history and changes nothing. Who may run is
decided by `_places.py`.

Every verb is called under the engine's lock, takes the time as an argument, and says by its return value what
to do next: `take` the job to run, `ended` and `decided` the moment its retry is due, `halt` the jobs to stop.
A job that failed, and whose policy is a callable, is `asking` after `ended`, until `decided`. An event is
built only if somebody wants to hear of its batch.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from types import MappingProxyType

from arrea_nb._commands import BadCommand
from arrea_nb._places import Places
from arrea_nb._policy import Decision
from arrea_nb._records import (
    FAILED_STATES,
    Attempt,
    BatchRecord,
    JobRecord,
    Latch,
    Outcome,
    Verdict,
    brief,
    cancelled_error,
    trace_of,
)
from arrea_nb.errors import JobTimeout
from arrea_nb.events import (
    BatchEnded,
    BatchRemoved,
    BatchStarted,
    Event,
    JobEnded,
    JobOutput,
    JobProgress,
    JobRetrying,
    JobStarted,
    JobState,
)

QUEUED, RUNNING, WAITING = JobState.QUEUED, JobState.RUNNING, JobState.WAITING
SUCCEEDED, FAILED, TIMED_OUT = JobState.SUCCEEDED, JobState.FAILED, JobState.TIMED_OUT
CANCELLED, SKIPPED = JobState.CANCELLED, JobState.SKIPPED

LEGAL = {
    QUEUED: frozenset({RUNNING, FAILED, CANCELLED, SKIPPED}),
    RUNNING: frozenset({SUCCEEDED, FAILED, TIMED_OUT, CANCELLED, WAITING}),
    WAITING: frozenset({RUNNING, FAILED, CANCELLED, SKIPPED}),
    **dict.fromkeys((SUCCEEDED, FAILED, TIMED_OUT, CANCELLED, SKIPPED), frozenset[JobState]()),
}


class Ledger:
    """The state of every batch of one Leader.

    Args:
        publish: Takes the events that are built.
        max_workers: How many jobs run at once over all batches.
    """

    def __init__(self, publish: Callable[[Event], None], max_workers: int) -> None:
        self.places = Places(max_workers)
        self.batches: dict[str, BatchRecord] = {}  # all, the oldest first
        self.live: dict[str, BatchRecord] = {}  # of these, those that have not ended
        self.over: dict[str, BatchRecord] = {}  # and those that have, in the order of their ends
        self.abandoned = 0
        self.stats = {"started": 0, "finished": 0, "failed": 0, "cancelled": 0}
        self._publish = publish
        self._retries: list[tuple[float, int, JobRecord]] = []
        self._retry_number = 0

    # What comes in

    def admit(self, batch: BatchRecord, at: float) -> None:
        """Takes a batch in; its bad commands have failed at once."""
        self.batches[batch.id] = self.live[batch.id] = batch
        counts = dict.fromkeys(JobState, 0)
        counts[QUEUED] = batch.open_jobs = len(batch.jobs)
        batch.counts = counts
        bad = [job for job in batch.jobs if isinstance(job.command, BadCommand)]
        if batch.heard:
            self._publish(
                BatchStarted(
                    batch.id, at, batch.options.name, len(batch.jobs), tuple(job.index for job in bad)
                )
            )
        for job in bad:
            command = job.command
            assert isinstance(command, BadCommand)  # noqa: S101 - for the type checker
            job.exit_code = getattr(command.error, "exit_code", None)
            self._end(job, FAILED, command.error, batch.clock, at)
        if batch.halted is not None:  # it was cancelled before it came here
            self.halt(batch, batch.halted, batch.clock, at)
        elif batch.open_jobs:
            self.places.offer(batch)
        if not batch.jobs:
            self._end_batch(batch, batch.clock, at)

    def take(self, now: float, at: float) -> JobRecord | None:
        """The next job for a worker, which now has a place; None when there is nothing to run.

        A callable is RUNNING from here on; a shell job is when `started` tells its pid.
        """
        job = self.places.next()
        if job is None:
            return None
        job.attempt += 1
        if job.command.kind == "python":
            self.started(job, None, now, at)
        return job

    # What workers report

    def started(self, job: JobRecord, pid: int | None, now: float, at: float) -> None:
        """The attempt began."""
        self._check(job, RUNNING)
        job.clock = now
        # Not `at`: the clock may have been set since, and this stands beside the batch's times.
        job.started_at = job.batch.started_at + now - job.batch.clock
        if job.attempt == 1:
            self.stats["started"] += 1
        if pid is not None:
            job.pid = pid
        self._move(job, RUNNING)
        if job.batch.heard:
            self._publish(JobStarted(job.batch.id, at, job.index, job.attempt, pid))

    def printed(self, job: JobRecord, stream: int, text: str, at: float) -> None:
        """It printed; the bytes are in its output already."""
        batch = job.batch
        if batch.watches:
            self._mark(job)
        if batch.heard and text:
            self._publish(JobOutput(batch.id, at, job.index, "stderr" if stream else "stdout", text))

    def progressed(
        self,
        job: JobRecord,
        fraction: float | None,
        done: float | None,
        total: float | None,
        message: str,
        at: float,
    ) -> None:
        """It told its progress."""
        if (fraction, message) == (job.fraction, job.message):
            return
        job.fraction = fraction
        job.message = message
        if job.batch.watches:
            self._mark(job)
        if job.batch.heard:
            self._publish(JobProgress(job.batch.id, at, job.index, fraction, done, total, message))

    def returned(self, job: JobRecord, value: object, now: float, at: float) -> None:
        """A callable returned: `ended` for the usual case, which needs no Outcome."""
        if job.stop is not None:
            self.ended(job, Outcome(), now, at)
            return
        self._check(job, SUCCEEDED)
        job.handed_out = False
        self.places.free(job)
        job.value = value
        if job.past:
            job.error = job.told = job.trace = None  # the last attempt's
        job.end_clock = now
        self._move(job, SUCCEEDED)
        self._finish(job, now, at)

    def ended(self, job: JobRecord, outcome: Outcome, now: float, at: float) -> float | None:
        """An attempt is over. Returns the moment at which its retry is due, or None.

        If its policy has to be asked, the job is `asking` now and keeps its place until `decided`.
        """
        state, error = self._verdict(job, outcome)
        policy = job.batch.options.policy
        asks = state in FAILED_STATES and policy.asks
        plain = None if asks or state not in FAILED_STATES else policy.plain(job.attempt)
        self._check(job, WAITING if self._retries_it(job, plain, outcome.could_not_start) else state)
        if job.command.kind == "shell":
            job.exit_code = outcome.exit_code
            job.signal = outcome.signal
            job.cpu_seconds = outcome.cpu_seconds
            job.max_rss_bytes = outcome.max_rss_bytes
            job.note = outcome.note
        told = outcome.told if error is outcome.error else None
        if error is None or state not in FAILED_STATES:
            self._free(job)
            if outcome.could_not_start:
                job.attempt -= 1
            if error is None:
                job.value = outcome.value
            self._end(job, state, error, now, at, told)
            return None
        self._await_decision(job, Verdict(state, error, told, outcome.could_not_start), now)
        return None if asks else self.decided(job, plain, now, at)

    def _await_decision(self, job: JobRecord, verdict: Verdict, now: float) -> None:
        """Its attempt has ended so; what stops it from now on stops the asking."""
        job.verdict = verdict
        job.attempt_end = now
        job.stop = None
        if job.batch.watches:
            self._mark(job)

    def decided(
        self, job: JobRecord, decision: Decision | None, now: float, at: float, note: str | None = None
    ) -> float | None:
        """What follows from a failed attempt; None: nobody could be asked. Returns as `ended` does."""
        verdict = job.verdict
        assert verdict is not None  # noqa: S101 - for the type checker
        if job.stop is not None:
            decision = None  # the asking was stopped: it failed, and that is all
        ended_at = now if job.attempt_end is None else job.attempt_end
        halted = job.batch.halted is not None
        again = self._retries_it(job, decision, verdict.could_not_start)
        self._check(job, WAITING if again else verdict.state)
        self._free(job)
        job.verdict = job.attempt_end = None
        if verdict.could_not_start:
            job.attempt -= 1
        if note is not None:
            job.note = note if job.note is None else f"{job.note}; {note}"
        if again and decision is not None:
            job.told = verdict.told or brief(verdict.error)
            return self._retry(job, verdict.state, verdict.error, decision.delay, ended_at, now, at)
        self._end(job, verdict.state, verdict.error, ended_at, at, verdict.told, now=now)
        if decision is not None and decision.step in {"stop", "abort"} and not halted:
            self.halt(job.batch, SKIPPED, now, at)
        if decision is not None and decision.step == "abort":
            job.batch.abort = True
        return None

    @staticmethod
    def _retries_it(job: JobRecord, decision: Decision | None, could_not_start: bool) -> bool:  # noqa: FBT001 - of the outcome
        refused = job.batch.halted is not None or job.abandoned or could_not_start
        return decision is not None and decision.step == "retry" and not refused

    def crashed(self, held: set[JobRecord], error: Exception, now: float, at: float) -> None:
        """A worker was lost to a bug, at whatever point: what nobody holds and should be held has failed.

        Args:
            held: The jobs that the other workers have.
            error: Becomes the error of what was lost.
            now: The monotonic time.
            at: The time of day.
        """
        for batch in list(self.live.values()):
            for job in batch.jobs:
                lost = job.handed_out or job.state not in {QUEUED, WAITING}
                if not lost or job.finished or job in held:
                    continue
                if job.handed_out:
                    self._free(job)
                verdict, job.verdict = job.verdict, None
                if job.state.ended:
                    self._finish(job, now, at)
                elif verdict is not None:
                    self._end(
                        job, verdict.state, verdict.error, job.attempt_end or now, at, verdict.told, now=now
                    )
                else:
                    self._end(job, FAILED, error, now, at)
            self.places.offer(batch)  # it may have been left out of the turn

    def fail_ready(self, error: Exception, now: float, at: float) -> None:
        """There is nobody to run what is ready, and never will be: all of it has failed."""
        for batch in list(self.live.values()):
            for job in batch.jobs:
                if not job.handed_out and (job.state is QUEUED or job in batch.due):
                    self._end(job, FAILED, error, now, at)

    def abandon(self, job: JobRecord, now: float, at: float) -> bool:
        """A stopped callable did not end within its grace: its thread goes on without the job.

        Returns:
            Whether its policy has to be asked still: the job is `asking`, and needs another thread for that.
        """
        state = job.stop or CANCELLED
        note = "it did not stop within its grace and still runs, in a thread of its own"
        if job.verdict is None:
            self._check(job, state)
        job.abandoned = True
        self.abandoned += 1
        if job.verdict is not None:  # its policy's callable, that is; the attempt failed before
            self.decided(job, None, now, at, f"policy.on_error: {note}")
            return False
        error = self.timeout_error(job) if state is TIMED_OUT else cancelled_error(state)
        error.add_note(note)
        policy = job.batch.options.policy
        if state is CANCELLED:
            self._free(job)
            self._end(job, state, error, now, at)
            return False
        self._await_decision(job, Verdict(state, error, None, could_not_start=False), now)
        if policy.asks:
            return True
        self.decided(job, policy.last(), now, at)
        return False

    def stray_ended(self) -> None:
        """The thread of an abandoned job has ended after all."""
        self.abandoned -= 1

    # What stops and resumes

    def stop(self, job: JobRecord, why: JobState, grace: float, now: float, at: float) -> bool:
        """Stops one job. Returns whether a worker must be told to."""
        if job.state.ended:
            return False
        if job.handed_out:
            job.grace = min(grace, job.grace) if job.stop is not None else grace
            first = job.stop is None
            job.stop = job.stop or why
            return first
        self._end(job, CANCELLED, cancelled_error(CANCELLED), now, at)
        return False

    def halt(self, batch: BatchRecord, rest: JobState, now: float, at: float) -> list[JobRecord]:
        """Nothing of this batch starts any more; what has not started is `rest`. Returns who still runs."""
        batch.halted = batch.halted or rest
        if not batch.counts:
            return []  # it was not admitted yet, and will be halted then
        batch.due.clear()
        live = []
        for job in batch.jobs:
            if job.handed_out:
                live.append(job)
            elif not job.state.ended:
                self._end(job, rest, cancelled_error(rest), now, at)
        return live

    def due(self, now: float) -> float | None:
        """Puts the retries that are due into the queue. Returns when the next one is."""
        # One that was cancelled meanwhile goes as soon as it is seen: the timer must not wait for it.
        while self._retries and (self._retries[0][0] <= now or self._retries[0][2].state is not WAITING):
            job = heapq.heappop(self._retries)[2]
            if job.state is WAITING:
                job.batch.due.append(job)
                self.places.offer(job.batch)
        return self._retries[0][0] if self._retries else None

    def remove(self, batch: BatchRecord, at: float) -> None:
        """Lets go of a batch that has ended."""
        del self.batches[batch.id]
        self.over.pop(batch.id, None)
        if batch.heard:
            self._publish(BatchRemoved(batch.id, at))

    # What is asked

    def replay(self, batch: BatchRecord, at: float) -> list[Event]:
        """What a late subscriber missed: BatchStarted, and the latest lifecycle event of each job."""
        bad = tuple(job.index for job in batch.jobs if isinstance(job.command, BadCommand))
        events: list[Event] = [
            BatchStarted(batch.id, batch.started_at, batch.options.name, len(batch.jobs), bad)
        ]
        for job in batch.jobs:
            if job.state is RUNNING:
                events.append(JobStarted(batch.id, job.started_at or at, job.index, job.attempt, job.pid))
            elif job.state is WAITING:
                events.append(JobRetrying(batch.id, at, job.index, job.attempt, 0.0, job.told or ""))
            elif job.state.ended:
                events.append(self._job_ended(job, at))
        if batch.end_clock is not None:
            events.append(self._batch_ended(batch, at))
        return events

    @staticmethod
    def timeout_error(job: JobRecord) -> JobTimeout:
        """The error of a job that ran past its deadline."""
        return JobTimeout(
            f"timed out after {job.batch.options.timeout:g} s; "
            "give it longer with -t 10m, or %config Leader.timeout"
        )

    # The moves

    def _free(self, job: JobRecord) -> None:
        """The worker let go of the job; its place is free."""
        job.handed_out = False
        self.places.free(job)

    def _retry(
        self,
        job: JobRecord,
        state: JobState,
        error: Exception | None,
        delay: float,
        ended_at: float,
        now: float,
        at: float,
    ) -> float:
        duration = None if job.clock is None else ended_at - job.clock
        if not job.past:
            job.first_clock = job.clock
            job.first_at = job.started_at
        job.past += (Attempt(job.attempt, state, job.started_at, duration, error, job.exit_code, job.signal),)
        job.stop = None
        job.error = error
        job.fraction = None
        job.due = now + delay
        self._move(job, WAITING)
        if job.batch.heard:
            self._publish(JobRetrying(job.batch.id, at, job.index, job.attempt, delay, job.told or ""))
        self._retry_number += 1
        heapq.heappush(self._retries, (now + delay, self._retry_number, job))
        self.places.offer(job.batch)
        return now + delay

    def _verdict(self, job: JobRecord, outcome: Outcome) -> tuple[JobState, Exception | None]:
        """What this outcome makes of the job, and its error."""
        error = outcome.error
        if job.stop is CANCELLED:
            return CANCELLED, cancelled_error(CANCELLED)
        if outcome.could_not_start:
            return FAILED, error
        if job.stop is TIMED_OUT:
            return TIMED_OUT, error if isinstance(error, JobTimeout) else self.timeout_error(job)
        return (SUCCEEDED if error is None else FAILED), error

    @staticmethod
    def _check(job: JobRecord, state: JobState) -> None:
        """Refuses an illegal move before anything has changed."""
        if not job.handed_out or state not in LEGAL[job.state]:
            raise _illegal(job, state)

    def _move(self, job: JobRecord, state: JobState) -> None:
        """The only place where a job's state changes."""
        before = job.state
        if state not in LEGAL[before]:
            raise _illegal(job, state)
        counts = job.batch.counts
        counts[before] -= 1
        counts[state] += 1
        job.state = state
        if job.batch.watches:
            self._mark(job)

    def _end(
        self,
        job: JobRecord,
        state: JobState,
        error: Exception | None,
        ended_at: float,
        at: float,
        told: str | None = None,
        *,
        now: float | None = None,
    ) -> None:
        """Its last move: what it came to is there before its state says so, and with it all follows."""
        if state not in LEGAL[job.state]:
            raise _illegal(job, state)
        if error is not None or job.past:
            job.error = error
            job.told = told or (None if error is None else brief(error))
            job.trace = trace_of(error)
        job.end_clock = ended_at
        self._move(job, state)
        self._finish(job, ended_at if now is None else now, at)

    def _finish(self, job: JobRecord, now: float, at: float) -> None:
        """What follows from a job's last move."""
        batch = job.batch
        state = job.state
        job.finished = True
        ended_at = now if job.end_clock is None else job.end_clock
        began = job.clock if job.first_clock is None else job.first_clock
        if began is not None:
            if state is SUCCEEDED:
                self.stats["finished"] += 1
                if job.fraction is not None:
                    job.fraction = 1.0
            else:
                self.stats["failed" if state in FAILED_STATES else "cancelled"] += 1
            batch.spent += ended_at - began
            batch.spent_jobs += 1
        try:
            if batch.heard:
                self._publish(self._job_ended(job, at))
        finally:  # a bug there, or no memory for the event, must not leave the batch open
            if job.latches or batch.job_latches:
                for latch in job.latches:
                    latch.put(None)
                for latch in batch.job_latches:
                    latch.put(job.index)
            batch.open_jobs -= 1
            if not batch.open_jobs:
                self._end_batch(batch, now, at)
            elif not batch.in_turn:
                self.places.offer(batch)

    def _end_batch(self, batch: BatchRecord, now: float, at: float) -> None:
        counts = batch.counts
        batch.end_clock = now  # before its state says so
        if counts[FAILED] or counts[TIMED_OUT]:
            batch.state = FAILED
        elif counts[CANCELLED] or counts[SKIPPED]:
            batch.state = CANCELLED
        else:
            batch.state = SUCCEEDED
        if self.live.pop(batch.id, None) is not None:
            self.over[batch.id] = batch
        try:
            if batch.heard:
                self._publish(self._batch_ended(batch, at))
        finally:
            for watch in batch.watches:
                watch.ring()
            latches: tuple[Latch, ...] = (*batch.latches, *batch.job_latches)
            batch.latches = ()
            for latch in latches:
                latch.put(None)

    @staticmethod
    def _mark(job: JobRecord) -> None:
        for watch in job.batch.watches:
            watch.mark(job.index)

    @staticmethod
    def _job_ended(job: JobRecord, at: float) -> JobEnded:
        duration = None if job.began is None else (job.end_clock or 0.0) - job.began
        return JobEnded(job.batch.id, at, job.index, job.state, job.exit_code, job.told, duration)

    @staticmethod
    def _batch_ended(batch: BatchRecord, at: float) -> BatchEnded:
        duration = (batch.end_clock or batch.clock) - batch.clock
        return BatchEnded(batch.id, at, batch.state, MappingProxyType(dict(batch.counts)), duration)


def _illegal(job: JobRecord, state: JobState) -> AssertionError:
    held = "held by a worker" if job.handed_out else "held by no worker"
    return AssertionError(
        f"illegal move of job {job.index} of batch {job.batch.id}: {job.state} to {state}, {held}; "
        f"attempts {[attempt.state for attempt in job.past]}, attempt {job.attempt}, stop={job.stop}"
    )
