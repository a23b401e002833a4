"""What is touched of users' objects, of numbers, of folders and of threads, and what is said of it."""

import asyncio
import contextvars
import dataclasses
import logging
import os
import threading
import time
import traceback

import pytest

import arrea_nb
from arrea_nb.errors import BatchFailed, CommandFailed, JobCrashed, JobTimeout, TooManyCommandsError

LONG = 60.0


@pytest.fixture(autouse=True)
def no_bug(caplog):
    """Whatever a user's object does, nobody speaks of a bug in arrea_nb."""
    with caplog.at_level(logging.DEBUG, "arrea_nb"):
        yield
    for when in ("setup", "call"):
        for record in caplog.get_records(when):
            assert "bug" not in record.getMessage(), record.getMessage()


def _end(batch):
    assert batch.wait(timeout=LONG)
    for job in batch:
        assert type(job.error) is not JobCrashed  # and its text is not asked for: it may do anything
        assert "bug" not in (job.note or "")
    return batch


# Folders


def test_a_batch_runs_where_it_was_executed(tmp_path, monkeypatch):
    here, there = tmp_path / "here", tmp_path / "there"
    for folder in (here, there):
        folder.mkdir()
        (folder / "program").write_text(f"#!/bin/sh\necho {folder.name}\n")
        (folder / "program").chmod(0o755)
    monkeypatch.chdir(here)
    go = threading.Event()
    batch = arrea_nb.execute([lambda: go.wait(LONG), "pwd", ["./program"], "./program"], workers=1)
    os.chdir(there)
    go.set()
    results = _end(batch).results()[1:]
    assert [result.stdout for result in results] == [f"{here}\n", "here\n", "here\n"]


def test_a_relative_folder_is_that_of_execute(tmp_path, monkeypatch):
    (tmp_path / "inner").mkdir()
    monkeypatch.chdir(tmp_path)
    go = threading.Event()
    batch = arrea_nb.execute([lambda: go.wait(LONG), "pwd"], workers=1, cwd="inner")
    os.chdir("/")
    go.set()
    assert _end(batch).results()[1].stdout == f"{tmp_path}/inner\n"


def test_a_current_directory_that_is_gone_is_one_error_that_names_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    gone = tmp_path / "gone"
    gone.mkdir()
    os.chdir(gone)
    gone.rmdir()
    for commands in (["true"], ["true", ["./program"]], [int]):
        with pytest.raises(ValueError, match="working directory") as caught:
            arrea_nb.execute(commands)
        assert "cwd" in str(caught.value)
        assert caught.value.__cause__ is None
    assert arrea_nb.execute(["pwd"], cwd=tmp_path).results(timeout=LONG)[0].stdout == f"{tmp_path}\n"


# Exceptions


@dataclasses.dataclass(frozen=True)
class _Frozen(Exception):  # noqa: N818 - the user's
    text: str


def test_a_frozen_dataclass_is_an_error_like_any_other():
    error = _Frozen("mine")

    def fails():
        raise error

    batch = _end(arrea_nb.execute([fails], policy={"retries": 1, "retry_delay": 0}))
    assert batch[0].error is error
    assert batch[0].attempt == 2
    with pytest.raises(_Frozen):
        batch[0].result()
    with pytest.raises(BatchFailed):
        batch.results()


@pytest.mark.stops_callables
def test_an_error_that_blocks_when_it_is_asked_for_its_text_is_stopped_at_the_deadline():
    class Blocks(Exception):  # noqa: N818 - the user's
        def __str__(self):
            until = time.monotonic() + LONG
            while time.monotonic() < until:
                time.sleep(0.005)
            return "late"

    def fails():
        raise Blocks

    with arrea_nb.Leader(grace=LONG) as leader:
        batch = leader.execute([fails, int], timeout=0.2)
        assert batch.wait(timeout=LONG / 4)
        assert [job.state for job in batch] == ["timed_out", "succeeded"]
        assert isinstance(batch[0].error, JobTimeout)


@pytest.mark.parametrize("raised", [ValueError("again"), SystemExit(1), KeyboardInterrupt()])
def test_an_error_that_raises_when_it_is_asked_for_its_text_is_named_all_the_same(raised):
    class Raises(Exception):  # noqa: N818 - the user's
        def __str__(self):
            raise raised

    error = Raises()

    def fails():
        raise error

    with arrea_nb.Leader() as leader, leader.subscribe() as events:
        batch = _end(leader.execute([fails]))
        event = events.get(timeout=LONG)
        while event.type != "job_ended":
            event = events.get(timeout=LONG)
    assert batch[0].error is error
    assert batch[0].state == "failed"
    assert "Raises" in event.error


