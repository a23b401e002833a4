"""Batches one after the other: what the Leader holds at the end is what it held after the first few."""

import gc
import itertools
import random
import tempfile
import time
from pathlib import Path

import psutil
from witness import PATIENCE, Figures, Listener, Surroundings, Witness, close, main

import arrea_nb

WARM_UP = 50
KEPT = 5
# Resident memory goes up and down by some pages; a leak of one record a job would be more than this.
MOST_GROWN = 8 << 20


def soak(count: int, seed: int, figures: Figures) -> None:
    """Runs `count` batches of callables and shell lines, in memory and spooled, failed and cancelled."""
    rng = random.Random(seed)
    first = Surroundings()
    leader = arrea_nb.Leader.instance(
        keep_batches=KEPT, batch_retention=0.0, cleanup_interval=0.05, memory_output_bytes=4096, grace=0.5
    )
    listener = Listener(leader)
    witness = Witness()
    numbers = itertools.count()
    for _ in range(WARM_UP):
        _run_one(leader, next(numbers), rng, witness, figures)
    _settle(leader)
    warm = Surroundings(files=False)  # the witness grows; what was spooled is counted below
    before = _resident()
    for _ in range(count):
        _run_one(leader, next(numbers), rng, witness, figures)
    _settle(leader)
    figures.grown_bytes = _resident() - before
    figures.check(figures.grown_bytes < MOST_GROWN, f"memory grew by {figures.grown_bytes} bytes")
    figures.check(len(leader.get_state().batches) <= KEPT, "old batches were not removed")
    more = warm.left()
    figures.check(not more, f"more than after the first {WARM_UP} batches: {dict(more)}")
    figures.check(_spooled() <= 2 * KEPT, f"{_spooled()} spool files of {KEPT} batches")
    figures.check(not listener.wrong and not listener.open, f"events: {listener.wrong or listener.open}")
    figures.check(set(listener.ended.values()) == {1}, "a job has more than one JobEnded")
    witness.compare(figures)
    figures.lost_events = figures.jobs - len(listener.ended)
    figures.check(figures.lost_events == 0, f"{figures.lost_events} JobEnded were lost")
    close(leader, first, figures)


def _run_one(
    leader: arrea_nb.Leader, number: int, rng: random.Random, witness: Witness, figures: Figures
) -> None:
    """One batch, which nobody holds afterwards."""
    commands = [
        witness.begins(number, 0) + "seq 2000" + witness.ends(number, 0),
        witness.begins(number, 1) + "(sleep 300 &) ; exit 3",
        lambda: witness.begun(number, 2) or witness.done(number, 2),
        lambda: witness.begun(number, 3) or print("x" * 9000) or 1 // 0,
        witness.begins(number, 4) + "sleep 300",
    ]
    figures.faults.update(["exit 3", "raises", "cancelled"])
    retries = rng.choice((0, 0, 1))
    batch = leader.execute(
        commands, workers=rng.randint(2, 5), policy={"retries": retries, "retry_delay": 0.01}
    )
    for seen, _ in enumerate(batch.as_completed(), start=1):
        if seen == len(commands) - 1:
            batch.cancel()
    witness.keep(number, batch)


def _settle(leader: arrea_nb.Leader) -> None:
    """Waits until the sweep has let go of old batches, and they of their files."""
    deadline = time.monotonic() + PATIENCE
    while len(leader.get_state().batches) > KEPT or _spooled() > 2 * KEPT:
        if time.monotonic() > deadline:
            return
        time.sleep(0.02)
        gc.collect()


def _spooled() -> int:
    return len(list(Path(tempfile.gettempdir()).glob("arrea-*/*")))


def _resident() -> int:
    return psutil.Process().memory_info().rss


if __name__ == "__main__":
    main(soak)
