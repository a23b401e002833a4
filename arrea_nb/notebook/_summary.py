r"""The static picture of a batch: `html` and `text`, what a saved notebook keeps.

Guarantees: pure functions of what a Batch shows, for any batch at any time, of bounded size. Nothing that a
job prints or is named can do anything: terminal sequences are taken out, control characters and marks that
turn the direction of text are written out (`\u202e`), everything is escaped. `text` has no times, ids or
pids; `html` has times as `<span title="duration" …>` and nowhere else. The styles are inline, and
there is no script, style or svg element: front ends strip those from notebooks that they do not trust.
"""

from __future__ import annotations

import re
import traceback
from collections.abc import Iterable, Sequence
from html import escape
from typing import NamedTuple

from arrea_nb._batch import Batch
from arrea_nb._job import Job
from arrea_nb._records import FAILED_STATES, brief
from arrea_nb.errors import ArreaError
from arrea_nb.events import JobState

MOST_JOBS = 200
"""So many jobs are listed; the others are counted."""
MOST_FAILURES = 20
"""So many failures are told on top; all of them are in the list as long as it has room."""
_HTML_OUTPUT = 1 << 20  # characters of output in one summary, over all its jobs
_JOB_OUTPUT = 24_000  # and of one job
_NAME = 120
_LINE = 500
_FAILURE_LINES = 10
# Past this size a job's output is not read back from its file: the end is in memory, and is shown.
_READ_BACK = 4 << 20

_ORDER = (
    JobState.FAILED,
    JobState.TIMED_OUT,
    JobState.CANCELLED,
    JobState.SKIPPED,
    JobState.RUNNING,
    JobState.WAITING,
    JobState.QUEUED,
    JobState.SUCCEEDED,
)

SHAPES = {
    JobState.QUEUED: "○",
    JobState.RUNNING: "▶",
    JobState.WAITING: "↻",
    JobState.SUCCEEDED: "✔",
    JobState.FAILED: "✖",
    JobState.TIMED_OUT: "◷",
    JobState.CANCELLED: "■",
    JobState.SKIPPED: "▷",
}
# Readable on white and on black: the summary does not know which it stands on.
_COLOURS = {
    JobState.SUCCEEDED: "#3c9a44",
    JobState.FAILED: "#e0443c",
    JobState.TIMED_OUT: "#d07a00",
    JobState.CANCELLED: "#9a6ad0",
    JobState.RUNNING: "#2f86d6",
    JobState.WAITING: "#2f86d6",
}
_GREY = "#808080"

_ESCAPES = re.compile(
    r"(?:\x1b\]|\x9d)[^\x07\x1b\x9c\n]{0,8192}(?:\x07|\x1b\\|\x9c)"  # OSC: titles, links, progress
    r"|(?:\x1b[PX^_]|[\x90\x98\x9e\x9f])[^\x1b\x9c\n]{0,8192}(?:\x1b\\|\x9c)"  # DCS and its kin
    r"|(?:\x1b\[|\x9b)[0-?]{0,64}[ -/]{0,8}[@-~]"  # CSI: colours, cursor
    r"|\x1b[ -/]{0,8}[0-OQ-WYZ\\`-~]"  # the short ones
)
# What is left and is no text: control characters, marks and overrides of direction, line separators that
# only some programs take for one, and lone surrogates, which no UTF-8 file can hold.
_INERT = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


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
            yield f"… {self.omitted:,} {'line' if self.omitted == 1 else 'lines'} left out …"
        yield from self.tail


class _Printed(NamedTuple):
    """What a job printed; of more than can be shown, the end, with its size, what is left out, and a head."""

    stdout: str
    stderr: str
    size: int = 0
    omitted: int = 0
    head: str = ""


def plain(text: str) -> str:
    """Text without terminal sequences, in which nothing invisible is left; newlines and tabs stay."""
    if "\x1b" in text or "\x9b" in text or "\x9d" in text or "\x90" in text:
        text = _ESCAPES.sub("", text)
    return _INERT.sub(_written_out, text)


