"""The wall clock is set while jobs run, and the process forks.

C6, C10: durations, deadlines and delays rest on the monotonic clock. C20: nothing in a forked child touches
its parent's guard, spool or processes, and no lock that was held at the fork is waited for there.
"""

import time

import pytest

import arrea_nb

LONG = 60.0
HOUR = 3600.0


def _forever():
    while True:
        time.sleep(0.001)


@pytest.mark.stops_callables
@pytest.mark.parametrize("jump", [-24 * HOUR, 24 * HOUR])
def test_a_clock_that_is_set_while_jobs_run_changes_no_duration_no_deadline_and_no_order(monkeypatch, jump):
    """C6, C10, C15: one job runs past its deadline, one waits for a retry, one is a shell's."""
    tried = []

    def fail_once():
        tried.append(time.monotonic())
        if len(tried) == 1:
            raise ValueError("once")

    real = time.time
    with arrea_nb.Leader() as leader, leader.subscribe() as events:
        batch = leader.execute(
            [_forever, "sleep 300", fail_once, int],
            workers=4,
            timeout=0.5,
            policy={"retries": 1, "retry_delay": 0.2, "on_error": _retry_value_errors},
        )
        heard = []
        while not heard or heard[-1].type != "job_retrying":
            heard.append(events.get(timeout=LONG))
        monkeypatch.setattr(time, "time", lambda: real() + jump)
        while heard[-1].type != "batch_ended":
            heard.append(events.get(timeout=LONG))
        monkeypatch.undo()

        assert [str(job.state) for job in batch] == ["timed_out", "timed_out", "succeeded", "succeeded"]
        assert tried[1] - tried[0] >= 0.2
        for job in batch:
            assert 0 <= job.duration < LONG
            assert abs(job.ended_at - job.started_at) < LONG
        assert 0.5 <= batch.duration < LONG
        assert abs(batch.ended_at - real()) < LONG
        assert [event.type for event in heard].count("job_ended") == 4
        assert all(0 <= event.duration < LONG for event in heard if event.type == "job_ended")
        assert 0.5 <= heard[-1].duration < LONG
        assert batch.records()[0]["duration"] >= 0.5


def _retry_value_errors(error, attempt, job):
    return "retry" if isinstance(error, ValueError) else "continue"


def test_a_forked_child_of_multiprocessing_touches_nothing_of_its_parent(alone):
    """C20: it ends as multiprocessing ends one, and as sys.exit does, with atexit and finalisers."""
    told, stderr = alone("""
import multiprocessing, gc, warnings
warnings.simplefilter("ignore", DeprecationWarning)
go = threading.Event()
much = lambda: (print("x" * 1_000_000), go.wait(60))
batch = arrea_nb.execute(["yes | head -c 1000000; echo up; sleep 300", "sleep 300", much], timeout=None)
with arrea_nb.subscribe(batch=batch) as events:
    while "up" not in batch[0].tail() or batch[2].output_path is None:
        events.get(timeout=60)
leader = arrea_nb._leader.Leader.instance()
spool, guard = leader._engine.spool.directory, leader._engine.keeper._pid

def child(how):
    global batch
    try:
        batch.wait(timeout=60)
    except RuntimeError as error:
        assert "parent process" in str(error)
    else:
        os._exit(3)
    assert batch[0].stdout.endswith("up\\n")
    assert arrea_nb._leader.Leader.instance() is not leader
    mine = arrea_nb.execute(["echo mine", lambda: print("y" * 1_000_000) or 6], timeout=60)
    assert mine.results(timeout=60)[1] == 6
    assert os.path.dirname(mine[1].output_path) != spool
    arrea_nb._leader.Leader.instance().close()
    del batch
    gc.collect()
    if how == "exit":
        sys.exit(0)
    if how == "_exit":
        os._exit(0)

told["codes"] = []
for how in ("return", "exit", "_exit"):
    process = multiprocessing.get_context("fork").Process(target=child, args=(how,))
    process.start()
    process.join(60)
    told["codes"].append(process.exitcode)
forked = os.fork()
if not forked:
    sys.exit(0)  # with atexit, which multiprocessing's own children skip
told["codes"].append(os.waitstatus_to_exitcode(os.waitpid(forked, 0)[1]))
os.kill(guard, 0)
os.kill(batch[1].pid, 0)
told["guard"] = leader._engine.keeper._pid == guard and not leader._engine.keeper._dead()
told["states"] = [str(job.state) for job in batch]
told["whole"] = [len(batch[0].stdout), len(batch[2].stdout)]
go.set()
batch.cancel()
batch.wait(60)
""")
    assert told == {
        "codes": [0, 0, 0, 0],
        "guard": True,
        "states": ["running"] * 3,
        "whole": [1_000_003, 1_000_001],
    }, stderr


