"""`%%arrea` and `%arrea` in a real IPython shell, and, where it matters to others, in a real kernel.

Every option and behaviour has a test; `WRONG_CELLS` is the cells' half of the table of bad input.
"""

import atexit
import os
import re
import signal
import subprocess
import threading
import time
from types import SimpleNamespace

import nbformat
import pytest
from IPython.core.interactiveshell import InteractiveShell
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from traitlets.config import Config

import arrea_nb
from arrea_nb import _views
from arrea_nb.errors import BatchFailed
from arrea_nb.events import JobState
from arrea_nb.notebook import _cells

PATIENCE = 20.0


def until(condition):
    """Waits until `condition()` is true, and returns what it gave."""
    deadline = time.monotonic() + PATIENCE
    while not (value := condition()):
        assert time.monotonic() < deadline, "the condition never came true"
        time.sleep(0.005)
    return value


class Shell(InteractiveShell):
    """An IPython that notes which errors it shows as errors of a cell, as a kernel's would send them."""

    def _showtraceback(self, etype, evalue, stb):
        self.shown.append((etype, "\n".join(stb)))


class View:
    """Stands where the live view will be, and notes what it is told."""

    def __init__(self, batch):
        self.batch = batch
        self.finished_as = []

    def finish(self):
        self.finished_as.append(self.batch.state)


class Notebook:
    """Runs cells and hands back what a reader would see."""

    def __init__(self, shell, capsys):
        self.shell = shell
        self.capsys = capsys
        self.views = []

    def show(self, batch):
        self.views.append(View(batch))
        return self.views[-1]

    def run(self, cell):
        self.shell.shown = []
        self.capsys.readouterr()
        result = self.shell.run_cell(cell, store_history=True)
        said = self.capsys.readouterr()
        shown = [text for _, text in self.shell.shown]
        return SimpleNamespace(
            error=result.error_in_exec or result.error_before_exec,
            shown="\n".join(shown),
            stdout=said.out,
            stderr=said.err,
        )

    def __getitem__(self, name):
        return self.shell.user_ns[name]

    def __setitem__(self, name, value):
        self.shell.user_ns[name] = value

    @property
    def batch(self):
        return self.shell.user_ns.get("_arrea")


