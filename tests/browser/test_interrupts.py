"""The stop button of a real front end, pressed when it hurts: twice in a row, at once, during the summary.

Whatever the moment: the cell ends, its batch is cancelled or was over, its summary is shown once and the live
view has left, nothing of it runs, and the next cell runs as ever. What the button does inside the kernel at
every other moment is in `tests/test_interrupts.py`.
"""

import json
import re

import pytest

LOAD = """
%load_ext arrea_nb
import json, os, signal, time
import arrea_nb
leader = arrea_nb.Leader.instance()
"""
# Makes the summary last until the test says so.
SLOW_SUMMARY = """
from arrea_nb.notebook import _stage
publish = _stage.publish_summary
def slow(*args, **options):
    open("reached", "w").close()
    while not os.path.exists("go"):
        time.sleep(0.001)
    return publish(*args, **options)
_stage.publish_summary = slow
"""
CHECK = """
print(json.dumps([
    [str(batch.state) for batch in leader._engine.batches()],
    len(leader.get_state().workers),
    signal.getsignal(signal.SIGINT) is signal.default_int_handler,
]))
"""
TWO = "%%arrea -t 0\nsleep 300\nsleep 300"
STUBBORN = "%%arrea -t 0\ntrap '' TERM; while :; do sleep 1; done"


def press(lab):
    """Presses the stop button, and returns when the server has sent the interrupt."""
    with lab.page.expect_response(re.compile("/interrupt")):
        lab.stop()


def left(lab, summary):
    """Checks what cell 1 and the kernel are left with; cell 2 holds CHECK and cell 3 another batch.

    Returns:
        The states of the batches.
    """
    lab.wait_idle(1)
    lab.wait_gone(1)
    lab.wait_text(1, "KeyboardInterrupt")
    lab.run(2)
    states, running, handler = json.loads(lab.wait_text(2, re.compile(r"^\[.*\]$")))
    assert (running, handler) == (0, True)

    def once():
        assert lab.text(1).count(summary) == len(states)

    lab.wait_until(once)
    lab.run(3)
    lab.wait_text(3, "1 job succeeded")
    return states


@pytest.mark.parametrize(("cell", "jobs"), [(TWO, "2 jobs"), (STUBBORN, "1 job")], ids=["plain", "stubborn"])
def test_stop_twice_in_a_row(front_end, cell, jobs):
    front_end.start(cell, load=LOAD, more=[CHECK, "%%arrea\ntrue"])
    front_end.wait_state(1, 0, "running")
    front_end.stop()
    front_end.stop()
    assert left(front_end, f"{jobs} cancelled") == ["cancelled"]


def test_stop_at_once_after_run(front_end):
    """The interrupt may come before the cell has begun, and be lost: then one presses again."""
    front_end.open([LOAD, TWO, CHECK, "%%arrea\ntrue"])
    front_end.run(0)
    front_end.run(1, wait=False)
    press(front_end)
    while front_end.is_running(1):
        press(front_end)
    assert left(front_end, "2 jobs cancelled") in ([], ["cancelled"])  # none, if it came before there was one


def test_stop_during_the_summary(front_end):
    front_end.open([LOAD + SLOW_SUMMARY, "%%arrea\ntrue\ntrue", CHECK, "%%arrea\ntrue"])
    front_end.run(0)
    front_end.run(1, wait=False)
    folder = front_end.server.folder

    def reached():
        assert (folder / "reached").exists()

    front_end.wait_until(reached)
    press(front_end)
    (folder / "go").touch()
    assert left(front_end, "2 jobs succeeded") == ["succeeded"]
    for flag in ("reached", "go"):
        (folder / flag).unlink()
