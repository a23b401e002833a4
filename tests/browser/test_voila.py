"""A notebook served by Voilà: the page shows the batch, live where it still runs, and how it ended."""

import contextlib
import socket
import subprocess
import sys
import time

import nbformat
import pytest
from playwright.sync_api import expect


@pytest.fixture
def voila(jupyter_home, tmp_path):
    """Serves a notebook with these cells, and returns the address of its page."""
    _, environment = jupyter_home
    servers = []

    def serve(*cells):
        path = tmp_path / "page.ipynb"
        nbformat.write(
            nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(one) for one in cells]), path
        )
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        command = [
            sys.executable,
            "-m",
            "voila",
            path,
            f"--port={port}",
            "--no-browser",
            "--Voila.ip=127.0.0.1",
        ]
        with (tmp_path / "voila.log").open("wb") as log:
            server = subprocess.Popen(
                command, env=environment, cwd=tmp_path, stdout=log, stderr=log, stdin=subprocess.DEVNULL
            )
        servers.append(server)
        deadline = time.monotonic() + 60
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                return f"http://127.0.0.1:{port}"
            assert server.poll() is None, (tmp_path / "voila.log").read_text()
            assert time.monotonic() < deadline
            time.sleep(0.05)

    yield serve
    for server in servers:
        server.terminate()
        server.wait(20)


@pytest.fixture
def page(browser):
    """A page that asks nobody but this machine: Voilà's own template wants fonts from elsewhere."""
    made = browser.new_page()
    made.route(lambda url: not url.startswith("http://127.0.0.1"), lambda route: route.abort())
    yield made
    made.close()


def test_the_page_shows_the_batch_and_its_end(voila, page):
    url = voila(
        "%load_ext arrea_nb",
        "%%arrea --no-raise --name served\necho hello\necho no >&2; exit 7\nsleep 0.5",
    )
    page.goto(url)
    page.get_by_text("served: 3 jobs: 1 failed, 2 succeeded").wait_for()
    page.get_by_role("cell", name="exit 7: no").wait_for()
    page.get_by_text("1 line of stdout").click()
    page.get_by_text("hello", exact=True).wait_for()
    expect(page.locator(".arrea")).to_have_count(0)


def test_a_batch_that_still_runs_is_live_in_the_page_and_ends_there(voila, page, tmp_path):
    go = tmp_path / "go"
    url = voila(
        "import arrea_nb\n%load_ext arrea_nb",
        f"arrea_nb.execute(['while [ ! -e {go} ]; do sleep 0.02; done; echo went'], name='served')",
    )
    page.goto(url)
    page.locator('.arrea [role="row"][data-state="running"]').wait_for()
    go.touch()
    page.locator('.arrea [role="row"][data-state="succeeded"]').wait_for()
