"""What the parts of the soak share: who counts, apart from our own counters, and what may be left at the end.

A part is a script of its own, `python PART.py COUNT SEED`, and prints its figures as one line of JSON. What
a job did is read from a file that each attempt appends to; our events are counted by a subscriber; both are
compared with what the Batch says.
"""

import json
import os
import sys
import tempfile
import threading
import time
import zlib
from collections import Counter
from pathlib import Path

import psutil

from arrea_nb.events import BatchEnded, BatchStarted, JobEnded, JobRetrying, JobStarted

# How long a closed Leader's threads, guard and children may take to be gone, in seconds.
PATIENCE = 10.0


class Figures:
    """What a part found. `broken` lists promises that did not hold; the rest is for the table."""

    def __init__(self):
        self.jobs = 0
        self.attempts = 0
        self.faults = Counter()
        self.left = Counter(processes=0, threads=0, descriptors=0, bytes=0)
        self.lost_events = 0
        self.heartbeat_ms = None
        self.grown_bytes = None
        self.notes = []
        self.broken = []

    def check(self, holds, what):
        """Notes a broken promise."""
        if not holds:
            self.broken.append(what)


class Witness:
    """A file that each attempt appends to, with O_APPEND: one line when it begins, one when it is done."""

    def __init__(self):
        self.path = Path(tempfile.gettempdir(), "witness")
        self._file = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        self._told = {}

    def begun(self, batch, index):
        """Called by a callable as the first thing it does; a shell line does it with `begins`."""
        os.write(self._file, b"b %d %d\n" % (batch, index))

    def done(self, batch, index):
        """Called as the last thing."""
        os.write(self._file, b"d %d %d\n" % (batch, index))

    def begins(self, batch, index):
        """The same as the beginning of a shell line."""
        return f"echo b {batch} {index} >> {self.path}; "

    def ends(self, batch, index):
        """The same as the end of a shell line."""
        return f"; echo d {batch} {index} >> {self.path}"

    def keep(self, number, batch):
        """Notes what the records of an ended batch say; the batch itself may go."""
        for job in batch.jobs:
            self._told[number, job.index] = (job.state, *(attempt.state for attempt in job.attempts))

    def compare(self, figures):
        """Checks that each job ran exactly as often as its record said."""
        os.close(self._file)
        begun, done = Counter(), Counter()
        with self.path.open() as lines:
            for line in lines:
                what, batch, index = line.split()
                (begun if what == "b" else done)[int(batch), int(index)] += 1
        self.path.unlink()
        for key, (state, *attempts) in self._told.items():
            figures.jobs += 1
            figures.attempts += len(attempts)
            wrong = _wrong(state, attempts, begun.pop(key, 0), done.pop(key, 0))
            figures.check(not wrong, f"job {key[1]} of batch {key[0]}, {state}: {wrong}")
        figures.check(not begun, f"{len(begun)} jobs ran that no batch has")


def _wrong(state, attempts, begun, done):
    """An attempt that was stopped may have been stopped before its first or after its last line."""
    whole = sum(one in {"succeeded", "failed"} for one in attempts)
    if not whole <= begun <= len(attempts):
        return f"{begun} runs on disk, attempts {[str(one) for one in attempts]}"
    least = int(state == "succeeded")
    if not least <= done <= least + len(attempts) - whole:
        return f"{done} ends on disk, attempts {[str(one) for one in attempts]}"
    return None


class Listener:
    """A subscriber that counts, and notes the order in which it heard."""

    def __init__(self, leader):
        self.order = 0
        self.ended = Counter()
        self.open = {}  # from the id of a batch to the jobs that have not ended
        self.wrong = []
        self._bell = threading.Condition()
        self._over = set()
        self._subscription = leader.subscribe(self.hear)

    def hear(self, event):
        """The callback."""
        if isinstance(event, BatchStarted):
            self.open[event.batch_id] = set(range(event.total))
        elif isinstance(event, JobStarted | JobRetrying):
            if event.job not in self.open[event.batch_id]:
                self.wrong.append(f"{event.type} of a job that had ended")
        elif isinstance(event, JobEnded):
            self.ended[event.batch_id, event.job] += 1
            if event.job not in self.open[event.batch_id]:
                self.wrong.append("a second JobEnded")
            self.open[event.batch_id].discard(event.job)
        elif isinstance(event, BatchEnded):
            if self.open.pop(event.batch_id):
                self.wrong.append("BatchEnded before its last JobEnded")
            with self._bell:
                self._over.add(event.batch_id)
                self._bell.notify_all()
        else:
            return
        told = f"{event.type} {event.batch_id} {getattr(event, 'job', '')}"
        self.order = zlib.crc32(told.encode(), self.order)

    def wait(self, batches):
        """Waits until it has heard of the end of all of these."""
        wanted = {batch.id for batch in batches}
        with self._bell:
            return self._bell.wait_for(lambda: wanted <= self._over, timeout=60)


