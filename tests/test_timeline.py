"""The picture of who ran when: each attempt in a lane, failures seen, nothing from outside, never big."""

import base64
import functools
import itertools
import random
import re
import time
import xml.etree.ElementTree as ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from arrea_nb._leader import Leader
from arrea_nb.events import JobState
from arrea_nb.notebook import _timeline
from arrea_nb.notebook._timeline import Run

RECT = "{http://www.w3.org/2000/svg}rect"
TITLE = "{http://www.w3.org/2000/svg}title"


@pytest.fixture
def run():
    """Runs commands to their end and returns the batch."""
    with Leader() as leader:

        def run(commands, **options):
            batch = leader.execute(commands, **options)
            assert batch.wait(60)
            return batch

        yield run


def bars(picture):
    """The bars of a picture, those of the legend left out."""
    return [bar for bar in ElementTree.fromstring(picture).iter(RECT) if bar.find(TITLE) is not None]


def titles(batch):
    return [bar.find(TITLE).text for bar in bars(_timeline.svg(batch, _timeline.runs(batch)))]


class Many:
    """A batch as far as the picture asks for one: every job has the same name."""

    started_at = 0.0

    class Job:
        """One for all."""

        name = "x" * 1000

    def __getitem__(self, index):
        return self.Job


@given(
    st.lists(st.tuples(st.floats(0, 100), st.floats(0.01, 10)), max_size=60).map(
        lambda pairs: sorted(
            Run(start, start + length, index, 1, JobState.SUCCEEDED, retried=False)
            for index, (start, length) in enumerate(pairs)
        )
    )
)
def test_runs_in_one_lane_do_not_overlap_and_no_lane_is_wasted(found):
    taken = _timeline.lanes(found)
    for lane in set(taken):
        inside = [run for run, one in zip(found, taken, strict=True) if one == lane]
        assert all(a.end <= b.start + 0.0021 for a, b in itertools.pairwise(inside))
    most = max((sum(a.start <= b.start < a.end for a in found) for b in found), default=0)
    assert len(set(taken)) <= most
    assert set(taken) == set(range(len(set(taken))))


def test_there_are_as_many_lanes_as_jobs_ran_at_once(run):
    batch = run(["sleep 0.05"] * 9, workers=3)
    assert len(set(_timeline.lanes(_timeline.runs(batch)))) <= 3
    assert [one.job for one in _timeline.runs(batch)] != []


def test_every_attempt_is_there_with_its_state_and_what_never_ran_is_not(run):
    policy = {"retries": 1, "retry_delay": 0.01, "on_error": "stop"}
    batch = run(["true", "exit 3", "true"], workers=1, policy=policy)
    found = _timeline.runs(batch)
    assert [(one.job, one.attempt, one.state, one.retried) for one in found if one.job == 1] == [
        (1, 1, JobState.FAILED, True),
        (1, 2, JobState.FAILED, False),
    ]
    assert {one.job for one in found} == {job.index for job in batch if job.attempt}
    assert all(0 <= one.start <= one.end <= batch.duration + 0.05 for one in found)


def test_a_failure_and_a_retry_look_different_without_their_colour(run):
    batch = run(["sleep 0.05", "sleep 0.05; exit 3"], policy={"retries": 1, "retry_delay": 0})
    shown = {
        bar.find(TITLE).text.partition(": ")[0]: bar
        for bar in bars(_timeline.svg(batch, _timeline.runs(batch)))
    }
    succeeded = shown["[0] sleep 0.05"]
    retried = shown["[1] sleep 0.05; exit 3, attempt 1"]
    failed = shown["[1] sleep 0.05; exit 3, attempt 2"]
    assert float(failed.get("height")) > float(succeeded.get("height"))
    assert retried.get("fill-opacity") is not None
    assert failed.get("fill-opacity") is None


def test_a_bar_says_what_it_is(run):
    batch = run(["true", "exit 3"])
    assert re.fullmatch(r"\[0\] true: succeeded, \d+ ms", titles(batch)[0])
    assert re.fullmatch(r"\[1\] exit 3: failed, \d+ ms", titles(batch)[1])


def test_the_image_refers_to_nothing_outside_and_describes_itself(run):
    hostile = '"><script>alert(1)</script>\x1b[31m\u202e'
    batch = run({hostile: lambda: 1 / 0, f"{hostile}2": lambda: None})
    image = _timeline.image(batch, _timeline.runs(batch))
    assert re.search(r'alt="timeline: 2 attempts in \d+ ms, up to [12] at once"', image)
    picture = base64.b64decode(re.search(r"base64,([^\"]+)", image)[1]).decode()
    tree = ElementTree.fromstring(picture)
    assert {element.tag.partition("}")[2] for element in tree.iter()} <= {
        "svg",
        "title",
        "rect",
        "path",
        "text",
    }
    assert not any("href" in name for element in tree.iter() for name in element.attrib)
    assert "url(" not in picture
    assert not re.search("[\x00-\x08\u202e]", picture)


@pytest.mark.parametrize("lane_count", [1, 20, 1000])
@pytest.mark.parametrize("broken", [0.0, 0.5, 1.0])
def test_the_picture_of_20000_attempts_is_small_and_shows_failures(lane_count, broken):
    rng = random.Random(7)
    ends = [0.0] * lane_count
    found = []
    for job in range(20_000):
        lane = min(range(lane_count), key=ends.__getitem__) if lane_count < 1000 else job % lane_count
        start, ends[lane] = ends[lane], ends[lane] + rng.random()
        state = (
            JobState.FAILED if rng.random() < broken else rng.choice([JobState.SUCCEEDED, JobState.CANCELLED])
        )
        found.append(Run(start, ends[lane], job, 1, state, retried=False))
    picture = _timeline.svg(Many(), sorted(found))
    shown = bars(picture)
    assert len(shown) <= _timeline.MOST_BARS + _timeline.MOST_FAILURES
    assert len(picture) < 100_000
    assert any("failed" in bar.find(TITLE).text for bar in shown) == (broken > 0)
    size = ElementTree.fromstring(picture)
    for bar in shown:
        assert 0 <= float(bar.get("x")) <= float(size.get("width")) - float(bar.get("width")) + 0.1
        assert 0 <= float(bar.get("y")) <= float(size.get("height")) - 40


def test_a_batch_that_still_runs_has_a_picture_too():
    with Leader() as leader, leader.subscribe() as events:
        batch = leader.execute(["sleep 60", "sleep 60"])
        for _ in range(3):
            events.get(30)
        assert _timeline.svg(batch, _timeline.runs(batch)).count("running") >= 1


def test_the_moment_that_the_clock_was_set_back_breaks_nothing(run, monkeypatch):
    batch = run([functools.partial(time.sleep, 0.01)] * 3)
    monkeypatch.setattr(batch._record, "started_at", batch.started_at + 1000)
    assert len(bars(_timeline.svg(batch, _timeline.runs(batch)))) == 3