@pytest.fixture
def notebook(capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    monkeypatch.chdir(tmp_path)
    config = Config()
    config.HistoryManager.enabled = False
    Shell.clear_instance()
    shell = Shell.instance(config=config, colors="nocolor")
    notebook = Notebook(shell, capsys)
    shell.run_line_magic("load_ext", "arrea_nb")
    _views.show_with(notebook.show)
    yield notebook
    for view in notebook.views:
        view.batch.cancel()
    shell.run_line_magic("unload_ext", "arrea_nb")
    atexit.unregister(shell.atexit_operations)
    shell.atexit_operations()
    Shell.clear_instance()


def names(batch):
    return [job.name for job in batch]


def outputs(batch):
    return [job.stdout.strip() for job in batch]


# What a command is


def test_each_line_is_a_command_and_blank_and_comment_lines_are_passed_over(notebook):
    ran = notebook.run("%%arrea\n\n# a comment\necho one\n   \n  # another\n  echo two  # said\n")
    assert ran.error is None
    assert names(notebook.batch) == ["echo one", "echo two  # said"]
    assert outputs(notebook.batch) == ["one", "two"]


def test_a_trailing_backslash_continues_a_line(notebook):
    notebook.run("%%arrea\necho a \\\n  b \\\n  c\necho c\\\\\nprintf %s 'x\\\ny'\n")
    assert outputs(notebook.batch) == ["a b c", "c\\", "x\\\ny"]


def test_a_commented_backslash_continues_nothing_but_the_shell_sees_both_lines(notebook):
    notebook.run("%%arrea\n# not this \\\necho one # note \\\necho two")
    assert outputs(notebook.batch) == ["one\ntwo"]


def test_braces_and_dollars_in_the_cell_are_left_to_the_shell(notebook):
    notebook["x"] = "python's"
    notebook.run("%%arrea\necho {x} '{{x}}' ${x:-unset} $x. | awk '{print $1, $2, $3, $4}'")
    assert outputs(notebook.batch) == ["{x} {{x}} unset ."]


def test_a_variable_on_the_line_of_the_magic_is_expanded_as_in_any_magic(notebook):
    notebook["at_once"] = 2
    notebook.run("%%arrea -w {at_once} --name $at_once\ntrue")
    assert (notebook.batch.workers, notebook.batch.name) == (2, "2")


def test_a_cell_of_comments_is_an_empty_batch_that_succeeded(notebook):
    ran = notebook.run("%%arrea\n# nothing\n")
    assert ran.error is None
    assert (len(notebook.batch), notebook.batch.state) == (0, JobState.SUCCEEDED)


def test_blocks_between_blank_lines_are_small_scripts(notebook):
    cell = (
        "%%arrea --blocks\n# title\nfor i in 1 2; do\n  echo $i\ndone\n\n# alone\n\n\ncat <<END\na 'b\nEND\n"
    )
    assert notebook.run(cell).error is None
    assert names(notebook.batch) == ["for i in 1 2; do\n  echo $i\ndone", "cat <<END\na 'b\nEND"]
    assert outputs(notebook.batch) == ["1\n2", "a 'b"]


# --python


def test_each_python_statement_is_a_job_in_the_users_namespace(notebook):
    notebook["given"] = 20
    body = "made = given + 1\ngiven * 2; print('said')\n\ndef f(x):\n    return x\n\n[1, 2][1]  # two"
    assert notebook.run(f"%%arrea --python\n{body}").error is None
    batch = notebook.batch
    assert names(batch) == [
        "made = given + 1",
        "given * 2",
        "print('said')",
        "def f(x):\n    return x",
        "[1, 2][1]",
    ]
    assert [job.value for job in batch] == [None, 40, None, None, 2]
    assert batch[2].stdout == "said\n"
    assert notebook["made"] == 21
    assert notebook["f"](3) == 3
    assert {job.kind for job in batch} == {"python"}


def test_a_top_level_await_is_awaited_in_its_job(notebook):
    body = "import asyncio\nasync def f(x):\n    await asyncio.sleep(0)\n    return x"
    notebook.run(body)
    notebook.run(
        "%%arrea --python\nawait f(7)\nlater = await f(8)\nasync with asyncio.timeout(9): await f(1)"
    )
    assert [job.value for job in notebook.batch] == [7, None, None]
    assert notebook["later"] == 8


def test_a_decorated_function_keeps_its_decorator_in_its_name(notebook):
    notebook.run("%%arrea --python\n@staticmethod\ndef f(): pass")
    assert names(notebook.batch) == ["@staticmethod\ndef f(): pass"]


def test_a_python_traceback_shows_the_line_of_the_cell(notebook):
    ran = notebook.run("%%arrea --python\nfine = 1\n1 / 0  # here")
    assert (
        ran.shown
        == "BatchFailed: 1 of 2 failed: [1] 1 / 0: ZeroDivisionError: division by zero. Batch: _arrea"
    )
    trace = notebook.batch[1].error.__traceback__
    assert trace.tb_lineno == 3
    again = notebook.run("_arrea.results()")
    assert "1 / 0  # here" in again.shown
    assert "line 3" in again.shown


def test_a_syntax_error_stops_the_cell_and_shows_where(notebook):
    ran = notebook.run("%%arrea --python\nstarted = 1\nfor\n")
    assert isinstance(ran.error, SyntaxError)
    assert re.search(r"line 3\n +for\n +\^\nSyntaxError: invalid syntax", ran.shown)
    assert notebook.batch is None
    assert "started" not in notebook.shell.user_ns


# Options


@pytest.mark.parametrize(
    ("option", "seconds"),
    [
        ("-t 500ms", 0.5), ("-t 30s", 30), ("-t10m", 600), ("--timeout 2h", 7200), ("--timeout=1.5", 1.5),
        ("-t .5s", 0.5), ("-t '10 m'", 600), ("-t 0", None), ("-t 0s", None), ("", 30.0),
    ],
)  # fmt: skip
def test_a_timeout_has_a_unit_and_0_is_none(notebook, option, seconds):
    notebook.run(f"%%arrea {option}\ntrue")
    assert notebook.batch.timeout == seconds


def test_a_timeout_ends_a_job_and_names_the_remedy(notebook):
    ran = notebook.run("%%arrea -t 50ms\nsleep 60")
    assert isinstance(ran.error, BatchFailed)
    assert notebook.batch[0].state is JobState.TIMED_OUT
    assert ran.shown.startswith("BatchFailed: 1 of 1 failed: [0] sleep 60: timed out")
    assert "-t " in ran.shown


@pytest.mark.parametrize("option", ["-w 3", "-w3", "--workers 3", "--workers=3"])
def test_workers_limit_what_runs_at_once(notebook, option):
    notebook.run(f"%%arrea {option}\ntrue")
    assert notebook.batch.workers == 3


def test_a_failed_command_is_retried_after_the_delay(notebook):
    notebook.run("%%arrea --retries 2 --retry-delay 10ms\necho x >> log; test $(wc -l < log) = 3")
    assert notebook.batch.state is JobState.SUCCEEDED
    assert [attempt.state for attempt in notebook.batch[0].attempts] == ["failed", "failed", "succeeded"]
    assert notebook.batch.policy.retry_delay == 0.01


@pytest.mark.parametrize(
    ("step", "state"),
    [("continue", JobState.SUCCEEDED), ("stop", JobState.SKIPPED), ("abort", JobState.SKIPPED)],
)
def test_on_error_says_what_becomes_of_the_rest(notebook, step, state):
    notebook.run(f"%%arrea -w 1 --on-error {step}\nfalse\ntrue")
    assert [job.state for job in notebook.batch] == [JobState.FAILED, state]


def test_a_name_may_have_blanks(notebook):
    notebook.run("%%arrea --name 'my batch'\ntrue")
    assert notebook.batch.name == "my batch"
    assert "my batch" in notebook.run("%arrea").stdout


@pytest.mark.parametrize("option", ["-o mine", "--out mine", "--out=mine"])
def test_out_has_the_batch_even_when_the_cell_raises(notebook, option):
    ran = notebook.run(f"%%arrea {option}\nfalse")
    assert isinstance(ran.error, BatchFailed)
    assert notebook["mine"] is notebook.batch


def test_bg_does_not_wait_and_shows_the_batch(notebook):
    ran = notebook.run("%%arrea --bg -t 0\nuntil test -e go; do :; done; false")
    batch = notebook.batch
    assert (ran.error, batch.done()) == (None, False)
    assert [view.batch for view in notebook.views] == [batch]
    assert notebook.views[0].finished_as == []
    open("go", "w").close()
    assert batch.wait(PATIENCE)


def test_export_passes_strings_numbers_and_paths_so_that_quoting_is_safe(notebook, tmp_path):
    nasty = "a  'b' \"c\" $(echo no) `echo no` {x}\nand *"
    notebook["TEXT"], notebook["NUMBER"], notebook["WHERE"] = nasty, 0.1, tmp_path
    notebook.run('%%arrea -e TEXT -e NUMBER --export WHERE\nprintf %s "$TEXT"\necho $NUMBER\necho "$WHERE"')
    assert [job.stdout for job in notebook.batch] == [nasty, "0.1\n", f"{tmp_path}\n"]


def test_cwd_is_where_the_commands_run_and_knows_the_home(notebook, tmp_path, monkeypatch):
    (tmp_path / "data").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path))
    notebook.run("%%arrea --cwd data\npwd")
    assert outputs(notebook.batch) == [str(tmp_path / "data")]
    notebook.run("%%arrea --cwd ~/data\npwd")
    assert outputs(notebook.batch) == [str(tmp_path / "data")]


