"""One way to write JSON, so that equal values have equal bytes and hashes. Pure."""

from __future__ import annotations

import json
from typing import Any


def to_json(value: Any) -> bytes:
    """Canonical JSON: sorted keys, no spaces, UTF-8; equal values give equal bytes."""
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()