def test_an_error_that_prints_when_it_is_asked_for_its_text_prints_into_its_job(capsys):
    class Prints(Exception):  # noqa: N818 - the user's
        def __str__(self):
            print("asked")
            return "text"

    def fails():
        raise Prints

    batch = _end(arrea_nb.execute([fails]))
    assert set(batch[0].stdout.splitlines()) == {"asked"}
    assert capsys.readouterr().out == ""


def test_an_error_that_forks_when_it_is_asked_for_its_text():
    class Forks(Exception):  # noqa: N818 - the user's
        def __str__(self):
            pid = os.fork()
            if not pid:
                os._exit(0)
            os.waitpid(pid, 0)
            return "forked"

    def fails():
        raise Forks

    batch = _end(arrea_nb.execute([fails, int]))
    assert [job.state for job in batch] == ["failed", "succeeded"]


# Callables, values and subscribers


def test_a_callable_that_raises_for_every_attribute_runs():
    class Strange:
        def __getattr__(self, name):
            raise RuntimeError(name)

        def __call__(self):
            return 7

    assert _end(arrea_nb.execute([Strange()])).results() == [7]


def test_a_value_that_raises_whatever_it_is_asked_is_a_value():
    class Strange:
        @property
        def __class__(self):
            raise RuntimeError

        def __eq__(self, other):
            raise RuntimeError

        def __hash__(self):
            raise RuntimeError

        def __bool__(self):
            raise RuntimeError

        def __repr__(self):
            raise RuntimeError

        def __getattribute__(self, name):
            raise RuntimeError

    value = Strange()
    batch = _end(arrea_nb.execute([lambda: value, lambda: [value]]))
    assert [job.state for job in batch] == ["succeeded"] * 2
    assert batch[0].result() is value
    assert [type(one) for one in batch.results()] == [Strange, list]
    assert batch.records()


@pytest.mark.parametrize("says", ["raises", True, False])
def test_a_subscriber_with_a_strange_equality_hears_what_it_should(says):
    class Hears:
        def __init__(self):
            self.heard = []
            self.done = threading.Event()

        def __call__(self, event):
            self.heard.append(event.type)
            if event.type == "batch_ended":
                self.done.set()

        def __eq__(self, other):
            if says == "raises":
                raise RuntimeError
            return says

        __hash__ = None

    one, two = Hears(), Hears()
    with arrea_nb.Leader() as leader:
        with leader.subscribe(one), leader.subscribe(two):
            _end(leader.execute([int]))
            assert one.done.wait(LONG)
            assert two.done.wait(LONG)
        assert one.heard == two.heard == ["batch_started", "job_started", "job_ended", "batch_ended"]
        _end(leader.execute([int]))
    assert len(one.heard) == 4


# Threads


