"""Worker threads: take a job, run it, report, take the next.

Guarantees: a worker with nothing to take ends; it is a daemon, so that it never holds up the interpreter's
exit. The exception that stops a callable (C7) is injected under the Leader's lock, at most once an attempt,
and only while the attempt's slot is open; the worker closes the slot and takes a pending exception back
under the same lock, so that it can never land in another job.

A slot: `open` from just before the callable is called until `close`; `injected` once the exception was set;
`withheld` while a section (see `_section.py`) keeps it back; `arrived` once it was raised in the callable;
`dropped` if that was in a finaliser, where Python drops whatever is raised: then it comes again.
"""

from __future__ import annotations

import contextlib
import ctypes
import logging
import os
import sys
import threading
from typing import Any

from arrea_nb._records import Desk, JobRecord, Latch
from arrea_nb._section import Shelter
from arrea_nb.workers._python import StopJob, here, run_python
from arrea_nb.workers._shell import run_shell

_log = logging.getLogger("arrea_nb")
_set_exception = ctypes.pythonapi.PyThreadState_SetAsyncExc
_set_exception.argtypes = (ctypes.c_ulong, ctypes.py_object)
_stop = ctypes.py_object(StopJob)
_nothing = ctypes.py_object()  # a NULL: clears what is pending


class Worker(Shelter):
    """One thread that runs one job at a time. Its fields are guarded by the Leader's lock."""

    def __init__(self, desk: Desk, number: int) -> None:
        self.desk = desk
        self.job: JobRecord | None = None
        self.open = False
        self.injected = False
        self.withheld = False
        self.arrived = False
        self.dropped = False
        self.sheltered = 0
        self.number = number
        self.lost = False  # its job was abandoned; it is not a worker any more
        self.deadline: float | None = None  # of the callable it runs
        self.grace_ends: float | None = None
        self.cancel_task: Any = None  # stops the coroutine that it runs, thread-safe
        self.latch: Latch | None = None  # what its callable waits on in one of our own waits
        self.ident = 0
        self._wake: int | None = None
        self.thread = threading.Thread(target=self._work, daemon=True, name=f"arrea-worker-{number}")

    def _work(self) -> None:
        self.ident = threading.get_ident()
        here.worker = self
        self._run_jobs()
        while not self.lost and self.desk.stand_in(self):
            self._run_jobs()
        self._close_wake()

    def _run_jobs(self) -> None:
        try:
            job = self.desk.report(self, None, None)
            while job is not None:
                if job.command.kind == "python":
                    job = run_python(self, job, self.desk)
                else:
                    job = self.desk.report(self, job, run_shell(self, job, self.desk))
        except BaseException as error:  # noqa: BLE001 - C21: a bug of ours must not lose the job
            with contextlib.suppress(Exception):
                _log.exception("a worker thread died of a bug; another takes its place")
            self.desk.crashed(self, error)

    # The slot; all of these are called under the Leader's lock

    def begin(self, job: JobRecord | None, deadline: float | None) -> None:
        """It has got this job."""
        self.job = job
        self.injected = self.withheld = self.arrived = self.dropped = False
        self.deadline = deadline
        self.grace_ends = None
        self.cancel_task = None

    def close(self) -> None:
        """The attempt is over: nothing is injected any more, and what is pending is taken back."""
        self.open = False
        if self.injected:
            _set_exception(self.ident, _nothing)

    def stop(self) -> None:
        """Wakes whatever the job waits in, so that it ends."""
        job = self.job
        if job is None:
            return
        if job.command.kind == "shell":
            # A descriptor, written under the lock: after it the worker could have closed it, and another
            # file could have its number.
            if self._wake is not None:
                os.eventfd_write(self._wake, 1)
            return
        if self.cancel_task is not None:
            self.cancel_task()
        elif self.open and (self.dropped or not self.injected):
            self.injected = True
            self.arrived = self.dropped = False
            hear_of_dropped()
            if self.sheltered:
                self.withheld = True
            else:
                _set_exception(self.ident, _stop)
        if self.latch is not None:
            self.latch.put(None)

    def take_back(self) -> None:
        """Keeps the stop exception out of a section; one that has arrived is out already."""
        if self.open and self.injected and not self.withheld and not self.arrived:
            _set_exception(self.ident, _nothing)
            self.withheld = True

    def give_again(self) -> None:
        """Lets it come, now that the section is over."""
        if self.open and self.withheld and not self.sheltered:
            self.withheld = False
            _set_exception(self.ident, _stop)

    @property
    def unstopped(self) -> bool:
        """Whether its callable is to be stopped, and the exception for that was dropped."""
        job = self.job
        return job is not None and job.stop is not None and self.open and self.dropped

    # The descriptor that wakes a shell job's poll

    def wake_fd(self) -> int:
        """Becomes readable when the job shall stop; one for the worker's life."""
        if self._wake is None:
            self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        return self._wake

    def _close_wake(self) -> None:
        if self._wake is not None:
            wake, self._wake = self._wake, None
            os.close(wake)


_hook_before: Any = None


def hear_of_dropped() -> None:
    """Has Python tell us of exceptions that it drops; once, since a later hook may pass on to ours."""
    global _hook_before  # noqa: PLW0603 - there is one sys.unraisablehook
    if _hook_before is None:
        _hook_before = sys.unraisablehook
        sys.unraisablehook = _dropped


def hear_no_more() -> None:
    """Puts back what was there, unless somebody changed it since."""
    global _hook_before
    if sys.unraisablehook is _dropped:
        sys.unraisablehook, _hook_before = _hook_before, None


def _dropped(what: Any) -> None:
    worker = here.worker
    if worker is not None and what.exc_type is StopJob:
        worker.desk.stop_was_dropped(worker)
    else:
        _hook_before(what)
