"""Nothing leaks and nobody is touched: the first half of the drawn schedules."""

import pytest

from support_leaks import CHUNK, IN_ALL, failures

HALF = range(0, IN_ALL // 2, CHUNK)


@pytest.mark.parametrize("first", HALF)
def test_nothing_leaks_and_nobody_is_touched(first):
    assert failures(first) == []
