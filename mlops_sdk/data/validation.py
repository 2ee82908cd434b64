"""Validate a table and keep the result: what a DAG carries on is a reference to it."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from pydantic import JsonValue

from mlops_sdk.canonical import to_json
from mlops_sdk.data.expectations import Failure, Row, SuiteSpec, failures_in
from mlops_sdk.data.gx import check
from mlops_sdk.errors import DataRejected
from mlops_sdk.objects import ObjectStore

KIND = "great_expectations.validation"
_SHOWN = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class ValidationRef:
    """A stored validation result: ``validations/<sha256>.json`` in the bucket."""

    uri: str
    sha256: str
    bytes: int
    kind: str
    success: bool

    def to_json(self) -> dict[str, JsonValue]:
        """Plain values."""
        return asdict(self)


def validate(store: ObjectStore, rows: Sequence[Row], suite: SuiteSpec) -> ValidationRef:
    """Check the rows against the suite and store Great Expectations' result, good or bad.

    The result holds no rows, only counts and a few examples.

    Raises:
        DataRejected: an expectation does not hold; names it, its column, how many values, some of them, and the result.
        ServiceUnavailable: the result cannot be stored.
        SettingsError: Great Expectations is not installed.

    Example:
        >>> suite = SuiteSpec(name="files", columns=(ColumnSpec(name="path", type="str", unique=True),))
        >>> validate(store, [{"path": "a.py"}], suite).success                    # doctest: +SKIP
        True
    """
    result = check(rows, suite)
    body = to_json({"suite": suite.model_dump(mode="json"), "rows": len(rows), "result": result})
    digest = hashlib.sha256(body).hexdigest()
    key = f"validations/{digest}.json"
    store.put_if_absent(key, body)
    uri = f"s3://{store.bucket}/{key}"
    if not result["success"]:
        raise _rejected(suite, failures_in(result["results"]), uri)
    return ValidationRef(uri=uri, sha256=digest, bytes=len(body), kind=KIND, success=True)


def _rejected(suite: SuiteSpec, failures: Sequence[Failure], uri: str) -> DataRejected:
    more = f"; and {len(failures) - _SHOWN} more" if len(failures) > _SHOWN else ""
    many = "1 expectation" if len(failures) == 1 else f"{len(failures)} expectations"
    return DataRejected(
        f"the data does not meet {many} of suite {suite.name!r}",
        seen="; ".join(str(failure) for failure in failures[:_SHOWN]) + more,
        next_step=f"correct the data (or the suite); the whole result is {uri}",
    )
