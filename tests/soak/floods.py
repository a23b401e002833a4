"""Four jobs that flood, in a real kernel: how late its heart beats meanwhile, how much memory it takes."""

import contextlib
import json
import tempfile
import threading
import time
from pathlib import Path

import psutil
import zmq
from jupyter_client.manager import KernelManager
from jupyter_core.utils import ensure_event_loop
from witness import Figures, Surroundings, main

JOBS = 4
MOST_GROWN = 64 << 20
# What of a job's output is kept. Less than it prints, so that what comes after it must be dropped.
KEPT_BYTES = 1 << 30
START = """
%load_ext arrea_nb
import os
_floods = FLOODS
get_ipython().run_cell_magic("arrea", "--bg -t 0 -w 4", "\\n".join(_floods))
"""
REPORT = """
import json
print(json.dumps({
    "states": [str(job.state) for job in _arrea],
    "kept": [os.path.getsize(job.output_path) for job in _arrea],
    "spool": os.path.dirname(_arrea[0].output_path),
}))
"""


def soak(count: int, seed: int, figures: Figures) -> None:
    """Each of four jobs prints `count` megabytes."""
    ensure_event_loop()
    surroundings = Surroundings()
    size = count << 20
    witness = Path(tempfile.gettempdir(), "flooded")
    line = f"yes {'x' * 1000} | head -c {size}; echo $ARREA_JOB_INDEX >> {witness}"
    with _kernel() as (manager, client):
        _run(
            client, "import arrea_nb.notebook._presenter; arrea_nb.execute(['yes | head -c 3000000']).wait()"
        )
        kernel = psutil.Process(manager.provisioner.pid)
        before = kernel.memory_info().rss
        pulse = Pulse(client)
        pulse.start()
        _run(client, START.replace("FLOODS", repr([line] * JOBS)))
        resident = before
        # The batch's own end is asked for in a cell, so that the shell channel is at work as well.
        while _run(client, "print(_arrea.wait(0.2))").strip() != "True":
            resident = max(resident, kernel.memory_info().rss)
        pulse.stop()
        resident = max(resident, kernel.memory_info().rss)
        told = json.loads(_run(client, REPORT))
    figures.jobs = figures.attempts = JOBS
    figures.faults["megabytes"] = JOBS * count
    figures.heartbeat_ms = pulse.worst_ms
    figures.grown_bytes = resident - before
    figures.notes.append(f"{JOBS * count / pulse.lasted:.0f} MB/s, {pulse.beats} beats")
    figures.check(
        figures.grown_bytes < MOST_GROWN, f"the kernel's memory grew by {figures.grown_bytes} bytes"
    )
    figures.check(set(told["states"]) == {"succeeded"}, f"states {told['states']}")
    expected = min(size, KEPT_BYTES)
    short = [kept for kept in told["kept"] if not expected - (1 << 20) <= kept <= expected + (1 << 20)]
    figures.check(not short, f"of {expected} bytes each there are {told['kept']}")
    figures.check(sorted(witness.read_text().split()) == ["0", "1", "2", "3"], "not each job ran to its end")
    witness.unlink()
    figures.left.update(surroundings.left())
    for name, number in figures.left.items():
        figures.check(number == 0, f"left over: {number} {name}")


@contextlib.contextmanager
def _kernel():
    manager = KernelManager(kernel_name="python3")
    manager.start_kernel(extra_arguments=["--IPKernelApp.log_level=CRITICAL"])
    client = manager.client()
    client.start_channels(hb=False)  # the heart is ours to listen to
    try:
        client.wait_for_ready(timeout=60)
        yield manager, client
    finally:
        client.stop_channels()
        manager.shutdown_kernel()
        manager.cleanup_resources()
        manager.context.destroy()


def _run(client, code: str) -> str:
    printed = []

    def hear(message):
        if message["msg_type"] == "error":
            raise RuntimeError("\n".join(message["content"]["traceback"]))
        if message["msg_type"] == "stream":
            printed.append(message["content"]["text"])

    client.execute_interactive(code, timeout=300, output_hook=hear)
    return "".join(printed)


class Pulse(threading.Thread):
    """Asks the heartbeat and the control channel in turn, all the time; notes the slowest answers."""

    def __init__(self, client) -> None:
        super().__init__(name="pulse")
        self.worst_ms = {"heartbeat": 0.0, "control": 0.0}
        self.beats = 0
        self.lasted = 0.0
        self._client = client
        self._over = threading.Event()

    def run(self) -> None:
        """Until `stop`."""
        context = zmq.Context()
        heart = context.socket(zmq.REQ)
        heart.linger = 0
        info = self._client.get_connection_info()
        heart.connect(f"{info['transport']}://{info['ip']}:{info['hb_port']}")
        began = time.monotonic()
        while not self._over.wait(0.01):
            sent = time.perf_counter()
            heart.send(b"beat")
            heart.recv()
            beaten = time.perf_counter()
            message = self._client.session.msg("kernel_info_request")
            self._client.control_channel.send(message)
            while (
                self._client.control_channel.get_msg(timeout=30)["parent_header"]["msg_id"]
                != message["msg_id"]
            ):
                pass
            answered = time.perf_counter()
            self.worst_ms["heartbeat"] = max(self.worst_ms["heartbeat"], 1000 * (beaten - sent))
            self.worst_ms["control"] = max(self.worst_ms["control"], 1000 * (answered - beaten))
            self.beats += 1
        self.lasted = time.monotonic() - began
        heart.close()
        context.term()

    def stop(self) -> None:
        """Ends it."""
        self._over.set()
        self.join()


if __name__ == "__main__":
    main(soak)
