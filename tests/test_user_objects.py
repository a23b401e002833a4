"""Objects of the user's, as commands, options and progress: whatever they do, the batch goes on (C4)."""

import math
from fractions import Fraction

import numpy as np
import pytest

import arrea_nb

LONG = 60.0


# Numbers


@pytest.mark.parametrize("number", [np.int64(3), np.uint8(3), np.int32(3)])
def test_a_whole_number_may_be_numpys(number):
    with arrea_nb.Leader() as leader:
        batch = leader.execute([int] * 3, workers=number, max_commands=number)
        assert batch.wait(timeout=LONG)
        assert (batch.workers, type(batch.workers)) == (3, int)
    policy = arrea_nb.Policy(retries=number)
    assert (policy.retries, type(policy.retries)) == (3, int)


@pytest.mark.parametrize("number", [np.float64(2.5), np.float32(2.5), Fraction(5, 2)])
def test_seconds_may_be_any_real_number(number):
    with arrea_nb.Leader() as leader:
        batch = leader.execute([int], timeout=number)
        assert batch.wait(timeout=LONG)
        assert (batch.timeout, type(batch.timeout)) == (2.5, float)
    policy = arrea_nb.Policy(retry_delay=number, backoff=number, max_delay=np.int16(7))
    assert (policy.retry_delay, policy.backoff, policy.max_delay) == (2.5, 2.5, 7)
    assert [type(value) for value in (policy.retry_delay, policy.backoff, policy.max_delay)] == [
        float,
        float,
        int,
    ]


def test_seconds_without_end_are_no_limit_however_they_are_written():
    with arrea_nb.Leader() as leader:
        for endless in (math.inf, np.float32("inf"), 10**400, np.int64(0)):
            batch = leader.execute([int], timeout=endless)
            assert batch.wait(timeout=LONG)
            assert batch.timeout is None


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({"workers": np.int64(0)}, ValueError, "workers: expected a whole number of at least 1, got 0"),
        ({"workers": np.float64(2)}, TypeError, "workers: expected a whole number of at least 1, got "),
        ({"workers": np.bool_(True)}, TypeError, "workers: expected a whole number of at least 1, got "),
        ({"timeout": np.bool_(True)}, TypeError, "timeout: expected seconds, or None for no limit, got "),
        ({"timeout": Fraction(-1, 2)}, ValueError, "timeout: expected seconds of at least 0 (0: no limit)"),
        ({"timeout": -(10**400)}, ValueError, "timeout: expected seconds of at least 0 (0: no limit)"),
        ({"timeout": np.float32("nan")}, ValueError, "timeout: expected seconds of at least 0"),
        ({"policy": {"retries": np.int64(-1)}}, ValueError, "policy.retries: expected 0 or more, got -1"),
        ({"policy": {"retries": np.float64(1)}}, TypeError, "policy.retries: expected a whole number, got "),
        ({"policy": {"backoff": np.bool_(True)}}, TypeError, "policy.backoff: expected a number, got "),
        ({"policy": {"max_delay": 10**400}}, ValueError, "policy.max_delay: expected a finite number of at"),
    ],
)
def test_a_number_that_will_not_do_is_refused_as_ever(options, kind, message):
    with pytest.raises(kind) as raised:
        arrea_nb.execute([int], **options)
    assert str(raised.value).startswith(message)
