"""What the Leader tells its subscribers: the job states, and one frozen dataclass for each event.

| event | more fields | when |
|---|---|---|
| `BatchStarted` | name, total, start_failures | once, first |
| `JobStarted` | job, attempt, pid | each attempt |
| `JobOutput` | job, stream, text | as output arrives, in chunks |
| `JobProgress` | job, fraction, done, total, message | when it changes |
| `JobRetrying` | job, attempt, delay, error | an attempt failed, another comes |
| `JobEnded` | job, state, exit_code, error, duration | once for each job, whatever happened |
| `BatchEnded` | state, counts, duration | once, last |
| `BatchRemoved` | | the cleanup timer let go of it |
| `CustomEvent` | data | `notify_event` |

Guarantees: events never change, and hold no reference to a job, a batch or a Leader. Every event has
`type` (its snake-case name), `batch_id` (None for a `CustomEvent`) and `at` (seconds since the epoch);
`job` is the job's index in its batch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, ClassVar, Literal

__all__ = [
    "BatchEnded",
    "BatchRemoved",
    "BatchStarted",
    "CustomEvent",
    "Event",
    "JobEnded",
    "JobOutput",
    "JobProgress",
    "JobRetrying",
    "JobStarted",
    "JobState",
]


class JobState(StrEnum):
    """Where a job is in its life. A batch uses RUNNING, SUCCEEDED, FAILED and CANCELLED of these."""

    QUEUED = "queued"
    """Waits for a worker."""
    RUNNING = "running"
    """A worker runs it."""
    WAITING = "waiting"
    """An attempt failed; it waits for its retry to be due."""
    SUCCEEDED = "succeeded"
    """Exit code 0, or the callable returned."""
    FAILED = "failed"
    """Another exit code, a signal, an exception, or it could not start."""
    TIMED_OUT = "timed_out"
    """Its deadline passed; what it printed is kept."""
    CANCELLED = "cancelled"
    """It was stopped, or taken out of the queue, because somebody asked for it."""
    SKIPPED = "skipped"
    """It never started, because the policy stopped the batch."""

    @property
    def ended(self) -> bool:
        """Whether this state is terminal: it never changes again."""
        return self not in _LIVE


_LIVE = frozenset({JobState.QUEUED, JobState.RUNNING, JobState.WAITING})


@dataclass(frozen=True, slots=True)
class Event:
    """What every event has."""

    type: ClassVar[str] = "event"
    batch_id: str | None
    at: float


@dataclass(frozen=True, slots=True)
class BatchStarted(Event):
    """A batch was admitted. `start_failures` are the indices of the jobs that could not start."""

    type: ClassVar[str] = "batch_started"
    name: str
    total: int
    start_failures: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class JobStarted(Event):
    """An attempt began. `attempt` counts from 1; `pid` is None for a callable in a thread."""

    type: ClassVar[str] = "job_started"
    job: int
    attempt: int
    pid: int | None


@dataclass(frozen=True, slots=True)
class JobOutput(Event):
    """A chunk of output arrived, as text; what was not UTF-8 is replaced."""

    type: ClassVar[str] = "job_output"
    job: int
    stream: Literal["stdout", "stderr"]
    text: str


@dataclass(frozen=True, slots=True)
class JobProgress(Event):
    """A job's progress changed. `fraction` is 0 to 1, or None when `total` is not known."""

    type: ClassVar[str] = "job_progress"
    job: int
    fraction: float | None
    done: float | None
    total: float | None
    message: str


@dataclass(frozen=True, slots=True)
class JobRetrying(Event):
    """Attempt number `attempt` failed with `error`; another comes in `delay` seconds."""

    type: ClassVar[str] = "job_retrying"
    job: int
    attempt: int
    delay: float
    error: str


@dataclass(frozen=True, slots=True)
class JobEnded(Event):
    """A job reached its terminal state. `duration` in seconds, None when it never started."""

    type: ClassVar[str] = "job_ended"
    job: int
    state: JobState
    exit_code: int | None
    error: str | None
    duration: float | None


@dataclass(frozen=True, slots=True)
class BatchEnded(Event):
    """The last job of a batch ended. `duration` in seconds."""

    type: ClassVar[str] = "batch_ended"
    state: JobState
    counts: Mapping[JobState, int]
    duration: float


@dataclass(frozen=True, slots=True)
class BatchRemoved(Event):
    """The cleanup timer let go of an old batch."""

    type: ClassVar[str] = "batch_removed"


@dataclass(frozen=True, slots=True)
class CustomEvent(Event):
    """What somebody gave to `notify_event`; its own `"type"` is `data["type"]`."""

    type: ClassVar[str] = "custom_event"
    data: Mapping[str, Any]
