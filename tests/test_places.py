"""Places by their verbs: who may run now, over all batches, without a thread."""

import contextvars
import random
from queue import Empty, SimpleQueue

import pytest

from arrea_nb._commands import PythonCall
from arrea_nb._options import BatchOptions
from arrea_nb._places import Places
from arrea_nb._records import BatchRecord, JobRecord
from arrea_nb.events import JobState

QUEUED, RUNNING, WAITING = JobState.QUEUED, JobState.RUNNING, JobState.WAITING
SUCCEEDED, CANCELLED = JobState.SUCCEEDED, JobState.CANCELLED


def _batch(name, size, *, workers=2):
    batch = BatchRecord(name, BatchOptions(workers=workers), contextvars.copy_context())
    batch.counts = {**dict.fromkeys(JobState, 0), QUEUED: size}
    batch.jobs = [JobRecord(batch, at, PythonCall(int), None) for at in range(size)]
    return batch


def _offered(places, *batches):
    for batch in batches:
        places.offer(batch)


def _move(job, state):
    job.batch.counts[job.state] -= 1
    job.batch.counts[state] += 1
    job.state = state


def _began(places):
    """The job that begins now, as the ledger has it from then on."""
    job = places.next()
    if job is not None:
        _move(job, RUNNING)
    return job


def _all(places):
    """Whoever begins now, one after the other."""
    return list(iter(lambda: _began(places), None))


def _ended(places, job, state=SUCCEEDED):
    """It is over."""
    _move(job, state)
    places.free(job)
    places.offer(job.batch)


def _rung(bell):
    try:
        bell.get_nowait()
    except Empty:
        return False
    return True


def _label(job):
    return None if job is None else f"{job.batch.id}{job.index}"


def test_jobs_begin_in_the_order_given_up_to_the_workers_of_their_batch():
    places = Places(10)
    _offered(places, _batch("a", 4, workers=3))
    assert [_label(job) for job in _all(places)] == ["a0", "a1", "a2"]
    assert (places.taken, places.wanting, places.wanted()) == (3, False, 0)


def test_there_are_never_more_than_there_are_places():
    places = Places(3)
    _offered(places, _batch("a", 4, workers=4), _batch("b", 4, workers=4))
    assert places.wanted() == 3
    assert len(_all(places)) == 3
    assert (places.taken, places.wanting, places.wanted()) == (3, False, 0)


def test_batches_share_free_places_in_turn():
    places = Places(5)
    _offered(places, _batch("a", 9, workers=9), _batch("b", 9, workers=9))
    assert [_label(job) for job in _all(places)] == ["a0", "b0", "a1", "b1", "a2"]


def test_a_batch_that_is_offered_twice_has_one_turn():
    places = Places(4)
    a, b = _batch("a", 9, workers=9), _batch("b", 9, workers=9)
    _offered(places, a, a, b, a)
    assert [_label(job) for job in _all(places)] == ["a0", "b0", "a1", "b1"]


def test_a_retry_that_is_due_goes_before_first_attempts_of_its_batch():
    places = Places(1)
    batch = _batch("a", 3, workers=1)
    _offered(places, batch)
    first = _began(places)
    _ended(places, first, WAITING)
    batch.due.append(first)
    places.offer(batch)
    assert _label(_began(places)) == "a0"


def test_a_retry_that_was_cancelled_meanwhile_is_passed_over():
    places = Places(1)
    batch = _batch("a", 2, workers=1)
    _offered(places, batch)
    first = _began(places)
    _ended(places, first, WAITING)
    batch.due.append(first)
    places.offer(batch)
    _move(first, CANCELLED)
    assert _label(_began(places)) == "a1"


def test_a_job_that_was_cancelled_in_the_queue_is_passed_over():
    places = Places(2)
    a, b = _batch("a", 2, workers=1), _batch("b", 1)
    _offered(places, a, b)
    for job in a.jobs:
        _move(job, CANCELLED)
    assert [_label(job) for job in _all(places)] == ["b0"]


def test_a_halted_batch_gets_no_turn():
    places = Places(2)
    batch = _batch("a", 2)
    batch.halted = CANCELLED
    _offered(places, batch)
    assert places.next() is None


def test_who_waits_gives_its_place_to_the_next():
    places = Places(1)
    a, b = _batch("a", 1), _batch("b", 1)
    _offered(places, a, b)
    outer = _began(places)
    places.step_aside(outer)
    assert (outer.away, places.taken, a.running) == (True, 0, 0)
    assert _label(_began(places)) == "b0"


def test_who_comes_back_and_finds_a_place_has_it_at_once():
    places = Places(1)
    _offered(places, _batch("a", 1))
    outer = _began(places)
    places.step_aside(outer)
    bell = SimpleQueue()
    assert places.step_back(outer, bell)
    assert (outer.away, places.taken) == (False, 1)
    assert places.step_back(outer, bell)  # once more is fine
    assert places.taken == 1


def test_who_comes_back_goes_before_whoever_has_not_begun():
    places = Places(1)
    outer_batch = _batch("a", 1)
    _offered(places, outer_batch, *(_batch(name, 3) for name in "bcdefg"))
    outer = _began(places)
    places.step_aside(outer)
    inner = _began(places)
    bell = SimpleQueue()
    assert not places.step_back(outer, bell)
    assert not _rung(bell)
    _ended(places, inner)
    assert _rung(bell)
    assert (outer.away, places.taken) == (False, 1)
    assert places.next() is None


