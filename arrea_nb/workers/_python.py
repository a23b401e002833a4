"""One callable in this thread, and whatever else of the user's a worker calls: the policy that is asked.

Guarantees: each attempt runs in a fresh copy of the context in which its batch was submitted, and so does
each asking of a policy; what it prints goes to its job's output and is dropped after its end; an awaitable
runs in a loop of its own. When the job is stopped `StopJob` is raised in it (see `_slot.py` for when), which
`except Exception` does not catch; a coroutine is cancelled through its loop instead. An error is put into
words where it was raised, so that a `__str__` that hangs is stopped as the callable is. Tracebacks begin in
the user's code.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import traceback
from collections.abc import Awaitable
from pathlib import Path
from types import CoroutineType, TracebackType
from typing import Any

from arrea_nb._commands import awaitable, unrun
from arrea_nb._foreign import exact, short_repr
from arrea_nb._policy import ANSWERS, STEPS, Decision
from arrea_nb._progress import ProgressReader, running
from arrea_nb._records import BatchRecord, Desk, JobRecord, Latch, Outcome, brief, trace_of, with_trace
from arrea_nb._section import Stop
from arrea_nb.errors import InvalidCommandError, JobCancelled, JobCrashed
from arrea_nb.workers._slot import CLOSED, OPEN, Slot, Thread

_log = logging.getLogger("arrea_nb")
_OURS = str(Path(__file__).resolve().parent.parent)
_ASYNCIO = str(Path(asyncio.__file__).resolve().parent)
# Values of these types are nothing that still has to be run.
_PLAIN = frozenset({type(None), bool, int, float, str, bytes, list, tuple, dict})
# Held while an attempt makes its output, which several of its threads may do at once.
# A finaliser that prints may break in there, in the thread that makes it.
_making = threading.RLock()


class Attempt(Slot):
    """The slot, as what runs in it sees it (a `Reporter`)."""

    _output: Any = None
    _readers: tuple[ProgressReader, ProgressReader] | None = None
    _reading: Any = None  # guards the readers

    def __init__(self, job: JobRecord, desk: Desk, thread: Thread, ident: int) -> None:
        self.thread = thread
        self.job = job
        self.desk = desk
        self.ident = ident

    def progressed(self, fraction: float | None, done: float, total: float | None, message: str) -> None:
        """It told its progress."""
        if not self.over:
            self.desk.progressed(self.job, fraction, done, total, message)

    def wrote(self, stream: int, text: str) -> None:
        """It printed; from any of its threads."""
        if self.over or not text:
            return
        data = text.encode("utf-8", "backslashreplace")
        with self.desk.sheltered(self):
            output = self._output or self._open()
            output.write(stream, data)
            self.desk.printed(self.job, stream, text, self._read(stream, data))

    def _open(self) -> Any:
        with _making:
            if self._output is None:
                job = self.job
                if job.output is None:
                    made = self.desk.new_output()
                    if self._output is None:  # else a finaliser has printed meanwhile, and made another
                        job.output = made
                elif job.asking:
                    job.output.reopen()  # a process has ended it
                readers, reading = (ProgressReader(), ProgressReader()), threading.Lock()
                if self._output is None:
                    self._readers, self._reading = readers, reading
                    self._output = job.output
            return self._output

    def _read(self, stream: int, data: bytes) -> float | None:
        """The progress in it. Where two threads print at once one of them goes unread, but not unkept."""
        readers, reading = self._readers, self._reading
        if readers is None or not reading.acquire(blocking=False):
            return None
        try:
            return readers[stream].feed(data)
        finally:
            reading.release()

    def close(self) -> None:
        """It is over: what is written from now on is dropped."""
        if self.state is OPEN:
            self.state = CLOSED  # the usual case, once for each job and under the lock
        else:
            super().close()
        # The frames of an error keep this object, also when the job is tried again: not its output.
        self._output = None

    # What `_waits.py` and `_engine.py` want of whoever waits or executes

    def step_aside(self, latch: Latch, batch: BatchRecord) -> bool:
        """One of its threads waits for a batch. Returns whether it has to step back afterwards."""
        return self.desk.step_aside(self, latch, batch)

    def step_back(self, latch: Latch, bell: Latch) -> bool:
        """It waited. Returns whether it may go on at once; else `bell` says when."""
        return self.desk.step_back(self, latch, bell)

    def check(self) -> None:
        """Ends a thread of its own that waited while it was stopped; the callable's own has the exception.

        Raises:
            JobCancelled: In that case.
        """
        stopped = self.over or self.job.stop is not None
        if stopped and threading.get_ident() != self.ident:
            raise JobCancelled("the job that waited here was stopped")

    def adopt(self, batch: BatchRecord, engine: Any) -> None:
        """It executes a batch, which is its own from now on.

        Raises:
            JobCancelled: If it is abandoned.
        """
        self.desk.adopt(self, batch, engine)


def run_python(attempt: Attempt) -> Any:
    """Runs the callable. Returns what it returned, or the Outcome of a failure."""
    job = attempt.job
    return job.batch.context.copy().run(_call, job.command.function, attempt)  # type: ignore[union-attr]  # its kind


def _call(function: Any, attempt: Attempt) -> Any:
    running.set(attempt)
    try:
        value = function()
        kind = type(value)
        if kind in _PLAIN:
            return value
        if kind is CoroutineType or awaitable(value):
            return _run_in_loop(value, attempt)
        refused = unrun(value)
    except BaseException as raised:  # noqa: BLE001 - all of it is the job's outcome
        return _failed(attempt, raised)
    return value if refused is None else _failed(attempt, InvalidCommandError(refused))


def _run_in_loop(value: Awaitable[Any], attempt: Attempt) -> Any:
    async def supervise() -> Any:
        loop = asyncio.get_running_loop()
        task = asyncio.ensure_future(value)

        def cancel() -> None:
            try:
                loop.call_soon_threadsafe(task.cancel)
            except RuntimeError:
                return  # the loop is closed: the coroutine is over

        attempt.bell = cancel
        if attempt.job.stop is not None:
            task.cancel()
        return await task

    try:
        return asyncio.run(supervise())
    finally:
        # Here, and not under the lock: with the task goes what its user gave it.
        attempt.bell = None


def _failed(attempt: Attempt, raised: BaseException) -> Outcome:
    """The outcome of what was raised, put into words in the attempt's own context."""
    if attempt.job.stop is not None:
        return Outcome()  # what stopped it says what it is
    if issubclass(type(raised), Exception):
        error = with_trace(raised, _users_part(trace_of(raised)))  # type: ignore[arg-type]  # mypy does not follow it
    else:
        error = JobCrashed(f"the callable raised {brief(raised)}")
        error.__cause__ = with_trace(raised, _users_part(trace_of(raised)))  # type: ignore[arg-type]  # the same
    outcome = Outcome(None, error)
    outcome.told = brief(error)
    return outcome


