"""The slot of an attempt by its verbs: no thread, and what injects is a fake that remembers."""

import random
from itertools import pairwise, product
from queue import SimpleQueue

import pytest

from arrea_nb.workers import _slot
from arrea_nb.workers._slot import (
    ABANDONED,
    ARRIVED,
    ASKED,
    CLOSED,
    DROPPED,
    LEGAL,
    NEW,
    OPEN,
    PENDING,
    WITHHELD,
    Slot,
    SlotState,
    StopJob,
)


class _Thread:
    """Knows whether an exception is pending in it, and what was done to it."""

    def __init__(self):
        self.pending = False
        self.done = []

    def inject(self, *, on):
        self.pending = on
        self.done.append(on)


def _slot_in(state):
    """A slot that came to this state by its verbs."""
    thread = _Thread()
    slot = Slot(thread)
    if state is NEW:
        return slot, thread
    slot.state = OPEN
    if state is ASKED:
        slot.bell = lambda: None
    if state in {PENDING, WITHHELD, ARRIVED, DROPPED, ASKED}:
        slot.stop()
    if state is WITHHELD:
        slot.take_back()
    if state in {ARRIVED, DROPPED}:
        thread.pending = False
        slot.arrive()
    if state is DROPPED:
        slot.drop()
    if state is CLOSED:
        slot.close()
    if state is ABANDONED:
        slot.abandon()
    slot.bell = None
    assert slot.state is state
    return slot, thread


def test_the_table_has_every_state_and_leads_to_every_state():
    assert set(LEGAL) == set(SlotState)
    assert set().union(*LEGAL.values()) == set(SlotState) - {NEW}
    assert [state for state in SlotState if not LEGAL[state]] == [CLOSED, ABANDONED]


@pytest.mark.parametrize(
    ("state", "to"), [pair for pair in product(SlotState, SlotState) if pair[1] in LEGAL[pair[0]]]
)
def test_a_legal_move_is_made(state, to):
    slot, _ = _slot_in(state)
    slot._move(to)
    assert slot.state is to
    assert slot.over == (to in {CLOSED, ABANDONED})


@pytest.mark.parametrize(
    ("state", "to"), [pair for pair in product(SlotState, SlotState) if pair[1] not in LEGAL[pair[0]]]
)
def test_an_illegal_move_raises_and_changes_nothing(state, to):
    slot, thread = _slot_in(state)
    before = thread.pending
    with pytest.raises(AssertionError, match=rf"^illegal move of a slot: {state.name} to {to.name}$"):
        slot._move(to)
    assert (slot.state, thread.pending) == (state, before)


# What each verb makes of each state; a state that is not named stays.
_VERBS = {
    "stop": {OPEN: PENDING, DROPPED: PENDING},
    "take_back": {PENDING: WITHHELD},
    "give_again": {WITHHELD: PENDING},
    "arrive": {PENDING: ARRIVED},
    "drop": {ARRIVED: DROPPED},
    "close": {state: CLOSED for state in SlotState if state is not ABANDONED},
    "abandon": dict.fromkeys(SlotState, ABANDONED),
}
_REFUSED = {("close", CLOSED), ("abandon", CLOSED), ("abandon", ABANDONED)}


@pytest.mark.parametrize(("verb", "state"), [*product(_VERBS, SlotState)])
def test_each_verb_in_each_state(verb, state):
    slot, thread = _slot_in(state)
    if (verb, state) in _REFUSED:
        with pytest.raises(AssertionError, match=r"^illegal move"):
            getattr(slot, verb)()
        return
    getattr(slot, verb)()
    assert slot.state is _VERBS[verb].get(state, state)
    if verb != "arrive":  # which happens in the thread, where it is pending no more
        assert thread.pending == (slot.state is PENDING)


def test_a_stop_is_injected_once():
    slot, thread = _slot_in(OPEN)
    for _ in range(3):
        slot.stop()
    assert thread.done == [True]


def test_the_state_is_there_before_the_exception_is():
    """It could arrive at once."""
    slot, thread = _slot_in(OPEN)

    def inject(*, on):
        assert on
        slot.arrive()

    thread.inject = inject
    slot.stop()
    assert slot.state is ARRIVED


