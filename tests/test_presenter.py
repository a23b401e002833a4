"""The presenter and its live view, without a browser: the test says what one would say."""

import logging
import signal
import threading
import time
from contextvars import ContextVar
from itertools import pairwise
from types import SimpleNamespace

import pytest
from comm import DummyComm
from IPython.core.events import EventManager, available_events

from arrea_nb import _views
from arrea_nb._leader import Leader
from arrea_nb.notebook import _live, _presenter, _stage
from arrea_nb.notebook._live import Frames, LiveView
from arrea_nb.notebook._presenter import Presenter

LONG = 30.0
cell = ContextVar("cell", default="none")


class Recorder:
    """Keeps what happens and waits for what is to happen."""

    def __init__(self):
        self.items = []
        self._changed = threading.Condition()

    def add(self, item):
        with self._changed:
            self.items.append(item)
            self._changed.notify_all()

    def wait_for(self, wanted):
        """Waits until one of the items is as wanted; returns it."""

        def found():
            return next((item for item in self.items if wanted(item)), None)

        with self._changed:
            assert self._changed.wait_for(lambda: found() is not None, LONG), self.items
            return found()


class Shell:
    """As much of an IPython shell as the presenter asks for; with a kernel it has comms."""

    def __init__(self, *, kernel=True):
        self.events = EventManager(self, available_events)
        if kernel:
            self.kernel = None

    def begin_cell(self):
        self.events.trigger("pre_run_cell", SimpleNamespace())

    def end_cell(self):
        self.events.trigger("post_run_cell", SimpleNamespace())


@pytest.fixture
def shell():
    return Shell()


@pytest.fixture
def shown(monkeypatch):
    """What was displayed: its data, whether it replaced something, and in which cell."""
    recorder = Recorder()

    def publish(data, *, transient=None, update=False):
        recorder.add(SimpleNamespace(data=data, transient=transient, update=update, cell=cell.get()))

    monkeypatch.setattr(_stage, "_publish", publish)
    return recorder


@pytest.fixture
def sent(monkeypatch):
    """What was sent to the browser: the message, when, in which cell and from which thread."""
    recorder = Recorder()

    def send(view, message):
        recorder.add(
            SimpleNamespace(
                kind=message["kind"],
                message=message,
                at=time.monotonic(),
                cell=cell.get(),
                thread=threading.current_thread().name,
                view=view,
            )
        )

    monkeypatch.setattr(LiveView, "send", send)
    return recorder


@pytest.fixture
def leader():
    with Leader(grace=0.1) as made:
        yield made
        _views.show_with(None)


@pytest.fixture
def presenter(shell, leader, shown, sent):
    made = Presenter(shell)
    _views.show_with(made.show, made.widget, made.waited)
    yield made
    for batch in leader._engine.batches():
        batch.cancel()
        assert batch.wait(LONG)
    made.close()


def say(view, **message):
    """What the kernel does when the browser sends a message."""
    view._handle_custom_msg({"client": "test", **message}, [])


def summaries(shown):
    return [item for item in shown.items if "text/html" in item.data]


def promises(shown):
    return [item for item in shown.items if "started; wait()" in item.data.get("text/plain", "")]


def printed(sent, job):
    """The pieces of this job's output in the order in which they were sent."""
    return [
        "".join(text for _, text in pieces)
        for item in sent.items
        for index, _, _, pieces in item.message.get("output", ())
        if index == job
    ]


def wait_idle():
    """Waits until the presenter's thread has ended."""
    for thread in threading.enumerate():
        if thread.name == "arrea-presenter":
            thread.join(LONG)
            assert not thread.is_alive()


# Cells that wait


def test_a_cell_that_waits_ends_with_the_summary_in_the_place_of_the_view(leader, presenter, shown, sent):
    leader.run(["true", "echo hello"])
    view, gone, summary = shown.items
    assert list(view.data) == ["application/vnd.jupyter.widget-view+json", "text/plain"]
    assert gone.data == {"text/plain": view.data["text/plain"]} == {"text/plain": ""}
    assert gone.update
    assert gone.transient == view.transient
    assert summary.data["text/plain"].startswith("2 jobs succeeded")
    assert "hello" in summary.data["text/html"]
    wait_idle()


