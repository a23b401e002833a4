"""C10: the policy is asked after every failed attempt, and its callable is user code like any other."""

import asyncio
import contextvars
import dataclasses
import logging
import threading
import time
from queue import SimpleQueue

import pytest

import arrea_nb
from arrea_nb.errors import CommandFailed, JobTimeout
from arrea_nb.notebook._frames import Frames

LONG = 60.0
SHORT = 0.1


class _Gate:
    """Where code of a test waits, in steps that a stop can end, and says that it came there."""

    def __init__(self):
        self.reached = threading.Event()
        self.open = threading.Event()
        self.stopped = threading.Event()

    def __call__(self, *_):
        self.reached.set()
        try:
            until = time.monotonic() + LONG
            while not self.open.is_set() and time.monotonic() < until:
                time.sleep(0.005)
        except BaseException:
            self.stopped.set()
            raise
        return "continue"

    def deaf(self, *_):
        """The same in C code, where no exception comes."""
        self.reached.set()
        self.open.wait(LONG)
        return "retry"


@pytest.fixture
def gate():
    made = _Gate()
    yield made
    made.open.set()


def _fails():
    raise ValueError("no")


def _swallows():
    try:
        while True:
            time.sleep(0.005)
    except BaseException:  # noqa: BLE001 - whatever stops it
        return "fine"


async def _swallows_too():
    try:
        await asyncio.sleep(LONG)
    except asyncio.CancelledError:
        return "fine"


class _Asked(list):
    """A policy's callable that notes what it is asked, and answers what it was told to."""

    def __init__(self, *answers):
        super().__init__()
        self.answers = list(answers)

    def __call__(self, error, attempt, job):
        self.append((type(error), attempt, job.index, threading.current_thread().name))
        return self.answers.pop(0)

    __hash__ = object.__hash__


# After whatever the callable did with its stop


@pytest.mark.stops_callables
@pytest.mark.parametrize("command", [_swallows, _swallows_too])
def test_a_policy_stops_the_batch_after_a_timed_out_callable_that_swallows_its_stop(command):
    with arrea_nb.Leader(grace=LONG) as leader:
        batch = leader.execute([command, int], workers=1, timeout=0.1, policy={"on_error": "stop"})
        assert batch.wait(timeout=LONG)
    assert [job.state for job in batch] == ["timed_out", "skipped"]
    assert isinstance(batch[0].error, JobTimeout)


@pytest.mark.stops_callables
@pytest.mark.parametrize("command", [_swallows, _swallows_too])
def test_a_policys_callable_is_asked_after_a_timed_out_callable_that_swallows_its_stop(command):
    asked = _Asked("retry", "stop")
    with arrea_nb.Leader(grace=LONG) as leader:
        batch = leader.execute(
            [command], workers=1, timeout=0.1, policy={"on_error": asked, "retry_delay": 0}
        )
        assert batch.wait(timeout=LONG)
    assert batch[0].state == "timed_out"
    assert [one[:3] for one in asked] == [(JobTimeout, 1, 0), (JobTimeout, 2, 0)]


@pytest.mark.stops_callables
@pytest.mark.parametrize("retries", [0, 2])
def test_a_policy_stops_the_batch_after_an_abandoned_callable_which_is_not_tried_again(gate, retries):
    with arrea_nb.Leader(grace=SHORT) as leader:
        policy = {"on_error": "stop", "retries": retries, "retry_delay": 0}
        batch = leader.execute([gate.deaf, int], workers=1, timeout=0.1, policy=policy)
        assert batch.wait(timeout=LONG)
        gate.open.set()
    assert [job.state for job in batch] == ["timed_out", "skipped"]
    assert batch[0].attempt == 1
    assert "did not stop within its grace" in batch[0].error.__notes__[0]


@pytest.mark.stops_callables
@pytest.mark.parametrize("answer", ["stop", "retry"])
def test_a_policys_callable_is_asked_in_another_thread_after_an_abandoned_callable(gate, answer):
    asked, names = _Asked(answer), []

    def deaf():
        names.append(threading.current_thread().name)
        gate.deaf()

    with arrea_nb.Leader(grace=SHORT) as leader:
        batch = leader.execute([deaf, int], workers=1, timeout=0.1, policy={"on_error": asked})
        assert batch.wait(timeout=LONG)
        gate.open.set()
    assert [job.state for job in batch] == ["timed_out", "skipped" if answer == "stop" else "succeeded"]
    assert [one[:3] for one in asked] == [(JobTimeout, 1, 0)]
    assert asked[0][3] != names[0]
    assert len(names) == 1