def test_another_shell_runs_the_lines(notebook):
    notebook.run("%%arrea --shell bash\n[[ a == a ]] && echo {1..3} ${BASH_VERSION:+bash}")
    assert outputs(notebook.batch) == ["1 2 3 bash"]


def test_max_commands_can_be_raised(notebook):
    assert notebook.run("%%arrea --max-commands 101\n" + "true\n" * 101).error is None
    assert len(notebook.batch) == 101


def test_no_raise_lets_the_cell_end_well(notebook):
    ran = notebook.run("%%arrea --no-raise\nfalse")
    assert (ran.error, notebook.batch.state) == (None, JobState.FAILED)


def test_a_dry_run_prints_the_numbered_commands_and_starts_nothing(notebook):
    ran = notebook.run("%%arrea --dry-run --blocks\ntouch a\ntouch b\n\ntouch c")
    assert ran.stdout == "[0] touch a\n    touch b\n[1] touch c\n"
    assert notebook.run("%%arrea --dry-run --python\nx = 1\nx").stdout == "[0] x = 1\n[1] x\n"
    assert notebook.run("%%arrea --dry-run\n# nothing").stdout == "no commands\n"
    assert (notebook.batch, notebook.views, os.path.exists("a")) == (None, [], False)


def test_a_dry_run_finds_what_is_wrong_all_the_same(notebook):
    ran = notebook.run("%%arrea --dry-run\necho 'a")
    assert ran.shown.startswith("UsageError: line 2: unfinished: echo 'a")


def test_log_logs_each_attempt(notebook, caplog):
    caplog.set_level("INFO", "arrea_nb")
    notebook.run("%%arrea --log\ntrue")
    until(lambda: "[0] true: succeeded" in caplog.text)
    assert "[0] true: attempt 1 started" in caplog.text


def test_the_leaders_defaults_hold_and_can_be_configured(notebook):
    notebook.run("%config Leader.timeout = 600")
    notebook.run("%config Leader.workers = 2")
    notebook.run("%%arrea\ntrue")
    assert (notebook.batch.timeout, notebook.batch.workers) == (600.0, 2)


def test_the_help_describes_every_option(notebook):
    text = notebook.shell.find_cell_magic("arrea").__doc__
    short = ["-w", "-t", "-o", "-e"]
    running = [
        "--workers",
        "--timeout",
        "--retries",
        "--retry-delay",
        "--on-error",
        "--name",
        "--out",
        "--bg",
    ]
    reading = ["--blocks", "--python", "--export", "--cwd", "--shell", "--max-commands"]
    for option in [*short, *running, *reading, "--no-raise", "--dry-run", "--log"]:
        assert re.search(rf"(^|[\s\[]){option}\b", text), option
    assert text.lstrip().startswith("::\n\n  %%arrea [-w N]")
    assert "show" in notebook.shell.find_line_magic("arrea").__doc__


# The end


def test_a_failure_is_one_short_message_without_a_traceback(notebook):
    ran = notebook.run("%%arrea\ntrue\nfalse")
    assert isinstance(ran.error, BatchFailed)
    assert ran.shown == "BatchFailed: 1 of 2 failed: [1] false: exit 1. Batch: _arrea"
    assert str(ran.error) == "1 of 2 failed: [1] false: exit 1. Batch: _arrea"
    assert ran.stderr == ""


def test_the_members_of_the_failure_are_the_jobs_errors(notebook):
    ran = notebook.run("%%arrea\nexit 3\ntrue\nkill -9 $$")
    assert [(error.exit_code, error.signal) for error in ran.error.exceptions] == [(3, None), (None, 9)]


def test_the_view_is_finished_before_the_cell_raises(notebook):
    notebook.run("%%arrea\nfalse")
    assert notebook.views[0].finished_as == [JobState.FAILED]


def test_a_failure_in_a_users_own_call_shows_his_lines_and_none_of_ours(notebook):
    ran = notebook.run("import arrea_nb\narrea_nb.execute([lambda: 1 / 0]).results()")
    assert isinstance(ran.error, BatchFailed)
    assert "lambda: 1 / 0" in ran.shown
    assert "ZeroDivisionError" in ran.shown
    assert os.path.dirname(arrea_nb.__file__) not in ran.shown


def test_other_errors_are_shown_as_ever(notebook):
    assert "ZeroDivisionError" in notebook.run("1 / 0").shown


def interrupt_when(condition):
    """Presses the stop button once `condition()` is true."""

    def press():
        until(condition)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=press, daemon=True)
    thread.start()
    return thread


def test_an_interrupt_cancels_this_batch_shows_the_summary_and_is_raised_again(notebook):
    notebook.run("%%arrea --bg -t 0\nuntil test -e go; do :; done")
    other = notebook.batch
    stopper = interrupt_when(lambda: os.path.exists("started"))
    ran = notebook.run("%%arrea -t 0 -o mine\ntouch started; sleep 60\nsleep 60")
    stopper.join(PATIENCE)
    assert type(ran.error) is KeyboardInterrupt
    assert ran.shown == "KeyboardInterrupt: 2 cancelled. Batch: _arrea"
    assert [job.state for job in notebook["mine"]] == [JobState.CANCELLED] * 2
    assert notebook.views[-1].finished_as == [JobState.CANCELLED]
    assert not other.done()
    open("go", "w").close()
    assert other.wait(PATIENCE)
    assert other.state is JobState.SUCCEEDED


