"""What a push leads to: the key that makes it one thing, the run it starts, or why it starts none. Pure."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from enum import StrEnum
from typing import Final

from pydantic import BaseModel, ConfigDict, Field

from mlops_sdk.canonical import to_json
from mlops_sdk.webhooks.event import PushEvent

_SLUG_LENGTH: Final = 60


class Route(BaseModel):
    """Where pushes to a repository lead. Nothing of this is ever taken from a payload.

    Attributes:
        clone_url: Where the code is fetched from.
        dag_id: The DAG that runs.
        ref: Only pushes to this ref start it.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    clone_url: str
    dag_id: str = Field(pattern=r"^[A-Za-z0-9_.-]{1,200}$")
    ref: str = "refs/heads/main"


class Ignored(StrEnum):
    """Why an event starts nothing."""

    OTHER_EVENT = "not a push"
    UNKNOWN_REPOSITORY = "no route for this repository"
    TAG = "a tag, not a branch"
    OTHER_REF = "not the ref of the route"
    DELETED = "the branch was deleted"


def why_ignored(push: PushEvent, routes: Mapping[str, Route]) -> Ignored | None:
    """Why a push starts nothing; None when it starts a run."""
    route = routes.get(push.repository)
    if route is None:
        return Ignored.UNKNOWN_REPOSITORY
    if push.deleted:
        return Ignored.DELETED
    if push.ref == route.ref:
        return None
    return Ignored.TAG if push.ref.startswith("refs/tags/") else Ignored.OTHER_REF


def key_of(push: PushEvent) -> str:
    """One key for one state of one ref of one repository: SHA-256 over (repository, ref, after).

    A delivery that is repeated, by GitHub or by somebody who recorded it, has the same key whatever its delivery id.
    So has a branch that returns to an earlier commit: that commit was run already.
    """
    return hashlib.sha256(to_json([push.repository, push.ref, push.after])).hexdigest()


def key_of_other(event: str, body: bytes) -> str:
    """The key of an event that is only recorded: SHA-256 over its name and body."""
    return hashlib.sha256(event.encode() + b"\n" + body).hexdigest()


def run_id_of(repository: str, after: str, key: str) -> str:
    """The DAG run of a push; whoever starts it, and however often, it has this id.

    Example:
        >>> run_id_of("lab/Code.lm", "0f" * 20, "ab" * 32)
        'push-lab-code-lm-0f0f0f0f0f0f-abababab'
    """
    slug = re.sub(r"[^a-z0-9]+", "-", repository.lower()).strip("-")[:_SLUG_LENGTH]
    return f"push-{slug}-{after[:12]}-{key[:8]}"


def conf_of(route: Route, after: str, key: str) -> dict[str, str]:
    """The DAG run's configuration: the code to check out, from our route and the authenticated commit."""
    return {"repository": route.clone_url, "commit": after, "ref": route.ref, "webhook_key": key}