# Its callable is user code like any other


@pytest.mark.parametrize("command", [_fails, "echo out; exit 3"])
def test_what_a_policys_callable_prints_lands_in_its_job_after_the_attempts_own(command, capsys):
    def prints(error, attempt, job):
        print(f"asked {attempt} of {job.index}")
        return "continue"

    def both():
        print("out")
        command()

    batch = arrea_nb.execute([both if callable(command) else command], policy={"on_error": prints})
    assert batch.wait(timeout=LONG)
    assert batch[0].stdout == "out\nasked 1 of 0\n"
    assert capsys.readouterr().out == ""


def test_a_policys_callable_prints_also_where_the_attempt_printed_nothing():
    def prints(error, attempt, job):
        print("asked")

    with arrea_nb.Leader() as leader:
        batch = leader.execute([_fails, "exit 1", "exit 0"], policy={"on_error": prints})
        assert batch.wait(timeout=LONG)
    assert [job.stdout for job in batch] == ["asked\n", "asked\n", ""]


@pytest.mark.parametrize("command", [_fails, "exit 3"])
def test_a_policys_callable_may_execute_and_wait_with_a_single_place(command):
    with arrea_nb.Leader(max_workers=1) as leader:
        values = []

        def executes(error, attempt, job):
            values.extend(leader.execute([lambda: 7], workers=1).results(timeout=LONG))
            return "continue"

        batch = leader.execute([command, int], workers=1, policy={"on_error": executes})
        assert batch.wait(timeout=LONG)
    assert values == [7]
    assert [job.state for job in batch] == ["failed", "succeeded"]


def test_each_asking_has_a_fresh_copy_of_the_batchs_context():
    variable = contextvars.ContextVar("variable", default="none")
    seen = []

    def looks(error, attempt, job):
        seen.append(variable.get())
        variable.set("changed")
        return "retry" if attempt < 3 else "continue"

    token = variable.set("given")
    try:
        batch = arrea_nb.execute([_fails, "exit 1"], workers=1, policy={"on_error": looks, "retry_delay": 0})
    finally:
        variable.reset(token)
    assert batch.wait(timeout=LONG)
    assert seen == ["given"] * 6


def test_an_asking_does_not_see_what_its_attempt_set():
    variable = contextvars.ContextVar("variable", default="none")
    seen = []

    def sets():
        variable.set("of the attempt")
        raise ValueError

    batch = arrea_nb.execute([sets], policy={"on_error": lambda *_: seen.append(variable.get())})
    assert batch.wait(timeout=LONG)
    assert seen == ["none"]


@pytest.mark.stops_callables
@pytest.mark.parametrize("command", [_fails, "exit 3"])
def test_an_asking_has_no_deadline_and_the_job_ended_when_its_attempt_did(gate, command):
    with arrea_nb.Leader(grace=SHORT) as leader:
        batch = leader.execute([command], timeout=0.2, policy={"on_error": gate})
        assert gate.reached.wait(LONG)
        asked_at = time.time()
        assert not batch.wait(timeout=0.6)
        assert batch[0].state == "running"
        gate.open.set()
        assert batch.wait(timeout=LONG)
        ended_at = time.time()
    job = batch[0]
    assert (job.state, job.attempt) == ("failed", 1)
    assert not gate.stopped.is_set()
    assert job.started_at + job.duration <= asked_at + 0.05
    assert ended_at - asked_at > 0.6
    assert len(job.attempts) == 1
    assert job.attempts[0].duration == job.duration


@pytest.mark.parametrize("command", [_fails, "exit 3"])
def test_while_it_is_asked_the_job_runs_and_its_row_says_asking(gate, command):
    with arrea_nb.Leader() as leader:
        batch = leader.execute([command], policy={"on_error": gate})
        frames = Frames(batch)
        assert gate.reached.wait(LONG)
        picture = frames.picture(time.monotonic())
        (row,) = picture["jobs"]
        assert picture["states"][row[1]] == "running"
        assert row[5]["asking"] is True
        frames.look([0])
        assert frames.frame(time.monotonic())["jobs"] == []  # its clock stands
        gate.open.set()
        assert batch.wait(timeout=LONG)
        frames.look([0])
        (row,) = frames.frame(time.monotonic())["jobs"]
        assert "asking" not in row[5]
    assert batch[0].state == "failed"