def test_an_interrupted_job_that_ignores_sigterm_has_a_second_at_most(notebook):
    notebook.run("%config Leader.grace = 50")
    stopper = interrupt_when(lambda: os.path.exists("started"))
    notebook.run("%%arrea -t 0\ntrap '' TERM; touch started; while :; do sleep 1; done")
    stopper.join(PATIENCE)
    assert notebook.batch.state is JobState.CANCELLED
    assert notebook.batch.duration < 10


def test_an_interrupt_that_comes_while_the_batch_is_made_still_cancels_it(notebook, monkeypatch):
    leader = arrea_nb.Leader.instance()
    execute = leader.execute

    def slowly(*args, **options):
        batch = execute(*args, **options)
        signal.raise_signal(signal.SIGINT)
        return batch

    monkeypatch.setattr(leader, "execute", slowly)
    ran = notebook.run("%%arrea -t 0 -o mine\nsleep 60")
    assert type(ran.error) is KeyboardInterrupt
    assert notebook["mine"].state is JobState.CANCELLED


# Lines that the shell would call unfinished

SHELLS = ["/bin/sh", "bash"]
UNFINISHED = {
    "a single quote": "echo 'a\nb'",
    "a double quote": 'echo "a\nb"',
    "a backquote": "echo `echo\nb`",
    "a substitution": "echo $(echo\nb)",
    "a parameter": "echo ${x\n}",
    "for without done": "for i in 1 2; do\n  echo $i\ndone",
    "if without fi": "if true\nthen echo\nfi",
    "case without esac": "case x in\nx) echo;;\nesac",
    "a group": "{ echo\n}",
    "a subshell": "( echo\n)",
    "a function": "f() {\n}",
    "a pipe": "echo |\ncat",
    "an and": "true &&\ntrue",
    "a heredoc": "cat <<EOF\ntext\nEOF",
    "a quoted heredoc": "cat <<'EOF'\nit's\nEOF",
    "two quotes that would close each other": "echo 'it\necho 's",
}


def test_an_unfinished_line_stops_the_cell_before_anything_starts(notebook):
    ran = notebook.run("%%arrea\ntouch ran\nfor i in 1 2; do\n  touch ran\ndone\n")
    assert ran.shown.startswith("UsageError: line 3: unfinished: for i in 1 2; do (")
    assert "--blocks" in ran.shown
    assert (notebook.batch, os.path.exists("ran")) == (None, False)


@pytest.mark.parametrize("shell", SHELLS)
@pytest.mark.parametrize("body", UNFINISHED.values(), ids=list(UNFINISHED))
def test_a_command_over_several_lines_is_found_at_its_first(shell, body):
    commands = _cells.shell_lines(f"true\n{body}\ntrue")
    with pytest.raises(_cells.UsageError, match=re.escape(f"line 3: unfinished: {body.splitlines()[0]}")):
        _cells.refuse_unfinished(commands, shell, blocks=False)
    with pytest.raises(_cells.UsageError, match="line 3: unfinished"):
        _cells.refuse_unfinished(commands[:2], shell, blocks=False)
    _cells.refuse_unfinished(_cells.shell_blocks(f"true\n\n{body}\n\ntrue"), shell, blocks=True)


def test_a_file_that_shells_read_first_is_not_asked_about(tmp_path, monkeypatch):
    """A mistake in it would look like one of every line, and the shell like one that does not know -n."""
    profile = tmp_path / "profile"
    profile.write_text("echo 'unfinished\n")
    for name in ("BASH_ENV", "ENV"):
        monkeypatch.setenv(name, str(profile))
    with pytest.raises(_cells.UsageError, match="line 3: unfinished: for i in 1 2; do"):
        _cells.refuse_unfinished(_cells.shell_lines("true\nfor i in 1 2; do"), "bash", blocks=False)
    _cells.refuse_unfinished(_cells.shell_lines("true\ntrue"), "bash", blocks=False)


def test_an_unfinished_heredoc_is_not_finished_by_another_block(notebook):
    ran = notebook.run("%%arrea --blocks\ncat <<EOF\na\n\ncat <<EOF\nb\nEOF\n")
    assert ran.shown.startswith("UsageError: lines 2-3: unfinished: cat <<EOF...; with --blocks")


@pytest.mark.parametrize("shell", SHELLS)
@pytest.mark.parametrize(
    "line",
    [
        "echo \"it's\"", "echo 'say \"hi\"'", "echo a#b", "echo }", "true # it's a \"comment\" (", "true;",
        "echo \\'", "sh -c 'for i in 1; do echo $i; done'", "awk 'BEGIN { print \"}\" }'", "sleep 0 &",
        "x=$((1+2)); echo $x", "echo $(echo \")\")", "! false", "case a in a) true;; esac",
        "cat < /dev/null",
    ],
)  # fmt: skip
def test_a_complete_line_is_left_alone(shell, line):
    _cells.refuse_unfinished(_cells.shell_lines(f"{line}\n{line}"), shell, blocks=False)


def test_a_line_that_is_wrong_but_not_unfinished_is_a_job_that_fails(notebook):
    ran = notebook.run("%%arrea\necho )\ntrue")
    assert isinstance(ran.error, BatchFailed)
    assert [job.state for job in notebook.batch] == [JobState.FAILED, JobState.SUCCEEDED]


