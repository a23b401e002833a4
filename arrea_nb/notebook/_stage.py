"""A batch that is shown: its displays in cells, and the live or console view that all of them share.

Guarantees: at the end the live view leaves each display and the summary takes its place, as a new output.
Whoever comes first does that, exactly once for each display: the main thread (`finish`), while the cell
lasts; the presenter's thread after it. What is shown goes to the cell that showed it: each view's frames are
sent in a copy of that cell's context. A view that has a bug is left alone from then on, while its summary
still comes.
"""

from __future__ import annotations

import contextlib
import contextvars
import logging
import sys
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, Protocol, cast

from IPython.display import publish_display_data

from arrea_nb._batch import Batch, host_of
from arrea_nb._engine import Engine
from arrea_nb._section import HoldInterrupts
from arrea_nb.notebook import _summary
from arrea_nb.notebook._console import ConsoleView
from arrea_nb.notebook._live import LiveView

if TYPE_CHECKING:
    from arrea_nb._broadcast import Watch

_log = logging.getLogger("arrea_nb")
_publish = cast("Callable[..., None]", publish_display_data)
_VIEW = "application/vnd.jupyter.widget-view+json"


class View(Protocol):
    """One display of a batch."""

    def finish(self) -> None:
        """The live part leaves and the summary takes its place; more than once is fine."""


class Showing:
    """One display of a batch: first its live view, in the end its summary.

    Attributes:
        bound: It belongs to a cell that still runs, whose main thread will finish it.
    """

    def __init__(self, batch: Batch, *, bound: bool) -> None:
        self.bound = bound
        self._batch = batch
        self._stage: Stage | None = None
        self._display_id: str | None = None
        self._promise_id: str | None = None  # of the text that its cell was left with
        self._context = contextvars.copy_context()
        # Guards _finished, and is held until the summary is out, so that after `finish` it is.
        self._lock = threading.RLock()
        self._finished = False
        self._gone = False  # the live view has left, or nobody can be told

    @property
    def finished(self) -> bool:
        """Whether the summary has taken its place."""
        return self._finished

    def begin(self, stage: Stage) -> None:
        """Shows the live view."""
        self._stage = stage
        if not stage.browser:
            stage.console()
            return
        self._display_id = uuid.uuid4().hex
        reference = {"version_major": 2, "version_minor": 0, "model_id": stage.live().model_id}
        # With the text that stays when it leaves: a strict nbval compares that with what it is shown first.
        _publish({_VIEW: reference, "text/plain": ""}, transient={"display_id": self._display_id})

    def leave_cell(self, patience: float) -> None:
        """Its cell is over. If its batch still runs at `patience`, what stays is a text that stays true."""
        if not self.bound:
            return
        if not self._finished and self._stage is not None:
            with contextlib.suppress(KeyboardInterrupt), HoldInterrupts():
                self._batch.wait(max(0.0, patience - time.monotonic()))  # which ends this showing too
        self.bound = False
        if self._finished or self._stage is None:
            return
        self._stage.close_console()
        self._promise_id = uuid.uuid4().hex
        _publish({"text/plain": _summary.started(self._batch)}, transient={"display_id": self._promise_id})

    def finish(self) -> None:
        """Shows the summary in the cell that runs here."""
        with HoldInterrupts(), self._lock:
            if self._finished:
                return
            self._finished = True
            stage = self._stage
            if stage is not None:
                stage.close_console()
            self._remove()
            self._gone = self.bound or stage is None or stage.greeted
            # In a terminal the cell that is over has made room for the prompt, which is left alone.
            if stage is None or self.bound or (stage.browser and not stage.stored):
                if self._promise_id is not None and stage is not None and stage.greeted:
                    _blank(self._promise_id)
                publish_summary(self._batch)
            if stage is not None:
                stage.stored = stage.stored or self.bound or stage.greeted
                stage.wake()

    def remove_again(self) -> None:
        """At the end of a later cell: nbclient heeds an update only when it comes from the cell that runs."""
        if self._finished and not self._gone:
            self._gone = True
            self._remove()

    def _remove(self) -> None:
        if self._display_id is not None:
            _blank(self._display_id)

    def finish_later(self) -> None:
        """Shows the summary in the cell that it was shown in, from another thread."""
        self._context.run(self.finish)


