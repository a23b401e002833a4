"""What a reader sees of the live view and does with it: rows, output, keyboard, themes, hostile text."""

import re
from pathlib import Path

import pytest
from playwright.sync_api import expect

ROOT = Path(__file__).parents[2]
WAITING = "while [ ! -e {name} ]; do sleep 0.02; done"
FIRST_LINE = """panel => [...panel.querySelectorAll(".arrea-line")].find(
    line => line.getBoundingClientRect().bottom > panel.getBoundingClientRect().top + 2).innerText"""
FROM_END = "panel => panel.scrollHeight - panel.scrollTop - panel.clientHeight"


def wait_at_end(lab, line):
    """Waits until the output panel shows this line, its last, and is scrolled to it."""
    panel = lab.view(1).locator(".arrea-output")
    expect(panel.locator(".arrea-line").last).to_have_text(line)
    lab.page.wait_for_function(f"panel => ({FROM_END})(panel) < 4", arg=panel.element_handle())


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
    expect(lab.job(1, 1)).to_have_attribute("aria-selected", "true")
    lab.job(1, 0).click()
    wait_at_end(lab, "500")
    following = lab.view(1).get_by_role("button", name="following")
    expect(following).to_have_attribute("aria-pressed", "true")
    bottom = panel.evaluate("panel => panel.scrollTop")
    panel.hover()
    lab.page.mouse.wheel(0, -300)
    lab.view(1).get_by_role("button", name="follow", exact=True).wait_for()
    lab.page.wait_for_function(
        "([panel, top]) => Math.abs(panel.scrollTop - top) < 1", arg=[panel.element_handle(), bottom - 300]
    )
    (lab.server.folder / "more").touch()
    expect(panel.locator(".arrea-line").last).to_have_text("600")
    (lab.server.folder / "more").unlink()
    assert abs(panel.evaluate("panel => panel.scrollTop") - (bottom - 300)) < 1
    lab.view(1).get_by_role("button", name="follow", exact=True).click()
    wait_at_end(lab, "600")
    assert lab.is_running(1)


def test_the_panel_shows_colours_redraws_and_both_streams(lab):
    colours = r"\033[1;31mred\033[0m \033[38;5;33mblue\033[0m \033[38;2;9;99;9mgreen\033[0m"
    redrawn = r"10%%\r20%%\r100%% done"
    waiting = WAITING.format(name="oops")
    lab.start(f"%%arrea -t 0\nprintf '{colours}\\n{redrawn}\\n'; {waiting}; echo oops >&2; sleep 61")
    lab.wait_panel(1, "red blue green\n100% done")
    (lab.server.folder / "oops").touch()
    lab.wait_panel(1, "red blue green\n100% done\noops")
    (lab.server.folder / "oops").unlink()
    panel = lab.view(1).locator(".arrea-output")
    expect(panel.locator(".arrea-stderr")).to_have_text(["oops"])
    expect(panel.locator(".arrea-bold")).to_have_text("red")
    # Each is as light as can be read here, and keeps its hue.
    colours = panel.locator(".arrea-fore").evaluate_all("all => all.map(one => getComputedStyle(one).color)")
    lightness = [float(re.search(r"oklch\(([\d.]+)", colour)[1]) for colour in colours]
    assert len(colours) == 3
    assert all(0.29 < light < 0.57 for light in lightness)
    wrap = lab.view(1).get_by_role("button", name="wrap")
    wrap.click()
    expect(wrap).to_have_attribute("aria-pressed", "false")
    expect(panel).to_have_css("white-space", "pre")


def test_copy_takes_what_the_panel_shows(lab, browser):
    browser.grant_permissions(["clipboard-read", "clipboard-write"], origin=lab.server.url)
    lab.start("%%arrea -t 0\nprintf '\\033[31mone\\033[0m\\ntwo\\n'; sleep 61")
    lab.wait_panel(1, "one\ntwo")
    lab.view(1).get_by_role("button", name="copy").click()
    lab.view(1).get_by_role("button", name="copied").wait_for()
    assert lab.page.evaluate("navigator.clipboard.readText()") == "one\ntwo\n"


