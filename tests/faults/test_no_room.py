"""No descriptors, processes, threads, memory or disk left: each job ends rightly and says what to do.

And once there is room again, the same Leader works as before.
"""

import os
import subprocess

import pytest

# An ordinary user whom nobody else on this machine is: a limit of processes counts all that a user runs.
_ORDINARY = """
if os.getuid() == 0:
    import multiprocessing, subprocess, asyncio, logging.handlers, tempfile  # while they can be read
    os.setgroups([])
    os.setgid(100_000 + os.getpid())
    os.setuid(100_000 + os.getpid())
os.chdir("/")
def tasks():
    count = 0
    for entry in filter(str.isdigit, os.listdir("/proc")):
        try:
            if os.stat(f"/proc/{entry}").st_uid == os.getuid():
                count += len(os.listdir(f"/proc/{entry}/task"))
        except OSError:
            pass  # ended meanwhile
    return count
def room_for(number):
    resource.setrlimit(resource.RLIMIT_NPROC, (tasks() + number, MOST))
def room():
    resource.setrlimit(resource.RLIMIT_NPROC, (MOST, MOST))
MOST = resource.getrlimit(resource.RLIMIT_NPROC)[1]
"""


def test_no_descriptors_left(alone):
    """C19: every job could not start, says so, and not a descriptor is lost on the way."""
    told, stderr = alone("""
def open_now():
    for thread in threading.enumerate():
        if thread.name.startswith("arrea-worker"):
            thread.join()  # the last thing that it does is to close its own
    return len(os.listdir("/proc/self/fd"))
assert ended(arrea_nb.execute(["true"] * 3)) == ["succeeded"] * 3
before = open_now()
taken = []
soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
try:
    while True:
        taken.append(os.open("/dev/null", os.O_RDONLY))
except OSError:
    pass
told["states"], told["errors"] = [], []
for free in range(10):
    # With none free the first pipe fails, then the second, then what Popen needs, then the guard's share.
    batch = arrea_nb.execute(["true"] * 2 + [lambda: 7], workers=1)
    told["states"].append(ended(batch))
    told["errors"].append([str(job.error or "") for job in batch])
    os.close(taken.pop())
while taken:
    os.close(taken.pop())
told["after"] = ended(arrea_nb.execute(["true"] * 5))
told["lost"] = open_now() - before
""")
    assert told["states"][0] == ["failed", "failed", "succeeded"]
    assert told["states"][-1] == ["succeeded"] * 3
    for states, errors in zip(told["states"], told["errors"], strict=True):
        for state, error in zip(states, errors, strict=True):
            assert state in {"succeeded", "failed"}
            assert state == "succeeded" or error == (
                "could not start: Too many open files (exit 126); the kernel may open no more (ulimit -n); "
                "raise that, or run fewer at once (workers=)"
            )
    assert told["after"] == ["succeeded"] * 5
    assert told["lost"] <= 0
    assert "bug" not in stderr


def test_no_descriptors_left_for_what_is_spooled(alone):
    """C12: what cannot be filed is marked, what was filed is not said to be gone, and the job goes on."""
    told, _ = alone("""
leader = arrea_nb.Leader.instance(memory_output_bytes=1024)
line = "yes | head -c 5000; echo middle; read line < FIFO; yes | head -c 5000; echo end"
fifo = os.path.join(os.environ["TMPDIR"], f"fifo-{os.getpid()}")
os.mkfifo(fifo)
batch = arrea_nb.execute([line.replace("FIFO", fifo)])
job = batch[0]
with arrea_nb.subscribe(batch=batch) as events:
    for event in events:
        if event.type == "job_output" and "middle" in event.text:
            break
way = os.open(fifo, os.O_WRONLY)
soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
taken = []
resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
try:
    while True:
        taken.append(os.open("/dev/null", os.O_RDONLY))
except OSError:
    pass
os.write(way, b"go\\n")
told["states"] = ended(batch)
told["without"] = job.stdout
for fd in taken:
    os.close(fd)
told["with"] = job.stdout
os.unlink(fifo)
""")
    assert told["states"] == ["succeeded"]
    assert "of output lost: Too many open files]" in told["without"]
    assert "gone" not in told["without"]
    assert told["with"].startswith("y\n" * 1900)
    assert "of output lost: Too many open files]" in told["with"]
    assert told["with"].endswith("y\ny\nend\n")


