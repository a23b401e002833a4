"""Runs notebooks in a real kernel and prints each cell with what it printed and showed, as text.

    python notebooks/run.py notebooks/01-quickstart.ipynb

The exit code is 1 when a cell raised.
"""

import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError


def main(paths: list[str]) -> int:
    """Runs the notebooks, one after the other, each in its own folder."""
    for path in paths:
        notebook = nbformat.read(path, as_version=4)
        client = NotebookClient(
            notebook,
            timeout=600,
            kernel_name="python3",
            extra_arguments=["--IPKernelApp.log_level=ERROR"],
            resources={"metadata": {"path": str(Path(path).parent)}},
            on_cell_executed=_show_cell,
        )
        print(f"{path}\n")
        try:
            client.execute()
        except CellExecutionError:
            return 1  # the cell that raised has been printed, traceback and all
    return 0


def _show_cell(cell: nbformat.NotebookNode, cell_index: int, execute_reply: dict) -> None:
    number = execute_reply["content"].get("execution_count", cell_index)
    print(f"In [{number}]:")
    print(_indented(cell.source))
    for output in cell.outputs:
        text = _as_text(output)
        if text.strip():
            print(f"\n{text.rstrip()}")
    print(flush=True)


def _as_text(output: nbformat.NotebookNode) -> str:
    if output.output_type == "stream":
        return output.text
    if output.output_type == "error":
        return "\n".join(output.traceback)
    return output.data.get("text/plain", "")


def _indented(source: str) -> str:
    return "\n".join(f"    {line}".rstrip() for line in source.splitlines())


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:] or [str(Path(__file__).with_name("01-quickstart.ipynb"))]))
