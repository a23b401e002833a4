"""What a Leader knows at one moment, as `get_state()` returns it.

Guarantees: snapshots are consistent with each other and never change.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from arrea_nb._broadcast import Subscription
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
