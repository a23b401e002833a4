"""What one job and one batch are made of, and what workers and users may ask of an engine.

`JobRecord` and `BatchRecord` hold everything that changes; `Outcome` and `Attempt` say how an attempt went;
`Host` is the engine as batches and jobs know it, `Desk` the engine as workers know it.

Guarantees: records are written by the Ledger alone, under the Leader's lock, and read by anybody. Each field
is replaced, never changed in place, where it is more than a number.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Awaitable, Mapping, Sequence
from contextlib import AbstractContextManager
from contextvars import Context
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, NamedTuple, Protocol

from arrea_nb._commands import Command
from arrea_nb._options import BatchOptions
from arrea_nb._policy import Decision
from arrea_nb._section import Stop
from arrea_nb.errors import ArreaError, JobCancelled, JobTimeout
from arrea_nb.events import JobState

FAILED_STATES = frozenset({JobState.FAILED, JobState.TIMED_OUT})


class ShellResult(NamedTuple):
    """The value of a shell job that succeeded."""

    exit_code: int
    stdout: str
    stderr: str


@dataclass(frozen=True, slots=True)
class Attempt:
    """The record of one attempt. Times in seconds since the epoch, `duration` in seconds."""

    number: int
    state: JobState
    started_at: float | None
    duration: float | None
    error: Exception | None
    exit_code: int | None
    signal: int | None


class Outcome:
    """What a worker reports when an attempt is over.

    Attributes:
        value: What the callable returned, or the ShellResult.
        error: Why it failed; None when it succeeded.
        could_not_start: The attempt never ran: the program could not be spawned.
        note: What a reader of the record should know besides.
        told: The error in one line; made by the worker, since a user's `__str__` must not run under the lock.
    """

    could_not_start: bool = False
    exit_code: int | None = None
    signal: int | None = None
    cpu_seconds: float | None = None
    max_rss_bytes: int | None = None
    note: str | None = None
    told: str | None = None

    def __init__(self, value: Any = None, error: Exception | None = None) -> None:
        self.value = value
        self.error = error


class OutputView(Protocol):
    """What one attempt printed, as far as Job reads it."""

    @property
    def path(self) -> str | None: ...

    @property
    def size(self) -> int: ...

    def forget(self) -> None: ...

    def reopen(self) -> None: ...

    def read(self, stream: int | None = None) -> bytes: ...

    def tail(self, size: int) -> bytes: ...

    def head(self, size: int) -> tuple[list[tuple[str, str]], int]: ...

    def since(self, offset: int, limit: int) -> tuple[list[tuple[str, str]], int, int]: ...


class Verdict(NamedTuple):
    """What a failed attempt came to, before its policy was asked."""

    state: JobState
    error: Exception
    told: str | None
    could_not_start: bool


class Latch(Protocol):
    """What waits for an end: a SimpleQueue, or a bridge into an event loop."""

    def put(self, item: Any, /) -> None: ...


class JobRecord:
    """Everything about one job that changes. Written by the Ledger alone, under the Leader's lock.

    Defaults stand on the class: a batch of 20,000 makes 20,000 of these before `execute` returns.
    """

    state: JobState = JobState.QUEUED
    attempt = 0
    past: tuple[Attempt, ...] = ()
    handed_out = False  # a worker has it, though it may not have started yet
    away = False  # it waits for another batch and gave its place up meanwhile
    stop: JobState | None = None  # CANCELLED or TIMED_OUT: it is being stopped, and this it will be
    grace: float = 0.0
    # While its policy is asked: what the attempt came to, and the clock of its end.
    verdict: Verdict | None = None
    attempt_end: float | None = None
    first_clock: float | None = None  # of its first attempt, once there is a second; clocks are monotonic
    clock: float | None = None
    end_clock: float | None = None
    due: float | None = None  # while it waits, the clock of its next attempt
    first_at: float | None = None
    started_at: float | None = None
    value: Any = None
    error: Exception | None = None
    trace: TracebackType | None = None  # of the error, as it was when the job ended
    told: str | None = None  # the error in one line
    exit_code: int | None = None
    signal: int | None = None
    pid: int | None = None
    fraction: float | None = None
    message = ""
    note: str | None = None
    output: OutputView | None = None
    cpu_seconds: float | None = None
    max_rss_bytes: int | None = None
    abandoned = False
    finished = False  # what follows from its last move was done
    latches: tuple[Latch, ...] = ()

    def __init__(self, batch: BatchRecord, index: int, command: Command, written: object) -> None:
        self.batch = batch
        self.index = index
        self.command = command
        self.written = written

    @property
    def asking(self) -> bool:
        """Whether its attempt is over and its policy is being asked what comes next."""
        return self.verdict is not None

    @property
    def began(self) -> float | None:
        """The monotonic clock when its first attempt began."""
        return self.clock if self.first_clock is None else self.first_clock

    @property
    def name(self) -> str:
        """The name that the user gave, or the command as a reader would write it."""
        names = self.batch.names
        return names[self.index] if names is not None else self.command.name

    def elapsed(self, now: float) -> float | None:
        """Seconds of the attempt that runs, or of the whole job once it ended."""
        if self.end_clock is not None:
            return None if self.began is None else self.end_clock - self.began
        if self.clock is None or self.state is not JobState.RUNNING:
            return None
        return (now if self.attempt_end is None else self.attempt_end) - self.clock


@dataclass(eq=False)
class BatchRecord:
    """Everything about one batch. Written by the Ledger alone, under the Leader's lock."""

    id: str
    options: BatchOptions
    context: Context
    names: list[str] | None = None
    shell: str = ""  # none, if no command is for one
    env: Mapping[bytes, bytes] = field(default_factory=dict, repr=False)  # none, in that case
    workers: int = 0  # as the options have it, until somebody changes it
    jobs: list[JobRecord] = field(default_factory=list)
    state: JobState = JobState.RUNNING
    counts: dict[JobState, int] = field(default_factory=dict)
    started_at: float = 0.0
    clock: float = 0.0
    end_clock: float | None = None
    next_new: int = 0  # the first job that nobody has looked at yet
    due: deque[JobRecord] = field(default_factory=deque)  # retries whose delay is over
    open_jobs: int = 0  # not yet in a terminal state
    running: int = 0  # places taken
    halted: JobState | None = None  # nothing new starts, the rest will be this
    abort: bool = False  # its policy said so: what runs is to be cancelled as well
    in_turn: bool = False
    spent: float = 0.0  # seconds that its ended jobs took, and how many did
    spent_jobs: int = 0
    latches: tuple[Latch, ...] = ()
    job_latches: tuple[Latch, ...] = ()
    watches: tuple[Any, ...] = ()
    heard: bool = False  # some subscriber wants its events

    def __post_init__(self) -> None:
        self.workers = self.workers or self.options.workers

    def eta(self, now: float) -> float | None:
        """Seconds that are probably left (C23); None when there is no ground to say so.

        What a job usually takes is the mean of those that ended and of those whose progress tells. A running
        job that is past that will take longer than was thought, so it counts with what it took so far.
        """
        if self.end_clock is not None:
            return None
        told: list[tuple[float, float]] = []  # of a running job: what it took so far, and will take in all
        untold: list[float] = []
        for job in [job for job in self.jobs if job.state is JobState.RUNNING]:
            elapsed = job.elapsed(now)
            if elapsed is None:
                continue
            if job.fraction:
                told.append((elapsed, elapsed / job.fraction))
            else:
                untold.append(elapsed)
        known = self.spent_jobs + len(told)
        if not known:
            return None
        spent = self.spent + sum(whole for _, whole in told)
        late = [elapsed for elapsed in untold if elapsed > spent / known]
        usual = (spent + sum(late)) / (known + len(late))
        rests = [whole - elapsed for elapsed, whole in told]
        rests += [usual - elapsed for elapsed in untold if elapsed < usual]
        left = sum(rests) + usual * (self.counts[JobState.QUEUED] + self.counts[JobState.WAITING])
        if not left and late:
            return None  # only such are left as nobody knows anything of
        return max(left / max(1, min(self.workers, self.open_jobs)), *rests, 0.0)


