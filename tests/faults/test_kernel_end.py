"""C17, C14: however a kernel ends, two seconds later its shell jobs and its spool are gone.

Also when its guard was killed before, and when it had no memory left to clean up with.
"""

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

# Fifty jobs, each a shell with three grandchildren, one of them in a session of its own, one with an empty
# environment; half of the jobs do not heed SIGTERM. Each prints more than is kept in memory, so that there is
# a spool, and tells of it.
JOBS = 50
START = f"""
import json, arrea_nb
arrea_nb.Leader.instance().memory_output_bytes = 1024
line = '''
(sleep 300) &
setsid sleep 300 &
env -i sleep 300 &
yes | head -c 4000
echo ready
wait
'''
lines = ["trap : TERM" + line, "trap '' TERM" + line] * {JOBS // 2}
ready = set()
with arrea_nb.subscribe() as news:
    batch = arrea_nb.execute(lines, workers=50, timeout=None)
    while len(ready) < {JOBS}:
        event = news.get(timeout=60)
        if event.type == "job_output" and "ready" in event.text:
            ready.add(event.job)
leader = arrea_nb.Leader.instance()
def told():
    print(json.dumps({{
        "jobs": [job.pid for job in batch],
        "spooled": [job.output_path for job in batch],
        "states": {{str(state): count for state, count in batch.counts.items() if count}},
        "guard": leader._engine.keeper._pid,
    }}))
told()
"""
# All allocations of any size fail from here on, also those of whoever cleans up.
NO_MEMORY = """
import resource
with open("/proc/self/statm") as file:
    size = int(file.read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (size, size))
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
    """As the kernel of the system does it when there is no memory left."""
    os.kill(manager.provisioner.pid, signal.SIGKILL)


def starve(manager, client):
    client.execute_interactive(NO_MEMORY, timeout=60)
    manager.shutdown_kernel()


def lose_the_guard_first(manager, client):
    """Nobody asks for a guard: the jobs that run must notice by themselves that theirs is gone."""
    guard = _printed(client, "told()")["guard"]
    os.kill(guard, signal.SIGKILL)
    told = _printed(
        client, f"import time\nwhile leader._engine.keeper._pid in (-1, {guard}): time.sleep(0.01)\ntold()"
    )
    assert told["states"] == {"running": JOBS}
    kill(manager, client)


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


@pytest.mark.parametrize("end", [restart, shutdown, leave, terminate, kill, starve, lose_the_guard_first])
def test_nothing_of_a_kernel_is_left_two_seconds_after_its_end(kernel, end):
    """C17, C14: fifty jobs with grandchildren, half of whom ignore SIGTERM; a kernel's ways to go."""
    manager, client = kernel
    started = _printed(client, START)
    kernel_id = _kernel_id(started["jobs"][0])
    spools = {Path(path).parent for path in started["spooled"]}
    assert len(spools) == 1
    spool = spools.pop()
    assert spool.stat().st_mode & 0o777 == 0o700
    assert len(_left(kernel_id, started["jobs"])) >= 4 * JOBS

    watch = EndOf(manager.provisioner.pid)
    end(manager, client)
    deadline = watch.ended_at() + LIMIT

    while (
        left := _left(kernel_id, started["jobs"]) or [spool] * spool.exists()
    ) and time.monotonic() < deadline:
        time.sleep(0.05)  # a look at every process costs what the guard needs
    assert not left, f"{LIMIT:g} s after the kernel's end there is still {left}"


def test_a_process_that_cleared_its_environment_but_not_its_group_ends_with_the_kernel(kernel, tmp_path):
    """C17: the guard knows the group; nothing in the process says whose it is."""
    manager, client = kernel
    line = f"env -i sleep 300 & echo $! > {tmp_path}/new; mv {tmp_path}/new {tmp_path}/pid; wait"
    client.execute_interactive(f"import arrea_nb; arrea_nb.execute([{line!r}], timeout=None)", timeout=60)
    deadline = time.monotonic() + 30
    while not (tmp_path / "pid").exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process = int((tmp_path / "pid").read_text())
    watch, watch_kernel = EndOf(process), EndOf(manager.provisioner.pid)

    os.kill(manager.provisioner.pid, signal.SIGKILL)

    assert watch.ended_at() < watch_kernel.ended_at() + LIMIT


@pytest.mark.parametrize("end", [leave, kill])
def test_the_spool_of_a_kernel_with_callables_alone_goes_with_it(kernel, end):
    """C14: there was no shell job that a guard would have been started for."""
    manager, client = kernel
    path = _printed(
        client,
        "import json, arrea_nb\n"
        "batch = arrea_nb.execute([lambda: print('x' * 1_000_000)])\n"
        "assert batch.wait(60)\n"
        "print(json.dumps(batch[0].output_path))",
    )
    spool = Path(path).parent
    assert spool.stat().st_mode & 0o777 == 0o700
    watch = EndOf(manager.provisioner.pid)

    end(manager, client)

    deadline = watch.ended_at() + LIMIT
    while spool.exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)


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


def _left(kernel_id, groups):
    """The processes that carry the kernel's id or run in a group of its jobs."""
    return [
        entry.name
        for entry in Path("/proc").iterdir()
        if entry.name.isdigit()
        and (kernel_id in _environment(entry.name) or _group(int(entry.name)) in groups)
    ]


def _group(pid):
    """The process group it runs in; None if it has ended, also if nobody has waited for it yet."""
    try:
        # The name, in parentheses, may contain anything; after it come state, parent and group.
        state, _, group = Path(f"/proc/{pid}/stat").read_text("latin-1").rpartition(")")[2].split()[:3]
    except (OSError, ValueError):
        return None
    return None if state in "ZX" else int(group)


def _environment(pid):
    try:
        return Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return []  # ended meanwhile
