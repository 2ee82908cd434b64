"""A red commit never costs a machine."""

from __future__ import annotations

import os
import signal
from collections.abc import Collection, Sequence
from contextlib import suppress
from dataclasses import asdict
from typing import Any

from airflow.sdk import Context

from mlops_operators.base import MlopsOperator
from mlops_sdk.commit_check import check_commit
from mlops_sdk.source import SourceRef


class RunTestsOperator(MlopsOperator):
    """Check out exactly one commit and run its tests. They see nothing of the deployment but the code.

    Pushes back ``{"repository", "commit", "summary", "log"}``. A red commit fails the task at once: no retry makes it
    green. A repository or an S3 that does not answer is tried again as the task says.

    Args:
        repository: Clone URL. Templated.
        commit: Forty digits. Templated.
        paths: What pytest is given, relative to the checkout. Templated.
        timeout_s: The tests are ended after this time.
        kwargs: Of `MlopsOperator`.
    """

    template_fields: Collection[str] = (*MlopsOperator.template_fields, "repository", "commit", "paths")
    ui_color = "#e8f3e8"

    def __init__(
        self, *, repository: str, commit: str, paths: Sequence[str], timeout_s: float = 1800.0, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.repository = repository
        self.commit = commit
        self.paths = paths
        self.timeout_s = timeout_s
        self._group = 0

    def execute(self, context: Context) -> dict[str, str]:
        """Run the tests."""
        del context
        with self.failures():
            code = SourceRef(repository=self.repository, commit=self.commit)
            store = self.hook.client().store
            return asdict(
                check_commit(store, code, self.paths, timeout_s=self.timeout_s, on_start=self._remember_group)
            )

    def on_kill(self) -> None:
        """End the tests; the task fails with them."""
        if self._group:
            with suppress(ProcessLookupError):
                os.killpg(self._group, signal.SIGKILL)

    def _remember_group(self, group: int) -> None:
        self._group = group