def test_no_processes_left_for_shell_jobs(alone):
    """One thread more can be had, and no process: the shell jobs could not start, the callable runs."""
    told, stderr = alone(
        _ORDINARY
        + """
room_for(1)
batch = arrea_nb.execute(["true", "true", lambda: 7], workers=3)
told["states"] = ended(batch)
told["errors"] = [str(job.error) for job in batch]
told["value"] = batch[2].value
room()
told["after"] = ended(batch.retry_failed())
"""
    )
    assert told["states"] == ["failed", "failed", "succeeded"]
    assert told["value"] == 7
    for error in told["errors"][:2]:
        assert error == (
            "could not start: Resource temporarily unavailable (exit 126); "
            "no more processes are allowed (ulimit -u); end some, or run fewer at once (workers=)"
        )
    assert told["after"] == ["succeeded"] * 2
    assert "no further thread could be started" in stderr
    assert "bug" not in stderr


def test_no_thread_left_for_any_worker(alone):
    """Nobody can run them and nobody ever would: they have failed at once, and `execute` returned."""
    told, stderr = alone(
        _ORDINARY
        + """
room_for(0)
batch = arrea_nb.execute(["true", int, int])
told["states"] = ended(batch)
told["errors"] = [str(job.error) for job in batch]
told["stats"] = dict(arrea_nb.get_state().stats)
room()
told["after"] = ended(batch.retry_failed())
"""
    )
    assert told["states"] == ["failed"] * 3
    for error in told["errors"]:
        assert error.startswith("could not start: no thread could be started for it; end what uses up")
        assert error.endswith("retry_failed()")
    assert set(told["stats"].values()) == {0}
    assert told["after"] == ["succeeded"] * 3
    assert "bug" not in stderr


def test_no_thread_left_for_a_nested_batch(alone):
    """The only worker waits for a batch that nobody else could run: it hears that, and goes on."""
    told, stderr = alone(
        _ORDINARY
        + """
def outer():
    inner = arrea_nb.execute([int, int])
    inner.wait()
    return [str(job.state) for job in inner]
room_for(1)
batch = arrea_nb.execute([outer], timeout=None)
told["states"] = ended(batch)
told["inner"] = batch[0].value
room()
told["after"] = ended(arrea_nb.execute([outer]))
"""
    )
    assert told["states"] == ["succeeded"]
    assert told["inner"] == ["failed", "failed"]
    assert told["after"] == ["succeeded"]
    assert "bug" not in stderr


def test_no_thread_left_for_the_timer(alone):
    """A retry is due although the timer has no thread: the worker that has nothing to do looks for it."""
    told, stderr = alone(
        _ORDINARY
        + """
tries = []
def flaky():
    tries.append(1)
    if len(tries) < 3:
        raise ValueError("not yet")
    return len(tries)
room_for(1)
batch = arrea_nb.execute([flaky], timeout=30, policy={"retries": 5, "retry_delay": 0.02})
told["states"] = ended(batch)
told["value"] = batch[0].value
room()
told["after"] = ended(arrea_nb.execute([flaky] * 4))
leader = arrea_nb.Leader.instance()
deadline = time.monotonic() + 30
while leader._engine.workers or leader._engine.timer._thread is not None:
    assert time.monotonic() < deadline
    time.sleep(0.01)
"""
    )
    assert told == {"states": ["succeeded"], "value": 3, "after": ["succeeded"] * 4}
    assert "the timer's thread could not be started" in stderr
    assert "bug" not in stderr


def test_no_memory_left(alone):
    """C21: allocations fail in the kernel and for its threads; every job ends, and the kernel goes on."""
    told, stderr = alone("""
def hoard():
    held = []
    while True:
        held.append(bytearray(1 << 24))
started = threading.Event()
go = threading.Event()
def wait():
    started.set()
    return go.wait(60)
running = arrea_nb.execute(["cat /proc/self/stat | head -c 5; sleep 0.2", wait], workers=2)
started.wait(60)
soft, hard = resource.getrlimit(resource.RLIMIT_AS)
with open("/proc/self/statm") as file:
    size = int(file.read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (size + (4 << 20), hard))  # not room for one more thread's stack
hungry = arrea_nb.execute([hoard, int, "true"] * 3, workers=9)
go.set()
told["running"] = ended(running)
told["hungry"] = ended(hungry)
told["errors"] = [str(job.error or "") for job in hungry]
resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
told["after"] = ended(arrea_nb.execute([int, "true"] * 3, workers=6))
""")
    assert told["running"] == ["succeeded", "succeeded"]
    for at, state in enumerate(told["hungry"]):
        if at % 3 == 0:
            assert state == "failed"
        else:
            assert state == "succeeded" or "memory" in told["errors"][at], told["errors"][at]
    assert told["after"] == ["succeeded"] * 6
    assert "bug" not in stderr