@pytest.mark.stops_callables
@pytest.mark.parametrize("how", ["cancel the batch", "cancel the job", "close"])
@pytest.mark.parametrize(
    ("command", "state"), [(_fails, "failed"), ("exit 3", "failed"), (_swallows, "timed_out")]
)
def test_a_cancel_stops_the_asking_and_the_job_keeps_its_own_error(gate, how, command, state):
    with arrea_nb.Leader(grace=LONG) as leader:
        timeout = 0.1 if command is _swallows else None
        batch = leader.execute([command], timeout=timeout, policy={"on_error": gate})
        assert gate.reached.wait(LONG)
        {"cancel the batch": batch.cancel, "cancel the job": batch[0].cancel, "close": leader.close}[how]()
        assert batch.wait(timeout=LONG)
        assert gate.stopped.wait(LONG)
        job = batch[0]
    assert (job.state, job.attempt) == (state, 1)
    expected = {_fails: ValueError, _swallows: JobTimeout}.get(command, CommandFailed)
    assert type(job.error) is expected
    assert not getattr(job.error, "__notes__", ())


@pytest.mark.stops_callables
def test_an_asking_that_swallows_its_stop_and_says_retry_is_not_heard():
    reached = threading.Event()

    def swallows(*_):
        reached.set()
        _swallows()
        return "retry"

    with arrea_nb.Leader(grace=LONG) as leader:
        batch = leader.execute([_fails], policy={"on_error": swallows, "retry_delay": 0})
        assert reached.wait(LONG)
        batch.cancel()
        assert batch.wait(timeout=LONG)
    assert (batch[0].state, batch[0].attempt) == ("failed", 1)


@pytest.mark.stops_callables
@pytest.mark.parametrize("command", [_fails, "exit 3"])
def test_an_asking_that_does_not_stop_is_abandoned_after_the_grace(gate, command):
    with arrea_nb.Leader(grace=SHORT) as leader:
        batch = leader.execute([command], policy={"on_error": gate.deaf})
        assert gate.reached.wait(LONG)
        batch.cancel()
        assert batch.wait(timeout=LONG)
        job = batch[0]
        assert (job.state, job.attempt) == ("failed", 1)
        assert "policy.on_error: it did not stop within its grace" in job.note
        assert leader.execute([int]).results(timeout=LONG) == [0]
        gate.open.set()
    assert not getattr(job.error, "__notes__", ())


@pytest.mark.stops_callables
def test_closing_while_it_is_asked_ends_also_where_it_is_deaf(gate):
    leader = arrea_nb.Leader(grace=SHORT)
    batch = leader.execute([_fails], policy={"on_error": gate.deaf})
    assert gate.reached.wait(LONG)
    leader.close()
    assert batch[0].state == "failed"


@dataclasses.dataclass(frozen=True)
class _Frozen(Exception):  # noqa: N818 - the user's
    text: str


def test_what_a_policys_callable_raises_goes_to_the_log_and_the_jobs_note(caplog):
    error = _Frozen("mine")

    def fails():
        raise error

    def fails_too(*_):
        raise _Frozen("the policy's")

    with caplog.at_level(logging.ERROR, "arrea_nb"):
        batch = arrea_nb.execute([fails, int], workers=1, policy={"on_error": fails_too})
        assert batch.wait(timeout=LONG)
    assert [job.state for job in batch] == ["failed", "succeeded"]
    assert batch[0].error is error
    assert not hasattr(error, "__notes__")
    assert error.__context__ is None
    assert "policy.on_error: raised" in batch[0].note
    assert "_Frozen" in batch[0].note
    (record,) = caplog.records
    assert "policy.on_error" in record.getMessage()
    assert record.exc_info[0] is _Frozen
    assert "bug" not in caplog.text


@pytest.mark.parametrize("raised", [SystemExit(3), KeyboardInterrupt(), GeneratorExit()])
def test_whatever_a_policys_callable_raises_the_batch_goes_on(raised):
    def fails(*_):
        raise raised

    batch = arrea_nb.execute(["exit 3", int], workers=1, policy={"on_error": fails})
    assert batch.wait(timeout=LONG)
    assert [job.state for job in batch] == ["failed", "succeeded"]
    assert type(raised).__name__ in batch[0].note


@pytest.mark.stops_callables
def test_a_batch_that_an_asking_executes_is_cancelled_with_it():
    inner = SimpleQueue()

    with arrea_nb.Leader(grace=LONG) as leader:

        def executes(*_):
            batch = leader.execute([f"sleep {LONG}"])
            inner.put(batch)
            batch.wait()

        batch = leader.execute([_fails], policy={"on_error": executes})
        nested = inner.get(timeout=LONG)
        batch.cancel()
        assert batch.wait(timeout=LONG)
        assert nested.wait(timeout=LONG)
    assert (batch[0].state, nested.state) == ("failed", "cancelled")
