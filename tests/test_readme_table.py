"""The table of README.md in this folder: every test that it names exists, and every contract has a row."""

import ast
import re
from fnmatch import fnmatch
from pathlib import Path

import pytest

HERE = Path(__file__).parent
ROWS = [
    [cell.strip() for cell in line.strip("|\n ").split("|")]
    for line in (HERE / "README.md").read_text().splitlines()
    if line.startswith("| ")
]
NAMED = [name for row in ROWS for name in re.findall(r"`([^`]+)`", row[1])]


def _tests_of(path):
    found = ast.walk(ast.parse(path.read_text()))
    return [node.name for node in found if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]


def test_every_contract_has_a_row():
    contracts = [match[1] for row in ROWS if (match := re.match(r"C(\d+) ", row[0]))]
    assert contracts == [str(number) for number in range(1, 24)]


@pytest.mark.parametrize("named", NAMED)
def test_every_test_that_it_names_exists(named):
    file, _, pattern = named.partition("::")
    if file.startswith("test_") and "." not in file:  # a test in the file that the row named before
        file, pattern = "test_contracts_running.py", file
    paths = list(HERE.glob(file))
    assert paths, f"no file {file}"
    if pattern:
        assert any(fnmatch(name, pattern) for name in _tests_of(paths[0]))