def test_the_shell_is_asked_once_for_all_the_lines(notebook, monkeypatch):
    asked = []
    run = subprocess.run
    monkeypatch.setattr(
        _cells.subprocess, "run", lambda *args, **options: asked.append(args) or run(*args, **options)
    )
    assert notebook.run("%%arrea --max-commands 500\n" + "true 'x' \"$(echo)\"\n" * 500).error is None
    assert len(asked) == 1


def test_one_bad_line_among_many_is_found_with_a_few_questions(notebook, monkeypatch):
    asked = []
    run = subprocess.run
    monkeypatch.setattr(
        _cells.subprocess, "run", lambda *args, **options: asked.append(args) or run(*args, **options)
    )
    lines = ["true"] * 1000
    lines[700] = "echo 'a"
    ran = notebook.run("%%arrea --max-commands 1000\n" + "\n".join(lines))
    assert ran.shown.startswith("UsageError: line 702: unfinished: echo 'a")
    assert len(asked) < 30


def test_a_shell_that_does_not_know_n_is_not_asked(notebook):
    ran = notebook.run("%%arrea --shell python\nprint('(')")
    assert ran.error is None
    assert outputs(notebook.batch) == ["("]


# Lines that do nothing

LOST = {
    "cd data": "line 2: cd data has no effect on any other line, because each has a shell of its own; "
    "--cwd data is for all of them; or write: cd data && COMMAND",
    "export X=1": "-e X passes a Python variable to all of them; or write: export X=1 && COMMAND",
    "X=1 Y=2": "-e X passes a Python variable to all of them; or write: X=1 Y=2 && COMMAND",
    ". ./env.sh": "write: . ./env.sh && COMMAND",
    "cd $data;": "--cwd DIR is for all of them; or write: cd $data && COMMAND",
}


@pytest.mark.parametrize("line", LOST)
def test_a_line_without_effect_gets_a_warning_that_names_the_remedy(notebook, line):
    ran = notebook.run(f"%%arrea --no-raise\n{line}\ntrue")
    assert LOST[line] in ran.stderr
    assert ran.stderr.count("\n") == 1
    assert len(notebook.batch) == 2


def test_a_lone_source_gets_the_warning_in_bash(notebook):
    assert "source env.sh && COMMAND" in notebook.run("%%arrea --shell bash --no-raise\nsource env.sh").stderr


@pytest.mark.parametrize(
    "line",
    [
        "cd / && ls",
        "X=1 env",
        "cd /; ls",
        "(cd /)",
        "X=$(ls)",
        "cdrecord --help || true",
        "echo cd",
        "X=`ls`",
    ],
)
def test_a_line_that_does_something_gets_no_warning(notebook, line):
    assert notebook.run(f"%%arrea\n{line}").stderr == ""


def test_a_cd_in_a_block_gets_no_warning_and_a_block_that_is_one_does(notebook):
    ran = notebook.run("%%arrea --blocks\ncd /\nls\n\ncd /")
    assert ran.stderr.startswith("line 5: cd / has no effect on any other block")
    assert ran.stderr.count("\n") == 1


# A cell that is run again


def test_a_cell_run_again_while_its_batch_runs_starts_another_and_says_so(notebook):
    cell = "%%arrea --bg -t 0\nuntil test -e go; do :; done"
    assert notebook.run(cell).stderr == ""
    first = notebook.batch
    again = notebook.run(cell)
    short = first.id[:4]
    assert again.stderr == f"batch {short} from this cell still runs: %arrea cancel {short}\n"
    assert notebook.batch is not first
    assert not first.done()
    assert notebook.run("%%arrea --bg -t 0\nuntil test -e  go; do :; done").stderr == ""
    open("go", "w").close()
    assert all(view.batch.wait(PATIENCE) for view in notebook.views)
    assert notebook.run(cell).stderr == ""


def test_the_cells_id_tells_it_from_others_where_the_front_end_gives_one(notebook):
    parent = {"metadata": {"cellId": "one"}}
    notebook.shell.get_parent = lambda: parent
    notebook.run("%%arrea --bg -t 0\nuntil test -e go; do :; done")
    parent["metadata"] = {"cellId": "two"}
    assert notebook.run("%%arrea --bg -t 0\nuntil test -e go; do :; done").stderr == ""
    parent["metadata"] = {"cellId": "one"}
    assert "still runs" in notebook.run("%%arrea --bg\ntrue").stderr
    open("go", "w").close()


# %arrea


def test_the_batches_are_listed_newest_first(notebook):
    assert notebook.run("%arrea").stdout == "no batches yet; %%arrea or arrea_nb.execute starts one\n"
    notebook.run("%%arrea --name first --no-raise\ntrue\nfalse")
    first = notebook.batch
    notebook.run("%%arrea --name second\ntrue")
    head, *rows = notebook.run("%arrea").stdout.splitlines()
    assert head.split() == ["id", "name", "state", "jobs", "age"]
    assert re.fullmatch(
        rf"{notebook.batch.id[:8]}  second  succeeded  1 succeeded            +\d+ s", rows[0]
    )
    assert re.fullmatch(rf"{first.id[:8]}  first   failed     1 failed, 1 succeeded  +\d+ s", rows[1])
    assert len(rows) == 2


def test_show_shows_the_latest_batch_or_the_one_of_a_prefix(notebook):
    notebook.run("%%arrea\ntrue")
    first = notebook.batch
    notebook.run("%%arrea\ntrue")
    notebook.run("%arrea show")
    assert notebook.views[-1].batch is notebook.batch
    notebook.run(f"%arrea show {first.id[:8]}")
    assert notebook.views[-1].batch is first