def one_line(text: str, most: int = _NAME) -> str:
    """A name on one line, inert, of bounded length."""
    text = plain(" ".join(text[: 8 * most].split()))
    return text if len(text) <= most else text[: most - 1] + "…"


def seconds(duration: float) -> str:
    """A duration as a reader says it: `340 ms`, `1.2 s`, `3 min 20 s`, `2 h 5 min`."""
    if duration < 0.9995:
        return f"{duration * 1000:.0f} ms"
    if duration < 59.95:
        return f"{duration:.1f} s"
    whole = round(duration)
    if whole < 3600:
        return _two(whole // 60, "min", whole % 60, "s")
    return _two(whole // 3600, "h", whole % 3600 // 60, "min")


def limits(batch: Batch) -> str:
    """What holds for its jobs: `4 at once · 30 s each`."""
    if batch.timeout is None:
        return f"{batch.workers} at once · no time limit"
    each = f"{batch.timeout:g} s" if batch.timeout < 60 else seconds(batch.timeout)
    return f"{batch.workers} at once · {each} each"


def state_name(state: JobState) -> str:
    """`timed out`, not `timed_out`."""
    return state.value.replace("_", " ")


def headline(batch: Batch) -> str:
    """How many jobs are in which state: `4 jobs: 1 failed, 3 succeeded`."""
    counts = batch.counts
    there = [(counts[state], state_name(state)) for state in _ORDER if counts[state]]
    total = len(batch)
    jobs = "no jobs" if not total else "1 job" if total == 1 else f"{total:,} jobs"
    if len(there) == 1:
        said = f"{jobs} {there[0][1]}"
    elif there:
        said = f"{jobs}: " + ", ".join(f"{number:,} {state}" for number, state in there)
    else:
        said = jobs
    name = one_line(batch.name)
    return f"{name}: {said}" if name else said


def started(batch: Batch) -> str:
    """What stays true below a live view, whatever happens later."""
    total = len(batch)
    return f"{total:,} {'job' if total == 1 else 'jobs'} started; wait() shows the summary"


def why(job: Job) -> str:
    """In one line why a job did not succeed, or the empty string."""
    return one_line(brief(job.error), 300) if job.error is not None else ""


def failure(job: Job) -> str:
    """In one line what failed and why: `[1] false: exit 1`."""
    return f"[{job.index}] {one_line(job.name)}: {why(job)}"


def text(batch: Batch) -> str:
    """The summary as plain text."""
    lines = [headline(batch)]
    failures = _failures(batch)
    for job in failures[:MOST_FAILURES]:
        lines.append(failure(job))
        label, last = _last_words(job)
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
            shape = SHAPES[job.state]
            lines.append(
                f"{shape} {state_name(job.state):{wide}}  [{job.index}] {one_line(job.name)}{tries}{note}"
            )
    if rest:
        lines.append(f"… and {rest:,} more jobs")
    return "\n".join(lines)


def html(batch: Batch) -> str:
    """The summary as HTML."""
    listed, rest = _listed(batch)
    room = min(_JOB_OUTPUT, _HTML_OUTPUT // max(1, len(listed)))
    failures = _failures(batch)
    parts = [
        '<div style="line-height: 1.5">',
        f"<div><b>{escape(headline(batch))}</b> {_duration(batch.duration)}</div>",
        *(_html_failure(job, first=not at) for at, job in enumerate(failures[:MOST_FAILURES])),
    ]
    if len(failures) > MOST_FAILURES:
        parts.append(f"<div>… and {len(failures) - MOST_FAILURES:,} more that failed</div>")
    parts += [_html_job(job, room) for job in listed]
    if rest:
        parts.append(f"<div>… and {rest:,} more jobs</div>")
    parts.append("</div>")
    return "\n".join(parts)


def _html_failure(job: Job, *, first: bool) -> str:
    """What failed, why, and its last words; the first one with its whole command."""
    colour = _COLOURS[job.state]
    command = plain(job.name[:4000]).strip("\n") if first else one_line(job.name)
    parts = [
        f'<div style="border-left: 3px solid {colour}; padding-left: 8px; margin: 4px 0px">',
        f'<div><span style="color: {colour}">{SHAPES[job.state]} <b>[{job.index}]</b></span> ',
    ]
    if "\n" in command:
        parts.append(f"<b>{escape(why(job))}</b></div>{_pre(command.splitlines())}")
    else:
        parts.append(f"<code><bdi>{escape(command)}</bdi></code>: <b>{escape(why(job))}</b></div>")
    label, last = _last_words(job)
    if last:
        parts.append(f'<div style="color: {_GREY}">{label}:</div>{_pre(last)}')
    frames = _traceback(job)
    if frames:
        parts.append(f'<div style="color: {_GREY}">where:</div>{_pre(frames)}')
    parts.append("</div>")
    return "".join(parts)


def _html_job(job: Job, room: int) -> str:
    colour = _COLOURS.get(job.state, _GREY)
    words = [escape(state_name(job.state))]
    if job.duration is not None:
        words.append(_duration(job.duration))
    if job.attempt > 1:
        words.append(f"attempt {job.attempt}")
    reason = why(job)
    if reason and reason != state_name(job.state):
        words.append(escape(one_line(reason)))
    if job.note:
        words.append(escape(one_line(job.note)))
    blocks = []
    output = _streams(job)
    if output.omitted:
        words.append(f"{output.size:,} bytes of output")
        head = [_shown(line) for line in output.head.removesuffix("\n").split("\n")]
        blocks.append(_pre([*head, f"… {output.omitted:,} bytes left out …"]))
    for stream, printed in (("stdout", output.stdout), ("stderr", output.stderr)):
        found = excerpt(printed, room, head=0 if output.omitted else 20)
        if found.total:
            if not output.omitted:
                words.append(f"{found.total:,} {'line' if found.total == 1 else 'lines'} of {stream}")
            label = f'<div style="color: {_GREY}">{stream}</div>' if stream == "stderr" else ""
            blocks.append(label + _pre(found.lines()))
    row = (
        f'<span style="color: {colour}">{SHAPES[job.state]}</span> [{job.index}] '
        f"<code><bdi>{escape(one_line(job.name))}</bdi></code> "
        f'<span style="color: {_GREY}">{" · ".join(words)}</span>'
    )
    if not blocks:
        # As far to the right as the triangle of the others puts them.
        return f'<div style="padding-left: 16px">{row}</div>'
    return f'<details><summary style="cursor: pointer">{row}</summary>{"".join(blocks)}</details>'


def _duration(duration: float | None) -> str:
    if duration is None:
        return ""
    return f'<span title="duration" style="white-space: nowrap">{seconds(duration)}</span>'


def _pre(lines: Iterable[str]) -> str:
    inside = escape("\n".join(lines))
    return f'<pre style="margin: 2px 0px 2px 16px; white-space: pre-wrap"><bdi>{inside}</bdi></pre>'


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


def _streams(job: Job) -> _Printed:
    """What it printed. Of very much output, only what is at hand, its end, and a bit of its beginning."""
    segments, end, skipped = job.output_since(0, 1 << 30)
    if skipped and end <= _READ_BACK:
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


def _last_words(job: Job) -> tuple[str, list[str]]:
    """The last lines of stderr; of stdout when there are none."""
    output = _streams(job)
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


def _listed(batch: Batch) -> tuple[Sequence[Job], int]:
    """The jobs to list, and how many are not; those that failed come first to it."""
    jobs = batch.jobs
    if len(jobs) <= MOST_JOBS:
        return jobs, 0
    chosen = _failures(batch)[:MOST_JOBS]
    failed = {job.index for job in chosen}
    others = (job for job in jobs if job.index not in failed)
    chosen = [*chosen, *(job for _, job in zip(range(MOST_JOBS - len(chosen)), others, strict=False))]
    return sorted(chosen, key=lambda job: job.index), len(jobs) - len(chosen)


def _written_out(found: re.Match[str]) -> str:
    code = ord(found[0])
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"


def _two(large: int, unit: str, small: int, smaller_unit: str) -> str:
    return f"{large} {unit} {small} {smaller_unit}" if small else f"{large} {unit}"
