"""What arrives, and what it leads to."""

import json

import pytest

from mlops_sdk.errors import Malformed
from mlops_sdk.webhooks.event import parse_headers, parse_push, parse_repository
from mlops_sdk.webhooks.receiver import arrival_of
from mlops_sdk.webhooks.routing import Ignored, Route, conf_of, key_of, run_id_of, why_ignored
from mlops_sdk.webhooks.send import RefUpdate, push_payload, ref_updates

COMMIT = "1f" * 20
ROUTES = {"lab/code": Route(clone_url="https://git.example/lab/code.git", dag_id="retrain_lm")}


def payload(**changes):
    whole = {
        "ref": "refs/heads/main",
        "before": "0" * 40,
        "after": COMMIT,
        "deleted": False,
        "repository": {"full_name": "lab/code", "clone_url": "https://evil.example/x.git", "id": 7},
        "commits": [],
    }
    return json.dumps({**whole, **changes}).encode()


def test_a_push_to_the_routed_branch_starts_a_run():
    push = parse_push(payload())
    assert (push.repository, push.ref, push.after, push.deleted) == ("lab/code", "refs/heads/main", COMMIT, False)
    assert why_ignored(push, ROUTES) is None


def test_what_runs_comes_from_the_route_and_never_from_the_payload():
    conf = conf_of(ROUTES["lab/code"], COMMIT, "k")
    assert conf == {
        "repository": "https://git.example/lab/code.git",
        "commit": COMMIT,
        "ref": "refs/heads/main",
        "webhook_key": "k",
    }


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"ref": "refs/heads/topic"}, Ignored.OTHER_REF),
        ({"ref": "refs/tags/v1"}, Ignored.TAG),
        ({"deleted": True, "after": "0" * 40}, Ignored.DELETED),
        ({"after": "0" * 40}, Ignored.DELETED),
        ({"repository": {"full_name": "lab/other"}}, Ignored.UNKNOWN_REPOSITORY),
    ],
)
def test_what_starts_nothing_is_recorded_with_its_reason(changes, why):
    assert arrival_of("push", "d", payload(**changes), ROUTES).ignored == why.value


def test_any_other_event_is_recorded():
    arrival = arrival_of("issues", "d", b'{"action": "opened", "repository": {"full_name": "lab/code"}}', ROUTES)
    assert (arrival.event, arrival.repository, arrival.ignored) == ("issues", "lab/code", "not a push")
    assert parse_repository(b'{"zen": "..."}') == ""


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"null",
        b"[]",
        b"\xff\xfe",
        b'{"ref": "refs/heads/main"}',
        b"[" * 100_000,
        payload(ref=7),
        payload(ref="main"),
        payload(ref="refs/heads/a b"),
        payload(ref="refs/heads/\u0000"),
        payload(ref="refs/heads/" + "x" * 300),
        payload(after="main"),
        payload(after=COMMIT.upper()),
        payload(after=COMMIT + "\n"),
        payload(after=["a"]),
        payload(repository="lab/code"),
        payload(repository={"full_name": "../../etc"}),
        payload(repository={"full_name": "lab/code\n"}),
        payload(deleted="yes"),
    ],
)
def test_wrong_types_and_forms_are_malformed_and_not_repeated(body):
    with pytest.raises(Malformed) as refused:
        parse_push(body)
    assert "etc" not in str(refused.value)


@pytest.mark.parametrize(
    ("event", "delivery", "content_type"),
    [
        ("", "1-2", "application/json"),
        ("Push", "1-2", "application/json"),
        ("push\n", "1-2", "application/json"),
        ("push", "1 2", "application/json"),
        ("push", "1" * 65, "application/json"),
        ("push", "1-2", "application/x-www-form-urlencoded"),
        ("push", "1-2", ""),
    ],
)
def test_headers_that_are_not_githubs_are_malformed(event, delivery, content_type):
    with pytest.raises(Malformed):
        parse_headers(event, delivery, content_type)
    assert parse_headers("push", "1-2", "application/json; charset=utf-8").event == "push"


def test_the_key_is_repository_ref_and_commit_and_nothing_else():
    key = key_of(parse_push(payload()))
    assert key == key_of(parse_push(payload(before="a" * 40, forced=True, commits=[{"id": "x"}])))
    others = [payload(ref="refs/heads/b"), payload(after="2" * 40), payload(repository={"full_name": "lab/b"})]
    assert key not in {key_of(parse_push(body)) for body in others}


def test_the_run_is_named_by_the_key():
    assert run_id_of("lab/Code.lm", COMMIT, "ab" * 32) == "push-lab-code-lm-1f1f1f1f1f1f-abababab"
    assert len(run_id_of("l" * 199 + "/x", COMMIT, "ab" * 32)) < 100


def test_what_we_send_is_what_we_read():
    [update] = ref_updates([f"{'0' * 40} {COMMIT} refs/heads/main\n", "\n"])
    assert key_of(parse_push(push_payload(update, "lab/code"))) == key_of(parse_push(payload()))
    gone = parse_push(push_payload(RefUpdate(before=COMMIT, after="0" * 40, ref="refs/heads/x"), "lab/code"))
    assert gone.deleted
