"""C15 and C16: what subscribers hear, in which order, and what a bad one costs."""

import logging
import logging.handlers
import threading
from queue import SimpleQueue

import pytest

import arrea_nb
from arrea_nb import _broadcast, _engine
from arrea_nb.events import BatchEnded, BatchStarted, JobEnded, JobOutput, JobRetrying, JobStarted

LONG = 60.0
LIFECYCLE = ("batch_started", "job_started", "job_retrying", "job_ended", "batch_ended")


class _Recorder:
    """A callback that keeps what it hears and says when the end of a batch came."""

    def __init__(self):
        self.heard = []
        self.ended = threading.Event()

    def __call__(self, event):
        self.heard.append(event)
        if isinstance(event, BatchEnded):
            self.ended.set()


def _read(mailbox, batches=1):
    heard = []
    while batches:
        heard.append(mailbox.get(timeout=LONG))
        batches -= isinstance(heard[-1], BatchEnded)
    return heard


# C15


def test_c15_every_subscriber_sees_the_same_order():
    first, second = arrea_nb.subscribe(), arrea_nb.subscribe()
    third, finished = [], threading.Event()

    def callback(event):
        third.append(event)
        if event.type == "custom_event":
            finished.set()

    arrea_nb.subscribe(callback)
    batches = [
        arrea_nb.execute(["echo a; echo b >&2", lambda: print("c"), "false", int] * 5, workers=4)
        for _ in range(2)
    ]
    for batch in batches:
        assert batch.wait(timeout=LONG)
    arrea_nb.notify_event({"type": "the end"})
    assert finished.wait(LONG)
    for mailbox in (first, second):
        assert [mailbox.get(timeout=LONG) for _ in third] == third


def test_c15_events_are_enqueued_under_the_leaders_lock(monkeypatch):
    """That makes the order one: outside of it two workers could enqueue in an order of their own."""
    leader = arrea_nb.Leader.instance()
    owned = []

    class Mailbox(_broadcast.Subscription):
        def deliver(self, event):
            owned.append(leader._engine.lock._is_owned())
            super().deliver(event)

    monkeypatch.setattr(_engine, "Subscription", Mailbox)
    with arrea_nb.subscribe() as events:
        batch = arrea_nb.execute(
            ["echo a; exit 1", lambda: print("b")], policy={"retries": 1, "retry_delay": 0}
        )
        assert batch.wait(timeout=LONG)
        arrea_nb.notify_event({"type": "the end"})
        heard = [events.get(timeout=LONG)]
        while heard[-1].type != "custom_event":
            heard.append(events.get(timeout=LONG))
    assert owned == [True] * len(heard)


def test_c15_within_a_batch_it_begins_with_batch_started_and_ends_with_batch_ended():
    with arrea_nb.subscribe() as events:
        batch = arrea_nb.execute(
            ["echo a", "exit 3", "", lambda: print("b")], policy={"retries": 1, "retry_delay": 0}, name="mine"
        )
        heard = _read(events)
    assert isinstance(heard[0], BatchStarted)
    assert (heard[0].name, heard[0].total, heard[0].start_failures) == ("mine", 4, (2,))
    assert isinstance(heard[-1], BatchEnded)
    assert (heard[-1].state, heard[-1].counts) == ("failed", batch.counts)
    of = {
        job: [event.type for event in heard if getattr(event, "job", None) == job]
        for job in range(len(batch))
    }
    assert of[0] == ["job_started", "job_output", "job_ended"]
    assert of[1] == ["job_started", "job_retrying", "job_started", "job_ended"]
    # A job that never started has a JobEnded only.
    assert of[2] == ["job_ended"]
    assert of[3][0] == "job_started"
    assert of[3][-1] == "job_ended"
    attempts = [event.attempt for event in heard if isinstance(event, JobStarted) and event.job == 1]
    assert attempts == [1, 2]
    retrying = next(event for event in heard if isinstance(event, JobRetrying))
    assert (retrying.attempt, retrying.delay, retrying.error) == (1, 0.0, "exit 3")
    ended = {event.job: event for event in heard if isinstance(event, JobEnded)}
    assert (ended[1].exit_code, ended[1].error, ended[2].duration) == (3, "exit 3", None)
    pids = {event.job: event.pid for event in heard if isinstance(event, JobStarted)}
    assert pids[0] == batch[0].pid
    assert pids[3] is None
    assert [event.at for event in heard] == sorted(event.at for event in heard)


