"""C2, C3, C7, C9, C10, C15: the real Leader with scripted callables, judged by what a user sees.

Each attempt waits for an order of the test: print, tell progress, return, raise, run into its deadline.
Batches come, jobs and batches are cancelled, in any sequence. Which job is next is the Leader's choice; what
must hold whatever it chooses is checked after every order, and the limits at every event.
"""

import math
import queue
import sys
import time
from collections import Counter
from itertools import pairwise

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

import arrea_nb
from arrea_nb.errors import JobCancelled, JobTimeout

LONG = 30.0
AT_ONCE = 3
ENDED = {"succeeded", "failed", "timed_out", "cancelled", "skipped"}
# Any of many: reduced to how many there are when it is used.
pick = st.integers(0, 10_000)


class Refusal(Exception):  # noqa: N818 - what a scripted job raises
    pass


class Script:
    """One job: does what it is told, and counts its attempts itself."""

    def __init__(self):
        self.orders = queue.SimpleQueue()
        self.entered = queue.SimpleQueue()
        self.attempts = 0
        self.steps = 0

    def __call__(self):
        self.attempts += 1
        self.entered.put(None)
        while True:
            try:
                order = self.orders.get_nowait()
            except queue.Empty:
                time.sleep(0.0005)  # in Python, where a stop can reach it
                continue
            if order == "print":
                sys.stdout.write(
                    f"printed in {self.attempts}\n"
                )  # print() would write the end of the line by itself
            elif order == "progress":
                self.steps += 1  # it is news each time
                arrea_nb.progress(self.steps, 1000)
            elif order == "raise":
                raise Refusal(self.attempts)
            else:
                return self.attempts


class Told:
    """One batch, and what its events said of it."""

    def __init__(self, batch, scripts):
        self.batch = batch
        self.scripts = scripts
        self.states = ["queued"] * len(scripts)
        self.started = [0] * len(scripts)
        self.began = self.ended = False
        self.first = []  # jobs in the order of their first attempts
        self.halted = None

    def hear(self, event):
        assert not self.ended, f"{event} after the end"
        assert self.began == (event.type != "batch_started"), f"{event} out of place"
        if event.type == "batch_started":
            self.began = True
        elif event.type == "batch_ended":
            self.ended = True
            assert self.all_ended
            assert {str(key): count for key, count in event.counts.items() if count} == Counter(self.states)
        else:
            getattr(self, event.type)(event, self.states[event.job])

    def job_started(self, event, before):
        assert before in {"queued", "waiting"}
        self.states[event.job] = "running"
        self.started[event.job] += 1
        self.scripts[event.job].entered.get(
            timeout=LONG
        )  # each start is one call, and no call is without one
        assert event.attempt == self.started[event.job]
        if event.attempt == 1:
            self.first.append(event.job)
        assert self.states.count("running") <= self.batch.workers

    def job_output(self, event, before):
        assert before == "running"
        assert event.text == f"printed in {self.started[event.job]}\n"

    def job_progress(self, event, before):
        assert before == "running"
        assert event.done == self.scripts[event.job].steps

    def job_retrying(self, event, before):
        assert before == "running"
        assert event.attempt == self.started[event.job] <= self.batch.policy.retries
        self.states[event.job] = "waiting"

    def job_ended(self, event, before):
        assert before not in ENDED, "two ends"
        assert before == "running" or event.state in {"cancelled", "skipped"}
        assert (event.state == "skipped") == (self.halted is not None and before != "running")
        self.states[event.job] = str(event.state)
        if event.state in {"failed", "timed_out"} and self.batch.policy.on_error != "continue":
            self.halted = self.halted or self.batch.policy.on_error

    @property
    def all_ended(self):
        return all(state in ENDED for state in self.states)

    def is_last(self, index):
        """Whether a failure of its attempt is its end."""
        return self.halted is not None or self.started[index] > self.batch.policy.retries

    def wants(self):
        """How many of its jobs should run if there is room; None while it is still being stopped."""
        open_jobs = sum(state not in ENDED for state in self.states)
        if self.halted == "abort":
            return None if open_jobs else 0
        if self.halted == "stop":
            running = self.states.count("running")
            return None if open_jobs > running else running
        waiting = self.states.count("waiting") if self.batch.policy.retry_delay else 0
        return min(self.batch.workers, open_jobs - waiting)


