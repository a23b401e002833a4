"""The soak, with few jobs: the same code as `make soak`, and the same promises.

Each part runs in an interpreter of its own. What a promise is and how it is counted is in `soak/witness.py`.
"""

import importlib.util
from pathlib import Path

import pytest

_SPEC = importlib.util.spec_from_file_location("soak_run", Path(__file__).parent / "soak" / "run.py")
soak = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(soak)

FEW = {"callables": 3000, "shell": 150, "floods": 16, "batches": 20, "interrupts": 1000, "timeouts": 1000}


def test_every_part_of_the_soak_runs_here_too():
    assert FEW.keys() == soak.PARTS.keys()


@pytest.mark.parametrize("part", FEW)
def test_c9_c19_no_job_is_lost_and_nothing_left_over(part):
    """Each job ran exactly as often as its record says, was told to have ended once, and left nothing."""
    found = soak.run_part(part, FEW[part], seed=1)
    assert found["broken"] == []
    assert found["jobs"] > 0
    assert not any(found["left"].values())
    assert found["lost_events"] == 0


def test_a_broken_promise_fails_the_soak(monkeypatch, capsys):
    """The exit code is 1 and the table is there all the same; a part that dies is a promise broken."""
    monkeypatch.setattr(soak, "PARTS", {"no_such_part": 1})
    assert soak.main(["--seed", "1"]) == 1
    said = capsys.readouterr().out
    assert "seed 1" in said
    assert "BROKEN exit 2" in said
    assert "1 promises broken" in said
