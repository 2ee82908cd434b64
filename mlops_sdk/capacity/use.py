"""What each owner has used lately, for fair shares: ``use/<owner>.json``, one number that fades with age.

Used node-seconds count half after the half-life, a quarter after two, as batch schedulers do it. Kept apart from the
journals, so that a waiting run reads one small object an owner and not the history of every run.
"""

from __future__ import annotations

import hashlib
import json
from contextlib import suppress
from datetime import datetime
from typing import Any, Final

from mlops_sdk.canonical import to_json
from mlops_sdk.capacity.evidence import NodeEvidence
from mlops_sdk.capacity.lease import from_iso, to_iso
from mlops_sdk.errors import RemoteError
from mlops_sdk.objects import ObjectStore

_PREFIX: Final = "use/"
_ATTEMPTS: Final = 5
_NAME_LENGTH: Final = 16


def note_return(
    store: ObjectStore, evidence: NodeEvidence, *, owner: str, since: datetime | None, half_life_s: float
) -> None:
    """Add the time for which a machine was held that was given back now; best effort."""
    if since is None or not evidence.node_id or not evidence.finished_at:
        return
    until = from_iso(evidence.finished_at)
    _note_use(store, owner, max(0.0, (until - since).total_seconds()), now=until, half_life_s=half_life_s)


def used_by_owner(store: ObjectStore, *, now: datetime, half_life_s: float) -> dict[str, float]:
    """Faded node-seconds of everybody who used something, by owner."""
    found = [store.get_json(info.key) for info in list(store.list(_PREFIX))]
    return {
        str(raw["owner"]): _faded(raw, now, half_life_s) for raw in found if isinstance(raw, dict) and "owner" in raw
    }


def _note_use(store: ObjectStore, owner: str, node_seconds: float, *, now: datetime, half_life_s: float) -> None:
    """Add to what an owner has used. Best effort: a fair share is worth no failure.

    Two processes that write down the same interval count it twice; that fades as well.
    """
    key = f"{_PREFIX}{hashlib.sha256(owner.encode()).hexdigest()[:_NAME_LENGTH]}.json"
    with suppress(RemoteError):
        for _ in range(_ATTEMPTS):
            found = store.get_with_etag(key)
            before = _parsed(found[0]) if found else None
            body = to_json(
                {
                    "version": 1,
                    "owner": owner,
                    "node_seconds": round(_faded(before, now, half_life_s) + node_seconds, 3),
                    "at": to_iso(now),
                }
            )
            if store.put_if_match(key, body, found[1]) if found else store.put_if_absent(key, body):
                return


def _parsed(body: bytes) -> Any:
    try:
        return json.loads(body)
    except ValueError:
        return None


def _faded(raw: Any, now: datetime, half_life_s: float) -> float:
    """What is left of a stored use; nothing of one that is missing or damaged."""
    try:
        age_s = max(0.0, (now - from_iso(str(raw["at"]))).total_seconds())
        return float(raw["node_seconds"]) * 0.5 ** (age_s / half_life_s)
    except (KeyError, TypeError, ValueError):
        return 0.0
