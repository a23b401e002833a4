"""C2, C3, C9, C10: the ledger against a plain model, by every verb in any order, over several batches.

The model knows who holds a place and what state each job should have; what the ledger may choose (whose turn
it is) is judged by rules: nobody waits who could run, and no batch is served twice while another waits.
"""

import contextvars
import copy
import itertools
from queue import Empty, SimpleQueue

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from arrea_nb._commands import BadCommand, PythonCall, ShellCommand
from arrea_nb._ledger import Ledger
from arrea_nb._options import BatchOptions
from arrea_nb._policy import Decision, Policy
from arrea_nb._records import BatchRecord, JobRecord, Outcome
from arrea_nb.errors import InvalidCommandError, JobCancelled, JobTimeout
from arrea_nb.events import JobState

CANCELLED, SKIPPED, TIMED_OUT = JobState.CANCELLED, JobState.SKIPPED, JobState.TIMED_OUT
ENDED = {"succeeded", "failed", "timed_out", "cancelled", "skipped"}
MAKE = {
    "p": lambda: PythonCall(int),
    "s": lambda: ShellCommand(line="true"),
    "b": lambda: BadCommand(InvalidCommandError("bad"), "bad"),
}
# Any of many: reduced to how many there are when it is used.
pick = st.integers(0, 10_000)


class Model:
    """What a job should be."""

    def __init__(self, job, kind):
        self.job = job
        self.kind = kind
        self.state = "failed" if kind == "b" else "queued"
        self.held = self.away = self.began = False
        self.stop = None
        self.attempt = 0
        self.due = None  # when its retry is, or 0 once it is in the queue
        self.bell = None


