"""Objects of the user's, as commands, options and progress: whatever they do, the batch goes on (C4)."""

import asyncio
import math
import time
import types
from collections.abc import Mapping
from fractions import Fraction
from functools import partial

import numpy as np
import pytest

import arrea_nb
from arrea_nb._commands import awaitable, unrun
from arrea_nb.errors import InvalidCommandError, TooManyCommandsError
from arrea_nb.events import BatchEnded, JobProgress

LONG = 60.0
FORMS = (
    "expected a shell line (str), a program with its arguments (list of str), or a callable of no arguments"
)


# Numbers


@pytest.mark.parametrize("number", [np.int64(3), np.uint8(3), np.int32(3)])
def test_a_whole_number_may_be_numpys(number):
    with arrea_nb.Leader() as leader:
        batch = leader.execute([int] * 3, workers=number, max_commands=number)
        assert batch.wait(timeout=LONG)
        assert (batch.workers, type(batch.workers)) == (3, int)
    policy = arrea_nb.Policy(retries=number)
    assert (policy.retries, type(policy.retries)) == (3, int)


@pytest.mark.parametrize("number", [np.float64(2.5), np.float32(2.5), Fraction(5, 2)])
def test_seconds_may_be_any_real_number(number):
    with arrea_nb.Leader() as leader:
        batch = leader.execute([int], timeout=number)
        assert batch.wait(timeout=LONG)
        assert (batch.timeout, type(batch.timeout)) == (2.5, float)
    policy = arrea_nb.Policy(retry_delay=number, backoff=number, max_delay=np.int16(7))
    assert (policy.retry_delay, policy.backoff, policy.max_delay) == (2.5, 2.5, 7)
    assert [type(value) for value in (policy.retry_delay, policy.backoff, policy.max_delay)] == [
        float,
        float,
        int,
    ]


def test_seconds_without_end_are_no_limit_however_they_are_written():
    with arrea_nb.Leader() as leader:
        for endless in (math.inf, np.float32("inf"), 10**400, np.int64(0)):
            batch = leader.execute([int], timeout=endless)
            assert batch.wait(timeout=LONG)
            assert batch.timeout is None


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({"workers": np.int64(0)}, ValueError, "workers: expected a whole number of at least 1, got 0"),
        ({"workers": np.float64(2)}, TypeError, "workers: expected a whole number of at least 1, got "),
        ({"workers": np.bool_(True)}, TypeError, "workers: expected a whole number of at least 1, got "),
        ({"timeout": np.bool_(True)}, TypeError, "timeout: expected seconds, or None for no limit, got "),
        ({"timeout": Fraction(-1, 2)}, ValueError, "timeout: expected seconds of at least 0 (0: no limit)"),
        ({"timeout": -(10**400)}, ValueError, "timeout: expected seconds of at least 0 (0: no limit)"),
        ({"timeout": np.float32("nan")}, ValueError, "timeout: expected seconds of at least 0"),
        ({"policy": {"retries": np.int64(-1)}}, ValueError, "policy.retries: expected 0 or more, got -1"),
        ({"policy": {"retries": np.float64(1)}}, TypeError, "policy.retries: expected a whole number, got "),
        ({"policy": {"backoff": np.bool_(True)}}, TypeError, "policy.backoff: expected a number, got "),
        ({"policy": {"max_delay": 10**400}}, ValueError, "policy.max_delay: expected a finite number of at"),
    ],
)
def test_a_number_that_will_not_do_is_refused_as_ever(options, kind, message):
    with pytest.raises(kind) as raised:
        arrea_nb.execute([int], **options)
    assert str(raised.value).startswith(message)


# Generators


def _numbers(count=3):
    yield from range(count)


async def _ticks(count=3):
    for number in range(count):
        yield number


@types.coroutine
def _old_style():
    yield


class _Trainer:
    def epochs(self):
        yield 1

    def __call__(self):
        yield 1


