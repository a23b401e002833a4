"""What stays in the saved notebook: on top what failed, then every job, nothing that could do anything."""

import functools
import html as html_module
import re
from html.parser import HTMLParser

import pytest
from hypothesis import given
from hypothesis import strategies as st

from arrea_nb._leader import Leader
from arrea_nb.notebook import _summary, _words


@pytest.fixture
def leader():
    with Leader() as made:
        yield made


@pytest.fixture
def run(leader):
    """Runs commands to their end and returns the batch."""

    def run(commands, **options):
        batch = leader.execute(commands, **options)
        assert batch.wait(30)
        return batch

    return run


class Page(HTMLParser):
    """The visible text of some HTML, its elements, and whether they nest."""

    def __init__(self, text):
        super().__init__()
        self.text = ""
        self.elements = []
        self.attributes = []
        self.open = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.elements.append(tag)
        self.attributes += [name for name, _ in attrs]
        if tag != "img":
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def test_what_failed_stands_on_top_with_its_command_exit_code_and_last_words(run):
    batch = run(["echo fine", "echo out; echo why >&2; exit 7", "exit 9"])
    text = _summary.text(batch).splitlines()
    assert text[:4] == [
        "3 jobs: 2 failed, 1 succeeded",
        "[1] echo out; echo why >&2; exit 7: exit 7: why",
        "    last lines of stderr:",
        "    | why",
    ]
    assert text[4] == "[2] exit 9: exit 9"
    assert text[5:] == [
        "✔ succeeded  [0] echo fine",
        "✖ failed     [1] echo out; echo why >&2; exit 7",
        "✖ failed     [2] exit 9",
    ]
    page = Page(_summary.html(batch))
    top, _, rest = page.text.partition("✔")
    assert "echo out; echo why >&2; exit 7" in top
    assert "exit 7" in top
    assert "last lines of stderr:why" in top
    assert "fine" in rest
    assert page.open == []


def test_a_job_without_stderr_has_its_last_output_on_top(run):
    batch = run(["seq 1 50; exit 2"])
    lines = _summary.text(batch).splitlines()
    assert lines[2] == "    last lines of stdout:"
    assert lines[3:] == [f"    | {number}" for number in range(41, 51)]


def test_a_callable_that_raised_says_where_and_hides_the_path_of_its_cell(run):
    source = "def broken():\n    return 1 / 0\n"
    names = {}
    exec(compile(source, "/tmp/ipykernel_4242/99.py", "exec"), names)
    batch = run([names["broken"]])
    page = Page(_summary.html(batch))
    assert "ZeroDivisionError: division by zero" in page.text
    assert "cell, line 2, in broken" in page.text
    assert "4242" not in page.text


def test_it_differs_from_run_to_run_in_durations_and_the_timeline_alone(run, masked):
    commands = ["echo hello; echo sorry >&2", "sleep 0.05; echo late", "echo no >&2; exit 1", "kill -9 $$"]
    first, second = run(commands, workers=4), run(commands, workers=1)
    assert _summary.text(first) == _summary.text(second)
    assert _summary.html(first) != _summary.html(second)
    assert masked(_summary.html(first)).replace("4 at once", "1 at once") == masked(_summary.html(second))


def test_the_mask_leaves_everything_else(run, masked):
    duration = '<span title="duration" style="white-space: nowrap">1.2 s</span>'
    picture = '<img src="data:image/svg+xml;base64,QQ==" alt="" style="">'
    timeline = f'<div title="timeline" style="color: #808080">{picture}longest</div>'
    page = _summary.html(run({"a": "echo 1.2 s", "b": f"echo '{duration}'", "c": f"echo '{timeline}'"}))
    # The batch's own and each job's; what a job prints is masked nowhere.
    assert masked(page).count("DURATION") == 4
    assert masked(page).count("TIMELINE") == 1
    text = Page(masked(page)).text
    assert "1.2 s" in text
    assert text.count(duration) == text.count(timeline) == 1
    ours = r'(?<=nowrap">)[\d.]+ m?s(?=</span>)|(?<=#808080">)<img [^>]*>[^<]*(?=</div>)'
    assert masked(page).replace("DURATION", "").replace("TIMELINE", "") == re.sub(ours, "", page)


@given(duration=st.floats(0, 1e6))
def test_every_duration_is_masked(masked, duration):
    text = f'<span title="duration" style="white-space: nowrap">{_words.seconds(duration)}</span>'
    assert masked(text) == '<span title="duration" style="white-space: nowrap">DURATION</span>'


@pytest.mark.parametrize(
    ("duration", "text"),
    [
        (0, "0 ms"),
        (0.0404, "40 ms"),
        (0.9996, "1.0 s"),
        (1.25, "1.2 s"),
        (59.94, "59.9 s"),
        (59.96, "1 min"),
        (61.4, "1 min 1 s"),
        (3600, "1 h"),
        (7505, "2 h 5 min"),
    ],
)
def test_durations_are_said_as_a_reader_says_them(duration, text):
    assert _words.seconds(duration) == text


