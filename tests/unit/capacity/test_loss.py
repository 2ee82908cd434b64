"""Unreachable is not gone: when a machine counts as lost, and who takes its place."""

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlops_sdk.capacity.lease import LeaseRequest
from mlops_sdk.capacity.loss import (
    Answer,
    Channel,
    Statement,
    Suspicion,
    blind_if_all_silent,
    evidence_of,
    judge,
    of_peers,
)
from mlops_sdk.capacity.members import Replacement, all_numbers, members_of


def say(channel: Channel, answer: Answer) -> Statement:
    return Statement(channel=channel, answer=answer, words="seen")


SILENT_SSH = say(Channel.SSH, Answer.SILENT)
SILENT_PEERS = say(Channel.PEERS, Answer.SILENT)


@pytest.mark.parametrize(
    ("statements", "lost"),
    [
        ([], False),
        ([SILENT_SSH], False),  # unreachable is not gone
        ([SILENT_SSH, SILENT_SSH], False),  # the same channel twice is one
        ([SILENT_SSH, SILENT_PEERS], True),
        ([SILENT_SSH, SILENT_PEERS, say(Channel.POWER, Answer.BLIND)], True),
        ([SILENT_SSH, say(Channel.POWER, Answer.OFF)], True),
        ([SILENT_SSH, say(Channel.POWER, Answer.BLIND)], False),
        ([SILENT_SSH, say(Channel.PEERS, Answer.ALIVE), say(Channel.POWER, Answer.OFF)], False),
        ([say(Channel.SSH, Answer.BLIND), SILENT_PEERS], False),
    ],
)
def test_a_machine_is_lost_when_two_channels_agree_and_none_says_that_it_lives(statements, lost):
    assert judge(statements, needed=2).lost is lost


@given(
    st.lists(st.builds(say, st.sampled_from(Channel), st.sampled_from(Answer)), max_size=8),
    st.integers(min_value=1, max_value=4),
)
def test_one_sign_of_life_is_enough_and_a_blind_channel_counts_for_nothing(statements, needed):
    verdict = judge(statements, needed=needed)
    against = {t.channel for t in statements if t.answer in {Answer.SILENT, Answer.OFF}}
    assert not (verdict.lost and any(t.answer is Answer.ALIVE for t in statements))
    assert not verdict.lost or len(against) >= needed
    blind = [say(channel, Answer.BLIND) for channel in Channel]
    assert judge([*statements, *blind], needed=needed).lost is verdict.lost
    assert all(t.words in verdict.words for t in statements)


def test_who_sees_nobody_is_cut_off_himself():
    all_silent = {"a": SILENT_SSH, "b": SILENT_SSH}
    assert {t.answer for t in blind_if_all_silent(all_silent).values()} == {Answer.BLIND}
    one_silent = {"a": SILENT_SSH, "b": say(Channel.SSH, Answer.ALIVE)}
    assert blind_if_all_silent(one_silent) == one_silent
    assert blind_if_all_silent({"a": SILENT_SSH}) == {"a": SILENT_SSH}


def test_peers_say_together():
    assert of_peers({}).answer is Answer.BLIND
    assert of_peers({"b": False, "c": True}).answer is Answer.ALIVE
    assert of_peers({"b": False, "c": False}).answer is Answer.SILENT


def test_it_has_to_last():
    lost, fine = judge([SILENT_SSH, SILENT_PEERS], needed=2), judge([SILENT_SSH], needed=2)
    suspicion = Suspicion(lasting_s=10)
    assert suspicion.look(lost, at=0) is None
    assert suspicion.look(lost, at=9.9) is None
    assert suspicion.look(fine, at=10) is False  # a sign of life: it begins anew
    assert suspicion.look(lost, at=11) is None
    assert suspicion.look(lost, at=21) is True
    assert evidence_of(suspicion.looks)["looks"] == 4
    assert evidence_of([fine]) == {"looks": 0}


def request(nodes: int, spares: int) -> LeaseRequest:
    return LeaseRequest(nodes=nodes, spares=spares, resource_class="c", deadline=datetime(2026, 1, 1, tzinfo=UTC))


def test_a_replacement_stands_where_the_lost_one_stood():
    first = Replacement(lost=1, by=3, done=True)
    assert members_of(request(3, 1), [first]).working == (0, 3, 2)
    again = Replacement(lost=3, by=4, done=True)
    assert members_of(request(3, 1), [first, again]).working == (0, 4, 2)
    assert members_of(request(3, 1), [first, again]).following == 5
    assert all_numbers(request(3, 1), [first, again]) == (0, 1, 2, 3, 4)


def test_a_repair_that_was_cut_off_is_there_to_be_finished():
    begun = Replacement(lost=0, by=2)
    members = members_of(request(2, 1), [begun])
    assert members.pending == (begun,)
    assert members.working == (0, 1)
    assert members.spares == ()  # it is promised
    assert members.held == (0, 1, 2)  # and renewed
    assert members_of(request(2, 2), (), gone={3}).spares == (2,)


@given(st.integers(1, 4), st.integers(0, 3), st.lists(st.booleans(), max_size=6), st.randoms())
def test_no_number_is_given_twice_and_as_many_work_as_were_asked_for(nodes, spares, repairs, random):
    replacements: list[Replacement] = []
    for _ in repairs:
        now = members_of(request(nodes, spares), replacements)
        by = now.spares[0] if now.spares else now.following
        replacements.append(Replacement(lost=random.choice(now.working), by=by, done=True))
    members = members_of(request(nodes, spares), replacements)
    assert len(set(members.working)) == nodes
    assert not set(members.held) & {replacement.lost for replacement in replacements}
    assert len(set(members.held)) == len(members.held)
    assert max(all_numbers(request(nodes, spares), replacements)) == members.following - 1
