"""A real JupyterLab and a real Notebook 7, driven in headless Chromium by Playwright.

    def test_it_counts(lab):
        lab.open(["print(6 * 7)"])
        lab.run(0)
        assert lab.text(0) == "42"

`lab` is JupyterLab, `notebook7` is Notebook 7, `front_end` is each of them in turn. `kernel` is the name of
a kernel on the installed ipykernel and on 7.3 in turn: `lab.open(cells, kernel=kernel)`.
"""

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
import uuid
from pathlib import Path
from urllib.parse import quote, urlsplit

import nbformat
import pytest
from playwright.sync_api import TimeoutError as PlaywrightTimeoutError
from playwright.sync_api import expect, sync_playwright

ROOT = Path(__file__).parents[2]
NEWEST = "arrea-newest"
IPYKERNEL_73 = "arrea-ipykernel-7.3"
TOKEN = uuid.uuid4().hex

_SCREENSHOTS = Path(__file__).parent / "screenshots"
_FAILED = pytest.StashKey[bool]()

expect.set_options(timeout=30_000)  # ms; a test that passes never waits so long

_CHROMIUM_FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-dev-shm-usage",
    "--disable-sync",
]

# Settings that keep a page still: no news, no question, and every cell in the document.
_SETTINGS = {
    "apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False},
    "docmanager-extension/plugin": {"autosave": False},
    "notebook-extension/tracker": {"windowingMode": "none"},
}

# The front end as the page holds it; `panel` is the open notebook.
_PANEL = "const app = window.jupyterapp, panel = app.shell.currentWidget; "


def pytest_configure(config):
    config.addinivalue_line(
        "markers", "kernel_ends: JupyterLab says in the browser's console that it lost it"
    )


def pytest_collection_modifyitems(items):
    """Puts the browser tests last: Playwright leaves an event loop running in the main thread."""
    here = Path(__file__).parent
    items.sort(key=lambda item: here in item.path.parents)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item):
    report = yield
    item.stash[_FAILED] = item.stash.get(_FAILED, False) or report.failed
    return report


@pytest.fixture(scope="session")
def ipykernel_73():
    """The folder that holds ipykernel 7.3, installed once and kept in .cache."""
    folder = ROOT / ".cache" / "ipykernel-7.3"
    if not folder.exists():
        building = folder.with_name(f"{folder.name}.{os.getpid()}")
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
        subprocess.run([*pip, "--target", str(building), "ipykernel==7.3.*"], check=True)
        with contextlib.suppress(OSError):  # another run was quicker
            building.rename(folder)
        shutil.rmtree(building, ignore_errors=True)
    return folder


@pytest.fixture(scope="session")
def jupyter_home(tmp_path_factory):
    """Fresh Jupyter folders with our own kernels, and the environment that makes Jupyter use them alone."""
    return new_home(tmp_path_factory.mktemp("jupyter"))


def new_home(home):
    """Fills a folder as `jupyter_home` says; returns it with the environment."""
    for plugin, settings in _SETTINGS.items():
        path = home / "settings" / "@jupyterlab" / f"{plugin}.jupyterlab-settings"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(settings))
    _write_kernel(home, NEWEST, {})
    environment = {name: value for name, value in os.environ.items() if not name.startswith("JUPYTER")}
    environment.update(
        IPYTHONDIR=str(home / "ipython"),
        JUPYTER_CONFIG_DIR=str(home / "config"),
        JUPYTER_DATA_DIR=str(home / "data"),
        JUPYTER_RUNTIME_DIR=str(home / "runtime"),
        JUPYTERLAB_SETTINGS_DIR=str(home / "settings"),
        JUPYTERLAB_WORKSPACES_DIR=str(home / "workspaces"),
    )
    return home, environment


def _write_kernel(home, name, env):
    folder = home / "data" / "kernels" / name
    folder.mkdir(parents=True, exist_ok=True)
    argv = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    spec = {"argv": argv, "display_name": name, "language": "python", "env": env}
    (folder / "kernel.json").write_text(json.dumps(spec))