HOSTILE = [
    "<script>alert(1)</script>",
    "</pre></div><img src=x onerror=alert(1)>",
    "&lt;b&gt;",
    '" onmouseover="alert(1)',
    "\x1b[31mred\x1b[0m",
    "\x1b]0;title\x07",
    "\x1b]8;;http://example.org\x1b\\link\x1b]8;;\x1b\\",
    "\x9b31m",
    "\x1bP+q\x1b\\",
    "a\u202egnp.exe",
    "a\u2066b\u2069c\u200fd",
    "bell\x07 null\x00 backspace\x08",
    "line\u2028separator",
    "\ud800 lone surrogate",
]


@pytest.mark.parametrize("hostile", HOSTILE)
def test_nothing_that_a_job_prints_or_is_named_can_do_anything(run, hostile):
    def job():
        print(hostile.encode("utf-8", "replace").decode())
        raise ValueError(hostile)

    batch = run({hostile: job}, name=hostile)
    for made in (_summary.html(batch), _summary.text(batch)):
        made.encode()
        assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069]", made)
    page = Page(_summary.html(batch))
    blocks = {"div", "pre", "details", "summary", "table", "thead", "tbody", "tr", "th", "td"}
    assert set(page.elements) <= {*blocks, "span", "b", "code", "bdi", "img"}
    assert set(page.attributes) <= {"class", "style", "title", "src", "alt"}
    assert page.open == []


@given(st.text(alphabet=st.characters(max_codepoint=0x2FFF) | st.sampled_from("\x1b[]\\\r\n\x07;m0")))
def test_plain_text_is_inert_whatever_came_and_stays_so(text):
    once = _words.plain(text)
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069]", once)
    assert _words.plain(once) == once


def test_invisible_characters_are_written_out_and_ordinary_ones_stay():
    assert _words.plain("a\u202eb\x07") == "a\\u202eb\\x07"
    assert _words.plain("\x1b[1;31mré\tß — 日本 👩‍🚀\x1b[0m\n") == "ré\tß — 日本 👩‍🚀\n"


def test_a_redrawn_line_shows_how_it_ended(run):
    batch = run(["printf '10%%\\r50%%\\r100%%\\ndone\\r\\n'"])
    assert "100%\ndone" in Page(_summary.html(batch)).text
    assert "50%" not in Page(_summary.html(batch)).text.partition("of stdout")[2]


@given(
    st.lists(st.text(alphabet="abc ", max_size=700), max_size=120),
    st.integers(0, 30_000),
)
def test_an_excerpt_counts_every_line_and_is_bounded(lines, room):
    printed = "\n".join(lines)
    found = _summary.excerpt(printed, room)
    assert len(found.head) + found.omitted + len(found.tail) == found.total
    assert found.total == (printed.removesuffix("\n").count("\n") + 1 if printed.removesuffix("\n") else 0)
    assert sum(map(len, [*found.head, *found.tail])) <= room + 2 * 600
    assert len(found.head) + len(found.tail) <= 60 or not found.omitted


def test_long_output_shows_its_beginning_and_its_end_and_counts_the_rest(run):
    batch = run(["seq 1 100000"])
    page = Page(_summary.html(batch)).text
    assert "1\n2\n3\n" in page
    assert "99999\n100000" in page
    assert "… 99,940 lines left out …" in page
    assert "100,000 lines of stdout" in page


def test_a_big_batch_is_bounded_and_failures_come_first_to_the_room_there_is(run):
    def job(index):
        print("x" * 400 + "\n" * 5)
        if index >= 470:
            raise ValueError(f"no {index}")

    batch = run([functools.partial(job, index) for index in range(500)], max_commands=500)
    page = _summary.html(batch)
    assert len(page) < 2_000_000
    text = Page(page).text
    assert "500 jobs: 30 failed, 470 succeeded" in text
    assert "… and 10 more that failed" in text
    assert "… and 400 more jobs: 400 succeeded" in text
    rows = [int(index) for index in re.findall(r"\[(\d+)\]", text.partition("statejob")[2])]
    assert rows == [*range(470, 500), *range(70)]
    assert _summary.text(batch).count("✔") == 70


@pytest.mark.parametrize("every", [1, 3, 10_000], ids=["all fail", "a third fails", "one fails"])
def test_10000_jobs_leave_no_more_than_100_do(run, every):
    def job(index):
        if index % every == 0:
            raise ValueError("x" * 1000)

    batch = run([functools.partial(job, n) for n in range(10_000)], max_commands=10_000, workers=20)
    assert len(_summary.html(batch)) < 400_000
    assert len(_summary.text(batch)) < 100_000
    failed = len(range(0, 10_000, every))
    rest = [f"{failed - 100:,} failed"] if failed > 100 else []
    rest += [f"{10_000 - max(100, failed):,} succeeded"] if failed < 10_000 else []
    for made in (_summary.text(batch), Page(_summary.html(batch)).text):
        assert f"… and 9,900 more jobs: {', '.join(rest)}" in made