def test_c15_a_late_subscriber_of_a_batch_hears_what_it_missed(tmp_path):
    line = f"until [ -e {tmp_path}/go ]; do sleep 0.01; done"
    with arrea_nb.subscribe() as all_events:
        batch = arrea_nb.execute(["true", line, "true"], workers=1)
        while not (isinstance(event := all_events.get(timeout=LONG), JobStarted) and event.job == 1):
            pass
        late = arrea_nb.subscribe(batch=batch.id)
        (tmp_path / "go").touch()
        heard = list(late)
    assert [(event.type, getattr(event, "job", None)) for event in heard] == [
        ("batch_started", None),
        ("job_ended", 0),
        ("job_started", 1),
        ("job_ended", 1),
        ("job_started", 2),
        ("job_ended", 2),
        ("batch_ended", None),
    ]


def test_c15_a_subscriber_of_an_ended_batch_hears_it_once():
    """Iteration ends after BatchEnded."""
    batch = arrea_nb.execute(["true", lambda: 1 / 0])
    assert batch.wait(timeout=LONG)
    heard = list(arrea_nb.subscribe(batch=batch))
    assert [event.type for event in heard] == ["batch_started", "job_ended", "job_ended", "batch_ended"]
    recorder = _Recorder()
    arrea_nb.subscribe(recorder, batch=batch)
    assert recorder.ended.wait(LONG)
    assert [event.type for event in recorder.heard] == [event.type for event in heard]


def test_c15_a_subscriber_of_one_batch_hears_no_other():
    go = threading.Event()
    batch = arrea_nb.execute([lambda: go.wait(LONG)])
    with arrea_nb.subscribe(batch=batch) as events:
        other = arrea_nb.execute([int])
        assert other.wait(timeout=LONG)
        arrea_nb.notify_event({"type": "mine"})
        go.set()
        assert {event.batch_id for event in events} == {batch.id}


# C16


def test_c16_callbacks_run_on_a_thread_of_their_own_and_not_under_the_lock():
    recorder = []
    done = threading.Event()

    def callback(event):
        # Whatever asks the Leader from another thread would wait for the lock, if this one had it.
        asked = threading.Thread(target=arrea_nb.get_state)
        asked.start()
        asked.join(LONG)
        recorder.append((threading.current_thread(), asked.is_alive()))
        if isinstance(event, BatchEnded):
            done.set()

    arrea_nb.subscribe(callback)
    batch = arrea_nb.execute(["true", int])
    assert batch.wait(timeout=LONG)
    assert done.wait(LONG)
    assert len({thread for thread, _ in recorder}) == 1
    assert recorder[0][0] is not threading.current_thread()
    assert not any(alive for _, alive in recorder)


def test_c16_a_callback_that_raises_is_logged_and_removed(monkeypatch):
    lines = SimpleQueue()
    logger = logging.getLogger("arrea_nb")
    monkeypatch.setattr(logger, "handlers", [logging.handlers.QueueHandler(lines)])
    monkeypatch.setattr(logger, "propagate", False)
    calls = []

    def callback(event):
        calls.append(event)
        raise ValueError("bad subscriber")

    arrea_nb.subscribe(callback)
    good = _Recorder()
    arrea_nb.subscribe(good)
    batch = arrea_nb.execute(["true"] * 5)
    assert batch.wait(timeout=LONG)
    record = lines.get(timeout=LONG)
    assert "raised on batch_started and was removed" in record.getMessage()
    assert good.ended.wait(LONG)
    assert batch.state == "succeeded"
    assert len(good.heard) >= 12
    second = arrea_nb.execute([int])
    good.ended.clear()
    assert second.wait(timeout=LONG)
    assert good.ended.wait(LONG)
    assert len(calls) == 1
    assert [one.callback for one in arrea_nb.get_state().subscribers] == [good]


def test_c16_a_subscription_tells_whose_it_is_and_what_it_lost():
    with arrea_nb.subscribe() as mailbox, arrea_nb.subscribe(print) as printing:
        assert repr(mailbox) == "<Subscription 'mailbox' batch=None dropped=0>"
        assert repr(printing) == f"<Subscription {print!r} batch=None dropped=0>"


def test_c16_a_callback_that_hangs_costs_the_batch_nothing():
    go, inside = threading.Event(), threading.Event()
    recorder = _Recorder()

    def callback(event):
        inside.set()
        go.wait(LONG)
        recorder(event)

    subscription = arrea_nb.subscribe(callback, mailbox_size=10)
    batch = arrea_nb.execute([lambda: [print("line") for _ in range(100)]] * 5)
    assert batch.wait(timeout=LONG)
    assert inside.wait(LONG)
    assert batch.state == "succeeded"
    dropped = subscription.dropped
    go.set()
    assert recorder.ended.wait(LONG)
    outputs = [event for event in recorder.heard if isinstance(event, JobOutput)]
    assert dropped > 0
    assert len(outputs) < 500
    lifecycle = [event.type for event in recorder.heard if event.type in LIFECYCLE]
    assert sorted(lifecycle) == sorted(["batch_started", "batch_ended", *["job_started", "job_ended"] * 5])


