"""What an attempt printed: exact, bounded in memory, and never lost in silence (C11, C12, C14)."""

import contextlib
import errno
import gc
import itertools
import os
import random
import stat
import sys
import threading
import tracemalloc
import uuid
from pathlib import Path

import pytest

from arrea_nb.workers import _output
from arrea_nb.workers._output import Output, Spool

LONG = 60.0
MARK = b"\n[arrea: output past 1 KiB was dropped]\n"


@pytest.fixture
def spool():
    spool = Spool(uuid.uuid4().hex)
    yield spool
    spool.remove()


@pytest.fixture
def make(spool):
    def make(memory_limit=64, max_bytes=1 << 30):
        return Output(spool, memory_limit, max_bytes)

    return make


def fill(output, rounds=50):
    """Writes to both streams in turn and returns what each of them, and both, should hold."""
    expected = {0: b"", 1: b"", None: b""}
    for number in range(rounds):
        for stream, word in ((0, b"out"), (1, b"err")):
            data = b"%s %d\n" % (word, number)
            output.write(stream, data)
            expected[stream] += data
            expected[None] += data
    return expected


def refuse(monkeypatch, error):
    """Has the disk refuse every byte from here on."""

    def write_at(descriptor, at, data):
        raise error

    monkeypatch.setattr(_output, "_write_at", write_at)


def test_a_little_output_stays_in_memory_and_makes_no_file(make, spool):
    output = make()
    output.write(0, b"hello\n")
    assert output.read() == b"hello\n"
    assert output.path is None
    assert not Path(spool.directory).exists()


def test_spooled_output_is_read_exactly_by_stream_and_together(make):
    output = make()
    expected = fill(output)
    assert output.path is not None
    assert {stream: output.read(stream) for stream in expected} == expected
    assert output.size == len(expected[None])


@pytest.mark.parametrize("seed", range(30))
def test_any_sequence_of_writes_is_read_back_exactly(make, monkeypatch, seed):
    chance = random.Random(seed)
    monkeypatch.setattr(_output, "_MOST_RUNS", chance.choice([4, 16, 32768]))
    output = make(chance.choice([0, 1, 7, 64, 1000]))
    expected = {0: b"", 1: b"", None: b""}
    offset, seen = 0, b""
    for _ in range(200):
        stream = chance.choice([0, 0, 1])
        data = bytes(chance.choices(range(32, 127), k=chance.choice([0, 1, 3, 20, 150])))
        output.write(stream, data)
        expected[stream] += data
        expected[None] += data
        if chance.random() < 0.1:
            texts, offset, skipped = output.since(offset, chance.choice([10, 1000]))
            seen += b"?" * skipped + "".join(text for _, text in texts).encode()
            assert offset == output.size == len(seen)
            size = chance.choice([1, 10, 100, 10000])
            assert output.tail(size) == expected[None][-size:]
    assert {stream: output.read(stream) for stream in expected} == expected
    assert all(a == b for a, b in zip(seen, expected[None], strict=False) if a != ord("?"))


def test_bytes_that_are_not_utf8_are_kept_exact(make):
    output = make()
    data = bytes(range(256)) * 3
    output.write(0, data)
    assert output.read(0) == data
    output.write(1, b"\xff")
    assert output.since(len(data), 10)[0] == [("stderr", "�")]


def test_memory_stays_within_its_limit_whatever_is_written(make):
    output = make(memory_limit=1 << 16)
    block = b"x" * (1 << 20)
    tracemalloc.start()
    for _ in range(64):
        output.write(0, block)
    held, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert held < 1 << 17
    assert peak < 1 << 19
    assert len(output.read()) == 64 << 20


def test_streams_that_change_with_every_byte_cost_a_bounded_amount_of_memory(make):
    output = make(memory_limit=1 << 16)
    for _ in range(100_000):
        output.write(0, b"o")
        output.write(1, b"e")
    assert len(output._picture().runs) <= _output._MOST_RUNS
    assert output.read(0) == b"o" * 100_000
    assert output.read(1) == b"e" * 100_000
    texts, end, skipped = output.since(0, 100)
    assert end == 200_000
    assert skipped == 200_000 - 100
    assert texts == [("stdout", "o"), ("stderr", "e")] * 50