def test_a_flood_shows_its_beginning_and_its_end_and_counts_the_rest(lab):
    lab.start("%%arrea -t 0\nseq 1 2000000; sleep 61")
    expect(lab.view(1).locator(".arrea-line").last).to_have_text("2000000")
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
    expect(view.locator(".arrea-counts")).to_have_text(re.compile("^9,000 of 10,000"))
    # The list went along with the jobs that run.
    lab.wait_state(1, 9000, "running")
    assert view.get_by_role("row").count() < 40
    expect(grid).to_have_attribute("aria-rowcount", "10000")
    grid.focus()
    lab.page.keyboard.press("Home")
    lab.wait_state(1, 0, "succeeded")
    lab.page.keyboard.press("End")
    lab.wait_state(1, 9999, "queued")
    expect(lab.job(1, 9999)).to_have_attribute("aria-rowindex", "10000")
    view.get_by_role("searchbox").fill("number 1234")
    expect(grid).to_have_attribute("aria-rowcount", "1")
    expect(lab.job(1, 1234).locator(".arrea-name")).to_have_text("job number 1234")
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
    lab.page.wait_for_function(
        "grid => document.getElementById(grid.getAttribute('aria-activedescendant'))?.dataset.index === '1'",
        arg=grid.element_handle(),
    )
    lab.page.keyboard.press("Delete")
    lab.wait_state(1, 1, "cancelled")
    lab.wait_state(1, 0, "running")
    assert len(lab.outputs(1)) > 0  # Delete and Enter were not JupyterLab's


def test_filter_search_and_sort(lab):
    jobs = "{'b 10': 'exit 1', 'b 9': 'sleep 61', 'a': 'true', 'שלום': 'exit 2', 'z': 'sleep 62'}"
    lab.start(f"arrea_nb.execute({jobs}, timeout=None)")
    lab.wait_state(1, 3, "failed")
    lab.wait_state(1, 4, "running")
    view = lab.view(1)

    def wait_shown(jobs):
        def shown():
            rows = view.locator(".arrea-row:not([hidden])")
            found = rows.evaluate_all("all => all.map(row => [+row.ariaRowIndex, +row.dataset.index])")
            assert [job for _, job in sorted(found)] == jobs

        lab.wait_until(shown)

    wait_shown([0, 1, 2, 3, 4])
    view.get_by_role("button", name="failed 2").click()
    wait_shown([0, 3])
    view.get_by_role("button", name="running 2").click()
    wait_shown([1, 4])
    view.get_by_role("button", name="all 5").click()
    view.get_by_role("combobox").select_option("name")
    wait_shown([2, 1, 0, 4, 3])
    view.get_by_role("searchbox").fill("שלום")
    wait_shown([3])


def test_a_running_process_shows_what_it_uses_and_a_retry_when_it_comes(lab):
    busy = 'python -c "x = bytearray(60_000_000)\nwhile True: pass"'
    lab.start(f"arrea_nb.execute([{busy!r}, 'exit 7'], timeout=None, policy=dict(retries=2, retry_delay=50))")
    lab.wait_state(1, 1, "waiting")
    expect(lab.job(1, 1).locator(".arrea-how")).to_have_text(re.compile(r"^again in \d\d s \(2 of 3\)$"))
    expect(lab.job(1, 0).locator(".arrea-cpu")).to_have_text(re.compile(r"^([6-9]|\d{2,}) %$"))
    expect(lab.job(1, 0).locator(".arrea-memory")).to_have_text(re.compile(r"^([6-9]\d|\d{3}) MB$"))


