"""Where there is no pidfd and no process group callables run, and a shell command says why it does not."""

import subprocess
import sys

LONG = 30

AS_ON_WINDOWS = """
import asyncio, concurrent.futures, logging, os, select, signal, subprocess
import sys, tempfile, threading, traitlets.config
for module, names in {
    os: ("pidfd_open", "eventfd", "register_at_fork", "getuid", "killpg", "setsid", "waitid", "O_NOFOLLOW"),
    select: ("poll", "epoll"),
    signal: ("SIGHUP", "SIGQUIT", "SIGKILL", "pthread_sigmask"),
}.items():
    for name in names:
        delattr(module, name)
sys.modules["resource"] = sys.modules["fcntl"] = None
import arrea_nb, arrea_nb.errors
print(arrea_nb.execute([lambda: print("heard") or 6 * 7], shell=None).results())
try:
    arrea_nb.execute(["echo", int])
except arrea_nb.errors.ArreaError as error:
    print(error)
print(dict(arrea_nb.get_state().stats)["started"])
"""


def test_without_what_shell_jobs_need_callables_run_and_a_shell_command_is_refused():
    done = subprocess.run(
        [sys.executable, "-c", AS_ON_WINDOWS], capture_output=True, text=True, timeout=LONG, check=False
    )
    assert done.stderr == ""
    assert done.stdout.splitlines() == [
        "[42]",
        "shell commands need Linux (pidfd_open); here only callables run",
        "1",
    ]
