"""C16: whatever a subscriber does, the batch goes on, and all the others hear all of it in the same order."""

import threading

import pytest

import arrea_nb

LONG = 60.0


def _heard(mailbox, batch):
    """What a mailbox got of this batch, up to its end."""
    heard = []
    while not heard or heard[-1].type != "batch_ended":
        event = mailbox.get(timeout=LONG)
        if event.batch_id == batch.id:
            heard.append(event)
    return heard


class Hostile:
    """Does the same with each event that it hears, and counts them."""

    def __init__(self, leader):
        self.leader = leader
        self.calls = 0
        self.free = threading.Event()
        self.first = threading.Event()  # the batch does not begin to end before it was called
        self.more = []

    def __call__(self, event):
        self.calls += 1
        try:
            self.act(event)
        finally:
            self.first.set()

    def act(self, event):
        raise NotImplementedError


class Raises(Hostile):
    def act(self, event):
        raise ValueError("bad")


class Exits(Hostile):
    def act(self, event):
        raise SystemExit


class Blocks(Hostile):
    def act(self, event):
        self.first.set()
        self.free.wait(LONG)


class Slow(Hostile):
    def act(self, event):
        self.first.set()
        self.free.wait(0.02)


class Leaves(Hostile):
    def act(self, event):
        self.leader.unsubscribe(self)


class Asks(Hostile):
    def act(self, event):
        state = self.leader.get_state()
        assert event.batch_id in state.batches
        self.leader._engine.batch(event.batch_id).records()


class Cancels(Hostile):
    """A batch that has ended already, and one that nobody else knows of."""

    def act(self, event):
        for batch in self.more:
            batch.cancel()
            self.leader.cancel(batch.id)


class Executes(Hostile):
    def act(self, event):
        if event.type == "job_ended" and len(self.more) < 5:
            batch = self.leader.execute([int])
            self.more.append(batch)
            assert batch.wait(timeout=LONG)


class Subscribes(Hostile):
    def act(self, event):
        with self.leader.subscribe(batch=event.batch_id) as events:
            assert events.get(timeout=LONG).type == "batch_started"


LOGGED = {Raises, Exits}


@pytest.mark.parametrize(
    "kind",
    [Raises, Exits, Blocks, Slow, Leaves, Asks, Cancels, Executes, Subscribes],
    ids=str,
)
def test_a_batch_and_its_other_subscribers_are_not_bothered(caplog, kind):
    """Beside the hostile one there is one mailbox that is told before it, and one after."""
    with arrea_nb.Leader() as leader:
        hostile = kind(leader)
        if kind is Cancels:
            hostile.more = [leader.execute([int]), leader.execute(["sleep 300"])]
            assert hostile.more[0].wait(timeout=LONG)

        def work():
            print("line")
            assert hostile.first.wait(LONG)

        before = leader.subscribe()
        leader.subscribe(hostile)
        after = leader.subscribe()
        batch = leader.execute([*[work] * 20, "echo shell"], workers=4)
        try:
            assert batch.wait(timeout=LONG)
            assert batch.state == "succeeded"
            heard = _heard(before, batch)
            assert heard == _heard(after, batch)
            assert heard[0].type == "batch_started"
            assert sorted(event.job for event in heard if event.type == "job_ended") == list(range(21))
            if kind is Cancels:
                assert hostile.more[1].wait(timeout=LONG)
                assert [one.state for one in hostile.more] == ["succeeded", "cancelled"]
            if kind in LOGGED or kind is Leaves:
                assert hostile.calls == 1
        finally:
            hostile.free.set()
        assert leader.execute([int, "true"]).results(timeout=LONG)[0] == 0
    assert ("was removed" in caplog.text) == (kind in LOGGED)
    if kind not in LOGGED:
        assert caplog.text == ""


def test_a_subscriber_may_cancel_the_batch_that_it_hears_of():
    with arrea_nb.Leader() as leader:

        def cancel(event):
            if event.type == "job_started":
                leader.cancel(event.batch_id)

        events = leader.subscribe()
        leader.subscribe(cancel)
        batch = leader.execute(["sleep 300"] * 5, workers=1, timeout=None)
        assert batch.wait(timeout=LONG)
        assert [job.state for job in batch] == ["cancelled"] * 5
        assert [event.type for event in _heard(events, batch)].count("job_ended") == 5
