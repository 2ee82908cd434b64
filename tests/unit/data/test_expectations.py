"""Suites in our words become Great Expectations', and its results become sentences."""

from __future__ import annotations

from typing import Any

from mlops_pipelines.programs.code_lm.sources import SourceFile
from mlops_pipelines.programs.code_lm.table import SUITE, row
from mlops_sdk.data.expectations import ColumnSpec, SuiteSpec, expectations_of, failures_in


def failed(type_: str, result: dict[str, Any], exception: str | None = None, **arguments: Any) -> dict[str, Any]:
    return {
        "success": False,
        "expectation_config": {"type": type_, "kwargs": arguments},
        "result": result,
        "exception_info": {"raised_exception": bool(exception), "exception_message": exception},
    }


def test_a_suite_says_schema_size_columns_and_combinations():
    suite = SuiteSpec(
        name="s",
        columns=(
            ColumnSpec(name="a", type="str", minimum=1, unique=True, pattern="^x"),
            ColumnSpec(name="b", type="int", nullable=True, maximum=9, one_of=(1, 2)),
        ),
        min_rows=2,
        unique_together=(("a", "b"),),
    )
    told = [(e.type.removeprefix("Expect"), e.arguments.get("column", "")) for e in expectations_of(suite)]
    assert told == [
        ("TableColumnsToMatchSet", ""),
        ("TableRowCountToBeBetween", ""),
        ("ColumnValuesToBeOfType", "a"),
        ("ColumnValuesToNotBeNull", "a"),
        ("ColumnValuesToBeUnique", "a"),
        ("ColumnValueLengthsToBeBetween", "a"),
        ("ColumnValuesToMatchRegex", "a"),
        ("ColumnValuesToBeOfType", "b"),
        ("ColumnValuesToBeBetween", "b"),
        ("ColumnValuesToBeInSet", "b"),
        ("CompoundColumnsToBeUnique", ""),
    ]


def test_a_failure_names_expectation_column_how_many_and_which():
    wrong = {"unexpected_count": 3, "partial_unexpected_list": [None, None, None]}
    keyed = {**wrong, "partial_unexpected_index_list": [{"a": None, "path": "p.py", "index": 4}]}
    first, second = failures_in([failed("expect_x", wrong, column="a"), failed("expect_y", keyed, column="a")])
    assert str(first) == "expect_x of 'a': 3 wrong, such as None"
    assert str(second) == "expect_y of 'a': 3 wrong, such as (a None, path 'p.py')"


def test_a_wrong_schema_is_told_alone():
    details = {"observed_value": ["a"], "details": {"mismatched": {"missing": ["b"]}}}
    results = [
        failed("expect_z", {}, 'Error: The column "b" in BatchData does not exist.', column="b"),
        failed("expect_table_columns_to_match_set", details),
    ]
    assert [str(f) for f in failures_in(results)] == [
        "expect_table_columns_to_match_set: seen {'missing': ['b']}",
    ]


def test_what_raised_says_so_and_long_values_are_cut():
    (raised,) = failures_in([failed("expect_z", {}, "not comparable\nmore", column="b")])
    assert str(raised) == "expect_z of 'b': not comparable"
    (long,) = failures_in([failed("e", {"unexpected_count": 1, "partial_unexpected_list": ["x" * 999]}, column="c")])
    assert len(str(long)) < 200


def test_a_file_as_a_row_has_the_columns_that_are_expected():
    good = row(SourceFile(kind="python", path="a/b.py", text="x = 'é'\ny\n".encode()))
    assert set(good) == {column.name for column in SUITE.columns}
    assert (good["bytes"], good["characters"], good["lines"], good["longest_line"]) == (11, 10, 2, 8)
    assert good["encoding"] == "utf-8"
    bad = row(SourceFile(kind="python", path="a.py", text=b"\xff\x00"))
    assert (bad["encoding"], bad["characters"], bad["nul_bytes"]) == ("unknown", None, 1)
