"""C7, C9, C13: whatever a callable does to its thread, its streams and its errors, it ends as one job."""

import json
import sys
import threading
import time

import pytest

import arrea_nb
from arrea_nb.errors import JobCrashed
from arrea_nb.notebook import _summary

LONG = 60.0


class Odd(BaseException):
    pass


class Unshowable:
    """A value that nobody may ask what it looks like: it says so, and never comes back from it."""

    asked = 0

    def __repr__(self):
        type(self).asked += 1
        raise ValueError("no repr")

    __str__ = __repr__


class Endless(Unshowable):
    def __repr__(self):
        type(self).asked += 1
        while True:
            time.sleep(0.001)

    __str__ = __repr__


class Mute(Exception):  # noqa: N818 - what it is
    asked = 0

    def __str__(self):
        type(self).asked += 1
        raise RuntimeError("no str")


class Chatty(Exception):  # noqa: N818 - what it is
    def __str__(self):  # noqa: PLE0307 - it never returns
        while True:
            time.sleep(0.001)


@pytest.fixture
def leader():
    with arrea_nb.Leader() as leader:
        yield leader


def _usable(leader):
    assert leader.execute([int, "true", lambda: print("heard")] * 3, workers=2).results(timeout=LONG)
    assert leader._engine.ledger.places.taken == 0


def _shown(batch):
    """All that is made of a batch besides its values."""
    records = batch.records()
    return json.dumps(records), repr(batch), repr(batch[0]), _summary.html(batch), _summary.text(batch)


@pytest.mark.parametrize("kind", [Odd, SystemExit, KeyboardInterrupt, GeneratorExit])
def test_what_is_no_exception_is_a_crash_of_its_job(leader, kind):
    def work():
        raise kind("why")

    async def wait():
        raise kind("why")

    batch = leader.execute([work, wait, int], workers=1)
    assert batch.wait(timeout=LONG)
    assert [str(job.state) for job in batch] == ["failed", "failed", "succeeded"]
    for job in batch.jobs[:2]:
        assert isinstance(job.error, JobCrashed)
        assert isinstance(job.error.__cause__, kind)
        assert str(job.error) == f"the callable raised {kind.__name__}: why"
    _usable(leader)


def test_a_callable_may_tamper_with_what_python_knows_of_its_thread(alone):
    """It takes its thread out of threading's table, which Python complains of, and empties what is local."""
    told, _ = alone("""
from arrea_nb.workers._slot import here
def work():
    threading._active.pop(threading.get_ident(), None)
    here.__dict__.clear()
    print("still heard")
batch = arrea_nb.execute([work] * 4, workers=2, timeout=None)
told["states"] = ended(batch)
told["stdout"] = [job.stdout for job in batch]
told["after"] = ended(arrea_nb.execute([int, "true"] * 3, workers=3))
told["places"] = arrea_nb._leader.Leader.instance()._engine.ledger.places.taken
""")
    assert told == {
        "states": ["succeeded"] * 4,
        "stdout": ["still heard\n"] * 4,
        "after": ["succeeded"] * 6,
        "places": 0,
    }


@pytest.mark.stops_callables
def test_a_callable_that_never_returns_is_abandoned_and_counted(leader):
    leader.grace = 0.05
    free = threading.Event()
    batch = leader.execute([lambda: free.wait(LONG), int], workers=1, timeout=0.1)
    assert batch.wait(timeout=LONG)
    assert [str(job.state) for job in batch] == ["timed_out", "succeeded"]
    assert batch[0].abandoned
    assert leader.get_state().abandoned == 1
    _usable(leader)
    free.set()
    deadline = time.monotonic() + LONG
    while leader.get_state().abandoned:
        assert time.monotonic() < deadline
        time.sleep(0.001)


def test_a_callable_may_replace_and_close_its_streams(alone):
    """The batch after it captures as before, and who prints outside is heard."""
    told, stderr = alone("""
import io
def replace():
    sys.stdout = io.StringIO()
    print("lost")
def close():
    sys.stdout.close()
    sys.stderr.close()
    print("closed")
def forget():
    sys.stdout = None
    print("nowhere")
told["states"] = []
for work in (replace, close, forget):
    before = sys.stdout
    told["states"] += ended(arrea_nb.execute([work]))
    sys.stdout = before
    assert arrea_nb._leader.Leader.instance().get_state().stats["running"] == 0
batch = arrea_nb.execute([lambda: print("heard")])
told["states"] += ended(batch)
told["stdout"] = batch[0].stdout
print("outside")
""")
    assert told == {"states": ["succeeded"] * 4, "stdout": "heard\n"}, stderr
    assert stderr == ""


@pytest.mark.parametrize("kind", [Unshowable, Endless])
def test_nobody_asks_a_value_what_it_looks_like(leader, kind):
    """Its repr raises, or never ends: events, records, frames, summaries do without."""
    kind.asked = 0
    with leader.subscribe() as events:
        batch = leader.execute([kind, int])
        values = batch.results(timeout=LONG)
        told = [events.get(timeout=LONG)]
        while told[-1].type != "batch_ended":
            told.append(events.get(timeout=LONG))
        assert isinstance(values[0], kind)
        assert repr(told)
    assert _shown(batch)
    if "pandas" in sys.modules:
        assert len(batch.to_frame()) == 2
    assert kind.asked == 0


def test_an_error_that_cannot_say_what_it_is_is_asked_once(leader):
    def work():
        raise Mute

    Mute.asked = 0
    batch = leader.execute([work])
    assert batch.wait(timeout=LONG)
    asked = Mute.asked
    assert isinstance(batch[0].error, Mute)
    assert batch.records()[0]["error"] == "Mute: (its message cannot be shown)"
    assert batch.failure().message == "1 of 1 failed: [0] work: Mute: (its message cannot be shown)"
    assert "(its message cannot be shown)" in _shown(batch)[3]
    assert Mute.asked == asked == 1
    _usable(leader)


@pytest.mark.stops_callables
def test_an_error_that_never_ends_saying_what_it_is_times_out(leader):
    def work():
        raise Chatty

    batch = leader.execute([work, int], workers=1, timeout=0.2)
    assert batch.wait(timeout=LONG)
    assert [str(job.state) for job in batch] == ["timed_out", "succeeded"]
    assert batch.records()[0]["error"].startswith("timed out after 0.2 s")
    assert _shown(batch)
    _usable(leader)
