"""What a person sees while the stack comes up: a live table on a terminal, one line per change elsewhere."""

from __future__ import annotations

import time
from collections.abc import Generator
from contextlib import contextmanager
from typing import TextIO

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from mlops_sdk.local.service import State, Unit

_COLOURS = {
    State.HELD: "dim",
    State.WAITING: "dim",
    State.STARTING: "yellow",
    State.READY: "green",
    State.UNHEALTHY: "red",
    State.RESTARTING: "yellow",
    State.STOPPED: "dim",
    State.FAILED: "red",
}


class Progress:
    """Shows units as they change."""

    def __init__(self, out: TextIO) -> None:
        self._console = Console(file=out, highlight=False, soft_wrap=not out.isatty())
        self._began = time.monotonic()
        self._since: dict[str, float] = {}
        self._shown: dict[str, State] = {}
        self._units: list[Unit] = []

    @contextmanager
    def live(self, units: list[Unit]) -> Generator[None]:
        """Show these units until the block ends."""
        self._units = units
        if not self._console.is_terminal:
            yield
            return
        with Live(get_renderable=self._table, console=self._console, refresh_per_second=4):
            yield

    def changed(self, unit: Unit) -> None:
        """A unit has a new state."""
        if unit.state in (State.STARTING, State.RESTARTING):
            self._since.setdefault(unit.service.name, time.monotonic())
        else:
            self._since.pop(unit.service.name, None)
        news = self._shown.get(unit.service.name) is not unit.state
        self._shown[unit.service.name] = unit.state
        if news and not self._console.is_terminal:
            self.say(f"{unit.service.name:<22} {unit.state:<10} {_seconds(unit, 0.0):>6}  {_right(unit)}")

    def say(self, text: str) -> None:
        """One line, with the seconds since the start."""
        self._console.print(f"[{time.monotonic() - self._began:6.1f}] {text}", markup=False)

    def _table(self) -> Table:
        table = Table(box=None, pad_edge=False)
        for heading in ("service", "state", "seconds", "address"):
            table.add_column(heading, justify="right" if heading == "seconds" else "left", no_wrap=True)
        now = time.monotonic()
        for unit in self._units:
            running = now - self._since.get(unit.service.name, now)
            state = Text(str(unit.state), style=_COLOURS[unit.state])
            table.add_row(unit.service.name, state, _seconds(unit, running), _right(unit))
        return table


def _seconds(unit: Unit, running: float) -> str:
    seconds = running or unit.seconds
    return f"{seconds:.1f}" if seconds else ""


def _right(unit: Unit) -> str:
    return unit.detail.splitlines()[0] if unit.detail else unit.service.address
