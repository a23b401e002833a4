"""Takes the pictures for the README anew, of real batches in JupyterLab: `make pictures`.

python notebooks/pictures.py [FOLDER]       # by default notebooks/images
"""

import importlib.util
import shutil
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
HARNESS = HERE.parent / "tests" / "browser" / "conftest.py"

SETUP = r"""%load_ext arrea_nb
import arrea_nb, time

train = r'''python3 -u -c "
import time
data = bytearray(300_000_000)
for epoch in range(1000):
    end = time.process_time() + 0.1
    while time.process_time() < end: pass
    time.sleep(0.1)
    print(f'\033[32mepoch {epoch}\033[0m: loss \033[1m{1 / (2 + 0.02 * epoch):.3f}\033[0m')
"'''
jobs = {
    "compress access.log": r'for i in $(seq 1 100); do printf "\rcompressing: $i%%"; sleep 0.25; done',
    "sha256sum /bin/bash": "sha256sum /bin/bash",
    "pytest -q tests/": "sleep 1; echo '2 failed, 40 passed' >&2; exit 1",
    "python train.py --lr 0.1": train,
    "curl -fsS http://127.0.0.1/health": "sleep 2; echo connection refused >&2; exit 7",
}
for n in range(30):
    echo = f"echo part-{n:02}: {40 + 7 * n % 19} % of its size"
    jobs[f"gzip -9 part-{n:02}.csv"] = f"sleep {0.5 + n * 3 % 5 / 2}; {echo}"

def seed(n):
    time.sleep(0.03)
    1 / (n % 900)
    print("accuracy", n * 37 % 100 / 100)
"""
NIGHTLY = 'arrea_nb.run(jobs, name="nightly build", timeout=60, policy={"retries": 2, "retry_delay": 8})'
THOUSANDS = """seeds = {f"python train.py --seed {n}": (lambda n=n: seed(n)) for n in range(10_000)}
arrea_nb.run(seeds, workers=24, max_commands=10_000, name="ten thousand")"""
FLOODED = r"""%%arrea -t 0 --name flooded
for i in $(seq 1 300); do seq $i 7 70000 | sed "s/^/row /"; echo warning: slow >&2; done; sleep 60
yes "$(printf '\033[33mmaybe\033[0m')" | head -c 300000000; sleep 60
printf 'one\ntwo\n'; sleep 60"""
FAILED = """tests = {f"test {n}": "echo collecting; sleep 0.2; true" for n in range(40)}
for n in range(3, 40, 7):
    tests[f"test {n}"] = "echo collecting; sleep 0.1; echo 'E   assert 3 == 4' >&2; exit 1"
batch = arrea_nb.execute(tests, name="tests")
batch.wait()
batch.widget"""
REOPENED = """%%arrea --no-raise --name "nightly build" --retries 1
sha256sum /bin/bash
echo "2 failed, 40 passed" >&2; sleep 0.4; exit 1
gzip -9 < /bin/bash | wc -c
sleep 1.2; echo "epoch 9: loss 0.31"
echo "connection refused" >&2; exit 7"""


def wait_counts(lab, pattern):
    """Waits until the head of the view says this."""
    lab.page.wait_for_function(
        "pattern => new RegExp(pattern).test(document.querySelector('.arrea-counts')?.textContent)",
        arg=pattern,
        polling=50,
    )


def collapse(lab):
    """Leaves the whole width to the notebook."""
    lab.page.evaluate("window.jupyterapp.shell.collapseLeft()")


def theme(lab, name):
    """Changes JupyterLab's theme."""
    lab.page.evaluate(
        "theme => window.jupyterapp.commands.execute('apputils:change-theme', { theme }).then(() => null)",
        f"JupyterLab {name}",
    )
    lab.page.wait_for_timeout(500)


def nightly(lab, take):
    """Light, dark and narrow."""
    wait_counts(lab, "^1[2-9] of")
    lab.job(1, 3).click()
    lab.page.mouse.move(0, 0)
    take("light")
    theme(lab, "Dark")
    take("dark")
    theme(lab, "Light")
    lab.page.set_viewport_size({"width": 560, "height": 1000})
    lab.page.wait_for_function("document.querySelector('.arrea').clientWidth < 560")
    lab.page.wait_for_timeout(500)
    take("narrow")


def flooded(lab, take):
    """The place where lines are left out."""
    omitted = lab.view(1).get_by_text("left out here")
    omitted.wait_for()
    lab.page.wait_for_timeout(2000)
    omitted.evaluate("line => line.parentElement.scrollTo(0, line.offsetTop - 100)")
    lab.view(1).get_by_role("button", name="follow", exact=True).wait_for()
    take("flooded")


def failed(lab, take):
    """What failed, by itself."""
    lab.wait_idle(1)
    lab.view(1).get_by_role("button", name="failed 6").click()
    lab.job(1, 38).wait_for()
    take("failed")


def thousands(lab, take):
    """In the middle of ten thousand."""
    wait_counts(lab, "^4,... of")
    take("ten-thousand")


def reopened(lab, take):
    """The saved notebook, without a kernel."""
    lab.wait_idle(1)
    lab.wait_gone(1)
    lab.reopen_without_kernel()
    collapse(lab)
    lab.page.set_viewport_size({"width": 860, "height": 900})
    lab.wait_text(1, "nightly build")
    lab.page.mouse.move(0, 0)
    take("reopened")


def main(folder: Path) -> int:
    """Takes them all."""
    spec = importlib.util.spec_from_file_location("harness", HARNESS)
    harness = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(harness)
    scratch = Path(tempfile.mkdtemp(prefix="arrea-pictures-"))
    (scratch / "home").mkdir()
    server = harness.JupyterServer(*harness.new_home(scratch / "home"), "jupyterlab")
    steps = {NIGHTLY: nightly, THOUSANDS: thousands, FLOODED: flooded, FAILED: failed, REOPENED: reopened}
    try:
        with harness.launched(shutil.which("chromium"), scratch / "chromium") as browser:
            for cell, step in steps.items():
                lab = harness.Lab(browser.new_page(), server)
                lab.open([SETUP, cell])
                collapse(lab)
                lab.run(0)
                lab.run(1, wait=False)
                step(lab, lambda name, lab=lab: lab.cell(1).screenshot(path=str(folder / f"{name}.png")))
                lab.close()
    finally:
        server.shut_down_kernels()
        server.close()
        shutil.rmtree(scratch, ignore_errors=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(*sys.argv[1:2]) if sys.argv[1:] else HERE / "images"))
