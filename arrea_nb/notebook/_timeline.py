"""The picture of who ran when: an SVG with a lane for each place at work, and its description in words.

Guarantees: pure functions of a Batch, for any batch at any time. The picture refers to nothing outside, has
no script, and is of bounded size: neighbours become one bar where there is no room for all, while the first
`MOST_FAILURES` failures keep their own. State is told by height and filling as well
as by colour, and the colours are readable on white and on black.
"""

from __future__ import annotations

import base64
import heapq
from collections import Counter
from collections.abc import Iterable, Sequence
from html import escape
from typing import NamedTuple

from arrea_nb._batch import Batch
from arrea_nb._records import FAILED_STATES
from arrea_nb.events import JobState
from arrea_nb.notebook._words import COLOURS, GREY, ORDER, counted, named, one_line, seconds, state_name

MOST_BARS = 300
"""So many bars are drawn, and besides them"""
MOST_FAILURES = 100
"""so many of failures."""
_WIDTH = 720
_LANES_HEIGHT = 144  # of all lanes together, at the most
_MOST_LANES = 72
_LEGEND = 20  # pixels for the time scale, and as many for the legend
# A worker reports an end and takes the next job in one step; the two clocks may differ by this, in seconds.
_SLACK = 0.002


class Run(NamedTuple):
    """One attempt: `start` and `end` in seconds since its batch began."""

    start: float
    end: float
    job: int
    attempt: int
    state: JobState
    retried: bool


class _Bar(NamedTuple):
    """What is drawn of one run, or of several that follow each other closely; then the worst state of all."""

    lane: int
    first: Run
    end: float
    state: JobState
    runs: int = 1


def runs(batch: Batch) -> list[Run]:
    """Every attempt that began, by its start."""
    found = []
    for job in batch.jobs:
        if not job.attempt:
            continue
        for attempt in job.attempts:
            if attempt.started_at is not None:
                start = max(0.0, attempt.started_at - batch.started_at)
                end = start + max(0.0, attempt.duration or 0.0)
                retried = attempt.number < job.attempt or job.state is JobState.WAITING
                found.append(Run(start, end, job.index, attempt.number, attempt.state, retried))
    return sorted(found)


def lanes(found: Iterable[Run]) -> list[int]:
    """For each run the lowest lane that is free when it starts."""
    busy: list[tuple[float, int]] = []
    free: list[int] = []
    taken = []
    for run in found:
        while busy and busy[0][0] <= run.start + _SLACK:
            heapq.heappush(free, heapq.heappop(busy)[1])
        lane = heapq.heappop(free) if free else len(busy)
        heapq.heappush(busy, (run.end, lane))
        taken.append(lane)
    return taken


def told(batch: Batch, found: Sequence[Run]) -> str:
    """What to see in it: which job failed first, where several did, and which took longest."""
    said = []
    failed = [(job.ended_at or 0.0, job) for job in batch.jobs if job.state in FAILED_STATES]
    if len(failed) > 1:
        at, first = min(failed, key=lambda pair: pair[0])
        said.append(f"first to fail: {named(first)}, after {seconds(max(0.0, at - batch.started_at))}")
    if len(found) > 1:
        longest = max(found, key=lambda run: run.end - run.start)
        said.append(f"longest: {named(batch[longest.job])}, {seconds(longest.end - longest.start)}")
    return " · ".join(said)


def image(batch: Batch, found: Sequence[Run]) -> str:
    """The picture as an `img` element that carries it."""
    picture = base64.b64encode(svg(batch, found).encode()).decode()
    return (
        f'<img src="data:image/svg+xml;base64,{picture}" alt="{described(found)}"'
        ' style="display: block; max-width: 100%; margin: 6px 0px 2px 0px">'
    )


def described(found: Sequence[Run]) -> str:
    """What it is a picture of: how many attempts, how many of them at once, and how long all took."""
    at_once = max(lanes(found), default=-1) + 1
    return f"timeline: {counted(len(found), 'attempt')} in {seconds(_length(found))}, up to {at_once} at once"


