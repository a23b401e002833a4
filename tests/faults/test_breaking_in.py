"""C19, C20: signal handlers and finalisers call us at any moment, also when their thread is inside.

Each call works, or raises a RuntimeError that says so; nothing is torn, and nobody waits for ever. All of it
runs in an interpreter of its own, where a watchdog ends what hangs and says where it hung.
"""

import pytest

WATCHED = """
import faulthandler, gc
from arrea_nb._section import HoldInterrupts, _Others
from arrea_nb.workers._slot import StopJob
faulthandler.dump_traceback_later(80, exit=True)
leader = arrea_nb.Leader.instance()
leader.keep_batches, leader.batch_retention, leader.cleanup_interval = 5, 0.0, 0.05
made, problems, odd, calls = [], [], [], 0

def attempt(call, *expected):
    global calls
    calls += 1
    try:
        return call()
    except RuntimeError as error:
        problems.append(str(error))
    except expected:
        raise
    except StopJob:
        pass  # it cancelled the batch of the job that it broke into
    except BaseException as error:
        odd.append(repr(error))

def say(text):
    return any(part in text for part in ("broke into", "is closed", "cannot close"))

def check(of=None):
    of = of or leader
    for batch in made:
        if not batch.wait(timeout=30):
            faulthandler.dump_traceback(all_threads=True)
            raise AssertionError(f"{batch!r} does not end: {batch.records()}")
    while of._engine.workers:
        time.sleep(0.005)
    stats = of.get_state().stats
    places = of._engine.ledger.places
    told.update(
        odd=odd[:5],
        unclear=sorted({one for one in problems if not say(one)}),
        taken=places.taken,
        running=stats["running"],
        entered=of._engine.section.owner,
        depth=[HoldInterrupts.depth, _Others.depth],
        held=len(_Others.held),
        sigint=signal.getsignal(signal.SIGINT) is signal.default_int_handler,
        failed=[job.error and repr(job.error) for batch in made if batch.state == "failed" for job in batch],
    )
"""

FINE = {
    "odd": [],
    "unclear": [],
    "taken": 0,
    "running": 0,
    "entered": 0,
    "depth": [0, 0],
    "held": 0,
    "sigint": True,
    "failed": [],
}

HANDLERS = {
    "execute": "made.append(leader.execute([int]))",
    "wait": "made and made[-1].wait(0.01)",
    "wait for its own": "b = leader.execute([int]); made.append(b); b.wait(20) or odd.append('hung')",
    "get_state": "leader.get_state()",
    "cancel": "made and made[-1].cancel()",
    "subscribe": "leader.subscribe(batch=made[-1]).close() if made else None",
    "notify_event": "leader.notify_event({'type': 'x'})",
}
TIMER = "signal.setitimer(signal.ITIMER_REAL, 0.0007, 0.0007)"
OTHER_THREAD = """
def send():
    while not over.is_set():
        os.kill(os.getpid(), signal.SIGUSR1)
        time.sleep(0.0005)
threading.Thread(target=send, daemon=True).start()
"""


@pytest.mark.parametrize("call", HANDLERS)
@pytest.mark.parametrize("way", ["SIGALRM", "SIGUSR1"])
def test_a_signal_handler_that_calls_us_at_any_moment(alone, call, way):
    told, stderr = alone(
        WATCHED
        + f"""
over, busy, came = threading.Event(), False, 0

def handler(number, frame):
    global busy, came
    if busy or over.is_set():
        return
    busy, came = True, came + 1
    def body():
        {HANDLERS[call]}
    try:
        attempt(body)
    finally:
        busy = False

signal.signal(signal.{way}, handler)
{TIMER if way == "SIGALRM" else OTHER_THREAD}
began = time.monotonic()
rounds = 0
while rounds < 300 or (came < 50 and time.monotonic() - began < 20):
    rounds += 1
    batch = leader.execute([int, int])
    made.append(batch)
    if batch.wait(20) is not True:
        raise AssertionError(batch)
    leader.get_state()
    del made[:-20]
over.set()
signal.setitimer(signal.ITIMER_REAL, 0)
told["kept"] = signal.getsignal(signal.{way}) is handler
told["came"] = came >= 50
check()
"""
    )
    assert told == {**FINE, "kept": True, "came": True}, stderr


