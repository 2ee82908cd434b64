"""GitHub's signature scheme: an HMAC-SHA256 over the raw body, in the header ``X-Hub-Signature-256``. Pure."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Sequence
from typing import Final

from mlops_sdk.errors import BadSignature

HEADER: Final = "X-Hub-Signature-256"
_SCHEME: Final = "sha256="
_DIGITS: Final = 64


def sign(secret: bytes, body: bytes) -> str:
    """The value of the signature header for a body.

    Example:
        >>> sign(b"It's a Secret to Everybody", b"Hello, World!")[:20]
        'sha256=757107ea0eb25'
    """
    return _SCHEME + hmac.new(secret, body, hashlib.sha256).hexdigest()


def verify(body: bytes, signature: str, secrets: Sequence[bytes]) -> None:
    """Accept a body that was signed with any of the live secrets (two, while one replaces the other).

    Takes the same time whichever character differs and whichever secret matches: all are compared, each in constant
    time. The same reason is given for every refusal.

    Args:
        body: The raw bytes, as received.
        signature: The header's value; "" when there was none.
        secrets: Those that are valid now.

    Raises:
        BadSignature: not signed, signed otherwise, or not in this scheme.
    """
    given = signature.encode("utf-8", errors="replace")
    matches = [hmac.compare_digest(sign(secret, body).encode(), given) for secret in secrets]
    if len(given) != len(_SCHEME) + _DIGITS or not any(matches):
        raise BadSignature(
            "the delivery is not signed with a secret that is valid here",
            seen="no signature" if not signature else "another signature",
            next_step=f"sign the raw body with the shared secret and send it as {HEADER}",
        )
