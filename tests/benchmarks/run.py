"""Cost of a job, measured against the peers in the same run; ratios, since machines differ.

Run it on a machine that does nothing else: `make bench`.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from statistics import median

from tqdm import tqdm

import arrea_nb

WORKERS = 4
CALLABLES = 20_000
PROCESSES = 2_000
ROUNDS = 5
ITEMS = 1_000_000
BATCHES = 10_000


def nothing() -> int:
    """The callable that returns at once."""
    return 1


def ours() -> None:
    """Through the public API; only `max_commands` is raised."""
    batch = arrea_nb.execute([nothing] * CALLABLES, max_commands=CALLABLES)
    assert batch.results() == [1] * CALLABLES


def pool() -> None:
    """Submit, then result."""
    with ThreadPoolExecutor(WORKERS) as executor:
        futures = [executor.submit(nothing) for _ in range(CALLABLES)]
        assert [future.result() for future in futures] == [1] * CALLABLES


def our_lines() -> None:
    """A shell line each."""
    assert len(arrea_nb.execute(["true"] * PROCESSES, max_commands=PROCESSES).results()) == PROCESSES


def xargs_lines() -> None:
    """A shell for each line, as ours."""
    _xargs("sh", "-c")


def our_programs() -> None:
    """A program each, no shell."""
    assert len(arrea_nb.execute([["true"]] * PROCESSES, max_commands=PROCESSES).results()) == PROCESSES


def xargs_programs() -> None:
    """A program each, no shell."""
    _xargs()


def _xargs(*shell: str) -> None:
    command = ["xargs", "-P", str(WORKERS), "-n", "1", *shell]
    lines = "true\n" * PROCESSES
    if not shell:
        command, lines = [*command, "true"], "\n".join(["x"] * PROCESSES)
    subprocess.run(command, input=lines, text=True, check=True, stdout=subprocess.DEVNULL)


def tracked() -> None:
    """A loop in a callable, which tells its progress."""
    arrea_nb.run([lambda: sum(1 for _ in arrea_nb.track(range(ITEMS)))], timeout=None)


def barred() -> None:
    """The same loop with tqdm, which draws to nowhere."""
    with open(os.devnull, "w") as nowhere:
        assert sum(1 for _ in tqdm(range(ITEMS), file=nowhere)) == ITEMS


def kept() -> float:
    """What one more batch costs when many are kept, against when few are: the ratio of two medians."""
    with arrea_nb.Leader(keep_batches=BATCHES, batch_retention=1e9) as leader:
        times = []
        for _ in range(BATCHES):
            begin = time.perf_counter()
            leader.execute([nothing], log=False).wait()
            times.append(time.perf_counter() - begin)
    few, many = median(times[500:1500]) * 1e6, median(times[-1000:]) * 1e6
    what = f"a batch with {BATCHES:,} kept / with 1,000 kept (<= 1.25)"
    print(f"{what:<58} {many:8.1f} us  {few:8.1f} us  ratio {many / few:.2f}")
    return many / few


def compare(what: str, count: int, first: Callable[[], None], peer: Callable[[], None]) -> float:
    """Runs both in turn, prints the medians, and returns the ratio of them."""
    times: dict[Callable[[], None], list[float]] = {first: [], peer: []}
    for _ in range(ROUNDS):
        for function in (first, peer):
            begin = time.perf_counter()
            function()
            times[function].append((time.perf_counter() - begin) / count * 1e6)
    mine, theirs = median(times[first]), median(times[peer])
    print(f"{what:<58} {mine:8.1f} us  {theirs:8.1f} us  ratio {mine / theirs:.2f}")
    return mine / theirs


def main() -> int:
    """Prints the table; exit code 1 when a ratio is above what is promised."""
    print(f"{'medians for one job':<58} {'arrea_nb':>11} {'peer':>12}")
    good = compare("20,000 callables / ThreadPoolExecutor (<= 0.50)", CALLABLES, ours, pool) <= 0.5
    good &= (
        compare("2,000 shell lines `true` / xargs -P sh -c (<= 1.50)", PROCESSES, our_lines, xargs_lines)
        <= 1.5
    )
    good &= (
        compare("2,000 programs `true` / xargs -P (<= 1.50)", PROCESSES, our_programs, xargs_programs) <= 1.5
    )
    # Half a microsecond an item more than tqdm's is what a loop may cost.
    good &= compare("1,000,000 items of track() / tqdm (<= 1.00)", ITEMS, tracked, barred) <= 1.0
    good &= kept() <= 1.25
    arrea_nb.Leader.instance().close()
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