def test_a_stop_while_it_is_sheltered_comes_when_that_is_over():
    slot, thread = _slot_in(OPEN)
    slot.sheltered = 2
    slot.stop()
    assert (slot.state, thread.done) == (WITHHELD, [])
    slot.sheltered -= 1
    slot.give_again()  # one section inside another is over
    assert (slot.state, thread.done) == (WITHHELD, [])
    slot.sheltered -= 1
    slot.give_again()
    assert (slot.state, thread.done) == (PENDING, [True])


def test_one_that_was_dropped_is_set_again():
    slot, thread = _slot_in(DROPPED)
    slot.stop()
    assert (slot.state, thread.done) == (PENDING, [True, True])
    thread.pending = False
    slot.arrive()
    slot.drop()
    slot.sheltered = 1
    slot.stop()
    assert (slot.state, thread.pending) == (WITHHELD, False)


def test_a_bell_is_rung_instead_each_time():
    slot, thread = _slot_in(OPEN)
    rung = []
    slot.bell = lambda: rung.append(slot.state)
    slot.stop()
    slot.stop()
    assert (slot.state, rung, thread.done) == (ASKED, [ASKED, ASKED], [])


@pytest.mark.parametrize("state", [NEW, PENDING, WITHHELD, ARRIVED])
def test_a_bell_that_came_late_is_rung_and_changes_nothing(state):
    slot, thread = _slot_in(state)
    rung, before = [], thread.done[:]
    slot.bell = lambda: rung.append(True)
    slot.stop()
    assert (slot.state, rung, thread.done) == (state, [True], before)


def test_a_stop_rings_all_latches():
    slot, _ = _slot_in(OPEN)
    latches = [SimpleQueue(), SimpleQueue()]
    slot.latches = tuple((latch, own) for latch, own in zip(latches, (True, False), strict=True))
    slot.stop()
    assert [latch.get_nowait() for latch in latches] == [None, None]


@pytest.mark.parametrize(("verb", "state"), [("close", CLOSED), ("abandon", ABANDONED)])
def test_the_end_takes_a_pending_one_back(verb, state):
    slot, thread = _slot_in(PENDING)
    getattr(slot, verb)()
    assert (slot.state, thread.done, slot.over) == (state, [True, False], True)


def test_an_abandoned_one_may_close_when_its_thread_ends_after_all():
    slot, thread = _slot_in(ABANDONED)
    slot.close()
    assert (slot.state, thread.done) == (ABANDONED, [])


def test_the_exception_says_when_it_is_made(monkeypatch):
    slot, _ = _slot_in(PENDING)
    monkeypatch.setattr(_slot.here, "slot", slot)
    StopJob()
    assert slot.state is ARRIVED
    monkeypatch.setattr(_slot.here, "slot", None)
    StopJob()  # in a thread that runs no attempt


@pytest.mark.parametrize("seed", range(200))
def test_whatever_happens_an_exception_is_pending_only_while_the_state_says_so(seed):
    """And none arrives after the end, nor in a section."""
    choose = random.Random(seed)
    slot, thread = _slot_in(OPEN)

    def arrive():
        assert thread.pending
        assert not slot.over
        assert not slot.sheltered
        thread.pending = False
        slot.arrive()

    def enter():
        slot.take_back()
        slot.sheltered += 1

    def leave():
        slot.sheltered -= 1
        slot.give_again()

    def swap_bell():
        slot.bell = (lambda: None) if slot.bell is None else None

    for _ in range(60):
        moves = [slot.stop, slot.take_back, slot.give_again, slot.drop, enter, swap_bell]
        if thread.pending:
            moves += [arrive] * 2
        if slot.sheltered:
            moves += [leave] * 3
        if not slot.over and choose.random() < 0.1:
            moves = [slot.close, slot.abandon]
        choose.choice(moves)()
        assert thread.pending == (slot.state is PENDING)
        if slot.sheltered:
            assert not thread.pending
    # Nothing is taken back that was not set just before.
    assert all(before or after for before, after in pairwise(thread.done))