class _AsyncTrainer:
    async def __call__(self):
        yield 1


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (
            _numbers,
            (
                "_numbers is a generator function, and calling it would run nothing; "
                "write lambda: list(_numbers())"
            ),
        ),
        (
            partial(_numbers, count=2),
            (
                "_numbers is a generator function, and calling it would run nothing; "
                "write lambda: list(_numbers(count=2))"
            ),
        ),
        (
            partial(_Trainer().epochs),
            (
                "_Trainer.epochs is a generator function, and calling it would run nothing; "
                "write lambda: list(_Trainer.epochs())"
            ),
        ),
        (
            _Trainer(),
            (
                "_Trainer.__call__ is a generator function, and calling it would run nothing; "
                "write lambda: list(f()), where f is that object"
            ),
        ),
        (
            _ticks,
            (
                "_ticks is an async generator function, and calling it would run nothing; "
                "write a coroutine function that goes through it with async for"
            ),
        ),
        (
            partial(partial(_ticks, 1)),
            (
                "_ticks is an async generator function, and calling it would run nothing; "
                "write a coroutine function that goes through it with async for"
            ),
        ),
        (
            _AsyncTrainer(),
            (
                "_AsyncTrainer.__call__ is an async generator function, and calling it would run nothing; "
                "write a coroutine function that goes through it with async for"
            ),
        ),
        (
            _old_style,
            (
                "_old_style is a generator-based coroutine function, and calling it would run nothing; "
                "write a coroutine function that awaits it"
            ),
        ),
    ],
)
def test_a_generator_function_is_refused_and_told_what_to_write(command, message):
    batch = arrea_nb.execute([command, int])
    assert batch.wait(timeout=LONG)
    assert (type(batch[0].error), str(batch[0].error)) == (InvalidCommandError, message)
    assert (batch[0].kind, batch[0].attempt, batch[1].state) == ("python", 0, "succeeded")


def test_the_remedy_for_a_generator_function_works():
    assert arrea_nb.run([lambda: list(_numbers()), lambda: list(_numbers(count=2))]) == [[0, 1, 2], [0, 1]]


def test_a_returned_generator_that_has_run_nothing_is_told_from_one_that_has():
    begun, over = _numbers(), _numbers(0)
    next(begun)
    assert list(over) == []
    fresh = _numbers()
    assert unrun(fresh) == (
        "it returned a generator (_numbers) that has run nothing; "
        "write a callable that goes through it: lambda: list(...)"
    )
    assert next(fresh) == 0
    assert "<genexpr>" in unrun(number for number in range(3))
    for value in (begun, over, [1], iter([1]), None, _numbers):
        assert unrun(value) is None


def test_a_returned_async_generator_that_has_run_nothing_is_told_from_one_that_has():
    async def go():
        fresh, begun, over = _ticks(), _ticks(), _ticks(0)
        assert await anext(begun) == 0
        assert [number async for number in over] == []
        assert unrun(fresh) == (
            "it returned an async generator (_ticks) that has run nothing; "
            "write a coroutine function that goes through it with async for"
        )
        assert (unrun(begun), unrun(over)) == (None, None)
        await begun.aclose()
        await fresh.aclose()
        assert unrun(fresh) is None

    asyncio.run(go())


def test_what_must_be_awaited_is_told_from_a_future_that_runs_by_itself():
    class Awaitable:
        def __await__(self):
            return iter(())

    class Refuses:
        __await__ = None

    class Pretends:
        def __getattr__(self, name):
            return name

    async def go():
        coroutine = asyncio.sleep(0)
        assert awaitable(coroutine)
        await coroutine
        assert not awaitable(asyncio.get_running_loop().create_future())
        assert not awaitable(asyncio.ensure_future(asyncio.sleep(0)))

    asyncio.run(go())
    assert awaitable(Awaitable())
    for value in (None, 1, [], Refuses(), Pretends(), Awaitable, arrea_nb.execute([])):
        assert not awaitable(value)


# Hostile objects


class _Deadly(BaseException):
    """What no `except Exception` catches, and no `except SystemExit` either."""


RAISED = [RuntimeError, SystemExit, _Deadly, GeneratorExit]


def _hostile(error, **more):
    """An object of a type of its own that raises whatever is asked of it."""

    def fail(self, *args):
        raise error("touched")

    names = ("__getattr__", "__repr__", "__str__", "__bool__", "__len__", "__iter__", "__eq__", "__hash__")
    body = {**dict.fromkeys(names, fail), "__class__": property(fail), "__qualname__": "Hostile", **more}
    return type("Hostile", (body.pop("base", object),), body)


@pytest.mark.parametrize("error", RAISED)
def test_a_hostile_command_is_one_bad_job_and_the_others_run(error):
    def fail(self, *args):
        raise error("touched")

    path = _hostile(error, __fspath__=fail)()
    commands = [_hostile(error)(), ["echo", _hostile(error)()], [path], _hostile(error, base=list)(), int]
    batch = arrea_nb.execute(commands)
    assert batch.wait(timeout=LONG)
    assert [str(job.error) for job in batch[:4]] == [
        f"{FORMS}, got {what}"
        for what in (
            "Hostile",
            "an argument of type Hostile",
            f"a list that raised {error.__name__} when it was read",
            f"a Hostile that raised {error.__name__} when it was read",
        )
    ]
    assert all(type(job.name) is str for job in batch)
    assert batch[4].state == "succeeded"


