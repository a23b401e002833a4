"""What a batch exports to its jobs stays between the two: nobody else is shown it, nowhere is it saved."""

import functools
import json
import logging
import pickle

import nbformat
import pytest
from nbclient import NotebookClient

import arrea_nb
from arrea_nb._leader import Leader
from arrea_nb.notebook import _summary, _timeline

SECRET = "hunter-" + "2" * 20
# It is there, and is used: what follows is not empty for want of a secret.
USES = 'test "${#TOKEN}" -eq 27'


@pytest.fixture
def leader():
    with Leader(grace=0.1) as made:
        yield made


def test_the_environment_is_in_no_event_record_repr_error_or_view(leader, caplog):
    caplog.set_level(logging.DEBUG, logger="arrea_nb")
    heard = []
    leader.subscribe(heard.append)
    batch = leader.execute(
        [USES, f"{USES}; exit 3", f"{USES}; sleep 60", ["no-such-program"], lambda: 1 / 0],
        env={"TOKEN": SECRET},
        policy={"retries": 1, "retry_delay": 0},
        timeout=0.5,
        log=True,
    )
    assert batch.wait(60)
    assert [str(job.state) for job in batch] == ["succeeded", "failed", "timed_out", "failed", "failed"]
    again = batch.retry_failed(env={"TOKEN": SECRET + "x"})
    assert again.wait(60)

    seen = [repr(batch), str(batch), repr(list(batch)), repr(batch.records()), batch.to_frame().to_string()]
    seen += [_summary.text(batch), _summary.html(batch), _timeline.svg(batch, _timeline.runs(batch))]
    for job in batch:
        seen += [repr(job.command), repr(job.attempts), repr(job.value), job.output, repr(job.error)]
    seen += [repr(batch._record), repr(batch[1]._record)]  # what %xmode Verbose shows of our frames
    failure = batch.failure()
    seen += [str(failure), repr(failure), repr(failure.exceptions), repr(leader.get_state())]
    seen += [repr(pickle.dumps(failure)), repr(leader), *map(repr, heard), caplog.text]

    assert any("3" in text for text in seen)
    for text in seen:
        assert SECRET not in text
    assert heard


def test_the_live_view_is_not_told_it(leader):
    from arrea_nb.notebook._live import Frames

    batch = leader.execute([USES, f"{USES}; exit 3"], env={"TOKEN": SECRET})
    assert batch.wait(60)
    frames = Frames(batch)
    sent = json.dumps([frames.picture(0.0), *(frames.frame(float(at)) for at in (1, 2))])
    assert "exit 3" in sent
    assert SECRET not in sent


def test_a_saved_notebook_does_not_hold_a_variable_that_was_exported(monkeypatch):
    monkeypatch.setenv("TEST_SECRET", SECRET)
    cells = [
        "%load_ext arrea_nb\nimport os\nTOKEN = os.environ['TEST_SECRET']",
        f"%%arrea -e TOKEN --no-raise --log --retries 1 --retry-delay 1ms\n{USES}\n{USES}; exit 3\nprogram-x",
        "_arrea.jobs, _arrea.records(), _arrea.retry_failed()",
        "_arrea",
    ]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in cells])
    NotebookClient(notebook, timeout=60, kernel_name="python3").execute()
    saved = nbformat.writes(notebook)
    assert "3 jobs: 2 failed, 1 succeeded" in saved
    assert SECRET not in saved


def test_a_callable_is_named_without_looking_into_what_hides_itself():
    class Token(str):
        """Hides itself, as the secrets of many libraries do."""

        __slots__ = ()

        def __repr__(self):
            return "Token('***')"

    batch = arrea_nb.execute([functools.partial(len, Token(SECRET))])
    assert batch.results(30) == [27]
    assert "***" in batch[0].name
    assert SECRET not in _summary.html(batch) + _summary.text(batch) + repr(batch[0])
