"""What arrives: GitHub's headers and its push payload, narrowed to what we use. Pure; its only errors are typed."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Annotated, Final, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from mlops_sdk.errors import Malformed
from mlops_sdk.invalid import wrong_fields

PUSH: Final = "push"
PING: Final = "ping"
_EVENT: Final = re.compile(r"[a-z][a-z0-9_]{0,63}")
_DELIVERY: Final = re.compile(r"[A-Za-z0-9-]{0,64}")
_NO_COMMIT: Final = "0"

_Payload = TypeVar("_Payload", bound=BaseModel)
_Sha = Annotated[str, Field(pattern=r"^[0-9a-f]{40}$")]
_Ref = Annotated[str, Field(pattern=r"^refs/[^\x00-\x20\x7f~^:?*\[\\]+$", max_length=255)]
_FullName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*(/[A-Za-z0-9_.-]+)+$", max_length=200)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Headers:
    """The headers of a delivery: what happened, and the sender's own id of this delivery ("" when it gave none)."""

    event: str
    delivery: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PushEvent:
    """A ref of a repository moved.

    Attributes:
        repository: Full name, `owner/name`.
        ref: The full ref, `refs/heads/main`.
        before: The commit it pointed at; forty zeros when it was created.
        after: The commit it points at; forty zeros when it was deleted.
        deleted: The ref is gone.
    """

    repository: str
    ref: str
    before: str
    after: str
    deleted: bool


class _Repository(BaseModel):
    model_config = ConfigDict(strict=True, extra="ignore")

    full_name: _FullName


class _PushPayload(BaseModel):
    model_config = ConfigDict(strict=True, extra="ignore")

    ref: _Ref
    before: _Sha
    after: _Sha
    deleted: bool = False
    repository: _Repository


class _OtherPayload(BaseModel):
    model_config = ConfigDict(strict=True, extra="ignore")

    repository: _Repository | None = None


def parse_headers(event: str, delivery: str, content_type: str) -> Headers:
    """The headers of a delivery, checked.

    Raises:
        Malformed: one is missing or has the wrong form.
    """
    if _EVENT.fullmatch(event) is None:
        raise _malformed("the header X-GitHub-Event", "missing, or not a name of an event")
    if _DELIVERY.fullmatch(delivery) is None:
        raise _malformed("the header X-GitHub-Delivery", "not an id: letters, digits and '-', at most 64")
    if content_type.partition(";")[0].strip().lower() != "application/json":
        raise _malformed("the header Content-Type", "not application/json")
    return Headers(event=event, delivery=delivery)


def parse_push(body: bytes) -> PushEvent:
    """A push payload, in GitHub's form.

    Raises:
        Malformed: not JSON, a field is missing, or one has the wrong type or form. Values are not repeated.
    """
    payload = _validated(_PushPayload, body, "the push payload")
    return PushEvent(
        repository=payload.repository.full_name,
        ref=payload.ref,
        before=payload.before,
        after=payload.after,
        deleted=payload.deleted or not payload.after.strip(_NO_COMMIT),
    )


def parse_repository(body: bytes) -> str:
    """The repository that any other event names; "" when it names none.

    Raises:
        Malformed: not a JSON object, or the repository has the wrong form.
    """
    repository = _validated(_OtherPayload, body, "the payload").repository
    return repository.full_name if repository is not None else ""


def _validated(model: type[_Payload], body: bytes, what: str) -> _Payload:
    try:
        return model.model_validate_json(body)
    except ValidationError as error:
        raise _malformed(what, wrong_fields(error, whole="body")) from None


def _malformed(what: str, seen: str) -> Malformed:
    return Malformed(f"{what} is not as GitHub sends it", seen=seen, next_step="see GitHub's webhook documentation")
