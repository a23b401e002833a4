"""Stdout, stderr and input that know which job is printing (C13), and leave everything else alone (C20)."""

import builtins
import contextlib
import contextvars
import getpass
import io
import os
import subprocess
import sys
import textwrap
import threading

import pytest
from jupyter_client import KernelManager

from arrea_nb._progress import running
from arrea_nb.workers import _capture

say = print  # what is tested is print itself


class Recorder:
    """An attempt that notes what is written to it."""

    def __init__(self):
        self.written = []

    def wrote(self, stream, text):
        self.written.append((stream, text))

    @property
    def text(self):
        return "".join(text for _, text in self.written)


@pytest.fixture
def stdout(capsys):
    """Returns what arrived at the original stdout since the last call; takes the proxies out in the end."""
    yield lambda: capsys.readouterr().out
    _capture.uninstall()


@pytest.fixture
def attempt():
    return Recorder()


@pytest.fixture
def in_job(attempt):
    """Runs a function as an attempt does, and returns what it returns."""

    def run(function, *args):
        def inside():
            running.set(attempt)
            return function(*args)

        return contextvars.copy_context().run(inside)

    return run


def test_a_job_prints_to_its_attempt_and_everybody_else_as_before(stdout, attempt, in_job):
    _capture.install()
    in_job(print, "inside")
    say("outside")
    assert attempt.text == "inside\n"
    assert stdout() == "outside\n"


def test_stderr_is_told_apart(stdout, attempt, in_job):
    with contextlib.redirect_stderr(io.StringIO()) as stderr:
        _capture.install()
        in_job(lambda: sys.stderr.write("bad"))
        sys.stderr.write("mine\n")
        _capture.uninstall()
        assert sys.stderr is stderr
    assert attempt.written[0] == (1, "bad")
    assert stderr.getvalue() == "mine\n"


def test_a_thread_with_the_jobs_context_prints_to_its_attempt_and_one_without_does_not(
    stdout, attempt, in_job
):
    _capture.install()

    def start(target, *args):
        thread = threading.Thread(target=target, args=args)
        thread.start()
        thread.join()

    in_job(lambda: start(contextvars.copy_context().run, print, "with"))
    in_job(lambda: start(print, "without"))
    assert attempt.text == "with\n"
    assert stdout() == "without\n"


def test_install_and_uninstall_can_be_repeated_and_leave_nothing(stdout):
    plain, asked, passed = sys.stdout, builtins.input, getpass.getpass
    for _ in range(3):
        _capture.install()
        _capture.install()
    assert sys.stdout.__wrapped__ is plain
    for _ in range(2):
        _capture.uninstall()
    assert sys.stdout is plain
    assert builtins.input is asked
    assert getpass.getpass is passed


def test_uninstall_leaves_what_somebody_else_put_there(stdout, attempt, in_job):
    _capture.install()
    proxy = sys.stdout
    theirs = sys.stdout = io.StringIO()
    _capture.uninstall()
    assert sys.stdout is theirs
    sys.stdout = proxy
    in_job(print, "after")
    assert attempt.text == ""
    assert stdout() == "after\n"


def test_a_stream_that_was_swapped_is_found_when_looked_at_again(stdout, attempt, in_job):
    _capture.install()
    with contextlib.redirect_stdout(io.StringIO()) as theirs:
        in_job(print, "swallowed")
        _capture.look_again()
        in_job(print, "kept")
        say("outside")
    say("later")
    in_job(print, "kept too")
    assert attempt.text == "kept\nkept too\n"
    assert theirs.getvalue() == "swallowed\noutside\n"
    assert stdout() == "later\n"


def test_looking_again_installs_nothing_by_itself(stdout):
    plain = sys.stdout
    _capture.look_again()
    assert sys.stdout is plain


def test_a_stream_that_somebody_wrapped_around_ours_works_and_so_does_ours_inside(stdout, attempt, in_job):
    class Loud:
        def __init__(self, inner):
            self.inner = inner

        def write(self, text):
            return self.inner.write(text.upper())

        def flush(self):
            self.inner.flush()

    _capture.install()
    sys.stdout = Loud(sys.stdout)
    _capture.install()
    say("outside")
    in_job(print, "inside")
    _capture.uninstall()
    say("after")
    assert isinstance(sys.stdout, Loud)
    assert attempt.text == "inside\n"
    assert stdout() == "OUTSIDE\nAFTER\n"


def test_a_patched_write_sees_what_is_printed_outside_jobs_only(stdout, attempt, in_job):
    _capture.install()
    seen = []
    before = sys.stdout.write

    def write(text):
        seen.append(text)
        return before(text)

    sys.stdout.write = write
    say("outside")
    in_job(print, "inside")
    sys.stdout.write = before
    say("later")
    assert "".join(seen) == "outside\n"
    assert attempt.text == "inside\n"
    assert stdout() == "outside\nlater\n"