def test_from_half_of_the_timeout_a_row_says_how_near_it_is(lab):
    lab.start("%%arrea --no-raise -t 10s\nsleep 61")
    expect(lab.job(1, 0).locator(".arrea-time")).to_have_text(re.compile(r"^[5-9](\.\d)? s of 10 s$"))


def test_the_timeline_names_the_job_under_the_pointer(lab):
    lab.start("%%arrea -t 0 -w 1 --retries 1\nsleep 61\nsleep 62")
    lab.wait_state(1, 0, "running")
    lab.view(1).get_by_role("button", name="more at once").click()
    lab.wait_state(1, 1, "running")
    canvas = lab.view(1).get_by_role("img", name="timeline: 2 attempts on 2 lanes")
    canvas.wait_for()
    # The second lane, near its end: there its job is, whenever it began.
    second = {"x": canvas.bounding_box()["width"] - 10, "y": 10}
    canvas.hover(position=second)
    expect(lab.view(1).locator(".arrea-timeline-legend")).to_contain_text("sleep 62 · running")
    canvas.click(position=second)
    expect(lab.job(1, 1)).to_have_attribute("aria-selected", "true")
    lab.wait_panel(1, "nothing printed")
    lab.view(1).get_by_role("button", name="timeline").click()
    expect(canvas).to_be_hidden()


# A second view of the same batch


def test_a_second_view_leaves_the_first_as_it_is_and_shares_nothing_with_it(lab):
    counting = "seq 1 20000; " + WAITING.format(name="more") + "; seq 20001 20100; sleep 61"
    jobs = f"{{f'job {{i}}': {counting!r} if i == 1 else 'echo hello; sleep 62' for i in range(40)}}"
    lab.start(f"arrea_nb.execute({jobs}, workers=2, timeout=None)", more=["%arrea show"])
    first, second = lab.view(1), lab.view(2)
    timeline, panel, grid = (first.locator(f".arrea-{part}") for part in ("timeline-body", "output", "rows"))
    lab.job(1, 1).click()
    wait_at_end(lab, "20000")
    first.get_by_role("button", name="timeline").click()
    for part, by in ((panel, -300), (grid, 200)):
        part.evaluate("(part, by) => { part.scrollTop += by; }", by)
    first.get_by_role("button", name="follow", exact=True).wait_for()

    def seen():
        return {
            "timeline": timeline.is_visible(),
            "rows": grid.evaluate("grid => grid.scrollTop"),
            "job": first.locator(".arrea-panel-title").inner_text(),
            "line": panel.evaluate(FIRST_LINE),
        }

    before, lines = seen(), panel.locator(".arrea-line").all_inner_texts()
    assert not before["timeline"]
    assert (before["rows"], before["job"]) == (200, "job 1")
    lab.run(2)
    lab.wait_panel(2, "hello")
    expect(second.locator(".arrea-timeline-body")).to_be_visible()
    expect(lab.job(2, 1)).to_have_attribute("aria-selected", "false")
    lab.job(2, 1).click()
    expect(second.locator(".arrea-line").last).to_have_text("20000")
    assert seen() == before
    assert panel.locator(".arrea-line").all_inner_texts() == lines
    (lab.server.folder / "more").touch()
    expect(second.locator(".arrea-line").last).to_have_text("20100")
    expect(panel.locator(".arrea-line").last).to_have_text("20100")
    (lab.server.folder / "more").unlink()
    assert seen() == before
    ends = panel.locator(".arrea-line").all_inner_texts()[-2000:]
    assert ends == [str(number) for number in range(18_101, 20_101)]
    second.get_by_role("searchbox").fill("job 3")
    second.get_by_role("button", name="Cancel all").click()
    for index in (1, 2):
        lab.wait_gone(index)
        lab.wait_text(index, "40 jobs cancelled")


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
    lab.wait_panel(1, "black white")
    colour = "all => all.map(one => [getComputedStyle(one).color, getComputedStyle(one).backgroundColor])"

    def drawn():
        [colours] = lab.view(1).evaluate_all(colour)
        text, back = (sum(map(float, re.findall(r"[\d.]+", one)[:3])) for one in colours)
        assert (text > back) == dark
        printed = lab.view(1).locator(".arrea-fore").evaluate_all(colour)
        lightness = [float(re.search(r"oklch\(([\d.]+)", one)[1]) for one, _ in printed]
        assert len(lightness) == 2
        assert all((light > 0.69) if dark else (light < 0.57) for light in lightness)

    lab.wait_until(drawn)


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
            """([view, width, size]) => {
                const row = view.querySelector('.arrea-row[data-state="failed"]:not([hidden])');
                const around = row.getBoundingClientRect();
                const inside = ['.arrea-name', '.arrea-time', '.arrea-how'].every(part => {
                    const box = row.querySelector(part).getBoundingClientRect();
                    return box.width > 20 && around.left <= box.left && box.right <= around.right + 1;
                });
                const rows = [...view.querySelectorAll('.arrea-row:not([hidden])')]
                    .sort((one, other) => one.ariaRowIndex - other.ariaRowIndex)
                    .map(one => one.getBoundingClientRect());
                const apart = rows.every((one, at) => !at || one.top >= rows[at - 1].bottom - 1);
                return inside && apart && view.scrollWidth <= view.clientWidth + 1 && view.clientWidth < width
                    && getComputedStyle(view).fontSize === size;
            }""",
            arg=[lab.view(1).element_handle(), width, size],
        )
        expect(lab.view(1).get_by_role("button", name="Cancel all")).to_be_visible()


