"""What we export is what Hugging Face's transformers reads: same logits, same tokens."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from mlops_pipelines.programs.code_lm.corpus import SourceFile, prepare
from mlops_pipelines.programs.code_lm.export import write_model
from mlops_pipelines.programs.code_lm.model import Llama, Shape


def test_transformers_loads_the_export_and_agrees(tmp_path: Path):
    files = [
        SourceFile(kind="python", path=f"m{i}.py", text=f"def f{i}(x):\n    return x + {i}\n".encode())
        for i in range(40)
    ]
    data = prepare(tmp_path / "data", vocabulary=300, files=files)
    torch.manual_seed(0)
    ours = Llama(Shape(vocabulary=data.meta.vocabulary, hidden=32, layers=2, heads=4, intermediate=48, context=64))
    write_model(ours, data.tokenizer_json(), tmp_path / "model")

    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    text = "def f3(x):\n    return x\n"
    ids = tokenizer(text, return_tensors="pt", add_special_tokens=False)["input_ids"]
    assert ids[0].tolist() == data.tokenizer().encode(text).ids
    assert tokenizer.decode(ids[0]) == text
    with torch.inference_mode():
        assert torch.allclose(theirs(ids).logits, ours(ids), atol=1e-5)
    assert sum(p.numel() for p in theirs.parameters()) == ours.parameter_count()
