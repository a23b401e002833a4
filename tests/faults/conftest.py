"""What the faults share: an interpreter of its own, for what must not happen to that of the tests."""

import json
import subprocess
import sys

import pytest

# What each such interpreter begins with. `told` is what it says at its end.
_BEGIN = """
import json, os, resource, signal, sys, threading, time
import arrea_nb, arrea_nb._leader
told = {}
def ended(batch):
    assert batch.wait(timeout=60.0), batch
    return [str(job.state) for job in batch]
"""
_END = """
arrea_nb._leader.Leader.instance().close()
sys.__stdout__.write("\\n" + json.dumps(told) + "\\n")
"""


@pytest.fixture
def alone():
    """Runs code in an interpreter of its own; returns what it put into `told`, and its stderr."""

    def run(code, **options):
        done = subprocess.run(
            [sys.executable, "-c", _BEGIN + code + _END],
            capture_output=True,
            text=True,
            timeout=100,
            check=False,
            **options,
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout.splitlines()[-1]), done.stderr

    return run
