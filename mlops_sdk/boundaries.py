"""The moments before and after a run creates something or gives it back: journalled, and told to who listens."""

from __future__ import annotations

import logging
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any, Literal

from mlops_sdk.journal import EntryKind, Journal

Phase = Literal["before", "after"]
EventCallback = Callable[[str, Phase, dict[str, Any]], None]

_log = logging.getLogger(__name__)
_GIVING_BACK = {"allocation.delete", "machine.tear_down", "machine.released", "credential.revoke"}


class Boundaries:
    """The boundaries of one run. Giving back never fails for want of a journal or for a listener's exception.

    Args:
        journal: Where intents and outcomes go.
    """

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._callbacks: list[EventCallback] = []

    def listen(self, callback: EventCallback) -> None:
        """Tell this one too."""
        self._callbacks.append(callback)

    @contextmanager
    def around(self, step: str, resource: str, *, generation: int, **detail: Any) -> Generator[dict[str, Any]]:
        """Journal the intent, tell, let the call happen, journal the outcome, tell. Yields the outcome's details."""
        write = self._journal.note if step in _GIVING_BACK else self._journal.append
        write(EntryKind.INTENT, step, resource, generation=generation, **detail)
        self.tell(step, "before", {"resource": resource, **detail})
        yield detail
        write(EntryKind.OUTCOME, step, resource, generation=generation, **detail)
        self.tell(step, "after", {"resource": resource, **detail})

    def tell(self, step: str, phase: Phase, detail: dict[str, Any]) -> None:
        """Tell all listeners. What one raises comes out of here, except while the run gives back."""
        for callback in self._callbacks:
            try:
                callback(step, phase, detail)
            except Exception:
                if step not in _GIVING_BACK:
                    raise
                _log.exception("a listener failed %s %r", phase, step)
