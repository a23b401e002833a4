"""Bad input: each wrong call and the message that it gets, as one table; and that nothing starts (C4)."""

import re
from itertools import count, repeat
from math import inf, nan

import pytest
from traitlets import TraitError

import arrea_nb
from arrea_nb.errors import (
    AllWorkersFailedError,
    BatchFailed,
    CommandFailed,
    InvalidCommandError,
    TooManyCommandsError,
    UnknownBatchError,
)


def _many(number):
    """A generator that is nobody's to read to its end: it fails when it is read too far."""
    for at in count():
        assert at < number, "read too far"
        yield "true"


class _Rude:
    def __repr__(self):
        raise RuntimeError("no repr")


execute, run, over = arrea_nb.execute, arrea_nb.run, arrea_nb.map
subscribe, notify = arrea_nb.subscribe, arrea_nb.notify_event
Leader, Policy = arrea_nb.Leader, arrea_nb.Policy
T, V = TypeError, ValueError

# What is called, the type of the error, its message.
WRONG = {
    # What is no batch of commands.
    "a lone line": (
        lambda: execute("ls -l"),
        T,
        "commands: expected several commands, got one str; wrap it in a list: ['ls -l']",
    ),
    "a lone line to run": (
        lambda: run("ls -l"),
        T,
        "commands: expected several commands, got one str; wrap it in a list: ['ls -l']",
    ),
    "bytes": (
        lambda: execute(b"ls"),
        T,
        "commands: expected several commands, got one bytes; wrap it in a list: [b'ls']",
    ),
    "a lone callable": (
        lambda: execute(dict),
        T,
        "commands: expected several commands, got one callable; wrap it in a list",
    ),
    "a number": (
        lambda: execute(3),
        T,
        "commands: expected an iterable or a mapping of commands, got int",
    ),
    "no commands at all": (
        lambda: execute(None),
        T,
        "commands: expected an iterable or a mapping of commands, got NoneType",
    ),
    "a name that is a number": (
        lambda: execute({1: "true"}),
        T,
        "commands: expected names that are not empty, got 1",
    ),
    "a name of blanks": (
        lambda: execute({" ": "true"}),
        T,
        "commands: expected names that are not empty, got ' '",
    ),
    # Too many.
    "250 commands": (
        lambda: execute(["true"] * 250),
        TooManyCommandsError,
        "250 commands, but a batch takes 100; pass max_commands=250, or set %config Leader.max_commands",
    ),
    "more than was asked for": (
        lambda: execute(["true"] * 3, max_commands=2),
        TooManyCommandsError,
        "3 commands, but a batch takes 2; pass max_commands=3, or set %config Leader.max_commands",
    ),
    "an endless generator": (
        lambda: execute(_many(101)),
        TooManyCommandsError,
        "101 commands, but a batch takes 100; pass max_commands=101, or set %config Leader.max_commands",
    ),
    "an endless generator to run": (
        lambda: run(_many(101)),
        TooManyCommandsError,
        "101 commands, but a batch takes 100; pass max_commands=101, or set %config Leader.max_commands",
    ),
    "an endless iterable to map": (
        lambda: over(str, _many(101)),
        TooManyCommandsError,
        "101 commands, but a batch takes 100; pass max_commands=101, or set %config Leader.max_commands",
    ),
    # Not one command that could start.
    "an empty line only": (
        lambda: execute([""]),
        AllWorkersFailedError,
        (
            "none of 1 commands could start; the first: expected a shell line (str), a program with its "
            "arguments (list of str), or a callable of no arguments, got an empty line"
        ),
    ),
    "programs that do not exist only": (
        lambda: execute([["no-such-program-here"], ["/no/such/file"]]),
        AllWorkersFailedError,
        "none of 2 commands could start; the first: no-such-program-here: no such program on PATH (exit 127)",
    ),
    # Options of execute.
    "no workers": (
        lambda: execute(["true"], workers=0),
        V,
        "workers: expected a whole number of at least 1, got 0",
    ),
    "fewer than no workers": (
        lambda: execute(["true"], workers=-2),
        V,
        "workers: expected a whole number of at least 1, got -2",
    ),
    "half a worker": (
        lambda: execute(["true"], workers=1.5),
        T,
        "workers: expected a whole number of at least 1, got 1.5",
    ),
    "workers that are true": (
        lambda: execute(["true"], workers=True),
        T,
        "workers: expected a whole number of at least 1, got True",
    ),
    "workers as text": (
        lambda: execute(["true"], workers="4"),
        T,
        "workers: expected a whole number of at least 1, got '4'",
    ),
    "no number of workers": (
        lambda: execute(["true"], workers=None),
        T,
        "workers: expected a whole number of at least 1, got None",
    ),
    "a negative timeout": (
        lambda: execute(["true"], timeout=-1),
        V,
        "timeout: expected seconds of at least 0 (0: no limit), got -1",
    ),
    "a timeout that is no number": (
        lambda: execute(["true"], timeout=nan),
        V,
        "timeout: expected seconds of at least 0 (0: no limit), got nan",
    ),
    "a timeout of minus infinity": (
        lambda: execute(["true"], timeout=-inf),
        V,
        "timeout: expected seconds of at least 0 (0: no limit), got -inf",
    ),
    "a timeout as the magic takes it": (
        lambda: execute(["true"], timeout="10m"),
        T,
        "timeout: expected seconds, or None for no limit, got '10m'; as a number: 600, not '10m'",
    ),
    "a timeout that is true": (
        lambda: execute(["true"], timeout=True),
        T,
        "timeout: expected seconds, or None for no limit, got True",
    ),
    "a negative number of commands": (
        lambda: execute([], max_commands=-1),
        V,
        "max_commands: expected a whole number of at least 0, got -1",
    ),
    "a log that is a number": (
        lambda: execute(["true"], log=1),
        T,
        "log: expected True or False, got 1",
    ),
    "a name that is no text": (
        lambda: execute(["true"], name=7),
        T,
        "name: expected a str, got 7",
    ),
    "a missing cwd": (
        lambda: execute(["true"], cwd="/no/such/place"),
        V,
        "cwd: expected a directory, got '/no/such/place', which is not there; make it first",
    ),
    "a cwd that is a number": (
        lambda: execute(["true"], cwd=3),
        T,
        "cwd: expected a path, got 3",
    ),
    "an env that is a list": (
        lambda: execute(["true"], env=["A=1"]),
        T,
        "env: expected a mapping from name to value, got list",
    ),
    "an env with a number": (
        lambda: execute(["true"], env={"A": 1}),
        T,
        "env: expected names and values of type str, got 'A': int",
    ),
    "an env with a bad name": (
        lambda: execute(["true"], env={"A=B": "1"}),
        V,
        "env: expected a name without '=' and no NUL byte, got 'A=B'",
    ),
    "a shell that is not there": (
        lambda: execute(["true"], shell="no-such-shell"),
        V,
        "shell: expected a shell such as /bin/sh or bash, got 'no-such-shell', which is not there",
    ),
    "a shell that is a number": (
        lambda: execute(["true"], shell=5),
        T,
        "shell: expected the name or path of a shell, got 5",
    ),
    "max_workers of a batch": (
        lambda: execute(["true"], max_workers=4),
        T,
        "max_workers: a batch has workers= (at once) and max_commands= (in all)",
    ),
    "an unknown option": (
        lambda: execute(["true"], worker=4),
        T,
        (
            "worker: no such option; expected one of workers, timeout, log, policy, max_commands, name, "
            "shell, cwd, env"
        ),
    ),
    "an unknown option of run": (
        lambda: run(["true"], retries=1),
        T,
        (
            "retries: no such option; expected one of workers, timeout, log, policy, max_commands, name, "
            "shell, cwd, env"
        ),
    ),
    # Policies.
    "a policy that is text": (
        lambda: execute(["true"], policy="stop"),
        T,
        "policy: expected a Policy or a mapping, got str",
    ),
    "a policy with an unknown key": (
        lambda: execute(["true"], policy={"retry": 3}),
        T,
        "policy: expected keys among on_error, retries, retry_delay, backoff, max_delay, got 'retry'",
    ),
    "an unknown step": (
        lambda: Policy(on_error="explode"),
        V,
        "policy.on_error: expected one of continue, stop, abort or a callable, got 'explode'",
    ),
    "retry as a step": (
        lambda: Policy(on_error="retry"),
        V,
        "policy.on_error: expected one of continue, stop, abort or a callable, got 'retry'",
    ),
    "an unhashable step": (
        lambda: Policy(on_error=["stop"]),
        V,
        "policy.on_error: expected one of continue, stop, abort or a callable, got ['stop']",
    ),
    "fewer than no retries": (
        lambda: Policy(retries=-1),
        V,
        "policy.retries: expected 0 or more, got -1",
    ),
    "half a retry": (
        lambda: Policy(retries=0.5),
        T,
        "policy.retries: expected a whole number, got 0.5",
    ),
    "an endless delay": (
        lambda: Policy(retry_delay=inf),
        V,
        "policy.retry_delay: expected a finite number of at least 0, got inf",
    ),
    "a delay as text": (
        lambda: Policy(max_delay="1m"),
        T,
        "policy.max_delay: expected a number, got '1m'",
    ),
    "a backoff that shrinks": (
        lambda: Policy(backoff=0.5),
        V,
        "policy.backoff: expected a finite number of at least 1, got 0.5",
    ),
    # map.
    "nothing to call": (
        lambda: over(3, [1]),
        T,
        "function: expected a callable, got int",
    ),
    "nothing to map over": (
        lambda: over(str),
        T,
        "iterables: expected at least one, got none",
    ),
    "what cannot be iterated": (
        lambda: over(str, 3),
        T,
        "'int' object is not iterable",
    ),
    # Subscribers.
    "a subscriber that cannot be called": (
        lambda: subscribe("print"),
        T,
        "callback: expected a callable, got str",
    ),
    "a subscriber of an unknown batch": (
        lambda: subscribe(batch="feed"),
        UnknownBatchError,
        "no batch feed; there are: none",
    ),
    "a subscriber of a number": (
        lambda: subscribe(batch=7),
        T,
        "batch: expected a Batch or an id, got int",
    ),
    "no mailbox": (
        lambda: subscribe(mailbox_size=0),
        V,
        "mailbox_size: expected a whole number of at least 1, got 0",
    ),
    "an event that is text": (
        lambda: notify("hello"),
        T,
        "event: expected a mapping with a 'type', got str",
    ),
    "an event without a type": (
        lambda: notify({"b": 1, "a": 2}),
        V,
        "event: expected a mapping with a 'type', got the keys ['a', 'b']",
    ),
    # Leaders.
    "an unknown option of a Leader": (
        lambda: Leader(threads=8),
        T,
        (
            "threads: no such option of a Leader; it has batch_retention, cleanup_interval, grace, "
            "keep_batches, max_commands, max_output_bytes, max_workers, memory_output_bytes, shell, timeout, "
            "workers"
        ),
    ),
    "a Leader without workers": (
        lambda: Leader(max_workers=0),
        TraitError,
        (
            "The value of the 'max_workers' trait of a Leader instance should not be less than 1, but a "
            "value of 0 was specified"
        ),
    ),
    "a Leader with a bad time": (
        lambda: Leader(grace=-1.0),
        TraitError,
        (
            "The value of the 'grace' trait of a Leader instance should not be less than 0, but a value of "
            "-1.0 was specified"
        ),
    ),
    "another Leader than there is": (
        lambda: (Leader.instance(), Leader.instance(max_workers=8)),
        V,
        (
            "max_workers: expected no options, because the kernel has a Leader already, got 8; "
            "set %config Leader.max_workers = 8, or make one of your own with Leader(...)"
        ),
    ),
    "cancel of an unknown batch": (
        lambda: Leader.instance().cancel("feed"),
        UnknownBatchError,
        "no batch feed; there are: none",
    ),
    # Progress.
    "progress that is no number": (
        lambda: run([lambda: arrea_nb.progress("half")]),
        BatchFailed,
        "1 of 1 failed: [0] <lambda>: TypeError: progress: done: expected a number, got 'half'",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_call_says_what_was_expected_and_what_came(case):
    call, kind, message = WRONG[case]
    with pytest.raises(kind) as raised:
        call()
    assert str(raised.value) == message


def test_a_wrong_option_starts_nothing(tmp_path):
    """C4: raises before anything starts."""
    for wrong in ({"workers": 0}, {"timeout": nan}, {"cwd": "/no/such/place"}, {"max_workers": 3}):
        with pytest.raises((TypeError, ValueError)):
            arrea_nb.execute([["touch", str(tmp_path / "started")], ["true"]], **wrong)
    assert arrea_nb.get_state().stats["started"] == 0
    assert arrea_nb.get_state().batches == {}
    assert list(tmp_path.iterdir()) == []


def test_too_many_commands_tells_both_numbers():
    with pytest.raises(TooManyCommandsError) as raised:
        arrea_nb.execute(["true"] * 250)
    assert (raised.value.count, raised.value.limit) == (250, 100)
    with pytest.raises(TooManyCommandsError) as raised:
        arrea_nb.execute(repeat("true"))
    assert (raised.value.count, raised.value.limit) == (101, 100)


FORMS = (
    "expected a shell line (str), a program with its arguments (list of str), or a callable of no arguments"
)

# A bad command beside a good one: the job that it becomes.
BAD = {
    "an empty line": ("", InvalidCommandError, f"{FORMS}, got an empty line", None),
    "blanks": (" \n\t", InvalidCommandError, f"{FORMS}, got an empty line", None),
    "a NUL byte": ("echo a\0b", InvalidCommandError, f"{FORMS}, got a line with a NUL byte", None),
    "an empty argv": ([], InvalidCommandError, f"{FORMS}, got an empty list", None),
    "an argv with a number": (
        ["sleep", 3],
        InvalidCommandError,
        f"{FORMS}, got an argument of type int",
        None,
    ),
    "an argv with a NUL byte": (
        ["echo", "\0"],
        InvalidCommandError,
        f"{FORMS}, got an argument with a NUL byte",
        None,
    ),
    "an argv without a program": (
        ("", "x"),
        InvalidCommandError,
        f"{FORMS}, got an empty program name",
        None,
    ),
    "bytes": (b"true", InvalidCommandError, f"{FORMS}, got bytes; decode it to a str", None),
    "a number": (7, InvalidCommandError, f"{FORMS}, got int", None),
    "nothing": (None, InvalidCommandError, f"{FORMS}, got NoneType", None),
    "what cannot be shown": (_Rude(), InvalidCommandError, f"{FORMS}, got _Rude", None),
    "a program that is not there": (
        ["no-such-program-here", "-x"],
        CommandFailed,
        "no-such-program-here: no such program on PATH (exit 127)",
        127,
    ),
    "a file that is not there": (
        ["/no/such/file"],
        CommandFailed,
        "/no/such/file: no such file (exit 127)",
        127,
    ),
    "a file that cannot be run": (
        ["/etc/passwd"],
        CommandFailed,
        "/etc/passwd: not executable (exit 126); chmod +x it",
        126,
    ),
    "a directory": (["/etc"], CommandFailed, "/etc: not a program (exit 126)", 126),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_command_is_a_job_that_failed_to_start_and_the_others_run(case):
    command, kind, message, exit_code = BAD[case]
    batch = arrea_nb.execute([command, "echo fine"])
    assert batch.wait(timeout=30)
    bad, good = batch
    assert (bad.state, type(bad.error), str(bad.error)) == ("failed", kind, message)
    assert (bad.exit_code, bad.attempt, bad.duration, bad.pid) == (exit_code, 0, None, None)
    assert [job.index for job in batch.start_failures] == [0]
    assert good.result().stdout == "fine\n"


def test_batch_indexing_says_what_there_is():
    batch = arrea_nb.execute({"one": "true", "two": "true"})
    assert batch.wait(timeout=30)
    short = batch.id[:4]
    for key, kind, message in (
        (7, IndexError, f"no job 7 in batch {short}… (it has 2: 0 to 1)"),
        (-3, IndexError, f"no job -3 in batch {short}… (it has 2: 0 to 1)"),
        ("three", KeyError, f"no job named 'three' in batch {short}… (it has 2: 'one', 'two')"),
        (1.5, TypeError, "tuple indices must be integers or slices, not float"),
    ):
        with pytest.raises(kind) as raised:
            batch[key]
        assert raised.value.args[0] == message
    assert batch["two"] is batch[1] is batch[-1]
    assert batch[:1] == (batch[0],)
    empty = arrea_nb.execute([])
    with pytest.raises(IndexError, match=re.escape(f"no job 0 in batch {empty.id[:4]}… (it has none)")):
        empty[0]


def test_cancel_of_an_unknown_job_says_what_there_is():
    leader = arrea_nb.Leader.instance()
    batch = leader.execute(["true"])
    with pytest.raises(IndexError, match=r"no job 7 in batch .*… \(it has 1: 0 to 0\)"):
        leader.cancel(batch.id, 7)
    assert batch.wait(timeout=30)


def test_waiting_past_its_time_says_so_and_leaves_the_batch_alone(tmp_path):
    batch = arrea_nb.execute([f"until [ -e {tmp_path}/go ]; do sleep 0.01; done"])
    assert batch.wait(timeout=0) is False
    for call in (lambda: batch.results(timeout=0), lambda: batch[0].result(timeout=0)):
        with pytest.raises(TimeoutError, match="has not ended after 0 s; it goes on"):
            call()
    with pytest.raises(TimeoutError, match="1 of 1 jobs have not ended after 0 s; they go on"):
        list(batch.as_completed(timeout=0))
    (tmp_path / "go").touch()
    assert batch.wait(timeout=30)
    assert batch.state == "succeeded"


def test_a_closed_leader_and_a_mailbox_that_waits_too_long_say_so():
    with arrea_nb.subscribe() as events, pytest.raises(TimeoutError, match="no event came within 0 s"):
        events.get(timeout=0)
    with pytest.raises(StopIteration):
        events.get(timeout=0)
    with arrea_nb.Leader() as leader:
        pass
    with pytest.raises(RuntimeError, match="this Leader is closed; make another, or take Leader"):
        leader.execute(["true"])
