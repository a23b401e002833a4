"""The stop button at every moment of a cell, in a real kernel.

Each moment is made to last: a function of ours is replaced by one that tells the test that it was reached,
and goes on once the test has sent the interrupt as Jupyter does (with `hold=False`: goes on at once).
Whatever the moment: the cell ends with KeyboardInterrupt, the batch that it waits for is cancelled and
nothing of it runs, its summary is shown once, and the kernel is as usable as before. An interrupt of somebody
who waits for a batch of another cell ends the waiting.
"""

import json
import time

import pytest
from jupyter_client.manager import KernelManager

PATIENCE = 20.0
VIEW = "application/vnd.jupyter.widget-view+json"

SETUP = """
%load_ext arrea_nb
import json, os, signal, threading, time
import arrea_nb
from arrea_nb import _engine, _ledger, _section, _waits
from arrea_nb.notebook import _live, _magic, _stage

leader = arrea_nb.Leader.instance()
_arrea = None
undo = []

def block(moment, owner, name, after=False, hold=True):
    original = getattr(owner, name)

    def blocked(*args, **options):
        if threading.current_thread() is not threading.main_thread() or os.path.exists(f"{moment}-reached"):
            return original(*args, **options)
        if after:
            result = original(*args, **options)
        open(f"{moment}-reached", "w").close()
        while hold and not os.path.exists(f"{moment}-go"):
            time.sleep(0.001)
        return result if after else original(*args, **options)

    setattr(owner, name, blocked)
    undo.append(lambda: setattr(owner, name, original))

def told(event):
    if event.type == "job_retrying":
        open("first-reached", "w").close()

arrea_nb.subscribe(told)
"""

CHECK = """
for one in undo:
    one()
undo.clear()
print(json.dumps({
    "state": [str(one.state) for one in leader._engine.batches()],
    "jobs": [[str(job.state) for job in one] for one in leader._engine.batches()][:1],
    "running": [one.batch_id for one in leader.get_state().workers.values()],
    "depth": _section.HoldInterrupts.depth,
    "handler": signal.getsignal(signal.SIGINT) is signal.default_int_handler,
    "entered": leader._engine.section.owner,
    "latest": None if _arrea is None else str(_arrea.state),
}))
"""


class Kernel:
    """A kernel in a folder of its own, and what a person does with it."""

    def __init__(self, folder):
        self.folder = folder
        self.manager = KernelManager(kernel_name="python3")
        self.manager.start_kernel(cwd=folder, extra_arguments=["--IPKernelApp.log_level=CRITICAL"])
        self.client = self.manager.client()
        self.client.start_channels(hb=False)
        self.client.wait_for_ready(timeout=60)

    def close(self):
        self.client.stop_channels()
        self.manager.shutdown_kernel(now=True)
        self.manager.cleanup_resources()
        self.manager.context.destroy()

    def send(self, code):
        return self.client.execute(code)

    def ended(self, request):
        """Waits for the end of the cell; returns its outputs as messages."""
        outputs = []
        while True:
            message = self.client.get_iopub_msg(timeout=PATIENCE)
            if message["parent_header"].get("msg_id") != request:
                continue
            kind, content = message["msg_type"], message["content"]
            if kind == "status" and content["execution_state"] == "idle":
                break
            outputs.append((kind, content))
        while self.client.get_shell_msg(timeout=PATIENCE)["parent_header"]["msg_id"] != request:
            pass
        return outputs

    def run(self, code):
        """What a cell printed; an error of it is one of the test."""
        outputs = self.ended(self.send(code))
        for kind, content in outputs:
            assert kind != "error", "\n".join(content["traceback"])
        return "".join(content["text"] for kind, content in outputs if kind == "stream")

    def until(self, name):
        """Waits until something made this file."""
        deadline = time.monotonic() + PATIENCE
        while not (self.folder / name).exists():
            assert time.monotonic() < deadline, f"{name} did not come"
            time.sleep(0.002)

    def press(self, moment="first"):
        """Presses the stop button once the moment is reached, and lets the cell go on."""
        self.until(f"{moment}-reached")
        self.manager.interrupt_kernel()
        (self.folder / f"{moment}-go").touch()


@pytest.fixture(scope="module")
def the_kernel(tmp_path_factory):
    kernel = Kernel(tmp_path_factory.mktemp("kernel"))
    kernel.run(SETUP)
    yield kernel
    kernel.close()


@pytest.fixture
def kernel(the_kernel):
    """The kernel, without batches and files of the test before."""
    yield the_kernel
    for moment in ("first", "second"):  # of a test that failed
        (the_kernel.folder / f"{moment}-reached").touch()
        (the_kernel.folder / f"{moment}-go").touch()
    the_kernel.run("for one in leader._engine.batches(): one.cancel(); one.wait()")
    the_kernel.run("for one in undo: one()")
    the_kernel.run(
        "undo.clear(); leader.max_workers = 100; leader._engine.ledger.batches.clear(); _arrea = None"
    )
    for file in the_kernel.folder.iterdir():
        file.unlink()