class Waiting(Protocol):
    """One wait for the end of a batch, of a job, or of each job of a batch; a context."""

    @property
    def over(self) -> bool: ...

    def __enter__(self) -> Waiting: ...

    def __exit__(self, *error: object) -> None: ...

    def take(self, timeout: float | None) -> Any: ...

    def take_in_loop(self) -> Awaitable[None]: ...


class Host(Protocol):
    """What an engine does for batches and jobs; they know nothing else of it."""

    def stop(self, batch: BatchRecord, job: int | None = None, *, interrupted: bool = False) -> None: ...

    def waiting(self, target: BatchRecord | JobRecord, *, each_job: bool = False) -> Waiting: ...

    def await_end(self, target: BatchRecord | JobRecord, timeout: float | None) -> bool: ...

    def again(self, batch: BatchRecord, jobs: Sequence[JobRecord], options: Mapping[str, Any]) -> Any: ...


class Desk(Protocol):
    """Where workers get their jobs and report: the engine, as far as a worker knows it."""

    kernel_id: str

    def report(self, worker: Any, job: JobRecord | None, result: object = None) -> JobRecord | None: ...

    def decided(
        self, worker: Any, job: JobRecord, decision: Decision | None, note: str | None
    ) -> JobRecord | None: ...

    def crashed(self, worker: Any, error: BaseException) -> None: ...

    def stand_in(self, worker: Any) -> bool: ...

    def started(self, job: JobRecord, pid: int) -> None: ...

    def printed(self, job: JobRecord, stream: int, text: str, fraction: float | None = None) -> None: ...

    def progressed(
        self, job: JobRecord, fraction: float | None, done: float | None, total: float | None, message: str
    ) -> None: ...

    def expired(self, job: JobRecord) -> None: ...

    def new_output(self) -> Any: ...

    def guard(self) -> Any: ...

    def public(self, job: JobRecord) -> Any: ...

    def timeout_error(self, job: JobRecord) -> JobTimeout: ...

    def sheltered(self, slot: Any) -> AbstractContextManager[None]: ...

    def stop_was_dropped(self, slot: Any) -> None: ...

    def step_aside(self, slot: Any, latch: Latch, batch: BatchRecord) -> bool: ...

    def step_back(self, slot: Any, latch: Latch, bell: Latch) -> bool: ...

    def adopt(self, slot: Any, batch: BatchRecord, engine: Any) -> None: ...


