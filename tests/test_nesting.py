"""C1, C2, C7, C8: callables that execute batches of their own, and wait for them."""

import asyncio
import contextvars
import itertools
import signal
import threading
import time
from contextlib import suppress
from queue import SimpleQueue

import pytest

import arrea_nb
from arrea_nb.errors import JobCancelled

LONG = 60.0
SHORT = 0.1
# Tells that it is there, and ends at nothing but SIGKILL.
DEAF = f"trap '' TERM; echo up; while :; do sleep {LONG}; done"


def _until(holds):
    """Waits until this holds."""
    until = time.monotonic() + LONG
    while not holds():
        assert time.monotonic() < until
        time.sleep(0.002)


def _forever():
    """A callable that ends when it is stopped."""
    until = time.monotonic() + LONG
    while time.monotonic() < until:
        time.sleep(0.005)


def _places(leader):
    return leader._engine.ledger.places


class _Watched:
    """The number of places that are taken, at each change of it."""

    def __init__(self, leader):
        places = _places(leader)
        self.seen = seen = []

        class Noted(type(places)):
            @property
            def taken(self):
                return self._taken

            @taken.setter
            def taken(self, value):
                seen.append(value)
                self._taken = value

        taken = places.__dict__.pop("taken")
        places.__class__ = Noted
        places.taken = taken


# Places


@pytest.mark.parametrize("way", ["wait", "await"])
def test_who_waited_for_its_own_batch_goes_on_though_many_others_are_queued(way):
    """Its own batch has its turn among the others; once that has ended, nobody is before it."""
    ran = itertools.count()
    queued = SimpleQueue()
    with arrea_nb.Leader(max_workers=1) as leader:

        def outer():
            queued.get(timeout=LONG)
            before = leader.execute([lambda: next(ran)]).results(timeout=LONG)[0]
            return next(ran) - before

        async def awaits():
            queued.get(timeout=LONG)
            before = (await leader.execute([lambda: next(ran)]))[0]
            return next(ran) - before

        def other():
            next(ran)
            time.sleep(0.005)

        first = leader.execute([outer if way == "wait" else awaits])
        others = [leader.execute([other] * 3) for _ in range(20)]
        queued.put(None)
        assert first.results(timeout=LONG)[0] <= 3
        assert all(batch.wait(timeout=LONG) for batch in others)
        assert _places(leader).taken == 0


def test_a_coroutines_loop_goes_on_while_it_awaits_a_batch_and_while_it_waits_for_its_place():
    begun, ticks, hold = SimpleQueue(), [], threading.Event()
    with arrea_nb.Leader(max_workers=1) as leader:

        async def outer():
            async def tick():
                while True:
                    ticks.append(None)
                    await asyncio.sleep(0.001)

            ticking = asyncio.ensure_future(tick())
            inner = leader.execute([lambda: (begun.put("inner"), hold.wait(LONG))[1]])
            value = await inner
            ticking.cancel()
            return value

        first = leader.execute([outer])
        assert begun.get(timeout=LONG) == "inner"
        seen = len(ticks)
        _until(lambda: len(ticks) > seen + 5)
        # Whoever is next takes the place that the outer one needs: it does not end before it is told to.
        release = threading.Event()
        leader.max_workers = 2
        leader.execute([lambda: (begun.put("other"), release.wait(LONG))])
        assert begun.get(timeout=LONG) == "other"
        leader.max_workers = 1
        hold.set()
        _until(lambda: _places(leader)._returning)
        seen = len(ticks)
        _until(lambda: len(ticks) > seen + 5)
        assert not first.done()
        release.set()
        assert first.results(timeout=LONG) == [[True]]
        assert _places(leader).taken == 0


@pytest.mark.parametrize("way", ["to_thread", "threads"])
def test_threads_of_a_callable_that_wait_give_up_one_place_together(way):
    with arrea_nb.Leader(max_workers=2) as leader:
        watched = _Watched(leader)
        gates = [threading.Event() for _ in range(3)]

        def inner(at):
            return leader.execute([lambda: gates[at].wait(LONG)])

        def open_gates():
            for gate in gates:
                time.sleep(0.01)
                gate.set()

        async def with_to_thread():
            batches = [inner(at) for at in range(3)]
            waits = [asyncio.to_thread(batch.wait, LONG) for batch in batches]
            return await asyncio.gather(*waits)

        def with_threads():
            done = []
            threads = []
            for at in range(3):
                context, batch = contextvars.copy_context(), inner(at)
                threads.append(
                    threading.Thread(target=context.run, args=(lambda b=batch: done.append(b.wait(LONG)),))
                )
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            return done

        opener = threading.Thread(target=open_gates)
        batch = leader.execute([with_to_thread if way == "to_thread" else with_threads])
        opener.start()
        assert batch.results(timeout=LONG) == [[True] * 3]
        opener.join()
        assert all(0 <= taken <= 2 for taken in watched.seen)
        assert _places(leader).taken == 0


