"""Breaks the code on purpose, one contract at a time, and sees whether the test that holds it fails.

    make mutations                              # all of them
    python tests/mutations.py C7 C17            # those of these contracts
    python tests/mutations.py "JS state"        # those of this module of the view

Each mutation is applied to a copy of the package in a temporary directory. Its test runs there: one of
pytest imports the copy, and one of JavaScript is itself copied beside it. It runs without the mutation first;
how long that takes says after how long a mutant is taken to hang. Exits with 1 if a mutant survived, and with
2 if nothing can be told of one: its test fails without it as well, or the code to be broken is not there.
"""

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# Seconds for one test without a mutant. With one it has three times what it took, and the rest for itself.
TIMEOUT = 100
REST = 5
MARK = "ARREA_NB_MUTANT"


@dataclass(frozen=True)
class Mutation:
    """Code of `file` that is taken out, what stands there instead, and the test that must fail then.

    The test is one of pytest's, below tests/, or `js/<file>::<name>`.
    """

    contract: str
    what: str
    file: str
    old: str
    new: str
    test: str


MUTATIONS = [
    Mutation(
        "C2",
        "a job that waits for its retry keeps its place",
        "_places.py",
        "        if job.away:\n            job.away = False\n            return\n",
        "        if job.away or job.stop is None:\n            job.away = False\n            return\n",
        "test_contracts_running.py::test_c10_a_retry_runs_again_after_the_delay_and_frees_the_worker",
    ),
    Mutation(
        "C3",
        "the newest batch and its last job come first",
        "_places.py",
        "        job = jobs[batch.next_new]\n",
        "        job = jobs[-1 - batch.next_new]\n",
        "test_contracts_admission.py::test_c3_first_attempts_begin_in_the_order_given_and_results_come_in_it",
    ),
    Mutation(
        "C5",
        "the rest of the process group is not killed",
        "workers/_process.py",
        "            os.killpg(self.pid, signal.SIGKILL)\n        except (Proc",
        "            pass\n        except (Proc",
        "test_contracts_running.py::test_c5_what_was_left_in_the_background_is_stopped_and_noted",
    ),
    Mutation(
        "C5",
        "after the end a pipe is read for as long as somebody writes",
        "workers/_shell.py",
        "            while left > 0 and fd in",
        "            while fd in",
        "test_contracts_running.py"
        "::test_c5_who_holds_the_pipe_and_writes_for_ever_does_not_keep_a_job_from_ending",
    ),
    Mutation(
        "C6",
        "no SIGKILL after the grace",
        "workers/_shell.py",
        "            process.signal(signal.SIGKILL)\n",
        "            process.signal(signal.SIGTERM)\n",
        "test_contracts_running.py::test_c6_a_group_that_ignores_sigterm_is_killed_after_the_grace",
    ),
    Mutation(
        "C7",
        "a stop that comes when the callable has returned takes its worker down",
        "workers/_threads.py",
        "        except StopJob:\n            # It came in one",
        "        except ZeroDivisionError:\n            # It came in one",
        "test_contracts_running.py::test_c7_a_stop_outside_of_the_callable_is_for_its_job_only[returned]",
    ),
    Mutation(
        "C7",
        "a callable that was stopped as it was handed out is called all the same",
        "workers/_threads.py",
        "                if job.stop is None and not self.lost:\n"
        "                    result = run_python(attempt)\n",
        "                result = run_python(attempt)\n",
        "test_contracts_running.py::test_c7_a_stop_outside_of_the_callable_is_for_its_job_only[handed out]",
    ),
    Mutation(
        "C8",
        "a cancel stops the workers of other batches as well",
        "_engine.py",
        "            if worker.job is job and not worker.lost:\n",
        "            if worker.job is not None and not worker.lost:\n",
        "test_contracts_running.py::test_c8_cancelling_one_batch_touches_no_other",
    ),
    Mutation(
        "C9",
        "no JobEnded for a job that is cancelled before it has run",
        "_ledger.py",
        "            if batch.heard:\n                self._publish(self._job_ended(job, at))\n",
        "            if batch.heard and job.attempt:\n"
        "                self._publish(self._job_ended(job, at))\n",
        "test_contracts_running.py::test_c9_every_job_ends_once_and_batch_ended_comes_after_all",
    ),
    Mutation(
        "C9",
        "a second JobEnded for a job that was timed out",
        "_ledger.py",
        "            if batch.heard:\n                self._publish(self._job_ended(job, at))\n",
        "            if batch.heard:\n                self._publish(self._job_ended(job, at))\n"
        "                if state is TIMED_OUT:\n"
        "                    self._publish(self._job_ended(job, at))\n",
        "test_soak.py::test_c9_c19_no_job_is_lost_and_nothing_left_over[callables]",
    ),
    Mutation(
        "C10",
        "a retry does not run the command again",
        "_ledger.py",
        "            if job.state is WAITING:\n                job.batch.due.append(job)\n",
        "            if job.state is WAITING:\n                self._end(job, FAILED, job.error, now, now)\n",
        "test_contracts_running.py::test_c10_a_retry_runs_again_after_the_delay_and_frees_the_worker",
    ),
    Mutation(
        "C12",
        "what was in memory is lost when output is spooled",
        "workers/_output.py",
        "        filed, why = self._file((pending, data), filed)\n",
        "        filed, why = self._file((b'.' * len(pending), data), filed)\n",
        "test_contracts_output.py::test_c12_a_hundred_jobs_that_print_a_megabyte_show_all_of_it",
    ),
    Mutation(
        "C12",
        "what a finaliser prints in the middle of a write tears it",
        "workers/_output.py",
        "        if self._lock._is_owned():",
        "        if self is None:",
        "test_output.py::test_a_finaliser_that_writes_in_the_middle_of_a_write_comes_after_it",
    ),
    Mutation(
        "C13",
        "what is written after an attempt's end is kept",
        "workers/_python.py",
        "        if self.over or not text:\n",
        "        if not text:\n",
        "test_contracts_output.py::test_c13_what_is_written_after_the_end_is_dropped",
    ),
    Mutation(
        "C13",
        "every attempt writes to the one that began last",
        "workers/_capture.py",
        "    return running.get() if _installed else None\n",
        "    global _latest\n    mine = running.get() if _installed else None\n"
        "    _latest = mine if mine is None or _latest is None else _latest\n"
        "    return mine and _latest\n\n\n_latest: Reporter | None = None\n",
        "test_contracts_output.py::test_c13_what_a_callable_prints_goes_to_its_own_job_only",
    ),
    Mutation(
        "C15",
        "events are delivered outside the lock, each by a thread of its own",
        "_engine.py",
        "        self.ledger = Ledger(self.broadcast.publish, settings.max_workers)\n",
        "        def publish(event: Any) -> None:\n"
        "            threading.Thread(target=self.broadcast.publish, args=(event,), daemon=True).start()\n\n"
        "        self.ledger = Ledger(publish, settings.max_workers)\n",
        "test_contracts_events.py::test_c15_events_are_enqueued_under_the_leaders_lock",
    ),
    Mutation(
        "C16",
        "lifecycle events are dropped past mailbox_size",
        "_broadcast.py",
        "        if isinstance(event, _DROPPABLE):\n",
        "        if isinstance(event, Event):\n",
        "test_contracts_events.py::test_c16_output_past_the_mailbox_is_dropped_and_counted_and_lifecycle_never",
    ),
    Mutation(
        "C17",
        "the guard is not told of a job's process group",
        "workers/_shell.py",
        "            guard.add(process.pid)\n",
        "",
        "faults/test_kernel_end.py::test_a_process_that_cleared_its_environment_but_not_its_group_ends_with_the_kernel",
    ),
    Mutation(
        "C17",
        "the guard does not look for processes that carry the kernel's id",
        "workers/_guard_script.py",
        "    _sweep(kernel_id)\n    _remove(spool_directory)\n",
        "    _remove(spool_directory)\n",
        "faults/test_kernel_end.py::test_nothing_of_a_kernel_is_left_two_seconds_after_its_end[kill]",
    ),
    Mutation(
        "C18",
        "the sweep removes batches that run",
        "_engine.py",
        "        over = self.ledger.over\n",
        "        over = self.ledger.batches\n",
        "test_contracts_lifecycle.py::test_c18_the_latest_are_kept_and_the_oldest_go",
    ),
    Mutation(
        "C19",
        "what a retried attempt printed is held by its error",
        "workers/_python.py",
        "        self._output = None\n\n    # What",
        "\n    # What",
        "test_soak.py::test_c9_c19_no_job_is_lost_and_nothing_left_over[batches]",
    ),
    Mutation(
        "C21",
        "a job is lost with the worker that dies of a bug",
        "_engine.py",
        "            self.ledger.crashed({one.job for one in",
        "            ({one.job for one in",
        "test_contracts_lifecycle.py::test_c21_a_worker_that_dies_of_a_bug_is_replaced_and_its_job_crashed",
    ),
    Mutation(
        "rule 1",
        "an interrupt that came inside a section is not raised at its end",
        "_section.py",
        "                    signal.signal(signal.SIGINT, before)\n                finally:\n"
        "                    signal.raise_signal(signal.SIGINT)\n",
        "                    signal.signal(signal.SIGINT, before)\n                finally:\n"
        "                    pass\n",
        "test_interrupts.py::test_stop_while_execute_admits_ten_thousand_commands",
    ),
    Mutation(
        "rule 1",
        "interrupts are not held back in a section",
        "_section.py",
        "                signal.signal(signal.SIGINT, _note)\n",
        "                pass\n",
        "test_interrupts.py::test_stop_while_execute_admits_ten_thousand_commands",
    ),
    Mutation(
        "§5.4",
        "an interrupt that is held back does not end the wait of a cell",
        "_section.py",
        "        bell.put(None)\n",
        "        pass\n",
        "test_interrupts.py::test_stop_at_every_moment_of_a_cell[as it is about to wait]",
    ),
    Mutation(
        "C18",
        "the sweep plans no further look",
        "_engine.py",
        "        self._sweep_at = None\n        return self._plan_sweep(now)\n",
        "        self._sweep_at = None\n        return None\n",
        "test_contracts_lifecycle.py::test_c18_a_batch_that_was_young_goes_at_a_later_look",
    ),
    Mutation(
        "C6",
        "a later grace takes the place of a shorter one",
        "_ledger.py",
        "            job.grace = min(grace, job.grace) if job.stop is not None else grace\n",
        "            job.grace = grace\n",
        "test_contracts_running.py::test_c6_a_later_cancel_does_not_lengthen_the_grace_of_an_earlier_one",
    ),
    Mutation(
        "C13",
        "a nested batch keeps its parent's reporter",
        "_engine.py",
        "        batch.context.run(running.set, None)\n",
        "",
        "test_contracts_output.py::test_c13_a_nested_batch_does_not_print_into_its_parent_and_does_not_hold_it",
    ),
    Mutation(
        "C16",
        "one callback for two batches shares one subscription",
        "_broadcast.py",
        " and (any_batch or one.batch_id == batch_id)",
        "",
        "test_contracts_events.py::test_one_callback_for_two_batches_is_two_subscriptions",
    ),
    Mutation(
        "C19",
        "a loop over as_completed that is left leaves its latch behind",
        "_waits.py",
        "        self._register.unregister(self._target, self.latch)\n\n    def take",
        "        pass\n\n    def take",
        "test_contracts_lifecycle.py::test_c19_a_loop_over_as_completed_that_is_left_early_leaves_nothing",
    ),
    Mutation(
        "C13",
        "half a character of a job is finished by a nested one",
        "workers/_capture.py",
        "        if known is None or known[0] is not self._reporter:\n",
        "        if known is None:\n",
        "test_contracts_output.py::test_c13_a_nested_batch_does_not_finish_its_parents_characters",
    ),
    Mutation(
        "§5",
        "output of a new attempt is sent before its row",
        "notebook/_frames.py",
        "            if job.attempt != self._sent.get(index, _UNTOLD)[1]:\n",
        "            if not self._sent:\n",
        "test_frames.py::test_an_attempt_that_begins_while_a_frame_is_made_is_told_before_its_output",
    ),
    Mutation(
        "§5",
        "the shell is asked with the files that it reads first",
        "notebook/_cells.py",
        'for name, value in os.environ.items() if name not in {"BASH_ENV", "ENV"}}',
        "for name, value in os.environ.items()}",
        "test_magic.py::test_a_file_that_shells_read_first_is_not_asked_about",
    ),
    Mutation(
        "JS terminal",
        "ESC[1K erases to the end",
        "notebook/static/terminal.js",
        "kind === 0 ? this.column : 0, kind",
        "kind !== 2 ? this.column : 0, kind",
        "js/terminal.test.js::a line is erased to its end, to its beginning and the cursor, or whole",
    ),
    Mutation(
        "JS terminal",
        "ESC[1K erases the whole line",
        "notebook/static/terminal.js",
        "kind === 1 ? this.column + 1 : line.length",
        "line.length",
        "js/terminal.test.js::a line is erased to its end, to its beginning and the cursor, or whole",
    ),
    Mutation(
        "JS terminal",
        "what lies before the cursor takes its style",
        "notebook/static/terminal.js",
        'this.append(PLAIN, " ".repeat(',
        'this.append(style, " ".repeat(',
        "js/terminal.test.js::what is written past a line's end has its own style, what lies between none",
    ),
    Mutation(
        "JS terminal",
        "a style lasts over what was never sent",
        "notebook/static/terminal.js",
        "    this.row = this.lines.length - 1;\n    this.column = 0;\n    this.style = PLAIN;\n",
        "    this.row = this.lines.length - 1;\n    this.column = 0;\n",
        "js/terminal.test.js::what follows a gap has no style: nobody knows which it had",
    ),
    Mutation(
        "JS terminal",
        "the panel is not told of lines that are dropped",
        "notebook/static/terminal.js",
        "      this.removed.push(line);\n",
        "",
        "js/terminal.test.js::lines that are dropped are told, in their order, so that they leave the panel",
    ),
    Mutation(
        "JS line",
        "a command is sent again on every tick",
        "notebook/static/line.js",
        "now - command.sent > RESEND",
        "now > command.sent",
        "js/view.test.js::a command is sent again at its interval and not on every tick, until it is known",
    ),
    Mutation(
        "JS line",
        "once sent again, a command is sent on every tick",
        "notebook/static/line.js",
        "        command.sent = now;\n",
        "",
        "js/view.test.js::a command is sent again at its interval and not on every tick, until it is known",
    ),
    Mutation(
        "JS line",
        "a kernel counts as lost before its first picture",
        "notebook/static/line.js",
        "running && this.expected !== null && this",
        "running && this",
        "js/view.test.js::a kernel is not lost that has not sent its first picture yet",
    ),
    Mutation(
        "JS line",
        "a kernel that was gone stays so when it is heard again",
        "notebook/static/line.js",
        "    this.heard = this.now();\n    this.gone = false;\n",
        "    this.heard = this.now();\n",
        "js/view.test.js::a kernel that comes back is not lost any more, and is spoken to again",
    ),
    Mutation(
        "JS line",
        "a frame does not end the silence",
        "notebook/static/line.js",
        "    this.heard = this.now();\n    this.gone = false;\n",
        "    this.gone = false;\n",
        "js/view.test.js::a kernel that is silent too long is lost, and one whose comm is closed at once",
    ),
    Mutation(
        "JS line",
        "in doubt the hello waits its turn",
        "notebook/static/line.js",
        "  doubt() {\n    this.greeted = Number.NEGATIVE_INFINITY;\n",
        "  doubt() {\n",
        "js/view.test.js::in doubt the kernel is asked at once, however shortly after the last hello",
    ),
    Mutation(
        "JS state",
        "what an attempt printed is added to the next one's output",
        "notebook/static/state.js",
        "    if (edition < job.edition) return; // that of an attempt before\n",
        "",
        "js/state.test.js::output belongs to its attempt",
    ),
    Mutation(
        "JS state",
        "what an attempt printed is shown until the next one prints",
        "notebook/static/state.js",
        "      this.output = null; // that of the attempt before\n",
        "",
        "js/state.test.js::output belongs to its attempt",
    ),
    Mutation(
        "JS state",
        "by duration, jobs that have not begun come first",
        "notebook/static/state.js",
        "job.elapsed(now) ?? -1",
        "job.elapsed(now) ?? Infinity",
        "js/state.test.js::by duration, jobs that have not begun come last",
    ),
    Mutation(
        "JS state",
        "skipped jobs count as failed",
        "notebook/static/state.js",
        'new Set(["failed", "timed_out"]);',
        'new Set(["failed", "timed_out", "skipped"]);',
        "js/state.test.js::a skipped job has ended and has not failed",
    ),
    Mutation(
        "JS rows",
        "a skipped job says twice that it was skipped",
        "notebook/static/rows.js",
        'error && job.state !== "skipped" ? oneLine',
        "error ? oneLine",
        "js/view.test.js::a skipped job says so where others say how they ended, and not twice",
    ),
    Mutation(
        "JS rows",
        "the policy is asked unseen",
        "notebook/static/rows.js",
        '  if (job.asking) return "asking the policy";\n',
        "",
        "js/view.test.js::while the policy is asked, a running job says so and its clock stands",
    ),
    Mutation(
        "JS state",
        "the clock goes on while the policy is asked",
        "notebook/static/state.js",
        '"running" && !this.asking ?',
        '"running" ?',
        "js/view.test.js::while the policy is asked, a running job says so and its clock stands",
    ),
    Mutation(
        "JS view",
        "every picture opens the timeline",
        "notebook/static/view.js",
        "      if (first) this.timeline",
        "      this.timeline",
        "js/render.test.js::a second view leaves the first as it is, and shares nothing with it",
    ),
    Mutation(
        "JS state",
        "every picture makes new jobs",
        "notebook/static/state.js",
        "      if (this.jobs.length) for (const job of this.jobs) job.retold();\n      else this.jobs",
        "      this.jobs",
        "js/render.test.js::a second view leaves the first as it is, and shares nothing with it",
    ),
    Mutation(
        "JS state",
        "output that is told once more takes the place of what is known",
        "notebook/static/state.js",
        "job.edition === 0 && job.output?.exact",
        "false",
        "js/state.test.js::what is known stays although a later picture leaves it out",
    ),
    Mutation(
        "JS state",
        "output that is told once more is added to what is known",
        "notebook/static/state.js",
        "    this.output?.retold();\n",
        "",
        "js/state.test.js::of output that is told once more, what is new is added and heard alone",
    ),
    Mutation(
        "JS output",
        "the panel goes on with an attempt that is over",
        "notebook/static/output.js",
        "    if (this.job.output !== this.output) this.load(this.job.output);\n",
        "",
        "js/render.test.js::the panel shows the attempt that runs, and nothing of the one before",
    ),
    Mutation(
        "JS output",
        "lines that were dropped stay in the panel",
        "notebook/static/output.js",
        "      nodes.get(line)?.remove();\n",
        "",
        "js/render.test.js::lines that the terminal dropped leave the panel",
    ),
]


