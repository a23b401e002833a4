"""The presenter: the only one who knows both the Leader and the views.

    _views.show ──▶ Presenter.show ──▶ a stage: the batch, its watch, its live or console view
                                         │
    marks, clicks ──▶ bell ──▶ the one thread ──▶ stage.step ──▶ a few frames a second

Guarantees: one thread, "arrea-presenter", shows all batches; it is asleep until something changed, and ends
when there is nothing left to show. One that dies of a bug is replaced. A front end without a browser
(nbclient, nbval) does not take outputs of cells that are over: there, the first `wait()` or `results()` in a
later cell shows the summary.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import OrderedDict
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING

from arrea_nb._batch import Batch
from arrea_nb.notebook._live import LiveView
from arrea_nb.notebook._stage import Showing, Stage, View, publish_summary
from arrea_nb.workers import _capture

if TYPE_CHECKING:
    from IPython.core.interactiveshell import InteractiveShell

_log = logging.getLogger("arrea_nb")
# So many batches that are over keep their model, so that a page that is loaded again still shows their end.
_KEPT = 20
# How long a cell that shows a batch waits for it at its end, in seconds: is it over that soon, its summary is
# all there is to show, wherever the notebook runs.
_PATIENCE = 0.2


class Presenter:
    """Shows batches in one shell.

    Args:
        shell: The IPython shell whose cells batches are shown in.

    Example:
        >>> presenter = Presenter(get_ipython())                    # doctest: +SKIP
        >>> _views.show_with(presenter.show, presenter.widget, presenter.waited)    # doctest: +SKIP
    """

    def __init__(self, shell: InteractiveShell) -> None:
        self._shell = shell
        self._browser = hasattr(shell, "kernel")
        # We are made by %load_ext, which is in a cell.
        self._in_cell = True
        # Guards _stages and _thread. Never held while a view is drawn or user code runs.
        self._lock = threading.Lock()
        self._stages: OrderedDict[str, Stage] = OrderedDict()
        self._thread: threading.Thread | None = None
        self._bell: SimpleQueue[None] = SimpleQueue()
        self._closed = False
        shell.events.register("pre_run_cell", self._cell_begins)
        shell.events.register("post_run_cell", self._cell_ends)

    def show(self, batch: Batch) -> View:
        """Shows a batch in the cell that runs: its summary if it is over, else a live view."""
        showing = Showing(batch, bound=self._bound())
        if batch.done():
            showing.finish()
            known = self._stages.get(batch.id)
            if known is not None:
                known.stored = True
            return showing
        stage = self._stage(batch)
        showing.begin(stage)
        stage.showings = (*stage.showings, showing)
        self._wake()
        return showing

    def widget(self, batch: Batch) -> LiveView:
        """The live view of a batch, to place in a layout of one's own."""
        stage = self._stage(batch)
        live = stage.live()
        self._wake()
        return live

    def waited(self, batch: Batch) -> None:
        """Somebody waited for this batch and it is over: shows its summary here, if it was not stored yet."""
        stage = self._stages.get(batch.id)
        if stage is None or not self._bound():
            return
        for showing in stage.showings:
            if showing.bound:
                showing.finish()
        if stage.showings and not stage.stored:
            stage.stored = True
            publish_summary(batch)

    def close(self) -> None:
        """Ends all views and lets go of the shell; more than once is fine."""
        if self._closed:
            return
        self._closed = True
        self._shell.events.unregister("pre_run_cell", self._cell_begins)
        self._shell.events.unregister("post_run_cell", self._cell_ends)
        with self._lock:
            stages = list(self._stages.values())
            self._stages.clear()
            thread = self._thread
        self._bell.put(None)
        if thread is not None and thread is not threading.current_thread():
            thread.join(2.0)
        for stage in stages:
            for showing in stage.showings:
                showing.finish()
            stage.close()

    # Cells

    def _cell_begins(self, *_: object) -> None:
        self._in_cell = True
        _capture.look_again()  # ipykernel sets input() anew for each cell

    def _cell_ends(self, *_: object) -> None:
        showings = [one for stage in list(self._stages.values()) for one in stage.showings]
        patience = time.monotonic() + _PATIENCE
        for showing in showings:
            showing.leave_cell(patience)
            showing.remove_again()
        self._in_cell = False
        self._wake()

    def _bound(self) -> bool:
        """Whether what is shown now belongs to the cell that runs."""
        return self._in_cell and threading.current_thread() is threading.main_thread()

    # Stages

    def _stage(self, batch: Batch) -> Stage:
        with self._lock:
            stage = self._stages.get(batch.id)
        if stage is not None:
            return stage
        made = Stage(batch, self._bell, self._wake, self.show, browser=self._browser)
        with self._lock:
            stage = self._stages.setdefault(batch.id, made)
            over = [one for one in self._stages.values() if one is not stage and not one.wanted]
            old = over[: max(0, len(over) - _KEPT)]
            for one in old:
                del self._stages[one.batch.id]
        for one in old if stage is made else [*old, made]:
            one.close()
        return stage

    # The thread

    def _wake(self) -> None:
        """Has every stage looked at soon; starts the thread if it is not there."""
        with self._lock:
            if self._thread is not None:
                self._bell.put(None)
            elif not self._closed and any(one.wanted for one in self._stages.values()):
                self._start()

    def _start(self) -> None:
        self._thread = threading.Thread(target=self._run, daemon=True, name="arrea-presenter")
        self._thread.start()

    def _run(self) -> None:
        try:
            while True:
                with self._lock:
                    stages = [one for one in self._stages.values() if one.wanted]
                    if not stages or self._closed:
                        self._thread = None
                        return
                now = time.monotonic()
                plans = [plan for one in stages if (plan := one.step(now)) is not None]
                if any(not one.wanted for one in stages):
                    continue
                self._sleep(min(plans, default=None))
        except BaseException:  # noqa: BLE001 - whatever it was, the batches are shown on
            _log.exception("the presenter's thread died of a bug; another takes its place")
            with self._lock:
                self._thread = None
                if not self._closed:
                    self._start()

    def _sleep(self, until: float | None) -> None:
        """Until the bell rings, or a stage's next frame is due."""
        try:
            self._bell.get(timeout=None if until is None else max(0.0, until - time.monotonic()))
            while True:  # one look is enough for however many rang
                self._bell.get_nowait()
        except Empty:
            return
