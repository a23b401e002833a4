"""What a Leader knows at one moment, as `get_state()` returns it.

Guarantees: snapshots are consistent with each other and never change.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

from arrea_nb._broadcast import Subscription
from arrea_nb._engine import Engine
from arrea_nb._records import BatchRecord, JobRecord
from arrea_nb.events import JobState


@dataclass(frozen=True)
class JobSnapshot:
    """One job at one moment."""

    batch_id: str
    index: int
    name: str
    kind: str
    state: JobState
    attempt: int
    started_at: float | None
    pid: int | None
    progress: float | None

    @classmethod
    def of(cls, job: JobRecord) -> JobSnapshot:
        """As it is now, without its name."""
        return cls(
            batch_id=job.batch.id,
            index=job.index,
            name="",
            kind=job.command.kind,
            state=job.state,
            attempt=job.attempt,
            started_at=job.started_at,
            pid=job.pid,
            progress=job.fraction,
        )


@dataclass(frozen=True)
class BatchSnapshot:
    """One batch at one moment."""

    id: str
    name: str
    state: JobState
    counts: Mapping[JobState, int]
    total: int
    workers: int
    started_at: float
    ended_at: float | None

    @classmethod
    def of(cls, batch: BatchRecord) -> BatchSnapshot:
        """As it is now."""
        end = batch.end_clock
        return cls(
            id=batch.id,
            name=batch.options.name,
            state=batch.state,
            counts=MappingProxyType(dict(batch.counts)),
            total=len(batch.jobs),
            workers=batch.workers,
            started_at=batch.started_at,
            ended_at=None if end is None else batch.started_at + end - batch.clock,
        )


@dataclass(frozen=True)
class LeaderState:
    """What the Leader knows at one moment: consistent, and it never changes.

    Attributes:
        batches: From id to snapshot, oldest first.
        workers: From the worker's number to the job that it runs.
        subscribers: Who hears events.
        stats: Jobs since the Leader began: started, finished, failed, cancelled, running.
        max_workers: How many jobs run at once over all batches.
        abandoned: Threads that outlived their job and still run.
    """

    batches: Mapping[str, BatchSnapshot]
    workers: Mapping[int, JobSnapshot]
    subscribers: tuple[Subscription, ...]
    stats: Mapping[str, int]
    max_workers: int
    abandoned: int

    @classmethod
    def of(cls, engine: Engine) -> LeaderState:
        """As it is now."""
        with engine.hold, engine.lock, engine.section:
            ledger = engine.ledger
            batches = [BatchSnapshot.of(one) for one in ledger.batches.values()]
            # Without their names, which are made outside the lock: the repr of an argument is user code.
            at_work = [
                (worker.number, job, JobSnapshot.of(job))
                for worker in engine.workers
                if (job := worker.job) is not None and job.state is JobState.RUNNING and not worker.lost
            ]
            stats = dict(ledger.stats)
            abandoned = ledger.abandoned
            subscribers = tuple(engine.broadcast)
            most = ledger.places.most
        stats["running"] = stats["started"] - stats["finished"] - stats["failed"] - stats["cancelled"]
        return cls(
            batches=MappingProxyType({one.id: one for one in batches}),
            workers=MappingProxyType({number: replace(one, name=job.name) for number, job, one in at_work}),
            subscribers=subscribers,
            stats=MappingProxyType(stats),
            max_workers=most,
            abandoned=abandoned,
        )
