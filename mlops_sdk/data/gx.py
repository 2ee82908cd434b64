"""Great Expectations checks a table against a suite. Importing it takes seconds, so that happens inside."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Sequence
from typing import Any, cast

from mlops_sdk.data.expectations import Expectation, Row, SuiteSpec, expectations_of
from mlops_sdk.errors import SettingsError


def check(rows: Sequence[Row], suite: SuiteSpec) -> dict[str, Any]:
    """Great Expectations' result of the suite on the rows, as JSON: ``success``, ``statistics``, ``results``.

    Raises:
        SettingsError: Great Expectations is not installed.
    """
    # https://docs.greatexpectations.io/docs/reference/learn/usage_statistics
    os.environ.setdefault("GX_ANALYTICS_ENABLED", "false")
    logging.getLogger("great_expectations").setLevel(logging.WARNING)  # under Airflow it floods the task's log
    try:
        import great_expectations as gx  # noqa: PLC0415 - extra [data]; 7 s
        import pandas as pd  # noqa: PLC0415 - same
    except ImportError as error:
        raise SettingsError(
            "Great Expectations is not installed", seen=str(error), next_step="install openinfra-mlops[data]"
        ) from error
    columns = [column.name for column in suite.columns]
    names = list(dict.fromkeys([*columns, *(name for row in rows for name in row)])) if rows else columns
    present = [name for name in names if not rows or any(name in row for row in rows)]
    # Objects keep Python's types and None apart; pandas would turn a missing integer into a float.
    frame = pd.DataFrame([[row.get(name) for name in present] for row in rows], columns=present, dtype=object)
    context = gx.get_context(mode="ephemeral")
    context.variables.progress_bars = {"globally": False}  # pyright: ignore[reportAttributeAccessIssue] - a property with a setter
    asset = context.data_sources.add_pandas("rows").add_dataframe_asset("table")
    batch = asset.add_batch_definition_whole_dataframe("all").get_batch({"dataframe": frame})
    checks = gx.ExpectationSuite(name=suite.name, expectations=[_build(gx, e) for e in expectations_of(suite)])
    # batch.validate, not a Checkpoint: that cannot serialise some of its own results (numpy booleans).
    wanted: dict[str, Any] = {"result_format": "SUMMARY"}
    if suite.key and set(suite.key) <= set(present):
        wanted["unexpected_index_column_names"] = list(suite.key)
    result = cast("dict[str, Any]", batch.validate(checks, result_format=wanted).to_json_dict())
    result["meta"]["batch_markers"].pop("ge_load_time", None)  # equal data gives an equal result
    return json.loads(json.dumps(result, default=str))


def _build(gx: Any, expectation: Expectation) -> Any:
    return getattr(gx.expectations, expectation.type)(**expectation.arguments)
