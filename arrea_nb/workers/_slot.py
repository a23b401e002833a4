"""One attempt's slot: its states, the table of legal moves, and the exception that stops a callable.

    NEW ──▶ OPEN ──▶ PENDING ◀──▶ WITHHELD      PENDING: the exception was set, and has not come yet
             │          │                         WITHHELD: kept out of a section of ours
             │          ▼                         ARRIVED: it was raised in the callable
             │       ARRIVED ──▶ DROPPED          DROPPED: in a finaliser, where Python drops it
             ├──▶ ASKED                           ASKED: a bell was rung instead (a process, a coroutine)
             ▼
          CLOSED, or ABANDONED

Guarantees: `StopJob` is injected under the engine's lock, at most once an attempt (once more if it was
dropped), and only while the slot is open. Whoever closes the slot takes a pending exception back under the
same lock, so that it can never land in another job. An illegal move raises. No thread is known here: what
injects is handed in, so that all of it is tested without any.
"""

from __future__ import annotations

import threading
from enum import Enum, auto
from typing import Any, Protocol

from arrea_nb._records import BatchRecord, Latch
from arrea_nb._section import Stop


class SlotState(Enum):
    """Where an attempt is, as far as stopping it goes."""

    NEW = auto()
    """Handed out, and not entered."""
    OPEN = auto()
    """It runs, and may be stopped."""
    PENDING = auto()
    """The exception was set and has not arrived."""
    WITHHELD = auto()
    """It was taken back while the thread is in a section; it comes when that is over."""
    ARRIVED = auto()
    """It was raised in the callable."""
    DROPPED = auto()
    """It was raised in a finaliser, where Python drops it."""
    ASKED = auto()
    """A bell was rung: a process's or a coroutine's."""
    CLOSED = auto()
    """The attempt is over."""
    ABANDONED = auto()
    """It did not stop within its grace; its thread goes on without the job."""


NEW, OPEN, PENDING, WITHHELD = SlotState.NEW, SlotState.OPEN, SlotState.PENDING, SlotState.WITHHELD
ARRIVED, DROPPED, ASKED = SlotState.ARRIVED, SlotState.DROPPED, SlotState.ASKED
CLOSED, ABANDONED = SlotState.CLOSED, SlotState.ABANDONED

LEGAL = {
    NEW: frozenset({OPEN, CLOSED, ABANDONED}),
    OPEN: frozenset({PENDING, WITHHELD, ASKED, CLOSED, ABANDONED}),
    PENDING: frozenset({WITHHELD, ARRIVED, CLOSED, ABANDONED}),
    WITHHELD: frozenset({PENDING, CLOSED, ABANDONED}),
    ARRIVED: frozenset({DROPPED, CLOSED, ABANDONED}),
    DROPPED: frozenset({PENDING, WITHHELD, ASKED, CLOSED, ABANDONED}),
    ASKED: frozenset({ASKED, CLOSED, ABANDONED}),
    CLOSED: frozenset[SlotState](),
    ABANDONED: frozenset[SlotState](),
}


class Thread(Protocol):
    """The thread that an attempt runs in, as far as its slot knows it."""

    def inject(self, *, on: bool) -> None:
        """Sets the exception in that thread, or takes a pending one back."""


class Bell(Protocol):
    """How a runner wants to be told that its job shall stop, if not by the exception."""

    def __call__(self) -> object: ...


class Slot:
    """One attempt, as far as stopping it goes. Every method is called under the engine's lock but `arrive`.

    Attributes:
        state: Where it is.
        bell: Rung by a stop, instead of the exception.
        latches: What its threads wait on in waits of our own, and whether for a batch of its own: a stop
            wakes them.
        owned: The batches that it executed, each with its engine; they are cancelled when it is stopped.
        paused_at: The clock when the first of them began to wait for a batch of its own, which does not count
            towards its deadline. None: nobody does.
        paused: So many seconds of that are over.
    """

    state = NEW
    bell: Bell | None = None
    sheltered = 0
    latches: tuple[tuple[Latch, bool], ...] = ()
    owned: tuple[tuple[Any, BatchRecord], ...] = ()
    paused_at: float | None = None
    paused = 0.0

    def __init__(self, thread: Thread) -> None:
        self.thread = thread

    @property
    def over(self) -> bool:
        """Whether nothing that it still does counts."""
        return self.state is CLOSED or self.state is ABANDONED

    def stop(self) -> None:
        """Wakes whatever it is in, so that it ends. More than once is fine."""
        state = self.state
        if self.bell is not None:
            if state is OPEN or state is DROPPED:
                self._move(ASKED)
            self.bell()
        elif state is OPEN or state is DROPPED:
            if self.sheltered:
                self._move(WITHHELD)
            else:
                self._move(PENDING)  # before it is set: it could arrive at once
                self.thread.inject(on=True)
        for latch, _ in self.latches:
            latch.put(None)

    def close(self) -> None:
        """The attempt is over: nothing is injected any more, and what is pending is taken back."""
        if self.state is PENDING:
            self.thread.inject(on=False)
        if self.state is not ABANDONED:
            self._move(CLOSED)

    def abandon(self) -> None:
        """Its grace is over: nothing more is done to it, and nothing that it does counts."""
        if self.state is PENDING:
            self.thread.inject(on=False)
        self._move(ABANDONED)

    def take_back(self) -> None:
        """Keeps the exception out of a section; one that has arrived is out already."""
        if self.state is PENDING:
            self.thread.inject(on=False)
            self._move(WITHHELD)

    def give_again(self) -> None:
        """Lets it come, now that the section is over."""
        if self.state is WITHHELD and not self.sheltered:
            self._move(PENDING)
            self.thread.inject(on=True)

    def arrive(self) -> None:
        """The exception was made in the thread, which is when it is raised there."""
        if self.state is PENDING:
            self._move(ARRIVED)

    def drop(self) -> None:
        """It was raised in a finaliser, where Python drops it: the next `stop` sets it again."""
        if self.state is ARRIVED:
            self._move(DROPPED)

    def _move(self, state: SlotState) -> None:
        if state not in LEGAL[self.state]:
            raise AssertionError(f"illegal move of a slot: {self.state.name} to {state.name}")
        self.state = state


class _Here(threading.local):
    slot: Slot | None = None


here = _Here()
"""The slot of the attempt that this thread runs, if it runs one."""


class StopJob(Stop):
    """Raised in a callable at its deadline or when it is cancelled. Private: nobody should catch it."""

    def __init__(self) -> None:
        super().__init__()
        # It is made when it arrives. Until then it is pending, and can be taken back.
        if here.slot is not None:
            here.slot.arrive()
