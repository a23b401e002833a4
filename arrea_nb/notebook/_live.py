"""The live view of one batch in a browser: frames out, commands in.

    Frames ──picture, frame, ack───▶ static/view.js
    inbox ◀──hello, bye, look, command── static/view.js

The view's JavaScript is a few ES modules under `static/`, each of which imports the ones before it.
anywidget takes one module as a string, so `joined` puts them together; there is no build step.

Guarantees: the synced traits hold only what a view begins with. Nothing is built or sent before a browser
said hello; then at most five frames a second, each with a number and only what changed since the last. What
the browser sends is put into `inbox` by whichever thread the kernel calls us on, and acted on by the
presenter's thread, the only one that sends. A command that comes twice is carried out once.
"""

from __future__ import annotations

import logging
import re
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import anywidget
from traitlets import Int, Unicode

from arrea_nb._batch import Batch
from arrea_nb._records import brief
from arrea_nb.notebook._frames import Frames

_log = logging.getLogger("arrea_nb")
_STATIC = Path(__file__).parent / "static"
_PARTS = ("text", "terminal", "dom", "line", "state", "rows", "output", "timeline", "view")

FRAME_INTERVAL = 0.2
"""Seconds from one frame to the next, at the least."""
_MOST_INTERVAL = 0.5
_SHARE = 0.01  # of a processor, for building frames: where thousands of jobs change, frames are fewer
HEARTBEAT = 5.0
"""Seconds of silence after which a running batch sends an empty frame: so the browser knows a dead kernel."""
_MOST_CLIENTS = 100
_MOST_REFS = 1000

Message = dict[str, Any]
Verbs = Mapping[str, Callable[[Mapping[str, Any]], object]]


def joined(folder: Path, parts: tuple[str, ...]) -> str:
    """One ES module of several: each after those that it imports, without what names them to each other.

    Comments and indentation go too: programs that save widgets' state save this with every batch.
    """
    text = "".join((folder / f"{part}.js").read_text("utf-8") for part in parts)
    text = re.sub(r"^import [^;]*;\n", "", text, flags=re.MULTILINE)
    text = re.sub(r"^export (?!default)", "", text, flags=re.MULTILINE)
    return re.sub(r"^ *(?:(?:// |/\*\*|\* |\*/).*)?\n?", "", text, flags=re.MULTILINE)


class LiveView(anywidget.AnyWidget):
    """A batch in the browser, a DOMWidget.

    Args:
        batch: What to show.
        verbs: What the browser may ask for: from the name of a command to what carries it out.
        notice: Called from any thread when the browser sent something, to have `step` called soon.
    """

    _esm = joined(_STATIC, _PARTS)
    _css = (_STATIC / "live.css").read_text("utf-8")
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
        self._interval = FRAME_INTERVAL
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
        if now < self._last_sent + self._interval:
            return self._last_sent + self._interval
        begun = time.thread_time()
        ended = self._batch.done()  # before looking at the jobs: so the last frame has the last of them
        if self._asked:
            self._asked = False
            take()
            self._send_frame(self._frames.picture(now), now)
        else:
            self._frames.look(take())
            late = now >= self._last_sent + HEARTBEAT and not ended
            if self._frames.behind or late or (ended and not self._said_end):
                self._send_frame(self._frames.frame(now), now)
        self._said_end = ended
        self._interval = min(max(FRAME_INTERVAL, (time.thread_time() - begun) / _SHARE), _MOST_INTERVAL)
        self._frames.measure(now)  # after the frame, which it would hold up
        if self._frames.behind:
            return self._last_sent + self._interval
        return None if ended else min(self._last_sent + HEARTBEAT, self._frames.due)

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
        elif kind == "look":
            self._frames.prefer(content.get("job"))
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