def test_without_a_browser_no_frame_is_built(leader, presenter, sent, monkeypatch):
    def never(*_):
        raise AssertionError

    monkeypatch.setattr(Frames, "frame", never)
    monkeypatch.setattr(Frames, "picture", never)
    leader.run(["seq 1 1000", "false; true"])
    wait_idle()
    assert sent.items == []


def test_finish_shows_one_summary_however_many_ask_for_it(leader, presenter, shown):
    batch = leader.execute(["true"])
    view = _views.show(batch)
    assert batch.wait(LONG)
    asking = [threading.Thread(target=view.finish) for _ in range(8)]
    for thread in asking:
        thread.start()
    for thread in asking:
        thread.join(LONG)
    _views.waited(batch)
    assert len(summaries(shown)) == 1


def test_a_batch_that_is_over_shows_its_summary_as_often_as_asked(leader, presenter, shown):
    batch = leader.execute(["true"])
    assert batch.wait(LONG)
    batch._ipython_display_()
    batch._ipython_display_()
    assert batch.wait(LONG)
    assert len(shown.items) == len(summaries(shown)) == 2


# Cells that do not wait


def test_a_cell_that_ends_before_its_batch_leaves_a_text_that_stays_true(leader, presenter, shell, shown):
    batch = leader.execute(["sleep 60", "sleep 61"])
    _views.show(batch)
    assert promises(shown) == []
    shell.end_cell()
    assert [item.data for item in promises(shown)] == [
        {"text/plain": "2 jobs started; wait() shows the summary"}
    ]
    assert summaries(shown) == []


def test_a_batch_that_is_over_soon_leaves_its_summary_in_the_cell_that_shows_it(
    leader, presenter, shell, shown
):
    batch = leader.execute(["sleep 0.05"])
    _views.show(batch)
    shell.end_cell()
    assert promises(shown) == []
    shell.begin_cell()
    assert batch.results()
    assert len(summaries(shown)) == 1


def test_an_interrupt_at_the_end_of_a_cell_is_no_error(leader, presenter, shell, shown, monkeypatch):
    monkeypatch.setattr(_presenter, "_PATIENCE", LONG)
    gate = threading.Event()
    batch = leader.execute([gate.wait], timeout=None)
    _views.show(batch)

    def press():
        while not batch._record.latches:
            time.sleep(0.01)
        signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
        gate.set()

    pressing = threading.Thread(target=press)
    pressing.start()
    shell.end_cell()
    pressing.join()
    assert batch.wait(LONG)
    assert len(summaries(shown)) == 1


def test_with_a_browser_the_summary_comes_later_to_the_cell_of_the_view(
    leader, presenter, shell, shown, sent
):
    cell.set("first")
    batch = leader.execute(["sleep 60"])
    _views.show(batch)
    say(batch.widget, kind="hello")
    sent.wait_for(lambda item: item.kind == "picture")
    shell.end_cell()
    shell.begin_cell()
    cell.set("second")
    batch.cancel()
    summary = shown.wait_for(lambda item: "text/html" in item.data)
    assert summary.cell == "first"
    assert {item.cell for item in sent.items} == {"first"}
    assert {item.thread for item in sent.items} == {"arrea-presenter"}
    assert batch.wait(LONG)
    assert len(summaries(shown)) == 1


def test_without_a_browser_the_first_wait_in_a_later_cell_shows_the_summary(leader, presenter, shell, shown):
    cell.set("first")
    batch = leader.execute(["sleep 60"])
    _views.show(batch)
    shell.end_cell()
    batch.cancel()
    shown.wait_for(lambda item: "text/html" in item.data)
    shell.begin_cell()
    cell.set("second")
    assert batch.wait(LONG)
    assert batch.wait(LONG)
    assert len(batch.results(return_exceptions=True)) == 1
    assert [item.cell for item in summaries(shown)] == ["first", "second"]
    shell.end_cell()
    shell.end_cell()
    assert [item.cell for item in shown.items if item.update] == ["first", "second"]


def test_after_the_page_was_loaded_again_the_first_wait_shows_the_summary(
    leader, presenter, shell, shown, sent
):
    batch = leader.execute(["sleep 60"])
    _views.show(batch)
    shell.end_cell()
    for pictures, client in enumerate(("before", "after"), start=1):
        batch.widget._handle_custom_msg({"kind": "hello", "client": client}, [])
        sent.wait_for(lambda _, n=pictures: sum(item.kind == "picture" for item in sent.items) == n)
    batch.cancel()
    shown.wait_for(lambda item: "text/html" in item.data)
    shell.begin_cell()
    assert batch.wait(LONG)
    assert batch.wait(LONG)
    assert len(summaries(shown)) == 2


