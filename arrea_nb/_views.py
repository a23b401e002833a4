"""What shows batches: a registry that a Batch asks itself, so that nobody who runs jobs knows a view.

Guarantees: where nothing is registered a batch is shown as its repr, and a widget is refused with what to do.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass
class _Registered:
    show: Callable[[Any], Any] | None = None
    widget: Callable[[Any], Any] | None = None
    waited: Callable[[Any], None] | None = None


_registered = _Registered()


def show_with(
    show: Callable[[Any], Any] | None,
    widget: Callable[[Any], Any] | None = None,
    waited: Callable[[Any], None] | None = None,
) -> None:
    """Registers what shows the batches of this process; None: nothing does.

    Args:
        show: Shows a batch in the cell that runs, and returns its view.
        widget: Makes the live view of a batch as a widget.
        waited: Is told of a batch that somebody waited for and that has ended.
    """
    _registered.show, _registered.widget, _registered.waited = show, widget, waited


def show(batch: Any) -> Any:
    """Shows a batch, if something that can is registered. Returns its view, or None."""
    if _registered.show is None:
        print(repr(batch))  # noqa: T201 - what a cell's last value does without the extension
        return None
    return _registered.show(batch)


def widget(batch: Any) -> Any:
    """The live view of a batch as a widget.

    Raises:
        RuntimeError: If nothing that could show it is registered.
    """
    if _registered.widget is None:
        raise RuntimeError("batch.widget needs the notebook extension; run: %load_ext arrea_nb")
    return _registered.widget(batch)


def waited(batch: Any) -> None:
    """Somebody waited for this batch and it has ended."""
    if _registered.waited is not None:
        _registered.waited(batch)