def main(wanted: list[str]) -> int:
    """Tries the mutations of these contracts, or all. Returns the exit code."""
    chosen = [one for one in MUTATIONS if not wanted or one.contract in wanted]
    survived = wrong = 0
    patience = {}  # of the tests that pass without a mutant; the others tell nothing
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        whole = _copy(Path(folder))
        for test in dict.fromkeys(one.test for one in chosen):
            began = time.monotonic()
            code, printed = _run(whole, test, TIMEOUT)
            if code == 0:
                patience[test] = REST + 3 * (time.monotonic() - began)
            else:
                print(f"fails without a mutant: {test}\n{printed}", flush=True)
    for one in chosen:
        with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
            began = time.monotonic()
            verdict = "CANNOT TELL"
            if one.test in patience:
                verdict = _tried(one, _copy(Path(folder)), patience[one.test])
            survived += verdict == "SURVIVED"
            wrong += verdict == "CANNOT TELL"
            took = time.monotonic() - began
            print(f"{one.contract:11} {verdict:26} {took:4.0f} s  {one.what}\n{'':47}{one.test}", flush=True)
    killed = len(chosen) - survived - wrong
    print(f"\n{len(chosen)} mutants: {killed} killed, {survived} survived, of {wrong} nothing can be told")
    return 2 if wrong else int(survived > 0)