class LeaderMachine(RuleBasedStateMachine):
    def __init__(self):
        super().__init__()
        self.leader = arrea_nb.Leader(max_workers=AT_ONCE, grace=LONG)
        self.events = self.leader.subscribe()
        self.told = {}

    # What the events say

    def hear(self, until):
        """Reads events until what the last order leads to has been told."""
        while not until():
            event = self.events.get(timeout=LONG)
            self.told[event.batch_id].hear(event)
            assert len(self.live()) <= AT_ONCE

    def live(self):
        return [
            (told, index)
            for told in self.told.values()
            for index, state in enumerate(told.states)
            if state == "running"
        ]

    def any_live(self, number):
        # No preconditions: which job runs may differ when hypothesis tries the same again, and so may they.
        live = self.live()
        return live[number % len(live)] if live else (None, None)

    def settled(self):
        """Whether as many jobs run as the limits allow, and each batch said that it began and ended."""
        wants = [told.wants() for told in self.told.values()]
        return (
            None not in wants
            and len(self.live()) == min(AT_ONCE, sum(wants))
            and all(told.began and told.ended == told.all_ended for told in self.told.values())
        )

    def attempt_over(self, told, index):
        """The attempt that runs was told to end: it does, and whoever can start does."""
        attempt = told.started[index]
        self.hear(lambda: told.states[index] != "running" or told.started[index] > attempt)
        self.hear(self.settled)

    # The orders

    @rule(
        count=st.integers(0, 5),
        workers=st.integers(1, 3),
        retries=st.integers(0, 2),
        delay=st.sampled_from([0.0, 0.0, LONG * 2]),
        on_error=st.sampled_from(["continue", "continue", "stop", "abort"]),
    )
    def execute(self, count, workers, retries, delay, on_error):
        if sum(not told.ended for told in self.told.values()) == 4:
            return
        scripts = [Script() for _ in range(count)]
        policy = arrea_nb.Policy(on_error, retries=retries, retry_delay=delay)
        # No event is read before the batch can be told apart.
        batch = self.leader.execute(scripts, workers=workers, timeout=3600.0, policy=policy)
        self.told[batch.id] = Told(batch, scripts)
        self.hear(self.settled)

    @rule(number=pick, what=st.sampled_from(["print", "progress"]))
    def tell(self, number, what):
        told, index = self.any_live(number)
        if told is None:
            return
        job = told.batch[index]
        before = job.output_bytes
        told.scripts[index].orders.put(what)
        event = self.events.get(timeout=LONG)
        told.hear(event)
        assert (event.type, event.job) == ({"print": "job_output", "progress": "job_progress"}[what], index)
        if what == "print":
            assert job.output_bytes == before + f"printed in {job.attempt}\n".encode()

    @rule(number=pick)
    def let_return(self, number):
        told, index = self.any_live(number)
        if told is None:
            return
        told.scripts[index].orders.put("return")
        self.attempt_over(told, index)
        assert told.states[index] == "succeeded"
        assert told.batch[index].result(timeout=LONG) == told.started[index]

    @rule(number=pick)
    def let_fail(self, number):
        told, index = self.any_live(number)
        if told is None:
            return
        last = told.is_last(index)
        told.scripts[index].orders.put("raise")
        self.attempt_over(told, index)
        assert (told.states[index] == "failed") == last
        assert isinstance(told.batch[index].error if last else told.batch[index].attempts[-1].error, Refusal)

    @rule(number=pick)
    def let_time_out(self, number):
        told, index = self.any_live(number)
        if told is None:
            return
        last = told.is_last(index)
        engine, record = self.leader._engine, told.batch[index]._record
        slots = [one for one in engine.workers if one.job is record]
        while slots[0].slot is None:
            time.sleep(0.001)
        with engine.hold, engine.lock, engine.section:
            slots[0].slot.paused = -math.inf  # its deadline has passed
            engine.timer.plan(0.0)
        self.attempt_over(told, index)
        assert (told.states[index] == "timed_out") == last
        if last:
            assert isinstance(told.batch[index].error, JobTimeout)

    @rule(number=pick, which=pick)
    def cancel_a_job(self, number, which):
        some = [told for told in self.told.values() if told.states]
        if not some:
            return
        told = some[number % len(some)]
        index = which % len(told.states)
        before = told.states[index]
        told.batch[index].cancel()
        self.hear(lambda: told.states[index] in ENDED)
        assert told.states[index] == (before if before in ENDED else "cancelled")
        self.hear(self.settled)

    @rule(number=pick)
    def cancel_a_batch(self, number):
        if not self.told:
            return
        told = list(self.told.values())[number % len(self.told)]
        before = list(told.states)
        told.batch.cancel()
        self.hear(lambda: told.ended)
        assert told.states == [state if state in ENDED else "cancelled" for state in before]
        self.hear(self.settled)

    # What must hold

    @invariant()
    def between_two_orders_nothing_happens(self):
        assert self.events._queue.empty()

    @invariant()
    def what_a_user_sees_is_what_was_told(self):
        everything = [(told, index) for told in self.told.values() for index in range(len(told.states))]
        for told, index in everything:
            job = told.batch[index]
            assert str(job.state) == told.states[index]
            assert job.attempt == told.started[index] == told.scripts[index].attempts
        for told in self.told.values():
            counts = {str(state): count for state, count in told.batch.counts.items() if count}
            assert counts == Counter(told.states)
            assert told.batch.done() == told.ended
            assert all(one < other for one, other in pairwise(told.first)), "first attempts out of order"
        self.counters(everything)

    def counters(self, everything):
        state = self.leader.get_state()
        ends = Counter(told.states[index] for told, index in everything if told.started[index])
        assert dict(state.stats) == {
            "started": sum(told.started[index] > 0 for told, index in everything),
            "finished": ends["succeeded"],
            "failed": ends["failed"] + ends["timed_out"],
            "cancelled": ends["cancelled"] + ends["skipped"],
            "running": ends["running"] + ends["waiting"],
        }
        assert sorted((job.batch_id, job.index) for job in state.workers.values()) == sorted(
            (told.batch.id, index) for told, index in self.live()
        )
        assert state.abandoned == 0

    def teardown(self):
        """Whatever runs then, closing the Leader loses nothing."""
        self.leader.close()
        for told in self.told.values():
            before = [state in ENDED for state in told.states]
            self.hear(lambda told=told: told.ended)
            assert told.batch.done()
            for job, ended in zip(told.batch, before, strict=True):
                assert ended or isinstance(job.error, JobCancelled)
        assert list(self.events) == []
        self.what_a_user_sees_is_what_was_told()


TestLeader = LeaderMachine.TestCase