def test_of_very_many_outputs_little_is_read_back_from_files(monkeypatch):
    read = []
    with Leader(memory_output_bytes=1024) as leader:
        batch = leader.execute(["seq 1 100000"] * 20)
        assert batch.wait(60)
        reading = type(batch[0])._read
        monkeypatch.setattr(
            type(batch[0]), "_read", lambda job, stream: read.append(job.index) or reading(job, stream)
        )
        page = Page(_summary.html(batch)).text
        assert read == []
        assert page.count("bytes of output") == 20
        assert "99999\n100000" in page
        one = leader.execute(["seq 1 100000"])
        assert one.wait(60)
        assert "100,000 lines of stdout" in Page(_summary.html(one)).text
        assert read


def test_which_job_failed_first_is_said_and_the_order_on_top_is_that_of_the_jobs(run, tmp_path):
    wait = f"while [ ! -e {tmp_path}/go ]; do sleep 0.01; done"
    batch = run([f"{wait}; exit 3", f"touch {tmp_path}/go; exit 4"], workers=2)
    text = Page(_summary.html(batch)).text
    assert "first to fail: [1]" in text or "first to fail: [0]" in text
    first = min(batch, key=lambda job: job.ended_at)
    assert f"first to fail: [{first.index}] " in text
    assert text.index("exit 3") < text.index("exit 4")
    assert "first to fail" not in _summary.text(batch)


def test_without_styles_it_is_a_table_of_states_names_durations_attempts_and_reasons(run):
    batch = run(["true", "echo no >&2; exit 7"], policy={"retries": 1, "retry_delay": 0})
    bare = re.sub(r' style="[^"]*"', "", _summary.html(batch))
    rows = re.findall(r"<tr>(.*?)</tr>", bare)
    cells = [
        [Page(cell).text.replace("\xa0", " ") for cell in re.findall(r"<t[hd]>(.*?)</t[hd]>", row)]
        for row in rows
    ]
    assert cells[0] == ["state", "job", "duration", "attempts", "why"]
    assert cells[1][:2] == ["✔ succeeded", "[0] true"]
    assert cells[1][3:] == ["1", ""]
    assert cells[2][0] == "✖ failed"
    assert cells[2][1].startswith("[1] echo no >&2; exit 7 1 line of stderr")
    assert cells[2][3:] == ["2", "exit 7: no"]
    assert re.fullmatch(r"\d+ ms", cells[1][2])


def test_a_line_of_3_mb_is_cut_and_its_length_told(run):
    batch = run(["head -c 3000000 /dev/zero | tr '\\0' x"])
    page = _summary.html(batch)
    assert len(page) < 10_000
    assert "3,000,000 characters" in page


def test_of_very_much_output_the_beginning_the_end_and_the_size_are_shown(run):
    batch = run(["seq 1 3000000; echo last >&2"])
    page = Page(_summary.html(batch)).text
    assert len(page) < 30_000
    assert f"{len(batch[0].output_bytes):,} bytes of output" in page
    assert "1\n2\n3\n" in page
    assert "2999999\n3000000" in page
    assert "last" in page
    omitted = re.search(r"… ([\d,]+) bytes left out …", page)
    assert 20_000_000 < int(omitted[1].replace(",", "")) < len(batch[0].output_bytes)


def test_a_batch_that_still_runs_says_so(leader, tmp_path):
    batch = leader.execute([f"while [ ! -e {tmp_path}/go ]; do sleep 0.01; done", "false"], workers=1)
    with leader.subscribe(batch=batch) as events:
        while (event := events.get(30)).type != "job_started" or event.job != 0:
            pass
    assert "1 running" in _summary.text(batch)
    assert "1 running" in _summary.html(batch)
    assert _summary.started(batch) == "2 jobs started; wait() shows the summary"
    (tmp_path / "go").touch()
    assert batch.wait(10)


def test_retries_and_notes_are_told(run):
    batch = run(["false", "sleep 60 & echo started"], policy={"retries": 1, "retry_delay": 0})
    assert "(attempt 2)" in _summary.text(batch)
    assert batch[1].note in html_module.unescape(_summary.html(batch))


def test_no_jobs_make_a_summary_too(run):
    assert _summary.text(run([])) == "no jobs"
    assert "no jobs" in _summary.html(run([], name=""))


def test_limits_are_said_as_the_header_says_them(leader):
    assert _words.limits(leader.execute(["true"])) == "4 at once · 30 s each"
    assert _words.limits(leader.execute(["true"], workers=2, timeout=None)) == "2 at once · no time limit"
    assert _words.limits(leader.execute(["true"], timeout=600)) == "4 at once · 10 min each"
