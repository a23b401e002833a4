"""What a reader sees of the live view and does with it: rows, output, keyboard, themes, hostile text."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
WAITING = "while [ ! -e {name} ]; do sleep 0.02; done"
END = "panel => panel.scrollHeight - panel.scrollTop - panel.clientHeight"


def at_end(lab):
    panel = lab.view(1).locator(".arrea-output")
    lab.page.wait_for_function(f"panel => ({END})(panel) < 4", arg=panel.element_handle())


def wait_line(lab, job, text):
    """Waits until the last column of a job says this."""
    lab.page.wait_for_function(
        "([node, text]) => node.textContent === text",
        arg=[lab.job(1, job).locator(".arrea-last").element_handle(), text],
    )


# The output panel


def test_the_panel_follows_the_end_until_the_reader_scrolls_up(lab, tmp_path):
    cell = (
        "%%arrea -t 0\nseq 1 500; "
        + WAITING.format(name="more")
        + "; seq 501 600; sleep 61\necho other; sleep 62"
    )
    lab.start(cell)
    panel = lab.view(1).locator(".arrea-output")
    lab.job(1, 1).click()
    lab.wait_panel(1, "other")
    assert lab.job(1, 1).get_attribute("aria-selected") == "true"
    lab.job(1, 0).click()
    wait_line(lab, 0, "500")
    at_end(lab)
    following = lab.view(1).get_by_role("button", name="following")
    assert following.get_attribute("aria-pressed") == "true"
    panel.hover()
    lab.page.mouse.wheel(0, -300)
    lab.view(1).get_by_role("button", name="follow", exact=True).wait_for()
    stood = panel.evaluate("panel => panel.scrollTop")
    (lab.server.folder / "more").touch()
    wait_line(lab, 0, "600")
    (lab.server.folder / "more").unlink()
    assert panel.evaluate("panel => panel.scrollTop") == stood
    lab.view(1).get_by_role("button", name="follow", exact=True).click()
    at_end(lab)
    assert lab.is_running(1)


def test_the_panel_shows_colours_redraws_and_both_streams(lab):
    colours = r"\033[1;31mred\033[0m \033[38;5;33mblue\033[0m \033[38;2;9;99;9mgreen\033[0m"
    redrawn = r"10%%\r20%%\r100%% done"
    lab.start(f"%%arrea -t 0\nprintf '{colours}\\n{redrawn}\\n'; sleep 0.2; echo oops >&2; sleep 61")
    lab.wait_panel(1, "red blue green\n100% done\noops")
    panel = lab.view(1).locator(".arrea-output")
    assert panel.locator(".arrea-stderr").all_inner_texts() == ["oops"]
    assert panel.locator(".arrea-bold").inner_text() == "red"
    # Each is as light as can be read here, and keeps its hue.
    colours = panel.locator(".arrea-fore").evaluate_all("all => all.map(one => getComputedStyle(one).color)")
    lightness = [float(re.search(r"oklch\(([\d.]+)", colour)[1]) for colour in colours]
    assert len(colours) == 3
    assert all(0.29 < light < 0.57 for light in lightness)
    wrap = lab.view(1).get_by_role("button", name="wrap")
    wrap.click()
    assert wrap.get_attribute("aria-pressed") == "false"
    assert panel.evaluate("panel => getComputedStyle(panel).whiteSpace") == "pre"


def test_copy_takes_what_the_panel_shows(lab, browser):
    browser.grant_permissions(["clipboard-read", "clipboard-write"], origin=lab.server.url)
    lab.start("%%arrea -t 0\nprintf '\\033[31mone\\033[0m\\ntwo\\n'; sleep 61")
    lab.wait_panel(1, "one\ntwo")
    lab.view(1).get_by_role("button", name="copy").click()
    lab.view(1).get_by_role("button", name="copied").wait_for()
    assert lab.page.evaluate("navigator.clipboard.readText()") == "one\ntwo\n"


def test_a_flood_shows_its_beginning_and_its_end_and_counts_the_rest(lab):
    lab.start("%%arrea -t 0\nseq 1 2000000; sleep 61")
    wait_line(lab, 0, "2000000")
    text = lab.view(1).locator(".arrea-output").inner_text()
    assert text.startswith("1\n2\n3\n")
    assert text.rstrip().endswith("1999999\n2000000")
    assert re.search(r"… 1[45] MB left out here; job\.output has all of it …", text)
    assert lab.view(1).locator(".arrea-line").count() < 2500


# Rows


def test_ten_thousand_jobs_have_a_few_rows_and_every_one_can_be_reached(lab):
    go = "import threading\nends = threading.Event()\n"
    jobs = "{f'job number {i}': (int if i < 9000 else ends.wait) for i in range(10000)}"
    lab.start(f"{go}arrea_nb.execute({jobs}, max_commands=10000, timeout=None)", more=["ends.set()"])
    view, grid = lab.view(1), lab.view(1).get_by_role("grid")
    lab.page.wait_for_function(
        "node => node.textContent.startsWith('9,000 of 10,000')",
        arg=view.locator(".arrea-counts").element_handle(),
    )
    # The list went along with the jobs that run.
    lab.wait_state(1, 9000, "running")
    assert view.get_by_role("row").count() < 40
    assert grid.get_attribute("aria-rowcount") == "10000"
    grid.focus()
    lab.page.keyboard.press("Home")
    lab.wait_state(1, 0, "succeeded")
    lab.page.keyboard.press("End")
    lab.wait_state(1, 9999, "queued")
    assert lab.job(1, 9999).get_attribute("aria-rowindex") == "10000"
    view.get_by_role("searchbox").fill("number 1234")
    lab.page.wait_for_function("grid => grid.ariaRowCount === '1'", arg=grid.element_handle())
    assert lab.job(1, 1234).locator(".arrea-name").inner_text() == "job number 1234"
    lab.run(2)
    lab.wait_text(1, "10,000 jobs succeeded")


def test_the_keyboard_moves_chooses_and_cancels(lab):
    lab.start("%%arrea -t 0 -w 8 --no-raise\necho zero; sleep 61\necho one; sleep 62\necho two; sleep 63")
    lab.wait_state(1, 2, "running")
    grid = lab.view(1).get_by_role("grid")
    grid.focus()
    for key in ("ArrowDown", "ArrowDown", "ArrowUp", "Enter"):
        lab.page.keyboard.press(key)
    lab.wait_panel(1, "one")
    active = grid.get_attribute("aria-activedescendant")
    assert lab.page.locator(f"#{active}").get_attribute("data-index") == "1"
    lab.page.keyboard.press("Delete")
    lab.wait_state(1, 1, "cancelled")
    assert lab.job(1, 0).get_attribute("data-state") == "running"
    assert len(lab.outputs(1)) > 0  # Delete and Enter were not JupyterLab's


def test_filter_search_and_sort(lab):
    jobs = "{'b 10': 'exit 1', 'b 9': 'sleep 61', 'a': 'true', 'שלום': 'exit 2', 'z': 'sleep 62'}"
    lab.start(f"arrea_nb.execute({jobs}, timeout=None)")
    lab.wait_state(1, 3, "failed")
    lab.wait_state(1, 4, "running")
    view = lab.view(1)

    def shown():
        rows = view.locator(".arrea-row:not([hidden])")
        found = rows.evaluate_all("all => all.map(row => [+row.ariaRowIndex, +row.dataset.index])")
        return [job for _, job in sorted(found)]

    assert shown() == [0, 1, 2, 3, 4]
    view.get_by_role("button", name="failed 2").click()
    lab.page.wait_for_function(
        "grid => grid.ariaRowCount === '2'", arg=view.get_by_role("grid").element_handle()
    )
    assert shown() == [0, 3]
    view.get_by_role("button", name="running 2").click()
    lab.page.wait_for_function("view => view.querySelector('[data-index=\"4\"]')", arg=view.element_handle())
    assert shown() == [1, 4]
    view.get_by_role("button", name="all 5").click()
    view.get_by_role("combobox").select_option("name")
    lab.page.wait_for_function(
        "view => view.querySelector('[aria-rowindex=\"1\"]').dataset.index === '2'", arg=view.element_handle()
    )
    assert shown()[:3] == [2, 1, 0]
    view.get_by_role("searchbox").fill("שלום")
    lab.page.wait_for_function(
        "grid => grid.ariaRowCount === '1'", arg=view.get_by_role("grid").element_handle()
    )
    assert shown() == [3]


def test_a_running_process_shows_what_it_uses_and_a_retry_when_it_comes(lab):
    busy = 'python -c "x = bytearray(60_000_000)\nwhile True: pass"'
    lab.start(f"arrea_nb.execute([{busy!r}, 'exit 7'], timeout=None, policy=dict(retries=2, retry_delay=50))")
    lab.wait_state(1, 1, "waiting")
    assert re.fullmatch(r"again in [45]\d s \(2 of 3\)", lab.job(1, 1).locator(".arrea-how").inner_text())
    row = lab.job(1, 0).element_handle()
    lab.page.wait_for_function(
        """row => parseInt(row.querySelector('.arrea-cpu').textContent) > 5
            && parseInt(row.querySelector('.arrea-memory').textContent) >= 60""",
        arg=row,
    )
    assert lab.job(1, 0).locator(".arrea-memory").inner_text().endswith(" MB")


def test_from_half_of_the_timeout_a_row_says_how_near_it_is(lab):
    lab.start("%%arrea --no-raise -t 4s\nsleep 61")
    time = lab.job(1, 0).locator(".arrea-time")
    lab.page.wait_for_function("time => time.textContent.endsWith(' of 4 s')", arg=time.element_handle())
    lab.wait_idle(1)
    lab.wait_gone(1)
    assert "timed out" in lab.text(1)


def test_the_timeline_names_the_job_under_the_pointer(lab):
    lab.start("%%arrea -t 0 --retries 1\nsleep 61\nsleep 62")
    lab.wait_state(1, 1, "running")
    canvas = lab.view(1).get_by_role("img", name="timeline: 2 attempts on 2 lanes")
    canvas.hover(position={"x": 300, "y": 10})
    legend = lab.view(1).locator(".arrea-timeline-legend")
    assert "sleep 62 · running" in legend.inner_text()
    canvas.click(position={"x": 300, "y": 10})
    assert lab.job(1, 1).get_attribute("aria-selected") == "true"
    lab.view(1).get_by_role("button", name="timeline").click()
    assert not canvas.is_visible()


# For everybody


def test_axe_finds_nothing_serious(front_end):
    axe = ROOT / "node_modules" / "axe-core" / "axe.min.js"
    assert axe.exists(), "run: make node_modules/.stamp"
    front_end.start(
        "%%arrea -t 3m --name checked --retries 1 --retry-delay 50 -w 2\n"
        'for i in $(seq 1 1000); do printf "\\r%d%%" $((i / 10)); sleep 0.02; done\n'
        "echo well\necho oh no >&2; exit 3\nsleep 61\nsleep 62"
    )
    front_end.wait_state(1, 2, "waiting")
    front_end.wait_state(1, 3, "running")
    front_end.job(1, 2).click()
    front_end.wait_panel(1, "oh no")
    front_end.page.evaluate(axe.read_text("utf-8") + "; null")
    found = front_end.page.evaluate(
        """async () => (await axe.run(document.querySelector('.arrea'))).violations
            .filter(one => ['serious', 'critical'].includes(one.impact))
            .map(one => [one.id, one.nodes.map(node => [node.html, node.failureSummary])])"""
    )
    assert found == []


@pytest.mark.parametrize("theme", ["JupyterLab Light", "JupyterLab Dark"])
def test_it_is_drawn_in_the_colours_of_the_theme(lab, theme):
    lab.start("%%arrea --no-raise -t 3m\nprintf '\\033[30mblack \\033[97mwhite\\033[0m'; sleep 61\nexit 3")
    lab.wait_state(1, 1, "failed")
    lab.job(1, 0).click()
    lab.page.evaluate(
        "theme => window.jupyterapp.commands.execute('apputils:change-theme', { theme }).then(() => null)",
        theme,
    )
    dark = theme.endswith("Dark")
    lab.page.wait_for_function("dark => (document.body.dataset.jpThemeLight === 'false') === dark", arg=dark)
    colours = lab.view(1).evaluate("el => [getComputedStyle(el).color, getComputedStyle(el).backgroundColor]")
    text, back = (sum(map(float, re.findall(r"[\d.]+", colour)[:3])) for colour in colours)
    assert (text > back) == dark
    printed = (
        lab.view(1).locator(".arrea-fore").evaluate_all("all => all.map(one => getComputedStyle(one).color)")
    )
    lightness = [float(re.search(r"oklch\(([\d.]+)", colour)[1]) for colour in printed]
    assert len(lightness) == 2
    assert all((light > 0.69) if dark else (light < 0.57) for light in lightness)


def test_a_narrow_output_area_and_large_type_hide_nothing_that_counts(lab):
    lab.start(f"%%arrea -t 0 --name {'long-name-' * 20}\necho {'wide ' * 100}; sleep 61\nexit 3\nsleep 62")
    lab.wait_state(1, 1, "failed")
    lab.page.evaluate("window.jupyterapp.commands.execute('application:toggle-left-area').then(() => null)")
    for width, size in ((1280, "13px"), (700, "13px"), (420, "13px"), (1280, "26px")):
        lab.page.set_viewport_size({"width": width, "height": 900})
        lab.page.evaluate(
            "size => document.documentElement.style.setProperty('--jp-ui-font-size1', size)", size
        )
        lab.page.wait_for_function(
            "view => view.scrollWidth <= view.clientWidth + 1", arg=lab.view(1).element_handle()
        )
        row = lab.job(1, 1).bounding_box()
        for part in (".arrea-name", ".arrea-time", ".arrea-how"):
            box = lab.job(1, 1).locator(part).bounding_box()
            assert box["width"] > 20
            assert row["x"] <= box["x"]
            assert box["x"] + box["width"] <= row["x"] + row["width"] + 1
        assert lab.view(1).get_by_role("button", name="Cancel all").is_visible()


def test_reduced_motion_is_respected(lab):
    lab.page.emulate_media(reduced_motion="reduce")
    lab.start("%%arrea -t 0\nsleep 61")
    lab.wait_state(1, 0, "running")
    fill = lab.job(1, 0).locator(".arrea-fill")
    assert fill.evaluate("fill => getComputedStyle(fill).animationName") == "none"


# Hostile text

TAGS = "<img src=x onerror=document.title='owned'><script>document.title='owned'</script>"
HOSTILE = TAGS + "\u202egnp.exe\u2066\x1b[31m\x1b]0;owned\x07"
INERT = TAGS + "\\u202egnp.exe\\u2066"


def test_hostile_text_does_nothing_wherever_it_is_shown(front_end):
    cell = (
        f"hostile = {HOSTILE!r}\n"
        "def told():\n    arrea_nb.progress(0.5, message=hostile)\n    print(hostile)\n    time.sleep(61)\n"
        "def raised():\n    raise ValueError(hostile)\n"
        'long = \'yes "<b>" | head -c 10000000 | tr -d "\\\\n"; printf %s "$X"; sleep 62\'\n'
        "jobs = {hostile: told, hostile + '2': raised, hostile + '3': long}\n"
        "batch = arrea_nb.execute(jobs, name=hostile, timeout=None, env={'X': hostile})\nbatch"
    )
    front_end.start(cell)
    front_end.wait_state(1, 1, "failed")
    view = front_end.view(1)
    title = front_end.page.title()
    assert view.locator(".arrea-title").inner_text() == INERT
    assert front_end.job(1, 0).locator(".arrea-name").inner_text() == INERT
    assert front_end.job(1, 0).locator(".arrea-last").inner_text() == INERT
    assert front_end.job(1, 1).locator(".arrea-last").inner_text().startswith("<img")
    front_end.job(1, 0).click()
    front_end.wait_panel(1, INERT)
    assert view.locator(".arrea-panel-title").inner_text() == INERT
    front_end.job(1, 1).click()
    front_end.wait_panel(1, "nothing printed")
    assert view.locator(".arrea-why").inner_text() == f"ValueError: {INERT}"
    front_end.job(1, 2).click()
    front_end.page.wait_for_function(
        "([panel, end]) => panel.innerText.trim().endsWith(end)",
        arg=[view.locator(".arrea-output").element_handle(), INERT],
    )
    assert len(view.locator(".arrea-output").inner_text()) < 100_000
    view.get_by_role("searchbox").fill("<img")
    assert view.locator("img, script, b").count() == 0
    assert view.evaluate("view => view.scrollWidth <= view.clientWidth + 1")
    assert view.evaluate("view => view.clientHeight") < 900
    assert front_end.page.title() == title
    assert "owned" not in title
