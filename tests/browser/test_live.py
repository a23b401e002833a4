"""The live view in a real front end: bars move while the kernel is busy, buttons do what they say.

Most tests run on the newest ipykernel and on 7.3, whose ways to deliver a click to a busy kernel differ.
"""

import re

import pytest

LOAD = "%load_ext arrea_nb\nimport arrea_nb, os, time"
# A job that waits until the test lets it go, so that no test depends on how long something takes.
COUNTING = 'for i in $(seq 1 1000); do printf "\\r%d%%" $((i / 10)); sleep 0.02; done'


def row(lab, cell, index):
    return lab.output(cell).get_by_role("listitem").nth(index)


def wait_state(lab, cell, index, state):
    lab.output(cell).locator(f'[role="listitem"]:nth-child({index + 1})[data-state="{state}"]').wait_for()


def is_running(lab, cell):
    return "*" in lab.cell(cell).locator(".jp-InputPrompt").first.inner_text()


def wait_value_above(lab, cell, value):
    """Waits until the first job's bar stands above `value`, and returns where it stands."""
    bar = row(lab, cell, 0).get_by_role("progressbar").element_handle()
    lab.page.wait_for_function("([bar, value]) => Number(bar.ariaValueNow) > value", arg=[bar, value])
    return int(bar.get_attribute("aria-valuenow"))


def wait_gone(lab, cell):
    """Waits until the live view has left the cell."""
    lab.output(cell).locator(".arrea").wait_for(state="detached")


def start(lab, cell, *, kernel=None, more=()):
    """Runs `cell` in a new notebook, and returns when its live view has rows."""
    options = {} if kernel is None else {"kernel": kernel}
    lab.open([LOAD, cell, *more], **options)
    lab.run(0)
    lab.run(1, wait=False)
    row(lab, 1, 0).wait_for()


def test_a_bar_moves_while_the_kernel_is_busy_in_the_cell(front_end):
    start(front_end, f"%%arrea -t 0\n{COUNTING}\nsleep 60")
    bar = row(front_end, 1, 0).get_by_role("progressbar")
    assert bar.get_attribute("aria-label").startswith("for i in")
    first = wait_value_above(front_end, 1, 0)
    assert is_running(front_end, 1)
    second = wait_value_above(front_end, 1, first)
    assert is_running(front_end, 1)
    assert second > first
    unknown = row(front_end, 1, 1).get_by_role("progressbar")
    assert unknown.get_attribute("aria-valuenow") is None
    assert front_end.external_requests == []
    # Notebook 7 has an error of its own, with or without us.
    assert [error for error in front_end.console_errors if "schema" not in error] == []


def test_cancel_of_one_job_stops_that_job_alone(lab, kernel):
    start(
        lab,
        "%%arrea --no-raise -t 0\nsleep 61\nwhile [ ! -e go ]; do sleep 0.02; done\necho done",
        kernel=kernel,
    )
    wait_state(lab, 1, 2, "succeeded")
    lab.output(1).get_by_role("button", name="cancel sleep 61").click()
    wait_state(lab, 1, 0, "cancelled")
    assert is_running(lab, 1)
    assert row(lab, 1, 1).get_attribute("data-state") == "running"
    (lab.server.folder / "go").touch()
    lab.wait_idle(1)
    wait_gone(lab, 1)
    (lab.server.folder / "go").unlink()
    assert lab.text(1).startswith("3 jobs: 1 cancelled, 2 succeeded")


def test_cancel_all_stops_every_job_and_ends_the_cell(lab, kernel):
    start(lab, "%%arrea -t 0 -w 2\nsleep 61\nsleep 62\nsleep 63", kernel=kernel)
    wait_state(lab, 1, 1, "running")
    lab.output(1).get_by_role("button", name="Cancel all").click()
    lab.wait_idle(1)
    wait_gone(lab, 1)
    assert "3 jobs cancelled" in lab.text(1)
    assert "BatchFailed" in lab.text(1)


def test_the_stop_button_cancels_the_batch_and_shows_the_summary(lab, kernel):
    start(lab, "%%arrea -t 0\nsleep 61\nsleep 62\necho hello", kernel=kernel, more=["1 + 1"])
    wait_state(lab, 1, 1, "running")
    wait_state(lab, 1, 2, "succeeded")
    lab.stop()
    lab.wait_idle(1)
    wait_gone(lab, 1)
    assert "3 jobs: 2 cancelled, 1 succeeded" in lab.text(1)
    assert "KeyboardInterrupt" in lab.text(1)
    lab.run(2)
    assert lab.text(2) == "2"


