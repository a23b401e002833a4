"""The static picture of a batch: `html` and `text`, what a saved notebook keeps.

Guarantees: pure functions of what a Batch shows, for any batch at any time, of bounded size and made in
bounded time. Nothing that a job prints or is named can do anything: it is made inert, and escaped. `text`
has no times, ids or pids; `html` has times as `<span title="duration" …>` and in `<div title="timeline" …>`
and nowhere else. There is no script, style or svg element, which front ends strip from notebooks that they
do not trust; without its inline styles, too, it is a readable table.
"""

from __future__ import annotations

import traceback
from collections import Counter
from collections.abc import Iterable, Sequence
from html import escape
from typing import NamedTuple

from arrea_nb._batch import Batch
from arrea_nb._job import Job
from arrea_nb._records import FAILED_STATES
from arrea_nb.errors import ArreaError
from arrea_nb.notebook import _timeline
from arrea_nb.notebook._words import (
    COLOURS,
    GREY,
    SHAPES,
    counted,
    headline,
    in_states,
    limits,
    named,
    one_line,
    plain,
    seconds,
    state_name,
    why,
)

MOST_JOBS = 100
"""So many jobs are listed, the others are counted: JupyterLab stands still while it lays out every row."""
MOST_FAILURES = 20
"""So many failures are told on top; all of them are in the list as long as it has room."""
_HTML_OUTPUT = 1 << 20  # characters of output in one summary, over all its jobs
_JOB_OUTPUT = 24_000  # and of one job
# So much output is read back from files for one summary, in bytes. Of a job that has more than its share
# the end is shown, which is in memory.
_READ_BACK = 4 << 20
_LINE = 500
_FAILURE_LINES = 10

_COLUMNS = ("state", "job", "duration", "attempts", "why")
_WIDE = ("job", "why")  # the others are as narrow as can be
# Each cell says so itself: Jupyter sets them to the right, one by one.
_CELL = "text-align: left; vertical-align: top; padding: 2px 12px 2px 0px"


class Excerpt(NamedTuple):
    """The beginning and the end of a text, and how many lines are left out between them."""

    head: list[str]
    omitted: int
    tail: list[str]
    total: int

    def lines(self) -> Iterable[str]:
        """What to show, the omission as a line of its own."""
        yield from self.head
        if self.omitted:
            yield f"… {counted(self.omitted, 'line')} left out …"
        yield from self.tail


class _Printed(NamedTuple):
    """What a job printed; of more than can be shown, the end, with its size, what is left out, and a head."""

    stdout: str
    stderr: str
    size: int = 0
    omitted: int = 0
    head: str = ""


def started(batch: Batch) -> str:
    """What stays true below a live view, whatever happens later."""
    return f"{counted(len(batch), 'job')} started; wait() shows the summary"


def text(batch: Batch) -> str:
    """The summary as plain text."""
    lines = [headline(batch)]
    failures = _failures(batch)
    for job in failures[:MOST_FAILURES]:
        lines.append(f"{named(job)}: {why(job)}")
        label, last = _last_words(job, _share(batch))
        if last:
            lines.append(f"    {label}:")
            lines += [f"    | {line}" for line in last]
    if len(failures) > MOST_FAILURES:
        lines.append(f"… and {len(failures) - MOST_FAILURES:,} more that failed")
    listed, rest = _listed(batch)
    if len(batch) > 1 or not failures:
        wide = max((len(state_name(job.state)) for job in listed), default=0)
        for job in listed:
            note = "" if not job.note else f" ({one_line(job.note)})"
            tries = "" if job.attempt < 2 else f" (attempt {job.attempt})"
            lines.append(f"{SHAPES[job.state]} {state_name(job.state):{wide}}  {named(job)}{tries}{note}")
    if rest:
        lines.append(_and_more(rest))
    return "\n".join(lines)


