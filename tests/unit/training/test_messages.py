"""Marked lines among a program's output."""

from __future__ import annotations

import math

from mlops_sdk.training.messages import Progress, Raised, Started, decode, encode


def test_what_is_sent_is_what_is_understood() -> None:
    raised = Raised(rank=3, time=1.5, exception="ValueError", message='with "quotes"\nand lines', traceback="tb")
    for message in (Started(rank=0, pid=12), Progress(rank=0, step=7, metrics={"loss": 2.5}), raised):
        line = encode(message)
        assert "\n" not in line
        assert decode(line) == message


def test_a_loss_that_is_not_a_number_arrives_as_such() -> None:
    message = decode(encode(Progress(rank=0, step=1, metrics={"loss": math.nan})))
    assert isinstance(message, Progress)
    assert math.isnan(message.metrics["loss"])


def test_a_launcher_may_put_its_own_prefix_before_the_mark() -> None:
    assert decode("[1,0]<stdout>: " + encode(Started(rank=1, pid=2))) == Started(rank=1, pid=2)


def test_ordinary_output_and_forged_marks_are_no_messages() -> None:
    for line in ("", "step 1", "@@mlops", "@@mlops {", '@@mlops {"kind":"unknown"}', "@@mlops 5"):
        assert decode(line) is None