def test_the_head_takes_no_more_room_when_its_counts_grow(lab, tmp_path):
    go = tmp_path / "go"
    fails = f"until [ -e {go} ]; do sleep 0.02; done; exit 3"
    lab.start(f"%%arrea -t 0 --retries 1 --retry-delay 1h --name build\n{fails}\n{fails}\nsleep 61\nsleep 62")
    heights = """view => {
        const found = {};
        for (let width = 580; width < 1100; width += 10) {
            view.style.width = `${width}px`;
            found[width] = view.querySelector('.arrea-head').offsetHeight;
        }
        view.style.width = '';
        return found;
    }"""
    expect(lab.view(1).locator(".arrea-counts")).to_have_text("0 of 4 · 4 running")
    before = lab.view(1).evaluate(heights)
    go.touch()
    expect(lab.view(1).locator(".arrea-counts")).to_have_text("0 of 4 · 2 running · 2 waiting")
    assert lab.view(1).evaluate(heights) == before


def test_a_bar_of_unknown_length_moves_unless_less_motion_is_wanted(lab):
    lab.start("%%arrea -t 0\nsleep 61")
    fill = lab.job(1, 0).locator(".arrea-unknown .arrea-fill")
    stood = fill.evaluate("fill => getComputedStyle(fill).transform")
    expect(fill).not_to_have_css("transform", stood)
    # By itself: an animation has the page painted sixty times a second.
    assert lab.view(1).evaluate("view => view.getAnimations({ subtree: true }).length") == 0
    lab.page.emulate_media(reduced_motion="reduce")
    expect(fill).to_have_css("transform", "none")


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
    expect(view.locator(".arrea-title")).to_have_text(INERT)
    expect(front_end.job(1, 0).locator(".arrea-name")).to_have_text(INERT)
    front_end.wait_line(1, 0, INERT)
    front_end.wait_line(1, 1, re.compile("^<img"))
    front_end.job(1, 0).click()
    front_end.wait_panel(1, INERT)
    expect(view.locator(".arrea-panel-title")).to_have_text(INERT)
    front_end.job(1, 1).click()
    front_end.wait_panel(1, "nothing printed")
    expect(view.locator(".arrea-why")).to_have_text(f"ValueError: {INERT}")
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
