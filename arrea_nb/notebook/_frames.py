"""What a browser is told of a batch: the whole picture, then only what changed.

    picture  {batch, total, states, names, jobs, output, number}     everything, as far as it fits
    frame    {batch, [names], jobs, output, number}                  what changed, or did not fit before

`names` is `[first, [name, ...]]`. A job is `[index, state, attempt, start, took]` and perhaps a mapping of
what more there is: progress, message, error, note, due, cpu, memory, `past` attempts as `[start, took,
state]`, and `asking`, true of a running job whose attempt is over while the policy is asked what comes next:
its `took` then stands, and the view says so in place of its last line. `state` counts in `states`, times are
seconds, a start is one since the batch began, and a job that is not told is queued. A piece of output is
`[index, edition, skipped, [[stream, text], ...]]`: each attempt's output is an edition, stream 1 is stderr,
and so many bytes before it were never sent.

Guarantees: once the picture is whole, what is sent over any time stays below RATE and one BURST, and a
message below MESSAGE, about; what does not fit waits, and of output that came faster than that, the beginning
and the end are sent.
"""

from __future__ import annotations

import json
import math
import time
from collections import OrderedDict
from collections.abc import Iterable
from typing import Any

from arrea_nb._batch import Batch, record_of
from arrea_nb._records import OutputView
from arrea_nb.events import JobState
from arrea_nb.notebook._usage import Usage

RATE = 100_000
"""Bytes a second, in the long run."""
PICTURE = 1_500_000
"""Bytes that may come on top of that until a browser has the whole picture."""
BURST = 200_000
"""Bytes that may go at once after that."""
MESSAGE = 192 << 10
"""Bytes of one message, about."""
_JOB_OUTPUT = 96 << 10  # bytes of one job's output in one message, at the most
_LEAST_OUTPUT = 1 << 10  # and when many jobs print
_HEAD = 8 << 10  # bytes of the beginning of output that comes too fast
_STATES = tuple(JobState)
_NUMBERS = {state: number for number, state in enumerate(_STATES)}
_WAITING = frozenset({JobState.QUEUED, JobState.WAITING})
_SMALL = 1000  # up to so many jobs, names are sent in full length
_NAME = (2000, 300)  # characters of a name in a small batch, and in a large one

_ETA_INTERVAL = 0.9  # seconds: every job is looked at for it, and it is shown in whole seconds

_STREAMS = {"stdout": 0, "stderr": 1}

Message = dict[str, Any]
Row = list[Any]
Piece = list[Any]  # stream, text
Told = tuple[int, int, float | None, float | None, Message | None]  # state, attempt, start, took, more

_UNTOLD: Told = (0, 0, None, None, None)