def test_cancel_says_how_many_jobs_it_cancelled(notebook):
    notebook.run("%%arrea --bg -t 0\nsleep 60\nsleep 60\ntrue")
    batch = notebook.batch
    until(lambda: batch[2].state.ended)
    assert notebook.run("%arrea cancel").stdout == f"batch {batch.id[:4]}: 2 jobs cancelled\n"
    assert batch.wait(PATIENCE)
    assert batch.state is JobState.CANCELLED
    said = notebook.run(f"%arrea cancel {batch.id}").stdout
    assert said == f"batch {batch.id[:4]} has ended already: cancelled\n"


def test_wait_waits_shows_and_raises_as_the_cell_would_have(notebook):
    notebook.run("%%arrea --bg\nfalse")
    ran = notebook.run("%arrea wait")
    assert ran.shown == "BatchFailed: 1 of 1 failed: [0] false: exit 1. Batch: _arrea"
    assert notebook.views[-1].finished_as == [JobState.FAILED]
    first = notebook.batch
    notebook.run("%%arrea --bg --no-raise\nfalse")
    assert notebook.run("%arrea wait").error is None
    assert notebook.run(f"%arrea wait {first.id}").shown.endswith(f"Batch: {first.id[:4]}")


def test_an_interrupt_of_wait_leaves_the_batch_alone(notebook):
    notebook.run("%%arrea --bg -t 0\nuntil test -e go; do :; done")
    batch = notebook.batch
    stopper = interrupt_when(lambda: len(notebook.views) == 2)
    ran = notebook.run("%arrea wait")
    stopper.join(PATIENCE)
    assert notebook.views[-1].finished_as == []
    assert ran.shown == f"KeyboardInterrupt: batch {batch.id[:4]} goes on"
    assert not batch.done()
    open("go", "w").close()
    assert batch.wait(PATIENCE)


def test_log_prints_what_each_job_printed(notebook):
    notebook.run("%%arrea --no-raise\nprintf 'a\\nb\\n'\necho c >&2; false\nseq 1500")
    said = notebook.run("%arrea log").stdout.splitlines()
    assert said[:5] == [
        "[0] printf 'a\\nb\\n': succeeded",
        "    a",
        "    b",
        "[1] echo c >&2; false: failed",
        "    c",
    ]
    assert said[5:8] == [
        "[2] seq 1500: succeeded",
        "    ... 500 lines before these: batch[2].output has all",
        "    501",
    ]
    assert said[-1] == "    1500"


def test_the_list_and_the_log_are_inert_but_for_colours(notebook):
    evil = "\x1b]0;owned\x07\u202e"
    notebook.shell.user_ns["evil"] = evil
    notebook.run("import arrea_nb")
    notebook.shell.user_ns["prints"] = "printf '\\033]52;c;b3duZWQ=\\007\\033[31mred'"
    notebook.run("b = arrea_nb.execute({evil: prints}, name=evil)")
    notebook.run("b.wait()")
    log = notebook.run("%arrea log").stdout
    assert log == "[0] \\u202e: succeeded\n    \x1b[31mred\x1b[0m\n"
    assert "\\u202e" in notebook.run("%arrea").stdout
    assert "\x1b" not in notebook.run("%arrea").stdout


# Loading


def test_loading_and_unloading_can_be_repeated_and_restore_the_shell(notebook):
    shell = notebook.shell
    loader = arrea_nb.load_ipython_extension
    for _ in range(3):
        loader(shell)
    assert sum(type(one).__name__ == "Leader" for one in shell.configurables) == 1
    assert sum(type(one).__name__ == "ArreaMagics" for one in shell.configurables) == 1
    assert notebook.run("%%arrea\ntrue").error is None
    for _ in range(2):
        arrea_nb.unload_ipython_extension(shell)
    assert shell.find_cell_magic("arrea") is None
    assert shell.find_line_magic("arrea") is None
    assert shell.custom_exceptions == ()
    assert not any(type(one).__name__ in {"Leader", "ArreaMagics"} for one in shell.configurables)
    notebook.run("%reload_ext arrea_nb")
    assert notebook.run("%%arrea\ntrue").error is None


def test_unloading_cancels_what_runs(notebook):
    notebook.run("%%arrea --bg -t 0\nsleep 60")
    notebook.run("%unload_ext arrea_nb")
    assert notebook.batch.state is JobState.CANCELLED
    assert _views._registered.show is None


def test_an_error_handler_of_the_users_own_goes_on_working_and_comes_back(notebook):
    shell = notebook.shell
    arrea_nb.unload_ipython_extension(shell)
    seen = []
    shell.set_custom_exc(
        (KeyError,), lambda shell, kind, value, trace, tb_offset=None: seen.append(value) or []
    )
    arrea_nb.load_ipython_extension(shell)
    notebook.run("{}['a']")
    assert [type(value) for value in seen] == [KeyError]
    assert isinstance(notebook.run("%%arrea\nfalse").error, BatchFailed)
    arrea_nb.unload_ipython_extension(shell)
    assert shell.custom_exceptions == (KeyError,)
    notebook.run("{}['b']")
    assert len(seen) == 2


def test_a_leader_that_was_there_before_the_extension_takes_the_shells_settings(notebook):
    arrea_nb.unload_ipython_extension(notebook.shell)
    leader = arrea_nb.Leader.instance()
    notebook.shell.config.Leader.workers = 7
    arrea_nb.load_ipython_extension(notebook.shell)
    assert arrea_nb.Leader.instance() is leader
    assert leader.workers == 7


@pytest.mark.parametrize(
    "call",
    ["execute('ls')", "execute(['ls'], workers=0)", "run('ls')", "map(3, [1])", "map(int, [1], timeout=-1)"],
)
def test_the_error_of_a_wrong_call_shows_no_way_through_our_code(notebook, call):
    shown = notebook.run(f"import arrea_nb\narrea_nb.{call}").shown
    assert "skipping hidden" in shown
    assert shown.count("arrea_nb/") == 1, shown


