"""What a job says besides its outcome: processor, memory, signal, its wait; and what a retry keeps."""

import resource
import signal
import sys
import threading

import pytest

from arrea_nb import Leader, Policy
from arrea_nb.events import JobOutput, JobRetrying

LONG = 60.0
NEVER = 300


@pytest.fixture
def leader():
    with Leader() as one:
        yield one


def _until(events, kind):
    while not isinstance(event := events.get(timeout=LONG), kind):
        pass
    return event


def _ended(batch):
    assert batch.wait(timeout=LONG)
    return batch[0]


# Processor time


BURN = """
import time
while time.process_time() < 0.3:
    pass
print(time.process_time())
"""


def test_processor_time_is_what_a_job_and_the_children_it_waited_for_used(leader):
    alone = _ended(leader.execute([[sys.executable, "-c", BURN]]))
    assert float(alone.stdout) <= alone.cpu_seconds < float(alone.stdout) + 1
    line = f"{sys.executable} -c '{BURN}'; {sys.executable} -c '{BURN}' | cat; true"
    several = _ended(leader.execute([line]))
    burnt = sum(map(float, several.stdout.split()))
    assert burnt >= 0.6
    assert burnt <= several.cpu_seconds < burnt + 2


def test_a_child_that_nobody_waited_for_is_not_counted(leader, tmp_path):
    done = tmp_path / "done"
    line = f"({sys.executable} -c '{BURN}' > {done}.new; mv {done}.new {done}; sleep {NEVER}) & "
    line += f"until [ -e {done} ]; do sleep 0.05; done; kill -9 $!"
    job = _ended(leader.execute([f"exec 2>/dev/null; {line}"]))
    assert float(done.read_text()) >= 0.3
    assert job.cpu_seconds < 0.3


def test_a_callable_and_a_job_that_did_not_start_have_no_processor_time_and_no_memory(leader):
    batch = leader.execute([lambda: [0] * 1000, ["/no/such/program"]])
    assert batch.wait(timeout=LONG)
    assert [(job.cpu_seconds, job.max_rss_bytes, job.signal) for job in batch] == [(None, None, None)] * 2


# Memory


def test_memory_is_the_peak_of_a_job_where_that_is_above_the_kernels_own(leader):
    own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    much = own + (64 << 20)
    code = f"held = b'x' * {much}; del held"
    batch = leader.execute([[sys.executable, "-c", code], ["true"]])
    large, small = batch
    assert batch.wait(timeout=LONG)
    assert much <= large.max_rss_bytes < much + (256 << 20)
    assert small.max_rss_bytes is None
    assert small.cpu_seconds is not None
    assert [row["max_rss_bytes"] for row in batch.records()] == [large.max_rss_bytes, None]


# Signals


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV, signal.SIGTERM])
def test_the_signal_that_ended_a_job_is_told_and_there_is_no_exit_code(leader, number):
    job = _ended(leader.execute([f"kill -{number.value} $$"]))
    assert (job.state, job.signal, job.exit_code) == ("failed", number, None)
    assert (job.error.signal, job.error.exit_code) == (number, None)
    assert [(one.signal, one.exit_code) for one in job.attempts] == [(number, None)]
    assert str(job.error) == f"killed by {number.name}"


def test_an_exit_code_is_no_signal(leader):
    job = _ended(leader.execute(["exit 137"]))
    assert (job.signal, job.exit_code) == (None, 137)


def test_cancel_ends_a_job_with_sigterm(leader):
    with leader.subscribe() as events:
        batch = leader.execute([f"echo up; exec sleep {NEVER}"])
        _until(events, JobOutput)
        batch.cancel()
        job = _ended(batch)
    assert (job.state, job.signal, job.exit_code) == ("cancelled", signal.SIGTERM, None)


# The wait for a retry


def test_retry_in_is_there_while_a_job_waits_for_its_next_attempt_and_only_then(leader):
    go = threading.Event()

    def fails():
        go.wait(LONG)
        raise ValueError

    with leader.subscribe() as events:
        batch = leader.execute(
            [fails, "true"], workers=1, policy=Policy(retries=1, retry_delay=NEVER, max_delay=NEVER)
        )
        first, second = batch
        assert (first.retry_in, second.retry_in) == (None, None)
        go.set()
        assert _until(events, JobRetrying).delay == NEVER
        assert first.state == "waiting"
        left = first.retry_in
        assert 0 < left <= NEVER
        assert 0 < first.retry_in <= left
        first.cancel()
        assert batch.wait(timeout=LONG)
    assert (first.retry_in, second.retry_in) == (None, None)


def test_retry_in_is_gone_when_the_next_attempt_runs(leader):
    def once():
        if batch[0].attempt == 1:
            raise ValueError
        return batch[0].retry_in

    ready = threading.Event()
    batch = leader.execute([lambda: ready.wait(LONG) and once()], policy=Policy(retries=1, retry_delay=0))
    ready.set()
    assert batch[0].result(timeout=LONG) is None
    assert (batch[0].state, batch[0].attempt) == ("succeeded", 2)


# What retry_failed keeps


SAYS = 'echo "${0##*/} $PWD $COLOUR"; exit 3'


def test_retry_failed_runs_with_the_options_of_its_batch(leader, tmp_path):
    policy = Policy(on_error="stop", retries=1, retry_delay=0)
    batch = leader.execute(
        {"says": SAYS, "fine": "true"},
        workers=3,
        timeout=40,
        policy=policy,
        name="colours",
        shell="bash",
        cwd=tmp_path,
        env={"COLOUR": "red"},
    )
    assert batch.wait(timeout=LONG)
    again = batch.retry_failed()
    assert again.wait(timeout=LONG)
    assert again is not batch
    assert again.id != batch.id
    assert [job.name for job in again] == ["says"]
    assert (again.workers, again.timeout, again.policy, again.name) == (3, 40.0, policy, "colours")
    assert again[0].stdout == batch[0].stdout == f"bash {tmp_path} red\n"
    assert [one.exit_code for one in again[0].attempts] == [3, 3]


def test_options_given_to_retry_failed_win(leader, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    batch = leader.execute(
        [SAYS],
        workers=3,
        timeout=40,
        policy={"retries": 1, "retry_delay": 0},
        name="colours",
        shell="bash",
        cwd=tmp_path,
        env={"COLOUR": "red"},
    )
    assert batch.wait(timeout=LONG)
    again = batch.retry_failed(
        workers=1,
        timeout=None,
        policy={"on_error": "abort"},
        name="again",
        shell="sh",
        cwd=other,
        env={"COLOUR": "blue"},
    )
    assert again.wait(timeout=LONG)
    assert (again.workers, again.timeout, again.name) == (1, None, "again")
    assert again.policy == Policy(on_error="abort")
    assert again[0].stdout == f"sh {other} blue\n"
    assert again[0].attempt == 1
