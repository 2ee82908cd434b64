"""Whatever is sent: an event, or one of the typed refusals; never another exception, and never a forged signature."""

import contextlib
import json

from hypothesis import given
from hypothesis import strategies as st

from mlops_sdk.errors import BadSignature, Malformed
from mlops_sdk.webhooks.event import parse_headers, parse_push
from mlops_sdk.webhooks.receiver import arrival_of
from mlops_sdk.webhooks.routing import key_of, run_id_of
from mlops_sdk.webhooks.send import RefUpdate, push_payload
from mlops_sdk.webhooks.verify import sign, verify

SECRETS = st.lists(st.binary(min_size=1, max_size=40), min_size=1, max_size=2)
COMMITS = st.text("0123456789abcdef", min_size=40, max_size=40)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=10,
)
FIELDS = st.fixed_dictionaries(
    {},
    optional={
        "ref": st.sampled_from(["refs/heads/main", "refs/tags/v1"]) | JSON,
        "before": COMMITS | JSON,
        "after": COMMITS | JSON,
        "deleted": st.booleans() | JSON,
        "repository": st.fixed_dictionaries({"full_name": st.just("lab/code") | JSON}) | JSON,
    },
)


@given(st.binary(), SECRETS, st.data())
def test_what_is_signed_with_a_live_secret_is_accepted(body, secrets, data):
    verify(body, sign(data.draw(st.sampled_from(secrets)), body), secrets)


@given(st.binary(), SECRETS, st.text(), st.binary(min_size=1))
def test_what_is_signed_otherwise_is_not(body, secrets, text, other):
    signatures = [text, sign(other, body), sign(secrets[0], body + other)]
    for signature in signatures:
        if signature not in {sign(secret, body) for secret in secrets}:
            with contextlib.suppress(BadSignature):
                verify(body, signature, secrets)
                raise AssertionError(signature)


@given(st.binary() | FIELDS.map(lambda fields: json.dumps(fields).encode()), st.text(max_size=70))
def test_any_body_is_an_event_or_malformed(body, event):
    with contextlib.suppress(Malformed):
        push = parse_push(body)
        assert len(key_of(push)) == 64
        assert set(run_id_of(push.repository, push.after, key_of(push))) <= set("abcdefghijklmnopqrstuvwxyz0123456789-")
    with contextlib.suppress(Malformed):
        headers = parse_headers(event, "", "application/json")
        assert len(arrival_of(headers.event, "", body, {}).repository) <= 200


@given(COMMITS, COMMITS)
def test_what_git_tells_arrives_as_it_was(before, after):
    update = RefUpdate(before=before, after=after, ref="refs/heads/main")
    push = parse_push(push_payload(update, "lab/code"))
    assert (push.before, push.after, push.deleted) == (before, after, after == "0" * 40)