class Stage:
    """A batch that is shown, however often: its watch, and its live or console view.

    Attributes:
        stored: The summary is where it stays.
        wake: Has the presenter look at it soon.
        browser: There are comms, and perhaps a browser at their other end.
    """

    def __init__(
        self,
        batch: Batch,
        bell: SimpleQueue[None],
        wake: Callable[[], None],
        show: Callable[[Batch], View],
        *,
        browser: bool,
    ) -> None:
        self.batch = batch
        self.browser = browser
        self.showings: tuple[Showing, ...] = ()
        self.stored = False
        self._engine = engine_of(batch)
        self.wake = wake
        self._show = show
        self._context = contextvars.copy_context()
        self._live: LiveView | None = None
        self._console: ConsoleView | None = None
        self._broken = False
        # One thread listens to all batches, so all marks ring the presenter's bell.
        self._watch: Watch | None = self._engine.watch(batch, bell)

    @property
    def wanted(self) -> bool:
        """Whether the presenter's thread has something to do for it, now or later."""
        if any(not one.finished for one in self.showings):
            return True
        return self._live is not None and not self._broken and not self._live.settled

    @property
    def greeted(self) -> bool:
        """Whether a browser shows it that was there from the beginning.

        A page that was loaded again says hello anew, shows the live view to its end, and drops what is
        displayed by cells that ran before.
        """
        return self._live is not None and len(self._live.seen) == 1

    def live(self) -> LiveView:
        """Its live view, made when it is first asked for."""
        if self._live is None:
            verbs: Mapping[str, Callable[[Mapping[str, Any]], object]] = {
                "cancel": lambda asked: self.batch[_whole(asked, "job")].cancel(),
                "cancel_all": lambda _: self.batch.cancel(),
                "retry_failed": lambda _: self._show(self.batch.retry_failed()),
                "set_workers": lambda asked: self._engine.set_workers(
                    self.batch.id, _whole(asked, "workers")
                ),
            }
            self._live = LiveView(self.batch, verbs, self.wake)
        return self._live

    def console(self) -> None:
        """Draws it in the terminal from now on."""
        if self._console is None:
            self._console = ConsoleView(self.batch, sys.stdout)

    def close_console(self) -> None:
        """Takes the drawing in the terminal away."""
        console, self._console = self._console, None
        if console is not None:
            console.close()

    def step(self, now: float) -> float | None:
        """Draws what changed, and ends displays that are over. Returns when it wants to be called again."""
        plan = None
        if not self._broken:
            try:
                plan = self._context.run(self._draw, now)
            except BaseException as bug:
                self._broken = True
                if not isinstance(bug, Exception):
                    raise
                _log.exception("the view of batch %s has a bug and stops", self.batch.id[:8])
        if self.batch.done():
            for showing in self.showings:
                if not showing.bound and not showing.finished:
                    showing.finish_later()
            if self._live is None or self._live.settled or self._broken:
                self._unwatch()
        return plan

    def close(self) -> None:
        """Lets go of the batch and of the model in the browser."""
        self._unwatch()
        self.close_console()
        if self._live is not None:
            self._live.close()

    def _draw(self, now: float) -> float | None:
        if self._live is not None:
            return self._live.step(now, self._take)
        console = self._console
        return None if console is None else console.step(now, self._take)

    def _take(self) -> set[int]:
        return set() if self._watch is None else self._watch.take()

    def _unwatch(self) -> None:
        watch, self._watch = self._watch, None
        if watch is not None:
            watch.close()


def publish_summary(batch: Batch) -> None:
    """Shows the summary of a batch as an output of the cell that runs here."""
    _publish({"text/html": _summary.html(batch), "text/plain": _summary.text(batch)})


def _blank(display_id: str) -> None:
    # An empty text takes no room; of nothing at all nbconvert says that it cannot be shown.
    _publish({"text/plain": ""}, transient={"display_id": display_id}, update=True)


def engine_of(batch: Batch) -> Engine:
    """The engine of a batch: not always that of the kernel's own Leader."""
    return cast(Engine, host_of(batch))


def _whole(asked: Mapping[str, Any], key: str) -> int:
    value = asked.get(key)
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{key}: expected a whole number, got {value!r}")
    return value
