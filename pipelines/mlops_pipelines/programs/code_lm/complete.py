"""Complete Python code: ``python -m mlops_pipelines.programs.code_lm.complete MODEL_FOLDER PROMPT``."""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from mlops_pipelines.programs.code_lm.corpus import END_OF_FILE
from mlops_pipelines.programs.code_lm.export import read_model


def complete(folder: Path, prompt: str, *, tokens: int = 40, temperature: float = 0.0, seed: int = 0) -> str:
    """What the model writes after the prompt; greedy at temperature 0, else sampled from the seed."""
    model, tokenizer = read_model(folder)
    generator = torch.Generator().manual_seed(seed)
    end = tokenizer.encode(END_OF_FILE).ids[0]
    ids = [end, *tokenizer.encode(prompt).ids]
    start = len(ids)
    with torch.inference_mode():
        for _ in range(tokens):
            logits = model(torch.tensor([ids[-model.shape.context :]]))[0, -1]
            following = _choose(logits, temperature, generator)
            if following == end:
                break
            ids.append(following)
    return tokenizer.decode(ids[start:])


def _choose(logits: torch.Tensor, temperature: float, generator: torch.Generator) -> int:
    if temperature <= 0:
        return int(logits.argmax())
    return int(torch.multinomial((logits / temperature).softmax(0), 1, generator=generator))


def main() -> None:
    """Print the prompt and its completion."""
    folder, prompt = sys.argv[1:]
    sys.stdout.write(f"{prompt}{complete(Path(folder), prompt)}\n")


if __name__ == "__main__":
    main()
