"""References to code and data: what they point at, and what a wrong one says."""

from __future__ import annotations

from pathlib import Path

import pytest

from mlops_sdk.data.prepared import build_folder
from mlops_sdk.data.versioning import DataVersion
from mlops_sdk.dotted import resolve
from mlops_sdk.errors import SettingsError


def test_a_version_of_data_is_the_object_where_dvc_puts_it():
    version = DataVersion(name="x.bin", sha256="1" * 64, md5="ab" + "c" * 30, size=7, revision="2" * 40)
    assert version.key == f"dvc/files/md5/ab/{'c' * 30}"
    ref = version.ref()
    assert (ref.name, ref.key, ref.sha256, ref.size) == ("x.bin", version.key, "1" * 64, 7)
    assert DataVersion(**version.to_json()) == version  # type: ignore[arg-type]


def test_what_is_built_decides_where():
    here = build_folder(Path("c"), "m:f", {"kinds": ["python"]})
    assert here == build_folder(Path("c"), "m:f", {"kinds": ["python"]})
    assert len({here, build_folder(Path("c"), "m:g", {"kinds": ["python"]}), build_folder(Path("c"), "m:f", {})}) == 3


def test_a_dotted_name_is_found():
    assert resolve("mlops_sdk.dotted:resolve") is resolve


@pytest.mark.parametrize("wrong", ["nothing.at.all:x", "mlops_sdk.dotted:nothing", "mlops_sdk.dotted", ":x", ""])
def test_a_wrong_dotted_name_says_so(wrong: str):
    with pytest.raises(SettingsError, match="module:name"):
        resolve(wrong)