def stopped(kernel, request, *, view=True):
    """Checks the outputs of a cell whose batch was cancelled by the stop button; returns what CHECK says."""
    outputs = kernel.ended(request)
    errors = [content["ename"] for kind, content in outputs if kind == "error"]
    assert errors == ["KeyboardInterrupt"], outputs
    shown = [content for kind, content in outputs if kind == "display_data"]
    summaries = [content["data"]["text/plain"] for content in shown if "text/html" in content["data"]]
    assert len(summaries) == int(view), outputs
    left = {
        content["transient"]["display_id"]
        for kind, content in outputs
        if kind == "update_display_data"
        and not content["data"].get("text/plain")
        and VIEW not in content["data"]
    }
    views = {content["transient"]["display_id"] for content in shown if VIEW in content["data"]}
    assert views == left
    if not view:  # an `execute` that was interrupted has told its batch to stop, and nobody waited for that
        kernel.run(f"assert all(one.wait({PATIENCE}) for one in leader._engine.batches())")
    found = usable(kernel)
    assert found["running"] == []
    return found, "".join(summaries)


def usable(kernel):
    found = json.loads(kernel.run(CHECK))
    assert (found["depth"], found["entered"], found["handler"]) == (0, 0, True)
    assert kernel.run("%%arrea\necho hello > said") == ""
    assert (kernel.folder / "said").read_text() == "hello\n"
    return found


# What is made to last, the cell's lines, and the state of its batch in the end.
MOMENTS = {
    "while the commands are read": ("_engine, 'read_commands'", "sleep 300\nsleep 300", "cancelled"),
    "while the batch is admitted": ("_ledger.Ledger, 'admit'", "sleep 300\nsleep 300", "cancelled"),
    "as it was admitted": ("_ledger.Ledger, 'admit', True", "sleep 300\nsleep 300", "cancelled"),
    "while the view is built": ("_live.LiveView, '__init__'", "sleep 300\nsleep 300", "cancelled"),
    "as the view was built": ("_live.LiveView, '__init__', True", "sleep 300\nsleep 300", "cancelled"),
    "while the view is shown": ("_stage, '_publish'", "sleep 300\nsleep 300", "cancelled"),
    "as the view was shown": ("_stage.Showing, 'begin', True", "sleep 300\nsleep 300", "cancelled"),
    "when the wait begins": ("_engine.Engine, 'register'", "sleep 300\nsleep 300", "cancelled"),
    "as it is about to wait": ("_waits, 'take_from'", "sleep 300\nsleep 300", "cancelled"),
    "while it waits": ("_waits, 'take_from', hold=False", "sleep 300\nsleep 300", "cancelled"),
    "when the wait is over": ("_engine.Engine, 'unregister'", "true\ntrue", "succeeded"),
    "before the summary": ("_stage, 'publish_summary'", "true\ntrue", "succeeded"),
    "after the summary": ("_stage, 'publish_summary', True", "true\nfalse", "failed"),
    "before the failure is raised": ("_magic, '_raise_if_failed'", "true\nfalse", "failed"),
}


@pytest.mark.parametrize("moment", MOMENTS)
def test_stop_at_every_moment_of_a_cell(kernel, moment):
    where, lines, state = MOMENTS[moment]
    kernel.run(f"block('first', {where})")
    request = kernel.send(f"%%arrea -t 0 -w 2\n{lines}")
    kernel.press()
    found, summary = stopped(kernel, request)
    assert found["latest"] == state
    assert state in summary
    assert found["state"] == [state]


def test_stop_between_two_attempts(kernel):
    request = kernel.send("%%arrea -t 0 --retries 3 --retry-delay 1h\necho attempt >> attempts; false")
    kernel.press()
    found, summary = stopped(kernel, request)
    assert found["jobs"] == [["cancelled"]]
    assert (kernel.folder / "attempts").read_text() == "attempt\n"


def test_stop_before_the_first_job_has_a_place_and_no_other_batch_feels_it(kernel):
    kernel.run("leader.max_workers = 1")
    kernel.run("%%arrea --bg -t 0 -o other\ntouch taken; until [ -e end ]; do sleep 0.02; done")
    kernel.until("taken")
    kernel.run("block('first', _engine.Engine, 'register', True)")
    request = kernel.send("%%arrea -t 0\ntouch ran")
    kernel.press()
    outputs = kernel.ended(request)
    assert [content["ename"] for kind, content in outputs if kind == "error"] == ["KeyboardInterrupt"]
    assert kernel.run("print(_arrea[0].state, other.state)") == "cancelled running\n"
    (kernel.folder / "end").touch()
    assert kernel.run("print(other.wait(30), other.state)") == "True succeeded\n"
    assert not (kernel.folder / "ran").exists()
    usable(kernel)


