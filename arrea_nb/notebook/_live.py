"""The live view of one batch in a browser: frames out, commands in.

    Frames ──picture, frame, ack──▶ live.js
    inbox ◀──hello, bye, command──── live.js

Guarantees: the synced traits hold only what a view begins with. Nothing is built or sent before a browser
said hello; then at most ten frames a second, each with a number and only what changed since the last. What
the browser sends is put into `inbox` by whichever thread the kernel calls us on, and acted on by the
presenter's thread, the only one that sends. A command that comes twice is carried out once.
"""

from __future__ import annotations

import logging
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import anywidget
from traitlets import Int, Unicode

from arrea_nb._batch import Batch
from arrea_nb._job import Job
from arrea_nb._records import brief

_log = logging.getLogger("arrea_nb")
_STATIC = Path(__file__).parent / "static"

FRAME_INTERVAL = 0.1
"""Seconds from one frame to the next, at the least."""
HEARTBEAT = 5.0
"""Seconds of silence after which a running batch sends an empty frame: so the browser knows a dead kernel."""
_JOB_OUTPUT = 32 << 10  # bytes of one job's output in one frame
_FRAME_OUTPUT = 256 << 10  # and of all jobs
_MOST_CLIENTS = 100
_MOST_REFS = 1000

Message = dict[str, Any]
Verbs = Mapping[str, Callable[[Mapping[str, Any]], object]]


class Frames:
    """What a browser is told of a batch: the whole picture, then only what changed."""

    def __init__(self, batch: Batch) -> None:
        self._batch = batch
        self._number = 0
        self._rows: dict[int, Message] = {}  # as last sent
        self._offsets: dict[int, tuple[int, int]] = {}  # from job to the attempt, and how far it was sent
        self._printing: OrderedDict[int, None] = OrderedDict()  # may have output that was not sent yet

    @property
    def behind(self) -> bool:
        """Whether there is output that did not fit into the last frame."""
        return bool(self._printing)

    def picture(self) -> Message:
        """Everything but the output, which follows in the next frames."""
        self._offsets.clear()
        self._printing = OrderedDict.fromkeys(range(len(self._batch)))
        rows = []
        for job in self._batch.jobs:
            row = self._rows[job.index] = _row(job)
            rows.append({"name": job.name[:2000], "kind": job.kind, **row})
        return {"kind": "picture", "batch": _batch(self._batch), "jobs": rows, **self._next()}

    def frame(self, changed: Iterable[int]) -> Message:
        """The jobs that changed, and output as far as it fits."""
        rows = []
        for index in sorted(changed):
            row = _row(self._batch[index])
            self._printing[index] = None
            if row != self._rows.get(index):
                self._rows[index] = row
                rows.append([index, row])
        return {
            "kind": "frame",
            "batch": _batch(self._batch),
            "jobs": rows,
            "output": self._output(),
            **self._next(),
        }

    def _next(self) -> Message:
        self._number += 1
        return {"number": self._number}

    def _output(self) -> list[Message]:
        """What was printed since it was last sent, as far as a frame may grow; the rest waits its turn."""
        found = []
        room = _FRAME_OUTPUT
        while self._printing and room > 0:
            index, _ = self._printing.popitem(last=False)
            job = self._batch[index]
            attempt, offset = self._offsets.get(index, (0, 0))
            if attempt != job.attempt:
                attempt, offset = job.attempt, 0
            segments, end, skipped = job.output_since(offset, min(_JOB_OUTPUT, room))
            self._offsets[index] = (attempt, end)
            if segments:
                room -= sum(len(text) for _, text in segments)
                found.append({"job": index, "attempt": attempt, "skipped": skipped, "text": segments})
        return found


def _row(job: Job) -> Message:
    """What changes about a job, without what is None."""
    elapsed = job.elapsed
    row = {
        "state": job.state.value,
        "attempt": job.attempt,
        "elapsed": None if elapsed is None else round(elapsed, 2),
        "progress": job.progress,
        "message": job.message[:500] or None,
        "error": brief(job.error) or None,
        "note": job.note,
    }
    return {key: value for key, value in row.items() if value is not None}


def _batch(batch: Batch) -> Message:
    eta = batch.eta
    return {
        "state": batch.state.value,
        "workers": batch.workers,
        "timeout": batch.timeout,
        "elapsed": round(batch.elapsed, 2),
        "eta": None if eta is None else round(eta, 1),
        "counts": {state.value: number for state, number in batch.counts.items() if number},
    }


