"""What a table of data has to look like, and what is wrong with one that does not. Pure.

A :class:`SuiteSpec` says it in our words; :func:`expectations_of` in those of Great Expectations, which checks it (see
``mlops_sdk.data.gx``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, cast

from pydantic import BaseModel, ConfigDict, Field, JsonValue

Row = Mapping[str, JsonValue]
_EXAMPLES = 5
_LONGEST_EXAMPLE = 120
_SCHEMA = "expect_table_columns_to_match_set"


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ColumnSpec(_Model):
    """One column.

    Attributes:
        name: Of the column.
        type: Of its values.
        nullable: Whether values may be missing.
        unique: Whether a value may appear once only.
        minimum: Of a number, or of a text's length.
        maximum: The same.
        one_of: All that may appear; empty: anything.
        pattern: Regular expression that every text has to match from its beginning; empty: any text.
    """

    name: str
    type: Literal["str", "int", "float", "bool"]
    nullable: bool = False
    unique: bool = False
    minimum: float | None = None
    maximum: float | None = None
    one_of: tuple[str | int | bool, ...] = ()
    pattern: str = ""


class SuiteSpec(_Model):
    """A table: exactly these columns.

    Attributes:
        name: Of the suite.
        columns: All of them.
        min_rows: At least so many.
        max_rows: At most so many, if limited.
        unique_together: Groups of columns whose combination may appear once only.
        key: The columns that tell a person which row is meant.
    """

    name: str
    columns: tuple[ColumnSpec, ...]
    key: tuple[str, ...] = ()
    min_rows: int = Field(default=1, ge=0)
    max_rows: int | None = None
    unique_together: tuple[tuple[str, ...], ...] = ()


class Expectation(_Model):
    """One expectation of Great Expectations: its class and arguments."""

    type: str
    arguments: dict[str, Any]


class Failure(_Model):
    """An expectation that does not hold.

    Attributes:
        expectation: In the words of Great Expectations.
        column: Or columns, or empty for the table as a whole.
        count: How many values are wrong; 0 where the table as a whole is.
        examples: Some of them.
        detail: What was seen instead, where values are not the matter.
    """

    expectation: str
    column: str
    count: int
    examples: tuple[str, ...]
    detail: str = ""

    def __str__(self) -> str:
        where = f" of {self.column!r}" if self.column else ""
        many = f": {self.count} wrong" if self.count else ""
        shown = f", such as {', '.join(self.examples)}" if self.examples else ""
        return f"{self.expectation}{where}{many}{shown}{': ' if self.detail else ''}{self.detail}"


def expectations_of(suite: SuiteSpec) -> list[Expectation]:
    """The suite in the words of Great Expectations: schema first, then each column, then combinations."""
    names = [column.name for column in suite.columns]
    found = [
        Expectation(type="ExpectTableColumnsToMatchSet", arguments={"column_set": names, "exact_match": True}),
        Expectation(
            type="ExpectTableRowCountToBeBetween",
            arguments={"min_value": suite.min_rows, "max_value": suite.max_rows},
        ),
    ]
    for column in suite.columns:
        found.extend(_column(column))
    together = [{"column_list": list(group)} for group in suite.unique_together]
    return [*found, *(Expectation(type="ExpectCompoundColumnsToBeUnique", arguments=group) for group in together)]


def failures_in(results: Sequence[Mapping[str, Any]]) -> list[Failure]:
    """What does not hold, from Great Expectations' results as JSON; a wrong schema alone: all else follows."""
    failures = [_failure(result) for result in results if not result["success"]]
    return [failure for failure in failures if failure.expectation == _SCHEMA] or failures


def _column(column: ColumnSpec) -> list[Expectation]:
    found: list[tuple[str, dict[str, Any]]] = [("ExpectColumnValuesToBeOfType", {"type_": column.type})]
    if not column.nullable:
        found.append(("ExpectColumnValuesToNotBeNull", {}))
    if column.unique:
        found.append(("ExpectColumnValuesToBeUnique", {}))
    if column.minimum is not None or column.maximum is not None:
        kind = "ExpectColumnValueLengthsToBeBetween" if column.type == "str" else "ExpectColumnValuesToBeBetween"
        found.append((kind, {"min_value": column.minimum, "max_value": column.maximum}))
    if column.one_of:
        found.append(("ExpectColumnValuesToBeInSet", {"value_set": list(column.one_of)}))
    if column.pattern:
        found.append(("ExpectColumnValuesToMatchRegex", {"regex": column.pattern}))
    return [Expectation(type=kind, arguments={"column": column.name, **arguments}) for kind, arguments in found]


def _failure(result: Mapping[str, Any]) -> Failure:
    config, seen = result["expectation_config"], result.get("result") or {}
    arguments = config.get("kwargs", {})
    columns = [arguments["column"]] if "column" in arguments else arguments.get("column_list", [])
    examples = seen.get("partial_unexpected_index_list") or seen.get("partial_unexpected_list") or []
    return Failure(
        expectation=str(config["type"]),
        column=", ".join(str(name) for name in columns),
        count=int(seen.get("unexpected_count") or 0),
        examples=tuple(dict.fromkeys(_example(example) for example in examples))[:_EXAMPLES],
        detail=_detail(result, seen),
    )


def _detail(result: Mapping[str, Any], seen: Mapping[str, Any]) -> str:
    raised = result.get("exception_info") or {}
    nested = raised if "exception_message" in raised else next(iter(raised.values()), {})
    message = nested.get("exception_message") if isinstance(nested, Mapping) else ""
    if message:
        return str(message).splitlines()[0]
    if "unexpected_count" in seen:
        return ""
    mismatched = (seen.get("details") or {}).get("mismatched")
    return f"seen {_short(mismatched or seen.get('observed_value'))}"


def _example(value: object) -> str:
    """A value, or a row by its key: ``'a.py'`` or ``(path 'a.py', bytes 0)``."""
    if not isinstance(value, Mapping):
        return _short(value)
    pairs = cast("Mapping[str, object]", value)
    return f"({', '.join(f'{name} {_short(one)}' for name, one in pairs.items() if name != 'index')})"


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= _LONGEST_EXAMPLE else f"{text[:_LONGEST_EXAMPLE]}..."
