"""What happens at a fork and at exit, to every engine of the process: one list each.

Guarantees: an engine that is dropped is dropped from here too. At exit jobs that run are cancelled, and
stderr says so and names `wait()`. In a forked child nothing touches the parent's guard, spool or processes.
"""

from __future__ import annotations

import atexit
import os
import sys
import weakref
from collections.abc import Callable

from arrea_nb._engine import INTERRUPT_GRACE, Engine, Stage
from arrea_nb._progress import running
from arrea_nb._section import HoldInterrupts, forget_inside
from arrea_nb.workers import _capture
from arrea_nb.workers._threads import hear_no_more

_engines: weakref.WeakSet[Engine] = weakref.WeakSet()


def began(engine: Engine) -> None:
    """There is one more."""
    _engines.add(engine)


def ended() -> None:
    """One was closed: with the last of them what was patched is restored."""
    if all(one.stage is Stage.CLOSED for one in _engines):
        _capture.uninstall()
        hear_no_more()


def _close_all() -> None:
    for engine in list(_engines):
        if engine.stage is Stage.CLOSED or engine.process != os.getpid():
            continue
        live = sum(one.open_jobs for one in engine.ledger.live.values())
        if live:
            print(
                f"arrea_nb: {live} jobs had not ended at exit and were cancelled; wait() waits for them",
                file=sys.__stderr__,
            )
        engine.close(grace=INTERRUPT_GRACE)
    ended()


def _forget_engines() -> None:
    for engine in list(_engines):
        engine.forget()


def _forget_attempt() -> None:
    # A callable that forked is nobody's job here: what it prints and waits for is the child's own.
    running.set(None)


AT_EXIT: list[Callable[[], None]] = [_close_all]
"""Called in this order when the interpreter exits."""
IN_FORKED_CHILD: list[Callable[[], None]] = [
    forget_inside,
    _forget_engines,
    HoldInterrupts.forget,
    _forget_attempt,
]
"""Called in this order in a forked child; the Leader adds that it has no instance."""


def _exit() -> None:
    for each in AT_EXIT:
        each()


def _after_fork_in_child() -> None:
    for each in IN_FORKED_CHILD:
        each()


atexit.register(_exit)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
