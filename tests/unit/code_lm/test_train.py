"""The program as a whole, tiny and in one process: learns, resumes exactly, exports what it evaluated."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from botocore.exceptions import EndpointConnectionError
from torch.nn import functional

from mlops_pipelines.programs.code_lm.complete import complete
from mlops_pipelines.programs.code_lm.corpus import PreparedData
from mlops_pipelines.programs.code_lm.evaluate import HeldOut, total_bits
from mlops_pipelines.programs.code_lm.export import read_model
from mlops_pipelines.programs.code_lm.model import Llama, Shape
from mlops_pipelines.programs.code_lm.plan import TrainArgs
from mlops_pipelines.programs.code_lm.train import Trainer, train
from mlops_pipelines.programs.code_lm.warm_start import warm_start
from mlops_sdk.errors import RegistryError, ServiceUnavailable, SettingsError
from mlops_sdk.registry.model_files import fetch_model
from mlops_sdk.testing.memory_s3 import MemoryS3
from mlops_sdk.training.context import WorkerContext
from mlops_sdk.training.messages import Stopped, decode

Job = Callable[..., WorkerContext]


def weights(s3: MemoryS3) -> bytes:
    return s3.objects["runs/abc/model/model.safetensors"]


@pytest.fixture(autouse=True)
def _whole_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """boto3's transfers, on the server in memory."""

    def upload_file(self: MemoryS3, path: str, bucket: str, key: str) -> None:
        self.put_object(Bucket=bucket, Key=key, Body=Path(path).read_bytes())

    def download_file(self: MemoryS3, bucket: str, key: str, path: str) -> None:
        Path(path).write_bytes(self.get_object(Bucket=bucket, Key=key)["Body"].read())

    monkeypatch.setattr(MemoryS3, "upload_file", upload_file, raising=False)
    monkeypatch.setattr(MemoryS3, "download_file", download_file, raising=False)


def test_the_default_model_has_at_least_five_million_parameters():
    args = TrainArgs()
    shape = Shape(
        vocabulary=4096,
        hidden=args.hidden,
        layers=args.layers,
        heads=args.heads,
        intermediate=args.intermediate,
    )
    assert Llama(shape).parameter_count() >= 5_000_000


def test_a_token_does_not_see_the_ones_after_it():
    torch.manual_seed(0)
    model = Llama(Shape(vocabulary=50, hidden=16, layers=2, heads=2, intermediate=24))
    ids = torch.randint(50, (1, 12))
    changed = ids.clone()
    changed[0, 8:] = 0
    assert torch.allclose(model(ids)[0, :8], model(changed)[0, :8], atol=1e-6)
    assert not torch.allclose(model(ids)[0, 8:], model(changed)[0, 8:])


def test_it_learns(job: Job):
    before = train(job(steps=1, learning_rate=1e-6))["bits_per_byte"]
    after = train(job(attempt=2, steps=30, learning_rate=0.02, checkpoint_every=30))["bits_per_byte"]
    assert after < before - 0.4


def test_a_job_that_is_told_that_its_lease_ends_stops_with_a_checkpoint_and_the_next_one_goes_on_there(
    job: Job, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
):
    uninterrupted = train(job(prefix="runs/whole", steps=8, checkpoint_every=5))["bits_per_byte"]
    first = job(steps=8, checkpoint_every=5)
    assert not first.ending()
    step = Trainer.step

    def step_and_be_told(trainer: Trainer, number: int) -> None:
        step(trainer, number)
        if number == 2:
            first.notice_file.write_text("{}")

    monkeypatch.setattr(Trainer, "step", step_and_be_told)
    with pytest.raises(SystemExit) as ended:
        train(first)
    assert not ended.value.code
    assert decode(capfd.readouterr().out.strip().splitlines()[-1]) == Stopped(rank=0, step=3)
    first.notice_file.write_bytes(b"")  # as the controller does before each attempt
    second = train(job(attempt=2, steps=8, checkpoint_every=5))
    assert second["resumed_from"] == 3
    assert second["bits_per_byte"] == pytest.approx(uninterrupted)


