"""What a person watches while a recipe runs: a live timeline, then a table of step, seconds and evidence."""

from __future__ import annotations

import re
import time
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TextIO

from rich.console import Console
from rich.markup import escape
from rich.table import Table


@dataclass(slots=True, kw_only=True)
class Step:
    """One step while it runs. `say` goes to timeline and log, `note` to the log only, `show` also to the table."""

    name: str
    log: Path
    number: int
    stream: TextIO = field(repr=False)
    console: Console = field(repr=False)
    timeline_began: float = field(repr=False)
    evidence: list[str] = field(default_factory=list[str])
    seconds: float = 0.0
    failed: str = ""

    def say(self, text: str) -> None:
        """One line for the watcher, with the seconds since the recipe began."""
        self.note(text)
        seconds = time.monotonic() - self.timeline_began
        self.console.print(f"[dim]{seconds:7.1f}s[/dim]   {escape(text)}", highlight=False)

    def note(self, text: str) -> None:
        """One line for the step's log."""
        self.stream.write(text + "\n")
        self.stream.flush()

    def show(self, evidence: str) -> None:
        """A fact for the closing table (and the timeline)."""
        self.evidence.append(evidence)
        self.say(evidence)


class Timeline:
    """Steps in order, each with a log file of its own below `log_dir`.

    Example:
        with timeline.step("lease two nodes") as step:
            step.show("gpu-01, gpu-02 on leaf-01")
    """

    def __init__(self, *, log_dir: Path, console: Console | None = None) -> None:
        self.log_dir = log_dir
        self.console = console or Console(soft_wrap=True)
        self.steps: list[Step] = []
        self._began = time.monotonic()
        log_dir.mkdir(parents=True, exist_ok=True)

    @contextmanager
    def step(self, name: str) -> Generator[Step]:
        """Run one step: its time is taken, its failure is recorded with the name of its log, and raised on."""
        number = len(self.steps) + 1
        slug = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
        log = self.log_dir / f"{number:02d}-{slug}.log"
        began = time.monotonic()
        self.console.print(f"[dim]{began - self._began:7.1f}s[/dim] [bold]{number:2d}. {escape(name)}[/bold]")
        with log.open("w") as stream:
            step = Step(
                name=name,
                log=log,
                number=number,
                stream=stream,
                console=self.console,
                timeline_began=self._began,
            )
            self.steps.append(step)
            try:
                yield step
            except BaseException as error:
                step.failed = f"{type(error).__name__}: {error}"
                step.note(step.failed)
                self.console.print(f"          [bold red]failed[/bold red] {escape(step.failed)}", highlight=False)
                self.console.print(f"          log: {escape(str(log))}", highlight=False)
                raise
            finally:
                step.seconds = time.monotonic() - began

    def print_table(self) -> None:
        """The closing table."""
        table = Table(title=f"{len(self.steps)} steps, {time.monotonic() - self._began:.0f} s", show_lines=False)
        table.add_column("step", no_wrap=True)
        table.add_column("seconds", justify="right")
        table.add_column("evidence", overflow="fold")
        for step in self.steps:
            facts = "\n".join(step.evidence)
            if step.failed:
                facts += f"\nFAILED {step.failed}\nlog: {step.log}"
            table.add_row(f"{step.number}. {step.name}", f"{step.seconds:.1f}", escape(facts.strip()))
        self.console.print(table)
