"""A trained model as a folder in Hugging Face layout, and in the bucket with a manifest of hashes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

from pydantic import JsonValue
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer

from mlops_pipelines.programs.code_lm.corpus import END_OF_FILE
from mlops_pipelines.programs.code_lm.model import Llama, Shape
from mlops_sdk.objects import ObjectStore, to_json

MANIFEST = "manifest.json"


def write_model(model: Llama, tokenizer_json: bytes, folder: Path) -> dict[str, dict[str, JsonValue]]:
    """Write the model into `folder`; returns size and SHA-256 of each file."""
    folder.mkdir(parents=True, exist_ok=True)
    end_id = Tokenizer.from_str(tokenizer_json.decode()).encode(END_OF_FILE).ids[0]
    weights = {name: parameter.detach().contiguous() for name, parameter in model.named_parameters()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "tokenizer.json").write_bytes(tokenizer_json)
    _write_json(folder / "config.json", model.shape.hf_config(end_id=end_id))
    _write_json(folder / "generation_config.json", {"bos_token_id": end_id, "eos_token_id": end_id})
    tokenizer_config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": END_OF_FILE,
        "eos_token": END_OF_FILE,
        "unk_token": None,
        "clean_up_tokenization_spaces": False,
        "model_max_length": model.shape.context,
    }
    _write_json(folder / "tokenizer_config.json", tokenizer_config)
    return {
        path.name: {"bytes": path.stat().st_size, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
        for path in sorted(folder.iterdir())
        if path.name != MANIFEST
    }


def upload_model(
    store: ObjectStore,
    prefix: str,
    folder: Path,
    files: Mapping[str, Mapping[str, JsonValue]],
    about: Mapping[str, JsonValue],
) -> str:
    """Store the files below `prefix`, then ``manifest.json`` which lists them; returns the manifest's SHA-256."""
    for name in files:
        store.upload(f"{prefix}/{name}", folder / name)
    body = to_json({"version": 1, "files": {name: dict(f) for name, f in files.items()}, **about})
    store.put(f"{prefix}/{MANIFEST}", body)
    return hashlib.sha256(body).hexdigest()


def read_model(folder: Path) -> tuple[Llama, Tokenizer]:
    """The model and tokenizer of an exported folder."""
    model = Llama(Shape.from_hf_config(json.loads((folder / "config.json").read_text())))
    model.load_state_dict(load_file(folder / "model.safetensors"))
    model.eval()
    return model, Tokenizer.from_file(str(folder / "tokenizer.json"))


def _write_json(path: Path, value: Mapping[str, JsonValue]) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n")
