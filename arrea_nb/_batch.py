"""`Batch`: the jobs of one `execute`, as their user holds them.

Guarantees: a Batch works from any thread, keeps working after its Leader let go of it, and never changes the
state that it shows: that is in a `BatchRecord`, which only the Ledger writes. Waiting is for an event, is
woken by an interrupt, and leaves the batch alone.
"""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator, Sequence
from itertools import islice
from queue import Empty
from typing import TYPE_CHECKING, Any

from arrea_nb import _views
from arrea_nb._commands import BadCommand
from arrea_nb._job import Job
from arrea_nb._policy import Policy
from arrea_nb._records import FAILED_STATES, BatchRecord, Host
from arrea_nb.errors import BatchFailed
from arrea_nb.events import JobState

if TYPE_CHECKING:
    from pandas import DataFrame


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
        return self._record.options.name

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
        return self._record.options.policy

    @property
    def workers(self) -> int:
        """How many of its jobs run at once, at the most."""
        return self._record.workers

    @property
    def timeout(self) -> float | None:
        """Seconds that each attempt may take; None: no limit."""
        return self._record.options.timeout

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
        return self._record.eta(time.monotonic())

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
            and (isinstance(self._record.jobs[job.index].command, BadCommand) or job.attempt == 0)
        )

    @property
    def widget(self) -> Any:
        """The live view, an ipywidgets DOMWidget to place in a layout of one's own."""
        return _views.widget(self)

    def done(self) -> bool:
        """Whether its last job has ended."""
        return self._record.state is not JobState.RUNNING

    def wait(self, timeout: float | None = None) -> bool:
        """Waits for the end.

        Args:
            timeout: The longest wait, in seconds. None: no limit.

        Returns:
            Whether it has ended. An interrupt ends the waiting, not the batch.
        """
        ended = self.done() or self._host.await_end(self._record, timeout)
        if ended:
            _views.waited(self)
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
        message = f"{failed or len(bad)} of {len(records)} {kind}: [{first.index}] {name}: {first.told}"
        return BatchFailed(message, [record.error for record in bad if record.error is not None])

    def as_completed(self, timeout: float | None = None) -> Iterator[Job]:
        """Yields each job as it ends.

        Args:
            timeout: The longest time for all of them together, in seconds. None: no limit.

        Raises:
            TimeoutError: If they have not all ended by then; the batch goes on.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        jobs = self.jobs
        with self._host.waiting(self._record, each_job=True) as wait:
            ready = {record.index for record in self._record.jobs if record.end_clock is not None}
            for index in sorted(ready):
                yield jobs[index]
            left = len(jobs) - len(ready)
            while left:
                rest = None if deadline is None else max(0.0, deadline - time.monotonic())
                try:
                    at = wait.take(rest)
                except Empty:
                    raise TimeoutError(
                        f"{left} of {len(jobs)} jobs have not ended after {timeout:g} s; they go on"
                    ) from None
                if at is not None and at not in ready:
                    left -= 1
                    yield jobs[at]

    def cancel(self) -> None:
        """Cancels what has not ended yet, from any thread, any number of times."""
        self._host.stop(self._record)

    def retry_failed(self, **options: Any) -> Batch:
        """Runs the failed, timed-out, cancelled and skipped jobs again, as a new batch.

        Args:
            **options: Options of `execute` that shall be others than this batch had.
        """
        again = [record for record in self._record.jobs if record.state.ended and record.error is not None]
        made: Batch = self._host.again(self._record, again, options)
        return made

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
                "error": None if job.error is None else self._record.jobs[job.index].told,
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
        if not self.done():
            with self._host.waiting(self._record) as wait:
                await wait.take_in_loop()
        _views.waited(self)
        return self._values(return_exceptions=False)

    def _ipython_display_(self) -> None:
        _views.show(self)


def record_of(batch: Batch) -> BatchRecord:
    """Its record, for the modules of this package: its users see none."""
    return batch._record  # noqa: SLF001 - the one way to it


def host_of(batch: Batch) -> Host:
    """The engine that runs it, for the same: not always that of the kernel's own Leader."""
    return batch._host  # noqa: SLF001 - the one way to it
