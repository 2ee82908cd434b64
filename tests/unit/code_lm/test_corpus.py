"""The corpus is the same everywhere, and its parts do not mix."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from mlops_pipelines.programs.code_lm import corpus
from mlops_pipelines.programs.code_lm.corpus import PreparedData
from mlops_pipelines.programs.code_lm.sources import SourceFile, corpus_files, cpp_headers, standard_library
from mlops_sdk.errors import BundleError, SettingsError
from mlops_sdk.testing.memory_s3 import MemoryS3, memory_store


def test_the_standard_library_without_tests_tables_and_duplicates():
    files = standard_library()
    paths = [f.path for f in files]
    assert {"json/decoder.py", "asyncio/tasks.py", "argparse.py"} <= set(paths)
    assert paths == sorted(paths)
    assert not [p for p in paths if {"test", "tests", "encodings", "site-packages"} & set(Path(p).parts)]
    assert len({f.text for f in files}) == len(files)
    assert sum(len(f.text) for f in files) > 4_000_000


def test_headers_are_hand_written_and_about_as_many_bytes():
    files = cpp_headers()
    paths = [f.path for f in files]
    assert paths == sorted(paths)
    assert 4_000_000 < sum(len(f.text) for f in files) < 6_000_000
    assert not [p for p in paths if p.startswith("ATen/ops/") or "generated" in p.lower()]
    assert len({f.text for f in files}) == len(files)
    assert b"#include" in b"".join(f.text for f in files)


def test_finding_the_headers_does_not_import_torch():
    script = "import sys; from mlops_pipelines.programs.code_lm import sources; sources.cpp_headers(limit=1); "
    done = subprocess.run(
        [sys.executable, "-c", f"{script} sys.exit('torch' in sys.modules)"], check=False, capture_output=True
    )
    assert done.returncode == 0, done.stderr


def test_a_folder_of_ones_own_is_taken_as_it_is(tmp_path: Path):
    for name, body in {"a.py": b"x = 1\n", "b.py": b"x = 1\n", "c.py": b"\xff", "d.txt": b"no"}.items():
        (tmp_path / name).write_bytes(body)
    files = corpus_files(["python"], {"python": str(tmp_path)})
    assert [f.path for f in files] == ["a.py", "b.py", "c.py"]


def test_a_kind_that_does_not_exist_is_named():
    with pytest.raises(SettingsError, match=r"cobol.*python, cpp"):
        corpus_files(["cobol"])


def test_kinds_lie_side_by_side_and_do_not_change_each_others_sample(prepared: PreparedData, wider: PreparedData):
    assert prepared.meta.kinds == ("python",)
    assert wider.meta.kinds == ("cpp", "python")
    assert wider.text("train", "python") == prepared.text("train")
    chosen = corpus.samples(wider, 9000)
    paths = [wider.meta.held_out.paths[i] for i in chosen["python"]]
    assert paths == [prepared.meta.held_out.paths[i] for i in corpus.samples(prepared, 9000)["python"]]
    assert {wider.meta.held_out.kinds[i] for i in chosen["cpp"]} == {"cpp"}
    assert corpus.sample(wider, 9000) == sorted(chosen["python"] + chosen["cpp"])


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
