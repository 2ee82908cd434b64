"""Nothing leaks and nobody is touched: the second half of the drawn schedules."""

import pytest

from support_leaks import CHUNK, IN_ALL, failures

HALF = range(IN_ALL // 2, IN_ALL, CHUNK)


@pytest.mark.parametrize("first", HALF)
def test_nothing_leaks_and_nobody_is_touched(first):
    assert failures(first) == []
