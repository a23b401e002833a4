"""Short shell jobs by the thousand: exits, signals, deadlines, cancels, what they leave behind."""

import random
import threading

from witness import Figures, Listener, Surroundings, Witness, close, compare_counters, compare_events, main

import arrea_nb

BATCH = 100
TIMEOUT = 5.0
# What a line does after it has left its trace on disk, and how often.
LINES = {
    ":": 60,
    "exit 3": 10,
    "kill -9 $$": 5,
    "head -c 300000 /dev/zero": 5,
    "sleep 300 & :": 5,
    "setsid sleep 300 & :": 1,
    'trap "" TERM; sleep 300 & wait': 1,
    "sleep 300": 2,
    "exec no-such-program": 5,
}
HANGS = frozenset({"sleep 300", 'trap "" TERM; sleep 300 & wait'})
# No such program: could not start, and must leave no trace.
MISSING = ["/no/such/program"]


def soak(count: int, seed: int, figures: Figures) -> None:
    """Runs `count` jobs; two batches at a time."""
    rng = random.Random(seed)
    surroundings = Surroundings()
    leader = arrea_nb.Leader.instance(keep_batches=1_000_000, grace=0.1)
    listeners = [Listener(leader), Listener(leader)]
    witness = Witness()
    batches = {}
    cancels: list[str] = []
    going = []
    for number, first in enumerate(range(0, count, BATCH)):
        commands = []
        hangs = []
        for at in range(min(BATCH, count - first)):
            line = rng.choices(list(LINES), list(LINES.values()))[0]
            if line != ":":
                figures.faults[line] += 1
            if line in HANGS:
                hangs.append(at)
            commands.append(witness.begins(number, at) + line + witness.ends(number, at))
        commands[rng.randrange(len(commands))] = MISSING
        figures.faults["no such program"] += 1
        batch = leader.execute(
            commands,
            workers=rng.randint(2, 8),
            timeout=rng.choice((0.3, TIMEOUT)),
            policy={"retries": rng.choice((0, 0, 1)), "retry_delay": 0.01},
        )
        batches[number] = batch
        going.append(threading.Thread(target=meddle, args=(batch, hangs, rng.random(), cancels)))
        going[-1].start()
        if len(going) == 2:
            going.pop(0).join()
    for thread in going:
        thread.join()
    figures.faults.update(cancels)
    compare_events(listeners, batches.values(), figures)
    compare_counters(leader, batches.values(), figures)
    for number, batch in batches.items():
        witness.keep(number, batch)
    witness.compare(figures)
    close(leader, surroundings, figures)


def meddle(batch: arrea_nb.Batch, hangs: list[int], dice: float, cancels: list[str]) -> None:
    """Cancels the jobs that would hang, once they are about to run, and now and then another or all of it."""
    rng = random.Random(dice)
    waiting = set(hangs)
    stop_after = rng.randrange(len(batch)) if dice < 0.1 else None
    for seen, _ in enumerate(batch.as_completed()):
        if seen == stop_after:
            cancels.append("batch cancelled")
            batch.cancel()
        for at in list(waiting):
            if batch.timeout == TIMEOUT and batch[at].state == "running":
                waiting.discard(at)
                cancels.append("cancelled")
                batch[at].cancel()
        if rng.random() < 0.02:
            cancels.append("cancelled")
            batch[rng.randrange(len(batch))].cancel()


if __name__ == "__main__":
    main(soak)