def test_past_the_maximum_output_is_dropped_and_marked_once(make):
    output = make(memory_limit=400, max_bytes=1024)
    output.write(0, b"a" * 1000)
    output.write(0, b"b" * 1000)
    output.write(0, b"c" * 1000)
    expected = b"a" * 1000 + b"b" * 24 + MARK
    assert output.read() == expected
    assert output.read(0) == expected
    assert output.read(1) == b""
    assert output.tail(50) == expected[-50:]
    texts, _, _ = output.since(output.size - len(MARK), 1000)
    assert texts == [("stdout", MARK.decode())]


def test_each_stream_that_was_cut_says_so(make):
    output = make(max_bytes=1024)
    output.write(0, b"a" * 2000)
    output.write(1, b"b" * 2000)
    output.write(1, b"b" * 2000)
    assert output.read().count(MARK) == 1
    assert output.read(0) == b"a" * 1024 + MARK
    assert output.read(1) == MARK


def test_exactly_the_maximum_is_kept_without_a_mark(make):
    output = make(max_bytes=1024)
    output.write(0, b"a" * 1024)
    assert output.read() == b"a" * 1024


def test_after_close_nothing_more_is_taken(make):
    output = make()
    output.write(0, b"before")
    output.close()
    output.write(0, b"after")
    assert output.read() == b"before"


def test_a_full_disk_is_marked_in_place_and_output_goes_on(make, monkeypatch):
    output = make()
    output.write(0, b"a" * 100)
    with monkeypatch.context() as full:
        refuse(full, OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))
        output.write(0, b"b" * 100)
        output.write(1, b"c" * 100)
    output.write(0, b"d" * 100)
    lost = b"\n[arrea: 184 bytes of output lost: No space left on device]\n"
    assert output.read() == b"a" * 100 + lost + b"c" * 16 + b"d" * 100
    assert output.read(0) == b"a" * 100 + lost + b"d" * 100
    assert output.read(1) == lost + b"c" * 16
    assert output.size == 400


def test_a_disk_that_fills_half_way_keeps_what_it_took(make, monkeypatch):
    output = make()
    real = _output._write_at
    room = [130]

    def write_at(descriptor, at, data):
        if not room[0]:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        written = real(descriptor, at, bytes(data)[: room[0]])
        room[0] -= written
        return written

    with monkeypatch.context() as filling:
        filling.setattr(_output, "_write_at", write_at)
        output.write(0, b"a" * 100)
        output.write(0, b"b" * 100)
    lost = b"\n[arrea: 54 bytes of output lost: No space left on device]\n"
    assert output.read() == b"a" * 100 + b"b" * 30 + lost + b"b" * 16


def test_a_spool_directory_that_was_deleted_is_made_again_and_the_loss_marked(make, spool):
    output = make()
    output.write(0, b"a" * 100)
    spool.remove()
    output.write(1, b"b" * 100)
    lost = b"\n[arrea: 100 bytes of output lost: its file was removed]\n"
    assert output.read() == lost + b"b" * 100
    assert Path(spool.directory).is_dir()


def test_what_is_in_memory_is_read_with_a_mark_when_the_spool_is_gone(make, spool):
    output = make()
    fill(output)
    whole = output.read()
    spool.remove()
    gone = output.read()
    assert gone.startswith(b"\n[arrea: ")
    assert b"of output lost: its file is gone]\n" in gone
    assert gone.endswith(whole[-16:])
    assert output.tail(16) == whole[-16:]
    assert output.tail(1000)[:9] == b"\n[arrea: "
    assert output.read(0).startswith(b"\n[arrea: ")


def test_a_directory_that_cannot_be_made_costs_the_output_and_not_the_job(make, spool):
    Path(spool.directory).write_text("in the way")
    output = make()
    output.write(0, b"a" * 100)
    assert output.read().endswith(b" is not a private directory of ours]\n" + b"a" * 16)
    assert output.path is None
    Path(spool.directory).unlink()


def test_lost_runs_cost_the_streams_and_not_the_whole(make, monkeypatch):
    monkeypatch.setattr(_output, "_MOST_RUNS", 8)
    output = make(memory_limit=1000)
    with monkeypatch.context() as full:
        refuse(full, OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))
        expected = fill(output, rounds=20)
    assert output.read() == expected[None]
    known = output.read(0).partition(b"its stream is not known, see output]\n")[2]
    assert known
    assert expected[0].endswith(known)