def test_c16_output_past_the_mailbox_is_dropped_and_counted_and_lifecycle_never():
    mailbox = arrea_nb.subscribe(mailbox_size=5)
    batch = arrea_nb.execute([lambda: [print("x", end="") for _ in range(100)]] * 20)
    assert batch.wait(timeout=LONG)
    for _ in range(3):
        arrea_nb.notify_event({"type": "dropped too"})
    heard = _read(mailbox)
    outputs = sum(isinstance(event, JobOutput) for event in heard)
    assert outputs <= 5
    assert mailbox.dropped == 20 * 100 - outputs + 3
    assert sum(event.type in LIFECYCLE for event in heard) == 2 + 2 * 20


def test_c16_a_mailbox_holds_8_mib_of_text_at_the_most():
    mailbox = arrea_nb.subscribe(mailbox_size=1_000_000)
    batch = arrea_nb.execute([lambda: [print("x" * (1 << 20), end="") for _ in range(12)]])
    assert batch.wait(timeout=LONG)
    heard = _read(mailbox)
    assert sum(isinstance(event, JobOutput) for event in heard) == 8
    assert mailbox.dropped == 4
    # Once they are read there is room again.
    batch = arrea_nb.execute([lambda: print("x" * (1 << 20), end="")])
    assert sum(isinstance(event, JobOutput) for event in _read(mailbox)) == 1


def test_the_same_callback_twice_is_one_subscription():
    class Listener:
        def hear(self, event):
            """A bound method is a new object each time."""

    listener = Listener()
    first = arrea_nb.subscribe(listener.hear)
    assert arrea_nb.subscribe(listener.hear) is first
    assert len(arrea_nb.get_state().subscribers) == 1
    arrea_nb.unsubscribe(listener.hear)
    assert arrea_nb.get_state().subscribers == ()
    arrea_nb.unsubscribe(listener.hear)
    arrea_nb.unsubscribe(first)
    arrea_nb.unsubscribe(print)


def test_one_callback_for_two_batches_is_two_subscriptions():
    go = threading.Event()
    ended = SimpleQueue()

    def hear(event):
        if isinstance(event, BatchEnded):
            ended.put(event.batch_id)

    batches = [arrea_nb.execute([lambda: go.wait(LONG)]) for _ in range(2)]
    subscriptions = [arrea_nb.subscribe(hear, batch=batch) for batch in batches]
    assert subscriptions[0] is not subscriptions[1]
    assert arrea_nb.subscribe(hear, batch=batches[1]) is subscriptions[1]
    assert len(arrea_nb.get_state().subscribers) == 2
    go.set()
    assert {ended.get(timeout=LONG) for _ in batches} == {batch.id for batch in batches}


def test_after_unsubscribe_a_callback_hears_nothing_more():
    go, inside = threading.Event(), threading.Event()
    calls = []

    def callback(event):
        calls.append(event)
        inside.set()
        go.wait(LONG)

    arrea_nb.subscribe(callback)
    batch = arrea_nb.execute([int] * 10)
    assert batch.wait(timeout=LONG)
    assert inside.wait(LONG)
    arrea_nb.unsubscribe(callback)
    go.set()
    for thread in threading.enumerate():
        if thread.name == "arrea-subscriber":
            thread.join(LONG)
    assert len(calls) == 1


def test_a_closed_mailbox_ends_whoever_waits_in_it():
    mailbox = arrea_nb.subscribe()
    heard = []
    reader = threading.Thread(target=lambda: heard.extend(mailbox))
    reader.start()
    arrea_nb.notify_event({"type": "one"})
    mailbox.close()
    reader.join(LONG)
    assert not reader.is_alive()
    assert [event.data["type"] for event in heard] in (["one"], [])
    mailbox.close()
    with pytest.raises(StopIteration):
        mailbox.get(timeout=LONG)


def test_events_are_frozen():
    with arrea_nb.subscribe() as events:
        data = {"type": "mine"}
        arrea_nb.notify_event(data)
        event = events.get(timeout=LONG)
    data["type"] = "changed"
    assert event.data["type"] == "mine"
    with pytest.raises(AttributeError):
        event.at = 0.0
    with pytest.raises(TypeError):
        event.data["type"] = "changed"