def ask_policy(attempt: Attempt) -> tuple[Decision | None, str | None]:
    """Asks the callable of a policy what comes after a failure.

    Returns:
        What it said, and what the job's record should say if that cannot be taken: then the batch goes on.
    """
    return attempt.job.batch.context.copy().run(_ask, attempt)


def _ask(attempt: Attempt) -> tuple[Decision | None, str | None]:
    running.set(attempt)
    job = attempt.job
    verdict = job.verdict
    policy = job.batch.options.policy
    assert verdict is not None and callable(policy.on_error)  # noqa: S101, PT018 - for the type checker
    problem: BaseException | None = None
    try:
        answer = policy.on_error(verdict.error, job.attempt, attempt.desk.public(job))
        for word in ANSWERS:
            # By its type: an answer's own methods are not asked.
            if issubclass(type(answer), str) and exact(answer) == word:
                return policy.after(job.attempt, word), None
        said = f"expected one of {', '.join(STEPS)} or retry, got {short_repr(answer)}"
    except Stop:
        raise
    except BaseException as raised:  # noqa: BLE001 - user code, whatever it raises
        problem = raised
        try:
            said = "raised " + "".join(traceback.format_exception_only(raised)).strip()
        except Exception:  # noqa: BLE001 - and whatever its words raise
            said = f"raised {brief(raised)}"
    try:
        _log.error("policy.on_error: %s; the batch goes on", said, exc_info=problem)
    except Exception:  # noqa: BLE001 - a handler of the user's, or a traceback that cannot be shown
        return None, f"policy.on_error: {said}; the batch goes on"
    return None, f"policy.on_error: {said}; the batch goes on"


def _users_part(trace: TracebackType | None) -> TracebackType | None:
    """The traceback from the first frame that is neither ours nor asyncio's."""
    at = trace
    while at is not None and at.tb_frame.f_code.co_filename.startswith((_OURS, _ASYNCIO)):
        at = at.tb_next
    return at or trace