def test_a_file_of_runs_that_was_removed_costs_the_streams_and_not_the_whole(make, monkeypatch):
    monkeypatch.setattr(_output, "_MOST_RUNS", 8)
    output = make()
    expected = fill(output)
    os.unlink(f"{output.path}.runs")
    assert output.read() == expected[None]
    unknown, _, known = output.read(0).partition(b" of output lost: its stream is not known, see output]\n")
    assert unknown.startswith(b"\n[arrea: ")
    assert known
    assert expected[0].endswith(known)
    expected = fill(output)  # it is begun anew
    assert output.read(1).endswith(expected[1])


def test_a_file_that_was_cut_short_is_marked_as_lost(make):
    output = make()
    whole = fill(output)[None]
    os.truncate(output.path, 10)
    lost, _, kept = output.read().partition(b" of output lost: its file is gone]\n")
    assert lost.startswith(b"\n[arrea: ")
    assert whole.endswith(kept)


def test_what_a_full_disk_did_not_take_and_memory_still_holds_is_not_lost(make, monkeypatch):
    write_at = _output._write_at
    output = make()

    def almost_full(descriptor, at, data):
        if at >= 92:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write_at(descriptor, at, data[: 92 - at])

    monkeypatch.setattr(_output, "_write_at", almost_full)
    output.write(0, b"a" * 100)
    assert output.read() == b"a" * 100
    assert output.tail(0) == b""


def test_the_spool_is_private_to_its_user(make, spool):
    output = make()
    fill(output)
    assert stat.S_IMODE(os.stat(spool.directory).st_mode) == 0o700
    assert stat.S_IMODE(os.stat(output.path).st_mode) == 0o600


def test_the_files_go_when_the_output_does(make, spool, monkeypatch):
    monkeypatch.setattr(_output, "_MOST_RUNS", 8)
    output = make()
    fill(output)
    assert len(os.listdir(spool.directory)) == 2
    del output
    gc.collect()
    assert os.listdir(spool.directory) == []


@pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")
def test_a_forked_child_removes_nothing_of_its_parents(make, spool):
    output = make()
    fill(output)
    child = os.fork()
    if child == 0:
        try:
            del output
            gc.collect()
            spool.remove()
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    assert Path(output.path).exists()


def test_no_descriptor_stays_open(make):
    before = len(os.listdir("/proc/self/fd"))
    outputs = [make() for _ in range(20)]
    for output in outputs:
        fill(output)
        output.read()
    assert len(os.listdir("/proc/self/fd")) == before


def test_since_gives_what_is_new_and_where_to_go_on(make):
    output = make(memory_limit=1000)
    output.write(0, b"one")
    output.write(1, b"two")
    texts, offset, skipped = output.since(0, 100)
    assert (texts, offset, skipped) == ([("stdout", "one"), ("stderr", "two")], 6, 0)
    assert output.since(offset, 100) == ([], 6, 0)
    output.write(1, b"three")
    assert output.since(offset, 100) == ([("stderr", "three")], 11, 0)
    assert output.since(0, 4) == ([("stderr", "hree")], 11, 7)


def test_head_gives_what_was_printed_first_from_memory_or_from_the_file(make):
    output = make(memory_limit=64)
    assert output.head(10) == ([], 0)
    output.write(0, b"one ")
    output.write(1, b"two ")
    output.write(0, "€".encode())
    assert output.head(100) == ([("stdout", "one "), ("stderr", "two "), ("stdout", "€")], 11)
    for _ in range(10):
        output.write(0, b"x" * 50)
    assert output.head(9) == ([("stdout", "one "), ("stderr", "two ")], 8)
    assert output.head(6) == ([("stdout", "one "), ("stderr", "tw")], 6)
    os.unlink(output.path)
    assert output.head(10) == ([], 0)


def test_since_holds_back_a_character_that_has_not_arrived_whole(make):
    output = make(memory_limit=1000)
    euro = "€".encode()
    output.write(0, b"5 " + euro[:2])
    texts, offset, _ = output.since(0, 100)
    assert (texts, offset) == ([("stdout", "5 ")], 2)
    assert output.since(offset, 100) == ([], 2, 0)
    output.write(0, euro[2:] + b"!")
    assert output.since(offset, 100) == ([("stdout", "€!")], 6, 0)