def test_threads_of_one_callable_that_print_at_once_lose_nothing():
    def prints():
        barrier = threading.Barrier(8)

        def lines(who):
            barrier.wait(LONG)
            for at in range(1000):
                print(f"{who} {at}\n", end="")

        threads = [
            threading.Thread(target=contextvars.copy_context().run, args=(lines, who)) for who in range(8)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    batch = _end(arrea_nb.execute([prints], timeout=None))
    lines = batch[0].stdout.splitlines()
    assert len(lines) == 8000
    for who in range(8):
        assert [line for line in lines if line.startswith(f"{who} ")] == [f"{who} {at}" for at in range(1000)]


def test_a_batch_is_one_object_whichever_thread_asks_first():
    with arrea_nb.Leader() as leader:
        for _ in range(30):
            name = leader.execute([int]).id  # nobody holds the Batch
            barrier, found = threading.Barrier(6), []

            def ask(name=name, barrier=barrier, found=found):
                barrier.wait(LONG)
                found.append(leader._engine.batch(name))

            threads = [threading.Thread(target=ask) for _ in range(6)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            assert len(found) == 6
            assert len({id(one) for one in found}) == 1


def test_a_state_and_its_error_change_together():
    def fails():
        raise ValueError

    over, torn = threading.Event(), []
    watched = [None]

    def read():
        while not over.is_set():
            batch = watched[0]
            if batch is None:
                continue
            for job in batch:
                error, state, after = job.error, job.state, job.error
                if (state.ended and after is None) or (not state.ended and error is not None):
                    torn.append((state, error, after))

    reader = threading.Thread(target=read)
    reader.start()
    try:
        for _ in range(40):
            watched[0] = batch = arrea_nb.execute([fails] * 20, workers=2)
            assert batch.wait(timeout=LONG)
    finally:
        over.set()
        reader.join()
    assert torn == []


def test_a_result_that_is_asked_for_often_raises_with_a_traceback_that_does_not_grow():
    def fails():
        raise ValueError

    job = _end(arrea_nb.execute([fails]))[0]
    lengths = set()
    for _ in range(50):
        try:
            job.result()
        except ValueError as error:
            lengths.add(len(traceback.extract_tb(error.__traceback__)))
    assert len(lengths) == 1


# Numbers and messages


def test_too_many_commands_tell_the_true_number():
    with pytest.raises(TooManyCommandsError) as caught:
        arrea_nb.map(str, list(range(250)))
    assert caught.value.args
    assert str(caught.value).startswith("250 commands, but a batch takes 100; pass max_commands=250")


def test_of_several_lists_the_shortest_says_how_many_there_are():
    with pytest.raises(TooManyCommandsError, match=r"^250 commands"):
        arrea_nb.map(max, range(300), list(range(250)))


def test_cancelling_the_batch_without_a_name_is_refused():
    with arrea_nb.Leader() as leader:
        go = threading.Event()
        batch = leader.execute([lambda: go.wait(LONG)])
        with pytest.raises(ValueError, match=r"^batch_id: expected"):
            leader.cancel("")
        go.set()
        assert _end(batch).state == "succeeded"


@pytest.mark.parametrize("timeout", [-1, float("nan"), -0.5])
def test_a_wait_for_no_time_is_the_same_on_every_thread(timeout):
    go = threading.Event()
    batch = arrea_nb.execute([lambda: go.wait(LONG)])

    def ways():
        for way in (
            batch.wait,
            batch.results,
            batch[0].result,
            lambda given: list(batch.as_completed(given)),
        ):
            try:
                yield way(timeout)
            except Exception as error:  # noqa: BLE001 - whatever it is
                yield type(error), str(error).partition(" has not ")[2]

    told = []
    thread = threading.Thread(target=lambda: told.extend(ways()))
    thread.start()
    thread.join(LONG / 4)
    assert not thread.is_alive()
    here = list(ways())
    go.set()
    assert here == told
    assert len(here) == 4
    _end(batch)


def test_numpys_numbers_are_numbers():
    numpy = pytest.importorskip("numpy")
    with arrea_nb.Leader(
        workers=numpy.int64(2), timeout=numpy.float64(20), grace=numpy.float32(1), max_workers=numpy.int32(3)
    ) as leader:
        assert (leader.workers, leader.timeout, leader.max_workers) == (2, 20, 3)
        leader.keep_batches = numpy.int64(4)
        batch = leader.execute([int, float], workers=numpy.int64(1), timeout=numpy.int32(5))
        assert (batch.workers, batch.timeout) == (1, 5)
        assert batch.wait(timeout=numpy.float64(LONG))
        assert batch[numpy.int64(1)].index == 1
        assert batch[numpy.int64(-1)].index == 1
        go = threading.Event()
        waiting = leader.execute([lambda: go.wait(LONG), int], workers=1)
        leader.cancel(waiting.id, numpy.int64(1))
        go.set()
        assert waiting.wait(timeout=LONG)
        assert [job.state for job in waiting] == ["succeeded", "cancelled"]


def _generator():
    yield 1


async def _async_generator():
    yield 1


@pytest.mark.parametrize(
    "command",
    [_generator, _async_generator, lambda: _generator(), lambda: _async_generator()],  # noqa: PLW0108 - as users write
)
def test_what_would_run_nothing_has_failed_and_says_what_to_write(command):
    batch = _end(arrea_nb.execute([command, int]))
    assert [job.state for job in batch] == ["failed", "succeeded"]
    assert "generator" in str(batch[0].error)
    assert "write" in str(batch[0].error)


def test_an_awaitable_that_is_no_coroutine_is_run():
    class Awaitable:
        def __await__(self):
            yield from asyncio.sleep(0).__await__()
            return 7

    assert _end(arrea_nb.execute([Awaitable, lambda: Awaitable()])).results() == [7, 7]  # noqa: PLW0108 - as users write


def test_what_runs_by_itself_is_a_value():
    loop = asyncio.new_event_loop()
    future = loop.create_future()
    other = arrea_nb.execute([int])
    batch = _end(arrea_nb.execute([lambda: future, lambda: other]))
    assert batch[0].result() is future
    assert batch[1].result() is other
    loop.close()


def test_a_shell_job_that_failed_is_told_with_its_error():
    batch = _end(arrea_nb.execute(["exit 3"]))
    assert isinstance(batch[0].error, CommandFailed)