def test_the_result_says_what_was_done(job: Job, s3: MemoryS3, prepared: PreparedData):
    result = train(job())
    assert result == json.loads(s3.objects["runs/abc/results/attempt-1.json"])
    assert (result["steps"], result["resumed_from"], result["data_sha256"]) == (8, 0, prepared.sha256)
    manifest = s3.objects[result["checkpoint"]["key"]]
    assert result["checkpoint"]["step"] == 8
    assert hashlib.sha256(manifest).hexdigest() == result["checkpoint"]["sha256"]
    exported = s3.objects["runs/abc/model/manifest.json"]
    assert hashlib.sha256(exported).hexdigest() == result["model"]["manifest_sha256"]


def test_a_wider_corpus_is_measured_kind_by_kind_and_the_champion_on_the_same_text(
    job: Job, prepared: PreparedData, wider: PreparedData
):
    first = train(job(prefix="runs/one"))
    assert set(first["held_out"]) == set(first["baseline_held_out"]) == {"python"}
    assert first["held_out"]["python"] == first["bits_per_byte"]
    assert "champion_held_out" not in first

    champion = {"prefix": "runs/one/model", "sha256": first["model"]["manifest_sha256"]}
    second = train(job(prefix="runs/two", data=wider, champion=champion))
    kinds = {"python", "cpp"}
    assert set(second["held_out"]) == set(second["champion_held_out"]) == set(second["baseline_held_out"]) == kinds
    # Its own tokenizer and the same files: exactly what it had when it was trained.
    assert second["champion_held_out"]["python"] == pytest.approx(first["held_out"]["python"], rel=1e-6)
    sizes = HeldOut(wider, 3000).sizes
    weighed = sum(second["held_out"][kind] * size for kind, size in sizes.items()) / sum(sizes.values())
    assert second["bits_per_byte"] == pytest.approx(weighed)


def test_a_warm_start_keeps_what_the_champion_knew_and_learns_what_is_new(job: Job, wider: PreparedData):
    first = train(job(prefix="runs/one", steps=30, learning_rate=0.02))
    champion = {"prefix": "runs/one/model", "sha256": first["model"]["manifest_sha256"]}
    wide = {"data": wider, "champion": champion, "steps": 10, "learning_rate": 0.005}
    cold = train(job(prefix="runs/cold", **wide))
    warm = train(job(prefix="runs/warm", warm_start=True, **wide))
    assert warm["held_out"]["python"] < cold["held_out"]["python"] - 0.2
    assert warm["held_out"]["cpp"] < warm["champion_held_out"]["cpp"]


def test_a_warm_start_with_the_same_tokenizer_is_the_same_model(prepared: PreparedData):
    torch.manual_seed(0)
    shape = Shape(vocabulary=prepared.meta.vocabulary, hidden=16, layers=2, heads=2, intermediate=24)
    model, earlier = Llama(shape), Llama(shape)
    assert warm_start(model, prepared.tokenizer(), earlier, prepared.tokenizer()) == prepared.meta.vocabulary
    ids = torch.randint(shape.vocabulary, (1, 9))
    assert torch.equal(model(ids), earlier(ids))
    other = Llama(Shape(vocabulary=prepared.meta.vocabulary, hidden=16, layers=1, heads=2, intermediate=24))
    with pytest.raises(SettingsError, match="another shape"):
        warm_start(model, prepared.tokenizer(), other, prepared.tokenizer())


def test_a_champion_that_is_not_there_fails_before_the_training(job: Job, s3: MemoryS3):
    with pytest.raises(RegistryError, match="runs/gone/model"):
        train(job(champion={"prefix": "runs/gone/model", "sha256": "0" * 64}))
    assert not [key for key in s3.objects if "checkpoints" in key]


