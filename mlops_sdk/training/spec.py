"""What is to be run on the machines of a lease, and where: plain data. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from pydantic import JsonValue


class Launcher(StrEnum):
    """What starts the ranks."""

    TORCHRUN = "torchrun"
    MPIRUN = "mpirun"


@dataclass(frozen=True, slots=True, kw_only=True)
class DataRef:
    """One file of input: the object `key` in the bucket, which has to have this SHA-256 and size (bytes)."""

    name: str
    sha256: str
    size: int
    key: str


@dataclass(frozen=True, slots=True, kw_only=True)
class BundleRef:
    """The code of a job, named by its content: object ``bundles/<sha256>.tar``."""

    sha256: str
    size: int

    @property
    def key(self) -> str:
        """Its key in the bucket."""
        return f"bundles/{self.sha256}.tar"


@dataclass(frozen=True, slots=True, kw_only=True)
class LaunchSpec:
    """One program on all machines of a lease; both launchers run it from this same spec.

    Attributes:
        module: Dotted name of the module every rank runs as ``__main__``; from the bundle's program tree or its wheel.
        bundle: The code.
        args: JSON arguments; the program reads them from its context.
        launcher: What starts the ranks.
        processes_per_node: Ranks on each machine.
        env: Additional environment of the ranks. No secrets: other processes on the machine can read it.
        data: Input files, fetched and verified on every machine before the start.
        reads: What else in the bucket the program may read: keys, or prefixes that end in ``/``.
        max_attempts: Starts in all. Only causes that trying again can cure lead to another one.
    """

    module: str
    bundle: BundleRef
    args: Mapping[str, JsonValue] = field(default_factory=dict[str, JsonValue])
    launcher: Launcher = Launcher.TORCHRUN
    processes_per_node: int = 1
    env: Mapping[str, str] = field(default_factory=dict[str, str])
    data: tuple[DataRef, ...] = ()
    reads: tuple[str, ...] = ()
    max_attempts: int = 3

    @property
    def inputs(self) -> tuple[str, ...]:
        """Everything in the bucket that the job reads and is not its run's own."""
        return (self.bundle.key, *(data.key for data in self.data), *self.reads)
