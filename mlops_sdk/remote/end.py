"""How a command on a machine ended. Pure data."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class End:
    """How one command ended.

    Attributes:
        status: Exit status, when it exited.
        signal: Name of the signal ("KILL") that ended it, or "".
        lost: Why the connection broke, or "".
        by_us: It was ended because the group ended.
    """

    status: int | None = None
    signal: str = ""
    lost: str = ""
    by_us: bool = False

    @property
    def ok(self) -> bool:
        """The command succeeded (a guard that we ended counts as success)."""
        return self.status == 0
