"""What a browser is told of a batch: all of it, compactly, and never more than so much a second."""

import contextlib
import json
import os
import re
import threading
from pathlib import Path
from queue import Empty, SimpleQueue

import psutil
import pytest

from arrea_nb._leader import Leader
from arrea_nb.notebook import _frames, _live
from arrea_nb.notebook._frames import Frames
from arrea_nb.notebook._usage import Usage

LONG = 30.0


@pytest.fixture
def leader():
    with Leader(grace=0.1) as made:
        yield made


def ended(leader, commands, **options):
    batch = leader.execute(commands, **options)
    assert batch.wait(LONG)
    return batch


class Browser:
    """What a browser would know after some messages."""

    def __init__(self):
        self.names, self.rows, self.output, self.skipped, self.sizes = {}, {}, {}, {}, []

    def take(self, message):
        self.sizes.append(len(json.dumps(message, ensure_ascii=False).encode()))
        first, names = message.get("names", [0, []])
        self.names.update(enumerate(names, first))
        self.rows.update({row[0]: row for row in message["jobs"]})
        for index, edition, skipped, pieces in message["output"]:
            key = index, edition
            self.skipped[key] = self.skipped.get(key, 0) + skipped
            self.output[key] = self.output.get(key, "") + "".join(text for _, text in pieces)

    def watch(self, frames, now=0.0):
        """Takes the picture, and frames until there is nothing more; returns the time at the end."""
        self.take(frames.picture(now))
        while frames.behind:
            now += _live.FRAME_INTERVAL
            self.take(frames.frame(now))
        return now


def test_the_whole_picture_of_a_small_batch_is_one_message(leader):
    batch = ended(leader, {"good": "echo hello", "bad": "echo oh >&2; exit 3", "py": lambda: 1 / 0})
    message = Frames(batch).picture(0.0)
    states = message["states"]
    assert (message["kind"], message["total"], message["number"]) == ("picture", 3, 1)
    assert message["names"] == [0, ["good", "bad", "py"]]
    told = [
        [states[row[1]], row[2], row[5].get("error") if len(row) > 5 else None] for row in message["jobs"]
    ]
    assert told == [
        ["succeeded", 1, None],
        ["failed", 1, "exit 3: oh"],
        ["failed", 1, "ZeroDivisionError: division by zero"],
    ]
    assert message["output"] == [[0, 1, 0, [[0, "hello\n"]]], [1, 1, 0, [[1, "oh\n"]]]]


def test_a_large_batch_comes_in_pieces_of_bounded_size(leader):
    go, began = threading.Event(), threading.Semaphore(0)
    jobs = {f"job {number} {'x' * 100}": lambda: began.release() or go.wait(LONG) for number in range(5000)}
    batch = leader.execute(jobs, max_commands=5000)
    for _ in range(4):
        assert began.acquire(timeout=LONG)
    browser = Browser()
    browser.watch(Frames(batch))
    assert [browser.names[index] for index in range(5000)] == list(jobs)
    assert len(browser.rows) == 4  # those that run; the others are queued, which need not be said
    assert max(browser.sizes) < 1.1 * _frames.MESSAGE
    go.set()
    assert batch.wait(LONG)
    again = Browser()
    again.watch(Frames(batch))
    assert {row[1] for row in again.rows.values()} == {3}
    assert len(again.rows) == 5000


def test_an_error_is_told_as_its_worker_put_it(leader):
    asked = []

    class AskedError(Exception):
        def __str__(self):
            asked.append(threading.current_thread().name)
            return "why"

    def fails():
        raise AskedError

    batch = ended(leader, [fails])
    before = list(asked)
    assert Frames(batch).picture(0.0)["jobs"][0][5]["error"] == "AskedError: why"
    assert asked == before


def test_what_did_not_change_is_not_sent_again(leader):
    batch = ended(leader, ["echo hello", "true"])
    frames = Frames(batch)
    Browser().watch(frames)
    frames.look({0, 1})
    message = frames.frame(1.0)
    assert (message["jobs"], message["output"]) == ([], [])


