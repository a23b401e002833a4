"""The console view: drawn on a terminal, plain lines elsewhere, and a real IPython in a real terminal."""

import codecs
import fcntl
import io
import os
import re
import select
import struct
import subprocess
import sys
import termios
import threading
import time

import pytest

import arrea_nb
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
    assert re.search("2 jobs: 1 failed, 1 running  [^ ]+ m?s.*  2 at once · 30 s each", text)
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
    assert sorted(stream.getvalue().splitlines()) == ["failed  [1] exit 3: exit 3", "succeeded  [0] true"]


def test_a_progress_bar_a_retry_and_what_is_left_are_told(leader, monkeypatch):
    gate = threading.Event()

    def half():
        arrea_nb.progress(1, 2, "half way")
        gate.wait(LONG)

    def flaky():
        raise ConnectionError("refused")

    policy = {"retries": 1, "retry_delay": LONG}
    with leader.subscribe() as events:
        batch = leader.execute({"half": half, "flaky": flaky, "done": lambda: None}, policy=policy)
        seen = set()
        while seen != {"job_retrying", "job_progress", "job_ended"}:
            seen |= {events.get(LONG).type} & {"job_retrying", "job_progress", "job_ended"}
    monkeypatch.setattr(type(batch), "eta", property(lambda _: 83.4))
    terminal = Terminal()
    view = ConsoleView(batch, terminal)
    drawn(view)
    view.close()
    text = CONTROL.sub("", terminal.getvalue())
    assert re.search(r"1 running, 1 waiting, 1 succeeded  \d+ ms, about 1 min 23 s left  4 at once", text)
    assert re.search(r"▶ \[0\] half .*━ +50% .* half way", text)
    assert re.search(r"↻ \[1\] flaky .* is tried again; ConnectionError: refused", text)
    batch.cancel()
    gate.set()
    assert batch.wait(LONG)


def test_where_there_is_no_terminal_only_what_changed_is_looked_at(leader):
    batch = leader.execute(["true", "exit 3", "true"])
    assert batch.wait(LONG)
    stream = io.StringIO()
    view = ConsoleView(batch, stream)
    view.step(100.0, set)
    view.step(101.0, lambda: {1})
    assert stream.getvalue() == "failed  [1] exit 3: exit 3\n"
    view.step(102.0, lambda: {1})
    view.close()
    view.close()
    assert sorted(stream.getvalue().splitlines()) == [
        "failed  [1] exit 3: exit 3",
        "succeeded  [0] true",
        "succeeded  [2] true",
    ]


class Shell:
    """A real IPython in a pseudo-terminal of 100 columns and 30 lines, and somebody who types into it."""

    # The terminal that it was given becomes the one that ^C comes from.
    START = (
        "import fcntl, os, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); "
        "os.execv(sys.executable, [sys.executable, '-m', 'IPython', '--no-banner', '--no-confirm-exit'])"
    )

    def __init__(self, folder):
        self._ours, theirs = os.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 30, 100, 0, 0))
        home = {"HOME": str(folder), "IPYTHONDIR": str(folder), "PROMPT_TOOLKIT_NO_CPR": "1"}
        self._process = subprocess.Popen(
            [sys.executable, "-c", self.START],
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            env={**os.environ, **home},
            start_new_session=True,
        )
        os.close(theirs)
        self._decoder = codecs.getincrementaldecoder("utf-8")()
        self._shown = ""
        self.everything = ""

    def expect(self, pattern):
        """Waits until the terminal shows this, and returns what it showed until then, without its colours."""
        deadline = time.monotonic() + LONG
        while (found := re.search(pattern, text := CONTROL.sub("", self._shown))) is None:
            rest = deadline - time.monotonic()
            assert select.select([self._ours], [], [], max(0.0, rest))[0], f"no {pattern!r} in {text!r}"
            more = self._decoder.decode(os.read(self._ours, 65536))
            self.everything += more
            self._shown += more
        self._shown = text[found.end() :]
        return text[: found.end()]

    def type(self, text):
        os.write(self._ours, text.encode())

    def run(self, cell):
        """Pastes a cell, as a terminal that brackets what is pasted does, and runs it."""
        self.type(f"\x1b[200~{cell}\x1b[201~\x1b\r")

    def close(self):
        self._process.kill()
        self._process.wait(LONG)
        os.close(self._ours)