def test_a_saved_notebook_shows_what_failed_without_a_kernel(front_end, tmp_path):
    cell = "%%arrea --no-raise\necho fine\necho first line >&2; echo last line >&2; exit 7\nexit 9"
    front_end.open([LOAD, cell])
    front_end.run_all()
    wait_gone(front_end, 1)
    front_end.reopen_without_kernel()
    text = front_end.wait_text(1, "3 jobs: 2 failed, 1 succeeded")
    top, _, jobs = text.partition("✔")
    assert "[1] echo first line >&2; echo last line >&2; exit 7: exit 7" in top
    assert "last lines of stderr:\nfirst line\nlast line\n" in top
    assert len(re.findall(r"(?:succeeded|failed) · [\d.]+ m?s", jobs)) == 3
    assert front_end.output(1).locator("details").count() == 2
    front_end.screenshot(tmp_path / "reopened.png")


def test_execute_returns_at_once_and_its_summary_takes_the_place_of_the_view(lab):
    start(lab, "arrea_nb.execute(['while [ ! -e gone ]; do sleep 0.02; done', 'false'])", more=["6 * 7"])
    lab.wait_idle(1)
    lab.wait_text(1, "2 jobs started; wait() shows the summary")
    wait_state(lab, 1, 1, "failed")
    lab.run(2)
    assert lab.text(2) == "42"
    (lab.server.folder / "gone").touch()
    lab.wait_text(1, "2 jobs: 1 failed, 1 succeeded")
    (lab.server.folder / "gone").unlink()
    wait_gone(lab, 1)
    kept = [output["data"] for output in lab.outputs(1) if output.get("data")]
    assert [sorted(data) for data in kept] == [["text/plain"], ["text/html", "text/plain"]]


def test_what_jobs_print_and_are_named_stays_text(lab):
    hostile = "<img src=x onerror=document.title=1>"
    printed = hostile + "\\033]0;title\\007\\342\\200\\256abc"
    start(lab, f"arrea_nb.run({{{hostile!r}: r'printf \"{printed}\"; sleep 61'}}, timeout=None)")
    panel = lab.output(1).locator(".arrea-output")
    lab.page.wait_for_function("panel => panel.textContent.includes('abc')", arg=panel.element_handle())
    assert panel.inner_text() == hostile + "\\u202eabc"
    assert hostile in row(lab, 1, 0).inner_text()
    assert lab.output(1).locator("img").count() == 0
    lab.stop()
    lab.wait_idle(1)
    wait_gone(lab, 1)
    assert lab.output(1).locator("img").count() == 0
    assert hostile in lab.text(1)


def test_more_and_fewer_jobs_at_once(lab):
    start(lab, "%%arrea -t 0 -w 1\nsleep 61\nsleep 62")
    wait_state(lab, 1, 0, "running")
    assert "1 at once · no time limit" in lab.output(1).locator(".arrea-bar").inner_text()
    assert lab.output(1).get_by_role("button", name="fewer at once").is_disabled()
    lab.output(1).get_by_role("button", name="more at once").click()
    wait_state(lab, 1, 1, "running")
    assert "2 at once" in lab.output(1).locator(".arrea-bar").inner_text()


def test_a_frame_that_was_lost_is_made_up_for(lab):
    lossy = (
        "from arrea_nb.notebook._live import LiveView\nsend = LiveView.send\nlost = []\n"
        "def lossy(self, message, *rest):\n"
        "    failed = [1 for _, job in message.get('jobs', ()) if job['state'] == 'failed']"
        " if message['kind'] == 'frame' else []\n"
        "    if failed and not lost:\n"
        "        lost.append(message)\n    else:\n        send(self, message, *rest)\n"
        "LiveView.send = lossy"
    )
    cell = "%%arrea -t 0 --no-raise\nwhile [ ! -e fail ]; do sleep 0.02; done; exit 1\nseq 1 100000; sleep 61"
    lab.open([LOAD, lossy, cell, "len(lost)"])
    lab.run(0)
    lab.run(1)
    lab.run(2, wait=False)
    wait_state(lab, 2, 1, "running")
    (lab.server.folder / "fail").touch()
    wait_state(lab, 2, 0, "failed")
    (lab.server.folder / "fail").unlink()
    lab.stop()
    lab.wait_idle(2)
    lab.run(3)
    assert lab.text(3) == "1"


def test_the_output_panel_shows_the_chosen_job_and_follows_its_end(lab):
    start(lab, "%%arrea -t 0\nseq 1 500; sleep 61\necho other; sleep 62")
    panel = lab.output(1).locator(".arrea-output")
    end = "panel => panel.scrollHeight - panel.scrollTop - panel.clientHeight"
    row(lab, 1, 1).get_by_role("button", name="[1]").click()
    lab.page.wait_for_function("panel => panel.textContent === 'other\\n'", arg=panel.element_handle())
    row(lab, 1, 0).get_by_role("button", name="[0]").click()
    lab.page.wait_for_function("panel => panel.textContent.endsWith('500\\n')", arg=panel.element_handle())
    assert panel.evaluate(end) < 8
    assert row(lab, 1, 0).locator(".arrea-last").inner_text() == "500"


