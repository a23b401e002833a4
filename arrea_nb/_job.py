"""`Job` and `Batch`: what the user holds. `Host`: what these and the workers may ask of a Leader.

Guarantees: a Batch works from any thread, keeps working after its Leader let go of it, and never changes
the state that it shows: that is in a `JobRecord` or a `BatchRecord`, which only the Ledger writes. Waiting
is for an event, is woken by an interrupt, and leaves the batch alone.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from contextvars import Context
from dataclasses import dataclass, field
from itertools import islice
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from arrea_nb._commands import BadCommand, Command, Kind
from arrea_nb._policy import Decision, Policy
from arrea_nb._section import take_from
from arrea_nb.errors import ArreaError, BatchFailed, JobCancelled
from arrea_nb.events import JobState

if TYPE_CHECKING:
    from pandas import DataFrame

FAILED_STATES = frozenset({JobState.FAILED, JobState.TIMED_OUT})
# asyncio hears of an interrupt only between two steps of its loop; measured in a kernel, one long await
# held it back for seconds.
_AWAIT_STEP = 0.2


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
        decision: What the policy said to that error.
        could_not_start: The attempt never ran: the program could not be spawned.
        note: What a reader of the record should know besides.
        told: The error in one line; made by the worker, since a user's `__str__` must not run under the lock.
    """

    decision: Decision | None = None
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

    def read(self, stream: int | None = None) -> bytes: ...

    def tail(self, size: int) -> bytes: ...

    def since(self, offset: int, limit: int) -> tuple[list[tuple[str, str]], int, int]: ...


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
    history: tuple[str, ...] = ()
    handed_out = False  # a worker has it, though it may not have started yet
    away = False  # it waits for another batch and gave its place up meanwhile
    stop: JobState | None = None  # CANCELLED or TIMED_OUT: it is being stopped, and this it will be
    grace: float = 0.0
    first_clock: float | None = None  # of its first attempt, once there is a second; clocks are monotonic
    clock: float | None = None
    end_clock: float | None = None
    first_at: float | None = None
    started_at: float | None = None
    value: Any = None
    error: Exception | None = None
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
    latches: tuple[Latch, ...] = ()

    def __init__(self, batch: BatchRecord, index: int, command: Command, written: object) -> None:
        self.batch = batch
        self.index = index
        self.command = command
        self.written = written

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
        return None if self.clock is None or self.state is not JobState.RUNNING else now - self.clock


@dataclass(eq=False)
class BatchRecord:
    """Everything about one batch. Written by the Ledger alone, under the Leader's lock."""

    id: str
    name: str
    policy: Policy
    workers: int
    timeout: float | None
    context: Context
    names: list[str] | None = None
    shell: str = "/bin/sh"
    cwd: str | None = None
    env: Mapping[bytes, bytes] = field(default_factory=dict)
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
    in_turn: bool = False
    spent: float = 0.0  # seconds that its ended jobs took, and how many did
    spent_jobs: int = 0
    latches: tuple[Latch, ...] = ()
    job_latches: tuple[Latch, ...] = ()
    watches: tuple[Any, ...] = ()
    heard: bool = False  # some subscriber wants its events


class Host(Protocol):
    """What a Leader does for batches and workers; they know nothing else of it."""

    grace: float

    def cancel(self, batch: str, job: int | None = None) -> None: ...

    def stop(self, batch: BatchRecord, job: int | None = None, *, interrupted: bool = False) -> None: ...

    def await_end(self, batch: BatchRecord, job: JobRecord | None, timeout: float | None) -> bool: ...

    def away(self, latch: Latch) -> AbstractContextManager[None]: ...

    def add_latch(self, batch: BatchRecord, latch: Latch, *, each_job: bool = False) -> bool: ...

    def drop_latch(self, batch: BatchRecord, latch: Latch) -> None: ...

    def again(self, batch: BatchRecord, jobs: Sequence[JobRecord], options: Mapping[str, Any]) -> Batch: ...

    def show(self, batch: Batch) -> Any: ...

    def widget(self, batch: Batch) -> Any: ...

    def waited(self, batch: Batch) -> None: ...


class Desk(Protocol):
    """Where workers get their jobs and report: the Leader, as far as a worker knows it."""

    kernel_id: str

    def report(
        self, worker: Any, job: JobRecord | None, outcome: Outcome | None, value: object = None
    ) -> JobRecord | None: ...

    def started(self, job: JobRecord, pid: int) -> None: ...

    def printed(self, job: JobRecord, stream: int, text: str, fraction: float | None = None) -> None: ...

    def progressed(
        self, job: JobRecord, fraction: float | None, done: float | None, total: float | None, message: str
    ) -> None: ...

    def expired(self, job: JobRecord) -> None: ...

    def new_output(self) -> Any: ...

    def guard(self) -> Any: ...

    def public(self, job: JobRecord) -> Job: ...