def html(batch: Batch) -> str:
    """The summary as HTML."""
    listed, rest = _listed(batch)
    room = min(_JOB_OUTPUT, _HTML_OUTPUT // max(1, len(listed)))
    read_back = _share(batch)
    failures = _failures(batch)
    head = [f"<b>{escape(headline(batch))}</b>", _duration(batch.duration)]
    head.append(f'<span style="color: {GREY}">{limits(batch)}</span>')
    parts = [
        # $HOME and $PATH are no formula: MathJax 2 leaves the first class alone, MathJax 3 the second.
        '<div class="tex2jax_ignore mathjax_ignore" style="line-height: 1.5">',
        f"<div>{' '.join(filter(None, head))}</div>",
        *(_failure(job, read_back, first=not at) for at, job in enumerate(failures[:MOST_FAILURES])),
    ]
    if len(failures) > MOST_FAILURES:
        parts.append(f"<div>… and {len(failures) - MOST_FAILURES:,} more that failed</div>")
    parts.append(_when(batch))
    if listed:
        parts.append('<table style="table-layout: auto; width: 100%; margin: 4px 0px">')
        styles = {name: "" if name in _WIDE else "; width: 1%" for name in _COLUMNS}
        names = (f'<th style="{_CELL}{style}">{name}</th>' for name, style in styles.items())
        parts.append(f"<thead><tr>{''.join(names)}</tr></thead><tbody>")
        parts += [_row(job, room, read_back) for job in listed]
        parts.append("</tbody></table>")
    if rest:
        parts.append(f"<div>{_and_more(rest)}</div>")
    parts.append("</div>")
    return "\n".join(filter(None, parts))


def _when(batch: Batch) -> str:
    """The timeline, and the same in words; nothing where there is but one attempt."""
    found = _timeline.runs(batch)
    if len(found) < 2:
        return ""
    told = escape(_timeline.told(batch, found))
    return f'<div title="timeline" style="color: {GREY}">{_timeline.image(batch, found)}{told}</div>'


def _failure(job: Job, read_back: int, *, first: bool) -> str:
    """What failed, why, and its last words; the first one with its whole command."""
    colour = COLOURS[job.state]
    command = plain(job.name[:4000]).strip("\n") if first else one_line(job.name)
    parts = [
        f'<div style="border-left: 3px solid {colour}; padding-left: 8px; margin: 4px 0px">',
        f'<div><span style="color: {colour}">{SHAPES[job.state]} <b>[{job.index}]</b></span> ',
    ]
    if "\n" in command:
        parts.append(f"<b>{escape(why(job))}</b></div>{_pre(command.splitlines())}")
    else:
        parts.append(f"<code><bdi>{escape(command)}</bdi></code>: <b>{escape(why(job))}</b></div>")
    label, last = _last_words(job, read_back)
    if last:
        parts.append(f'<div style="color: {GREY}">{label}:</div>{_pre(last)}')
    frames = _traceback(job)
    if frames:
        parts.append(f'<div style="color: {GREY}">where:</div>{_pre(frames)}')
    parts.append("</div>")
    return "".join(parts)


def _row(job: Job, room: int, read_back: int) -> str:
    """A row of the table; its output unfolds below its name."""
    words, blocks = _output(job, room, read_back)
    name = f"[{job.index}] <code><bdi>{escape(one_line(job.name))}</bdi></code>"
    if words:
        name += f' <span style="color: {GREY}">{words}</span>'
    if blocks:
        name = f'<details><summary style="cursor: pointer">{name}</summary>{blocks}</details>'
    else:
        # As far to the right as the triangle of the others puts them.
        name = f'<div style="padding-left: 1.1em">{name}</div>'
    reasons = [reason for reason in (why(job), job.note) if reason and reason != state_name(job.state)]
    shape = f'<span style="color: {COLOURS[job.state]}">{SHAPES[job.state]}</span>'
    cells = (
        f'<td style="{_CELL}">{shape}&nbsp;{state_name(job.state).replace(" ", "&nbsp;")}</td>',
        f'<td style="{_CELL}">{name}</td>',
        f'<td style="{_CELL}">{_duration(job.duration)}</td>',
        f'<td style="{_CELL}">{job.attempt or ""}</td>',
        f'<td style="{_CELL}"><bdi>{escape(one_line(" · ".join(reasons), 160))}</bdi></td>',
    )
    return f"<tr>{''.join(cells)}</tr>"


def _output(job: Job, room: int, read_back: int) -> tuple[str, str]:
    """How much it printed, and what, as far as there is room."""
    output = _streams(job, read_back)
    words = []
    blocks = []
    if output.omitted:
        words.append(f"{output.size:,} bytes of output")
        head = [_shown(line) for line in output.head.removesuffix("\n").split("\n")]
        blocks.append(_pre([*head, f"… {output.omitted:,} bytes left out …"]))
    for stream, printed in (("stdout", output.stdout), ("stderr", output.stderr)):
        found = excerpt(printed, room, head=0 if output.omitted else 20)
        if found.total:
            if not output.omitted:
                words.append(f"{counted(found.total, 'line')} of {stream}")
            label = f'<div style="color: {GREY}">{stream}</div>' if stream == "stderr" else ""
            blocks.append(label + _pre(found.lines()))
    return " · ".join(words), "".join(blocks)


def _duration(duration: float | None) -> str:
    if duration is None:
        return ""
    return f'<span title="duration" style="white-space: nowrap">{seconds(duration)}</span>'


def _pre(lines: Iterable[str]) -> str:
    inside = escape("\n".join(lines))
    style = (
        "margin: 2px 0px 2px 16px; padding: 0px; border: none; background: transparent; "
        "font-family: monospace; white-space: pre-wrap; overflow-wrap: anywhere"
    )
    return f'<pre style="{style}"><bdi>{inside}</bdi></pre>'


def excerpt(printed: str, room: int, *, head: int = 20, tail: int = 40) -> Excerpt:
    """The first and the last lines of an output, inert, in at most about `room` characters."""
    printed = printed.removesuffix("\n")
    if not printed:
        return Excerpt([], 0, [], 0)
    lines = printed.split("\n")
    count = len(lines)
    if count <= head + tail:
        shown = _fitting((_shown(line) for line in lines), room // 3, head)
        rest = _fitting((_shown(line) for line in reversed(lines[len(shown) :])), room - room // 3, count)
        return Excerpt(shown, count - len(shown) - len(rest), rest[::-1], count)
    first = _fitting((_shown(line) for line in lines[:head]), room // 3, head)
    last = _fitting((_shown(line) for line in reversed(lines[-tail:])), room - room // 3, tail)
    return Excerpt(first, count - len(first) - len(last), last[::-1], count)


def _fitting(lines: Iterable[str], room: int, most: int) -> list[str]:
    """So many of the lines as there is room for, one at least."""
    taken: list[str] = []
    for line in lines:
        room -= len(line) + 1
        if taken and (room < 0 or len(taken) >= most):
            break
        taken.append(line)
    return taken


def _shown(line: str) -> str:
    """A line as a terminal would leave it: what was redrawn is gone."""
    line = line.rstrip("\r")
    if "\r" in line:
        line = line[line.rindex("\r") + 1 :]
    cut = plain(line[: 8 * _LINE])
    return cut if len(cut) <= _LINE else f"{cut[:_LINE]}… ({len(line):,} characters)"


def _streams(job: Job, read_back: int) -> _Printed:
    """What it printed. Of more than may be read back, its end, which is at hand, and its beginning."""
    segments, end, skipped = job.output_since(0, 1 << 30)
    if skipped and end <= read_back:
        return _Printed(job.stdout, job.stderr)
    stdout = "".join(part for stream, part in segments if stream == "stdout")
    stderr = "".join(part for stream, part in segments if stream == "stderr")
    if not skipped:
        return _Printed(stdout, stderr)
    head = _beginning(job)
    return _Printed(stdout, stderr, end, skipped - len(head), head.decode("utf-8", "replace"))


def _beginning(job: Job) -> bytes:
    """The first lines of output that was spooled."""
    if job.output_path is None:
        return b""
    try:
        with open(job.output_path, "rb") as file:
            lines = file.read(4096).splitlines(keepends=True)
    except OSError:
        return b""
    return b"".join(lines[: min(20, max(1, len(lines) - 1))])


def _last_words(job: Job, read_back: int) -> tuple[str, list[str]]:
    """The last lines of stderr; of stdout when there are none."""
    output = _streams(job, read_back)
    for label, printed in (("last lines of stderr", output.stderr), ("last lines of stdout", output.stdout)):
        if printed.strip():
            found = excerpt(printed.rstrip(), 4000, head=0, tail=_FAILURE_LINES)
            lines = [*found.head, *found.tail][-_FAILURE_LINES:]
            return label, lines
    return "", []


def _traceback(job: Job) -> list[str]:
    """Where a callable raised. Files of cells are named for what they are: their paths have a pid in them."""
    error = job.error
    if job.kind != "python" or error is None or isinstance(error, ArreaError):
        return []
    lines = []
    for frame in traceback.extract_tb(error.__traceback__)[-5:]:
        cell = "ipykernel_" in frame.filename or frame.filename.startswith("<ipython-input")
        where = "cell" if cell else frame.filename.rpartition("/")[2]
        lines.append(f"{where}, line {frame.lineno}, in {frame.name}")
        if frame.line:
            lines.append(f"    {frame.line}")
    return [plain(line[:_LINE]) for line in lines]


def _failures(batch: Batch) -> Sequence[Job]:
    # In the order of the jobs: which of two failed earlier is an accident that changes from run to run.
    return [job for job in batch.jobs if job.state in FAILED_STATES]


def _listed(batch: Batch) -> tuple[Sequence[Job], Sequence[Job]]:
    """The jobs to list, and those there is no room for. When there are any, what failed is listed first."""
    jobs = batch.jobs
    if len(jobs) <= MOST_JOBS:
        return jobs, ()
    failed = _failures(batch)
    ranked = [*failed, *(job for job in jobs if job.state not in FAILED_STATES)]
    return ranked[:MOST_JOBS], ranked[MOST_JOBS:]


def _and_more(rest: Sequence[Job]) -> str:
    return (
        f"… and {counted(len(rest), 'more job')}: {', '.join(in_states(Counter(job.state for job in rest)))}"
    )


def _share(batch: Batch) -> int:
    """How much of one job's output may be read back."""
    return _READ_BACK // max(1, min(len(batch), MOST_JOBS))