class JupyterServer:
    """A Jupyter server on this machine, one process of ours, and its REST interface."""

    def __init__(self, home, environment, application):
        self.application = application
        self.folder = home / f"{application}-notebooks"
        self.folder.mkdir()
        self.log = home / f"{application}.log"
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        exposing = {"jupyterlab": "LabApp", "notebook": "JupyterNotebookApp"}[application]
        arguments = [
            "--ServerApp.ip=127.0.0.1",
            f"--ServerApp.port={port}",
            "--ServerApp.port_retries=0",
            "--ServerApp.open_browser=False",
            "--ServerApp.allow_root=True",
            f"--ServerApp.root_dir={self.folder}",
            f"--IdentityProvider.token={TOKEN}",
            f"--{exposing}.expose_app_in_browser=True",
        ]
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", application, *arguments],
                env=environment,
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self._wait_until_up()

    def _wait_until_up(self, timeout=60.0):
        deadline = time.monotonic() + timeout
        while True:
            with contextlib.suppress(OSError):
                self.api("GET", "status")
                return
            if self.process.poll() is not None or time.monotonic() > deadline:
                self.close()
                raise RuntimeError(f"{self.application} did not start:\n{self.log.read_text()}")
            time.sleep(0.05)

    def api(self, method, path, body=None):
        """The answer of `method /api/path`."""
        request = urllib.request.Request(
            f"{self.url}/api/{path}",
            method=method,
            data=None if body is None else json.dumps(body).encode(),
            headers={"Authorization": f"token {TOKEN}", "Content-Type": "application/json"},
        )
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                text = answer.read()
        except urllib.error.HTTPError as error:
            error.close()  # else its socket waits for the garbage collector
            raise
        return json.loads(text) if text else None

    def shut_down_kernels(self):
        """Ends every session and every kernel."""
        for session in self.api("GET", "sessions"):
            self._delete(f"sessions/{session['id']}")
        for kernel in self.api("GET", "kernels"):
            self._delete(f"kernels/{kernel['id']}")

    def _delete(self, path):
        with contextlib.suppress(urllib.error.HTTPError):  # it was gone already
            self.api("DELETE", path)

    def close(self):
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(20)
            except subprocess.TimeoutExpired:
                os.killpg(self.process.pid, signal.SIGKILL)
                self.process.wait(20)


@pytest.fixture(scope="session")
def lab_server(jupyter_home):
    server = JupyterServer(*jupyter_home, "jupyterlab")
    yield server
    server.close()


@pytest.fixture(scope="session")
def notebook7_server(jupyter_home):
    server = JupyterServer(*jupyter_home, "notebook")
    yield server
    server.close()


@pytest.fixture(scope="session")
def browser(tmp_path_factory):
    """A browser context of headless Chromium; each test has a page of its own in it."""
    executable = shutil.which("chromium")
    if executable is None:
        pytest.fail("the browser tests need Chromium; run: bash .ci/system-packages")
    with launched(executable, tmp_path_factory.mktemp("chromium")) as context:
        yield context


@contextlib.contextmanager
def launched(executable, profile, *flags):
    """Chromium, as a browser context."""
    with sync_playwright() as playwright:
        # A profile on disk: later pages find the front end's JavaScript fetched and compiled, a second each.
        context = playwright.chromium.launch_persistent_context(
            profile,
            executable_path=executable,
            args=[*_CHROMIUM_FLAGS, *flags],
            viewport={"width": 1280, "height": 900},
        )
        context.set_default_timeout(30_000)
        yield context
        context.close()


