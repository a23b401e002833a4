"""Runs notebooks in a real kernel and prints each cell with what it printed and showed, as text.

    python notebooks/run.py                 # the quick start
    python notebooks/run.py PATH ...
    python notebooks/run.py --save          # every notebook here, and its outputs are saved anew

The exit code is 1 when a cell raised that is not tagged `raises-exception`; its notebook is not saved then.
"""

import argparse
import re
import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

HERE = Path(__file__).parent
VIEW = "application/vnd.jupyter.widget-view+json"
STATE = "application/vnd.jupyter.widget-state+json"


def main(arguments: list[str]) -> int:
    """Runs the notebooks, one after the other, each in its own folder."""
    parser = argparse.ArgumentParser(description="Runs notebooks in a real kernel.")
    parser.add_argument("paths", metavar="PATH", nargs="*", type=Path)
    parser.add_argument(
        "--save", action="store_true", help="save the outputs; no PATH: of every notebook here"
    )
    options = parser.parse_args(arguments)
    usual = sorted(HERE.glob("*.ipynb")) if options.save else [HERE / "01-quickstart.ipynb"]
    for path in options.paths or usual:
        notebook = nbformat.read(path, as_version=4)
        client = NotebookClient(
            notebook,
            timeout=600,
            kernel_name="python3",
            extra_arguments=["--IPKernelApp.log_level=ERROR"],
            resources={"metadata": {"path": str(path.parent)}},
            on_cell_executed=_show_cell,
            record_timing=False,
        )
        print(f"{path}\n")
        metadata = dict(notebook.metadata)
        try:
            client.execute()
        except CellExecutionError:
            return 1  # the cell that raised has been printed, traceback and all
        if options.save:
            _tidy(notebook, metadata)
            nbformat.write(notebook, path)
    return 0


def _tidy(notebook: nbformat.NotebookNode, metadata: dict) -> None:
    """Takes out what says more of this machine and this run than of the notebook."""
    widgets = notebook.metadata.get("widgets", {}).get(STATE)
    notebook.metadata = nbformat.from_dict(
        {key: value for key, value in metadata.items() if key != "widgets"}
    )
    shown = [
        output.data[VIEW]
        for cell in notebook.cells
        for output in cell.get("outputs", ())
        if VIEW in output.get("data", ())
    ]
    if not shown:
        return
    # The models that are shown and those that they refer to, numbered in the order in which they are met.
    models = widgets["state"]
    numbers: dict[str, str] = {}
    waiting = [view["model_id"] for view in shown]
    while waiting:
        model = waiting.pop(0)
        if model in models and model not in numbers:
            numbers[model] = f"{len(numbers) + 1:032}"
            waiting += re.findall(r"IPY_MODEL_([0-9a-f]{32})", str(models[model]["state"]))
    for view in shown:
        view["model_id"] = numbers[view["model_id"]]
    state = {numbers[model]: _renamed(models[model], numbers) for model in numbers}
    notebook.metadata["widgets"] = {STATE: {**widgets, "state": state}}


def _renamed(value: object, numbers: dict[str, str]) -> object:
    if isinstance(value, dict):
        return {key: _renamed(one, numbers) for key, one in value.items()}
    if isinstance(value, str) and value.startswith("IPY_MODEL_"):
        return "IPY_MODEL_" + numbers[value.removeprefix("IPY_MODEL_")]
    return value


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
    sys.exit(main(sys.argv[1:]))