@pytest.mark.parametrize("both", [False, True])
def test_a_signal_handler_that_raises_tears_nothing(alone, both):
    """Two signals, so that one's handler runs while the other's is being held back."""
    told, stderr = alone(
        WATCHED
        + f"""
class Bang(Exception):
    pass
over, came, armed = threading.Event(), 0, False

def handler(number, frame):
    global came, armed
    if armed:
        came, armed = came + 1, False
        raise Bang

def other(number, frame):
    if not over.is_set():
        attempt(leader.get_state, Bang)

signal.signal(signal.SIGALRM, handler)
signal.signal(signal.SIGUSR1, other)
{OTHER_THREAD if both else ""}
{TIMER}
began = time.monotonic()
rounds = 0
batch = None
while rounds < 400 or (came < 50 and time.monotonic() - began < 20):
    rounds += 1
    try:
        armed = True
        batch = leader.execute([int, lambda: print("x")], timeout=30, log=rounds % 50 == 0)
        batch.wait(20)
        leader.get_state()
        batch.cancel()
        armed = False
    except Bang:
        pass
over.set()
signal.setitimer(signal.ITIMER_REAL, 0)
told["kept"] = [signal.getsignal(signal.SIGALRM) is handler, signal.getsignal(signal.SIGUSR1) is other]
told["came"] = came >= 50
made[:] = leader._engine.batches()
check()
# Raised while we read a user's command, it is taken for what that raises.
told["failed"] = [one for one in told["failed"] if one and "raised Bang when it was read" not in one]
told["live"] = len(leader._engine.ledger.live)
""",
    )
    assert told == {**FINE, "kept": [True, True], "came": True, "live": 0}, stderr


def test_a_handler_of_another_signal_that_comes_while_the_first_is_held_back(alone):
    """It enters and leaves a section of its own there; both handlers are the user's afterwards."""
    told, _ = alone(
        """
from arrea_nb import _section
leader = arrea_nb.Leader.instance()
def alarm(number, frame):
    told.setdefault("alarm", 0)
    told["alarm"] += 1
def user(number, frame):
    told["user"] = len(leader.get_state().batches)
signal.signal(signal.SIGALRM, alarm)
signal.signal(signal.SIGUSR1, user)
real, steps = signal.signal, []
def stepping(number, handler):
    before = real(number, handler)
    if number == signal.SIGALRM and not steps:
        steps.append(number)
        signal.raise_signal(signal.SIGUSR1)
    return before
signal.signal = stepping
leader.get_state()
signal.signal = real
told["kept"] = [signal.getsignal(signal.SIGALRM) is alarm, signal.getsignal(signal.SIGUSR1) is user]
signal.raise_signal(signal.SIGALRM)
"""
    )
    assert told == {"user": 0, "kept": [True, True], "alarm": 1}


@pytest.mark.parametrize("back", [False, True])
def test_a_handler_that_raises_while_others_are_held_back_or_put_back(alone, back):
    """Whatever is the user's is the user's again, the stop button included."""
    told, _ = alone(
        f"""
from arrea_nb import _section
leader = arrea_nb.Leader.instance()
class Bang(Exception):
    pass
def alarm(number, frame):
    raise Bang
def user(number, frame):
    raise Bang
signal.signal(signal.SIGALRM, alarm)
signal.signal(signal.SIGUSR1, user)
real, steps = signal.signal, []
def stepping(number, handler):
    before = real(number, handler)
    ours = handler not in (alarm, user, signal.default_int_handler)
    if ours is not {back} and not steps and number == signal.SIGALRM:
        steps.append(number)
        signal.raise_signal(signal.SIGALRM if {back} else signal.SIGUSR1)
    return before
signal.signal = stepping
try:
    leader.get_state()
except Bang:
    told["raised"] = len(steps)
signal.signal = real
told["kept"] = [signal.getsignal(signal.SIGALRM) is alarm, signal.getsignal(signal.SIGUSR1) is user]
told["sigint"] = signal.getsignal(signal.SIGINT) is signal.default_int_handler
told["depth"] = _section.HoldInterrupts.depth
told["then"] = len(leader.get_state().batches)
"""
    )
    assert told == {"raised": 1, "kept": [True, True], "sigint": True, "depth": 0, "then": 0}


@pytest.mark.parametrize("grace", [0.2])
def test_a_signal_handler_that_closes_at_any_moment(alone, grace):
    told, stderr = alone(
        WATCHED
        + f"""
class Own: pass
came = 0
for round in range(150):
    own = arrea_nb.Leader(grace={grace})
    def handler(number, frame):
        global came
        came += 1
        attempt(own.close)
    signal.signal(signal.SIGALRM, handler)
    signal.setitimer(signal.ITIMER_REAL, 0.0002 + 0.00004 * round)
    before = came
    here = []
    while came == before:
        attempt(lambda: here.append(own.execute([int, int])))
        attempt(own.get_state)
        attempt(lambda: here and here[-1].wait(20))
    signal.setitimer(signal.ITIMER_REAL, 0)
    own.close()
    made[:] = here
    if not all(batch.wait(20) for batch in here):
        raise AssertionError(here)
check(own)
told["came"] = came >= 150
left = lambda: [one.name for one in threading.enumerate() if one.name.startswith("arrea-")]
until = time.monotonic() + 10
while left() and time.monotonic() < until: time.sleep(0.01)
told["left"] = left()
"""
    )
    assert told == {**FINE, "came": True, "left": []}, stderr