@pytest.mark.parametrize("error", RAISED)
def test_a_hostile_callable_runs_as_what_it_is(error):
    called = _hostile(error, __call__=lambda self: 7)()
    batch = arrea_nb.execute([called, partial(called), partial(int, called), partial(int, base=called)])
    assert batch.wait(timeout=LONG)
    assert (batch[0].value, batch[1].value) == (7, 7)
    names = [job.name for job in batch]
    assert names == ["Hostile", "Hostile()", "int(<Hostile>)", "int(base=<Hostile>)"]
    assert all(type(name) is str for name in names)


def test_the_stop_button_is_no_fault_of_a_command():
    with pytest.raises(KeyboardInterrupt):
        arrea_nb.execute([[_hostile(KeyboardInterrupt)(), "x"], ["echo", _Interrupts()], int])
    assert arrea_nb.get_state().batches == {}


class _Interrupts:
    def __fspath__(self):
        raise KeyboardInterrupt


class _Text(str):
    """A str whose every method lies or raises."""

    __slots__ = ()

    def _fail(self, *args):
        raise _Deadly

    __str__ = __repr__ = __format__ = __len__ = __iter__ = __getitem__ = __eq__ = __bool__ = _fail
    strip = split = encode = splitlines = rpartition = __contains__ = __add__ = __mod__ = _fail
    __hash__ = str.__hash__


def test_text_with_methods_of_its_own_is_taken_as_the_text_it_is():
    def named():
        return 5

    function = _hostile(_Deadly, __call__=lambda self: 6, __getattribute__=lambda self, name: _Text("deep"))()
    batch = arrea_nb.execute(
        {_Text("one"): _Text("echo 1"), "two": [_Text("echo"), _Text("2")], "three": named}
    )
    assert batch.wait(timeout=LONG)
    assert [job.name for job in batch] == ["one", "two", "three"]
    assert (batch[0].stdout, batch[1].stdout, batch[2].value) == ("1\n", "2\n", 5)
    unnamed = arrea_nb.execute([_Text("echo 1"), [_Text("echo"), _Text("2")], function])
    assert unnamed.wait(timeout=LONG)
    assert [job.name for job in unnamed] == ["echo 1", "echo 2", "deep"]
    assert all(type(job.name) is str for job in (*batch, *unnamed))


def test_a_key_that_is_no_name_is_refused_whatever_it_does():
    class Pairs(Mapping):
        def __init__(self, *pairs):
            self.pairs = pairs

        def __getitem__(self, key):
            raise KeyError

        def __iter__(self):
            return iter(())

        def __len__(self):
            raise _Deadly

        def items(self):
            return iter(self.pairs)

    with pytest.raises(TypeError, match=r"^commands: expected names that are not empty, got <Hostile>$"):
        arrea_nb.execute(Pairs(("one", int), (_hostile(_Deadly)(), int)))
    batch = arrea_nb.execute(Pairs(("one", int), (_Text("two"), int)))
    assert batch.wait(timeout=LONG)
    assert [job.name for job in batch] == ["one", "two"]
    with pytest.raises(TooManyCommandsError, match=r"^3 commands, but a batch takes 2"):
        arrea_nb.execute(Pairs(*[("one", int)] * 5), max_commands=2)


def test_a_program_that_cannot_be_looked_at_is_one_bad_job():
    batch = arrea_nb.execute([["./" + "x" * 300], int])
    assert batch.wait(timeout=LONG)
    assert (batch[0].exit_code, batch[1].state) == (126, "succeeded")
    assert str(batch[0].error).endswith("File name too long (exit 126)")


# Names


class _Slow:
    """Takes its time to show itself, and counts how often it was asked."""

    asked = 0

    def __repr__(self):
        type(self).asked += 1
        time.sleep(0.01)
        return "slow"


def test_the_names_of_a_batch_wait_for_few_slow_reprs_in_all():
    _Slow.asked = 0
    batch = arrea_nb.execute([partial(id, _Slow()) for _ in range(1000)], max_commands=1000)
    assert batch.wait(timeout=LONG)
    names = [job.name for job in batch]
    # 10 ms each, and a quarter of a second for all.
    assert 1 <= _Slow.asked <= 26
    assert names == ["id(slow)"] * _Slow.asked + ["id(<_Slow>)"] * (1000 - _Slow.asked)
    asked = _Slow.asked
    assert [job.name for job in batch] == names
    assert batch[0].name is batch[0].name
    assert _Slow.asked == asked


