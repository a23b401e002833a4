"""Interrupts of a main thread that executes, waits and cancels: no state is torn, none is lost."""

import os
import random
import signal
import threading
import time

from witness import Figures, Surroundings, close, main

import arrea_nb


def soak(count: int, seed: int, figures: Figures) -> None:
    """Sends `count` interrupts, each at a random moment of a round, and as soon as the last was caught."""
    surroundings = Surroundings()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell in the background ignores it
    leader = arrea_nb.Leader.instance(keep_batches=0, batch_retention=0.0, cleanup_interval=0.05)
    sender = _Sender(count, seed)
    sender.start()
    caught = 0
    number = 0
    while caught < count:
        try:
            sender.caught = caught
            sender.bell.set()
            while True:
                number += 1
                _one_round(leader, number)
        except KeyboardInterrupt:
            caught += 1
    sender.join()
    for known in leader._engine.batches():
        known.wait(10)
    state = leader.get_state()
    stats = state.stats
    figures.jobs = stats["started"]
    figures.faults["interrupts"] = count
    figures.check(sender.sent == caught, f"{sender.sent} interrupts sent, {caught} caught")
    still = [one.id for one in state.batches.values() if one.state == "running"]
    figures.check(not still, f"{len(still)} batches never ended")
    figures.check(
        leader._engine.ledger.places.taken == 0, f"{leader._engine.ledger.places.taken} places were not freed"
    )
    ended = stats["finished"] + stats["failed"] + stats["cancelled"]
    figures.check(stats["running"] == 0, f"{stats['running']} jobs run for ever")
    figures.check(stats["started"] == ended, f"{stats['started']} started, {ended} ended")
    figures.check(
        signal.getsignal(signal.SIGINT) is signal.default_int_handler, "the handler was not put back"
    )
    close(leader, surroundings, figures)


class _Sender(threading.Thread):
    def __init__(self, count: int, seed: int) -> None:
        super().__init__(daemon=True)
        self.sent = 0
        self.caught = 0
        self.bell = threading.Event()
        self._count = count
        self._rng = random.Random(seed)

    def run(self) -> None:
        while self.sent < self._count:
            # Spread over everything that the main thread does; the delay is the experiment, not a wait.
            until = time.perf_counter() + self._rng.random() * 0.002
            while time.perf_counter() < until:
                time.sleep(0)
            self.sent += 1
            os.kill(os.getpid(), signal.SIGINT)
            while self.caught < self.sent < self._count:
                self.bell.wait(10)
                self.bell.clear()


def _work() -> int:
    return 1


def _one_round(leader: arrea_nb.Leader, number: int) -> None:
    batch = leader.execute([_work, _work])
    if number % 3 == 0:
        batch.cancel()
    if number % 50 == 0:
        leader.execute(["true"]).cancel()
    batch.wait()
    leader.get_state()
    with leader.subscribe(batch=batch) as events:
        for _ in events:
            pass


if __name__ == "__main__":
    main(soak)