def test_those_who_come_back_are_served_in_the_order_in_which_they_came():
    places = Places(2)
    _offered(places, _batch("a", 2), _batch("b", 4, workers=4))
    first, other = _began(places), _began(places)
    places.step_aside(first)
    second = _began(places)
    places.step_aside(other)
    last = _began(places)
    bells = [SimpleQueue(), SimpleQueue()]
    assert not places.step_back(other, bells[0])
    assert not places.step_back(first, bells[1])
    _ended(places, second)
    assert [_rung(bell) for bell in bells] == [True, False]
    _ended(places, last)
    assert [_rung(bell) for bell in bells] == [False, True]


def test_who_comes_back_waits_for_a_place_in_its_own_batch_too():
    """And keeps nobody of another batch from one meanwhile."""
    places = Places(10)
    a, b = _batch("a", 2, workers=1), _batch("b", 1)
    _offered(places, a)
    outer = _began(places)
    places.step_aside(outer)
    other = _began(places)
    assert _label(other) == "a1"
    bell = SimpleQueue()
    assert not places.step_back(outer, bell)
    _offered(places, b)
    assert _label(_began(places)) == "b0"
    _ended(places, other)
    assert _rung(bell)
    assert (a.running, places.taken) == (1, 2)


@pytest.mark.parametrize("more", ["of the batch", "over all"])
def test_more_room_lets_those_back_who_wait_for_it(more):
    places = Places(1 if more == "over all" else 9)
    a = _batch("a", 2, workers=1 if more == "of the batch" else 9)
    _offered(places, a)
    outer = _began(places)
    places.step_aside(outer)
    assert _began(places) is not None
    bell = SimpleQueue()
    assert not places.step_back(outer, bell)
    places.most, a.workers = 9, 9
    places.more_room()
    assert _rung(bell)
    assert (places.taken, a.running) == (2, 2)


def test_one_that_is_being_stopped_need_not_have_a_place_to_go_on():
    places = Places(1)
    _offered(places, _batch("a", 1), _batch("b", 2))
    outer = _began(places)
    places.step_aside(outer)
    inner = _began(places)
    bell = SimpleQueue()
    assert not places.step_back(outer, bell)
    outer.stop = CANCELLED
    _ended(places, inner)
    assert not _rung(bell)  # its stop rang it
    assert places.step_back(outer, bell)
    assert _label(_began(places)) == "b1"
    _ended(places, outer, CANCELLED)
    assert (outer.away, places.taken) == (False, 1)


def test_one_that_ends_while_it_is_away_frees_nothing():
    places = Places(2)
    batch = _batch("a", 2)
    _offered(places, batch)
    outer, _ = _began(places), _began(places)
    places.step_aside(outer)
    _ended(places, outer)
    assert (places.taken, batch.running) == (1, 1)


def test_fewer_places_than_are_taken_hand_out_none_until_enough_are_free():
    places = Places(3)
    _offered(places, _batch("a", 9, workers=9))
    held = _all(places)
    places.most = 1
    for job in held[:2]:
        _ended(places, job)
        assert places.next() is None
    assert places.wanted() == 0
    _ended(places, held[2])
    assert len(_all(places)) == 1


@pytest.mark.parametrize("seed", range(150))
def test_whatever_happens_limits_hold_nobody_waits_who_could_run_and_all_end(seed):
    choose = random.Random(seed)
    places = Places(choose.randint(1, 4))
    batches = [_batch(name, choose.randint(1, 6), workers=choose.randint(1, 3)) for name in "abcd"]
    _offered(places, *batches)
    held, back, retries = [], {}, []
    jobs = [job for batch in batches for job in batch.jobs]

    def check():
        assert 0 <= places.taken <= places.most
        there = [job for job in held if not job.away]
        assert places.taken == len(there)
        for batch in batches:
            assert batch.running == sum(job.batch is batch for job in there) <= batch.workers
        for job, bell in list(back.items()):
            if _rung(bell):
                assert not job.away
                del back[job]
            else:  # whoever waits to come back finds no place
                assert places.taken == places.most or job.batch.running == job.batch.workers

    def begin():
        for job in iter(lambda: _began(places), None):
            held.append(job)
            check()

    for step in range(400):
        here = [job for job in held if not job.away]
        aside = [job for job in held if job.away and job not in back]
        verb = choose.choice(
            ["end", "aside", "back", "retry", "due"] if step < 200 else ["end", "back", "due"]
        )
        if verb == "end" and here:
            job = choose.choice(here)
            held.remove(job)
            _ended(places, job)
        elif verb == "aside" and here:
            places.step_aside(choose.choice(here))
        elif verb == "back" and aside:
            job, bell = choose.choice(aside), SimpleQueue()
            if not places.step_back(job, bell):
                back[job] = bell
        elif verb == "retry" and here:
            job = choose.choice(here)
            held.remove(job)
            _ended(places, job, WAITING)
            retries.append(job)
        elif verb == "due" and retries:
            job = retries.pop(0)
            job.batch.due.append(job)
            places.offer(job.batch)
        check()
        begin()
        free = places.most - places.taken
        ready = [job for job in jobs if job.state is QUEUED or job in job.batch.due]
        assert not free or all(job.batch.running == job.batch.workers for job in ready)
    assert {job.state for job in jobs} == {SUCCEEDED}
    assert (places.taken, places.wanting) == (0, False)
