"""Mailboxes: who hears what, in which order, and what happens to those who do not listen.

Guarantees: `publish` only enqueues, so all mailboxes see one order, that of the calls; it is called under
the Leader's lock. A subscriber's callback runs on a thread of its own, in a copy of the context in which it
subscribed; one that raises is logged and removed. Past `mailbox_size` events or 8 MiB of text, arriving
output, progress and custom events are dropped and counted; lifecycle events never are. A `Watch` hears only
which jobs of its batch changed, and cannot grow.
"""

from __future__ import annotations

import contextvars
import logging
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from queue import Empty, SimpleQueue
from types import MethodType
from typing import Any, Self

from arrea_nb._records import BatchRecord
from arrea_nb._section import take_from
from arrea_nb.events import BatchEnded, CustomEvent, Event, JobOutput, JobProgress

_log = logging.getLogger("arrea_nb")

MAILBOX_BYTES = 8 * 1024 * 1024
_DROPPABLE = (JobOutput, JobProgress, CustomEvent)
Callback = Callable[[Event], object]


class Subscription:
    """A mailbox of events, or a callback that is called with each.

    Without a callback: iterate it, or `get()`; either ends when the subscription is closed, and when it is
    for one batch after that batch's BatchEnded.

    Attributes:
        dropped: How many JobOutput, JobProgress and CustomEvents did not fit.

    Example:
        >>> with subscribe() as events:              # doctest: +SKIP
        ...     print(events.get(timeout=5.0).type)
    """

    def __init__(self, leave: Callable[[Subscription], None], batch_id: str | None, size: int) -> None:
        self.dropped = 0
        self.batch_id = batch_id
        self.callback: Callback | None = None
        self._leave = leave
        self._size = size
        # SimpleQueue.put never blocks, and a finaliser may interrupt it.
        self._queue: SimpleQueue[Event | None] = SimpleQueue()
        self._text_in = 0  # written by who publishes, under the Leader's lock
        self._text_out = 0  # written by who reads
        self._closed = False
        self._thread: threading.Thread | None = None  # that calls the callback

    def __repr__(self) -> str:
        whom = self.callback if self.callback is not None else "mailbox"
        return f"<Subscription {whom!r} batch={self.batch_id} dropped={self.dropped}>"

    def get(self, timeout: float | None = None) -> Event:
        """The next event.

        Args:
            timeout: The longest wait, in seconds. None: no limit.

        Raises:
            TimeoutError: If none came by then.
            StopIteration: If the subscription is closed, or its batch has ended and all was read.
        """
        try:
            event = take_from(self._queue, timeout)
        except Empty:
            raise TimeoutError(f"no event came within {timeout:g} s") from None
        if event is None:
            self._closed = True
            self._queue.put(None)  # for whoever else waits here
            raise StopIteration
        if isinstance(event, JobOutput):
            self._text_out += len(event.text)
        return event

    def close(self) -> None:
        """Ends the subscription; more than once is fine."""
        self._leave(self)

    def __iter__(self) -> Iterator[Event]:
        return self

    def __next__(self) -> Event:
        return self.get()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def deliver(self, event: Event) -> None:
        """Enqueues; called under the Leader's lock."""
        if isinstance(event, _DROPPABLE):
            text = len(event.text) if isinstance(event, JobOutput) else 0
            if self._queue.qsize() >= self._size or self._text_in - self._text_out + text > MAILBOX_BYTES:
                self.dropped += 1
                return
            self._text_in += text
        self._queue.put(event)

    def end(self) -> None:
        """No more events will come; what is in the mailbox can still be read."""
        self._queue.put(None)

    def start(self, callback: Callback) -> None:
        """Calls `callback` with each event, on a thread of its own."""
        self.callback = callback
        context = contextvars.copy_context()
        self._thread = threading.Thread(
            target=context.run, args=(self._call, callback), daemon=True, name="arrea-subscriber"
        )
        self._thread.start()

    @property
    def calling(self) -> bool:
        """Whether there is a callback that may still be called."""
        return self._thread is not None and not self._closed and self._thread.is_alive()

    def finish(self, timeout: float) -> None:
        """Waits until the callback has taken everything, after `end`; what it then has not is dropped."""
        thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join(timeout)
            self._closed = thread.is_alive()

    def _call(self, callback: Callback) -> None:
        for event in self:
            if self._closed:
                return
            try:
                callback(event)
            except BaseException:  # noqa: BLE001 - a faulty observer must not take anything down
                _log.exception("subscriber %r raised on %s and was removed", callback, event.type)
                self.close()
                return

    def discard(self) -> None:
        """What is in a callback's mailbox is not delivered any more."""
        self._closed = True
        self.end()