# Wrong cells

HELP = "; %%arrea? lists the options"
TIME = "expected a time such as 500ms, 30s, 10m or 2h, got"
ONE_LINE = (
    "each line is a command of its own; make it one line, end its lines with \\, "
    "or use --blocks, where blank lines divide the commands"
)
ONE_BLOCK = "with --blocks a blank line ends a command; take it out, or run a script of its own (%%writefile)"
WRONG_CELLS = {
    "no such option": (
        "%%arrea --worker 4\ntrue",
        "%%arrea: no option --worker; %%arrea? lists those there are",
    ),
    "commands on the line": (
        "%%arrea make -C a\ntrue",
        "%%arrea: did not expect make -C a here; commands go into the lines below",
    ),
    "a word on the line": (
        "%%arrea make all\ntrue",
        "%%arrea: did not expect make all here; commands go into the lines below",
    ),
    "an open quote on the line": (
        "%%arrea --name 'x\ntrue",
        f"%%arrea: No closing quotation{HELP}",
    ),
    "no workers": (
        "%%arrea -w 0\ntrue",
        f"%%arrea: argument -w/--workers: expected a whole number of at least 1, got '0'{HELP}",
    ),
    "half a worker": (
        "%%arrea -w 1.5\ntrue",
        f"%%arrea: argument -w/--workers: expected a whole number of at least 1, got '1.5'{HELP}",
    ),
    "a missing value": (
        "%%arrea -w\ntrue",
        f"%%arrea: argument -w/--workers: expected one argument{HELP}",
    ),
    "a time in words": (
        "%%arrea -t 10min\ntrue",
        f"%%arrea: argument -t/--timeout: {TIME} '10min'{HELP}",
    ),
    "a negative time": (
        "%%arrea -t -5\ntrue",
        f"%%arrea: argument -t/--timeout: {TIME} '-5'{HELP}",
    ),
    "no number for a time": (
        "%%arrea --timeout nan\ntrue",
        f"%%arrea: argument -t/--timeout: {TIME} 'nan'{HELP}",
    ),
    "negative retries": (
        "%%arrea --retries=-1\ntrue",
        f"%%arrea: argument --retries: expected a whole number of at least 0, got '-1'{HELP}",
    ),
    "a retry delay in words": (
        "%%arrea --retries 1 --retry-delay soon\ntrue",
        f"%%arrea: argument --retry-delay: {TIME} 'soon'{HELP}",
    ),
    "no such step": (
        "%%arrea --on-error retry\ntrue",
        f"%%arrea: argument --on-error: expected continue, stop or abort, got 'retry'{HELP}",
    ),
    "out to no variable": (
        "%%arrea --out my-batch\ntrue",
        f"%%arrea: argument -o/--out: expected the name of a variable, got 'my-batch'{HELP}",
    ),
    "out to a keyword": (
        "%%arrea -o for\ntrue",
        f"%%arrea: argument -o/--out: expected the name of a variable, got 'for'{HELP}",
    ),
    "export of nothing known": (
        "%%arrea -e NOWHERE\ntrue",
        "-e NOWHERE: there is no variable NOWHERE; set it in a cell before this one",
    ),
    "export of a list": (
        "%%arrea -e A_LIST\ntrue",
        "-e A_LIST: expected a str, a number or a path, got a list; -e takes no other type",
    ),
    "export of a bool": (
        "%%arrea -e A_BOOL\ntrue",
        "-e A_BOOL: expected a str, a number or a path, got a bool; -e takes no other type",
    ),
    "no such directory": (
        "%%arrea --cwd nowhere\ntrue",
        "cwd: expected a directory, got 'nowhere', which is not there; make it first",
    ),
    "no such shell": (
        "%%arrea --shell nosh\ntrue",
        "shell: expected a shell such as /bin/sh or bash, got 'nosh', which is not there",
    ),
    "too many commands": (
        "%%arrea --max-commands 2\ntrue\ntrue\ntrue",
        "3 commands, but a batch takes 2; pass --max-commands 3, or set %config Leader.max_commands",
    ),
    "python with blocks": (
        "%%arrea --python --blocks\n1",
        "--blocks is for shell commands; leave it out, or leave out --python",
    ),
    "python with an export": (
        "%%arrea --python -e A_TEXT\n1",
        "--export is for shell commands; leave it out, or leave out --python",
    ),
    "an open quote": (
        "%%arrea --shell bash\ntrue\necho 'a\nb'",
        f"line 3: unfinished: echo 'a (unexpected EOF while looking for matching `''); {ONE_LINE}",
    ),
    "a heredoc": (
        "%%arrea\ncat <<EOF\nhi\nEOF",
        f"line 2: unfinished: cat <<EOF; {ONE_LINE}",
    ),
    "a block cut by a blank line": (
        "%%arrea --blocks --shell bash\nif true; then\n\nfi",
        f"line 2: unfinished: if true; then (unexpected end of file); {ONE_BLOCK}",
    ),
    "a backslash before nothing": (
        "%%arrea\ntrue\necho a \\",
        "line 3: it ends in \\, but no line follows that could continue it",
    ),
    "a backslash before a blank line": (
        "%%arrea\necho a \\\n\ntrue",
        "line 2: it ends in \\, but no line follows that could continue it",
    ),
    "no such verb": (
        "%arrea stop",
        "%arrea: argument verb: expected show, wait, cancel or log, got 'stop'; %arrea? lists the options",
    ),
    "no batch yet": ("%arrea show", "%arrea show: no batch yet; there are: none"),
    "no such batch": ("%arrea wait zzzz", "%arrea wait: no batch zzzz; there are: none"),
    "too many words": (
        "%arrea show a b",
        "%arrea: did not expect b here; commands go into a cell: %%arrea",
    ),
    "options of the cell on the line": (
        "%arrea -w 4",
        "%arrea takes no options; a batch is a cell: %%arrea -w 4",
    ),
}