@pytest.fixture
def shell(tmp_path):
    made = Shell(tmp_path)
    yield made
    made.close()


def test_in_a_real_terminal_a_batch_is_drawn_live_interrupted_and_summed_up(shell):
    shell.expect(r"In \[1\]: ")
    shell.run("%load_ext arrea_nb")
    shell.expect(r"In \[2\]: ")
    shell.run("%%arrea -t 0\necho hello; sleep 60\necho no >&2; exit 7\nsleep 61")
    shell.expect(r"3 jobs: 1 failed, 2 running  [\d.]+ m?s.*  4 at once · no time limit")
    assert re.search(r"▶ \[0\] echo hello; sleep 60 .* hello", shell.expect("sleep 61 "))
    shell.expect(r"✖ \[1\] echo no >&2; exit 7 .* exit 7: no")
    shell.type("\x03")
    shell.expect(r"3 jobs: 1 failed, 2 cancelled\r\n\[1\] echo no >&2; exit 7: exit 7: no")
    shell.expect(r"■ cancelled  \[2\] sleep 61")
    shell.expect(r"KeyboardInterrupt: 1 failed, 2 cancelled\. Batch: _arrea")
    shell.expect(r"In \[3\]: ")
    shell.run("[str(job.state) for job in _arrea], 6 * 7")
    shell.expect(r"Out\[3\]: \(\['cancelled', 'failed', 'cancelled'\], 42\)")
    shell.expect(r"In \[4\]: ")
    shell.type("exit\r")


def test_in_a_real_terminal_a_batch_that_nobody_waits_for_leaves_the_prompt_alone(shell):
    shell.expect(r"In \[1\]: ")
    shell.run("%load_ext arrea_nb")
    shell.expect(r"In \[2\]: ")
    shell.run("import arrea_nb; batch = arrea_nb.execute(['sleep 0.3', 'false']); batch")
    shell.expect("2 jobs started; wait\\(\\) shows the summary")
    shell.expect(r"In \[3\]: ")
    shell.run("batch.wait()")
    shell.expect("2 jobs: 1 failed, 1 succeeded\r\n")
    shell.expect(r"Out\[3\]: True")
    shell.expect(r"In \[4\]: ")


def test_hostile_output_does_nothing_to_a_real_terminal(shell):
    r"""Sets no title, writes no clipboard, links nowhere, clears nothing, and is seen written out."""
    hostile = (
        r"\033]0;owned\007\033]52;c;b3duZWQ=\007\033]8;;http://owned\033\\\033[2J\033[?1049h\302\233\061m"
    )
    shell.expect(r"In \[1\]: ")
    shell.run("%load_ext arrea_nb")
    shell.expect(r"In \[2\]: ")
    shell.run(
        f"import arrea_nb; said = b'{hostile}end'.decode()\nbatch = arrea_nb.execute({{said: lambda: 1 / 0, "
        f"'two': ['printf', said + '\\n'], 'three': ['sh', '-c', 'printf \"$0\" >&2; exit 3', said]}})\n"
        "batch.wait(); batch"
    )
    shell.expect(r"3 jobs: 2 failed, 1 succeeded")
    shell.expect(r"In \[3\]: ")
    shown = shell.everything.partition("3 jobs:")[2]
    for sequence in ("\x1b]", "\x1b[2J", "\x1b[?1049h", "\x9b", "owned\x07"):
        assert sequence not in shown
    assert "[0] end: ZeroDivisionError" in CONTROL.sub("", shown)