def _copy(folder: Path) -> Path:
    shutil.copytree(ROOT / "arrea_nb", folder / "arrea_nb", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(ROOT / "tests" / "js", folder / "tests" / "js")
    shutil.copy(ROOT / "package.json", folder)  # which says that these are ES modules
    return folder


def _tried(mutation: Mutation, folder: Path, timeout: float) -> str:
    path = folder / "arrea_nb" / mutation.file
    source = path.read_text()
    if source.count(mutation.old) != 1:
        return "CANNOT TELL"
    path.write_text(source.replace(mutation.old, mutation.new))
    code, printed = _run(folder, mutation.test, timeout)
    if code == 1:
        return "killed, by waiting in vain" if "from pytest-timeout" in printed else "killed"
    return "CANNOT TELL" if code else "SURVIVED"


def _run(folder: Path, test: str, timeout: float) -> tuple[int, str]:
    """Runs one test with this copy of the package.

    Returns:
        0 if it passes, 1 if it fails, another number if it could not run; and what was printed.
    """
    return (_node if test.startswith("js/") else _pytest)(folder, test, timeout)


def _node(folder: Path, test: str, timeout: float) -> tuple[int, str]:
    file, name = test.split("::", 1)
    command = ["node", "--test", "--test-reporter=tap", f"--test-name-pattern=^{re.escape(name)}$"]
    command += [f"--test-timeout={1000 * timeout:.0f}", f"tests/{file}"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    # Of a file that cannot be read, or has no such test, node says nothing under this name.
    found = re.search(rf"^ *(not )?ok \d+ - {re.escape(name)}$", done.stdout, re.MULTILINE)
    return (2 if found is None else int(bool(found[1]))), done.stdout + done.stderr


def _pytest(folder: Path, test: str, timeout: float) -> tuple[int, str]:
    """Runs a test of Python, and ends whatever the mutant left."""
    mark = uuid.uuid4().hex
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-x",
        "-p",
        "no:cacheprovider",
        f"--timeout={timeout:.0f}",
    ]
    log = folder / "pytest.log"  # a pipe would stay open as long as whoever a mutant left behind
    with log.open("wb") as output:
        done = subprocess.run(
            [*command, "-c", ROOT / "pyproject.toml", f"--rootdir={ROOT}", ROOT / "tests" / test],
            cwd=folder,  # `-m` puts it first on the path
            env={**os.environ, "PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1", MARK: mark},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            check=False,
        )
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                if f"{MARK}={mark}".encode() in (entry / "environ").read_bytes().split(b"\0"):
                    os.kill(int(entry.name), signal.SIGKILL)
            except OSError:
                continue  # it has ended, or is another user's
    return done.returncode, log.read_text(errors="replace")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
