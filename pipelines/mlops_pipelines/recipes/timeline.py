"""What a person watches while a recipe runs: a live timeline, then a table of step, seconds and evidence."""

from __future__ import annotations

import re
import signal
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, TextIO

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from mlops_sdk.errors import MlopsError

_FILE_WIDTH = 120


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


@dataclass(slots=True)
class Outcome:
    """How a recipe ended: its exit status, 0 only when every step succeeded."""

    status: int = 1


Phase = Literal["before", "after"]


class Timeline:
    """Steps in order, each with a log file of its own below `log_dir`.

    Args:
        log_dir: Where the logs go.
        console: Where the watcher sits.
        on_boundary: Told each step's name before and after it, as `Run.on_event` is of what a run does.

    Example:
        with timeline.step("lease two nodes") as step:
            step.show("gpu-01, gpu-02 on leaf-01")
    """

    def __init__(
        self,
        *,
        log_dir: Path,
        console: Console | None = None,
        on_boundary: Callable[[str, Phase], None] = lambda _name, _phase: None,
    ) -> None:
        self.log_dir = log_dir
        self.console = console or _console()
        self.steps: list[Step] = []
        self._began = time.monotonic()
        self._on_boundary = on_boundary
        log_dir.mkdir(parents=True, exist_ok=True)

    @contextmanager
    def step(self, name: str) -> Generator[Step]:
        """Run one step: its time is taken, its failure is recorded with the name of its log, and raised on."""
        number = len(self.steps) + 1
        log = self._log_of(number, name)
        began = time.monotonic()
        with log.open("w") as stream:
            step = self._step(name, log, number, stream)
            self._announce(step)
            self.steps.append(step)
            try:
                self._on_boundary(name, "before")
                yield step
                self._on_boundary(name, "after")
            except BaseException as error:
                step.failed = f"{type(error).__name__}: {error}"
                step.note(step.failed)
                self._tell_failure(step)
                raise
            finally:
                step.seconds = time.monotonic() - began

    def record(
        self, name: str, *, seconds: float, evidence: Sequence[str] = (), failed: str = "", log: str = ""
    ) -> Step:
        """A step that somebody else has done (a task of Airflow), when it is over; `log` is what its log file gets."""
        number = len(self.steps) + 1
        path = self._log_of(number, name)
        path.write_text(log)
        with path.open("a") as stream:
            step = self._step(name, path, number, stream)
            self.steps.append(step)
            step.seconds, step.failed = seconds, failed
            self._announce(step)
            for fact in evidence:
                step.show(fact)
            if failed:
                self._tell_failure(step)
        return step

    def say(self, text: str) -> None:
        """One line for the watcher, outside of any step."""
        self.console.print(f"[dim]{self.seconds:7.1f}s[/dim]   {escape(text)}", highlight=False)

    @property
    def seconds(self) -> float:
        """Since the recipe began."""
        return time.monotonic() - self._began

    def note(self, text: str) -> None:
        """One line for the log of the step that runs; dropped between two steps."""
        if self.steps and not self.steps[-1].stream.closed:
            self.steps[-1].note(text)

    @contextmanager
    def closing(self) -> Generator[Outcome]:
        """Run a whole recipe: what fails ends it in order (SIGTERM and Ctrl-C too), and the table comes last.

        Errors of the library are shown as one clear message; any other exception is a defect and is raised on.
        """
        outcome = Outcome()
        before = signal.signal(signal.SIGTERM, _interrupt)
        try:
            yield outcome
            outcome.status = 0
        except MlopsError as error:
            if not any(step.failed for step in self.steps):
                self.console.print(f"[bold red]failed[/bold red] {escape(str(error))}", highlight=False)
            for note in getattr(error, "__notes__", []):
                self.console.print(f"  {escape(note)}", highlight=False)
        except KeyboardInterrupt:
            outcome.status = 128 + signal.SIGINT
        finally:
            signal.signal(signal.SIGTERM, before)
            self.print_table()

    def _log_of(self, number: int, name: str) -> Path:
        slug = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
        return self.log_dir / f"{number:02d}-{slug}.log"

    def _step(self, name: str, log: Path, number: int, stream: TextIO) -> Step:
        return Step(name=name, log=log, number=number, stream=stream, console=self.console, timeline_began=self._began)

    def _announce(self, step: Step) -> None:
        line = f"[dim]{self.seconds:7.1f}s[/dim] [bold]{step.number:2d}. {escape(step.name)}[/bold]"
        self.console.print(line)

    def _tell_failure(self, step: Step) -> None:
        self.console.print(f"          [bold red]failed[/bold red] {escape(step.failed)}", highlight=False)
        self.console.print(f"          log: {escape(str(step.log))}", highlight=False)

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


def _interrupt(_number: int, _frame: object) -> None:
    raise KeyboardInterrupt


def _console() -> Console:
    """As wide as the terminal; a file or a pipe gets lines that a person can still read."""
    console = Console(soft_wrap=True)
    return console if console.is_terminal else Console(soft_wrap=True, width=_FILE_WIDTH)
