"""Callables by the hundred thousand, with random failures, retries, timeouts and cancels."""

import random
import threading
import time

from witness import Figures, Listener, Surroundings, Witness, close, compare_counters, compare_events, main

import arrea_nb

BATCH = 250
AT_ONCE = 4
# Nearly always long enough for a job that means to be quick; one that is not is counted as timed out.
TIMEOUT = 0.5
ENDS = {"returns": 80, "raises": 6, "raises once": 6, "exits": 2, "prints": 4, "hangs": 1, "waits": 1}


def soak(count: int, seed: int, figures: Figures) -> None:
    """Runs `count` jobs, in batches of which some overlap."""
    rng = random.Random(seed)
    surroundings = Surroundings()
    leader = arrea_nb.Leader.instance(keep_batches=1_000_000, grace=5.0)
    listeners = [Listener(leader), Listener(leader)]
    witness = Witness()
    batches = {}
    going = []
    cancels: list[str] = []
    for number, first in enumerate(range(0, count, BATCH)):
        size = min(BATCH, count - first)
        ends = rng.choices(list(ENDS), list(ENDS.values()), k=size)
        figures.faults.update(end for end in ends if end not in {"returns", "prints"})
        policy = {
            "retries": rng.choice((0, 0, 1, 3)),
            "retry_delay": rng.choice((0.0, 0.001, 0.01)),
            "on_error": rng.choices(("continue", "stop", "abort", give_up), (90, 3, 3, 4))[0],
        }
        batch = leader.execute(
            [Job(witness, number, at, end) for at, end in enumerate(ends)],
            workers=rng.randint(1, 8),
            timeout=TIMEOUT,
            max_commands=size,
            policy=policy,
        )
        batches[number] = batch
        going.append(threading.Thread(target=meddle, args=(batch, rng.random(), cancels)))
        going[-1].start()
        if len(going) == AT_ONCE:
            going.pop(0).join()
    for thread in going:
        thread.join()
    figures.faults.update(cancels)
    everything = leader._engine.batches()  # with those that jobs executed
    for batch in everything:
        batch.wait()
    compare_events(listeners, everything, figures)
    compare_counters(leader, everything, figures)
    for number, batch in batches.items():
        witness.keep(number, batch)
    witness.compare(figures)
    close(leader, surroundings, figures)


class Job:
    """One callable that ends as it was told."""

    def __init__(self, witness: Witness, batch: int, index: int, end: str) -> None:
        self.witness = witness
        self.batch = batch
        self.index = index
        self.end = end
        self.tried = False

    def __call__(self) -> int:
        """Leaves its traces on disk around whatever it does."""
        self.witness.begun(self.batch, self.index)
        first, self.tried = not self.tried, True
        if self.end == "raises" or (self.end == "raises once" and first):
            raise ValueError(self.index)
        if self.end == "exits":
            raise SystemExit(self.index)
        if self.end == "prints":
            print("x" * (self.index * 37 % 4000))
        if self.end == "hangs" and first:
            while True:
                time.sleep(0.002)
        if self.end == "waits":
            arrea_nb.execute([int], name="within").wait()
        self.witness.done(self.batch, self.index)
        return self.index


def give_up(error: Exception, attempt: int, job: arrea_nb.Job) -> str:
    """A policy that asks for two more attempts."""
    return "retry" if attempt < 3 else "continue"


def meddle(batch: arrea_nb.Batch, dice: float, cancels: list[str]) -> None:
    """Cancels some of its jobs, or all that is left after a few have ended; then sees it out."""
    rng = random.Random(dice)
    stop_after = rng.randrange(len(batch)) if dice < 0.1 else None
    for seen, _ in enumerate(batch.as_completed()):
        if seen == stop_after:
            cancels.append("batch cancelled")
            batch.cancel()
        elif rng.random() < 0.02:
            cancels.append("cancelled")
            batch[rng.randrange(len(batch))].cancel()


if __name__ == "__main__":
    main(soak)