class LiveView(anywidget.AnyWidget):
    """A batch in the browser, a DOMWidget.

    Args:
        batch: What to show.
        verbs: What the browser may ask for: from the name of a command to what carries it out.
        notice: Called from any thread when the browser sent something, to have `step` called soon.
    """

    _esm = _STATIC / "live.js"
    _css = _STATIC / "live.css"
    batch_id = Unicode().tag(sync=True)
    name = Unicode().tag(sync=True)
    total = Int().tag(sync=True)

    def __init__(self, batch: Batch, verbs: Verbs, notice: Callable[[], None]) -> None:
        super().__init__(batch_id=batch.id, name=batch.name, total=len(batch))
        self.inbox: deque[Mapping[str, Any]] = deque()
        self.seen: set[str] = set()  # every client that has ever said hello
        self._batch = batch
        self._verbs = verbs
        self._notice = notice
        self._frames = Frames(batch)
        self._clients: set[str] = set()
        self._asked = False  # for the whole picture
        self._answered: OrderedDict[str, str | None] = OrderedDict()  # from a command's ref to its error
        self._last_sent = float("-inf")
        self._said_end = False
        # ipykernel 7.4 sends what the browser says to the shell that last wrote to the comm: the blocked
        # one. Without this method it takes a subshell, as 7.3 does.
        if hasattr(self.comm, "_reply_subshell_for"):
            self.comm._reply_subshell_for = None  # noqa: SLF001 - there is no public way
        self.on_msg(self._received)

    def _received(self, widget: object, content: object, buffers: object) -> None:  # noqa: ARG002
        # On the kernel's thread for widgets: whatever is done here keeps other widgets waiting.
        if isinstance(content, Mapping):
            self.inbox.append(content)
            self._notice()

    @property
    def settled(self) -> bool:
        """Whether there is nothing more to send, unless the browser asks."""
        if self.inbox:
            return False
        return self._batch.done() and (not self._clients or (self._said_end and not self._frames.behind))

    def step(self, now: float, take: Callable[[], set[int]]) -> float | None:
        """Does what the browser asked for, and sends a frame if one is due and something changed.

        Args:
            now: The monotonic time.
            take: Returns the jobs that changed since it was last called.

        Returns:
            When it wants to be called again, in monotonic time; None: when something happens.
        """
        while self.inbox:
            self._act(self.inbox.popleft())
        if not self._clients:
            return None
        if now < self._last_sent + FRAME_INTERVAL:
            return self._last_sent + FRAME_INTERVAL
        ended = self._batch.done()  # before looking at the jobs: so the last frame has the last of them
        if self._asked:
            self._asked = False
            take()
            self._send_frame(self._frames.picture(), now)
        else:
            changed = take()
            late = now >= self._last_sent + HEARTBEAT and not ended
            if changed or self._frames.behind or late or (ended and not self._said_end):
                self._send_frame(self._frames.frame(changed), now)
        self._said_end = ended
        if self._frames.behind:
            return self._last_sent + FRAME_INTERVAL
        return None if ended else self._last_sent + HEARTBEAT

    def _send_frame(self, message: Message, now: float) -> None:
        self._last_sent = now
        self.send(message)

    def _act(self, content: Mapping[str, Any]) -> None:
        kind = content.get("kind")
        if kind == "hello":
            client = str(content.get("client"))
            if len(self.seen) < _MOST_CLIENTS:
                self.seen.add(client)
                self._clients.add(client)
            self._asked = True
        elif kind == "bye":
            self._clients.discard(str(content.get("client")))
        elif kind == "command":
            ref = str(content.get("ref"))
            if ref not in self._answered:
                self._answered[ref] = self._carry_out(content)
                while len(self._answered) > _MOST_REFS:
                    self._answered.popitem(last=False)
            self.send({"kind": "ack", "ref": ref, "error": self._answered[ref]})

    def _carry_out(self, content: Mapping[str, Any]) -> str | None:
        """Carries a command out; what went wrong, or None."""
        name = str(content.get("verb"))
        verb = self._verbs.get(name)
        if verb is None:
            return f"{name}: no such command; expected one of {', '.join(self._verbs)}"
        try:
            verb(content)
        except Exception as error:  # noqa: BLE001 - whoever pressed the button is to read it
            _log.debug("command %s from the browser failed", name, exc_info=True)
            return brief(error)
        return None
