"""What is written down when a machine counts as lost, and how close it may be; and when a lease is renewed."""

from __future__ import annotations

from mlops_sdk.capacity.loss import (
    Answer,
    Channel,
    Statement,
    Suspicion,
    Verdict,
    blind_if_all_silent,
    evidence_of,
    judge,
    of_peers,
)

SSH = Statement(channel=Channel.SSH, answer=Answer.SILENT, words="timed out")
PEERS = Statement(channel=Channel.PEERS, answer=Answer.SILENT, words="b cannot reach it")


def test_a_verdict_is_journalled_with_all_that_was_said():
    assert judge([SSH, PEERS], needed=2).to_json() == {
        "lost": True,
        "needed": 2,
        "statements": [
            {"channel": "ssh", "answer": "silent", "words": "timed out"},
            {"channel": "peers", "answer": "silent", "words": "b cannot reach it"},
        ],
    }
    words = judge([SSH, PEERS], needed=2).words
    for said in ("ssh", "silent", "timed out", "peers", "b cannot reach it"):
        assert said in words


def test_a_channel_that_sees_nobody_keeps_what_it_saw_in_its_words():
    seen = blind_if_all_silent({"a": SSH, "b": SSH})
    assert {name: (said.channel, said.answer) for name, said in seen.items()} == {
        "a": (Channel.SSH, Answer.BLIND),
        "b": (Channel.SSH, Answer.BLIND),
    }
    assert all("timed out" in said.words and "2" in said.words for said in seen.values())


def test_peers_are_named_with_what_they_say():
    alive = of_peers({"c": True, "b": True, "d": False})
    assert (alive.channel, alive.answer) == (Channel.PEERS, Answer.ALIVE)
    assert alive.words.startswith("b, c ")
    silent = of_peers({"c": False, "b": False})
    assert (silent.channel, silent.answer) == (Channel.PEERS, Answer.SILENT)
    assert silent.words.startswith("b, c ")
    nobody = of_peers({})
    assert (nobody.channel, nobody.answer) == (Channel.PEERS, Answer.BLIND)
    assert nobody.words


def test_the_evidence_is_the_first_and_the_last_look_at_which_it_was_lost():
    def lost(words: str) -> Verdict:
        return judge([SSH, Statement(channel=Channel.PEERS, answer=Answer.SILENT, words=words)], needed=2)

    looks = [judge([SSH], needed=2), lost("first"), lost("second"), lost("last"), judge([], needed=2)]
    assert evidence_of(looks) == {"looks": 3, "first": looks[1].to_json(), "last": looks[3].to_json()}
    assert evidence_of(looks[:1]) == {"looks": 0}
    assert evidence_of(looks[:2])["last"] == looks[1].to_json()


def test_a_suspicion_lasts_from_its_first_look_and_begins_anew_after_a_sign_of_life():
    lost, fine = judge([SSH, PEERS], needed=2), judge([SSH], needed=2)
    suspicion = Suspicion(lasting_s=10)
    assert [suspicion.look(lost, at=at) for at in (0.0, 5.0, 9.5, 10.0)] == [None, None, None, True]
    assert suspicion.look(fine, at=11.0) is False
    assert [suspicion.look(lost, at=at) for at in (12.0, 21.5, 22.0)] == [None, None, True]
    assert len(suspicion.looks) == 8
    assert Suspicion(lasting_s=0).look(lost, at=3.0) is True
