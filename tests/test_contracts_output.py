"""C11 to C14, C22 and C23: what jobs print, and how far they are."""

import contextvars
import gc
import os
import stat
import sys
import threading
import tracemalloc
import weakref
from pathlib import Path

import pytest

import arrea_nb
from arrea_nb.errors import BatchFailed
from arrea_nb.events import BatchRemoved, JobEnded, JobOutput, JobProgress

LONG = 60.0
MEGABYTE = 1 << 20


def _ended(batch):
    assert batch.wait(timeout=LONG)
    return batch


def _spooled():
    return list(Path(os.environ["TMPDIR"]).glob("arrea-*/*.out"))


# C11


def test_c11_half_a_character_at_the_end_is_shown_replaced():
    told = ""
    with arrea_nb.subscribe() as events:
        batch = arrea_nb.execute([r"printf 'a\303'"])
        while not isinstance(event := events.get(timeout=LONG), JobEnded):
            told += event.text if isinstance(event, JobOutput) else ""
    assert (told, batch[0].stdout, batch[0].output_bytes) == ("a�", "a�", b"a\xc3")


def test_c11_streams_are_kept_apart_and_together():
    job = _ended(arrea_nb.execute(["echo a; echo b >&2; sleep 0.05; echo c; sleep 0.05; echo d >&2"]))[0]
    assert (job.stdout, job.stderr) == ("a\nc\n", "b\nd\n")
    assert sorted(job.output.splitlines()) == ["a", "b", "c", "d"]
    assert job.output.endswith("c\nd\n")
    assert job.tail(1) == "d\n"
    assert job.tail(2) == "c\nd\n"


def test_c11_each_stream_is_exact():
    line = 'i=0; while [ $i -lt 3000 ]; do echo "out $i"; echo "err $i" >&2; i=$((i+1)); done'
    job = _ended(arrea_nb.execute([line]))[0]
    assert job.stdout == "".join(f"out {at}\n" for at in range(3000))
    assert job.stderr == "".join(f"err {at}\n" for at in range(3000))
    assert sorted(job.output.splitlines()) == sorted((job.stdout + job.stderr).splitlines())


def test_c11_bytes_that_are_not_utf8_are_shown_replaced_and_kept_exact():
    data = bytes(range(256))
    octal = "".join(f"\\{byte:03o}" for byte in data)
    with arrea_nb.subscribe() as events:
        job = _ended(arrea_nb.execute([["printf", octal]]))[0]
        text = ""
        for event in iter(lambda: events.get(timeout=LONG), None):
            if isinstance(event, JobOutput):
                text += event.text
            if isinstance(event, JobEnded):
                break
    assert job.output_bytes == data
    assert job.stdout == data.decode("utf-8", "replace")
    assert text.rstrip("\ufffd") == job.stdout.rstrip("\ufffd")


def test_c11_a_character_that_is_cut_in_two_arrives_whole():
    with arrea_nb.subscribe() as events:
        batch = arrea_nb.execute([r"printf '\303'; sleep 0.1; printf '\244\n'"])
        assert _ended(batch)[0].stdout == "ä\n"
        texts = []
        for event in iter(lambda: events.get(timeout=LONG), None):
            if isinstance(event, JobOutput):
                texts.append(event.text)
            if isinstance(event, JobEnded):
                break
    assert "".join(texts) == "ä\n"


# C12


def test_c12_a_hundred_jobs_that_print_a_megabyte_show_all_of_it():
    line = f"head -c {MEGABYTE - 8} /dev/zero | tr '\\0' x; printf %08d $ARREA_JOB_INDEX"
    arrea_nb.execute(["true"]).wait(timeout=LONG)
    tracemalloc.start()
    try:
        batch = _ended(arrea_nb.execute([line] * 100, workers=8))
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    for job in batch:
        assert job.stdout == "x" * (MEGABYTE - 8) + f"{job.index:08d}"
    # 256 KiB each and not a megabyte, with what buffers grow beyond what is in them.
    assert held < 100 * 2 * (256 << 10)
    assert len(_spooled()) == 100
    assert Path(batch[0].output_path).stat().st_size > 0


def test_c12_past_the_limit_output_is_dropped_with_a_mark_and_the_command_goes_on():
    with arrea_nb.Leader(max_output_bytes=1000, memory_output_bytes=1024) as leader:
        batch = leader.execute(
            ["head -c 5000000 /dev/zero | tr '\\0' x; exit 4", lambda: print("y" * 5000) or "done"]
        )
        shell, python = _ended(batch)
        assert (shell.state, shell.exit_code, python.value) == ("failed", 4, "done")
        assert shell.stdout.startswith("x" * 1000 + "\n[arrea: ")
        assert python.stdout.startswith("y" * 1000 + "\n[arrea: ")
        assert len(shell.stdout) < 1200
        assert shell.output_bytes == shell.stdout.encode()