def test_no_lock_that_was_held_at_the_fork_is_waited_for_in_the_child(alone):
    """C20: another thread is in the Leader, one prints; the child lets go of all it inherited."""
    told, stderr = alone("""
import faulthandler, gc, queue, warnings
warnings.simplefilter("ignore", DeprecationWarning)
go = threading.Event()
batch = arrea_nb.execute([lambda: print("printed") or go.wait(60)])
leader = arrea_nb._leader.Leader.instance()
subscription = leader.subscribe()
watch = leader._engine.watch(batch, queue.SimpleQueue())
waiting = batch.as_completed()
while not batch[0].stdout.endswith("\\n"):
    pass
inside, out = threading.Event(), threading.Event()

def hold():
    with leader._engine.hold, leader._engine.lock, leader._engine.section, batch[0]._record.output._lock:
        inside.set()
        out.wait(60)

holder = threading.Thread(target=hold)
holder.start()
inside.wait(60)
forked = os.fork()
if not forked:
    faulthandler.dump_traceback_later(20, exit=True)
    subscription.close()
    leader.unsubscribe(print)
    leader.notify_event({"type": "nobody hears"})
    watch.close()
    assert leader.get_state().batches
    assert batch[0].stdout == "printed\\n", batch[0].stdout
    del batch, watch, subscription
    waiting.close()
    gc.collect()
    leader.close()
    assert arrea_nb.run([int], timeout=20) == [0]
    sys.exit(0)
told["code"] = os.waitstatus_to_exitcode(os.waitpid(forked, 0)[1])
out.set()
go.set()
holder.join()
told["states"] = ended(batch)
told["stdout"] = batch[0].stdout
""")
    assert told == {"code": 0, "states": ["succeeded"], "stdout": "printed\n"}, stderr


def test_a_callable_that_forks_has_a_child_of_its_own(alone):
    """C20, C13: what the child prints is not its parent's job's, it waits as anybody, and gets no job."""
    told, stderr = alone("""
import warnings, tempfile
warnings.simplefilter("ignore", DeprecationWarning)
ran = tempfile.mkdtemp()

def once(number):
    def run():
        with open(os.path.join(ran, f"{number}-{os.getpid()}"), "w"):
            pass
    return run

def work():
    print("parent")
    forked = os.fork()
    if not forked:
        print("child " * 100_000)
        assert arrea_nb.run([lambda: 6 * 7], timeout=20) == [42]
        return None  # as if nothing had happened: the child's thread ends
    return os.waitstatus_to_exitcode(os.waitpid(forked, 0)[1])

batch = arrea_nb.execute([work, *map(once, range(5))], workers=1)
told["states"] = ended(batch)
told["code"] = batch[0].value
told["stdout"] = batch[0].stdout
told["ran"] = sorted(name.split("-")[0] for name in os.listdir(ran))
import shutil
shutil.rmtree(ran)
""")
    assert told == {
        "states": ["succeeded"] * 6,
        "code": 0,
        "stdout": "parent\n",
        "ran": list("01234"),
    }, stderr


def test_an_interrupt_reaches_a_child_that_was_forked_while_it_was_held_back(alone):
    told, stderr = alone("""
import warnings
warnings.simplefilter("ignore", DeprecationWarning)
signal.signal(signal.SIGINT, signal.default_int_handler)

def work():
    forked = os.fork()
    if not forked:
        code = 3
        try:
            signal.raise_signal(signal.SIGINT)
        except KeyboardInterrupt:
            code = 0
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(forked, 0)[1])

leader = arrea_nb._leader.Leader.instance()
go = threading.Event()
with arrea_nb._section.HoldInterrupts():
    batch = arrea_nb.execute([work])
    told["states"] = ended(batch)
told["code"] = batch[0].value
""")
    assert told == {"states": ["succeeded"], "code": 0}, stderr
