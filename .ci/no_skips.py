"""A pytest plugin (-p no_skips): a run that did not run every test, or expected one to fail, has failed."""

import pytest

_NOT_RUN = ("skipped", "deselected", "xfailed")


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Turns a run that looks green into a failed one when it did not run everything."""
    if session.exitstatus == pytest.ExitCode.OK and _count(session.config):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Says why the run failed, where a reader looks for it."""
    for outcome, number in _count(config).items():
        terminalreporter.write_line(f"no_skips: {number} {outcome}; here every test has to run", red=True)


def _count(config: pytest.Config) -> dict[str, int]:
    reporter = config.pluginmanager.get_plugin("terminalreporter")
    stats = reporter.stats if reporter else {}
    return {outcome: len(stats[outcome]) for outcome in _NOT_RUN if stats.get(outcome)}
