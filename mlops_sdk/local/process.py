"""A stack as a child of this process: for the demo, for tests, for notebooks."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Self

from mlops_sdk.errors import StackError
from mlops_sdk.local import control
from mlops_sdk.local.control import ServiceStatus, StackStatus
from mlops_sdk.local.layout import Layout
from mlops_sdk.local.supervisor import tail

_LOOK_EVERY_S = 0.2
_STOP_TIMEOUT_S = 45.0


class StackProcess:
    """Starts `mlops local up` as a child with its output in a file; ends it at `stop`, or when this process dies.

    The stack watches the pipe at its standard input, of which only this process has the other end: however this
    process ends, the stack ends too. Services to `hold` do not start, nor do those that need them, until
    `control.release`; `profiles` adds services beside the usual ones; `environment` is set for the stack beside this
    process's own.

    Example:
        >>> with StackProcess(Path(".mlops/stacks/default")) as stack:  # doctest: +SKIP
        ...     stack.wait_ready(timeout_s=180)
    """

    def __init__(
        self,
        state_dir: Path,
        *,
        only: tuple[str, ...] = (),
        hold: tuple[str, ...] = (),
        profiles: tuple[str, ...] = (),
        faults: bool = False,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.layout = Layout.at(state_dir)
        self.layout.create()
        self.output = self.layout.log("stack")
        argv = [sys.executable, "-m", "mlops_sdk.local.up", "--state-dir", str(self.layout.state_dir)]
        argv += [
            "--until-stdin-closes",
            *(["--only", ",".join(only)] if only else []),
            *(["--hold", ",".join(hold)] if hold else []),
            *(["--with", ",".join(profiles)] if profiles else []),
            *(["--faults"] if faults else []),
        ]
        with self.output.open("wb") as output:
            self._process = subprocess.Popen(
                argv,
                env={**os.environ, **(environment or {})},
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        """The outermost process of the stack."""
        return self._process.pid

    def wait_ready(self, *, timeout_s: float, changed: Callable[[ServiceStatus], None] | None = None) -> StackStatus:
        """Wait until every service is ready, reporting each service whenever its state changes.

        Raises:
            StackError: it ended or took too long; names the log and its last lines.
        """
        seen: dict[str, str] = {}
        deadline = time.monotonic() + timeout_s
        while True:
            now = control.status(self.layout)
            if now.pid == self.pid:
                _report(now, seen, changed)
                if now.ready:
                    return now
            if self._process.poll() is not None:
                raise self._failure(f"ended with exit status {self._process.returncode}")
            if time.monotonic() > deadline:
                self.stop()
                raise self._failure(f"not ready after {timeout_s:.0f} s: {_not_ready(now)}")
            time.sleep(_LOOK_EVERY_S)

    def stop(self) -> None:
        """End the stack and wait for it. Idempotent."""
        if self._process.stdin is not None and not self._process.stdin.closed:
            self._process.stdin.close()
        try:
            self._process.wait(_STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _failure(self, seen: str) -> StackError:
        return StackError(
            f"the embedded stack in {str(self.layout.state_dir)!r} is not up",
            seen=f"{seen}\n{tail(self.output)}",
            next_step=f"see {self.output} and {self.output.parent}",
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


def _report(now: StackStatus, seen: dict[str, str], changed: Callable[[ServiceStatus], None] | None) -> None:
    for service in now.services:
        if seen.get(service.name) != service.state:
            seen[service.name] = service.state
            if changed is not None:
                changed(service)


def _not_ready(now: StackStatus) -> str:
    return ", ".join(f"{service.name} {service.state}" for service in now.services if service.state != "ready")