def test_ranks_that_share_the_measuring_find_what_one_finds(wider: PreparedData):
    torch.manual_seed(0)
    model = Llama(Shape(vocabulary=wider.meta.vocabulary, hidden=16, layers=2, heads=2, intermediate=24))
    alone = HeldOut(wider, 3000)
    shares = [HeldOut(wider, 3000, rank=rank, world_size=2) for rank in (0, 1)]
    parts = [share.of(model, seq_len=32) for share in shares]
    assert {kind: sum(part[kind] for part in parts) for kind in parts[0]} == pytest.approx(
        alone.of(model, seq_len=32), rel=1e-6
    )
    baselines = [share.of_baseline() for share in shares]
    assert {kind: sum(one[kind] for one in baselines) for kind in baselines[0]} == pytest.approx(alone.of_baseline())


def test_interrupted_and_resumed_gives_the_same_model(job: Job, s3: MemoryS3):
    train(job())
    whole = weights(s3)
    s3.objects.clear()
    s3.faults.clear()
    s3.faults.fail_at("put_object", 4, error=EndpointConnectionError(endpoint_url="http://s3"))  # commit of step 6
    with pytest.raises(ServiceUnavailable):
        train(job())
    assert "runs/abc/model/model.safetensors" not in s3.objects
    again = train(job(attempt=2))
    assert again["resumed_from"] == 3
    assert weights(s3) == whole


def test_finished_training_is_not_repeated(job: Job, s3: MemoryS3):
    train(job())
    whole = weights(s3)
    assert train(job(attempt=2))["resumed_from"] == 8
    assert weights(s3) == whole


def test_a_damaged_checkpoint_is_reported_and_passed_over(job: Job, s3: MemoryS3):
    train(job())
    whole = weights(s3)
    key = next(k for k in s3.objects if "step-00000008" in k and k.endswith(".safetensors"))
    s3.objects[key] = s3.objects[key][:-1] + b"?"
    again = train(job(attempt=2))
    assert again["resumed_from"] == 6
    assert key in again["damaged_checkpoints"][0]
    assert weights(s3) == whole


def test_bits_do_not_depend_on_who_counts_them(prepared: PreparedData):
    torch.manual_seed(0)
    model = Llama(Shape(vocabulary=prepared.meta.vocabulary, hidden=16, layers=2, heads=2, intermediate=24))
    files = prepared.tokens("held_out")[:3]
    alone = total_bits(model, files, seq_len=32)
    shared = [total_bits(model, files, seq_len=32, rank=rank, world_size=3) for rank in range(3)]
    assert sum(shared) == pytest.approx(alone, rel=1e-6)


def test_bits_of_a_short_file_are_its_negative_log_likelihood():
    torch.manual_seed(0)
    model = Llama(Shape(vocabulary=50, hidden=16, layers=2, heads=2, intermediate=24))
    ids = np.random.default_rng(0).integers(50, size=20).astype(np.uint16)
    row = torch.from_numpy(ids.astype(np.int64))
    nats = functional.cross_entropy(model(row[None, :-1])[0], row[1:], reduction="sum").item()
    assert total_bits(model, [ids], seq_len=64) == pytest.approx(nats / np.log(2), rel=1e-5)


def test_the_exported_model_completes_code(job: Job, tmp_path: Path):
    ctx = job()
    train(ctx)
    found = fetch_model(ctx.store, "runs/abc/model", tmp_path / "fetched")
    names = {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
    assert set(found.manifest.files) == names
    model, _ = read_model(found.folder)
    assert model.shape.layers == 2
    written = complete(found.folder, "def main(", tokens=5)
    assert written == complete(found.folder, "def main(", tokens=5)
    assert isinstance(complete(found.folder, "import ", tokens=5, temperature=1.0, seed=1), str)


def test_arguments_that_do_not_exist_are_refused(job: Job):
    with pytest.raises(SettingsError, match="epochs"):
        train(job(epochs=3))
