"""A language model that is small enough for a test, exported as the training program exports its own."""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from mlops_pipelines.programs.code_lm.corpus import END_OF_FILE
from mlops_pipelines.programs.code_lm.export import write_model
from mlops_pipelines.programs.code_lm.model import Llama, Shape
from mlops_sdk.objects import ObjectStore
from mlops_sdk.registry.model_files import upload_model
from mlops_sdk.serving.target import ServedModel


def untrained_model(folder: Path, *, seed: int) -> None:
    """Some 160 thousand random parameters over bytes: it completes anything, with nonsense."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate([END_OF_FILE, *alphabet])}, merges=[]))
    tokenizer.add_special_tokens([END_OF_FILE])
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    torch.manual_seed(seed)
    shape = Shape(vocabulary=len(alphabet) + 1, hidden=64, layers=2, heads=2, intermediate=128, context=256)
    write_model(Llama(shape), tokenizer.to_str().encode(), folder)


def stored_model(store: ObjectStore, scratch: Path, *, name: str, version: int, broken: bool = False) -> ServedModel:
    """An untrained model in the bucket; a `broken` one asks for an architecture that there is not."""
    folder, prefix = scratch / f"{name}-{version}", f"tests/{name}/{version}/model"
    untrained_model(folder, seed=version)
    if broken:
        config = folder / "config.json"
        config.write_text(config.read_text().replace("LlamaForCausalLM", "NoSuchForCausalLM"))
    sha256 = upload_model(store, prefix, folder)
    return ServedModel(name=name, version=str(version), prefix=prefix, sha256=sha256)
