"""Where a flow is about to change something outside, and where it has: the places at which a crash is interesting."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

Boundary = Callable[..., AbstractContextManager[dict[str, Any]]]
"""``boundary(step, resource, **detail)``: entered before an outside call, left after it, with its result."""


@contextmanager
def no_boundary(step: str, resource: str, **detail: Any) -> Generator[dict[str, Any]]:
    """A boundary that tells nobody."""
    del step, resource
    yield detail
