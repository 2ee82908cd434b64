"""GitHub's signature scheme."""

import pytest

from mlops_sdk.errors import BadSignature
from mlops_sdk.webhooks.verify import sign, verify

OLD = b"the secret that is being replaced"
NEW = b"the secret that replaces it"
BODY = b'{"ref": "refs/heads/main"}'


def test_the_example_of_githubs_documentation():
    signed = sign(b"It's a Secret to Everybody", b"Hello, World!")
    assert signed == "sha256=757107ea0eb2509fc211221cce984b8a37570b6d7586c22c46f4379c8b043e17"


@pytest.mark.parametrize("secret", [OLD, NEW])
def test_both_secrets_are_accepted_while_one_replaces_the_other(secret):
    verify(BODY, sign(secret, BODY), (OLD, NEW))


@pytest.mark.parametrize(
    "signature",
    [
        "",
        "sha256=",
        "sha1=" + "0" * 40,
        "sha256=" + "0" * 64,
        sign(NEW, BODY).removeprefix("sha256="),
        sign(NEW, BODY).upper(),
        sign(NEW, BODY) + " ",
        sign(NEW, BODY)[:-1],
        sign(b"another", BODY),
        sign(NEW, BODY + b"\n"),
        "sha256=\N{SNOWMAN}",
    ],
)
def test_anything_else_is_refused_in_the_same_words(signature):
    with pytest.raises(BadSignature) as refused:
        verify(BODY, signature, (OLD, NEW))
    assert refused.value.what == "the delivery is not signed with a secret that is valid here"
    assert OLD.decode() not in str(refused.value)


def test_without_a_secret_nothing_is_accepted():
    with pytest.raises(BadSignature):
        verify(BODY, sign(b"", BODY), ())
