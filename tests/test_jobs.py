"""Work side by side: what dies, dies alone. (The same on Ray: test_engines.py, which starts one.)"""

import os
import time

import pytest

from tutelage.errors import UserError
from tutelage.jobs import Jobs
from tutelage.progress import SILENT


def double(number: int) -> int:
    """Twice the number; 13 ends the process, 99 is refused."""
    time.sleep(0.05)
    if number == 13:
        os._exit(3)
    if number == 99:
        raise UserError("this number is refused", value=number)
    return 2 * number


def buried(number: int) -> int:
    return -number


def test_a_call_whose_process_dies_does_not_take_others_with_it():
    numbers = [1, 13, 2, 3]
    calls = [(number,) for number in numbers]
    with Jobs(2) as jobs, SILENT.bar("", 1) as bar:
        found = jobs.map(double, calls, [1] * len(calls), bar, buried)
        assert found == [-13 if number == 13 else 2 * number for number in numbers]
        with pytest.raises(UserError, match="this number is refused"):
            jobs.map(double, [(1,), (99,), (2,)], [1] * 3, bar, buried)


def test_without_a_burial_a_death_ends_everything():
    with Jobs(2) as jobs, SILENT.bar("", 1) as bar, pytest.raises(Exception, match="a worker process ended"):
        jobs.map(double, [(1,), (13,)], [1, 1], bar)
