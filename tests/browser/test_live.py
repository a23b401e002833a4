"""The live view and the kernel: bars move while it is busy, buttons do what they say, nothing is missed.

The main ones run in JupyterLab and Notebook 7, on the newest ipykernel and on 7.3, whose ways to deliver a
click to a busy kernel differ.
"""

import re

import pytest
from playwright.sync_api import expect

LOAD = "%load_ext arrea_nb\nimport arrea_nb, os, time"
# A job whose bar moves for longer than a test takes.
COUNTING = 'for i in $(seq 1 1000); do printf "\\r%d%%" $((i / 10)); sleep 0.06; done'


def wait_value_above(lab, cell, value):
    """Waits until the first job's bar stands above `value`, and returns where it stands."""
    bar = lab.job(cell, 0).get_by_role("progressbar")

    def above():
        now = int(bar.get_attribute("aria-valuenow") or 0)
        assert now > value
        return now

    return lab.wait_until(above)


def test_bars_move_and_cancel_works_while_the_kernel_is_busy_in_the_cell(front_end, kernel):
    front_end.start(f"%%arrea -t 0\n{COUNTING}\nsleep 61\nsleep 62\nsleep 63\nsleep 64", kernel=kernel)
    bar = front_end.job(1, 0).get_by_role("progressbar")
    expect(bar).to_have_attribute("aria-label", re.compile("^for i in"))
    first = wait_value_above(front_end, 1, 0)
    assert front_end.is_running(1)
    second = wait_value_above(front_end, 1, first)
    assert front_end.is_running(1)
    assert second > first
    front_end.wait_state(1, 1, "running")
    expect(front_end.job(1, 1).get_by_role("progressbar")).not_to_have_attribute(
        "aria-valuenow", re.compile("")
    )

    front_end.view(1).get_by_role("button", name="cancel sleep 62").click()
    front_end.wait_state(1, 2, "cancelled")
    front_end.wait_state(1, 4, "running")
    assert front_end.is_running(1)
    front_end.wait_state(1, 1, "running")

    front_end.view(1).get_by_role("button", name="Cancel all").click()
    front_end.wait_idle(1)
    front_end.wait_gone(1)
    front_end.wait_text(1, "5 jobs cancelled")
    front_end.wait_text(1, "BatchFailed")


def test_the_stop_button_cancels_the_batch_and_shows_the_summary(front_end, kernel):
    front_end.start("%%arrea -t 0\nsleep 61\nsleep 62\necho hello", kernel=kernel, more=["1 + 1"])
    front_end.wait_state(1, 1, "running")
    front_end.wait_state(1, 2, "succeeded")
    front_end.stop()
    front_end.wait_idle(1)
    front_end.wait_gone(1)
    front_end.wait_text(1, "3 jobs: 2 cancelled, 1 succeeded")
    front_end.wait_text(1, "KeyboardInterrupt")
    front_end.run(2)
    front_end.wait_text(2, re.compile("^2$"))


def test_a_saved_notebook_shows_what_failed_without_a_kernel(front_end, tmp_path):
    cell = "%%arrea --no-raise\necho fine\necho first line >&2; echo last line >&2; exit 7\nexit 9"
    front_end.open([LOAD, cell])
    front_end.run_all()
    front_end.wait_gone(1)
    front_end.reopen_without_kernel()
    text = front_end.wait_text(1, "3 jobs: 2 failed, 1 succeeded")
    top, _, jobs = text.partition("✔")
    assert "[1] echo first line >&2; echo last line >&2; exit 7: exit 7" in top
    assert "last lines of stderr:\nfirst line\nlast line\n" in top
    assert len(re.findall(r"\t[\d.]+ m?s\t1\t", jobs)) == 3
    expect(front_end.output(1).locator("details")).to_have_count(2)
    front_end.screenshot(tmp_path / "reopened.png")


def test_what_a_job_says_of_its_variables_is_no_formula(lab):
    cell = "%%arrea --no-raise --name 'all $x^2$'\necho 'from $HOME to $PATH' >&2; exit 7\ntrue"
    lab.open([LOAD, cell, "from IPython.display import HTML; HTML('$x^2$')"])
    lab.run_all()
    expect(lab.output(2).locator("mjx-container")).to_have_count(1)  # by now the one above would be, too
    lab.wait_text(1, "exit 7: from $HOME to $PATH")
    expect(lab.output(1).locator("mjx-container")).to_have_count(0)


def test_execute_returns_at_once_and_its_summary_takes_the_place_of_the_view(lab):
    lab.start("arrea_nb.execute(['while [ ! -e gone ]; do sleep 0.02; done', 'false'])", more=["6 * 7"])
    lab.wait_idle(1)
    lab.wait_text(1, "2 jobs started; wait() shows the summary")
    lab.wait_state(1, 1, "failed")
    lab.run(2)
    lab.wait_text(2, re.compile("^42$"))
    (lab.server.folder / "gone").touch()
    lab.wait_text(1, "2 jobs: 1 failed, 1 succeeded")
    (lab.server.folder / "gone").unlink()
    lab.wait_gone(1)
    kept = [output["data"] for output in lab.outputs(1) if any(output["data"].values())]
    assert [sorted(data) for data in kept] == [["text/html", "text/plain"]]


def test_more_and_fewer_jobs_at_once(lab):
    lab.start("%%arrea -t 0 -w 1\nsleep 61\nsleep 62")
    lab.wait_state(1, 0, "running")
    limits = lab.view(1).locator(".arrea-limits")
    expect(limits).to_contain_text("1 at once · no time limit")
    expect(lab.output(1).get_by_role("button", name="fewer at once")).to_be_disabled()
    lab.output(1).get_by_role("button", name="more at once").click()
    lab.wait_state(1, 1, "running")
    expect(limits).to_contain_text("2 at once")