class LedgerMachine(RuleBasedStateMachine):
    def __init__(self):
        super().__init__()
        self.now = 0.0
        self.events = []
        self.read = 0  # how many events were judged
        self.ledger = Ledger(self.events.append, 3)
        self.batches = {}  # from the id to the record and its models
        self.heard = {}  # from the id to what its events said
        self.served = {}  # pairs of batches: how often the second was served while the first waited
        self.strays = 0
        self.queue = {}  # from the id to the models whose retry is due, in that order
        self.numbers = itertools.count()

    # What the model says

    def models(self, wanted):
        return [model for _, models in self.batches.values() for model in models if wanted(model)]

    def places(self):
        return len(self.models(lambda model: model.held and not model.away))

    def running(self, models):
        return sum(model.held and not model.away for model in models)

    def next_of(self, key):
        """The job that this batch should start next, if it could use a place."""
        batch, models = self.batches[key]
        if self.running(models) >= batch.workers:
            return None
        for model in self.queue[key]:
            return model
        return next((model for model in models if model.state == "queued" and not model.held), None)

    def end(self, model, state):
        model.state = state
        model.held = model.away = False
        model.due = None
        key = model.job.batch.id
        if model in self.queue[key]:
            self.queue[key].remove(model)

    def any_of(self, number, wanted):
        found = self.models(wanted)
        return found[number % len(found)] if found else None

    # The rules

    @precondition(lambda self: len(self.batches) < 4)
    @rule(kinds=st.lists(st.sampled_from("ppssb"), max_size=7), workers=st.integers(1, 3))
    def admit(self, kinds, workers):
        key = f"batch {next(self.numbers)}"
        options = BatchOptions(workers=workers, policy=Policy(on_error=str))  # the test says what comes next
        batch = BatchRecord(key, options, contextvars.Context())
        batch.jobs = [JobRecord(batch, at, MAKE[kind](), None) for at, kind in enumerate(kinds)]
        batch.heard = True
        models = [Model(job, kind) for job, kind in zip(batch.jobs, kinds, strict=True)]
        self.batches[key] = batch, models
        self.queue[key] = []
        self.heard[key] = {"jobs": {}, "began": False, "ended": False, "total": len(kinds)}
        self.ledger.admit(batch, self.now)

    @rule()
    def take(self):
        waiting = {key: self.next_of(key) for key in self.batches}
        waiting = {key: model for key, model in waiting.items() if model is not None}
        room = self.places() < self.ledger.places.most
        job = self.ledger.take(self.now, self.now)
        if job is None:
            assert not (waiting and room), f"{list(waiting)} could run, and nothing was taken"
            return
        assert room
        key = job.batch.id
        model = waiting[key]
        assert model.job is job, "not in the order given"
        for other in waiting:
            if other != key:
                times = self.served[other, key] = self.served.get((other, key), 0) + 1
                assert times <= 1, f"{key} was served twice while {other} waited"
        for pair in [pair for pair in self.served if pair[0] == key]:
            del self.served[pair]
        if model in self.queue[key]:
            self.queue[key].remove(model)
        model.held, model.due = True, None
        model.attempt += 1
        if model.kind == "p":
            model.state, model.began = "running", True

    @rule(number=pick)
    def start(self, number):
        model = self.any_of(number, lambda one: one.held and one.state != "running")
        if model is not None:
            self.ledger.started(model.job, 1000 + number, self.now, self.now)
            model.state, model.began = "running", True

    @rule(number=pick, value=st.integers())
    def returned(self, number, value):
        model = self.any_of(number, lambda one: one.held and one.kind == "p")
        if model is not None:
            self.ledger.returned(model.job, value, self.now, self.now)
            self.end(model, model.stop or "succeeded")
            assert model.job.value == (None if model.stop else value)

    @rule(
        number=pick,
        step=st.sampled_from(["none", "crash", "continue", "stop", "abort", "retry", "retry", "retry"]),
        delay=st.sampled_from([0.0, 1.0, 5.0]),
    )
    def ended(self, number, step, delay):
        model = self.any_of(number, lambda one: one.held and one.state == "running")
        if model is None:
            return
        error = None if step == "none" else ValueError(step)
        outcome = Outcome(None, error)
        due = self.ledger.ended(model.job, outcome, self.now, self.now)
        if model.job.asking:
            decision = None if step in {"none", "crash"} else Decision(step, delay)
            due = self.ledger.decided(model.job, decision, self.now, self.now)
        state = model.stop or ("succeeded" if error is None else "failed")
        self.conclude(model, state, step if error is not None else "none", delay, due)

    @rule(number=pick, step=st.sampled_from(["continue", "stop", "retry"]))
    def could_not_start(self, number, step):
        model = self.any_of(number, lambda one: one.held and one.state != "running")
        if model is None:
            return
        outcome = Outcome(None, OSError("no"))
        outcome.could_not_start = True
        due = self.ledger.ended(model.job, outcome, self.now, self.now)
        if model.job.asking:
            due = self.ledger.decided(model.job, Decision(step), self.now, self.now)
        model.attempt -= 1
        state = "cancelled" if model.stop == "cancelled" else "failed"
        self.conclude(model, state, "continue" if step == "retry" else step, 0.0, due)

    def conclude(self, model, state, step, delay, due):
        batch, models = self.batches[model.job.batch.id]
        if state == "cancelled" or batch.halted not in {None, SKIPPED} or step in {"none", "crash"}:
            step = "continue"
        if step == "retry" and self.halted(batch):
            step = "continue"
        if step == "retry":
            assert due == self.now + delay
            model.state, model.due = "waiting", due
            model.held = model.away = False
            model.stop = None
            return
        assert due is None
        self.end(model, state)
        if step in {"stop", "abort"}:
            self.halt_rest(batch, models, "skipped")
        if step == "abort":
            self.halt_all(batch)

    def halted(self, batch):
        return batch.halted is not None

    def halt_rest(self, batch, models, rest):
        for model in models:
            if not model.held and model.state not in ENDED:
                self.end(model, rest)

    def halt_all(self, batch):
        """As the Leader cancels a batch."""
        for job in self.ledger.halt(batch, CANCELLED, self.now, self.now):
            self.ledger.stop(job, CANCELLED, 1.0, self.now, self.now)
        _, models = self.batches[batch.id]
        for model in models:
            if model.held:
                model.stop = model.stop or "cancelled"
        self.halt_rest(batch, models, "cancelled")

    @rule(number=pick)
    def time_out(self, number):
        model = self.any_of(number, lambda one: one.held and one.state == "running")
        if model is not None:
            first = self.ledger.stop(model.job, TIMED_OUT, 2.0, self.now, self.now)
            assert first == (model.stop is None)
            model.stop = model.stop or "timed_out"

    @rule(number=pick)
    def cancel(self, number):
        model = self.any_of(number, lambda one: True)
        if model is None:
            return
        told = self.ledger.stop(model.job, CANCELLED, 1.0, self.now, self.now)
        assert told == (model.held and model.stop is None)
        if model.held:
            model.stop = model.stop or "cancelled"
        elif model.state not in ENDED:
            self.end(model, "cancelled")

    @rule(number=pick)
    def cancel_batch(self, number):
        keys = list(self.batches)
        if keys and number % 5 == 0:
            self.halt_all(self.batches[keys[number % len(keys)]][0])

    @rule(number=pick)
    def abandon(self, number):
        model = self.any_of(number, lambda one: one.held and one.kind == "p" and one.stop)
        if model is not None:
            if self.ledger.abandon(model.job, self.now, self.now):
                self.ledger.decided(model.job, Decision("continue"), self.now, self.now)
            self.strays += 1
            self.end(model, model.stop)

    @precondition(lambda self: self.strays)
    @rule()
    def stray_ended(self):
        self.ledger.stray_ended()
        self.strays -= 1

    @rule(number=pick)
    def give_place(self, number):
        model = self.any_of(number, lambda one: one.held and one.kind == "p" and one.bell is None)
        if model is not None:
            if not model.away:
                self.ledger.places.step_aside(model.job)
            model.away = True

    @rule(number=pick)
    def want_place(self, number):
        model = self.any_of(number, lambda one: one.held and one.away and one.bell is None)
        if model is not None:
            bell = SimpleQueue()
            if not self.ledger.places.step_back(model.job, bell) or bell.qsize():
                model.bell = bell
            assert (model.bell is None) == (model.stop is not None)

    @rule(number=pick, text=st.sampled_from(["", "x"]))
    def printed(self, number, text):
        model = self.any_of(number, lambda one: one.held and one.state == "running")
        if model is not None:
            self.ledger.printed(model.job, number % 2, text, self.now)
            self.ledger.progressed(model.job, (number % 5) / 4, None, None, text, self.now)

    @rule(seconds=st.sampled_from([0.5, 1.0, 10.0]))
    def later(self, seconds):
        self.now += seconds
        following = self.ledger.due(self.now)
        waits = self.models(lambda one: one.due is not None)
        for model in sorted(waits, key=lambda one: one.due):
            if 0 < model.due <= self.now or (model.due == 0 and model not in self.queue[model.job.batch.id]):
                self.queue[model.job.batch.id].append(model)
                model.due = None
        left = [model.due for model in waits if model.due is not None]
        assert following == min(left, default=None)

    @rule()
    def remove(self):
        for key, (batch, _) in list(self.batches.items()):
            if batch.end_clock is not None:
                self.ledger.remove(batch, self.now)
                del self.batches[key]
                return

    @rule(number=pick, verb=st.sampled_from(["started", "returned", "ended", "abandon"]))
    def illegal(self, number, verb):
        """What no worker holds cannot be reported, and who tries it changes nothing."""
        model = self.any_of(number, lambda one: not one.held)
        if model is None:
            return
        before = self.picture()
        arguments = {"started": (None,), "returned": (5,), "ended": (Outcome(),), "abandon": ()}[verb]
        with pytest.raises(AssertionError, match="illegal move of job"):
            getattr(self.ledger, verb)(model.job, *arguments, self.now, self.now)
        assert self.picture() == before

    def picture(self):
        ledger = self.ledger
        jobs = [dict(vars(model.job)) for model in self.models(lambda one: True)]
        batches = [
            (batch.state, dict(batch.counts), batch.running, batch.open_jobs, batch.end_clock, batch.spent)
            for batch, _ in self.batches.values()
        ]
        return copy.copy(ledger.stats), ledger.places, ledger.abandoned, jobs, batches, len(self.events)

    # What must hold after each of them

    @invariant()
    def states_and_counters(self):
        ledger = self.ledger
        for key, (batch, models) in self.batches.items():
            for model in models:
                job = model.job
                assert (job.state, job.attempt, job.handed_out) == (model.state, model.attempt, model.held)
                error = {"timed_out": JobTimeout, "cancelled": JobCancelled, "skipped": JobCancelled}
                if model.state in error:
                    assert isinstance(job.error, error[model.state])
            states = [model.state for model in models]
            assert batch.counts == {state: states.count(state) for state in JobState}
            still = [state for state in states if state not in ENDED]
            assert batch.open_jobs == len(still)
            assert (batch.end_clock is None) == bool(still), key
            if still:
                assert batch.state == "running"
            elif {"failed", "timed_out"} & set(states):
                assert batch.state == "failed"
            elif {"cancelled", "skipped"} & set(states):
                assert batch.state == "cancelled"
            else:
                assert batch.state == "succeeded"
        assert ledger.abandoned == self.strays

    @invariant()
    def places_and_limits(self):
        for model in self.models(lambda one: one.bell is not None):
            try:
                model.bell.get_nowait()
                model.away, model.bell = False, None
            except Empty:
                if not model.held or model.stop is not None:
                    model.bell = None  # the Leader wakes it
                    continue
                batch, models = self.batches[model.job.batch.id]
                full = self.places() >= self.ledger.places.most or self.running(models) >= batch.workers
                assert full, "there is a place for who wants it back"
        assert self.ledger.places.taken == self.places() <= self.ledger.places.most
        for batch, models in self.batches.values():
            assert batch.running == self.running(models) <= batch.workers
        waiting = [self.next_of(key) for key in self.batches]
        if any(waiting) and self.places() < self.ledger.places.most:
            assert self.ledger.places.wanted() > 0
            assert self.ledger.places.wanting
        for pair in list(self.served):
            if pair[0] not in self.batches or self.next_of(pair[0]) is None:
                del self.served[pair]

    @invariant()
    def events_tell_it_in_order(self):
        for event in self.events[self.read :]:
            heard = self.heard[event.batch_id]
            kind = event.type
            if kind == "batch_removed":
                assert heard["ended"]
                continue
            assert not heard["ended"], "something came after BatchEnded"
            if kind == "batch_started":
                assert not heard["began"]
                heard["began"] = True
                continue
            assert heard["began"]
            jobs = heard["jobs"]
            if kind == "job_started":
                assert jobs.get(event.job, ("queued", 0)) in {("queued", 0), ("waiting", event.attempt - 1)}
                jobs[event.job] = "running", event.attempt
            elif kind == "job_retrying":
                assert jobs[event.job] == ("running", event.attempt)
                jobs[event.job] = "waiting", event.attempt
            elif kind == "job_ended":
                assert jobs.get(event.job, ("queued", 0))[0] != "ended", "two ends"
                jobs[event.job] = "ended", event.state
            elif kind == "batch_ended":
                assert [jobs[at][0] for at in range(heard["total"])] == ["ended"] * heard["total"]
                heard["ended"] = True
            else:
                assert kind in {"job_output", "job_progress"}
                assert jobs[event.job][0] == "running"
        self.read = len(self.events)
        stats = self.ledger.stats
        ends = stats["finished"] + stats["failed"] + stats["cancelled"]
        running = len(self.models(lambda one: one.began and one.state not in ENDED))
        assert stats["started"] == ends + running

    def teardown(self):
        """Whatever happened, it comes to an end."""
        for _ in range(500):
            if not self.models(lambda one: one.state not in ENDED):
                break
            self.later(10.0)
            self.take()
            self.start(0)
            model = self.any_of(0, lambda one: one.held and one.state == "running")
            if model is not None:
                self.ended(0, "none", 0.0)
            self.states_and_counters()
            self.places_and_limits()
        self.events_tell_it_in_order()
        assert not self.models(lambda one: one.state not in ENDED)
        assert all(self.heard[key]["ended"] for key in self.batches)
        assert self.ledger.places.taken == 0
        assert not self.ledger.places._returning or all(
            not job.away for job, _ in self.ledger.places._returning
        )


TestLedger = LedgerMachine.TestCase
