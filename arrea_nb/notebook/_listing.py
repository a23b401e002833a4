"""What `%arrea` and `%%arrea --dry-run` print: batches, what their jobs printed, the numbered commands."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from arrea_nb._batch import record_of
from arrea_nb.notebook._words import in_states, one_line, plain, state_name

if TYPE_CHECKING:
    from arrea_nb._batch import Batch

_LOG_LINES = 1000
_COLOUR = re.compile(r"(\x1b\[[0-9;:]{0,64}m)")


def table(batches: Sequence[Batch]) -> str:
    """A line for each batch, with a heading."""
    if not batches:
        return "no batches yet; %%arrea or arrea_nb.execute starts one\n"
    rows = [("id", "name", "state", "jobs", "age")]
    for one in batches:
        jobs = ", ".join(in_states(one.counts)) or "no jobs"
        rows.append((one.id[:8], one_line(one.name), state_name(one.state), jobs, _age(one)))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    padded = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)
    return "".join(f"{row.rstrip()}\n" for row in padded)


def _age(batch: Batch) -> str:
    seconds = time.monotonic() - record_of(batch).clock  # the time of day may have been set
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= size:
            return f"{seconds // size:.0f} {unit}"
    return f"{seconds:.0f} s"


def logged(batch: Batch) -> str:
    """What each of its jobs printed, indented below its name; of a long output the end."""
    parts = []
    for job in batch.jobs:
        lines = job.output.splitlines()
        name = plain(job.name).replace("\n", "\n    ")
        parts.append(f"[{job.index}] {name}: {state_name(job.state)}\n")
        if len(lines) > _LOG_LINES:
            parts.append(
                f"    ... {len(lines) - _LOG_LINES} lines before these: batch[{job.index}].output has all\n"
            )
        parts += [f"    {_inert(text)}\n" for text in lines[-_LOG_LINES:]]
    return "".join(parts) or "no jobs\n"


def _inert(line: str) -> str:
    """A line with its colours, but with nothing else that a terminal would obey."""
    text, *rest = _COLOUR.split(line)
    coloured = [colour + plain(more) for colour, more in zip(rest[::2], rest[1::2], strict=True)]
    return "".join([plain(text), *coloured, "\x1b[0m" if coloured else ""])


def numbered(commands: Sequence[Any]) -> str:
    """The commands that would run: shell lines, or statements."""
    shown = []
    for number, command in enumerate(commands):
        text = command if isinstance(command, str) else command.__qualname__
        mark = f"[{number}] "
        shown.append(mark + text.replace("\n", "\n" + " " * len(mark)) + "\n")
    return "".join(shown) or "no commands\n"
