"""The corpus as a table, one row a file, and what is expected of it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping

from pydantic import JsonValue

from mlops_pipelines.programs.code_lm.sources import KINDS, SourceFile, corpus_files, is_held_out, is_utf8
from mlops_sdk.data.expectations import ColumnSpec, SuiteSpec

_LARGEST_FILE = 2_000_000
_LONGEST_LINE = 10_000
_LONGEST_PATH = 400
_FEWEST_FILES = 20

SUITE = SuiteSpec(
    name="code_lm.corpus",
    key=("kind", "path"),
    min_rows=_FEWEST_FILES,
    columns=(
        ColumnSpec(name="kind", type="str", one_of=KINDS),
        ColumnSpec(name="path", type="str", minimum=1, maximum=_LONGEST_PATH, pattern=r"^[^/\s].*\.[a-z]+$"),
        ColumnSpec(name="split", type="str", one_of=("train", "held_out")),
        ColumnSpec(name="encoding", type="str", one_of=("utf-8",)),
        ColumnSpec(name="bytes", type="int", minimum=1, maximum=_LARGEST_FILE),
        ColumnSpec(name="characters", type="int", minimum=1, maximum=_LARGEST_FILE),
        ColumnSpec(name="lines", type="int", minimum=1),
        ColumnSpec(name="longest_line", type="int", minimum=0, maximum=_LONGEST_LINE),
        ColumnSpec(name="nul_bytes", type="int", minimum=0, maximum=0),
        ColumnSpec(name="sha256", type="str", minimum=64, maximum=64, unique=True),
    ),
    unique_together=(("kind", "path"),),
)


def rows(kinds: Iterable[str] = ("python",), roots: Mapping[str, str] | None = None) -> list[dict[str, JsonValue]]:
    """A row for every file of the corpora (see `sources.corpus_files`)."""
    return [row(file) for file in corpus_files(kinds, roots)]


def row(file: SourceFile) -> dict[str, JsonValue]:
    """One file. What cannot be decoded has no characters."""
    utf8 = is_utf8(file.text)
    lines = file.text.splitlines()
    return {
        "kind": file.kind,
        "path": file.path,
        "split": "held_out" if is_held_out(file.path) else "train",
        "encoding": "utf-8" if utf8 else "unknown",
        "bytes": len(file.text),
        "characters": len(file.text.decode()) if utf8 else None,
        "lines": len(lines),
        "longest_line": max((len(line) for line in lines), default=0),
        "nul_bytes": file.text.count(0),
        "sha256": hashlib.sha256(file.text).hexdigest(),
    }
