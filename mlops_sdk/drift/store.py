"""Where references, reports and alerts are kept in the deployment's bucket.

profiles/<sha256>.json                references, by their hash
drift/<model>/state.json              what the watcher remembers between looks
drift/<model>/reports/<number>.json   one per judged window
alerts/<id>.json                      what people must know
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from mlops_sdk.canonical import to_json
from mlops_sdk.drift.profile import Reference
from mlops_sdk.errors import DriftError, ProfileDamaged
from mlops_sdk.objects import ObjectStore

_ALERTS = "alerts/"


def reference_key(sha256: str) -> str:
    """Where a reference is."""
    return f"profiles/{sha256}.json"


def state_key(model: str) -> str:
    """Where the watcher's memory of a model is."""
    return f"drift/{model}/state.json"


def report_key(model: str, number: int) -> str:
    """Where the report of a judged window is."""
    return f"drift/{model}/reports/{number:08d}.json"


def put_reference(store: ObjectStore, reference: Reference) -> str:
    """Store a reference under its hash, which is returned. One that is there is left alone."""
    sha256 = reference.sha256
    store.put_if_absent(reference_key(sha256), reference.to_bytes())
    return sha256


def get_reference(store: ObjectStore, sha256: str) -> Reference:
    """A reference by its hash.

    Raises:
        DriftError: there is none.
        ProfileDamaged: what is there has another hash, or is no reference.
        ProfileMismatch: it was made with another version of the features.
    """
    body = store.get(reference_key(sha256))
    if body is None:
        raise DriftError(
            f"the reference {sha256[:12]!r} of served prompts is not in bucket {store.bucket!r}",
            next_step="store the reference when the model is registered or rolled out",
        )
    reference = Reference.parse(body)
    if reference.sha256 != sha256:
        raise ProfileDamaged(
            f"the stored reference {sha256[:12]!r} is another one",
            seen=f"its hash is {reference.sha256[:12]}",
            next_step="store the model's reference again",
        )
    return reference


@dataclass(frozen=True, slots=True, kw_only=True)
class Alert:
    """Something people must know. Written once; never changed.

    Attributes:
        id: Unique; the same event has the same id, however often it is noticed.
        kind: ``drift``.
        at: When it was noticed.
        subject: What it is about, such as a model with its version.
        words: What happened, in a sentence.
        details: Anything else: URIs, figures.
    """

    id: str
    kind: str
    at: datetime
    subject: str
    words: str
    details: Mapping[str, Any] = field(default_factory=dict[str, Any])

    def to_json(self) -> dict[str, Any]:
        """As stored."""
        return {
            "version": 1,
            "id": self.id,
            "kind": self.kind,
            "at": self.at.isoformat(),
            "subject": self.subject,
            "words": self.words,
            "details": dict(self.details),
        }

    @classmethod
    def parse(cls, raw: Mapping[str, Any]) -> Alert:
        """From what was stored."""
        return cls(
            id=str(raw["id"]),
            kind=str(raw["kind"]),
            at=datetime.fromisoformat(str(raw["at"])),
            subject=str(raw["subject"]),
            words=str(raw["words"]),
            details=dict(raw.get("details", {})),
        )


def raise_alert(store: ObjectStore, alert: Alert) -> bool:
    """Write an alert unless its id is taken; whether it was written."""
    return store.put_if_absent(f"{_ALERTS}{alert.id}.json", to_json(alert.to_json()))


def alerts(store: ObjectStore) -> list[Alert]:
    """All alerts, oldest first."""
    found = [store.get_json(info.key) for info in store.list(_ALERTS)]
    return sorted((Alert.parse(raw) for raw in found if raw is not None), key=lambda alert: (alert.at, alert.id))