class Job:
    r"""One command of a batch: its state, its output, and in the end its outcome.

    Every attribute can be read at any time from any thread; what is not known yet is None. Times are
    seconds since the epoch, durations seconds. After a retry `output` is the last attempt's, and
    `attempts` has a record of each.

    Example:
        >>> job = execute(["echo hello"])[0]        # doctest: +SKIP
        >>> job.result().stdout                     # doctest: +SKIP
        'hello\n'
    """

    __slots__ = ("_batch", "_host", "_record")

    def __init__(self, record: JobRecord, host: Host, batch: Batch) -> None:
        self._record = record
        self._host = host
        self._batch = batch  # keeps the batch as long as one of its jobs is held

    def __repr__(self) -> str:
        elapsed = self.elapsed
        took = "" if elapsed is None else f" {elapsed:.3g} s"
        return f"<Job {self.index} {self.name!r} {self.state}{took}>"

    @property
    def index(self) -> int:
        """Its place in the batch, from 0."""
        return self._record.index

    @property
    def name(self) -> str:
        """The name that was given in a mapping, or the command as a reader would write it."""
        return self._record.name

    @property
    def command(self) -> object:
        """What the user asked to run, as it was given."""
        return self._record.written

    @property
    def kind(self) -> Kind:
        """`"shell"` or `"python"`."""
        return self._record.command.kind

    @property
    def state(self) -> JobState:
        """Where it is in its life."""
        return self._record.state

    @property
    def attempt(self) -> int:
        """How many attempts have begun."""
        return self._record.attempt

    @property
    def attempts(self) -> list[Attempt]:
        """A record of each attempt that began, the last one as it is now."""
        record = self._record
        past = list(record.past)
        if record.attempt > len(past):
            duration = None
            if record.clock is not None:
                duration = (record.end_clock or time.monotonic()) - record.clock
            past.append(
                Attempt(
                    record.attempt,
                    record.state,
                    record.started_at,
                    duration,
                    record.error,
                    record.exit_code,
                    record.signal,
                )
            )
        return past

    @property
    def started_at(self) -> float | None:
        """When its first attempt began."""
        record = self._record
        return record.started_at if record.first_at is None else record.first_at

    @property
    def ended_at(self) -> float | None:
        """When it reached its terminal state."""
        record = self._record
        if record.end_clock is None:
            return None
        return record.batch.started_at + record.end_clock - record.batch.clock

    @property
    def duration(self) -> float | None:
        """Seconds from its first attempt to its end, retries and their delays included; None before."""
        record = self._record
        if record.end_clock is None or record.began is None:
            return None
        return record.end_clock - record.began

    @property
    def elapsed(self) -> float | None:
        """Seconds of the attempt that runs, or of the whole job once it ended."""
        return self._record.elapsed(time.monotonic())

    @property
    def value(self) -> Any:
        """What it returned: a ShellResult, or the callable's value. None before, and after a failure."""
        record = self._record
        if record.command.kind == "shell" and record.state is JobState.SUCCEEDED:
            return ShellResult(record.exit_code or 0, self.stdout, self.stderr)
        return record.value

    @property
    def error(self) -> Exception | None:
        """Why it did not succeed; None while it may yet."""
        record = self._record
        return None if record.end_clock is None else record.error

    @property
    def exit_code(self) -> int | None:
        """The exit code of a shell job; None when a signal ended it."""
        return self._record.exit_code

    @property
    def signal(self) -> int | None:
        """The number of the signal that ended a shell job, or None."""
        return self._record.signal

    @property
    def pid(self) -> int | None:
        """The process of the last attempt of a shell job; also its process group and session."""
        return self._record.pid

    @property
    def progress(self) -> float | None:
        """How far it is, from 0 to 1; None when that is not known."""
        return self._record.fraction

    @property
    def message(self) -> str:
        """The text that it last gave to `progress()`."""
        return self._record.message

    @property
    def note(self) -> str | None:
        """What the record says besides: for instance that background processes were stopped."""
        return self._record.note

    @property
    def stdout(self) -> str:
        """All of its standard output; bytes that are not UTF-8 are replaced."""
        return self._read(0).decode("utf-8", "replace")

    @property
    def stderr(self) -> str:
        """All of its standard error; bytes that are not UTF-8 are replaced."""
        return self._read(1).decode("utf-8", "replace")

    @property
    def output(self) -> str:
        """Both streams in the order in which they were read."""
        return self._read(None).decode("utf-8", "replace")

    @property
    def output_bytes(self) -> bytes:
        """Both streams in the order in which they were read, exact."""
        return self._read(None)

    @property
    def output_path(self) -> str | None:
        """The file with both streams, once output was spooled; lives as long as the Batch or its Leader."""
        output = self._record.output
        return None if output is None else output.path

    @property
    def cpu_seconds(self) -> float | None:
        """Processor time of a shell job and of its descendants that were waited for, in seconds."""
        return self._record.cpu_seconds

    @property
    def max_rss_bytes(self) -> int | None:
        """The peak of its memory; None when it is not above the kernel's own at the spawn."""
        return self._record.max_rss_bytes

    @property
    def abandoned(self) -> bool:
        """Whether its thread went on after the job was stopped."""
        return self._record.abandoned

    def result(self, timeout: float | None = None) -> Any:
        """Waits for the end and returns the value.

        Args:
            timeout: The longest wait, in seconds. None: no limit.

        Raises:
            TimeoutError: If it has not ended by then; the job goes on.
            ArreaError: Its error, if it did not succeed (a callable's own exception as it was raised).
        """
        record = self._record
        # Not its state, which comes before its error.
        if record.end_clock is None and not self._host.await_end(record.batch, record, timeout):
            raise TimeoutError(f"{self!r} has not ended after {timeout:g} s; it goes on")
        if record.error is not None:
            raise record.error
        return self.value

    def tail(self, lines: int = 20) -> str:
        """The last lines that it printed so far, both streams."""
        output = self._record.output
        if output is None or lines < 1:
            return ""
        text = output.tail(max(65536, 200 * lines)).decode("utf-8", "replace")
        return "".join(text.splitlines(keepends=True)[-lines:])

    def output_since(self, offset: int, limit: int = 32768) -> tuple[list[tuple[str, str]], int, int]:
        """What it printed since `offset`, as a view wants it.

        Returns:
            Pairs of stream and text, the offset to ask from the next time, and how many bytes between
            are left out because only the end is kept at hand.
        """
        output = self._record.output
        return ([], 0, 0) if output is None else output.since(offset, limit)

    def cancel(self) -> None:
        """Cancels it; once it has ended, does nothing."""
        self._host.stop(self._record.batch, self._record.index)

    def _read(self, stream: int | None) -> bytes:
        output = self._record.output
        return b"" if output is None else output.read(stream)


