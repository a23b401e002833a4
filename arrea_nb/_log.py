"""What `log=True` writes: each attempt's start, end and retry, to the logger `arrea_nb`, shown on stderr.

Guarantees: it is a subscriber like any other, so that no line is written under the Leader's lock. Nobody's
logging is changed by it: where there is no handler the lines go to stderr, where the logger has no level of
its own they are shown all the same.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable

from arrea_nb._records import BatchRecord
from arrea_nb.events import Event, JobEnded, JobRetrying, JobStarted

_log = logging.getLogger("arrea_nb")


def writer_for(batch: BatchRecord) -> Callable[[Event], object]:
    """Who writes what happens to this batch to the log."""
    return LogWriter(batch).write


class LogWriter:
    """Writes what happens to one batch to the logger `arrea_nb`, for `log=True`."""

    def __init__(self, batch: BatchRecord) -> None:
        self._batch = batch

    def write(self, event: Event) -> None:
        """One line for an attempt's start, end or retry."""
        if isinstance(event, JobStarted):
            self._say(event.job, f"attempt {event.attempt} started")
        elif isinstance(event, JobRetrying):
            self._say(
                event.job, f"attempt {event.attempt} failed ({event.error}); again in {event.delay:g} s"
            )
        elif isinstance(event, JobEnded):
            self._say(event.job, event.state if event.error is None else f"{event.state} ({event.error})")

    def _say(self, job: int, what: str) -> None:
        # Not _log.info(): log=True asks for these lines, and nobody asked to change the level of a logger.
        if _log.level != logging.NOTSET and not _log.isEnabledFor(logging.INFO):
            return
        said = (job, self._batch.jobs[job].name, what)
        record = _log.makeRecord(_log.name, logging.INFO, __file__, 0, "[%d] %s: %s", said, None)
        if _log.hasHandlers():
            _log.handle(record)
        else:
            sys.stderr.write(record.getMessage() + "\n")