@pytest.mark.parametrize("step", ["_stop_all", "_see_the_end", "_join", "_forget_all", "_end_processes"])
def test_a_signal_handler_that_calls_us_in_the_middle_of_close(alone, step):
    told, stderr = alone(
        WATCHED
        + f"""
from arrea_nb import _engine
own = arrea_nb.Leader.instance()
guard_lock = own._engine.keeper._lock
batch = own.execute(["sleep 300", int])
said = []
def handler(number, frame):
    for name, call in dict(
        close=own.close,
        execute=lambda: own.execute([int]),
        instance=lambda: arrea_nb.execute([int]),
        state=own.get_state,
        cancel=batch.cancel,
    ).items():
        try:
            call()
        except RuntimeError as error:
            said.append([name, say(str(error)) or str(error)])
        else:
            said.append([name, "fine"])
signal.signal(signal.SIGUSR1, handler)
steps = list(_engine._STEPS)
at = [one.__name__ for one in steps].index("{step}")
real = steps[at]
def broken_into(engine, grace):
    real(engine, grace)
    if engine is own._engine and not said:
        if at == len(steps) - 1:
            with guard_lock:
                signal.raise_signal(signal.SIGUSR1)
        else:
            signal.raise_signal(signal.SIGUSR1)
steps[at] = broken_into
_engine._STEPS = tuple(steps)
own.close()
told["said"] = said
made.append(batch)
check(own)
told["next"] = arrea_nb.run([int])
"""
    )
    last = step == "_end_processes"  # it is closed by then: that is no error, and there is another Leader
    said = {
        "close": "fine" if last else True,
        "execute": True,
        "instance": "fine" if last else True,
        "state": "fine",
        "cancel": "fine",
    }
    assert told == {**FINE, "said": [list(one) for one in said.items()], "next": [0]}, stderr


FINALISERS = {
    "execute": "made.append(leader.execute([int]))",
    "get_state": "leader.get_state()",
    "wait": "made and made[-1].wait(0.1)",
    "print": "print('last words')",
    "cancel": "made and made[-1].cancel()",
    "subscribe": "leader.subscribe().close()",
    "close": "other.close()",
}


@pytest.mark.parametrize("call", FINALISERS)
def test_finalisers_that_call_us_at_any_moment(alone, call):
    """Cyclic garbage, which the collector finds at whatever is allocated, on the main thread and in jobs."""
    told, stderr = alone(
        WATCHED
        + f"""
import io
other = arrea_nb.Leader()
other.execute([int, "true"]).wait(30)
over, came = threading.Event(), 0
inside = threading.local()

class Cycle:
    def __init__(self):
        self.me = self
    def __del__(self):
        global came
        if over.is_set() or getattr(inside, "busy", False):
            return
        inside.busy, came = True, came + 1
        def body():
            {FINALISERS[call]}
        try:
            attempt(body)
        finally:
            inside.busy = False

def work():
    for _ in range(3):
        Cycle()
        print("work")
    return 1

sys.stdout = io.StringIO()
gc.set_threshold(1)
began = time.monotonic()
rounds = 0
while rounds < 40 or (came < 50 and time.monotonic() - began < 20):
    rounds += 1
    Cycle()
    batch = leader.execute([work] * 3, timeout=60)
    made.append(batch)
    if batch.wait(30) is not True:
        raise AssertionError(batch)
    leader.get_state()
    del made[:-10]
    if time.monotonic() - began > 25:
        break
over.set()
gc.set_threshold(700)
gc.collect()
sys.stdout = sys.__stdout__
told["came"] = came >= 50
check()
"""
    )
    assert told == {**FINE, "came": True}, stderr


def test_a_finaliser_that_prints_while_its_job_makes_its_output_is_heard(alone):
    told, stderr = alone(
        WATCHED
        + """
class Words:
    def __init__(self):
        self.me = self
    def __del__(self):
        print("last words")

new_output = leader._engine.new_output
def collecting():
    made = new_output()
    gc.collect()
    return made
leader._engine.new_output = collecting

def work():
    gc.disable()
    Words()
    print("first words")
    gc.enable()

batch = leader.execute([work], timeout=20)
told["ended"] = batch.wait(40)
told["heard"] = sorted(batch[0].stdout.splitlines())
check()
"""
    )
    assert told == {**FINE, "ended": True, "heard": ["first words", "last words"]}, stderr


def test_a_finaliser_in_a_job_that_closes_its_own_leader_is_told_that_it_cannot(alone):
    told, stderr = alone(
        WATCHED
        + """
class Closes:
    def __init__(self):
        self.me = self
    def __del__(self):
        attempt(leader.close)

def work():
    Closes()
    gc.collect()
    return 5

batch = leader.execute([work] * 20, workers=1, timeout=60)
made.append(batch)
told["values"] = batch.results(30)
told["refused"] = len(problems)
check()
"""
    )
    assert told == {**FINE, "values": [5] * 20, "refused": 20}, stderr