class Frames:
    """What a browser is told of a batch.

    Attributes:
        due: The monotonic time of the next look at processor and memory; infinite when nobody runs.
    """

    def __init__(self, batch: Batch) -> None:
        self._batch = batch
        # The records and not the Jobs: of a large batch thousands of rows are made a second.
        self._jobs = record_of(batch).jobs
        self._usage = Usage()
        self.due = math.inf
        self._number = 0
        self._eta: float | None = None
        self._eta_at = -math.inf
        self._room = float(PICTURE)
        self._room_at = -math.inf
        self._whole = False  # the picture is
        self._names = 0  # so many are sent
        self._sent: dict[int, Told] = {}
        self._stale: OrderedDict[int, None] = OrderedDict()  # may be other than sent
        self._printing: OrderedDict[int, None] = OrderedDict()  # may have output that was not sent yet
        # From job to the output of its attempt, which of its outputs that is, and how far it was sent.
        self._offsets: dict[int, tuple[OutputView | None, int, int]] = {}
        self._running: set[int] = set()  # that have a process
        self._preferred: int | None = None

    @property
    def behind(self) -> bool:
        """Whether there is something that was not sent yet."""
        return bool(self._stale or self._printing) or self._names < len(self._batch)

    def prefer(self, job: object) -> None:
        """Sends what this job printed before what others did: somebody reads it."""
        known = isinstance(job, int) and 0 <= job < len(self._batch)
        self._preferred = job if known else None  # type: ignore[assignment]  # mypy does not follow `known`

    def look(self, changed: Iterable[int]) -> None:
        """Notes which jobs changed."""
        for index in sorted(changed):
            self._stale[index] = self._printing[index] = None

    def measure(self, now: float) -> None:
        """Looks at the running jobs' processes, if that is due; what is new goes into the next frame."""
        if now < self.due:
            return
        pids = {index: pid for index in self._running if (pid := self._jobs[index].pid) is not None}
        for index in self._usage.measure(pids, now):
            self._stale[index] = None
        self.due = now + self._usage.interval if self._running else math.inf

    def picture(self, now: float) -> Message:
        """Everything that the first message has room for; the rest follows in frames."""
        self._room, self._room_at = float(PICTURE), now
        self._whole = False
        self._names = 0
        self._sent.clear()
        self._offsets.clear()
        self._running.clear()
        self._stale.clear()
        self._printing.clear()
        self.look(job.index for job in self._jobs if job.attempt or job.state.ended)
        states = [state.value for state in _STATES]
        return {**self.frame(now), "kind": "picture", "total": len(self._batch), "states": states}

    def frame(self, now: float) -> Message:
        """What changed, as far as it fits."""
        grown = self._room + RATE * (now - self._room_at)
        self._room, self._room_at = min(grown, BURST) if self._whole else min(grown, PICTURE), now
        room = whole = min(self._room, MESSAGE)
        self._number += 1
        if now >= self._eta_at + _ETA_INTERVAL:
            self._eta_at, self._eta = now, self._batch.eta
        message: Message = {"kind": "frame", "number": self._number, "batch": _batch(self._batch, self._eta)}
        if self._names < len(self._batch):
            names, left = self._some_names(0.6 * room)  # rows and output need not wait for all names
            message["names"], room = names, room - (0.6 * room - left)
        message["jobs"], room = self._some_rows(room, now)
        message["output"], room = self._some_output(room)
        self._room -= whole - room + 300
        self._whole = self._whole or not self.behind
        return message

    def _some_names(self, room: float) -> tuple[list[Any], float]:
        first = self._names
        names: list[str] = []
        most = _NAME[len(self._batch) > _SMALL]
        for job in self._jobs[first:]:
            if room <= 0 and names:
                break
            names.append(job.name[:most])
            room -= len(names[-1].encode(errors="replace")) + 3
        self._names += len(names)
        return [first, names], room

    def _some_rows(self, room: float, now: float) -> tuple[list[Row], float]:
        rows = []
        clock = time.monotonic()
        while self._stale and room > 0:
            index, _ = self._stale.popitem(last=False)
            row, told = self._row(index, clock)
            if told != self._sent.get(index, _UNTOLD):
                self._sent[index] = told
                rows.append(row)
                room -= 32 + (len(json.dumps(row[5])) if len(row) > 5 else 0)
        if self._running and self.due == math.inf:
            self.due = now
        return rows, room

    def _row(self, index: int, clock: float) -> tuple[Row, Told]:
        """What is told of a job, and the part of it that says whether it must be told again."""
        job = self._jobs[index]
        state = job.state
        running = state is JobState.RUNNING
        (self._running.add if running and job.pid is not None else self._running.discard)(index)
        past = job.past
        start = None
        if job.attempt and state not in _WAITING:
            start = job.started_at
            if len(past) >= job.attempt:
                start, past = past[-1].started_at, past[:-1]
        began = job.batch.started_at
        elapsed = job.elapsed(clock)
        row: Row = [
            index,
            _NUMBERS[state],
            job.attempt,
            None if start is None else round(start - began, 3),
            None if elapsed is None else round(elapsed, 3),
        ]
        more: Message = {}
        if job.fraction is not None and not state.ended:
            more["progress"] = round(job.fraction, 3)
        if job.message:
            more["message"] = job.message[:500]
        if job.note is not None:
            more["note"] = job.note
        if job.asking:
            more["asking"] = True
        if running and index in self._usage.of:
            more["cpu"], more["memory"] = self._usage.of[index]
        if past:
            more["past"] = [
                [round(one.started_at - began, 3), round(one.duration or 0.0, 3), one.state.value]
                for one in past[-20:]
                if one.started_at is not None and one.state in (JobState.FAILED, JobState.TIMED_OUT)
            ]
        # As its worker put it: a user's __str__ is asked once, and not on this thread.
        if job.told and job.told != state.value and (state.ended or state is JobState.WAITING):
            more["error"] = job.told
        # Without a dictionary in it the garbage collector need not look at it again: a batch has thousands.
        told = (row[1], job.attempt, row[3], None if running and not job.asking else row[4], more or None)
        if state is JobState.WAITING and job.due is not None:
            more = {**more, "due": max(0.0, job.due - clock)}
        if more:
            row.append(more)
        return row, told

    def _some_output(self, room: float) -> tuple[list[Row], float]:
        """What was printed since it was last sent, as far as it fits; the rest waits its turn."""
        found: list[Row] = []
        if self._preferred is not None and self._preferred in self._printing:
            self._printing.move_to_end(self._preferred, last=False)
        share = int(max(_LEAST_OUTPUT, min(_JOB_OUTPUT, room / max(1, len(self._printing)))))
        waiting = []
        while self._printing and room > 0:
            index, _ = self._printing.popitem(last=False)
            job = self._jobs[index]
            view = job.output
            if view is None:
                continue
            if job.attempt != self._sent.get(index, _UNTOLD)[1]:
                # The browser clears a job's output when it hears of a new attempt: that comes first.
                waiting.append(index)
                continue
            seen, edition, offset = self._offsets.get(index, (None, 0, 0))
            if seen is not view:
                edition, offset = edition + 1, 0
            limit = int(max(share, room / 2)) if index == self._preferred else share
            pieces, offset = _printed(view, offset, limit)
            self._offsets[index] = (view, edition, offset)
            for skipped, segments in pieces:
                found.append([index, edition, skipped, segments])
                room -= 16 + len(json.dumps(segments, ensure_ascii=False).encode(errors="replace"))
        for index in waiting:
            self._stale[index] = self._printing[index] = None
        return found, room


def _printed(view: OutputView, offset: int, limit: int) -> tuple[list[tuple[int, list[Piece]]], int]:
    """What was printed since `offset`: how much was left out, and pieces of it; and the offset after it."""
    segments, end, skipped = view.since(offset, limit)
    told = [(skipped, segments)] if segments else []
    if offset == 0 and skipped > _HEAD:
        head, after = view.head(_HEAD)
        told = [(0, head), (skipped - after, segments)]
    return [(left_out, [[_STREAMS[name], text] for name, text in some]) for left_out, some in told], end


def _batch(batch: Batch, eta: float | None) -> Message:
    return {
        "state": batch.state.value,
        "workers": batch.workers,
        "timeout": batch.timeout,
        "tries": batch.policy.retries + 1,
        "elapsed": round(batch.elapsed, 2),
        "eta": None if eta is None else round(eta, 1),
        "counts": {state.value: number for state, number in batch.counts.items() if number},
    }
