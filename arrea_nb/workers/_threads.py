"""Worker threads: take a job, run it, close its slot, have its policy asked, report, take the next.

Guarantees: a worker with nothing to take ends; it is a daemon, so that it never holds up the interpreter's
exit. Each attempt has a slot of its own (`_slot.py`), and so has each asking of a policy. Whatever ended an
attempt, one place reports it, and a stop that comes late is caught there.
"""

from __future__ import annotations

import contextlib
import ctypes
import logging
import os
import sys
import threading
from typing import Any

from arrea_nb._records import Desk, JobRecord
from arrea_nb._section import Shelter
from arrea_nb.workers._python import Attempt, ask_policy, run_python
from arrea_nb.workers._shell import run_shell
from arrea_nb.workers._slot import OPEN, StopJob, here

_log = logging.getLogger("arrea_nb")
_set_exception = ctypes.pythonapi.PyThreadState_SetAsyncExc
_set_exception.argtypes = (ctypes.c_ulong, ctypes.py_object)
_stop = ctypes.py_object(StopJob)
_nothing = ctypes.py_object()  # a NULL: clears what is pending


class Worker(Shelter):
    """One thread that runs one job at a time. Its fields are guarded by the engine's lock.

    Args:
        desk: Where it reports.
        number: Its own.
        job: One whose attempt had to be abandoned, and whose policy is still to be asked. None: it takes one.
    """

    def __init__(self, desk: Desk, number: int, job: JobRecord | None = None) -> None:
        self.desk = desk
        self.number = number
        self.job = job
        self.slot: Attempt | None = None  # from when it is entered
        self.lost = False  # its job was abandoned; it is not a worker any more
        self.grace_ends: float | None = None
        self.ident = 0
        self._wake: int | None = None
        self.thread = threading.Thread(target=self._work, daemon=True, name=f"arrea-worker-{number}")

    def _work(self) -> None:
        self.ident = threading.get_ident()
        self._run_jobs(self.job)
        while not self.lost and self.desk.stand_in(self):
            self._run_jobs(None)
        self._close_wake()

    def _run_jobs(self, job: JobRecord | None) -> None:
        try:
            job = job or self.desk.report(self, None)
            while job is not None:
                job = self._ask(job) if job.asking else self._run(job)
        except BaseException as error:  # noqa: BLE001 - C21: a bug of ours must not lose the job
            with contextlib.suppress(Exception):
                _log.exception("a worker thread died of a bug; another takes its place")
            self.desk.crashed(self, error)
        finally:
            here.slot = None

    def _run(self, job: JobRecord) -> JobRecord | None:
        """One attempt. Returns what to do next: this job again, if its policy is to be asked."""
        result: Any = None
        if job.output is not None:
            job.output = None  # that of the attempt before
        attempt = Attempt(job, self.desk, self, self.ident)
        here.slot = attempt
        try:
            if job.command.kind == "python":
                attempt.state = OPEN
                self.slot = attempt
                # From here on the exception can come at any moment, until the slot is closed in report().
                if job.stop is None and not self.lost:
                    result = run_python(attempt)
            else:
                attempt.bell = self.ring
                attempt.state = OPEN
                self.slot = attempt
                result = run_shell(job, self.desk, self.wake_fd)
            return self.desk.report(self, job, result)
        except StopJob:
            # It came in one of the gaps above. An attempt gets it once, so now there is peace.
            return self.desk.report(self, job, result)

    def _ask(self, job: JobRecord) -> JobRecord | None:
        """Asks the policy what comes after the failure, in a second slot: that can be stopped too."""
        decision = note = None
        attempt = Attempt(job, self.desk, self, self.ident)
        here.slot = attempt
        try:
            attempt.state = OPEN
            self.slot = attempt
            if job.stop is None and not self.lost:
                decision, note = ask_policy(attempt)
            return self.desk.decided(self, job, decision, note)
        except StopJob:
            return self.desk.decided(self, job, None, "policy.on_error: stopped before it had answered")

    # What its slot and the sections of its thread want of it

    def inject(self, *, on: bool) -> None:
        """Sets the exception that stops a callable in this thread, or takes a pending one back."""
        if on:
            hear_of_dropped()
        _set_exception(self.ident, _stop if on else _nothing)

    def take_back(self) -> None:
        """Keeps the exception out of a section."""
        if self.slot is not None:
            self.slot.take_back()

    def give_again(self) -> None:
        """Lets it come, now that the section is over."""
        if self.slot is not None:
            self.slot.give_again()

    # The descriptor that wakes a shell job's poll

    def wake_fd(self) -> int:
        """Becomes readable when the job shall stop; one for the worker's life."""
        if self._wake is None:
            self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        return self._wake

    def ring(self) -> None:
        """Wakes the poll; under the lock, as afterwards the descriptor could be another file's."""
        if self._wake is not None:
            os.eventfd_write(self._wake, 1)

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
    slot = here.slot
    if isinstance(slot, Attempt) and what.exc_type is StopJob:
        slot.desk.stop_was_dropped(slot)
    else:
        _hook_before(what)