def test_patches_within_patches_are_taken_off_one_by_one(stdout):
    _capture.install()
    originals = []
    for letter in "ab":
        before = sys.stdout.write
        originals.append(before)
        sys.stdout.write = lambda text, before=before, letter=letter: before(letter + text)
    sys.stdout.write("1 ")
    sys.stdout.write = originals.pop()
    sys.stdout.write("2 ")
    sys.stdout.write = originals.pop()
    sys.stdout.write("3")
    assert stdout() == "ab1 a2 3"


def test_attributes_are_read_from_the_original_and_never_set_on_it(stdout):
    plain = sys.stdout
    plain.answer = 42
    _capture.install()
    assert sys.stdout.answer == 42
    sys.stdout.answer = 43
    assert plain.answer == 42
    assert not hasattr(sys.stdout, "set_parent")


def test_the_proxy_passes_for_a_text_stream(stdout):
    _capture.install()
    assert isinstance(sys.stdout, io.TextIOBase)
    assert sys.stdout.writable()
    assert not sys.stdout.closed


def test_what_a_job_does_to_its_streams_besides_writing_is_sensible(stdout, attempt, in_job):
    plain = sys.stdout
    _capture.install()

    def use():
        sys.stdout.writelines(["a", "b"])
        sys.stdout.flush()
        sys.stdout.close()
        assert not sys.stdout.isatty()
        assert sys.stdout.writable()
        assert sys.stdout.write("cd") == 2
        with pytest.raises(TypeError, match="must be str, not bytes"):
            sys.stdout.write(b"e")
        with pytest.raises(io.UnsupportedOperation, match="no file descriptor"):
            sys.stdout.fileno()

    in_job(use)
    assert attempt.text == "abcd"
    assert not plain.closed


def test_bytes_written_to_the_buffer_are_decoded_across_writes(stdout, attempt, in_job):
    _capture.install()

    def use():
        for byte in "5 €".encode():
            sys.stdout.buffer.write(bytes([byte]))
        sys.stdout.buffer.write(memoryview(b"\xff!"))
        sys.stderr.buffer.write(b"e")
        sys.stdout.buffer.flush()

    in_job(use)
    assert attempt.text == "5 €�!e"
    assert attempt.written[-1] == (1, "e")


def test_outside_a_job_the_buffer_and_the_descriptor_are_the_originals(tmp_path, attempt):
    with open(tmp_path / "out", "w") as file, contextlib.redirect_stdout(file):
        _capture.install()
        try:
            assert sys.stdout.buffer is file.buffer
            assert sys.stdout.fileno() == file.fileno()
            subprocess.run(["echo", "hello"], stdout=sys.stdout, check=True)
        finally:
            _capture.uninstall()
    assert (tmp_path / "out").read_text() == "hello\n"


@pytest.mark.parametrize(("module", "name"), [(builtins, "input"), (getpass, "getpass")])
def test_nobody_can_be_asked_in_a_job(stdout, in_job, monkeypatch, module, name):
    monkeypatch.setattr(module, name, lambda prompt: f"answer to {prompt}")
    _capture.install()
    assert getattr(module, name)("it") == "answer to it"
    with pytest.raises(RuntimeError, match=rf"^{name}\(\) cannot be asked for in a job; ask before"):
        in_job(lambda: getattr(module, name)("it"))
    _capture.uninstall()


def test_a_missing_stream_is_left_alone(stdout, monkeypatch):
    monkeypatch.setattr(sys, "stdout", None)
    _capture.install()
    assert sys.stdout is None
    _capture.uninstall()


JOB = """
import contextvars, sys, threading
from arrea_nb._progress import running
from arrea_nb.workers import _capture

class Recorder:
    text = ""
    def wrote(self, stream, text):
        self.text += text

def in_thread(function, attempt):
    def target():
        running.set(attempt)
        function()
    thread = threading.Thread(target=contextvars.copy_context().run, args=(target,))
    thread.start()
    thread.join()

attempt = Recorder()
"""


