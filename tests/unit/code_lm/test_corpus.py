"""The corpus is the same everywhere, and its parts do not mix."""

from __future__ import annotations

from pathlib import Path

import pytest

from mlops_pipelines.programs.code_lm import corpus
from mlops_pipelines.programs.code_lm.corpus import PreparedData, SourceFile
from mlops_sdk.errors import BundleError
from mlops_sdk.testing.memory_s3 import MemoryS3, memory_store


def test_the_standard_library_without_tests_tables_and_duplicates():
    files = corpus.standard_library()
    paths = [f.path for f in files]
    assert {"json/decoder.py", "asyncio/tasks.py", "argparse.py"} <= set(paths)
    assert paths == sorted(paths)
    assert not [p for p in paths if {"test", "tests", "encodings", "site-packages"} & set(Path(p).parts)]
    assert len({f.text for f in files}) == len(files)
    assert sum(len(f.text) for f in files) > 4_000_000


def test_the_same_sources_give_the_same_data(prepared: PreparedData, sources: list[SourceFile], tmp_path: Path):
    again = corpus.prepare(tmp_path, vocabulary=400, files=list(reversed(sources)))
    assert again.sha256 == prepared.sha256


def test_no_file_is_in_both_parts(prepared: PreparedData):
    train, held_out = set(prepared.meta.train.paths), set(prepared.meta.held_out.paths)
    assert train
    assert held_out
    assert not train & held_out


def test_tokens_stand_for_exactly_the_text(prepared: PreparedData):
    tokenizer = prepared.tokenizer()
    (end,) = tokenizer.encode(corpus.END_OF_FILE).ids
    for part in ("train", "held_out"):
        for ids, text in zip(prepared.tokens(part), prepared.text(part), strict=True):
            assert ids[0] == end
            assert tokenizer.decode(ids[1:].tolist(), skip_special_tokens=False).encode() == text


def test_what_is_measured_on_fits_and_does_not_depend_on_order(prepared: PreparedData):
    sizes = prepared.meta.held_out.sizes
    chosen = corpus.sample(prepared, 9000)
    assert 0 < sum(sizes[i] for i in chosen) <= 9000
    assert corpus.sample(prepared, 10**9) == list(range(len(sizes)))
    assert len(corpus.sample(prepared, 1)) == 1


def test_uploaded_under_its_hash_once(prepared: PreparedData):
    s3 = MemoryS3()
    corpus.upload(prepared, memory_store(s3))
    corpus.upload(prepared, memory_store(s3))
    assert list(s3.objects) == [f"data/{prepared.sha256}/code_lm.safetensors"]


def test_a_file_that_is_no_prepared_data_is_named(tmp_path: Path):
    path = tmp_path / "x.safetensors"
    path.write_bytes(b"not at all")
    with pytest.raises(BundleError, match=r"x\.safetensors"):
        PreparedData.open(path)


def test_a_library_without_sources_is_an_error(tmp_path: Path):
    with pytest.raises(BundleError, match="0 files in train"):
        corpus.prepare(tmp_path, files=[])