def svg(batch: Batch, found: Sequence[Run]) -> str:
    """The picture itself."""
    taken = lanes(found)
    count = max(taken, default=-1) + 1
    # Very many lanes share the height of fewer.
    fold = -(-count // _MOST_LANES) or 1
    count = -(-count // fold)
    height = max(2.0, min(12.0, _LANES_HEIGHT / max(1, count)))
    scale = _WIDTH / (_length(found) or 1.0)
    bars = _bars(found, [lane // fold for lane in taken], scale)
    bottom = height * count
    size = f"{_WIDTH}", f"{bottom + 2 * _LEGEND:g}"
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{size[0]}" height="{size[1]}"',
        f' viewBox="0 0 {size[0]} {size[1]}" font-family="sans-serif" font-size="11" fill="{GREY}">',
        f"<title>{described(found)}</title>",
        *(_drawn(bar, batch, scale, height) for bar in bars),
        *_scale(_length(found), bottom),
        *_legend(found, bottom + _LEGEND),
        "</svg>",
    ]
    return "".join(parts)


def _length(found: Sequence[Run]) -> float:
    return max((run.end for run in found), default=0.0)


def _bars(found: Sequence[Run], taken: Sequence[int], scale: float) -> list[_Bar]:
    """What to draw: no more than there is room for; the first failures on their own, above the others."""
    alone: list[_Bar] = []
    others: list[_Bar] = []
    for run, lane in sorted(zip(found, taken, strict=True), key=lambda pair: pair[1]):
        own = run.state in FAILED_STATES and len(alone) < MOST_FAILURES
        (alone if own else others).append(_Bar(lane, run, run.end, run.state))
    gap = 2 / scale
    bars = others
    while len(bars) > MOST_BARS:
        bars = []
        for bar in others:
            last = bars[-1] if bars else None
            if last is not None and last.lane == bar.lane and bar.end - last.end < gap:
                worst = min(last.state, bar.state, key=ORDER.index)
                bars[-1] = _Bar(bar.lane, last.first, max(last.end, bar.end), worst, last.runs + 1)
            else:
                bars.append(bar)
        gap *= 2
    return bars + alone


def _drawn(bar: _Bar, batch: Batch, scale: float, height: float) -> str:
    """High and solid: failed for good. High and hollow: tried again. Lower: all others."""
    run = bar.first
    failed = bar.state in FAILED_STATES
    colour = COLOURS[bar.state]
    tall = height * (0.92 if failed else 0.6)
    left = run.start * scale
    # A gap to the next one in the lane; and a failure is seen, however short it was.
    wide = max((bar.end - run.start) * scale - 1, 3.0 if failed else 1.0)
    left = min(left, _WIDTH - wide)
    top = bar.lane * height + (height - tall) / 2
    filling = f'fill="{colour}"'
    if failed and run.retried:
        filling = f'fill="{colour}" fill-opacity=".25" stroke="{colour}"'
        left, wide, top, tall = left + 0.5, wide - 1, top + 0.5, tall - 1
    return (
        f'<rect x="{left:.4g}" y="{top:.4g}" width="{wide:.4g}" height="{tall:.3g}" {filling}>'
        f"<title>{escape(_titled(bar, batch))}</title></rect>"
    )


def _titled(bar: _Bar, batch: Batch) -> str:
    run = bar.first
    took = seconds(bar.end - run.start)
    if bar.runs > 1:
        return f"{bar.runs:,} attempts in {took}, at worst {state_name(bar.state)}"
    again = f", attempt {run.attempt}" if run.attempt > 1 or run.retried else ""
    return f"[{run.job}] {one_line(batch[run.job].name, 60)}{again}: {state_name(run.state)}, {took}"


def _scale(length: float, bottom: float) -> list[str]:
    """The time, from the beginning of the batch to its end."""
    parts = [f'<path d="M0 {bottom + 2.5:g}H{_WIDTH}" stroke="{GREY}"/>']
    for at, anchor in ((0, "start"), (0.25, "middle"), (0.5, "middle"), (0.75, "middle"), (1, "end")):
        text = seconds(length * at) if at else "0"
        x = f"{_WIDTH * at:g}"
        parts.append(f'<text x="{x}" y="{bottom + 15:g}" text-anchor="{anchor}">{text}</text>')
    return parts


def _legend(found: Sequence[Run], top: float) -> list[str]:
    """Which colour is what, and how often it is there."""
    numbers = Counter((run.state, run.retried) for run in found)
    parts = []
    left = 0.0
    for (state, retried), number in sorted(numbers.items(), key=lambda item: (item[0][0], item[0][1])):
        text = f"{number:,} {state_name(state)}" + (", tried again" if retried else "")
        filling = f'fill="{COLOURS[state]}"'
        if retried:
            filling += f' fill-opacity=".25" stroke="{COLOURS[state]}"'
        parts.append(f'<rect x="{left + 0.5:g}" y="{top + 6.5:g}" width="9" height="9" {filling}/>')
        parts.append(f'<text x="{left + 14:g}" y="{top + 15:g}">{text}</text>')
        left += 32 + 5.7 * len(text)
    return parts