def test_c12_what_an_attempt_printed_is_let_go_when_it_is_tried_again():
    def work():
        print("x" * 5000)
        raise ValueError

    with arrea_nb.Leader(memory_output_bytes=1024) as leader:
        job = _ended(leader.execute([work], policy={"retries": 3, "retry_delay": 0.0}))[0]
        assert len(job.attempts) == 4
        assert [str(path) for path in _spooled()] == [job.output_path]


def test_c12_small_output_needs_no_file():
    job = _ended(arrea_nb.execute(["echo hello"]))[0]
    assert job.output_path is None
    assert _spooled() == []


# C13


def test_c13_what_a_callable_prints_goes_to_its_own_job_only(capsys):
    met = threading.Barrier(4)

    def work(at):
        for line in range(50):
            if line % 10 == 0:
                met.wait(LONG)
            print(f"{at} {line}")
            print(f"{at} {line}", file=sys.stderr)
        sys.stdout.buffer.write(b"bytes\n")

    batch = arrea_nb.execute([lambda at=at: work(at) for at in range(4)])
    print("the main thread's")
    _ended(batch)
    for job in batch:
        assert job.stdout == "".join(f"{job.index} {line}\n" for line in range(50)) + "bytes\n"
        assert job.stderr == "".join(f"{job.index} {line}\n" for line in range(50))
    assert capsys.readouterr().out == "the main thread's\n"


def test_c13_a_thread_with_the_context_belongs_to_the_job_and_one_without_does_not(capsys):
    def work():
        with_it = threading.Thread(target=contextvars.copy_context().run, args=(print, "with"))
        without = threading.Thread(target=print, args=("without",))
        for thread in (with_it, without):
            thread.start()
            thread.join(LONG)

    assert _ended(arrea_nb.execute([work]))[0].stdout == "with\n"
    assert capsys.readouterr().out == "without\n"


def test_c13_what_is_written_after_the_end_is_dropped(capsys):
    go = threading.Event()
    threads = []

    def late():
        go.wait(LONG)
        print("late")

    def silent():
        thread = threading.Thread(target=contextvars.copy_context().run, args=(late,))
        threads.append(thread)
        thread.start()

    def work():
        print("in time")
        silent()

    batch = _ended(arrea_nb.execute([work, silent]))
    with arrea_nb.subscribe() as events:
        go.set()
        for thread in threads:
            thread.join(LONG)
        arrea_nb.notify_event({"type": "the end"})
        assert events.get(timeout=LONG).type == "custom_event"
    assert [job.stdout for job in batch] == ["in time\n", ""]
    assert capsys.readouterr().out == ""


def test_c13_input_raises():
    batch = arrea_nb.execute([lambda: input("name? ")])
    with pytest.raises(BatchFailed, match=r"input\(\) cannot be asked for in a job"):
        batch.results(timeout=LONG)


def test_c13_a_batch_keeps_its_callers_context_and_each_attempt_has_a_fresh_copy():
    colour = contextvars.ContextVar("colour", default="none")
    seen = []

    def work():
        seen.append(colour.get())
        colour.set("changed by a job")
        if len(seen) < 2:
            raise ValueError("again")

    token = colour.set("blue")
    batch = arrea_nb.execute([work], policy={"retries": 1, "retry_delay": 0})
    colour.reset(token)
    _ended(batch)
    assert seen == ["blue", "blue"]
    assert colour.get() == "none"


def test_c13_a_patched_stdout_is_restored_when_the_leader_closes():
    before = sys.stdout
    arrea_nb.execute([int]).wait(timeout=LONG)
    assert sys.stdout is not before
    arrea_nb.Leader.instance().close()
    assert sys.stdout is before


def test_c13_a_nested_batch_does_not_finish_its_parents_characters():
    """Bytes of half a character wait for the rest of it in the attempt that wrote them, and nowhere else."""

    def inside():
        sys.stdout.buffer.write(b"\xac!")

    def outside():
        sys.stdout.buffer.write(b"\xe2\x82")
        nested = _ended(arrea_nb.execute([inside, inside]))
        sys.stdout.buffer.write(b"\xac")
        return [job.stdout for job in nested]

    batch = arrea_nb.execute([outside])
    assert batch[0].result(timeout=LONG) == ["\ufffd!"] * 2
    assert batch[0].stdout == "€"


def test_c13_a_nested_batch_does_not_print_into_its_parent_and_does_not_hold_it():
    class Large:
        """What the parent returned."""

    def outside():
        kept.append(leader.execute([lambda: print("inside"), "echo inside"]))
        _ended(kept[0])
        print("outside")
        return Large()

    kept = []
    with arrea_nb.Leader(keep_batches=0, batch_retention=0.0, cleanup_interval=0.01) as leader:
        events = leader.subscribe()
        batch = leader.execute([outside])
        large = weakref.ref(batch[0].result(timeout=LONG))
        assert batch[0].output == "outside\n"
        assert [job.output for job in kept[0]] == ["inside\n"] * 2
        removed = 0
        while removed < 2:
            removed += isinstance(events.get(timeout=LONG), BatchRemoved)
        del batch
        for thread in threading.enumerate():
            if thread.name.startswith("arrea-worker"):
                thread.join(LONG)
        gc.collect()
        assert large() is None
        assert len(kept[0]) == 2


