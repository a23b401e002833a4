"""For every test: nothing that arrea_nb made outlives it, no thread, process, descriptor or temporary file.

The session has a temporary directory of its own, so that a file found there is ours, and marks its
environment, so that a process found anywhere on the machine can be told to come from this run.
"""

import configparser
import gc
import os
import re
import shutil
import sys
import tempfile
import threading
import time
import uuid
from pathlib import Path

import psutil
import pytest
from hypothesis import settings
from jupyter_core.utils import ensure_event_loop

# How long a closed Leader's threads, guard and children may take to be gone, in seconds.
PATIENCE = 5.0

_MARK = "ARREA_NB_TEST_RUN"

# The same examples in every run, and few; HYPOTHESIS_PROFILE=soak tries others each time, and many.
settings.register_profile(
    "quick", derandomize=True, database=None, deadline=None, max_examples=40, stateful_step_count=60
)
settings.register_profile("soak", database=None, deadline=None, max_examples=1000, stateful_step_count=100)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "quick"))
_TEMPORARY = pytest.StashKey[str]()


def pytest_configure(config):
    config.stash[_TEMPORARY] = tempfile.mkdtemp(prefix="test-")
    os.environ["TMPDIR"] = tempfile.tempdir = config.stash[_TEMPORARY]
    os.environ[_MARK] = uuid.uuid4().hex


def pytest_unconfigure(config):
    tempfile.tempdir = None
    os.environ.pop("TMPDIR", None)
    shutil.rmtree(config.stash[_TEMPORARY], ignore_errors=True)


@pytest.fixture(scope="session", autouse=True)
def jupyter_event_loop():
    """The loop that jupyter_client keeps, made early: the first test with a kernel would leak it."""
    loop = ensure_event_loop()
    yield
    loop.close()


@pytest.fixture(scope="session")
def masked():
    """Makes of a saved text/html what nbval compares."""
    config = configparser.RawConfigParser()
    config.read(Path(__file__).parent / "nbval-sanitize.cfg")

    def mask(text):
        for name in config.sections():
            text = re.sub(config.get(name, "regex"), config.get(name, "replace"), text)
        return text

    return mask


@pytest.fixture(autouse=True)
def nothing_left_behind(jupyter_event_loop):
    """Closes this kernel's Leader after the test and waits until everything the test brought has gone."""
    before = _traces()
    yield
    _close_leader()
    deadline = time.monotonic() + PATIENCE
    while left := _left(before):
        if time.monotonic() > deadline:
            pytest.fail("left behind by this test:\n" + "\n".join(f"  {what}" for what in left))
        gc.collect()
        time.sleep(0.01)


def _close_leader():
    module = sys.modules.get("arrea_nb._leader")
    if module is not None and module.Leader.initialized():
        module.Leader.instance().close()
        module.Leader.clear_instance()


def _left(before):
    """What there is now and was not before, each with a key that names it; few descriptors are few enough."""
    now = _traces()
    left = {key: text for key, text in now.items() if key not in before}
    descriptors = [key for key in left if key[0] == "descriptor"]
    grown = sum(key[0] == "descriptor" for key in now) - sum(key[0] == "descriptor" for key in before)
    if grown <= 0:
        for key in descriptors:
            del left[key]
    return list(left.values())


def _traces():
    return {**_threads(), **_processes(), **_descriptors(), **_files()}


def _threads():
    return {
        ("thread", id(thread)): f"thread {thread.name}"
        for thread in threading.enumerate()
        if thread.name.startswith("arrea")
    }


def _processes():
    """Our children, and whoever else on the machine descends from this run and carries a kernel's id."""
    found = {}
    for child in psutil.Process().children():
        found["process", child.pid] = _described(child.pid, "child process")
    mark = f"{_MARK}={os.environ[_MARK]}".encode()
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            environment = (entry / "environ").read_bytes().split(b"\0")
        except OSError:
            continue  # ended meanwhile, or another user's
        if mark in environment and any(item.startswith(b"ARREA_KERNEL_ID=") for item in environment):
            found["process", int(entry.name)] = _described(int(entry.name), "process")
    return found


def _described(pid, what):
    try:
        process = psutil.Process(pid)
        return f"{what} {pid} ({process.status()}): {' '.join(process.cmdline()) or process.name()}"
    except psutil.Error:
        return f"{what} {pid}"


def _descriptors():
    found = {}
    for entry in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{entry}")
        except OSError:
            continue  # the descriptor that listed the folder
        found["descriptor", entry, target] = f"file descriptor {entry} -> {target}"
    return found


def _files():
    return {
        ("file", entry.name): f"temporary {entry}"
        for entry in Path(tempfile.gettempdir()).iterdir()
        if entry.name.startswith("arrea-")
    }