@pytest.fixture
def small_disk(tmp_path):
    """A file system of one megabyte."""
    there = tmp_path / "disk"
    there.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", there], check=True)
    yield there
    subprocess.run(["umount", there], check=True)


def test_a_full_disk_costs_output_and_no_job(alone, small_disk):
    """C12: four jobs print 3 MB onto a disk of one; the loss is marked, and then the disk serves again."""
    told, stderr = alone(
        """
line = "seq -f %0999.0f 3000; echo end"
batch = arrea_nb.execute([line] * 4)
told["states"] = ended(batch)
out = [job.stdout for job in batch]
told["ends"] = [text.endswith("end\\n") for text in out]
told["begins"] = [text[:1000] == "0" * 998 + "1\\n" or text[:2] == "\\n[" for text in out]
told["marks"] = [text.count("of output lost: No space left on device]") for text in out]
told["sizes"] = [len(text) for text in out]
batch = None
import gc; gc.collect()
arrea_nb._leader.Leader.instance().batch_retention = 0.0
arrea_nb._leader.Leader.instance().keep_batches = 0
arrea_nb._leader.Leader.instance().cleanup_interval = 0.01
with arrea_nb.subscribe() as events:
    arrea_nb.execute([int]).wait()
    while events.get(timeout=30).type != "batch_removed":
        pass
gc.collect()
after = arrea_nb.execute(["seq -f %0999.0f 600"])
told["after"] = ended(after)
told["whole"] = after[0].stdout == "".join(f"{number:0999d}\\n" for number in range(1, 601))
""",
        env={**os.environ, "TMPDIR": str(small_disk)},
    )
    assert told["states"] == ["succeeded"] * 4
    assert all(told["ends"])
    assert all(told["begins"])
    assert all(told["marks"])
    assert sum(told["sizes"]) < (2 << 20) + 4 * (256 << 10)
    assert told["after"] == ["succeeded"]
    assert told["whole"]
    assert stderr == ""


def test_a_file_that_may_not_grow_costs_output_and_no_job(alone):
    """C12: the same under a limit of the size of a file, whose signal must not end the kernel."""
    told, stderr = alone("""
resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, -1))
batch = arrea_nb.execute(["seq -f %0999.0f 2000; echo end"])
told["states"] = ended(batch)
text = batch[0].stdout
told["right"] = text.startswith("0" * 998 + "1\\n") and text.endswith("end\\n")
told["mark"] = "of output lost: File too large]" in text
""")
    assert told == {"states": ["succeeded"], "right": True, "mark": True}
    assert stderr == ""


def test_a_spool_that_is_deleted_under_us_costs_output_and_no_job(alone):
    """C14, C12: it is made again, private as before, and what was in it is marked as lost."""
    told, stderr = alone("""
import shutil
fifo = os.path.join(os.environ["TMPDIR"], f"fifo-{os.getpid()}")
os.mkfifo(fifo)
much = "yes | head -c 400000"
batch = arrea_nb.execute([f"{much}; echo middle; read x < {fifo}; {much}; echo end"])
with arrea_nb.subscribe(batch=batch) as events:
    for event in events:
        if event.type == "job_output" and "middle" in event.text:
            break
spool = os.path.dirname(batch[0].output_path)
shutil.rmtree(spool)
told["meanwhile"] = "of output lost: its file is gone]" in batch[0].stdout
with open(fifo, "w") as way:
    way.write("go\\n")
told["states"] = ended(batch)
told["mode"] = os.stat(spool).st_mode & 0o777
text = batch[0].stdout
told["mark"] = "of output lost: its file was removed]" in text
told["end"] = text.endswith("y\\ny\\nend\\n")
told["size"] = len(text) > 350_000
os.unlink(fifo)
""")
    assert told == {
        "meanwhile": True,
        "states": ["succeeded"],
        "mode": 0o700,
        "mark": True,
        "end": True,
        "size": True,
    }
    assert stderr == ""
