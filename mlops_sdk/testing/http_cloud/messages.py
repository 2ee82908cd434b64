"""What goes over the wire to a service of the fake cloud, and back, before it is put into HTTP."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

ServiceName = Literal["identity", "baremetal", "s3", "compute", "network", "block-storage", "image", "placement"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One request.

    Attributes:
        service: To which service.
        method: HTTP method.
        path: Below the service's root (S3: ``/<bucket>/<key>``).
        query: Query parameters; of one that is given several times the values, with commas between them.
        headers: With names in lower case.
        body: What the JSON says; bytes for S3; None when there is none.
    """

    service: ServiceName
    method: str
    path: str
    query: Mapping[str, str] = field(default_factory=dict[str, str])
    headers: Mapping[str, str] = field(default_factory=dict[str, str])
    body: Any = None

    def __str__(self) -> str:
        query = "&".join(f"{name}={value}" for name, value in self.query.items())
        return f"{self.service} {self.method} {self.path}{f'?{query}' if query else ''}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """One reply.

    Attributes:
        status: HTTP status.
        body: What the JSON is to say; S3: bytes, or a `Listing`; None when there is none.
        headers: As they are written.
    """

    status: int
    body: Any = None
    headers: Mapping[str, str] = field(default_factory=dict[str, str])


class NoAnswer(Exception):
    """The caller waited in vain: whether the request was, is being or will be carried out it cannot know."""


Send: TypeAlias = Callable[[Call], Answer]
"""Carries a call to the cloud and its answer back. Raises `NoAnswer`."""