class Watch:
    """Which jobs of one batch changed since the last look.

    Args:
        leave: Ends it.
        batch: The batch.
        lock: The Leader's lock, under which marks are made.
        bell: Rung when there is something to look at.
    """

    def __init__(
        self,
        leave: Callable[[Watch], None],
        batch: BatchRecord,
        lock: AbstractContextManager[Any],
        bell: SimpleQueue[None],
    ) -> None:
        self.batch = batch
        self._leave = leave
        self._lock = lock
        self._changed: set[int] = set()
        self._bell = bell
        self._rung = False  # a bell is in the queue already: it holds one at the most, nearly always

    def mark(self, index: int) -> None:
        """Notes a change; called under the Leader's lock."""
        self._changed.add(index)
        if not self._rung:
            self.ring()

    def ring(self) -> None:
        """Something other than a job changed: the batch ended, or a command arrived."""
        self._rung = True
        self._bell.put(None)

    def take(self) -> set[int]:
        """The jobs that changed since the last call."""
        fresh: set[int] = set()
        # Without the lock a mark could go into the set that was just handed out, and nobody would see it.
        with self._lock:
            self._rung = False
            changed, self._changed = self._changed, fresh
        return changed

    def close(self) -> None:
        """Stops watching."""
        self._leave(self)


def _same(one: object, other: object) -> bool:
    """Whether they are one callback. Not by `==`, which may be the user's: this is asked under the lock."""
    if type(one) is MethodType and type(other) is MethodType:  # a new object each time
        return one.__self__ is other.__self__ and one.__func__ is other.__func__
    return one is other


class Broadcast:
    """All mailboxes of a Leader. Its methods are called under the Leader's lock."""

    def __init__(self) -> None:
        self._all: list[Subscription] = []
        # Those that were ended by their batch's end, while their callbacks have more to hear.
        self._finishing: weakref.WeakSet[Subscription] = weakref.WeakSet()

    def __len__(self) -> int:
        return len(self._all)

    def __iter__(self) -> Iterator[Subscription]:
        return iter(tuple(self._all))

    def add(self, subscription: Subscription) -> None:
        """From now on it hears what is published."""
        self._all.append(subscription)

    def find(
        self, callback: Callback, batch_id: str | None = None, *, any_batch: bool = False
    ) -> Subscription | None:
        """The subscription of this callback, if there is one."""
        for one in self._all:
            if _same(one.callback, callback) and (any_batch or one.batch_id == batch_id):
                return one
        return None

    def remove(self, subscription: Subscription) -> None:
        """It hears no more; an unknown one is nothing to do."""
        if subscription in self._all:
            self._all.remove(subscription)
            if subscription.calling:
                self._finishing.add(subscription)

    def finishing(self) -> list[Subscription]:
        """The removed ones whose callbacks may still be called."""
        return [one for one in self._finishing if one.calling]

    def wants(self, batch_id: str) -> bool:
        """Whether somebody wants the events of this batch."""
        return any(one.batch_id is None or one.batch_id == batch_id for one in self._all)

    def publish(self, event: Event) -> None:
        """Enqueues the event for everybody who wants it."""
        batch_id: Any = event.batch_id
        for one in self._all:
            if one.batch_id is None or one.batch_id == batch_id:
                one.deliver(event)
        if isinstance(event, BatchEnded):
            for one in [one for one in self._all if one.batch_id == batch_id]:
                one.end()
                self.remove(one)