def test_a_frame_that_was_lost_is_made_up_for(lab):
    lossy = (
        "from arrea_nb.notebook._live import LiveView\nsend = LiveView.send\nlost = []\n"
        "def lossy(self, message, *rest):\n"
        "    failed = message['kind'] == 'frame' and [1 for row in message['jobs'] if row[1] == 4]\n"
        "    if failed and not lost:\n"
        "        lost.append(message)\n    else:\n        send(self, message, *rest)\n"
        "LiveView.send = lossy"
    )
    cell = "%%arrea -t 0 --no-raise\nwhile [ ! -e fail ]; do sleep 0.02; done; exit 1\nseq 1 100000; sleep 61"
    lab.open([LOAD, lossy, cell, "len(lost)"])
    lab.run(0)
    lab.run(1)
    lab.run(2, wait=False)
    lab.wait_state(2, 1, "running")
    (lab.server.folder / "fail").touch()
    lab.wait_state(2, 0, "failed")
    (lab.server.folder / "fail").unlink()
    lab.stop()
    lab.wait_idle(2)
    lab.run(3)
    lab.wait_text(3, re.compile("^1$"))


@pytest.mark.kernel_ends
@pytest.mark.parametrize("end", ["restarted", "killed"])
def test_a_kernel_that_is_gone_shows_as_such(lab, end):
    lab.start("arrea_nb.execute(['sleep 61'], timeout=None)", more=["os.kill(os.getpid(), 9)"])
    lab.wait_idle(1)
    lab.wait_state(1, 0, "running")
    if end == "restarted":
        lab.restart_kernel()
    else:
        lab.run(2, wait=False)
    lab.wait_text(1, re.compile("kernel was restarted|No word from the kernel"))
    expect(lab.output(1).locator(".arrea.arrea-lost")).to_have_count(1)


def test_a_page_that_is_loaded_again_goes_on_live(lab):
    cell = "batch = arrea_nb.execute(['while [ ! -e reloaded ]; do sleep 0.02; done', 'echo hello'])\nbatch"
    lab.start(cell, more=["batch.wait()"])
    lab.wait_idle(1)
    lab.wait_state(1, 1, "succeeded")
    lab.reload()
    lab.wait_state(1, 0, "running")
    (lab.server.folder / "reloaded").touch()
    lab.wait_state(1, 0, "succeeded")
    (lab.server.folder / "reloaded").unlink()
    lab.wait_kernel("idle")
    lab.run(2)
    lab.wait_text(2, "2 jobs succeeded")


def test_a_command_that_nobody_takes_says_so_and_names_the_stop_button(lab):
    deaf = (
        "from arrea_nb.notebook._live import LiveView\nact = LiveView._act\n"
        "LiveView._act = lambda self, asked: None if asked['kind'] == 'command' else act(self, asked)"
    )
    lab.open([LOAD, deaf, "%%arrea -t 0\nsleep 61"])
    lab.run(0)
    lab.run(1)
    lab.run(2, wait=False)
    lab.wait_state(2, 0, "running")
    lab.output(2).get_by_role("button", name="cancel sleep 61").click()
    lab.wait_text(2, "when the cell is free")
    expect(lab.output(2).get_by_role("status")).to_contain_text("stop button")
    expect(lab.job(2, 0)).to_contain_text("waits for the cell")
    lab.stop()
    lab.wait_idle(2)


def test_the_widget_lives_in_a_layout_and_runs_failed_jobs_again(lab):
    batch = "from ipywidgets import VBox\nbatch = arrea_nb.execute(['test -e ready', 'true'])\nbatch.wait()"
    lab.open([LOAD, batch + "\nVBox([batch.widget])"])
    lab.run_all()
    lab.wait_state(1, 0, "failed")
    (lab.server.folder / "ready").touch()
    lab.output(1).get_by_role("button", name="Retry failed").click()
    lab.wait_text(1, "1 job succeeded")
    (lab.server.folder / "ready").unlink()


def test_two_batches_at_once_each_have_their_view(lab):
    first = "arrea_nb.execute(['sleep 61', 'echo of the first'], name='first', timeout=None)"
    lab.start(first, more=["%%arrea --name second -t 0\nsleep 62\necho of the second"])
    lab.run(2, wait=False)
    lab.wait_state(2, 1, "succeeded")
    lab.wait_line(2, 1, "of the second")
    lab.wait_line(1, 1, "of the first")
    lab.view(2).get_by_role("button", name="Cancel all").click()
    lab.wait_idle(2)
    lab.wait_gone(2)
    lab.wait_state(1, 0, "running")
    lab.view(1).get_by_role("button", name="Cancel all").click()
    lab.wait_text(1, "2 jobs: 1 cancelled, 1 succeeded")


def test_a_second_tab_gets_the_whole_picture(lab, browser):
    batch = "batch = arrea_nb.execute(['sleep 61', 'echo hello; exit 3'], timeout=None)\nbatch"
    lab.start(batch)
    lab.wait_idle(1)
    lab.wait_state(1, 1, "failed")
    lab.save()
    page = browser.new_page()
    try:
        second = type(lab)(page, lab.server)
        second.path = lab.path
        page.goto(lab.page.url.replace("/lab/tree", "/lab/workspaces/second/tree"))
        second.wait_state(1, 1, "failed")
        second.wait_state(1, 0, "running")
        second.wait_panel(1, "hello")
        second.view(1).get_by_role("button", name="cancel sleep 61").click()
        second.wait_state(1, 0, "cancelled")
    finally:
        page.close()