def test_wait_in_the_cell_of_the_view_shows_the_summary_there(leader, presenter, shell, shown):
    batch = leader.execute(["true"])
    _views.show(batch)
    assert batch.wait(LONG)
    assert len(summaries(shown)) == 1
    shell.end_cell()
    assert promises(shown) == []


def test_wait_on_a_batch_that_was_never_shown_shows_nothing(leader, presenter, shown):
    batch = leader.execute(["true"])
    assert batch.wait(LONG)
    assert shown.items == []


def test_wait_in_a_thread_leaves_the_cell_alone(leader, presenter, shown):
    batch = leader.execute(["sleep 60"])
    view = _views.show(batch)
    batch.cancel()
    thread = threading.Thread(target=batch.wait)
    thread.start()
    thread.join(LONG)
    assert summaries(shown) == []
    view.finish()
    assert len(summaries(shown)) == 1


# Frames


def test_hello_is_answered_with_the_whole_picture_and_then_what_changed(leader, presenter, sent, tmp_path):
    batch = leader.execute([f"while [ ! -e {tmp_path}/go ]; do sleep 0.01; done; echo gone", "false"])
    view = batch.widget
    assert (view.batch_id, view.name, view.total) == (batch.id, "", 2)
    say(view, kind="hello")
    picture = sent.wait_for(lambda item: item.kind == "picture").message
    assert picture["names"] == [0, [job.name for job in batch]]
    assert picture["batch"]["workers"] == 4
    (tmp_path / "go").touch()
    last = sent.wait_for(lambda item: item.message["batch"]["state"] == "failed").message
    assert 0 in [row[0] for row in last["jobs"]]
    numbers = [item.message["number"] for item in sent.items]
    assert numbers == list(range(1, len(numbers) + 1))
    assert "".join(printed(sent, 0)) == "gone\n"
    wait_idle()


def test_at_most_ten_frames_a_second_however_much_happens(leader, presenter, sent):
    batch = leader.execute(
        ["for i in $(seq 1 60); do echo $i; sleep 0.01; done" for _ in range(8)], workers=8
    )
    say(batch.widget, kind="hello")
    assert batch.wait(LONG)
    sent.wait_for(lambda item: item.message["batch"]["state"] == "succeeded")
    times = [item.at for item in sent.items]
    assert min(after - before for before, after in pairwise(times)) > 0.09


def test_a_second_hello_is_answered_with_the_picture_and_all_the_output_again(leader, presenter, sent):
    batch = leader.execute(["echo hello; sleep 60"])
    view = batch.widget
    for number in (1, 2):
        say(view, kind="hello")
        sent.wait_for(lambda _, number=number: len(printed(sent, 0)) == number)
    assert printed(sent, 0) == ["hello\n", "hello\n"]
    assert [item.kind for item in sent.items].count("picture") == 2


def test_a_page_that_is_loaded_after_the_end_still_gets_the_picture(leader, presenter, sent):
    batch = leader.execute(["true"])
    view = batch.widget
    assert batch.wait(LONG)
    wait_idle()
    say(view, kind="hello")
    picture = sent.wait_for(lambda item: item.kind == "picture").message
    assert picture["batch"]["state"] == "succeeded"
    wait_idle()


@pytest.mark.parametrize(("share", "interval"), [(1e9, _live.FRAME_INTERVAL), (1e-9, 0.5)])
def test_frames_that_take_more_than_their_share_are_fewer(leader, sent, monkeypatch, share, interval):
    monkeypatch.setattr(_live, "_SHARE", share)
    view = LiveView(leader.execute(["sleep 60"]), {}, lambda: None)
    say(view, kind="hello")
    view.step(100.0, set)
    say(view, kind="hello")
    assert view.step(100.1, set) == 100.0 + interval
    view.close()


