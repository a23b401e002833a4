"""The console view: drawn on a terminal, plain lines elsewhere, and a real IPython in a real terminal."""

import io
import re
import sys

import pytest

from arrea_nb._leader import Leader
from arrea_nb.notebook._console import FRAME_INTERVAL, ConsoleView

LONG = 30.0
CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|\x1b\][^\x07]*\x07")


class Terminal(io.StringIO):
    """A stream that says that it is a terminal."""

    def isatty(self):
        return True


@pytest.fixture(autouse=True)
def size(monkeypatch):
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setenv("LINES", "12")
    for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def leader():
    with Leader(grace=0.1) as made:
        yield made


def drawn(view, start=100.0):
    """Two steps of the presenter, the second late enough for a drawing."""
    assert view.step(start, set) == start + FRAME_INTERVAL
    return view.step(start + FRAME_INTERVAL, set)


def test_nothing_is_drawn_in_the_first_moment(leader):
    batch = leader.execute(["sleep 60"])
    terminal = Terminal()
    view = ConsoleView(batch, terminal)
    assert view.step(100.0, set) == 100.0 + FRAME_INTERVAL
    view.close()
    assert terminal.getvalue() == ""


def test_a_terminal_shows_each_job_and_the_limits(leader):
    batch = leader.execute(["echo hello; sleep 60", "echo no >&2; exit 3"], workers=2)
    with leader.subscribe(batch=batch) as events:
        seen = set()
        while seen < {"hello", "ended"}:
            event = events.get(LONG)
            if event.type == "job_output" and event.job == 0:
                seen.add("hello")
            if event.type == "job_ended":
                seen.add("ended")
    terminal = Terminal()
    view = ConsoleView(batch, terminal)
    assert drawn(view) == 100.0 + FRAME_INTERVAL + 1.0
    text = CONTROL.sub("", terminal.getvalue())
    assert "2 jobs: 1 failed, 1 running  2 at once · 30 s each" in text
    assert re.search(r"▶ +\[0\] echo hello; sleep 60 .* hello", text)
    assert re.search(r"✖ +\[1\] echo no >&2; exit 3 .* exit 3: no", text)
    view.close()
    view.close()
    size = len(terminal.getvalue())
    assert view.step(200.0, set) is None
    assert len(terminal.getvalue()) == size


def test_a_small_terminal_shows_what_runs_first_and_counts_the_rest(leader):
    batch = leader.execute(["true"] * 30 + ["sleep 60"])
    completed = batch.as_completed(LONG)
    assert {next(completed).index for _ in range(30)} == set(range(30))
    completed.close()
    terminal = Terminal()
    view = ConsoleView(batch, terminal)
    drawn(view)
    lines = CONTROL.sub("", terminal.getvalue()).splitlines()
    view.close()
    assert len(lines) <= 12
    assert any("sleep 60" in line for line in lines)
    assert any("… and 23 more jobs" in line for line in lines)


def test_names_and_output_cannot_steer_the_terminal(leader):
    hostile = "\x1b[2J\x1b]0;title\x07[red]\u202eabc"
    batch = leader.execute({hostile: lambda: print(hostile)})
    assert batch.wait(LONG)
    terminal = Terminal()
    view = ConsoleView(batch, terminal)
    drawn(view)
    view.close()
    assert "\x1b[2J" not in terminal.getvalue()
    assert "title" not in terminal.getvalue()
    assert "[red]\\u202eabc" in CONTROL.sub("", terminal.getvalue())


def test_sys_stdout_is_left_alone_while_it_draws(leader):
    before = sys.stdout, sys.stderr
    view = ConsoleView(leader.execute(["sleep 60"]), Terminal())
    drawn(view)
    assert (sys.stdout, sys.stderr) == before
    view.close()


def test_where_there_is_no_terminal_each_job_that_ended_is_a_line(leader):
    batch = leader.execute(["true", "exit 3"])
    assert batch.wait(LONG)
    stream = io.StringIO()
    view = ConsoleView(batch, stream)
    assert drawn(view) is None
    view.step(200.0, set)
    view.close()
    assert stream.getvalue() == "succeeded  [0] true\nfailed  [1] exit 3: exit 3\n"


def test_in_a_real_terminal_ipython_draws_waits_and_is_interrupted(tmp_path):
    pexpect = pytest.importorskip("pexpect")
    shell = pexpect.spawn(
        sys.executable,
        ["-m", "IPython", "--no-banner", "--simple-prompt", "--colors=nocolor"],
        env={
            "PATH": "/usr/bin:/bin",
            "TERM": "xterm-256color",
            "IPYTHONDIR": str(tmp_path),
            "HOME": str(tmp_path),
        },
        encoding="utf-8",
        timeout=LONG,
        dimensions=(30, 100),
    )
    try:
        shell.expect_exact("In [1]: ")
        shell.sendline("%load_ext arrea_nb")
        shell.expect_exact("In [2]: ")
        shell.sendline("import arrea_nb; batch = arrea_nb.execute(['sleep 0.3', 'false']); batch")
        shell.expect_exact("2 jobs started; wait() shows the summary")
        shell.expect_exact("In [3]: ")
        shell.sendline("batch.wait()")
        shell.expect_exact("2 jobs: 1 failed, 1 succeeded")
        shell.expect_exact("Out[3]: True")
        shell.expect_exact("In [4]: ")
        shell.sendline("arrea_nb.run(['sleep 60', 'sleep 61'], timeout=None)")
        shell.expect_exact("2 jobs running")
        shell.sendintr()
        shell.expect_exact("2 jobs cancelled")
        shell.expect_exact("KeyboardInterrupt")
        shell.expect_exact("In [5]: ")
        shell.sendline("exit")
        shell.expect(pexpect.EOF)
    finally:
        shell.close(force=True)