AGAIN = {
    "before the batch is told": "_engine.Engine, 'stop'",
    "after the batch was told": "_engine.Engine, 'stop', True",
    "while its jobs are waited for": "_engine.Engine, 'await_end'",
    "before the summary": "_stage, 'publish_summary'",
    "after the summary": "_stage, 'publish_summary', True",
}


@pytest.mark.parametrize("moment", AGAIN)
@pytest.mark.parametrize("cell", ["%%arrea -t 0\n{}", "arrea_nb.run(['''{}'''], timeout=None)"])
def test_stop_twice_in_a_row(kernel, moment, cell):
    """The job does not heed the first SIGTERM either."""
    kernel.run(f"block('second', {AGAIN[moment]})")
    request = kernel.send(cell.format("trap '' TERM; touch first-reached; while :; do sleep 1; done"))
    kernel.press("first")
    kernel.press("second")
    found, summary = stopped(kernel, request)
    assert found["state"] == ["cancelled"]
    assert "cancelled" in summary


def test_stop_while_a_cell_admits_ten_thousand_commands(kernel):
    kernel.run("block('first', _ledger.Ledger, 'admit')")
    cell = "'echo ran >> runs\\n' * 10_000"  # made there: a large message leaves a thread of pyzmq's here
    request = kernel.send(f"get_ipython().run_cell_magic('arrea', '--max-commands 10000', {cell})")
    kernel.press()
    found, _ = stopped(kernel, request)
    assert found["latest"] == "cancelled"


@pytest.mark.parametrize("when", ["_ledger.Ledger, 'admit'", "_ledger.Ledger, 'admit', True"])
def test_stop_while_execute_admits_ten_thousand_commands(kernel, when):
    """Nobody has the Batch that execute did not return: nothing of it goes on."""
    kernel.run(f"block('first', {when})")
    request = kernel.send("batch = arrea_nb.execute(['sleep 300'] * 10000, max_commands=10000)")
    kernel.press()
    found, _ = stopped(kernel, request, view=False)
    assert found["state"] == ["cancelled"]


def test_stop_while_a_cell_with_bg_starts(kernel):
    kernel.run("block('first', _live.LiveView, '__init__')")
    request = kernel.send("%%arrea --bg -t 0\nsleep 300\nsleep 300")
    kernel.press()
    found, _ = stopped(kernel, request)
    assert found["latest"] == "cancelled"


@pytest.mark.parametrize("cell", ["arrea_nb.run([work] * 3)", "arrea_nb.map(lambda _: work(), range(3))"])
@pytest.mark.parametrize(
    "where", ["_ledger.Ledger, 'admit'", "_live.LiveView, '__init__'", "_stage, 'publish_summary'", None]
)
def test_stop_during_run_and_map(kernel, cell, where):
    ends = where == "_stage, 'publish_summary'"
    kernel.run("def work():\n    " + ("pass" if ends else "time.sleep(0.01)\n    work()"))
    if where is None:
        kernel.run("def work():\n    open('first-reached', 'w').close()\n    while True: time.sleep(0.01)")
    else:
        kernel.run(f"block('first', {where})")
    request = kernel.send(cell)
    kernel.press()
    found, _ = stopped(kernel, request)
    assert found["state"] == ["succeeded" if ends else "cancelled"]


WAITS = [
    "batch.wait()",
    "batch.results()",
    "list(batch.as_completed())",
    "await batch",
    "batch[0].result()",
    "%arrea wait",
]


@pytest.mark.parametrize("cell", WAITS)
def test_stop_ends_the_waiting_for_a_batch_of_another_cell_and_not_the_batch(kernel, cell):
    kernel.run("batch = arrea_nb.execute(['until [ -e end ]; do sleep 0.02; done; echo done'], timeout=None)")
    where = "_waits, 'take_from'"
    if cell == "await batch":
        kernel.run("block('first', _waits.asyncio, 'wait_for')")
    else:
        kernel.run(f"block('first', {where})")
    request = kernel.send(cell)
    kernel.press()
    outputs = kernel.ended(request)
    errors = [content["ename"] for kind, content in outputs if kind == "error"]
    assert errors == ["KeyboardInterrupt"] or (cell == "await batch" and errors == ["CancelledError"])
    assert usable(kernel)["state"] == ["running"]
    (kernel.folder / "end").touch()
    assert kernel.run("print(batch.results(30)[0].stdout)") == "done\n\n"