def test_when_the_last_browser_left_nothing_more_is_sent(leader, presenter, sent, monkeypatch):
    batch = leader.execute(["sleep 60"])
    view = batch.widget
    say(view, kind="hello")
    sent.wait_for(lambda item: item.kind == "picture")
    say(view, kind="bye")
    say(view, kind="command", ref="r", verb="cancel_all")
    sent.wait_for(lambda item: item.kind == "ack")
    assert batch.wait(LONG)
    wait_idle()
    assert [item.kind for item in sent.items if item.kind != "frame"] == ["picture", "ack"]
    assert all(item.message["batch"]["state"] == "running" for item in sent.items if item.kind == "frame")


def test_a_batch_in_which_nothing_happens_sends_a_heartbeat_and_an_ended_one_does_not(
    leader, presenter, sent
):
    go, began = threading.Event(), threading.Event()
    batch = leader.execute([lambda: began.set() or go.wait()])
    assert began.wait(LONG)
    view = LiveView(batch, {}, lambda: None)
    say(view, kind="hello")
    assert view.step(100.0, set) == 100.0 + _live.HEARTBEAT
    count = len(sent.items)
    assert view.step(102.0, set) == 100.0 + _live.HEARTBEAT
    assert len(sent.items) == count
    view.step(100.0 + _live.HEARTBEAT, set)
    assert len(sent.items) == count + 1
    go.set()
    assert batch.wait(LONG)
    view.step(110.0, lambda: {0})
    view.step(110.2, set)
    assert view.settled
    count = len(sent.items)
    assert view.step(200.0, set) is None
    assert len(sent.items) == count
    view.close()


def test_the_traits_hold_only_what_a_view_begins_with(leader, presenter):
    batch = leader.execute(["echo " + "x" * 1000] * 50, name="fifty")
    assert batch.wait(LONG)
    state = batch.widget.get_state()
    ours = {key: value for key, value in state.items() if not key.startswith("_")}
    assert ours.keys() - {"layout", "tabbable", "tooltip"} == {"batch_id", "name", "total"}
    assert "xxxx" not in str(state)


# Commands


def test_a_command_is_acknowledged_as_often_as_it_comes_and_carried_out_once(leader, presenter, sent):
    batch = leader.execute(["false"])
    assert batch.wait(LONG)
    view = batch.widget
    for _ in range(3):
        say(view, kind="command", ref="r1", verb="retry_failed")
    sent.wait_for(lambda _: sum(item.kind == "ack" for item in sent.items) == 3)
    assert {(item.message["ref"], item.message["error"]) for item in sent.items} == {("r1", None)}
    assert len(leader._engine.batches()) == 2


def test_cancel_and_set_workers_do_what_they_say(leader, presenter, sent):
    batch = leader.execute(["sleep 60", "sleep 61", "sleep 62"], workers=1)
    view = batch.widget
    say(view, kind="command", ref="a", verb="set_workers", workers=2)
    sent.wait_for(lambda item: item.message.get("ref") == "a")
    assert batch.workers == 2
    say(view, kind="command", ref="b", verb="cancel", job=2)
    sent.wait_for(lambda item: item.message.get("ref") == "b")
    assert next(batch.as_completed(LONG)).index == 2
    assert not batch.done()
    say(view, kind="command", ref="c", verb="cancel_all")
    assert batch.wait(LONG)


@pytest.mark.parametrize(
    ("command", "error"),
    [
        ({"verb": "format_disk"}, "format_disk: no such command"),
        ({"verb": "cancel", "job": 7}, "no job 7"),
        ({"verb": "cancel", "job": "0"}, "job: expected a whole number, got '0'"),
        ({"verb": "set_workers", "workers": 0}, "workers: expected a whole number"),
        ({}, "None: no such command"),
    ],
)
def test_a_command_that_cannot_be_carried_out_says_why(leader, presenter, sent, command, error):
    batch = leader.execute(["sleep 60"])
    say(batch.widget, kind="command", ref="x", **command)
    assert error in sent.wait_for(lambda item: item.kind == "ack").message["error"]


@pytest.mark.parametrize("content", [None, 7, [], {}, {"kind": 3}, {"kind": "hello"}, {"kind": "command"}])
def test_whatever_the_browser_sends_the_view_goes_on(leader, presenter, sent, content):
    batch = leader.execute(["sleep 60"])
    view = batch.widget
    view._handle_custom_msg(content, [])
    say(view, kind="hello")
    sent.wait_for(lambda item: item.kind == "picture")


