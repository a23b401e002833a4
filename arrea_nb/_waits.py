"""Waiting, written once: register a latch, step aside, take, step back, put things back.

    with engine.waiting(target) as wait:      # a latch is registered; `wait.over`: it had ended before
        wait.take(timeout)                    # steps aside, takes from the latch, steps back

It serves `wait`, `result`, `as_completed`, `await`, `run` and the magic.

Guarantees: no latch is left behind, however the wait ends. A callable of any engine that waits gives its
place up meanwhile (C2) and is woken when it is stopped; a coroutine's loop goes on meanwhile. Nobody waits
while the own thread holds the lock. An interrupt ends the waiting, not the batch.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from contextlib import contextmanager
from queue import Empty, SimpleQueue
from typing import Any, Protocol

from arrea_nb._progress import Reporter, running
from arrea_nb._records import BatchRecord, JobRecord, Latch
from arrea_nb._section import HoldInterrupts, take_from

# asyncio hears of an interrupt only between two steps of its loop; measured in a kernel, one long await
# held it back for seconds.
_STEP = 0.2

Target = BatchRecord | JobRecord


class Register(Protocol):
    """Where latches are known: the engine of what is waited for."""

    def register(self, target: Target, latch: Latch, *, each_job: bool) -> bool: ...

    def unregister(self, target: Target, latch: Latch) -> None: ...


class Wait:
    """One wait for the end of a batch, of a job, or of each job of a batch.

    Attributes:
        over: What is waited for had ended before.
    """

    def __init__(self, register: Register, target: Target, *, each_job: bool = False) -> None:
        self.over = False
        self.latch: SimpleQueue[Any] = SimpleQueue()
        self._register = register
        self._target = target
        self._each_job = each_job

    def __enter__(self) -> Wait:
        self.over = self._register.register(self._target, self.latch, each_job=self._each_job)
        return self

    def __exit__(self, *error: object) -> None:
        self._register.unregister(self._target, self.latch)

    def take(self, timeout: float | None) -> Any:
        """What the latch is given: the index of a job that ended, or None.

        Raises:
            Empty: If nothing came within so many seconds.
            JobCancelled: In a thread of a callable that was stopped meanwhile.
        """
        attempt = running.get()
        if attempt is None:
            return take_from(self.latch, timeout)
        with _aside(attempt, self.latch, self._batch):
            return take_from(self.latch, timeout)

    async def take_in_loop(self) -> None:
        """The same for the end of all, in a coroutine: its loop goes on meanwhile."""
        attempt = running.get()
        latch = _LoopLatch()
        self._register.register(self._target, latch, each_job=False)
        left = attempt is not None and attempt.step_aside(latch, self._batch)
        try:
            if not self._ended:
                await latch.rung()
        finally:
            self._register.unregister(self._target, latch)
            if left and attempt is not None:
                bell = _LoopLatch()
                if not attempt.step_back(latch, bell):
                    await bell.rung()
                    attempt.step_back(latch, bell)

    @property
    def _batch(self) -> BatchRecord:
        return self._target.batch if isinstance(self._target, JobRecord) else self._target

    @property
    def _ended(self) -> bool:
        return self._target.end_clock is not None


class _LoopLatch:
    """Sets an asyncio event from whichever thread rings."""

    def __init__(self) -> None:
        self._event = asyncio.Event()
        self._loop = asyncio.get_running_loop()

    def put(self, item: object, /) -> None:  # noqa: ARG002 - any item means that it is over
        with contextlib.suppress(RuntimeError):  # the loop was closed: nobody waits any more
            self._loop.call_soon_threadsafe(self._event.set)

    async def rung(self) -> None:
        while not self._event.is_set():
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._event.wait(), _STEP)


@contextmanager
def _aside(attempt: Reporter, latch: Latch, batch: BatchRecord) -> Iterator[None]:
    left = attempt.step_aside(latch, batch)
    try:
        yield
        attempt.check()
    finally:
        if left:
            bell: SimpleQueue[None] = SimpleQueue()
            if not attempt.step_back(latch, bell):
                bell.get()  # also rung by a stop
                attempt.step_back(latch, bell)


def await_end(register: Register, target: Target, timeout: float | None) -> bool:
    """Waits for an end. Returns whether it has come."""
    with Wait(register, target) as wait:
        if not wait.over:
            with contextlib.suppress(Empty):
                wait.take(timeout)
    return target.end_clock is not None


def see_out(register: Register, batch: BatchRecord) -> None:
    """Waits for the end of a batch, inside `HoldInterrupts`; an interrupt ends it too, and is still held."""
    with Wait(register, batch) as wait, HoldInterrupts.ringing(wait.latch):
        if not wait.over and not HoldInterrupts.came():
            wait.take(None)