# C14


def test_c14_the_spool_is_one_private_directory_and_goes_with_the_leader():
    with arrea_nb.Leader(memory_output_bytes=1024) as leader:
        batch = _ended(leader.execute(["head -c 100000 /dev/zero"] * 3))
        paths = [Path(job.output_path) for job in batch]
        folder = paths[0].parent
        assert {path.parent for path in paths} == {folder}
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        assert all(stat.S_IMODE(path.stat().st_mode) & 0o077 == 0 for path in paths)
        assert [len(job.output_bytes) for job in batch] == [100000] * 3
    assert not folder.exists()


def test_c14_a_file_goes_with_its_batch():
    with arrea_nb.Leader(cleanup_interval=0.01, batch_retention=0.0, keep_batches=0) as leader:
        leader.memory_output_bytes = 1024
        with leader.subscribe() as events:
            batch = _ended(leader.execute(["head -c 100000 /dev/zero"]))
            while events.get(timeout=LONG).type != "batch_removed":
                pass
        assert leader.get_state().batches == {}
        # It left the Leader, but the user holds it still.
        assert len(batch[0].output_bytes) == 100000
        assert len(_spooled()) == 1


# C22


def test_c22_progress_from_a_callable():
    def work():
        arrea_nb.progress(1, 4, "first")
        arrea_nb.progress(0.5)
        arrea_nb.progress(0.5)
        arrea_nb.progress(9, 4)
        for _ in arrea_nb.track([1, 2]):
            pass
        arrea_nb.progress(3)

    with arrea_nb.subscribe() as events:
        batch = arrea_nb.execute([work])
        told = []
        for event in iter(lambda: events.get(timeout=LONG), None):
            if isinstance(event, JobProgress):
                told.append((event.fraction, event.done, event.total, event.message))
            if isinstance(event, JobEnded):
                break
    assert told == [
        (0.25, 1.0, 4.0, "first"),
        (0.5, 0.5, None, ""),
        (1.0, 9.0, 4.0, ""),
        (0.0, 0, 2, ""),
        (0.5, 1, 2, ""),
        (1.0, 2, 2, ""),
    ]
    assert batch[0].progress == 1.0


def test_c22_progress_outside_a_job_is_nothing():
    assert arrea_nb.progress(1, 2) is None
    assert list(arrea_nb.track(range(3))) == [0, 1, 2]
    assert list(arrea_nb.track(iter("ab"), total=2)) == ["a", "b"]


@pytest.mark.parametrize(
    ("text", "fraction"),
    [
        (r"\r 10%%|#   | 1/10\r 42%%|####| 4/10", 0.42),
        (r"fetching  7%%\rfetching  12.5 %%", 0.125),
        (r"\033]9;4;1;37\007", 0.37),
        (r"\033]9;4;1;38\033\\\\", 0.38),
        (r"a line with 50%% in it\n", None),
        (r"\rimpossible 400%%", None),
        (r"\r", None),
    ],
)
def test_c22_progress_from_output(text, fraction, tmp_path):
    line = f"printf '{text}'; until [ -e {tmp_path}/go ]; do sleep 0.01; done; exit 3"
    with arrea_nb.subscribe() as events:
        batch = arrea_nb.execute([line])
        while not isinstance(event := events.get(timeout=LONG), JobOutput):
            pass
        if fraction is not None:
            while not isinstance(event, JobProgress):
                event = events.get(timeout=LONG)
            assert event.fraction == pytest.approx(fraction)
        (tmp_path / "go").touch()
        _ended(batch)
    assert batch[0].progress == (None if fraction is None else pytest.approx(fraction))


# C23


def test_c23_an_eta_is_absent_when_nothing_is_known_and_there_when_something_is():
    gates = [threading.Event() for _ in range(3)]

    def work(gate):
        gate.wait(LONG)

    def halfway():
        arrea_nb.progress(0.5)
        gates[2].wait(LONG)

    with arrea_nb.subscribe() as events:
        batch = arrea_nb.execute([lambda: work(gates[0]), lambda: work(gates[1]), halfway], workers=1)
        assert batch.eta is None
        gates[0].set()
        while not isinstance(events.get(timeout=LONG), JobEnded):
            pass
        assert batch.eta > 0
        gates[1].set()
        while not isinstance(events.get(timeout=LONG), JobProgress):
            pass
        assert batch.eta > 0
        gates[2].set()
    _ended(batch)
    assert batch.eta is None


def test_c23_progress_alone_is_ground_enough():
    gate = threading.Event()

    def halfway():
        arrea_nb.progress(0.5)
        gate.wait(LONG)

    with arrea_nb.subscribe() as events:
        batch = arrea_nb.execute([halfway])
        while not isinstance(events.get(timeout=LONG), JobProgress):
            pass
        assert batch.eta > 0
        gate.set()
        _ended(batch)
