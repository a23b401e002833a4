"""Places: who may run now, over all batches. As pure as the ledger, which owns one of these.

Three want a place: a callable that gave its own up to wait for a batch and comes back, a retry that is due,
and a first attempt. `next` decides between all of them, and nobody else does.

Guarantees: `workers` of a batch and `most` over all of them are never exceeded, save by threads of one job
(see `step_aside`); who comes back goes before whoever has not begun; a retry goes before first attempts of
its batch, and these begin in the order given; batches share free places in turn.
"""

from __future__ import annotations

from collections import deque

from arrea_nb._records import BatchRecord, JobRecord, Latch
from arrea_nb.events import JobState

QUEUED, WAITING = JobState.QUEUED, JobState.WAITING


class Places:
    """The places of one engine.

    Args:
        most: How many there are, over all batches.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self.taken = 0  # over all batches; abandoned threads have none
        self._turn: deque[BatchRecord] = deque()  # batches that could use a place, the next first
        self._returning: deque[tuple[JobRecord, Latch]] = deque()

    @property
    def wanting(self) -> bool:
        """Whether some batch could use a place, and there may be one."""
        return bool(self._turn) and self.taken < self.most

    def wanted(self) -> int:
        """How many places could be filled now with jobs that are ready."""
        free = self.most - self.taken
        if free <= 0 or not self._turn:
            return 0
        return min(free, sum(_ready(batch) for batch in self._turn))

    def next(self) -> JobRecord | None:
        """Gives places to those who come back; then the job that begins now, which has one, or None."""
        if self._returning:
            self._give_back()
        turn = self._turn
        while turn and self.taken < self.most:
            batch = turn.popleft()
            batch.in_turn = False
            job = _next_of(batch)
            if job is None:
                continue
            job.handed_out = True
            self.taken += 1
            batch.running += 1
            if batch.running < batch.workers:
                self.offer(batch)
            return job
        return None

    def offer(self, batch: BatchRecord) -> None:
        """Puts the batch into the turn if it could use a place."""
        if (
            not batch.in_turn
            and batch.running < batch.workers
            and (batch.due or (batch.next_new < len(batch.jobs) and batch.halted is None))
        ):
            batch.in_turn = True
            self._turn.append(batch)

    def free(self, job: JobRecord) -> None:
        """A job that had a place, or has given it up to wait, is over."""
        if job.away:
            job.away = False
            return
        job.batch.running -= 1
        self.taken -= 1
        if self._returning:
            self._give_back()

    def step_aside(self, job: JobRecord) -> None:
        """A callable waits for a batch: its place is free meanwhile.

        Where a thread of its own waits, and not the callable itself, that may work on: then the job exceeds
        `workers` for that time.
        """
        job.away = True
        job.batch.running -= 1
        self.taken -= 1
        if self._returning:
            self._give_back()
        self.offer(job.batch)

    def step_back(self, job: JobRecord, bell: Latch) -> bool:
        """It wants its place back. Returns whether it has it; else `bell` rings when it has, or stops."""
        if not job.away or job.stop is not None:
            return True
        self._returning.append((job, bell))
        self._give_back()
        return not job.away

    def more_room(self) -> None:
        """There may be more places, or a batch may have more of them."""
        if self._returning:
            self._give_back()

    def _give_back(self) -> None:
        kept: deque[tuple[JobRecord, Latch]] = deque()
        for job, bell in self._returning:
            batch = job.batch
            if not job.away or job.stop is not None:
                continue  # it ended, or ends: what waits was woken by its stop
            if batch.running < batch.workers and self.taken < self.most:
                job.away = False
                batch.running += 1
                self.taken += 1
                bell.put(None)
            else:
                kept.append((job, bell))
        self._returning = kept


def _ready(batch: BatchRecord) -> int:
    queued = len(batch.due) + batch.counts[QUEUED]
    return min(queued, batch.workers - batch.running)


def _next_of(batch: BatchRecord) -> JobRecord | None:
    if batch.running >= batch.workers:
        return None
    while batch.due:
        job = batch.due.popleft()
        if job.state is WAITING:
            return job
    jobs = batch.jobs
    while batch.next_new < len(jobs):
        job = jobs[batch.next_new]
        batch.next_new += 1
        if job.state is QUEUED:
            return job
    return None