def test_one_thread_that_comes_back_takes_no_place_from_another_that_waits_still():
    """One has to wait for the place; another begins to wait meanwhile, and needs it to be free."""
    with arrea_nb.Leader(max_workers=1) as leader:
        taken, release, second = threading.Event(), threading.Event(), threading.Event()

        def outer():
            def waits():
                assert leader.execute([int]).wait(LONG)

            def blocks():
                taken.set()
                release.wait(LONG)

            inner = leader.execute([int, blocks], workers=1)
            context = contextvars.copy_context()

            def first_ends():
                inner[0].result(timeout=LONG)  # the place is taken by then: it waits to come back

            thread = threading.Thread(target=context.run, args=(first_ends,))
            thread.start()
            assert taken.wait(LONG)
            _until(lambda: bool(_places(leader)._returning))
            second.set()
            waits()  # the first has asked for the place, which this one must leave free
            thread.join()
            return "ended"

        batch = leader.execute([outer])
        assert second.wait(LONG)
        time.sleep(0.05)  # it waits by then; if it does not, nothing fails that should not
        release.set()
        assert batch.results(timeout=LONG) == ["ended"]
        assert _places(leader).taken == 0


# Who owns a batch


def _nested(how, leader, told, inner_leader):
    """A callable that executes what never ends, two levels down, and waits for it."""

    def innermost():
        batch = inner_leader.execute([f"echo up; sleep {LONG}"], timeout=None)
        told.put(batch)
        batch.wait()

    def between():
        batch = leader.execute([innermost], timeout=None)
        told.put(batch)
        batch.wait()

    def in_a_thread():
        def waits():
            with suppress(JobCancelled):
                between()

        context = contextvars.copy_context()
        threading.Thread(target=context.run, args=(waits,), daemon=True).start()
        _forever()

    def works_on():
        batch = leader.execute([innermost], timeout=None)
        told.put(batch)
        _forever()

    return {"waits": between, "from a thread": in_a_thread, "works on": works_on}[how]


@pytest.mark.stops_callables
@pytest.mark.parametrize("where", ["its own Leader", "another"])
@pytest.mark.parametrize(
    ("how", "why"),  # waiting for its own batch does not count towards its deadline, from whichever thread
    [("waits", "cancel"), ("from a thread", "cancel"), ("works on", "cancel"), ("works on", "timeout")],
)
def test_what_a_stopped_callable_has_executed_is_cancelled_with_it(where, how, why):
    told = SimpleQueue()
    with arrea_nb.Leader(grace=LONG) as leader, arrea_nb.Leader(grace=LONG) as other:
        outer = leader.execute(
            [_nested(how, leader, told, leader if where == "its own Leader" else other)],
            timeout=1.0 if why == "timeout" else None,
        )
        batches = [told.get(timeout=LONG), told.get(timeout=LONG)]
        if why == "cancel":
            outer.cancel()
        assert outer.wait(timeout=LONG)
        assert all(batch.wait(timeout=LONG) for batch in batches)
        assert outer[0].state == {"cancel": "cancelled", "timeout": "timed_out"}[why]
        assert [batch.state for batch in batches] == ["cancelled", "cancelled"]


def test_what_a_callable_executed_runs_on_once_it_returned_by_itself():
    go = threading.Event()
    with arrea_nb.Leader() as leader:
        outer = leader.execute([lambda: leader.execute([lambda: go.wait(LONG)])])
        inner = outer.results(timeout=LONG)[0]
        outer.cancel()
        assert not inner.done()
        go.set()
        assert inner.results(timeout=LONG) == [True]


def test_what_a_callable_executed_runs_on_once_it_raised_by_itself():
    go, told = threading.Event(), SimpleQueue()
    with arrea_nb.Leader() as leader:

        def fails():
            told.put(leader.execute([lambda: go.wait(LONG)]))
            raise ValueError

        outer = leader.execute([fails])
        inner = told.get(timeout=LONG)
        assert outer.wait(timeout=LONG)
        go.set()
        assert inner.results(timeout=LONG) == [True]


@pytest.mark.stops_callables
def test_what_a_finally_executes_runs_until_the_grace_is_over():
    told, began = SimpleQueue(), threading.Event()
    with arrea_nb.Leader(grace=1.0) as leader:

        def cleans_up():
            try:
                began.set()
                _forever()
            finally:
                told.put(leader.execute(["true"]).results(timeout=LONG)[0].exit_code)
                told.put(leader.execute([f"echo up; sleep {LONG}"], timeout=None))

        outer = leader.execute([cleans_up], timeout=None)
        assert began.wait(LONG)
        stopped_at = time.monotonic()
        outer.cancel()
        assert told.get(timeout=LONG) == 0
        late = told.get(timeout=LONG)
        assert outer.wait(timeout=LONG)
        assert late.wait(timeout=LONG)
        assert time.monotonic() - stopped_at >= 0.9
        assert (outer[0].state, late.state) == ("cancelled", "cancelled")


