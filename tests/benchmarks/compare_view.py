"""Which of 50 jobs failed, and why: what a reader sees with us and with others: `make compare-view`.

The same batch each time, in JupyterLab: 50 callables on 8 threads, each of which prints a line; three raise.
When its cell is over, what it shows is searched for the three jobs and the three reasons. `lines` are those
down to the last of them, `scrolls` the screens after the first. Where something is missing that the tool can
tell, a further cell is `typed`, of so many lines. `seconds` is an estimate, not a measurement: 0.4 for a line
to read, 2 for a scroll, 15 for a line to type. `--pictures FOLDER` keeps two pictures of each.
"""

from __future__ import annotations

import argparse
import re
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

from view import harness

FAILED = {"part-07": "could not convert", "part-24": r"KeyError\W+'price'", "part-41": "No such file"}
SETUP = """%load_ext arrea_nb
import time

parts = [f"part-{number:02}" for number in range(50)]

def load(part):
    time.sleep(0.4)
    print(f"{part}: reading")
    number = int(part[-2:])
    if number % 17 == 7:
        [lambda: float("n/a"), lambda: {}["price"], lambda: open("/nowhere/data.csv")][number // 17]()
    return part"""
# The cell as the tool's own documentation has it, and the one that tells more, where there is such a one.
TOOLS = {
    "arrea_nb": [
        """import arrea_nb, functools
arrea_nb.run({part: functools.partial(load, part) for part in parts}, workers=8)"""
    ],
    "tqdm thread_map": [
        """from tqdm.contrib.concurrent import thread_map
from tqdm.notebook import tqdm
results = thread_map(load, parts, max_workers=8, tqdm_class=tqdm)"""
    ],
    "Dask progress": [
        """from dask.distributed import Client, progress
client = Client(processes=False, n_workers=1, threads_per_worker=8, dashboard_address=None)
futures = client.map(load, parts)
progress(futures)""",
        """for part, future in zip(parts, futures):
    if future.status == "error":
        print(part, repr(future.exception()))""",
    ],
    "mpire": [
        """from mpire import WorkerPool
with WorkerPool(8, start_method="threading") as pool:
    results = pool.map(load, parts, progress_bar=True, progress_bar_style="notebook")"""
    ],
}
SCREEN = 45  # lines


def look(lab: Any, cell: int) -> tuple[int, int, int]:
    """How many of the jobs and of the reasons the cell's output names, and the line of the last one."""
    lines = lab.text(cell).split("\n")

    def first(pattern: str) -> int | None:
        # What a job printed does not name it as failed.
        named = (at for at, line in enumerate(lines, 1) if re.search(pattern + "(?!: reading)", line))
        return next(named, None)

    jobs = [at for job in FAILED if (at := first(job))]
    reasons = [at for reason in FAILED.values() if (at := first(reason))]
    return len(jobs), len(reasons), max([*jobs, *reasons], default=len(lines))


def measure(lab: Any, tool: str, pictures: Path | None) -> str:
    """One tool, in a notebook of its own: its row of the table."""
    code, *more = TOOLS[tool]
    lab.open([SETUP, code, *more])
    lab.run(0)
    lab.run(1, wait=False)
    name = re.sub(r"\W+", "-", tool)
    lab.page.wait_for_timeout(2000)
    if pictures:
        lab.screenshot(pictures / f"{name}-live.png")
    lab.wait_idle(1)
    lab.page.wait_for_timeout(3000)  # Dask goes on when its cell is over
    jobs, reasons, lines = look(lab, 1)
    typed = 0
    if more and jobs + reasons < 2 * len(FAILED):
        lab.run(2)
        lab.wait_text(2, next(iter(FAILED)))
        jobs, reasons, further = look(lab, 2)
        lines, typed = lines + further, len(more[0].split("\n"))
    if pictures:
        lab.cell(1).scroll_into_view_if_needed()
        lab.screenshot(pictures / f"{name}-end.png")
    scrolls = max(0, -(-lines // SCREEN) - 1)
    seconds = (
        f"{0.4 * lines + 2 * scrolls + 15 * typed:.0f}" if jobs == reasons == len(FAILED) else "not possible"
    )
    return f"{tool:<18}{jobs:>4} of 3{reasons:>6} of 3{lines:>7}{scrolls:>9}{typed:>7}{seconds:>14}"


def main(arguments: list[str]) -> int:
    """Prints the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pictures", type=Path, metavar="FOLDER")
    pictures = parser.parse_args(arguments).pictures
    module = harness()
    folder = Path(tempfile.mkdtemp(prefix="arrea-compare-"))
    (folder / "home").mkdir()
    server = module.JupyterServer(*module.new_home(folder / "home"), "jupyterlab")
    try:
        with module.launched(shutil.which("chromium"), folder / "chromium") as browser:
            print(f"{'':<18}{'jobs':>9}{'reasons':>11}{'lines':>7}{'scrolls':>9}{'typed':>7}{'seconds':>14}")
            for tool in TOOLS:
                lab = module.Lab(browser.new_page(), server)
                print(measure(lab, tool, pictures))
                lab.close()
    finally:
        server.shut_down_kernels()
        server.close()
        shutil.rmtree(folder, ignore_errors=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
