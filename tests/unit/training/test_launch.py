"""Who runs where, and what the way an attempt ended means."""

from __future__ import annotations

import pytest

from mlops_sdk.capacity.node import Node
from mlops_sdk.remote.end import End
from mlops_sdk.training.launch import NEXT_STEP, PAUSE_S, RETRIABLE, Cause, Placement, Verdict, judge, place
from mlops_sdk.training.messages import Raised, RankEnded

PEER_GONE = "[gloo/transport/tcp/pair.cc:553] Connection closed by peer [10.0.0.2]:11456."
FAILED = End(status=1)
ENDED_BY_US = End(signal="TERM", by_us=True)


def node(name: str, *, leaf: str = "leaf-1", position: int = 1) -> Node:
    return Node(
        id=name, name=name, index=0, address="10.0.0.1", host_public_key="ssh-ed25519 A", leaf=leaf, position=position
    )


@pytest.fixture
def two() -> Placement:
    return place([node("gpu-01", position=1), node("gpu-02", position=2)], 1)


def raised(rank: int, exception: str, message: str, *, time: float = 1.0, retriable: bool = False) -> Raised:
    return Raised(
        rank=rank, time=time, exception=exception, message=message, traceback="", retriable=retriable, next_step=""
    )


def ended(rank: int, *, status: int = 0, signal: int = 0, asked: bool = False) -> dict[int, RankEnded]:
    return {rank: RankEnded(rank=rank, status=status, signal=signal, asked=asked)}


def test_ring_neighbours_share_a_leaf_whatever_the_order_of_the_lease() -> None:
    nodes = [
        node("d", leaf="leaf-2", position=1),
        node("a", leaf="leaf-1", position=7),
        node("c", leaf="leaf-2", position=3),
        node("b", leaf="leaf-1", position=2),
    ]
    placement = place(nodes, 2)
    assert [n.name for n in placement.nodes] == ["b", "a", "d", "c"]
    assert placement.world_size == 8
    assert [placement.node_of(rank).name for rank in range(8)] == ["b", "b", "a", "a", "d", "d", "c", "c"]


@pytest.mark.parametrize("table", [RETRIABLE, NEXT_STEP, PAUSE_S])
def test_every_cause_has_an_entry(table: dict[Cause, object]) -> None:
    assert set(table) == set(Cause)


def test_success_needs_every_machine(two: Placement) -> None:
    assert judge(two, [End(status=0), End(status=0)], [], {}, {0, 1}).cause is Cause.SUCCEEDED
    assert judge(two, [End(status=0), End(status=1)], [], {}, set()).cause is Cause.LAUNCHER


def test_a_job_that_stopped_on_notice_did_not_succeed(two: Placement) -> None:
    ends = [End(status=0), End(status=0)]
    verdict = judge(two, ends, [], ended(0) | ended(1), {0, 1}, stopped={0: 7, 1: 7})
    assert verdict.cause is Cause.STOPPED
    assert "checkpoint of step 7" in verdict.what
    failed = judge(two, [FAILED, End(status=0)], [raised(1, "ValueError", "x")], {}, {0, 1}, stopped={0: 7})
    assert failed.cause is Cause.RAISED


def test_a_killed_rank_is_the_cause_though_its_peer_raised_first(two: Placement) -> None:
    verdict = judge(
        two, [FAILED, FAILED], [raised(0, "RuntimeError", PEER_GONE)], ended(1, signal=9) | ended(0, status=1), {0, 1}
    )
    assert (verdict.cause, verdict.rank, verdict.node) == (Cause.KILLED, 1, "gpu-02")
    assert "SIGKILL" in verdict.what
    assert verdict.retriable


def test_the_programs_own_exception_wins_over_the_peers_echo(two: Placement) -> None:
    reports = [raised(0, "RuntimeError", PEER_GONE, time=1.0), raised(1, "ValueError", "bad token", time=2.0)]
    verdict = judge(two, [FAILED, FAILED], reports, ended(0, status=1) | ended(1, status=1), {0, 1})
    assert (verdict.cause, verdict.rank, verdict.node) == (Cause.RAISED, 1, "gpu-02")
    assert verdict.seen == "bad token"
    assert not verdict.retriable


def test_the_earliest_of_several_exceptions_is_named(two: Placement) -> None:
    reports = [raised(0, "KeyError", "late", time=2.0), raised(1, "ValueError", "early", time=1.0)]
    assert judge(two, [FAILED, FAILED], reports, {}, {0, 1}).seen == "early"


def test_an_abort_that_follows_an_exception_is_not_the_cause(two: Placement) -> None:
    verdict = judge(two, [FAILED, FAILED], [raised(1, "ValueError", "bad")], ended(0, signal=6), {0, 1})
    assert verdict.cause is Cause.RAISED


def test_a_rank_that_was_told_to_stop_is_not_the_cause(two: Placement) -> None:
    verdict = judge(
        two,
        [ENDED_BY_US, FAILED],
        [raised(1, "ValueError", "bad")],
        ended(0, signal=15, asked=True) | ended(1, status=1),
        {0, 1},
    )
    assert verdict.rank == 1


def test_an_outage_that_the_exception_calls_retriable_leads_to_another_attempt(two: Placement) -> None:
    reports = [raised(0, "mlops_sdk.errors.ServiceUnavailable", "S3 PUT got no answer", retriable=True)]
    verdict = judge(two, [FAILED, FAILED], reports, {}, {0, 1})
    assert verdict.cause is Cause.SERVICE
    assert verdict.retriable


def test_a_lost_machine_is_retriable_and_named(two: Placement) -> None:
    ends = [FAILED, End(lost="the connection broke")]
    verdict = judge(two, ends, [raised(0, "RuntimeError", PEER_GONE)], ended(0, status=1), {0, 1})
    assert (verdict.cause, verdict.node) == (Cause.NODE_LOST, "gpu-02")
    assert verdict.retriable


def test_a_program_that_leaves_without_an_exception_is_not_tried_again(two: Placement) -> None:
    verdict = judge(two, [FAILED, FAILED], [raised(0, "RuntimeError", PEER_GONE)], ended(1, status=7), {0, 1})
    assert (verdict.cause, verdict.rank) == (Cause.EXITED, 1)
    assert not verdict.retriable


def test_a_rank_without_a_last_word_was_killed_with_its_supervisor(two: Placement) -> None:
    verdict = judge(two, [FAILED, FAILED], [raised(0, "RuntimeError", PEER_GONE)], ended(0, status=1), {0, 1})
    assert (verdict.cause, verdict.rank) == (Cause.KILLED, 1)
    assert verdict.retriable


def test_a_killed_launcher_is_retriable_but_one_that_cannot_start_is_not(two: Placement) -> None:
    assert judge(two, [End(signal="KILL"), ENDED_BY_US], [], {}, set()) == Verdict(
        cause=Cause.KILLED,
        node="gpu-01",
        what="the launcher on 'gpu-01' was killed by SIGKILL",
        seen="signal SIGKILL",
        next_step=NEXT_STEP[Cause.KILLED],
    )
    assert judge(two, [ENDED_BY_US, End(status=127)], [], {}, set()).what == "the launcher on 'gpu-02' failed"