class _LoopLatch:
    """Sets an asyncio event from whichever thread ends a batch."""

    def __init__(self) -> None:
        self.event = asyncio.Event()
        self._loop = asyncio.get_running_loop()

    def put(self, item: object, /) -> None:  # noqa: ARG002 - any item means the end
        try:
            self._loop.call_soon_threadsafe(self.event.set)
        except RuntimeError:
            return  # the loop was closed: nobody waits any more


class Batch(Sequence[Job]):
    """The jobs of one `execute`. As a cell's last value it shows itself.

    Example:
        >>> batch = execute(["true", "false"])      # doctest: +SKIP
        >>> batch.wait(timeout=5.0)                 # doctest: +SKIP
        True
        >>> batch.state                             # doctest: +SKIP
        <JobState.FAILED: 'failed'>
    """

    def __init__(self, record: BatchRecord, host: Host) -> None:
        self._record = record
        self._host = host
        self._jobs: tuple[Job, ...] | None = None

    def __repr__(self) -> str:
        ended = sum(number for state, number in self.counts.items() if state.ended)
        return f"<Batch {self.id[:4]} {self.name!r} {self.state} {ended} of {len(self)}>"

    @property
    def id(self) -> str:
        """16 hex digits."""
        return self._record.id

    @property
    def name(self) -> str:
        """What `name=` said, or the empty string."""
        return self._record.name

    @property
    def jobs(self) -> tuple[Job, ...]:
        """Its jobs, in the order given."""
        if self._jobs is None:
            self._jobs = tuple(Job(record, self._host, self) for record in self._record.jobs)
        return self._jobs

    @property
    def state(self) -> JobState:
        """RUNNING until the last job ended; then FAILED, CANCELLED or SUCCEEDED."""
        return self._record.state

    @property
    def policy(self) -> Policy:
        """What happens after a job fails."""
        return self._record.policy

    @property
    def workers(self) -> int:
        """How many of its jobs run at once, at the most."""
        return self._record.workers

    @property
    def timeout(self) -> float | None:
        """Seconds that each attempt may take; None: no limit."""
        return self._record.timeout

    @property
    def started_at(self) -> float:
        """When it was admitted, in seconds since the epoch."""
        return self._record.started_at

    @property
    def ended_at(self) -> float | None:
        """When its last job ended, in seconds since the epoch."""
        duration = self.duration
        return None if duration is None else self._record.started_at + duration

    @property
    def duration(self) -> float | None:
        """Seconds from admission to the end; None before."""
        record = self._record
        return None if record.end_clock is None else record.end_clock - record.clock

    @property
    def elapsed(self) -> float:
        """Seconds since admission, or the whole duration once it ended."""
        record = self._record
        return (record.end_clock or time.monotonic()) - record.clock

    @property
    def eta(self) -> float | None:
        """Seconds that are probably left; None when there is no ground to say so, and at the end."""
        record = self._record
        if record.end_clock is not None:
            return None
        now = time.monotonic()
        running = [job for job in record.jobs if job.state is JobState.RUNNING]
        guesses = [
            elapsed / job.fraction
            for job in running
            if job.fraction and (elapsed := job.elapsed(now)) is not None
        ]
        known = record.spent_jobs + len(guesses)
        if not known:
            return None
        usual = (record.spent + sum(guesses)) / known
        left = usual * (record.counts[JobState.QUEUED] + record.counts[JobState.WAITING])
        longest = 0.0
        for job in running:
            elapsed = job.elapsed(now) or 0.0
            whole = elapsed / job.fraction if job.fraction else usual
            rest = max(whole - elapsed, 0.0)
            longest = max(longest, rest)
            left += rest
        return max(longest, left / max(1, min(record.workers, record.open_jobs)))

    @property
    def counts(self) -> dict[JobState, int]:
        """How many jobs are in each state, every state present."""
        return dict(self._record.counts)

    @property
    def start_failures(self) -> tuple[Job, ...]:
        """The jobs that could not start: a bad command, a missing program."""
        return tuple(
            job
            for job in self.jobs
            if job.state is JobState.FAILED
            and (isinstance(job._record.command, BadCommand) or job._record.attempt == 0)  # noqa: SLF001
        )

    @property
    def widget(self) -> Any:
        """The live view, an ipywidgets DOMWidget to place in a layout of one's own."""
        return self._host.widget(self)

    def done(self) -> bool:
        """Whether its last job has ended."""
        return self._record.end_clock is not None

    def wait(self, timeout: float | None = None) -> bool:
        """Waits for the end.

        Args:
            timeout: The longest wait, in seconds. None: no limit.

        Returns:
            Whether it has ended. An interrupt ends the waiting, not the batch.
        """
        ended = self.done() or self._host.await_end(self._record, None, timeout)
        if ended:
            self._host.waited(self)
        return ended

    def results(self, timeout: float | None = None, *, return_exceptions: bool = False) -> list[Any]:
        """Waits for the end and returns the values, in the order given.

        Args:
            timeout: The longest wait, in seconds. None: no limit.
            return_exceptions: Put the error of a job that did not succeed in its place.

        Raises:
            TimeoutError: If it has not ended by then; the batch goes on.
            BatchFailed: If a job did not succeed, with the errors of all that did not.
        """
        if not self.wait(timeout):
            raise TimeoutError(f"{self!r} has not ended after {timeout:g} s; it goes on")
        return self._values(return_exceptions=return_exceptions)

    def _values(self, *, return_exceptions: bool) -> list[Any]:
        records = self._record.jobs
        if self._record.state is not JobState.SUCCEEDED and not return_exceptions:
            raise self.failure()
        if all(record.error is None and record.command.kind == "python" for record in records):
            return [record.value for record in records]
        return [job.value if job.error is None else job.error for job in self.jobs]

    def failure(self) -> BatchFailed:
        """The error that `results()` raises when a job did not succeed: one line, and the jobs' errors."""
        records = self._record.jobs
        bad = [record for record in records if record.error is not None]
        first = next((record for record in bad if record.state in FAILED_STATES), bad[0])
        failed = sum(record.state in FAILED_STATES for record in bad)
        kind = "failed" if failed else "cancelled"
        name = " ".join(first.name.split())
        name = name if len(name) <= 60 else name[:57] + "..."
        message = (
            f"{failed or len(bad)} of {len(records)} {kind}: [{first.index}] {name}: {brief(first.error)}"
        )
        return BatchFailed(message, [record.error for record in bad if record.error is not None])

    def as_completed(self, timeout: float | None = None) -> Iterator[Job]:
        """Yields each job as it ends.

        Args:
            timeout: The longest time for all of them together, in seconds. None: no limit.

        Raises:
            TimeoutError: If they have not all ended by then; the batch goes on.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        latch: SimpleQueue[int | None] = SimpleQueue()
        jobs = self.jobs
        try:
            self._host.add_latch(self._record, latch, each_job=True)
            ready = {record.index for record in self._record.jobs if record.end_clock is not None}
            for index in sorted(ready):
                yield jobs[index]
            left = len(jobs) - len(ready)
            while left:
                rest = None if deadline is None else max(0.0, deadline - time.monotonic())
                try:
                    with self._host.away(latch):
                        at = take_from(latch, rest)
                except Empty:
                    raise TimeoutError(
                        f"{left} of {len(jobs)} jobs have not ended after {timeout:g} s; they go on"
                    ) from None
                if at is not None and at not in ready:
                    left -= 1
                    yield jobs[at]
        finally:
            self._host.drop_latch(self._record, latch)

    def cancel(self, *, interrupted: bool = False) -> None:
        """Cancels what has not ended yet, from any thread, any number of times.

        Args:
            interrupted: Somebody waits at the stop button: the grace is 1 s at the most.
        """
        self._host.stop(self._record, interrupted=interrupted)

    def retry_failed(self, **options: Any) -> Batch:
        """Runs the failed, timed-out, cancelled and skipped jobs again, as a new batch.

        Args:
            **options: Options of `execute` that shall be others than this batch had.
        """
        again = [job._record for job in self.jobs if job.error is not None]  # noqa: SLF001
        return self._host.again(self._record, again, options)

    def records(self) -> list[dict[str, Any]]:
        """One dict for each job, with plain values, for a table."""
        return [
            {
                "index": job.index,
                "name": job.name,
                "kind": job.kind,
                "state": str(job.state),
                "attempts": job.attempt,
                "started_at": job.started_at,
                "ended_at": job.ended_at,
                "duration": job.duration,
                "exit_code": job.exit_code,
                "signal": job.signal,
                "error": None if job.error is None else brief(job.error),
                "cpu_seconds": job.cpu_seconds,
                "max_rss_bytes": job.max_rss_bytes,
            }
            for job in self.jobs
        ]

    def to_frame(self) -> DataFrame:
        """The records as a pandas DataFrame.

        Raises:
            ImportError: If pandas is not installed.
        """
        try:
            from pandas import DataFrame
        except ImportError as error:
            raise ImportError('to_frame needs pandas; run: pip install "arrea-nb[pandas]"') from error
        return DataFrame.from_records(self.records(), index="index")

    def __len__(self) -> int:
        return len(self._record.jobs)

    def __iter__(self) -> Iterator[Job]:
        return iter(self.jobs)

    def __getitem__(self, key: int | str | slice) -> Any:
        if isinstance(key, str):
            for job in self.jobs:
                if job.name == key:
                    return job
            some = ", ".join(repr(job.name) for job in islice(self.jobs, 5))
            raise KeyError(f"no job named {key!r} in batch {self.id[:4]}… (it has {len(self)}: {some})")
        if isinstance(key, slice):
            return self.jobs[key]
        try:
            return self.jobs[key]
        except IndexError:
            there = f"{len(self)}: 0 to {len(self) - 1}" if len(self) else "none"
            raise IndexError(f"no job {key} in batch {self.id[:4]}… (it has {there})") from None

    def __await__(self) -> Generator[Any, None, list[Any]]:
        return self._wait_in_loop().__await__()

    async def _wait_in_loop(self) -> list[Any]:
        latch = _LoopLatch()
        try:
            if not self._host.add_latch(self._record, latch):
                with self._host.away(latch):
                    while not latch.event.is_set():
                        with contextlib.suppress(TimeoutError):
                            await asyncio.wait_for(latch.event.wait(), _AWAIT_STEP)
        finally:
            self._host.drop_latch(self._record, latch)
        self._host.waited(self)
        return self._values(return_exceptions=False)

    def _ipython_display_(self) -> None:
        self._host.show(self)


def brief(error: BaseException | None) -> str:
    """One line that says what went wrong."""
    if error is None:
        return ""
    try:
        text = " ".join(str(error).split())
    except Exception:  # noqa: BLE001 - a user's __str__ may raise anything
        text = "(its message cannot be shown)"
    if not isinstance(error, ArreaError):
        text = f"{type(error).__name__}: {text}" if text else type(error).__name__
    return text if len(text) <= 300 else text[:297] + "..."


def cancelled_error(state: JobState) -> JobCancelled:
    """The error of a job that was cancelled or skipped."""
    if state is JobState.SKIPPED:
        return JobCancelled("skipped: the policy stopped the batch before it started")
    return JobCancelled("cancelled")
