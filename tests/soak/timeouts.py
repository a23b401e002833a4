"""Timeouts injected into short callables, beside others that must not feel them."""

import random
import time

from witness import Figures, Surroundings, close, main

import arrea_nb

BATCH = 500


def soak(count: int, seed: int, figures: Figures) -> None:
    """Goes on until `count` callables were timed out."""
    rng = random.Random(seed)
    surroundings = Surroundings()
    leader = arrea_nb.Leader.instance(keep_batches=0, batch_retention=0.0, cleanup_interval=0.2, grace=30.0)
    while figures.faults["timed_out"] < count:
        batch = leader.execute(
            [_job(rng.random() * 0.004, at) for at in range(BATCH)],
            timeout=0.001,
            max_commands=BATCH,
            workers=3,
        )
        beside = leader.execute(
            [_other(at) for at in range(BATCH)], timeout=None, max_commands=BATCH, workers=1
        )
        batch.wait()
        beside.wait()
        figures.jobs += len(batch) + len(beside)
        for job in batch:
            if job.state == "timed_out":
                figures.faults["timed_out"] += 1
            else:
                figures.check(job.state == "succeeded" and job.value == job.index, f"{job!r}: {job.error!r}")
        for job in beside:
            figures.check(
                job.error is None and job.value == 1225 + job.index, f"bystander {job!r}: {job.error!r}"
            )
    stats = leader.get_state().stats
    figures.check(stats["failed"] == figures.faults["timed_out"], f"failed is {stats['failed']}")
    figures.check(stats["finished"] == figures.jobs - stats["failed"], f"finished is {stats['finished']}")
    figures.check(
        leader._engine.ledger.places.taken == 0, f"{leader._engine.ledger.places.taken} places were not freed"
    )
    figures.check(leader.get_state().abandoned == 0, "a callable was abandoned")
    close(leader, surroundings, figures)


def _job(seconds: float, number: int):
    return lambda: _spin(seconds, number)


def _other(number: int):
    return lambda: sum(range(50)) + number


def _spin(seconds: float, number: int) -> int:
    until = time.perf_counter() + seconds
    turns = 0
    while time.perf_counter() < until:
        turns += 1
        if turns % 20 == 0:
            print("turn", number)  # through the shelter of an attempt's output
        if turns % 33 == 0:
            arrea_nb.progress(turns, 1000)  # through a section of the Leader
    return number


if __name__ == "__main__":
    main(soak)
