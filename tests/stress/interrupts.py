"""10,000 interrupts of a main thread that executes, waits and cancels. Prints what came of it as JSON."""

import json
import os
import random
import signal
import sys
import threading
import time

import arrea_nb

WANTED = int(sys.argv[1])
leader = arrea_nb.Leader.instance(keep_batches=0, batch_retention=0.0, cleanup_interval=0.05)
sent = [0]
acknowledged = 0
bell = threading.Event()


def send() -> None:
    rng = random.Random(7)
    while sent[0] < WANTED:
        # Spread over everything that the main thread does; the delay is the experiment, not a wait.
        until = time.perf_counter() + rng.random() * 0.002
        while time.perf_counter() < until:
            time.sleep(0)
        sent[0] += 1
        os.kill(os.getpid(), signal.SIGINT)
        while acknowledged < sent[0]:
            bell.wait(10)
            bell.clear()


def work() -> int:
    return 1


def one_round(number: int) -> None:
    batch = leader.execute([work, work])
    if number % 3 == 0:
        batch.cancel()
    if number % 50 == 0:
        leader.execute(["true"]).cancel()
    batch.wait()
    leader.get_state()
    with leader.subscribe(batch=batch) as events:
        for _ in events:
            pass


threading.Thread(target=send, daemon=True).start()
caught = 0
number = 0
while caught < WANTED:
    try:
        acknowledged = caught
        bell.set()
        while True:
            number += 1
            one_round(number)
    except KeyboardInterrupt:
        caught += 1
state = leader.get_state()
for known in leader.batches():
    known.wait(10)
state = leader.get_state()
print(
    json.dumps(
        {
            "sent": sent[0],
            "caught": caught,
            "rounds": number,
            "open": [str(one.state) for one in state.batches.values() if one.state == "running"],
            "places": leader._ledger.places,
            "stats": dict(state.stats),
            "handler": signal.getsignal(signal.SIGINT) is signal.default_int_handler,
        }
    )
)
leader.close()
