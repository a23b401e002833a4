"""Front ends without a browser, really run: papermill, nbconvert (nbclient, nbval: test_notebooks.py)."""

import subprocess
import sys
from pathlib import Path

import nbconvert
import nbformat
import pytest

NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))


def notebook(*cells):
    """A notebook with these cells, the first of which has the parameters."""
    made = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in cells])
    made.cells[0].metadata["tags"] = ["parameters"]
    made.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    return made


@pytest.mark.parametrize("code", [0, 3], ids=["all succeed", "one fails"])
def test_papermill_stops_at_a_batch_that_failed_and_its_notebook_has_the_summary(code, tmp_path):
    source, result = tmp_path / "source.ipynb", tmp_path / "result.ipynb"
    cells = ("code = 9", "%load_ext arrea_nb", '%%arrea -e code\nexit "$code"\necho fine', "print('after')")
    nbformat.write(notebook(*cells), source)
    command = [
        sys.executable,
        "-m",
        "papermill",
        source,
        result,
        "-p",
        "code",
        str(code),
        "--no-progress-bar",
    ]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)

    assert (run.returncode == 0) == (code == 0), run.stderr
    after = nbformat.read(result, as_version=4).cells
    (magic,) = (cell for cell in after if cell.source.startswith("%%arrea"))
    (summary,) = (one.data["text/html"] for one in magic.outputs if "text/html" in one.get("data", ()))
    if code:
        assert "BatchFailed: 1 of 2 failed: [0] exit " in run.stderr
        assert "2 jobs: 1 failed, 1 succeeded" in summary
        assert after[-1].execution_count is None
    else:
        assert "2 jobs succeeded" in summary
        assert after[-1].outputs[0].text == "after\n"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
@pytest.mark.parametrize(
    "exporter", [nbconvert.HTMLExporter, nbconvert.LatexExporter, nbconvert.MarkdownExporter]
)
def test_nbconvert_takes_each_notebook_and_warns_of_nothing(path, exporter):
    saved = nbformat.read(path, as_version=4)
    # What is written in Markdown is pandoc's to make LaTeX of, and not ours.
    saved.cells = [cell for cell in saved.cells if cell.cell_type == "code"]
    made = exporter().from_notebook_node(saved)[0]
    assert made.count("jobs succeeded") >= 1
    assert made.count("ZeroDivisionError: division by zero" if "02" in path.name else "exit 1: gzip") >= 1


def test_a_converted_page_has_the_table_the_output_and_the_timeline():
    page = nbconvert.HTMLExporter().from_filename(NOTEBOOKS[0])[0]
    assert "check: 3 jobs: 1 failed, 2 succeeded" in page
    assert "<details><summary" in page
    assert 'src="data:image/svg+xml;base64,' in page
    assert "unexpected end of file" in page


def test_a_converted_paper_has_the_first_failure_its_exit_code_and_its_last_words(tmp_path):
    cell = "%%arrea --no-raise\necho fine\nseq 1 30 >&2; echo '100 % of_it & $5 {lost}' >&2; exit 7\nexit 9"
    path = tmp_path / "paper.ipynb"
    nbformat.write(notebook("%load_ext arrea_nb", cell), path)
    command = [sys.executable, "-m", "nbconvert", "--to", "latex", "--execute", path]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    paper = path.with_suffix(".tex").read_text("utf-8")
    top, _, rest = paper.partition("3 jobs: 2 failed, 1 succeeded")[2].partition("last lines of stderr:")
    assert "[1] seq 1 30" in top
    assert top.rstrip().endswith(r": exit 7: 100 \% of\_it \& \$5 \{lost\}")
    words = rest.partition("[2] exit 9")[0].replace("|", "").split("\n")
    assert [word.strip() for word in words if word.strip()] == [
        *map(str, range(22, 31)),
        r"100 \% of\_it \& \$5 \{lost\}",
    ]
