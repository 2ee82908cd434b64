"""Schedules are the same each time, and the same through the real clients as through the light ones."""

import re

import pytest

from benchmarks.leaks_run import run_schedule, stage
from benchmarks.leaks_schedules import Schedule, draw
from benchmarks.leaks_wire import HttpWire

_RANDOM = re.compile(r"audit/\S+")
SEEDS = range(12)


def trace(schedule: Schedule, wire=None) -> list[str]:
    with stage():
        return [_RANDOM.sub("audit/", line) for line in run_schedule(schedule, wire=wire, traced=True).trace]


@pytest.mark.parametrize("seed", SEEDS)
def test_a_seed_is_one_schedule_and_its_line_another_name_for_it(seed):
    schedule = draw(seed)
    assert Schedule.parse(str(schedule)) == schedule == Schedule.parse(str(seed))
    assert trace(schedule) == trace(Schedule.parse(str(schedule)))


def without_times(lines: list[str]) -> list[str]:
    return [line.split(maxsplit=1)[1] for line in lines]


@pytest.mark.parametrize("seed", SEEDS)
def test_real_clients_and_light_ones_send_the_same_calls(seed):
    assert trace(draw(seed), HttpWire()) == trace(draw(seed))