def test_a_flood_is_told_by_its_beginning_and_its_end(leader):
    batch = ended(leader, ["seq 1 1000000"])
    browser = Browser()
    browser.watch(Frames(batch))
    text = browser.output[0, 1]
    assert text.startswith("1\n2\n3\n")
    assert text.endswith("999999\n1000000\n")
    assert len(text) + browser.skipped[0, 1] == len(batch[0].stdout)
    assert sum(browser.sizes) < 200_000


def test_over_time_no_more_is_sent_than_the_rate(leader):
    printed = threading.Semaphore(0)
    more = threading.Semaphore(0)

    def flood():
        for _ in range(100):
            print("x" * 500_000)
            printed.release()
            more.acquire()

    batch = leader.execute([flood])
    frames = Frames(batch)
    browser = Browser()
    browser.take(frames.picture(0.0))
    for number in range(1, 101):
        assert printed.acquire(timeout=LONG)
        frames.look({0})
        browser.take(frames.frame(number / 10))
        more.release()
    assert batch.wait(LONG)
    assert sum(browser.sizes) < _frames.PICTURE + 10 * _frames.RATE
    assert sum(browser.sizes[-20:]) < 2.2 * _frames.RATE


def test_who_reads_a_job_gets_its_output_first(leader):
    batch = ended(leader, ["seq 1 20000"] * 50, workers=20)
    frames = Frames(batch)
    frames.prefer(49)
    assert frames.picture(0.0)["output"][0][0] == 49
    for nonsense in ("49", None, -1, 50, [1]):
        frames.prefer(nonsense)
    assert frames.frame(1.0)["output"][0][0] != 49


def test_output_of_many_jobs_is_all_told_once(leader):
    batch = ended(leader, [f"seq {number} 5000" for number in range(1, 41)], workers=20)
    browser = Browser()
    browser.watch(Frames(batch))
    for job in batch:
        assert browser.output[job.index, 1].endswith("4999\n5000\n")
        assert len(browser.output[job.index, 1]) + browser.skipped[job.index, 1] == len(job.stdout)


def test_a_new_attempt_is_told_before_its_output(leader, tmp_path):
    line = f"test -e {tmp_path}/again && echo second || {{ touch {tmp_path}/again; echo first; exit 1; }}"
    batch = leader.execute([line], policy={"retries": 1, "retry_delay": 60})
    frames = Frames(batch)
    browser = Browser()
    mailbox = leader.subscribe(batch=batch)
    while mailbox.get(LONG).type != "job_retrying":
        pass
    mailbox.close()
    browser.watch(frames)
    *_, more = browser.rows[0]
    assert browser.output == {(0, 1): "first\n"}
    assert more["error"] == "exit 1: first"
    assert 50 < more["due"] <= 60
    assert [state for _, _, state in more["past"]] == ["failed"]
    batch.cancel()
    assert batch.wait(LONG)


def test_an_attempt_that_begins_while_a_frame_is_made_is_told_before_its_output(leader, monkeypatch):
    go, end = threading.Event(), threading.Event()

    def work():
        if batch[0].attempt == 1:
            print("first")
            go.wait(LONG)
            raise ValueError
        print("second")
        end.wait(LONG)

    with leader.subscribe() as events:

        def heard(text):
            while getattr(event := events.get(LONG), "text", "").strip() != text:
                pass
            return event

        batch = leader.execute([work], policy={"retries": 1, "retry_delay": 0})
        heard("first")
        frames, browser = Frames(batch), Browser()
        browser.watch(frames)
        assert (browser.rows[0][2], browser.output) == (1, {(0, 1): "first\n"})

        rows = frames._some_rows

        def slow(room, now):
            made = rows(room, now)
            go.set()
            heard("second")
            return made

        monkeypatch.setattr(frames, "_some_rows", slow)
        frames.look([0])
        message = frames.frame(1.0)
        browser.take(message)
        assert (browser.rows[0][2], message["output"]) == (1, [])
        monkeypatch.setattr(frames, "_some_rows", rows)
        browser.take(frames.frame(2.0))
        assert browser.rows[0][2] == 2
        assert browser.output == {(0, 1): "first\n", (0, 2): "second\n"}
        end.set()
        assert batch.wait(LONG)