def test_since_shows_a_character_that_will_never_be_whole_at_the_end(make):
    output = make(memory_limit=1000)
    output.write(0, b"x\xe2\x82")
    output.close()
    assert output.since(0, 100) == ([("stdout", "x�")], 3, 0)


def test_since_begins_with_a_whole_character_where_it_leaves_some_out(make):
    output = make(memory_limit=1000)
    output.write(0, "€€€".encode())
    assert output.since(0, 4) == ([("stdout", "€")], 9, 6)


def test_since_leaves_out_the_rest_of_a_character_also_before_another_streams_output(make):
    output = make(memory_limit=1000)
    output.write(0, "€".encode())
    output.write(1, b"x")
    assert output.since(0, 3) == ([("stderr", "x")], 4, 3)
    assert make().since(0, 3) == ([], 0, 0)


def test_a_character_that_another_streams_output_divides_is_shown_whole(make):
    output = make(memory_limit=1000)
    euro = "€".encode()
    output.write(0, euro[:1])
    output.write(1, b"warning\n")
    output.write(0, euro[1:])
    assert output.since(0, 100)[0] == [("stderr", "warning\n"), ("stdout", "€")]


def test_many_threads_may_read_while_one_writes(make):
    output = make(memory_limit=1000)
    done = threading.Event()
    wrong = []

    def look():
        while not done.is_set():
            if set(output.read(0)) - {ord("o")} or set(output.read(1)) - {ord("e")}:
                wrong.append("mixed")
            output.tail(5000)
            output.since(0, 500)

    readers = [threading.Thread(target=look) for _ in range(4)]
    for reader in readers:
        reader.start()
    for _ in range(2000):
        output.write(0, b"o" * 37)
        output.write(1, b"e" * 11)
    done.set()
    for reader in readers:
        reader.join()
    assert not wrong
    assert output.read(0) == b"o" * 74_000


def in_thread(run):
    """Runs it in a thread of its own, and fails when that hangs. Returns what it returned."""
    results = []
    thread = threading.Thread(target=lambda: results.append(run()), daemon=True)
    thread.start()
    thread.join(LONG)
    assert not thread.is_alive(), "it waits for itself"
    assert results
    return results[0]


def interrupted_at_each_step(prepare, write, then):
    """Calls `then` in the middle of `write`, at each step of it in turn, as a finaliser would be.

    `prepare` makes an output anew for each step. Yields what `then` returned, and the output afterwards.
    """
    for step in itertools.count():
        output = prepare()
        left = step
        result = None

        def trace(frame, event, arg):
            nonlocal left, result
            if not frame.f_code.co_filename.endswith(("_output.py", "_spool.py")):
                return None
            frame.f_trace_opcodes = True
            if event == "opcode":
                if left == 0:
                    result = [then(output)]  # noqa: B023 - called in this round
                left -= 1
            return trace

        before = sys.gettrace()
        sys.settrace(trace)
        try:
            write(output)
        finally:
            sys.settrace(before)
        if result is None:
            return
        yield result[0], output


def seen(output):
    """All that can be read, in four ways that must agree."""
    texts, end, left_out = output.since(0, 1 << 20)
    start = output.head(1 << 20)[0]
    return output.read(), output.read(0), output.read(1), output.tail(1 << 20), texts, start, end + left_out


SCENES = {
    "another word": (1000, 8, [(0, b"a"), (1, b"b")], (1, b"c")),
    "another stream": (1000, 8, [(0, b"a"), (1, b"b")], (0, b"c")),
    "the first that is filed": (64, 8, [(0, b"a" * 40), (1, b"b" * 20)], (0, b"c" * 30)),
    "more that is filed": (64, 8, [(0, b"a" * 100), (1, b"b" * 50)], (0, b"c" * 300)),
    "runs that are filed": (64, 4, [(0, b"a"), (1, b"b"), (0, b"c"), (1, b"d")], (0, b"e" * 70)),
    "what is dropped": (1000, 8, [(0, b"a" * 1000)], (1, b"b" * 50)),
}


