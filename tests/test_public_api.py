"""The exported names, their signatures, and what the small print says of them."""

import inspect
import pickle
import subprocess
import sys

import pytest

import arrea_nb
from arrea_nb import errors, events

NAMES = {
    "Batch",
    "BatchSnapshot",
    "Job",
    "JobSnapshot",
    "JobState",
    "Leader",
    "LeaderState",
    "Policy",
    "ShellResult",
    "Subscription",
    "execute",
    "get_state",
    "load_ipython_extension",
    "map",
    "notify_event",
    "progress",
    "run",
    "subscribe",
    "track",
    "unload_ipython_extension",
    "unsubscribe",
}
LONG = 60.0


def test_the_exported_names():
    assert set(arrea_nb.__all__) == NAMES
    assert set(dir(arrea_nb)) >= NAMES
    for name in NAMES:
        assert getattr(arrea_nb, name).__doc__
    with pytest.raises(AttributeError, match="module 'arrea_nb' has no attribute 'sweep'"):
        arrea_nb.sweep  # noqa: B018


def test_the_signatures():
    def plain(function):
        return {name: one.default for name, one in inspect.signature(function).parameters.items()}

    assert plain(arrea_nb.subscribe) == {"callback": None, "batch": None, "mailbox_size": 10_000}
    assert list(plain(arrea_nb.progress)) == ["done", "total", "message"]
    assert list(plain(arrea_nb.track)) == ["iterable", "total"]
    assert list(plain(arrea_nb.map)) == ["function", "iterables", "options"]
    assert list(plain(arrea_nb.notify_event)) == ["event"]
    assert plain(arrea_nb.get_state) == {}
    assert plain(arrea_nb.Policy) == {
        "on_error": "continue",
        "retries": 0,
        "retry_delay": 1.0,
        "backoff": 2.0,
        "max_delay": 60.0,
    }


def test_the_defaults_are_traits_of_the_leader():
    leader = arrea_nb.Leader.instance()
    assert {name: getattr(leader, name) for name in leader.class_own_traits(config=True)} == {
        "workers": 4,
        "timeout": 30.0,
        "max_commands": 100,
        "max_workers": 100,
        "cleanup_interval": 60.0,
        "batch_retention": 300.0,
        "keep_batches": 20,
        "grace": 2.0,
        "shell": "/bin/sh",
        "max_output_bytes": 1 << 30,
        "memory_output_bytes": 256 << 10,
    }
    leader.workers, leader.timeout = 2, 600
    batch = arrea_nb.execute([int])
    assert (batch.workers, batch.timeout) == (2, 600.0)
    assert batch.wait(timeout=LONG)


def test_importing_the_package_starts_nothing_heavy():
    script = "import sys, arrea_nb; print([m for m in ('IPython', 'traitlets') if m in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=LONG, check=True
    )
    assert done.stdout == "[]\n"


def test_event_types_are_their_names_in_snake_case():
    for name in events.__all__:
        if name not in {"Event", "JobState"}:
            snake = "".join("_" + letter.lower() if letter.isupper() else letter for letter in name)[1:]
            assert getattr(events, name).type == snake


@pytest.mark.parametrize("name", errors.__all__)
def test_every_error_is_an_arrea_error_and_pickles(name):
    kind = getattr(errors, name)
    assert issubclass(kind, errors.ArreaError)
    arguments = {
        "TooManyCommandsError": ("why", 3, 2),
        "AllWorkersFailedError": ("why", 1, [ValueError("x")]),
        "CommandFailed": ("why", None, 9, "tail"),
        "BatchFailed": ("why", [ValueError("x")]),
    }.get(name, ("why",))
    error = kind(*arguments)
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), str(again)) == (kind, "why")
    for field in ("count", "limit", "exit_code", "signal", "output"):
        assert getattr(again, field, None) == getattr(error, field, None)


def test_batch_failed_keeps_its_type_through_split_and_except_star():
    batch = arrea_nb.execute(["exit 3", lambda: 1 / 0])
    with pytest.raises(errors.BatchFailed) as raised:
        batch.results(timeout=LONG)
    matched, rest = raised.value.split(ZeroDivisionError)
    assert (type(matched), type(rest)) == (errors.BatchFailed, errors.BatchFailed)
    caught = []
    try:
        raise raised.value
    except* errors.CommandFailed as group:
        caught.append(type(group))
    except* ZeroDivisionError as group:
        caught.append(type(group))
    assert caught == [errors.BatchFailed] * 2
    assert arrea_nb.execute([int]).results(timeout=LONG) == [0]


def test_run_and_map_return_the_values(capsys):
    assert arrea_nb.run([int, "echo x"]) == [0, (0, "x\n", "")]
    assert arrea_nb.map(pow, [2, 3], [3, 2]) == [8, 9]
    assert arrea_nb.map(str, []) == []
    with pytest.raises(errors.BatchFailed):
        arrea_nb.run(["false"])


def test_retry_failed_runs_what_did_not_succeed_again(tmp_path):
    batch = arrea_nb.execute(
        {"good": "echo x >> good", "bad": "[ -e there ]"}, cwd=tmp_path, name="mine", timeout=9
    )
    assert batch.wait(timeout=LONG)
    (tmp_path / "there").touch()
    again = batch.retry_failed(workers=1)
    assert again.wait(timeout=LONG)
    assert (again.state, len(again), again[0].name) == ("succeeded", 1, "bad")
    assert (again.name, again.timeout, again.workers) == ("mine", 9.0, 1)
    assert (tmp_path / "good").read_text() == "x\n"


def test_records_and_frame():
    pandas = pytest.importorskip("pandas")
    batch = arrea_nb.execute(["exit 3", int])
    assert batch.wait(timeout=LONG)
    first = batch.records()[0]
    assert (first["state"], first["exit_code"], first["error"]) == ("failed", 3, "exit 3")
    assert isinstance(batch.to_frame(), pandas.DataFrame)
    assert list(batch.to_frame()["state"]) == ["failed", "succeeded"]
