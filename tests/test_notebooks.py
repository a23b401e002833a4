"""The notebooks run as they are saved, nbval notices what is missing from them, and they leave nothing."""

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
QUICKSTART = ROOT / "notebooks" / "01-quickstart.ipynb"

# How long the processes of a kernel may take to go after its end, in seconds.
LIMIT = 2.0

notebooks = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)


@notebooks
def test_a_notebook_runs_as_it_is_saved_and_leaves_nothing(path, tmp_path, masked):
    copy, temporary = tmp_path / path.name, tmp_path / "temporary"
    copy.write_bytes(path.read_bytes())
    temporary.mkdir()

    run = subprocess.run(
        [sys.executable, ROOT / "notebooks" / "run.py", "--save", copy],
        env={**os.environ, "TMPDIR": str(temporary)},
        capture_output=True,
        text=True,
        check=False,
    )

    assert run.returncode == 0, run.stdout + run.stderr
    assert _comparable(copy, masked) == _comparable(path, masked)
    mark = os.fsencode(f"TMPDIR={temporary}")
    deadline = time.monotonic() + LIMIT
    while (left := _carrying(mark) + list(temporary.iterdir())) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not left


def test_nbval_accepts_a_notebook_as_it_is_saved(tmp_path):
    run = _nbval(_saved(tmp_path, nbformat.read(QUICKSTART, as_version=4)))

    assert run.returncode == 0, run.stdout


@pytest.mark.parametrize(
    ("representation", "command", "printed"),
    [
        ("text/html", "sha256sum monday.csv", r"[0-9a-f]{64}  monday\.csv"),
        ("text/plain", "gzip --test --verbose wednesday.csv.gz", r"\| gzip: .*: unexpected end of file"),
    ],
    ids=["text/html", "text/plain"],
)
def test_nbval_notices_that_the_output_of_one_command_was_deleted(representation, command, printed, tmp_path):
    notebook = nbformat.read(QUICKSTART, as_version=4)
    (cell,) = (cell for cell in notebook.cells if f"\n{command}" in cell.source)
    (output,) = (output for output in cell.outputs if output.get("data", {}).get(representation))
    output.data[representation], deleted = re.subn(printed, "", output.data[representation], count=1)
    assert deleted

    run = _nbval(_saved(tmp_path, notebook))

    assert run.returncode == 1, run.stdout
    assert "1 failed" in run.stdout
    assert f"mismatch '{representation}'" in run.stdout


@notebooks
def test_a_saved_notebook_has_run_and_says_nothing_of_the_machine(path):
    text = path.read_text()
    cells = [cell for cell in nbformat.reads(text, as_version=4).cells if cell.cell_type == "code"]

    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    for place in (ROOT, Path.home(), Path(sys.prefix), "/tmp"):
        assert f"{place}/" not in text
    for cell in cells:
        failed = any(output.output_type == "error" for output in cell.outputs)
        assert failed == ("raises-exception" in cell.metadata.get("tags", []))


def _comparable(path, masked):
    """All of a notebook but what differs from run to run, the order in which a widget was told things too."""
    notebook = nbformat.read(path, as_version=4)
    notebook.metadata.pop("widgets", None)
    for cell in notebook.cells:
        for output in cell.get("outputs", ()):
            if "text/html" in output.get("data", ()):
                output.data["text/html"] = masked(output.data["text/html"])
    return notebook


def _saved(folder, notebook):
    path = folder / "copy.ipynb"
    nbformat.write(notebook, path)
    return path


def _nbval(path):
    """A strict nbval run, as `make test` does it."""
    return subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "--nbval", "--nbval-current-env", "-p", "no:cacheprovider"),
            *("--nbval-sanitize-with", ROOT / "tests" / "nbval-sanitize.cfg", "--rootdir", path.parent, path),
        ],
        env={**os.environ, "TMPDIR": str(path.parent)},
        cwd=path.parent,
        capture_output=True,
        text=True,
        check=False,
    )


def _carrying(variable):
    """The processes that have this in their environment, with their command lines."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            if variable in (entry / "environ").read_bytes().split(b"\0"):
                found.append((entry.name, (entry / "cmdline").read_bytes().replace(b"\0", b" ")))
        except OSError:
            continue  # ended meanwhile
    return found
