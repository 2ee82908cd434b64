"""A trained model as a folder in Hugging Face layout, and back."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from pydantic import JsonValue
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer

from mlops_pipelines.programs.code_lm.corpus import END_OF_FILE
from mlops_pipelines.programs.code_lm.model import Llama, Shape


def write_model(model: Llama, tokenizer_json: bytes, folder: Path) -> None:
    """Write the model into `folder`."""
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


def read_model(folder: Path) -> tuple[Llama, Tokenizer]:
    """The model and tokenizer of an exported folder."""
    model = Llama(Shape.from_hf_config(json.loads((folder / "config.json").read_text())))
    model.load_state_dict(load_file(folder / "model.safetensors"))
    model.eval()
    return model, Tokenizer.from_file(str(folder / "tokenizer.json"))


def _write_json(path: Path, value: Mapping[str, JsonValue]) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n")
