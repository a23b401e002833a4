"""C17, C14: however a kernel ends, two seconds later its shell jobs and its spool are gone."""

import json
import os
import select
import signal
import threading
import time
from pathlib import Path

import pytest
from jupyter_client.manager import KernelManager

# From the kernel's end until nothing of it may be left, in seconds.
LIMIT = 2.0

# Ten jobs, each a shell with two grandchildren, one of them in a session of its own; none heeds SIGTERM.
# It prints more than is kept in memory, so that there is a spool, and tells when all of that is so.
START = """
import json, arrea_nb
line = '''
trap "" TERM
(sleep 300) &
setsid sleep 300 &
yes | head -c 400000
echo ready
wait
'''
news = arrea_nb.subscribe()
batch = arrea_nb.execute([line] * 10, workers=10, timeout=None)
ready = set()
while len(ready) < 10:
    event = news.get(timeout=30)
    if event.type == "job_output" and "ready" in event.text:
        ready.add(event.job)
news.close()
print(json.dumps({"jobs": [job.pid for job in batch], "spooled": [job.output_path for job in batch]}))
"""


def restart(manager, client):
    manager.restart_kernel()


def shutdown(manager, client):
    manager.shutdown_kernel()


def leave(manager, client):
    client.execute("import os; os._exit(0)")


def terminate(manager, client):
    os.kill(manager.provisioner.pid, signal.SIGTERM)


def kill(manager, client):
    os.kill(manager.provisioner.pid, signal.SIGKILL)


@pytest.fixture
def kernel():
    """A kernel of its own and a client, both gone after the test."""
    manager = KernelManager(kernel_name="python3")
    manager.start_kernel(extra_arguments=["--IPKernelApp.log_level=CRITICAL"])
    client = manager.client()
    client.start_channels()
    try:
        client.wait_for_ready(timeout=60)
        yield manager, client
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)
        manager.cleanup_resources()
        manager.context.destroy()


@pytest.mark.parametrize("end", [restart, shutdown, leave, terminate, kill])
def test_nothing_of_a_kernel_is_left_two_seconds_after_its_end(kernel, end):
    """C17, C14: ten jobs whose grandchildren ignore SIGTERM, and five ways for a kernel to go."""
    manager, client = kernel
    started = _printed(client, START)
    kernel_id = _kernel_id(started["jobs"][0])
    spools = {Path(path).parent for path in started["spooled"]}
    assert len(spools) == 1
    spool = spools.pop()
    assert spool.stat().st_mode & 0o777 == 0o700
    assert len(_carrying(kernel_id)) >= 30

    watch = EndOf(manager.provisioner.pid)
    end(manager, client)
    deadline = watch.ended_at() + LIMIT

    while (left := _carrying(kernel_id) or [spool] * spool.exists()) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not left, f"{LIMIT:g} s after the kernel's end there is still {left}"


class EndOf:
    """When a process ended, noted by a thread while the test is busy ending it."""

    def __init__(self, pid):
        self._pidfd = os.pidfd_open(pid)
        self._at = None
        self._thread = threading.Thread(target=self._wait, name="end of the kernel", daemon=True)
        self._thread.start()

    def _wait(self):
        poll = select.poll()
        poll.register(self._pidfd, select.POLLIN)
        if poll.poll(30_000):
            self._at = time.monotonic()
        os.close(self._pidfd)

    def ended_at(self):
        self._thread.join()
        assert self._at is not None, "the kernel did not end"
        return self._at


def _printed(client, code):
    """Runs code that prints one line of JSON, and returns what that says."""
    lines = []

    def hear(message):
        assert message["msg_type"] != "error", "\n".join(message["content"]["traceback"])
        if message["msg_type"] == "stream":
            lines.append(message["content"]["text"])

    client.execute_interactive(code, timeout=60, output_hook=hear)
    return json.loads("".join(lines))


def _kernel_id(pid):
    (found,) = (item for item in _environment(pid) if item.startswith(b"ARREA_KERNEL_ID="))
    return found


def _carrying(kernel_id):
    return [
        int(entry.name)
        for entry in Path("/proc").iterdir()
        if entry.name.isdigit() and kernel_id in _environment(entry.name)
    ]


def _environment(pid):
    try:
        return Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return []  # ended meanwhile
