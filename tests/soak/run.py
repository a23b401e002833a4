"""The soak: every part with many jobs, each in an interpreter of its own, and one table at the end.

    python tests/soak/run.py                        # all of it, about ten minutes on two cores
    python tests/soak/run.py callables --seed 7     # one part
    python tests/soak/run.py --scale 0.01           # a hundredth of everything

Exits with 1 if a promise was broken: something left over, a job lost or run twice, counters that do not add
up, memory that grows, a word on stderr. How fast it was and how late the kernel's heart beat are figures, and
no reason to fail.
"""

import argparse
import json
import random
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

# What each part counts, and how many of it.
PARTS = {
    "callables": 100_000,
    "shell": 5_000,
    "floods": 2_048,  # megabytes from each of four jobs
    "batches": 1_000,
    "interrupts": 10_000,
    "timeouts": 10_000,
}
LEFT = ("processes", "threads", "descriptors", "bytes")
HEAD = ("part", "jobs", "attempts", "faults", *LEFT, "lost events", "memory", "heartbeat", "control", "time")


def run_part(name: str, count: int, seed: int, timeout: float = 900.0) -> dict[str, Any]:
    """The figures of one part, from an interpreter of its own.

    Args:
        name: One of PARTS.
        count: How many of what the part counts.
        seed: What its random choices begin with.
        timeout: Seconds after which it is taken for stuck.

    Returns:
        The fields of `witness.Figures`, and `seconds`. A part that died has `broken` alone.
    """
    began = time.monotonic()
    script = Path(__file__).with_name(f"{name}.py")
    try:
        done = subprocess.run(
            [sys.executable, script, str(count), str(seed)],
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
    except subprocess.TimeoutExpired as late:
        return {"broken": [f"did not end within {timeout:g} s: {(late.stderr or b'')[-2000:]!r}"]}
    if done.returncode != 0:
        return {"broken": [f"exit {done.returncode}: {done.stderr[-3000:]}"]}
    found = json.loads(done.stdout.splitlines()[-1])
    if done.stderr:  # an exception that could not be raised anywhere, a warning of ours
        found["broken"].append(f"it said on stderr: {done.stderr[-2000:]}")
    return {**found, "seconds": time.monotonic() - began}


def table(found: dict[str, dict[str, Any]]) -> str:
    """All figures, a line for each part and one for all of them."""
    rows = [HEAD, *(_row(name, figures) for name, figures in found.items())]
    total = ["all"]
    for column in range(1, len(HEAD)):
        numbers = [row[column].replace(",", "") for row in rows[1:]]
        whole = all(number.isdecimal() for number in numbers)
        total.append(f"{sum(map(int, numbers)):,}" if whole else "")
    rows.append(tuple(total))
    widths = [max(len(row[at]) for row in rows) for at in range(len(HEAD))]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if at else cell.ljust(width)
            for at, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )


def _row(name: str, figures: dict[str, Any]) -> tuple[str, ...]:
    if "left" not in figures:
        return (name, *["-"] * (len(HEAD) - 1))
    beat = figures["heartbeat_ms"] or {}
    grown = figures["grown_bytes"]
    return (
        name,
        f"{figures['jobs']:,}",
        f"{figures['attempts']:,}",
        f"{sum(figures['faults'].values()):,}",
        *(f"{figures['left'][what]:,}" for what in LEFT),
        f"{figures['lost_events']:,}",
        "" if grown is None else f"{grown / (1 << 20):+.1f} MB",
        *(f"{beat[channel]:.0f} ms" if beat else "" for channel in ("heartbeat", "control")),
        f"{figures['seconds']:.0f} s",
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs what was asked for and prints it. Returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"One or more of {', '.join(PARTS)}.")
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 31), help="For the same choices.")
    parser.add_argument("--scale", type=float, default=1.0, help="How much of the full number.")
    asked = parser.parse_args(arguments)
    if unknown := set(asked.parts) - set(PARTS):
        parser.error(f"no part {unknown.pop()}; there are {', '.join(PARTS)}")
    print(f"seed {asked.seed}", flush=True)
    found = {}
    for name in asked.parts or PARTS:
        print(f"{name}: {max(1, round(PARTS[name] * asked.scale)):,} ...", flush=True)
        figures = found[name] = run_part(name, max(1, round(PARTS[name] * asked.scale)), asked.seed)
        for what in [*figures.get("notes", ()), *(f"BROKEN {one}" for one in figures["broken"])]:
            print(f"    {what}", flush=True)
        for fault, number in sorted(figures.get("faults", {}).items()):
            print(f"    {number:,} x {fault}")
    print(f"\n{table(found)}\n")
    broken = sum(len(figures["broken"]) for figures in found.values())
    print(f"{broken} promises broken" if broken else "every promise held")
    return int(broken > 0)


if __name__ == "__main__":
    sys.exit(main())
