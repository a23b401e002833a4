"""Run many shell commands and Python callables at once from a notebook, live, with a record that stays.

    %load_ext arrea_nb

    %%arrea -w 4
    sha256sum big-1.iso
    pytest -q tests/

The functions are methods of the kernel's Leader, `Leader.instance()`, which is made at the first call.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from arrea_nb._progress import progress, track

if TYPE_CHECKING:
    from IPython.core.interactiveshell import InteractiveShell

    from arrea_nb._batch import Batch as Batch
    from arrea_nb._broadcast import Subscription as Subscription
    from arrea_nb._job import Job as Job
    from arrea_nb._leader import Leader as Leader
    from arrea_nb._policy import Policy as Policy
    from arrea_nb._records import ShellResult as ShellResult
    from arrea_nb._state import BatchSnapshot as BatchSnapshot
    from arrea_nb._state import JobSnapshot as JobSnapshot
    from arrea_nb._state import LeaderState as LeaderState
    from arrea_nb.events import JobState as JobState

__version__ = "0.1.0"

_HOMES = {
    "Batch": "arrea_nb._batch",
    "BatchSnapshot": "arrea_nb._state",
    "Job": "arrea_nb._job",
    "JobSnapshot": "arrea_nb._state",
    "JobState": "arrea_nb.events",
    "Leader": "arrea_nb._leader",
    "LeaderState": "arrea_nb._state",
    "Policy": "arrea_nb._policy",
    "ShellResult": "arrea_nb._records",
    "Subscription": "arrea_nb._broadcast",
}
_VERBS = ("execute", "get_state", "map", "notify_event", "run", "subscribe", "unsubscribe")

__all__ = [  # noqa: PLE0604 - the names that __getattr__ finds
    *_HOMES,
    *_VERBS,
    "load_ipython_extension",
    "progress",
    "track",
    "unload_ipython_extension",
]


def __getattr__(name: str) -> Any:
    from importlib import import_module

    if name in _VERBS:
        globals()[name] = verb = import_module("arrea_nb._leader").verb(name)
        return verb
    if name in _HOMES:
        value = getattr(import_module(_HOMES[name]), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'arrea_nb' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES, *_VERBS])


def load_ipython_extension(ip: InteractiveShell) -> None:
    """What `%load_ext arrea_nb` calls."""
    from arrea_nb.notebook._magic import load

    load(ip)


def unload_ipython_extension(ip: InteractiveShell) -> None:
    """What `%unload_ext arrea_nb` calls: cancels running batches and restores what was patched."""
    from arrea_nb.notebook._magic import unload

    unload(ip)
