"""Great Expectations itself on good and bad corpora; its result in the real S3."""

from __future__ import annotations

import hashlib
import json
import uuid
from pathlib import Path
from typing import Any

import pytest

from mlops_pipelines.programs.code_lm.table import SUITE, rows
from mlops_sdk.data.expectations import failures_in
from mlops_sdk.data.gx import check
from mlops_sdk.data.validation import validate
from mlops_sdk.errors import DataRejected
from mlops_sdk.objects import ObjectStore

pytestmark = pytest.mark.stack


@pytest.fixture
def good(tmp_path: Path) -> Path:
    folder = tmp_path / "corpus"
    folder.mkdir()
    for number in range(25):
        (folder / f"module_{number}.py").write_text(f"x = {number}\n")
    return folder


@pytest.fixture
def store(stack: Any) -> ObjectStore:
    store = ObjectStore.open(stack.settings.s3)
    store.ensure_bucket()
    return store


def failing(table: list[dict[str, Any]]) -> set[tuple[str, str]]:
    found = failures_in(check(table, SUITE)["results"])
    return {(failure.expectation.removeprefix("expect_"), failure.column) for failure in found}


def test_good_data_passes_and_bad_data_is_named_with_its_files(store: ObjectStore, good: Path):
    roots = {"python": str(good)}
    reference = validate(store, rows(["python"], roots), SUITE)
    key = f"validations/{reference.sha256}.json"
    assert reference.uri == f"s3://{store.bucket}/{key}"
    body = store.get(key) or b""
    assert (hashlib.sha256(body).hexdigest(), len(body)) == (reference.sha256, reference.bytes)
    assert json.loads(body)["result"]["statistics"]["unsuccessful_expectations"] == 0
    assert validate(store, rows(["python"], roots), SUITE) == reference

    latin = f"latin-{uuid.uuid4().hex[:8]}.py"  # the bucket may hold what an earlier test session was refused for
    (good / latin).write_bytes("# café\n".encode("latin-1"))
    (good / "copy.py").write_text("x = 7\n")
    (good / "empty.py").write_bytes(b"")
    before = {info.key for info in store.list("validations/")}
    with pytest.raises(DataRejected) as caught:
        validate(store, rows(["python"], roots), SUITE)
    said = str(caught.value)
    assert "suite 'code_lm.corpus'" in said
    assert f"'encoding': 1 wrong, such as (encoding 'unknown', kind 'python', path '{latin}')" in said
    assert "expect_column_values_to_be_between of 'bytes': 1 wrong" in said
    (kept,) = {info.key for info in store.list("validations/")} - before
    assert caught.value.next_step.endswith(f"s3://{store.bucket}/{kept}")


@pytest.mark.slow
def test_each_kind_of_fault_has_its_expectation(good: Path):
    table = rows(["python"], {"python": str(good)})
    assert failing(table) == set()
    assert failing([*table, {**table[0], "path": None, "sha256": "0" * 64}]) == {
        ("column_values_to_not_be_null", "path")
    }
    assert failing([*table, {**table[0], "path": "other.py"}]) == {("column_values_to_be_unique", "sha256")}
    assert failing([*table, {**table[0], "sha256": "0" * 64}]) == {("compound_columns_to_be_unique", "kind, path")}
    odd = {"path": "odd.py", "sha256": "0" * 64}
    assert failing([*table, {**table[0], **odd, "encoding": "unknown", "characters": None}]) == {
        ("column_values_to_be_in_set", "encoding"),
        ("column_values_to_not_be_null", "characters"),
    }
    assert ("column_values_to_be_between", "bytes") in failing([*table, {**table[0], **odd, "bytes": 0}])
    assert ("column_values_to_be_of_type", "lines") in failing([*table, {**table[0], **odd, "lines": "many"}])
    assert failing([]) == {("table_row_count_to_be_between", "")}
    assert failing([{**row, "owner": "?"} for row in table]) == {("table_columns_to_match_set", "")}
