"""Interrupts and timeouts by the ten thousand: no state is torn, nothing is lost, nobody else is hit.

Each runs in an interpreter of its own, since it interrupts its main thread.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest

STRESS = Path(__file__).parent / "stress"
TIMES = 10_000


def _run(script: str) -> dict:
    done = subprocess.run(
        [sys.executable, STRESS / script, str(TIMES)],
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.timeout(300)
def test_interrupts_of_the_main_thread_tear_nothing_and_none_is_lost():
    """Rule 1 of the house: on the main thread a critical section only notes SIGINT, and raises it after."""
    found = _run("interrupts.py")
    assert found["sent"] == found["caught"] == TIMES
    assert found["open"] == []
    assert found["places"] == 0
    assert found["handler"]
    stats = found["stats"]
    assert stats["running"] == 0
    assert stats["started"] == stats["finished"] + stats["failed"] + stats["cancelled"]


@pytest.mark.timeout(300)
def test_timeouts_of_short_callables_land_in_their_own_job_only():
    """C7: at most one injection for an attempt, only while its slot is open, never in another job."""
    found = _run("timeouts.py")
    assert found["wrong"] == []
    assert found["states"]["timed_out"] >= TIMES
    assert set(found["states"]) <= {"timed_out", "succeeded"}
    assert found["places"] == 0
    assert found["abandoned"] == 0
    stats = found["stats"]
    assert stats["failed"] == found["states"]["timed_out"]
    assert stats["finished"] == found["states"].get("succeeded", 0) + found["bystanders"]