def test_attempts_and_their_output_follow_each_other(leader, tmp_path):
    line = f"test -e {tmp_path}/again && echo second || {{ touch {tmp_path}/again; echo first; exit 1; }}"
    batch = leader.execute([line], policy={"retries": 1, "retry_delay": 0.3})
    frames = Frames(batch)
    browser = Browser()
    browser.take(frames.picture(0.0))
    bell = SimpleQueue()
    watch = leader._engine.watch(batch, bell)
    now = 0.0
    while not batch.done() or frames.behind:
        with contextlib.suppress(Empty):
            bell.get(timeout=0.01)
        now += 0.1
        frames.look(watch.take())
        message = frames.frame(now)
        browser.take(message)
        for _, edition, _, _ in message["output"]:
            assert browser.rows[0][2] == edition
    watch.close()
    assert browser.output == {(0, 1): "first\n", (0, 2): "second\n"}
    index, state, attempt, start, took, more = browser.rows[0]
    assert (state, attempt) == (3, 2)
    [(first, lasted, _)] = more["past"]
    assert first + lasted <= start + 0.002  # all three are rounded
    assert start <= first + took + 0.002


def test_processor_and_memory_of_a_process_tree():
    script = "import os, time; x = bytearray(50_000_000); os.fork()\nwhile True: pass"
    process = psutil.Popen(["python3", "-c", script], start_new_session=True)
    try:
        usage = Usage()
        # Two processes that never rest: between two looks they use what the machine gives them.
        while usage.of.get(0, (0, 0))[1] < 50_000_000 or not process.children():
            usage.measure({0: process.pid, 1: 2**22 + 1}, 0.0)
        usage.measure({0: process.pid}, 10.0)
        before = sum(sum(one.cpu_times()[:2]) for one in [process, *process.children()])
        while sum(sum(one.cpu_times()[:2]) for one in [process, *process.children()]) < before + 0.5:
            pass
        assert usage.measure({0: process.pid}, 11.0) == {0}
        percent, memory = usage.of[0]
        assert percent >= 45
        assert memory > 50_000_000
        assert usage.measure({}, 12.0) == {0}
        assert usage.of == {}
    finally:
        os.killpg(process.pid, 9)
        process.wait()


def test_processes_are_looked_at_once_a_second_and_only_while_they_run(leader, monkeypatch):
    looked = []
    monkeypatch.setattr(Usage, "measure", lambda self, pids, now: looked.append((dict(pids), now)) or set())
    batch = leader.execute(["sleep 60"])
    frames = Frames(batch)
    bell = SimpleQueue()
    watch = leader._engine.watch(batch, bell)
    while batch[0].state != "running":
        bell.get(timeout=LONG)
        watch.take()
    frames.picture(100.0)
    assert frames.due == 100.0
    for tenth in range(25):
        frames.measure(100.0 + tenth / 10)
    assert [at for _, at in looked] == [100.0, 101.0, 102.0]
    assert looked[0][0] == {0: batch[0].pid}
    batch.cancel()
    assert batch.wait(LONG)
    frames.look({0})
    frames.frame(103.0)
    frames.measure(104.0)
    assert frames.due == float("inf")
    watch.close()


def test_the_module_is_joined_of_its_parts_in_the_order_of_their_imports():
    folder = Path(_live.__file__).parent / "static"
    assert {f"{part}.js" for part in _live._PARTS} == {path.name for path in folder.glob("*.js")}
    before = set()
    for part in _live._PARTS:
        imported = set(re.findall(r"""from "\./(\w+)\.js";""", (folder / f"{part}.js").read_text("utf-8")))
        assert imported <= before
        before.add(part)
    text = _live.joined(folder, _live._PARTS)
    assert not re.search(r"^(import|export (?!default))", text, flags=re.MULTILINE)
    assert text.count("export default") == 1
    assert "innerHTML" not in text