class Lab:
    """One browser page with one open notebook, and what a person does with it. Times are in seconds."""

    def __init__(self, page, server):
        self.page = page
        self.server = server
        self.path = None
        self.console_errors = []
        self.external_requests = []
        page.on("console", self._on_console)
        page.on("pageerror", lambda error: self.console_errors.append(str(error)))
        page.on("request", self._on_request)

    def _on_console(self, message):
        if message.type == "error":
            self.console_errors.append(message.text)

    def _on_request(self, request):
        address = urlsplit(request.url)
        if address.scheme in {"http", "https", "ws", "wss"} and address.hostname != "127.0.0.1":
            self.external_requests.append(request.url)

    # Opening

    def open(self, cells, *, kernel=NEWEST, name=None):
        """Opens a new notebook with these cells, code or whole nbformat cells; kernel=None starts none."""
        self.path = name or f"test-{uuid.uuid4().hex[:8]}.ipynb"
        metadata = {"language_info": {"name": "python"}}
        if kernel is not None:
            metadata["kernelspec"] = {"name": kernel, "display_name": kernel, "language": "python"}
        notebook = {
            "cells": [_code_cell(cell) if isinstance(cell, str) else cell for cell in cells],
            "metadata": metadata,
            "nbformat": 4,
            "nbformat_minor": 5,
        }
        self.server.api("PUT", f"contents/{self.path}", {"type": "notebook", "content": notebook})
        self._go(with_kernel=kernel is not None)

    def reload(self, *, timeout=30.0):
        """Saves and reloads the page; waits until the notebook is there, not until the kernel is idle."""
        self.save()
        self.page.reload()
        self._wait_until_open(timeout)

    def reopen_without_kernel(self):
        """Saves, ends the kernel and opens the file as somebody does who has no kernel for it."""
        saved = self.save()
        self.server.shut_down_kernels()
        self.page.goto("about:blank")
        saved["metadata"].pop("kernelspec", None)
        self.path = f"reopened-{self.path}"
        self.server.api("PUT", f"contents/{self.path}", {"type": "notebook", "content": saved})
        self._go(with_kernel=False)

    def _go(self, *, with_kernel, timeout=60.0):
        where = "lab/tree" if self.server.application == "jupyterlab" else "notebooks"
        query = f"token={TOKEN}" + ("&reset" if where == "lab/tree" else "")
        self.page.goto(f"{self.server.url}/{where}/{quote(self.path)}?{query}")
        self._wait_until_open(timeout)
        if with_kernel:
            self._wait_until_connected(timeout)
            self._wait_until_answered()
        else:
            self._choose_no_kernel()

    def _wait_until_connected(self, timeout):
        """Waits for the kernel. A page whose first question was lost asks no more: it connects anew."""
        for _ in range(2):
            try:
                return self.wait_kernel("idle", timeout=timeout / 3)
            except PlaywrightTimeoutError:
                self.page.evaluate(
                    f"() => {{ {_PANEL} return panel.sessionContext.session?.kernel?.reconnect(); }}"
                )
        return self.wait_kernel("idle", timeout=timeout / 3)

    def _wait_until_answered(self):
        """Asks the kernel until it answers: what a front end sends in its first moment can be lost."""
        self.page.evaluate(
            "async () => { "
            + _PANEL
            + """
                const kernel = panel.sessionContext.session.kernel;
                const late = () => new Promise(resolve => setTimeout(() => resolve('late'), 2000));
                for (let tries = 0; tries < 20; tries++) {
                    const asked = kernel.requestExecute({code: '', silent: true, store_history: false});
                    if (await Promise.race([asked.done.catch(() => 'late'), late()]) !== 'late') return null;
                }
                throw new Error('the kernel does not answer'); }"""
        )

    def _choose_no_kernel(self):
        dialog = self.page.locator(".jp-Dialog")
        dialog.locator("select").select_option("null")
        dialog.locator("button.jp-mod-accept").click()
        dialog.wait_for(state="detached")

    def _wait_until_open(self, timeout):
        self.page.wait_for_function(
            """path => {
                const app = window.jupyterapp, panel = app && app.shell && app.shell.currentWidget;
                return !!panel && !!panel.context && panel.context.path === path && panel.context.isReady
                    && !!panel.content && !!panel.content.widgets && panel.content.widgets.length > 0;
            }""",
            arg=self.path,
            timeout=timeout * 1000,
        )

    # A batch

    def start(self, cell, *, more=(), load="%load_ext arrea_nb\nimport arrea_nb, os, time", **options):
        """Runs `cell` as cell 1 of a new notebook, and returns when its live view has rows."""
        self.open([load, cell, *more], **options)
        self.run(0)
        self.run(1, wait=False)
        self.view(1).locator(".arrea-row").first.wait_for()

    def view(self, index):
        """The live view in a cell's output, as a Playwright locator."""
        return self.output(index).locator(".arrea")

    def job(self, index, job, *, state=None):
        """The row of a job, as a Playwright locator; of it in this state alone."""
        wanted = "" if state is None else f'[data-state="{state}"]'
        return self.view(index).locator(f'.arrea-row[data-index="{job}"]{wanted}:not([hidden])')

    def wait_state(self, index, job, state):
        """Waits until the live view shows the job in this state."""
        self.job(index, job, state=state).wait_for()

    def wait_line(self, index, job, text):
        """Waits until the last column of a job says exactly this."""
        expect(self.job(index, job).locator(".arrea-last")).to_have_text(text)

    def wait_panel(self, index, text):
        """Waits until the output panel of a live view shows exactly this."""
        self.page.wait_for_function(
            "([panel, text]) => panel.innerText.trim() === text",
            arg=[self.view(index).locator(".arrea-output").element_handle(), text],
        )

    def wait_gone(self, index):
        """Waits until the live view has left the cell."""
        self.view(index).wait_for(state="detached")

    def is_running(self, index):
        """Whether the cell's prompt says that it still runs."""
        return "*" in self.cell(index).locator(".jp-InputPrompt").first.inner_text()

    # Doing

    def run(self, index, *, wait=True, timeout=60.0):
        """Runs one cell; with wait=False it returns when the cell has been sent to the kernel."""
        self.page.evaluate(
            "index => { "
            + _PANEL
            + """
                panel.content.activeCellIndex = index;
                panel.content.deselectAll();
                const runs = window.__runs = window.__runs || {};
                runs[index] = 'running';
                app.commands.execute('notebook:run-cell').finally(() => { runs[index] = 'ended'; });
                return null; }""",
            index,
        )
        if wait:
            self.wait_idle(index, timeout=timeout)

    def run_all(self, *, wait=True, timeout=120.0):
        """Runs every cell; with wait=False it returns when they have been sent to the kernel."""
        self.page.evaluate(
            "() => { "
            + _PANEL
            + """
                const runs = window.__runs = window.__runs || {}, number = panel.content.widgets.length;
                for (let index = 0; index < number; index++) runs[index] = 'running';
                app.commands.execute('notebook:run-all-cells').finally(() => {
                    for (let index = 0; index < number; index++) runs[index] = 'ended'; });
                return null; }"""
        )
        if wait:
            self.wait_idle(timeout=timeout)

    def stop(self):
        """Presses the stop button in the notebook's toolbar."""
        button = self.page.locator('.jp-NotebookPanel-toolbar [data-jp-item-name="interrupt"]')
        button.locator("jp-button, button").first.click()

    def save(self):
        """Saves and returns the file as it is on disk."""
        self.page.evaluate("async () => { " + _PANEL + "await panel.context.save(); return null; }")
        return self.file()

    def restart_kernel(self, *, timeout=30.0):
        """Restarts the kernel as the button does, without its question."""
        self.page.evaluate(
            "async () => { " + _PANEL + "await panel.sessionContext.restartKernel(); return null; }"
        )
        self.wait_kernel("idle", timeout=timeout)

    # Waiting

    def wait_idle(self, index=None, *, timeout=60.0):
        """Waits until this cell, or every cell, has run and its prompt shows no [*]."""
        self.page.wait_for_function(
            "index => { "
            + _PANEL
            + """
                const runs = window.__runs || {};
                const ended = i => {
                    const cell = panel.content.widgets[i];
                    const prompt = cell.node.querySelector('.jp-InputPrompt');
                    return runs[i] !== 'running' && !(prompt && prompt.textContent.includes('*'));
                };
                return index === null ? panel.content.widgets.every((_, i) => ended(i)) : ended(index); }""",
            arg=index,
            timeout=timeout * 1000,
            polling=50,  # by default it looks in each frame, and has the page draw 60 of them a second
        )

    def wait_kernel(self, status, *, timeout=30.0):
        """Waits until the kernel is in this status: idle, busy, …."""
        self.page.wait_for_function(
            "status => { "
            + _PANEL
            + """
                const session = panel.sessionContext.session;
                return !!session && !!session.kernel && session.kernel.status === status
                    && session.kernel.connectionStatus === 'connected'; }""",
            arg=status,
            timeout=timeout * 1000,
        )

    def wait_text(self, index, expected, *, timeout=30.0):
        """Waits until the cell's output shows this text, or matches this pattern; returns all of it."""
        pattern = expected if isinstance(expected, re.Pattern) else re.compile(re.escape(expected))

        def shown():
            text = self.text(index)
            assert pattern.search(text), f"cell {index} does not show {pattern.pattern!r} but {text!r}"
            return text

        return self.wait_until(shown, timeout=timeout)

    def wait_until(self, check, *, timeout=30.0):
        """Calls `check`, which asserts something of the page, until it no longer fails."""
        deadline = time.monotonic() + timeout
        while True:
            try:
                return check()
            except AssertionError:
                if time.monotonic() > deadline:
                    raise
            self.page.wait_for_timeout(50)

    # Seeing: what is there now. The page paints what it is told, or asked, a little later: wait for it.

    def cell(self, index):
        """The cell's element, as a Playwright locator."""
        return self.page.locator(".jp-Notebook .jp-Cell").nth(index)

    def output(self, index):
        """The element with the cell's outputs, as a Playwright locator."""
        return self.cell(index).locator(".jp-Cell-outputWrapper")

    def text(self, index):
        """What a reader sees of the cell's outputs."""
        parts = self.output(index).locator(".jp-OutputArea-output").all_inner_texts()
        return "\n".join(part.strip() for part in parts if part.strip())

    def outputs(self, index):
        """The cell's outputs in the page's model, as nbformat dictionaries."""
        return self.page.evaluate(
            "index => { "
            + _PANEL
            + "return JSON.parse(JSON.stringify(panel.content.widgets[index].model.outputs.toJSON())); }",
            index,
        )

    def file(self):
        """The notebook as it was last saved, with every text as one string."""
        return nbformat.read(self.server.folder / self.path, as_version=4)

    def screenshot(self, path):
        """Takes a picture of the page."""
        self.page.screenshot(path=str(path))

    def close(self):
        """Leaves the page and ends its kernel."""
        self.page.close()
        self.server.shut_down_kernels()


