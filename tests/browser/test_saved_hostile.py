"""A notebook full of hostile output, run in a real kernel, saved, converted, and opened: nothing runs."""

import json
import re
import subprocess
import sys
from pathlib import Path

import nbconvert
import nbformat
import pytest
from playwright.sync_api import expect

# What would be seen if it ran: each sets a variable, a title, or asks for something from outside.
HOSTILE = """\
<script>window.owned = 1</script></script><img src=x onerror="window.owned = 1">
</pre></bdi></td></tr></table></details></div><style>body { display: none !important }</style>
<svg onload="window.owned = 1"></svg><iframe src="javascript:parent.owned = 1"></iframe>
" onmouseover="window.owned = 1" title='&lt;script&gt;window.owned = 1&lt;/script&gt;
<a href="javascript:window.owned = 1">link</a> <base href="http://owned.invalid/"> <link rel=stylesheet href="http://owned.invalid/x.css">
\x1b]0;owned\x07\x1b]52;c;b3duZWQ=\x07\x1b]8;;http://owned.invalid\x1b\\link\x1b]8;;\x1b\\\x1b[2J\x9b31m\x1bP+q\x1b\\
nul \x00 bell \x07 back \x08\x08\x08 \u202egnp.exe\u202c \u2066iso\u2069 \u200f
$\\href{javascript:window.owned=1}{x}$ <!-- --!> ]]> {{ 7 * 7 }} {% raw %}
"""

CELLS = [
    "%load_ext arrea_nb\nimport arrea_nb, functools, itertools, sys, time",
    f"hostile = {HOSTILE!r}",
    """
class Repr:
    def __repr__(self):
        return hostile
    __str__ = __repr__

class Raises(Exception):
    def __str__(self):
        raise ValueError(hostile)
    __repr__ = __str__

def fails(*_):
    print(hostile)
    print(hostile, file=sys.stderr)
    raise RuntimeError(hostile)

def fails_oddly():
    raise Raises

class Endless(Exception):
    asked = itertools.count()
    def __str__(self):
        while next(self.asked):
            time.sleep(1)
        return hostile

def fails_slowly():
    raise Endless

def returns(*_):
    return Repr()

fails_oddly.__qualname__ = hostile
shown = hostile.replace(chr(0), "").encode()
batch = arrea_nb.execute(
    {
        hostile: fails,
        "oddly": fails_oddly,
        "slowly": fails_slowly,
        "value": returns,
        "shell": ["sh", "-c", 'printf %s "$0"; printf %s "$0" >&2; exit 3', shown.decode()],
        "long line": "head -c 10000000 /dev/zero | tr '\\\\0' '<'",
        "half": r"printf '\\303'; sleep 0.1; printf '\\251\\303'",
    },
    name=hostile,
    timeout=60,
)
batch.wait()
print(batch.counts["failed"])""",
    "arrea_nb.execute([functools.partial(fails, Repr()), functools.partial(returns, Raises()), fails_oddly])",
    "batch",
]


@pytest.fixture(scope="module")
def notebook(tmp_path_factory):
    """The path of the notebook, run by `jupyter execute` in a real kernel, and saved."""
    path = tmp_path_factory.mktemp("hostile") / "hostile.ipynb"
    cells = [nbformat.v4.new_code_cell(source) for source in CELLS]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), path)
    command = [Path(sys.executable).with_name("jupyter-execute"), "--inplace", "--timeout=100", path]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    saved = nbformat.read(path, as_version=4)
    assert saved.cells[2].outputs[-1].text == "4\n"
    assert "text/html" in saved.cells[4].outputs[-1].data
    return path


def check_nothing_ran(page):
    assert page.evaluate("window.owned") is None
    assert page.title() != "owned"
    assert page.evaluate("getComputedStyle(document.body).display") != "none"
    for summary in page.locator("details > summary").all():
        summary.click()
        summary.hover()
    assert page.evaluate("window.owned") is None
    inside = page.locator('div[title="timeline"]').locator("xpath=..")
    assert inside.count() >= 1
    assert (
        inside.locator("script, style, svg, iframe, a, base, link, img[onerror], [onmouseover]").count() == 0
    )


@pytest.mark.parametrize("template", ["lab", "classic"])
def test_nothing_runs_in_the_page_that_nbconvert_makes(notebook, template, browser, tmp_path):
    made = tmp_path / "hostile.html"
    made.write_text(nbconvert.HTMLExporter(template_name=template).from_filename(notebook)[0])
    page = browser.new_page()
    asked = []
    page.on("request", lambda request: asked.append(request.url))
    page.on("dialog", lambda dialog: asked.append(dialog.message))
    page.goto(made.as_uri())
    check_nothing_ran(page)
    assert not [url for url in asked if "owned" in url]
    text = page.locator("body").inner_text()
    assert "<script>window.owned = 1</script>" in text
    assert "10,000,000 characters" in text or "bytes of output" in text
    assert "\\u202egnp.exe" in text
    assert "\x1b" not in text
    page.close()


def test_nothing_runs_where_the_notebook_is_opened_trusted_or_not(notebook, lab):
    saved = json.loads(notebook.read_text())
    for cell in saved["cells"]:
        cell["source"] = "".join(cell["source"])
    lab.open(saved["cells"], kernel=None)
    lab.wait_text(4, "<script>window.owned = 1</script>")
    check_nothing_ran(lab.page)
    lab.page.evaluate(
        "() => { for (const one of document.querySelectorAll('details')) one.dataset.old = ''; }"
    )
    lab.page.evaluate(
        "() => { const cells = window.jupyterapp.shell.currentWidget.content.model.cells; "
        "for (const cell of cells) cell.trusted = true; return null; }"
    )
    expect(lab.page.locator("details[data-old]")).to_have_count(0)  # all is drawn anew
    lab.wait_text(4, "<script>window.owned = 1</script>")
    check_nothing_ran(lab.page)
    assert lab.external_requests == []


@pytest.mark.parametrize("exporter", [nbconvert.LatexExporter, nbconvert.MarkdownExporter])
def test_the_text_that_nbconvert_makes_is_inert_too(notebook, exporter):
    text = exporter().from_filename(notebook)[0]
    assert "7 jobs: 4 failed, 3 succeeded" in text
    assert not re.search("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202e\u2066]", text)
