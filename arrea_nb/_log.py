"""What `log=True` writes: each attempt's start, end and retry, to the logger `arrea_nb`, shown on stderr.

Guarantees: it is a subscriber like any other, so that no line is written under the Leader's lock. A handler
is added only where nobody has configured logging.
"""

from __future__ import annotations

import logging
import sys

from arrea_nb._records import BatchRecord
from arrea_nb.events import Event, JobEnded, JobRetrying, JobStarted

_log = logging.getLogger("arrea_nb")


class LogWriter:
    """Writes what happens to one batch to the logger `arrea_nb`, for `log=True`."""

    def __init__(self, batch: BatchRecord) -> None:
        self._batch = batch
        if not _log.handlers and not logging.getLogger().handlers:
            handler = logging.StreamHandler(_Stderr())
            handler.setFormatter(logging.Formatter("%(message)s"))
            _log.addHandler(handler)
        if _log.level == logging.NOTSET:
            _log.setLevel(logging.INFO)

    def write(self, event: Event) -> None:
        """One line for an attempt's start, end or retry."""
        if isinstance(event, JobStarted):
            _log.info("[%d] %s: attempt %d started", event.job, self._name(event.job), event.attempt)
        elif isinstance(event, JobRetrying):
            _log.info(
                "[%d] %s: attempt %d failed (%s); again in %g s",
                event.job,
                self._name(event.job),
                event.attempt,
                event.error,
                event.delay,
            )
        elif isinstance(event, JobEnded):
            why = "" if event.error is None else f" ({event.error})"
            _log.info("[%d] %s: %s%s", event.job, self._name(event.job), event.state, why)

    def _name(self, job: int) -> str:
        return self._batch.jobs[job].name


class _Stderr:
    """Whatever sys.stderr is when a line is written: ipykernel and pytest change it."""

    def write(self, text: str) -> int:
        return sys.stderr.write(text)

    def flush(self) -> None:
        sys.stderr.flush()
