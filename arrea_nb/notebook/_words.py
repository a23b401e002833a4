r"""How batches, jobs and what they say are put into words, the same in every view.

Guarantees: what comes from a user or a program comes out inert. Terminal sequences are taken out, control
characters and marks that turn the direction of text are written out (`\u202e`), and lengths are bounded.
"""

from __future__ import annotations

import re

from arrea_nb._batch import Batch
from arrea_nb._job import Job
from arrea_nb.events import JobState

_NAME = 120

ORDER = (
    JobState.FAILED,
    JobState.TIMED_OUT,
    JobState.CANCELLED,
    JobState.SKIPPED,
    JobState.RUNNING,
    JobState.WAITING,
    JobState.QUEUED,
    JobState.SUCCEEDED,
)
"""What a reader wants to know of first comes first."""

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
GREY = "#808080"
# Readable on white and on black: what stays in a notebook does not know which it stands on.
COLOURS = {
    JobState.QUEUED: GREY,
    JobState.RUNNING: "#2f86d6",
    JobState.WAITING: "#2f86d6",
    JobState.SUCCEEDED: "#3c9a44",
    JobState.FAILED: "#e0443c",
    JobState.TIMED_OUT: "#d07a00",
    JobState.CANCELLED: "#9a6ad0",
    JobState.SKIPPED: GREY,
}

_ESCAPES = re.compile(
    r"(?:\x1b\]|\x9d)[^\x07\x1b\x9c\n]{0,8192}(?:\x07|\x1b\\|\x9c)"  # OSC: titles, links, progress
    r"|(?:\x1b[PX^_]|[\x90\x98\x9e\x9f])[^\x1b\x9c\n]{0,8192}(?:\x1b\\|\x9c)"  # DCS and its kin
    r"|(?:\x1b\[|\x9b)[0-?]{0,64}[ -/]{0,8}[@-~]"  # CSI: colours, cursor
    r"|\x1b[ -/]{0,8}[0-OQ-WYZ\\`-~]"  # the short ones
)
# What is left and is no text: control characters, marks and overrides of direction, line separators that
# only some programs take for one, and lone surrogates, which no UTF-8 file can hold.
_INERT = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def plain(text: str) -> str:
    """Text without terminal sequences, in which nothing invisible is left; newlines and tabs stay."""
    if "\x1b" in text or "\x9b" in text or "\x9d" in text or "\x90" in text:
        text = _ESCAPES.sub("", text)
    return _INERT.sub(_written_out, text)


def one_line(text: str, most: int = _NAME) -> str:
    """A name on one line, inert, of bounded length."""
    text = plain(" ".join(text[: 8 * most].split()))
    return text if len(text) <= most else text[: most - 1] + "…"


def counted(number: int, thing: str) -> str:
    """A number and its noun: `1 job`, `1,200 jobs`."""
    return f"{number:,} {thing}" if number == 1 else f"{number:,} {thing}s"


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


def in_states(counts: dict[JobState, int]) -> list[str]:
    """How many are in which state, those in none left out: `1 failed`, `3 succeeded`."""
    return [f"{counts[state]:,} {state_name(state)}" for state in ORDER if counts.get(state)]


def headline(batch: Batch) -> str:
    """How many jobs are in which state: `4 jobs: 1 failed, 3 succeeded`."""
    there = in_states(batch.counts)
    jobs = counted(len(batch), "job") if len(batch) else "no jobs"
    if len(there) == 1:
        said = f"{jobs} {there[0].partition(' ')[2]}"
    elif there:
        said = f"{jobs}: {', '.join(there)}"
    else:
        said = jobs
    name = one_line(batch.name)
    return f"{name}: {said}" if name else said


def why(job: Job) -> str:
    """In one line why a job did not succeed, or is tried again; else the empty string."""
    if job.error is None and job.state is not JobState.WAITING:
        return ""
    # As its worker put it: a user's `__str__` may raise, or take for ever, and is not asked again.
    return one_line(job._record.told or "", 300)  # noqa: SLF001 - Job shows its users the error itself


def named(job: Job) -> str:
    """Which job it is: `[1] false`."""
    return f"[{job.index}] {one_line(job.name)}"


def _written_out(found: re.Match[str]) -> str:
    code = ord(found[0])
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"


def _two(large: int, unit: str, small: int, smaller_unit: str) -> str:
    return f"{large} {unit} {small} {smaller_unit}" if small else f"{large} {unit}"