def _code_cell(source):
    return {
        "cell_type": "code",
        "id": uuid.uuid4().hex[:8],
        "metadata": {},
        "source": source,
        "outputs": [],
        "execution_count": None,
    }


@contextlib.contextmanager
def _page(browser, server, request):
    lab = Lab(browser.new_page(), server)
    try:
        yield lab
        assert lab.external_requests == [], "something was fetched from another machine"
        # Notebook 7 has an error of its own, with or without us.
        errors = [error for error in lab.console_errors if "schema" not in error]
        assert errors == [] or request.node.get_closest_marker("kernel_ends"), errors
        if request.node.stash.get(_FAILED, False):
            _SCREENSHOTS.mkdir(exist_ok=True)
            name = re.sub(r"[^\w.-]+", "-", request.node.name)
            with contextlib.suppress(Exception):  # the picture is an extra; the page may be what broke
                lab.screenshot(_SCREENSHOTS / f"{name}.png")
    finally:
        lab.close()


@pytest.fixture
def lab(browser, lab_server, request):
    """A page in JupyterLab."""
    with _page(browser, lab_server, request) as page:
        yield page


@pytest.fixture
def notebook7(browser, notebook7_server, request):
    """A page in Notebook 7."""
    with _page(browser, notebook7_server, request) as page:
        yield page


@pytest.fixture(params=["jupyterlab", "notebook7"])
def front_end(browser, lab_server, notebook7_server, request):
    """A page in JupyterLab, then one in Notebook 7."""
    server = {"jupyterlab": lab_server, "notebook7": notebook7_server}[request.param]
    with _page(browser, server, request) as page:
        yield page


@pytest.fixture(params=[NEWEST, IPYKERNEL_73])
def kernel(request):
    """The name of a kernel: on the installed ipykernel, then on 7.3."""
    if request.param == IPYKERNEL_73:
        home, _ = request.getfixturevalue("jupyter_home")
        folder = request.getfixturevalue("ipykernel_73")
        path = os.pathsep.join(filter(None, [str(folder), os.environ.get("PYTHONPATH")]))
        _write_kernel(home, IPYKERNEL_73, {"PYTHONPATH": path})
    return request.param