@pytest.mark.parametrize("end", ["restarted", "killed"])
def test_a_kernel_that_is_gone_shows_as_such(lab, end):
    start(lab, "arrea_nb.execute(['sleep 61'], timeout=None)", more=["os.kill(os.getpid(), 9)"])
    lab.wait_idle(1)
    wait_state(lab, 1, 0, "running")
    if end == "restarted":
        lab.restart_kernel()
    else:
        lab.run(2, wait=False)
    lab.wait_text(1, re.compile("kernel was restarted|No word from the kernel"))
    assert lab.output(1).locator(".arrea.arrea-lost").count() == 1


def test_a_page_that_is_loaded_again_goes_on_live(lab):
    cell = "batch = arrea_nb.execute(['while [ ! -e reloaded ]; do sleep 0.02; done', 'echo hello'])\nbatch"
    start(lab, cell, more=["batch.wait()"])
    lab.wait_idle(1)
    wait_state(lab, 1, 1, "succeeded")
    lab.reload()
    wait_state(lab, 1, 0, "running")
    (lab.server.folder / "reloaded").touch()
    wait_state(lab, 1, 0, "succeeded")
    (lab.server.folder / "reloaded").unlink()
    lab.wait_kernel("idle")
    lab.run(2)
    assert "2 jobs succeeded" in lab.text(2)


def test_from_half_of_the_timeout_a_row_says_how_near_it_is(lab):
    start(lab, "%%arrea --no-raise -t 4s\nsleep 61")
    time = row(lab, 1, 0).locator(".arrea-time")
    lab.page.wait_for_function("time => time.textContent.endsWith(' of 4 s')", arg=time.element_handle())
    lab.wait_idle(1)
    wait_gone(lab, 1)
    assert "timed out" in lab.text(1)


def test_a_big_batch_draws_some_rows_and_counts_all(lab):
    lab.open([LOAD, "arrea_nb.run([int] * 700 + [lambda: time.sleep(60)], max_commands=701, timeout=None)"])
    lab.run(0)
    lab.run(1, wait=False)
    lab.wait_text(1, "1 running, 700 succeeded")
    assert lab.output(1).get_by_role("listitem").count() == 500
    assert "and 201 more jobs" in lab.text(1)
    lab.stop()
    lab.wait_idle(1)


def test_a_command_that_nobody_takes_says_so_and_names_the_stop_button(lab):
    deaf = (
        "from arrea_nb.notebook._live import LiveView\nact = LiveView._act\n"
        "LiveView._act = lambda self, asked: None if asked['kind'] == 'command' else act(self, asked)"
    )
    lab.open([LOAD, deaf, "%%arrea -t 0\nsleep 61"])
    lab.run(0)
    lab.run(1)
    lab.run(2, wait=False)
    wait_state(lab, 2, 0, "running")
    lab.output(2).get_by_role("button", name="cancel sleep 61").click()
    lab.wait_text(2, "when the cell is free")
    assert "stop button" in lab.output(2).get_by_role("status").inner_text()
    assert "waits for the cell" in row(lab, 2, 0).inner_text()
    lab.stop()
    lab.wait_idle(2)


def test_the_widget_lives_in_a_layout_and_runs_failed_jobs_again(lab):
    batch = "from ipywidgets import VBox\nbatch = arrea_nb.execute(['test -e ready', 'true'])\nbatch.wait()"
    lab.open([LOAD, batch + "\nVBox([batch.widget])"])
    lab.run_all()
    wait_state(lab, 1, 0, "failed")
    (lab.server.folder / "ready").touch()
    lab.output(1).get_by_role("button", name="Retry failed").click()
    lab.wait_text(1, "1 job succeeded")
    (lab.server.folder / "ready").unlink()


@pytest.mark.parametrize("theme", ["JupyterLab Light", "JupyterLab Dark"])
def test_it_is_drawn_in_the_colours_of_the_theme(lab, theme, tmp_path):
    start(lab, f"%%arrea --no-raise -t 3m\n{COUNTING}\nsleep 61\necho oh no >&2; exit 3\necho well\nsleep 62")
    lab.page.evaluate(
        "theme => window.jupyterapp.commands.execute('apputils:change-theme', { theme }).then(() => null)",
        theme,
    )
    wait_state(lab, 1, 2, "failed")
    wait_state(lab, 1, 4, "running")
    dark = theme.endswith("Dark")
    lab.page.wait_for_function("dark => (document.body.dataset.jpThemeLight === 'false') === dark", arg=dark)
    colours = (
        lab.output(1)
        .locator(".arrea")
        .evaluate("el => [getComputedStyle(el).color, getComputedStyle(el).backgroundColor]")
    )
    text, back = (sum(map(float, re.findall(r"[\d.]+", colour)[:3])) for colour in colours)
    assert (text > back) == dark
    lab.screenshot(tmp_path / "live.png")
