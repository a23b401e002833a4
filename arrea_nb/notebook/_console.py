"""A batch in a terminal: drawn by rich while it runs; plain lines where the output is no terminal.

Guarantees: nothing is drawn in the first moment, so that a batch that nobody waits for leaves the prompt
alone. `close` takes the drawing away, for the summary to take its place. sys.stdout and sys.stderr are not
redirected: what jobs print goes to them, and what others print appears above the drawing.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from typing import TextIO

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from arrea_nb._batch import Batch
from arrea_nb._job import Job
from arrea_nb.events import JobState
from arrea_nb.notebook import _words

FRAME_INTERVAL = 0.1
"""Seconds from one drawing to the next, at the least, and to the first."""
_TICK = 1.0  # while a job runs its elapsed time is drawn so often, in seconds
_BAR = 12
_COLOURS = {
    JobState.RUNNING: "cyan",
    JobState.WAITING: "cyan",
    JobState.SUCCEEDED: "green",
    JobState.FAILED: "red",
    JobState.TIMED_OUT: "yellow",
    JobState.CANCELLED: "magenta",
}
# What a reader wants to see when there is not room for all.
_FIRST = (JobState.RUNNING, JobState.FAILED, JobState.TIMED_OUT, JobState.WAITING)


class ConsoleView:
    """Draws a batch.

    Args:
        batch: What to show.
        stream: Where to; rich asks it whether it is a terminal.
    """

    def __init__(self, batch: Batch, stream: TextIO) -> None:
        self._batch = batch
        self._console = Console(file=stream, highlight=False, markup=False, emoji=False)
        # Guards _live and _closed: the presenter draws, the main thread closes.
        self._lock = threading.Lock()
        self._live: Live | None = None
        self._closed = False
        self._next: float | None = None
        self._told: set[int] = set()

    def step(self, now: float, take: Callable[[], set[int]]) -> float | None:
        """Draws if something changed. Returns when it wants to be called again, in monotonic time."""
        if self._next is None:
            self._next = now + FRAME_INTERVAL
        if now < self._next:
            return self._next
        changed = take()
        self._next = now + FRAME_INTERVAL
        with self._lock:
            if self._closed:
                return None
            if not self._console.is_terminal:
                self._tell(changed)
                return None
            if self._live is None:
                self._live = Live(
                    console=self._console,
                    auto_refresh=False,
                    transient=True,
                    redirect_stdout=False,
                    redirect_stderr=False,
                )
                self._live.start()
            self._live.update(self.drawing(), refresh=True)
        running = self._batch.counts[JobState.RUNNING]
        return now + _TICK if running else None

    def close(self) -> None:
        """Takes the drawing away; more than once is fine."""
        with self._lock:
            if not self._closed and not self._console.is_terminal:
                self._tell(range(len(self._batch)))
            self._closed = True
            if self._live is not None:
                self._live.stop()
                self._live = None

    def drawing(self) -> Group:
        """The batch as it is now, in as many lines as the terminal has."""
        batch = self._batch
        room = max(3, self._console.height - 4)
        jobs = batch.jobs
        if len(jobs) > room:
            ranked = sorted(jobs, key=lambda job: (_rank(job), job.index))[:room]
            jobs = tuple(sorted(ranked, key=lambda job: job.index))
        rows = [self._cells(job) for job in jobs]
        # Texts are cut to size here: rich would take the room from the narrow columns as well.
        taken = sum(
            max((cell.cell_len for cell in column), default=0) + 1 for column in zip(*rows, strict=True)
        )
        last = max((row[-1].cell_len for row in rows), default=0)
        table = Table.grid(padding=(0, 1))
        for column in range(6):
            table.add_column(no_wrap=True, justify="right" if column in {1, 4} else "left")
        for row in rows:
            row[-1].truncate(max(0, self._console.width - taken + last), overflow="ellipsis")
            table.add_row(*row)
        head = Text().append(_words.headline(batch), style="bold")
        head.append(f"  {_words.seconds(batch.elapsed)}", style="dim")
        eta = batch.eta
        if eta is not None and eta >= 1:
            head.append(f", about {_words.seconds(round(eta))} left", style="dim")
        head.append(f"  {_words.limits(batch)}", style="dim")
        left = len(batch) - len(jobs)
        foot = [Text(f"… and {left:,} more jobs", style="dim")] if left else []
        return Group(head, table, *foot)

    def _cells(self, job: Job) -> tuple[Text, ...]:
        colour = _COLOURS.get(job.state, "dim")
        elapsed = job.elapsed
        bar = Text()
        if job.state is JobState.RUNNING and job.progress is not None:
            done = round(_BAR * job.progress)
            bar.append("━" * done, style=colour).append("━" * (_BAR - done), style="dim")
            bar.append(f" {job.progress:4.0%}")
        name = Text(_words.one_line(job.name))
        name.truncate(max(10, self._console.width * 2 // 5), overflow="ellipsis")
        return (
            Text(_words.SHAPES[job.state], style=colour),
            Text(f"[{job.index}]"),
            name,
            bar,
            Text("" if elapsed is None else _words.seconds(elapsed), style="dim"),
            Text(_said(job), style="dim"),
        )

    def _tell(self, changed: Iterable[int]) -> None:
        """One line for each of these jobs that ended and was not told yet, in the order of their ends."""
        jobs = [self._batch[index] for index in changed if index not in self._told]
        for job in sorted((job for job in jobs if job.state.ended), key=lambda job: job.ended_at or 0.0):
            self._told.add(job.index)
            reason = _words.why(job)
            told = f"{_words.state_name(job.state)}  {_words.named(job)}"
            self._console.print(Text(f"{told}: {reason}" if reason else told), soft_wrap=True)


def _said(job: Job) -> str:
    """In one line why it ended as it did; before that, how far it is or what it printed last."""
    said = _words.why(job)
    if job.state is JobState.WAITING:
        said = f"is tried again; {said}"
    said = said or job.message or job.tail(1).rstrip("\r\n").rpartition("\r")[2]
    tries = f"attempt {job.attempt}" if job.attempt > 1 else ""
    return _words.one_line(": ".join(filter(None, (tries, said))))


def _rank(job: Job) -> int:
    return _FIRST.index(job.state) if job.state in _FIRST else len(_FIRST) + int(job.state.ended)