def brief(error: BaseException | None) -> str:
    """One line that says what went wrong. An error that cannot say so is named all the same."""
    if error is None:
        return ""
    try:
        text = " ".join(str(error).split())
    except BaseException as problem:  # a user's __str__ may raise anything
        interrupt = isinstance(problem, KeyboardInterrupt)
        if isinstance(problem, Stop) or (interrupt and threading.current_thread() is threading.main_thread()):
            raise
        text = "(its message cannot be shown)"
    if not isinstance(error, ArreaError):
        text = f"{type(error).__name__}: {text}" if text else type(error).__name__
    return text if len(text) <= 300 else text[:297] + "..."


def cancelled_error(state: JobState) -> JobCancelled:
    """The error of a job that was cancelled or skipped."""
    if state is JobState.SKIPPED:
        return JobCancelled("skipped: the policy stopped the batch before it started")
    return JobCancelled("cancelled")


def trace_of(error: BaseException | None) -> TracebackType | None:
    """Its traceback, without a look at what its class may have made of attributes."""
    if error is None:
        return None
    trace: TracebackType | None = _TRACE.__get__(error)
    return trace


_TRACE: Any = BaseException.__dict__["__traceback__"]


def with_trace(error: Exception, trace: TracebackType | None) -> Exception:
    """The error with this traceback, whatever its class says to that, as a frozen dataclass does."""
    return BaseException.with_traceback(error, trace)
