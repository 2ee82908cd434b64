"""What ranks tell their controller: marked lines of JSON among the output of the program. Pure."""

from __future__ import annotations

import json
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

MARK = "@@mlops "


class _Message(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)


class Started(_Message):
    """A rank runs; `pid` is the program's process on its machine."""

    kind: Literal["started"] = "started"
    rank: int
    pid: int


class Progress(_Message):
    """Metrics of one step."""

    kind: Literal["progress"] = "progress"
    rank: int
    step: int
    metrics: dict[str, float]


class Raised(_Message):
    """The program raised. `retriable` as the exception says of itself; `time` is Unix time on the machine."""

    kind: Literal["raised"] = "raised"
    rank: int
    time: float
    exception: str
    message: str
    traceback: str
    retriable: bool = False
    next_step: str = ""


class Stopped(_Message):
    """The program has ended itself, because its lease ends; everything up to `step` is committed."""

    kind: Literal["stopped"] = "stopped"
    rank: int
    step: int


class RankEnded(_Message):
    """A rank's process is gone. `signal` 0: it exited with `status`. `asked`: somebody had told it to stop."""

    kind: Literal["rank_ended"] = "rank_ended"
    rank: int
    status: int
    signal: int
    asked: bool


class Prepared(_Message):
    """A machine has the bundle and the data in place."""

    kind: Literal["prepared"] = "prepared"
    python_path: list[str]
    interface: str
    network: str
    seconds: float


class Refused(_Message):
    """A machine could not be prepared. `error` names a class of `mlops_sdk.errors`."""

    kind: Literal["refused"] = "refused"
    error: str
    what: str
    seen: str = ""
    next_step: str = ""


Message = Started | Progress | Raised | Stopped | RankEnded | Prepared | Refused
_ADAPTER: TypeAdapter[Message] = TypeAdapter(Annotated[Message, Field(discriminator="kind")])


def encode(message: Message) -> str:
    """The message as one line, without line end."""
    return MARK + json.dumps(message.model_dump(), separators=(",", ":"))


def decode(line: str) -> Message | None:
    """The message in this line of output; None for an ordinary line (and for one that only looks like a message)."""
    _, mark, body = line.partition(MARK)
    if not mark:
        return None
    try:
        return _ADAPTER.validate_json(body)
    except ValidationError:
        return None