def test_the_handler_of_messages_does_nothing_itself(leader, presenter, sent, monkeypatch):
    batch = leader.execute(["sleep 60"])
    view = batch.widget
    say(view, kind="hello")
    sent.wait_for(lambda item: item.kind == "picture")
    acted = Recorder()
    monkeypatch.setattr(LiveView, "_act", lambda *_: acted.add(threading.current_thread().name))
    say(view, kind="hello")
    acted.wait_for(lambda thread: thread == "arrea-presenter")
    assert acted.items == ["arrea-presenter"]


def test_the_reply_route_of_ipykernel_7_4_is_switched_off(leader, monkeypatch):
    class Comm(DummyComm):
        def _reply_subshell_for(self, data, default):
            raise AssertionError

    monkeypatch.setattr("comm.create_comm", Comm)
    view = LiveView(leader.execute(["true"]), {}, lambda: None)
    assert isinstance(view.comm, Comm)
    assert view.comm._reply_subshell_for is None
    view.close()


# Faults and ends


def test_c21_a_view_with_a_bug_is_left_alone_and_its_summary_still_comes(
    leader, presenter, shown, monkeypatch, caplog
):
    def broken(*_):
        raise ZeroDivisionError

    monkeypatch.setattr(LiveView, "step", broken)
    with caplog.at_level(logging.ERROR, "arrea_nb"):
        leader.run(["sleep 0.2"])
    wait_idle()
    assert len(summaries(shown)) == 1
    assert sum("has a bug" in record.getMessage() for record in caplog.records) == 1


def test_c21_the_thread_is_replaced_when_it_dies(leader, presenter, shell, shown, sent, monkeypatch, caplog):
    died = Recorder()

    def deadly(*_):
        died.add(threading.get_ident())
        raise SystemExit

    batch, other = leader.execute(["sleep 60"]), leader.execute(["sleep 61"])
    view = other.widget
    with monkeypatch.context() as patch:
        patch.setattr(LiveView, "step", deadly)
        _views.show(batch)
        died.wait_for(lambda _: True)
    say(view, kind="hello")
    shell.end_cell()
    batch.cancel()
    assert shown.wait_for(lambda item: "text/html" in item.data)
    assert any("another takes its place" in record.getMessage() for record in caplog.records)


def test_old_models_are_closed(leader, presenter, monkeypatch):
    monkeypatch.setattr(_presenter, "_KEPT", 2)
    views = []
    for _ in range(6):
        batch = leader.execute(["sleep 0.01"])
        view = _views.show(batch)
        views.append(batch.widget)
        assert batch.wait(LONG)
        view.finish()
        wait_idle()
    assert [view.comm is None for view in views] == [True, True, True, False, False, False]


def test_close_lets_go_of_everything_and_can_be_repeated(leader, shell, shown, sent):
    presenter = Presenter(shell)
    _views.show_with(presenter.show, presenter.widget, presenter.waited)
    batch = leader.execute(["sleep 60"])
    _views.show(batch)
    presenter.close()
    presenter.close()
    wait_idle()
    assert len(summaries(shown)) == 1
    assert shell.events.callbacks["pre_run_cell"] == []
    assert shell.events.callbacks["post_run_cell"] == []
    batch.cancel()
    assert batch.wait(LONG)


def test_each_leader_shows_its_own_batches(presenter, leader, shown):
    with Leader() as other:
        batch = other.execute(["sleep 60"])
        view = _views.show(batch)
        batch.cancel()
        assert batch.wait(LONG)
        view.finish()
    assert len(summaries(shown)) == 1


# Terminals


def test_in_a_terminal_a_cell_that_does_not_wait_leaves_the_prompt_alone(leader, shown, capsys):
    shell = Shell(kernel=False)
    presenter = Presenter(shell)
    _views.show_with(presenter.show, presenter.widget, presenter.waited)
    batch = leader.execute(["sleep 60"])
    _views.show(batch)
    shell.end_cell()
    assert len(promises(shown)) == 1
    batch.cancel()
    while not batch.done():
        batch._host.await_end(batch._record, LONG)
    wait_idle()
    assert summaries(shown) == []
    shell.begin_cell()
    assert batch.wait(LONG)
    assert len(summaries(shown)) == 1
    presenter.close()
