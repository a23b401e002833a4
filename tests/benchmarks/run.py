"""Cost of a job, measured against the peers in the same run; ratios, since machines differ.

Run it on a machine that does nothing else: `make bench`.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from statistics import median

import arrea_nb

WORKERS = 4
CALLABLES = 20_000
PROCESSES = 2_000
ROUNDS = 5


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
    arrea_nb.Leader.instance().close()
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
