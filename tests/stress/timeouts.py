"""10,000 timeouts injected into short callables, beside others that must not feel it. Prints JSON."""

import json
import random
import sys
import time
from collections import Counter

import arrea_nb

WANTED = int(sys.argv[1])
leader = arrea_nb.Leader.instance(keep_batches=0, batch_retention=0.0, cleanup_interval=0.2, grace=30.0)
rng = random.Random(11)


def spin(seconds: float, number: int) -> int:
    until = time.perf_counter() + seconds
    turns = 0
    while time.perf_counter() < until:
        turns += 1
        if turns % 20 == 0:
            print("turn", number)  # through the shelter of an attempt's output
        if turns % 33 == 0:
            arrea_nb.progress(turns, 1000)  # through a section of the Leader
    return number


def bystander(number: int) -> int:
    return sum(range(50)) + number


def job(seconds: float, number: int):
    return lambda: spin(seconds, number)


def other(number: int):
    return lambda: bystander(number)


states: Counter[str] = Counter()
bystanders = 0
wrong = []
while states["timed_out"] < WANTED:
    batch = leader.execute(
        [job(rng.random() * 0.004, at) for at in range(500)], timeout=0.001, max_commands=500, workers=3
    )
    beside = leader.execute([other(at) for at in range(500)], timeout=None, max_commands=500, workers=1)
    batch.wait()
    beside.wait()
    states.update(str(one.state) for one in batch)
    wrong += [repr(one.error) for one in batch if one.state == "failed"]
    wrong += [(at, one.value) for at, one in enumerate(batch) if one.state == "succeeded" and one.value != at]
    wrong += [repr(one.error) for one in beside if one.value != 1225 + one.index]
    bystanders += len(beside)
state = leader.get_state()
print(
    json.dumps(
        {
            "states": states,
            "bystanders": bystanders,
            "wrong": wrong[:5],
            "places": leader._ledger.places,
            "abandoned": state.abandoned,
            "stats": dict(state.stats),
        }
    )
)
leader.close()
