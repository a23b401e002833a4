"""`Job`: one command of a batch, as its user holds it.

Guarantees: a Job works from any thread, and never changes the state that it shows: that is in a `JobRecord`,
which only the Ledger writes. Waiting is for an event, is woken by an interrupt, and leaves the job alone.
"""

from __future__ import annotations

import time
from typing import Any

from arrea_nb._commands import Kind
from arrea_nb._records import Attempt, Host, JobRecord, ShellResult, with_trace
from arrea_nb.events import JobState


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

    def __init__(self, record: JobRecord, host: Host, batch: object) -> None:
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
        return record.error if record.state.ended else None

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
        if not record.state.ended and not self._host.await_end(record, timeout):
            raise TimeoutError(f"{self!r} has not ended after {timeout:g} s; it goes on")
        if record.error is not None:
            # With the traceback that it came with: each raise adds to it.
            raise with_trace(record.error, record.trace)
        return self.value

    def tail(self, lines: int = 20) -> str:
        """The last lines that it printed so far, both streams."""
        output = self._record.output
        if output is None or lines < 1:
            return ""
        text = output.tail(max(65536, 200 * lines)).decode("utf-8", "replace")
        return "".join(text.splitlines(keepends=True)[-lines:])

    @property
    def retry_in(self) -> float | None:
        """Seconds until its next attempt, while it waits for that; else None."""
        due = self._record.due
        return None if due is None or self.state is not JobState.WAITING else max(0.0, due - time.monotonic())

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