def test_cells_of_an_ipython_shell_print_before_between_and_after(tmp_path):
    script = JOB + textwrap.dedent("""
        from IPython.core.interactiveshell import InteractiveShell
        shell = InteractiveShell.instance()
        plain = sys.stdout
        shell.user_ns.update(globals())
        cells = '''
            print("1 before")
            _capture.install(); print("2 first")
            print("3 next"); in_thread(lambda: print("job"), attempt)
            1/0
            4
            shell.run_cell("print('5 nested')")
            _capture.uninstall(); print("6 last")
            print("7 after"); assert sys.stdout is plain
        '''
        for cell in cells.strip().splitlines():
            shell.run_cell(cell.strip(), store_history=True)
        assert attempt.text == "job\\n", attempt.text
        kept = [text for outputs in shell.history_manager.outputs.values() for output in outputs
                for text in output.bundle.get("stream", [])]
        assert "job" not in kept, kept
        assert "3 next" in kept, kept
        print("8 end")
    """)
    run = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "IPYTHONDIR": str(tmp_path)},
        timeout=60,
    )
    assert run.returncode == 0, run.stderr
    lines = [line for line in run.stdout.splitlines() if line[:1].isdigit()]
    assert lines == [
        "1 before", "2 first", "3 next", "5 nested", "6 last", "7 after", "8 end",
    ]  # fmt: skip
    assert "ZeroDivisionError" in run.stdout + run.stderr
    assert "4" in run.stdout
    assert "RecursionError" not in run.stdout + run.stderr


@pytest.fixture
def cell(tmp_path, monkeypatch):
    """Runs code in a real ipykernel and returns what the cell shows; questions are answered with 'yes'."""
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path))
    manager = KernelManager()
    manager.start_kernel(cwd=os.getcwd())
    client = manager.blocking_client()
    client.start_channels()

    def run(code):
        shown = []

        def hook(message):
            content = message["content"]
            if message["msg_type"] == "stream":
                shown.append(content["text"])
            elif message["msg_type"] == "execute_result":
                shown.append(content["data"]["text/plain"])
            elif message["msg_type"] == "error":
                shown.append(content["ename"])

        client.execute_interactive(
            textwrap.dedent(code),
            output_hook=hook,
            allow_stdin=True,
            stdin_hook=lambda _: client.input("yes"),
            timeout=60,
        )
        return "".join(shown)

    try:
        client.wait_for_ready(timeout=60)
        run.client = client
        yield run
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)
        manager.cleanup_resources()


def test_cells_of_a_real_kernel_print_ask_and_fail_as_ever(cell):
    assert cell(JOB + "plain = sys.stdout\n_capture.install()\nprint('one')") == "one\n"
    assert cell("print('two'); in_thread(lambda: print('job'), attempt); attempt.text") == "two\n'job\\n'"
    assert cell("sys.stdout.flush(); print('err', file=sys.stderr); 1/0") == "err\nZeroDivisionError"
    assert cell("input('really? ')") == "'yes'"
    assert cell("import getpass; _capture.look_again(); input('?') + getpass.getpass('?')") == "'yesyes'"
    refused = """
        _capture.look_again()
        def ask():
            try:
                input()
            except RuntimeError as error:
                print(error)
        attempt.text = ""
        in_thread(ask, attempt)
        attempt.text[:31]
    """
    assert cell(refused) == "'input() cannot be asked for in '"
    captured = """
        from IPython.utils.capture import capture_output
        attempt.text = ""
        with capture_output() as captured:
            _capture.install()
            print('mine')
            in_thread(lambda: print('job'), attempt)
        print('three')
        captured.stdout, attempt.text
    """
    assert cell(captured) == "three\n('mine\\n', 'job\\n')"
    assert cell("!echo four") == "four\r\n" or cell("!echo four") == "four\n"
    assert cell("_capture.uninstall(); print('five')") == "five\n"
    assert cell("print('six'); sys.stdout is plain") == "six\nTrue"
    assert cell("input('?')") == "'yes'"
    assert cell("import builtins; (builtins.input, getpass.getpass)").count("arrea") == 0
    assert cell("_capture.install(); print('seven')") == "seven\n"
    assert cell("print('eight')") == "eight\n"


SUBMIT = """
import arrea_nb, threading
from IPython.display import HTML, display
go = threading.Event()

def job():
    go.wait(30)
    print("captured")
    display(HTML("<b>shown</b>"))

batch = arrea_nb.execute([job])
"""


def test_c13_display_in_a_job_goes_to_the_cell_that_submitted_it_and_print_to_no_cell(cell):
    client = cell.client
    submitting = client.execute(SUBMIT)
    later = client.execute("go.set(); batch.results(timeout=30)")
    displayed, texts, ended = [], [], set()
    while not displayed or ended != {submitting, later}:
        message = client.get_iopub_msg(timeout=30)
        content, parent = message["content"], message["parent_header"].get("msg_id")
        if message["msg_type"] == "display_data":
            displayed.append((parent, content["data"].get("text/html")))
        elif message["msg_type"] in {"stream", "error"}:
            texts.append(content)
        elif message["msg_type"] == "status" and content["execution_state"] == "idle":
            ended.add(parent)
    assert displayed == [(submitting, "<b>shown</b>")]
    assert texts == []
    assert cell("batch[0].stdout") == "'captured\\n'"
