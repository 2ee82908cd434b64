"""Nothing leaks and nobody is touched, in 10,000 drawn schedules of failures; a naive program leaks in them."""

import os
from pathlib import Path

import pytest

from support_leaks import FOLDER, IN_ALL, played


@pytest.mark.timeout(900)  # they are played whenever a core is free
def test_nothing_leaks_and_nobody_is_touched():
    result = played(Path(os.environ[FOLDER]))
    assert result.figures.get("schedules") == IN_ALL, result.printed
    assert (result.figures["leaked"], result.figures["wrongly_deleted"]) == (0, 0), result.printed
    assert result.figures["peer_leaked"] > 0
