"""One callable: its context, its deadline, its stop.

Guarantees: each attempt runs in a fresh copy of the context in which its batch was submitted; what it
prints goes to its own output and is dropped after its end; a coroutine runs in a loop of its own. When the
job is stopped `StopJob` is raised in it (see `_threads.py` for when), which `except Exception` does not
catch; a coroutine is cancelled through its loop instead. Tracebacks begin in the user's code.
"""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from types import CoroutineType, TracebackType
from typing import TYPE_CHECKING, Any

from arrea_nb._progress import ProgressReader, running
from arrea_nb._records import Desk, JobRecord, Outcome, brief
from arrea_nb.errors import JobCrashed

if TYPE_CHECKING:
    from arrea_nb.workers._threads import Worker

_OURS = str(Path(__file__).resolve().parent.parent)
_ASYNCIO = str(Path(asyncio.__file__).resolve().parent)


class _Here(threading.local):
    worker: Worker | None = None


here = _Here()
"""Which worker this thread is, if it is one."""


class StopJob(BaseException):
    """Raised in a callable at its deadline or when it is cancelled. Private: nobody should catch it."""

    def __init__(self) -> None:
        super().__init__()
        # It is made when it arrives. Until then it is pending, and can be taken back.
        if here.worker is not None:
            here.worker.arrived = True


class _Running:
    """The attempt, as what runs in it sees it (a `Reporter`)."""

    __slots__ = ("_desk", "_job", "_output", "_readers", "open", "worker")

    def __init__(self, job: JobRecord, desk: Desk, worker: Worker) -> None:
        self._job = job
        self._desk = desk
        self._output: Any = None
        self._readers: dict[int, ProgressReader] | None = None
        self.worker = worker
        self.open = True

    def progressed(self, fraction: float | None, done: float, total: float | None, message: str) -> None:
        if self.open:
            self._desk.progressed(self._job, fraction, done, total, message)

    def wrote(self, stream: int, text: str) -> None:
        if not self.open or not text:
            return
        data = text.encode("utf-8", "backslashreplace")
        with self._desk.sheltered(self.worker):
            if self._output is None:
                self._output = self._job.output = self._desk.new_output()
                self._readers = {0: ProgressReader(), 1: ProgressReader()}
            self._output.write(stream, data)
            fraction = None if self._readers is None else self._readers[stream].feed(data)
            self._desk.printed(self._job, stream, text, fraction)

    def close(self) -> None:
        """It is over: what is written from now on is dropped."""
        self.open = False
        if self._output is not None:
            # The frames of an error keep this object, also when the job is tried again: not its output.
            self._output = _nowhere


class _Nowhere:
    """Takes what a thread that outlived its attempt still writes."""

    def write(self, stream: int, data: bytes) -> None:
        pass


_nowhere = _Nowhere()


def run_python(worker: Worker, job: JobRecord, desk: Desk) -> JobRecord | None:
    """Runs the callable, reports its outcome, and returns the next job."""
    attempt = _Running(job, desk, worker)
    job.output = None
    outcome = None
    value = None
    try:
        try:
            # From here on StopJob can come at any moment, until report() closes the slot.
            worker.open = True
            if job.stop is not None:
                raise StopJob  # noqa: TRY301 - the order came before the slot was open
            value = job.batch.context.copy().run(_call, job.command, attempt, worker)
        except BaseException as raised:  # noqa: BLE001 - all of it is the job's outcome
            outcome = _failed(job, desk, raised, worker)
        attempt.close()
        return desk.report(worker, job, outcome, value)
    except StopJob:
        # It came in one of the gaps above. An attempt gets it once, so now there is peace.
        attempt.close()
        return desk.report(worker, job, outcome, value)


def _call(command: Any, attempt: _Running, worker: Worker) -> Any:
    running.set(attempt)
    value = command.function()
    if isinstance(value, CoroutineType):
        return _run_coroutine(value, worker)
    return value


def _run_coroutine(coroutine: Any, worker: Worker) -> Any:
    async def supervise() -> Any:
        loop = asyncio.get_running_loop()
        task = asyncio.ensure_future(coroutine)

        def cancel() -> None:
            try:
                loop.call_soon_threadsafe(task.cancel)
            except RuntimeError:
                return  # the loop is closed: the coroutine is over

        worker.cancel_task = cancel
        if worker.job is not None and worker.job.stop is not None:
            task.cancel()
        return await task

    try:
        return asyncio.run(supervise())
    finally:
        # Here, and not under the lock: with the task goes what its user gave it.
        worker.cancel_task = None


def _failed(job: JobRecord, desk: Desk, raised: BaseException, worker: Worker) -> Outcome:
    """Reads the outcome out of what was raised, and asks the policy."""
    if job.stop is not None:
        if worker.lost or job.stop != "timed_out":
            return Outcome(error=JobCrashed("stopped"))  # the ledger puts the right error in its place
        error: Exception = desk.timeout_error(job)
    elif isinstance(raised, Exception):
        error = raised
        error.__traceback__ = _users_part(error.__traceback__)
    else:
        error = JobCrashed(f"the callable raised {brief(raised)}")
        raised.__traceback__ = _users_part(raised.__traceback__)
        error.__cause__ = raised
    decision = job.batch.policy.decide(error, job.attempt, desk.public(job))
    outcome = Outcome(None, error)
    outcome.decision = decision
    outcome.told = brief(error)
    return outcome


def _users_part(trace: TracebackType | None) -> TracebackType | None:
    """The traceback from the first frame that is neither ours nor asyncio's."""
    at = trace
    while at is not None and at.tb_frame.f_code.co_filename.startswith((_OURS, _ASYNCIO)):
        at = at.tb_next
    return at or trace
