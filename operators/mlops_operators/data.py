"""Data before machines: validated against its expectations, then pinned as a revision."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

from airflow.sdk import Context
from pydantic import JsonValue

from mlops_operators.base import MlopsOperator
from mlops_sdk.data.prepared import build_folder
from mlops_sdk.data.validation import validate
from mlops_sdk.data.versioning import pin
from mlops_sdk.dotted import resolve


class ValidateDataOperator(MlopsOperator):
    """Check a table against a Great Expectations suite and keep the result in the bucket.

    Pushes back ``{"uri", "sha256", "bytes", "kind", "success"}``. An expectation that does not hold fails the task at
    once, with expectation, column, how many and examples: no retry makes the data better.

    Args:
        rows: ``module:function`` that returns the table, a list of JSON objects. Not templated: it names code.
        suite: ``module:name`` of a `mlops_sdk.data.expectations.SuiteSpec`. Not templated.
        arguments: Of `rows`, by name. Templated.
        kwargs: Of `MlopsOperator`.
    """

    template_fields: Collection[str] = (*MlopsOperator.template_fields, "arguments")
    ui_color = "#e8eef8"

    def __init__(
        self, *, rows: str, suite: str, arguments: Mapping[str, JsonValue] | None = None, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.rows = rows
        self.suite = suite
        self.arguments = arguments

    def execute(self, context: Context) -> dict[str, JsonValue]:
        """Validate."""
        del context
        with self.failures():
            rows = resolve(self.rows)(**(self.arguments or {}))
            return validate(self.hook.client().store, rows, resolve(self.suite)).to_json()


class PinDataOperator(MlopsOperator):
    """Build a file of data and pin it as a revision of the data repository; the same content is one revision.

    Pushes back a `mlops_sdk.data.versioning.DataVersion`: ``{"name", "sha256", "md5", "size", "revision"}``.

    Args:
        build: ``module:function`` that makes the file: called with a folder and `arguments`, returns its path. Not
            templated: it names code.
        repository: Clone URL of the data repository. Templated.
        arguments: Of `build`, by name. Templated.
        cache: Folder on the worker for built files and DVC's cache; what is there already is used again. Templated.
        kwargs: Of `MlopsOperator`.
    """

    template_fields: Collection[str] = (*MlopsOperator.template_fields, "repository", "arguments", "cache")
    ui_color = "#e8eef8"

    def __init__(
        self,
        *,
        build: str,
        repository: str,
        arguments: Mapping[str, JsonValue] | None = None,
        cache: str = "~/.cache/openinfra-mlops",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.build = build
        self.repository = repository
        self.arguments = arguments
        self.cache = cache

    def execute(self, context: Context) -> dict[str, JsonValue]:
        """Build and pin."""
        del context
        with self.failures():
            cache = Path(self.cache).expanduser()
            arguments = dict(self.arguments or {})
            build: Callable[..., Path] = resolve(self.build)
            built = build(build_folder(cache, self.build, arguments), **arguments)
            return pin(self.hook.settings().s3, self.repository, built, cache=cache / "dvc").to_json()