@pytest.mark.parametrize("scene", SCENES)
def test_a_finaliser_that_reads_in_the_middle_of_a_write_sees_it_whole_or_not_at_all(
    make, monkeypatch, scene
):
    limit, most_runs, before, last = SCENES[scene]
    monkeypatch.setattr(_output, "_MOST_RUNS", most_runs)

    def prepare():
        output = make(memory_limit=limit, max_bytes=1024)
        for word in before:
            output.write(*word)
        return output

    output = prepare()
    either = [seen(output)]
    output.write(*last)
    either.append(seen(output))

    def check():
        steps = 0
        for now, output in interrupted_at_each_step(prepare, lambda output: output.write(*last), seen):
            assert now in either
            assert seen(output) == either[1]
            steps += 1
        return steps

    assert in_thread(check) > 50


@pytest.mark.parametrize("scene", SCENES)
def test_a_finaliser_that_writes_in_the_middle_of_a_write_comes_after_it(make, monkeypatch, scene):
    limit, most_runs, before, last = SCENES[scene]
    monkeypatch.setattr(_output, "_MOST_RUNS", most_runs)

    def prepare():
        output = make(memory_limit=limit, max_bytes=2048)
        for word in before:
            output.write(*word)
        return output

    def interrupt(output):
        output.write(1, b"first\n")
        output.write(0, b"second\n")

    def outcomes(order):
        output = prepare()
        for each in order:
            each(output)
        return seen(output)

    def write(output):
        output.write(*last)

    # Before it, when the write had not begun.
    either = [outcomes([write, interrupt]), outcomes([interrupt, write])]

    def check():
        steps = interrupted_at_each_step(prepare, write, interrupt)
        return [either.index(seen(output)) for _, output in steps]

    found = in_thread(check)
    assert found == sorted(found, reverse=True)
    assert found.count(0) > 50


def test_an_exception_in_the_middle_of_a_write_leaves_it_out_whole(make, monkeypatch):
    """A signal handler may raise at any point, in the main thread."""
    monkeypatch.setattr(_output, "_MOST_RUNS", 4)
    before = [(0, b"a" * 60), (1, b"b"), (0, b"c"), (1, b"d")]

    def prepare():
        output = make(memory_limit=64)
        for word in before:
            output.write(*word)
        return output

    either = []
    for written in ([], [(0, b"e" * 70)]):
        output = prepare()
        for word in [*written, (1, b"after")]:
            output.write(*word)
        either.append(seen(output))
    steps = 0
    for step in range(10**6):
        output = prepare()
        left = [step]

        def trace(frame, event, arg):
            # Where the next state is made. Around a lock or a descriptor Python has gaps of its own.
            made = frame.f_code.co_name in {"_accept", "_spill", "_spill_runs"}
            frame.f_trace_opcodes = True
            if made and event == "opcode":
                left[0] -= 1  # noqa: B023 - called in this round
                if left[0] == -1:  # noqa: B023
                    raise KeyboardInterrupt
            return trace

        known = sys.gettrace()
        sys.settrace(trace)
        try:
            with contextlib.suppress(KeyboardInterrupt):
                output.write(0, b"e" * 70)
        finally:
            sys.settrace(known)
        output.write(1, b"after")
        assert seen(output) in either
        if left[0] >= 0:
            break
        steps += 1
    assert steps > 50


def test_what_two_threads_write_at_the_same_time_is_all_there(make):
    output = make(memory_limit=1000)
    words = [b"%d %d\n" % (number, count) for number in range(4) for count in range(2000)]

    def write(number):
        for count in range(2000):
            output.write(number % 2, b"%d %d\n" % (number, count))

    threads = [threading.Thread(target=write, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    lines = output.read().splitlines(keepends=True)
    assert sorted(lines) == sorted(words)
    for number in range(4):
        own = [
            line for line in output.read(number % 2).splitlines(keepends=True) if line[:1] == b"%d" % number
        ]
        assert own == words[number * 2000 : (number + 1) * 2000]


def test_repr_shows_the_size_and_never_the_contents(make):
    output = make()
    output.write(0, b"secret")
    output.close()
    assert repr(output) == "<Output 6 bytes closed>"


def test_an_output_that_holds_little_is_small():
    assert sys.getsizeof(Output(Spool("x"), 1, 1).__dict__) < 400