@pytest.mark.parametrize(("cell", "message"), WRONG_CELLS.values(), ids=list(WRONG_CELLS))
def test_a_wrong_cell_is_one_line_and_starts_nothing(notebook, cell, message):
    notebook["A_LIST"], notebook["A_BOOL"], notebook["A_TEXT"] = [1], True, "a"
    ran = notebook.run(cell)
    assert ran.shown == f"UsageError: {message}"
    assert "\n" not in ran.shown
    assert isinstance(ran.error, _cells.UsageError)
    assert (notebook.batch, notebook.views) == (None, [])
    assert arrea_nb.get_state().batches == {}


# In a real kernel


def kernel_run(*cells):
    """Runs cells in a kernel as Run All would; hands back the notebook and the error that stopped it."""
    new = nbformat.v4
    notebook = new.new_notebook(cells=[new.new_code_cell(cell) for cell in ("%load_ext arrea_nb", *cells)])
    client = NotebookClient(notebook, timeout=60, kernel_name="python3")
    try:
        client.execute()
    except CellExecutionError as error:
        return notebook, error
    return notebook, None


def test_run_all_stops_at_a_failed_cell_with_a_short_error_in_the_notebook():
    notebook, error = kernel_run("%%arrea\ntrue\nfalse", "print('after')")
    assert error is not None
    assert error.ename == "BatchFailed"
    last = notebook.cells[1].outputs[-1]
    assert (last.output_type, last.ename) == ("error", "BatchFailed")
    assert last.evalue == "1 of 2 failed: [1] false: exit 1. Batch: _arrea"
    assert last.traceback == ["BatchFailed: 1 of 2 failed: [1] false: exit 1. Batch: _arrea"]
    assert notebook.cells[2].execution_count is None


def test_run_all_stops_at_a_bad_option_with_an_error_in_the_notebook():
    notebook, error = kernel_run("%%arrea -t soon\ntrue", "print('after')")
    assert error is not None
    (only,) = notebook.cells[1].outputs
    assert (only.output_type, only.ename, len(only.traceback)) == ("error", "UsageError", 1)
    assert notebook.cells[2].execution_count is None


def test_run_all_stops_at_a_syntax_error_that_shows_the_cell():
    notebook, error = kernel_run("%%arrea --python\nx = 1\nfor", "print('after')")
    assert error is not None
    (only,) = notebook.cells[1].outputs
    text = re.sub(r"\x1b\[[0-9;]*m", "", "\n".join(only.traceback))
    assert re.search(r"Cell In\[2\], line 3\n +for\n +\^\nSyntaxError: invalid syntax", text)
    assert notebook.cells[2].execution_count is None


def test_run_all_goes_on_after_a_failure_with_no_raise():
    notebook, error = kernel_run("%%arrea --no-raise\nfalse", "print('after')")
    assert error is None
    assert notebook.cells[2].outputs[0].text == "after\n"


@pytest.fixture
def kernel():
    from jupyter_client.manager import start_new_kernel

    manager, client = start_new_kernel(kernel_name="python3")
    yield manager, client
    client.stop_channels()
    manager.shutdown_kernel(now=True)
    manager.cleanup_resources()


def send(client, code, cell=None):
    """Sends a cell as a front end does; hands back what it takes to wait for its end."""
    content = {
        "code": code, "silent": False, "store_history": True, "user_expressions": {},
        "allow_stdin": False, "stop_on_error": True,
    }  # fmt: skip
    message = client.session.msg(
        "execute_request", content, metadata={} if cell is None else {"cellId": cell}
    )
    client.shell_channel.send(message)
    return message["header"]["msg_id"]


def shown(client, request):
    """Waits for the end of a cell; hands back the text of its streams, and its error if there was one."""
    text, error, idle = "", None, False
    while not idle:
        message = client.get_iopub_msg(timeout=PATIENCE)
        if message["parent_header"].get("msg_id") != request:
            continue
        kind, content = message["msg_type"], message["content"]
        text += content["text"] if kind == "stream" else ""
        error = content if kind == "error" else error
        idle = kind == "status" and content["execution_state"] == "idle"
    while client.get_shell_msg(timeout=PATIENCE)["parent_header"]["msg_id"] != request:
        pass
    return text, error


def test_the_stop_button_of_a_kernel_ends_the_cell_with_keyboard_interrupt(kernel, tmp_path):
    manager, client = kernel
    send(client, "%load_ext arrea_nb")
    request = send(client, f"%%arrea -t 0\ntouch {tmp_path}/started; sleep 60")
    until((tmp_path / "started").exists)
    manager.interrupt_kernel()
    _, error = shown(client, request)
    assert error["ename"] == "KeyboardInterrupt"
    assert error["traceback"] == ["KeyboardInterrupt: 1 cancelled. Batch: _arrea"]
    assert shown(client, send(client, "print(_arrea.state)")) == ("cancelled\n", None)


def test_a_kernel_knows_the_cell_by_the_id_of_the_front_end(kernel):
    _, client = kernel
    send(client, "%load_ext arrea_nb")
    send(client, "%%arrea --bg -t 0\nsleep 60", "a")
    other, _ = shown(client, send(client, "%%arrea --bg -t 0\nsleep 61", "b"))
    again, _ = shown(client, send(client, "%%arrea --no-raise\ntrue", "a"))
    assert "still runs" not in other
    assert "from this cell still runs: %arrea cancel" in again