def test_slow_reprs_inside_of_one_argument_are_bounded_too():
    _Slow.asked = 0
    batch = arrea_nb.execute([partial(id, [[_Slow()] * 6] * 6) for _ in range(10)])
    assert batch.wait(timeout=LONG)
    for job in batch:
        assert job.name
    assert 1 <= _Slow.asked <= 26


def test_a_plain_argument_is_shown_also_when_there_is_no_time_left():
    batch = arrea_nb.execute([partial(max, *[_Slow()] * 40), partial(max, 1, "two", None)])
    assert batch.wait(timeout=LONG)
    assert batch[0].name.endswith("<_Slow>)")
    assert batch[1].name == "max(1, 'two', None)"


def test_bad_commands_share_the_time_for_reprs():
    _Slow.asked = 0
    batch = arrea_nb.execute([int, *[_Slow() for _ in range(200)]], max_commands=1000)
    assert batch.wait(timeout=LONG)
    assert _Slow.asked <= 26


# Progress


@pytest.fixture
def clock(monkeypatch):
    """What a loop in `track` takes for the time, in a list."""
    now = [100.0]
    monkeypatch.setattr("arrea_nb._progress.monotonic", lambda: now[0])
    return now


def _told(work):
    """How much was done each time that this callable's job told its progress."""
    with arrea_nb.subscribe() as events:
        batch = arrea_nb.execute([work])
        heard = list(_until_end(events))
    assert batch.done()
    return [event.done for event in heard if isinstance(event, JobProgress)]


def _until_end(events):
    while True:
        event = events.get(timeout=LONG)
        yield event
        if isinstance(event, BatchEnded):
            return


def test_a_quick_loop_tells_as_often_as_a_view_shows(clock):
    def work():
        for _ in arrea_nb.track(range(1000)):
            clock[0] += 1 / 1024

    told = _told(work)
    assert told[:2] == [0, 1]
    assert told[-1] == 1000
    assert 8 <= len(told) - 3 <= 10  # in a second, about


def test_a_slow_loop_tells_each_item_also_after_quick_ones(clock):
    def work():
        for item in arrea_nb.track(range(1005)):
            clock[0] += 1 / 1024 if item < 1000 else 1

    told = _told(work)
    assert told[-5:] == [1001, 1002, 1003, 1004, 1005]


@pytest.mark.parametrize("leave", ["break", "raise"])
def test_a_loop_that_is_left_early_has_told_of_nothing_that_is_not_done(clock, leave):
    def work():
        for item in arrea_nb.track(range(100)):
            if item == 40:
                if leave == "break":
                    break
                raise ValueError(item)
            clock[0] += 0.03

    told = _told(work)
    assert told == sorted(told)
    assert 0 < told[-1] <= 40


def test_a_loop_over_what_has_no_length_has_no_total():
    class Endless:
        def __len__(self):
            raise _Deadly

        def __iter__(self):
            return iter("abc")

    def work():
        return list(arrea_nb.track(Endless())) + list(arrea_nb.track(iter("de")))

    batch = arrea_nb.execute([work])
    assert batch[0].result(timeout=LONG) == list("abcde")


@pytest.mark.parametrize("error", RAISED)
def test_progress_that_is_no_number_is_a_type_error_whatever_it_raises(error):
    def fail(self):
        raise error("touched")

    bad = _hostile(error, __float__=fail)()
    calls = [
        (lambda: arrea_nb.progress(bad), "progress: done: expected a number, got <Hostile>"),
        (lambda: arrea_nb.progress(1, bad), "progress: total: expected a number, got <Hostile>"),
        (lambda: list(arrea_nb.track([], bad)), "track: total: expected a number, got <Hostile>"),
        (lambda: arrea_nb.progress(10**400), "progress: done: expected a number, got 1000"),
    ]
    batch = arrea_nb.execute([call for call, _ in calls])
    assert batch.wait(timeout=LONG)
    for job, (_, message) in zip(batch, calls, strict=True):
        assert type(job.error) is TypeError
        assert str(job.error).startswith(message)


def test_progress_may_be_numpys():
    def work():
        arrea_nb.progress(np.int64(1), np.float32(4), _Shown())
        return True

    batch = arrea_nb.execute([work])
    assert batch[0].result(timeout=LONG)
    assert batch[0].message == "epoch"
    assert type(batch[0].message) is str


class _Shown:
    def __str__(self):
        return _Text("epoch")