def compare_events(listeners, batches, figures):
    """Each job has exactly one JobEnded, in the same order for everybody."""
    for listener in listeners:
        figures.check(listener.wait(batches), "a subscriber has not heard of each BatchEnded")
        expected = {(batch.id, job.index) for batch in batches for job in batch.jobs}
        figures.lost_events += sum(listener.ended[key] == 0 for key in expected)
        figures.broken += sorted(set(listener.wrong))
    figures.check(figures.lost_events == 0, f"{figures.lost_events} JobEnded were lost")
    figures.check(len({one.order for one in listeners}) == 1, "two subscribers heard two orders")


def compare_counters(leader, batches, figures):
    """The Leader's counters add up, and agree with the batches."""
    stats = leader.get_state().stats
    ran = [job for batch in batches for job in batch.jobs if job.started_at is not None]
    states = Counter(str(job.state) for job in ran)
    expected = {
        "started": len(ran),
        "finished": states["succeeded"],
        "failed": states["failed"] + states["timed_out"],
        "cancelled": states["cancelled"] + states["skipped"],
        "running": 0,
    }
    for name, number in expected.items():
        figures.check(stats[name] == number, f"{name} is {stats[name]}, but {number} jobs say so")
    figures.check(
        leader._engine.ledger.places.taken == 0, f"{leader._engine.ledger.places.taken} places were not freed"
    )


class Surroundings:
    """Threads, descriptors, children and, unless told otherwise, temporary files, now and later."""

    def __init__(self, *, files=True):
        self._files = files
        self.before = self._now(())

    def left(self, *kernel_ids):
        """What there is more than before, once it has had time to go."""
        deadline = time.monotonic() + PATIENCE
        while (more := self._more(kernel_ids)) and time.monotonic() < deadline:
            time.sleep(0.02)
        return more

    def _more(self, kernel_ids):
        now = self._now(kernel_ids)
        return Counter({name: now[name] - self.before[name] for name in now if now[name] > self.before[name]})

    def _now(self, kernel_ids):
        children = {child.pid for child in psutil.Process().children(recursive=True)}
        wanted = [f"ARREA_KERNEL_ID={one}".encode() for one in kernel_ids]
        for entry in Path("/proc").iterdir():
            if wanted and entry.name.isdigit() and int(entry.name) != os.getpid():
                try:
                    items = (entry / "environ").read_bytes().split(b"\0")
                except OSError:
                    continue  # it has ended, or is another user's
                if any(one in items for one in wanted):
                    children.add(int(entry.name))
        return {
            "processes": len(children),
            "threads": threading.active_count(),
            "descriptors": len(os.listdir("/proc/self/fd")),
            "bytes": sum(_size(found) for found in Path(tempfile.gettempdir()).rglob("*") if self._files),
        }


def _size(path):
    try:
        return max(1, path.lstat().st_size)
    except OSError:
        return 0


def close(leader, surroundings, figures):
    """Closes the Leader; whatever is left then is a broken promise."""
    leader.close()
    figures.left.update(surroundings.left(leader._engine.kernel_id))
    threads = [thread.name for thread in threading.enumerate()]
    for name, number in figures.left.items():
        figures.check(number == 0, f"left over: {number} {name} (threads: {threads})")


def main(soak):
    """Runs `soak(count, seed, figures)` with a temporary directory of its own and prints what it found."""
    figures = Figures()
    with tempfile.TemporaryDirectory(prefix="soak-") as folder:
        os.environ["TMPDIR"] = tempfile.tempdir = folder
        soak(int(sys.argv[1]), int(sys.argv[2]), figures)
    figures.broken = [
        *figures.broken[:20],
        *[f"and {len(figures.broken) - 20} more"][: len(figures.broken) > 20],
    ]
    print(json.dumps(vars(figures)))