@pytest.mark.stops_callables
def test_an_abandoned_callable_can_execute_nothing_any_more():
    began, go, told = threading.Event(), threading.Event(), SimpleQueue()
    with arrea_nb.Leader(grace=SHORT) as leader:

        def deaf():
            began.set()
            try:
                go.wait(LONG)
            finally:
                try:
                    told.put(leader.execute(["true"]))
                except JobCancelled as error:
                    told.put(error)

        outer = leader.execute([deaf], timeout=None)
        assert began.wait(LONG)
        outer.cancel()
        assert outer.wait(timeout=LONG)
        go.set()
        assert isinstance(told.get(timeout=LONG), JobCancelled)
        assert len(leader._engine.batches()) == 1


@pytest.mark.stops_callables
@pytest.mark.parametrize("way", ["wait", "result", "as_completed", "await", "run", "thread"])
def test_waiting_for_an_own_batch_does_not_count_towards_the_deadline(way):
    """But what it does besides counts."""
    began, go = threading.Event(), threading.Event()

    def inner():
        began.set()
        go.wait(LONG)
        return 7

    with arrea_nb.Leader(grace=LONG) as leader:

        def execute():
            return leader.execute([inner], timeout=None)

        async def awaits():
            return await execute()

        async def in_thread():
            await asyncio.to_thread(execute().wait)
            return [7]

        ways = {
            "wait": lambda: execute().results(),
            "result": lambda: [execute()[0].result()],
            "as_completed": lambda: [job.result() for job in execute().as_completed()],
            "await": awaits,
            "run": lambda: leader.run([inner], timeout=None),
            "thread": in_thread,
        }

        def outer():
            return ways[way]()

        batch = leader.execute(
            [awaits if way == "await" else in_thread if way == "thread" else outer], timeout=0.3
        )
        assert began.wait(LONG)
        assert not batch.wait(timeout=0.6)
        go.set()
        assert batch.results(timeout=LONG) == [[7]]


@pytest.mark.stops_callables
def test_what_a_callable_does_after_it_waited_counts_towards_its_deadline():
    with arrea_nb.Leader(grace=LONG) as leader:

        def outer():
            leader.execute([lambda: time.sleep(0.5)], timeout=None).wait()
            _forever()

        batch = leader.execute([outer], timeout=0.3)
        assert batch.wait(timeout=LONG)
    assert batch[0].state == "timed_out"
    assert batch[0].duration >= 0.7


@pytest.mark.stops_callables
def test_waiting_for_a_batch_of_another_counts_towards_the_deadline():
    go = threading.Event()
    with arrea_nb.Leader(grace=LONG) as leader:
        others = leader.execute([lambda: go.wait(LONG)], timeout=None)
        batch = leader.execute([others.wait], timeout=0.3)
        assert batch.wait(timeout=LONG)
        go.set()
    assert batch[0].state == "timed_out"


@pytest.mark.stops_callables
@pytest.mark.parametrize("verb", ["run", "map"])
def test_run_in_a_stopped_callable_cancels_and_raises_without_waiting_for_the_nested_end(verb):
    """The nested job ignores SIGTERM, and has a long grace."""
    told, raised = SimpleQueue(), SimpleQueue()
    with arrea_nb.Leader(grace=LONG) as leader:
        with leader.subscribe() as events:

            def outer():
                try:
                    if verb == "run":
                        leader.run([DEAF], timeout=None)
                    else:
                        leader.map(lambda _: told.put(None) or deaf.wait(LONG), [1], timeout=None)
                except BaseException as error:
                    raised.put(type(error))
                    raise

            deaf = threading.Event()
            batch = leader.execute([outer], timeout=None)
            if verb == "run":
                event = events.get(timeout=LONG)
                while event.type != "job_output" or event.text != "up\n":
                    event = events.get(timeout=LONG)
                nested = leader._engine.batch(event.batch_id)
            else:
                told.get(timeout=LONG)
                (nested,) = [one for one in leader._engine.batches() if one.id != batch.id]
            batch.cancel()
            raised.get(timeout=LONG / 4)
            assert batch.wait(timeout=LONG / 4)
            assert not nested.done()
            deaf.set()
        leader.close(grace=0.1)
    assert (batch[0].state, nested.state) == ("cancelled", "cancelled")
    assert verb == "map" or nested[0].signal == signal.SIGKILL
