"""Begin with what an earlier model knows, though the new one reads with another tokenizer.

Layers are taken over as they are. A token that both tokenizers have keeps its embedding; a new one begins as the mean
of the embeddings of the pieces that the earlier tokenizer makes of it.
"""

from __future__ import annotations

import torch
from tokenizers import Tokenizer

from mlops_pipelines.programs.code_lm.model import Llama, Shape
from mlops_sdk.errors import SettingsError

_EMBEDDING = "model.embed_tokens.weight"


def warm_start(model: Llama, tokenizer: Tokenizer, earlier: Llama, earlier_tokenizer: Tokenizer) -> int:
    """Give `model` the weights of an earlier one; the number of tokens that kept their embedding.

    Raises:
        SettingsError: the two differ in more than their vocabulary and context.
    """
    ours, theirs = _layers(model.shape), _layers(earlier.shape)
    if ours != theirs:
        raise SettingsError(
            "a model cannot begin with the weights of one of another shape",
            seen=f"hidden, layers, heads, intermediate: {ours}; the earlier model: {theirs}",
            next_step="train with the earlier model's shape, or without warm_start",
        )
    weights = dict(earlier.named_parameters())
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name != _EMBEDDING:
                parameter.copy_(weights[name])
        return _embeddings(model, tokenizer, weights[_EMBEDDING], earlier_tokenizer)


def _embeddings(model: Llama, tokenizer: Tokenizer, known: torch.Tensor, earlier: Tokenizer) -> int:
    rows = dict(model.named_parameters())[_EMBEDDING]
    vocabulary, kept = earlier.get_vocab(), 0
    for token, index in tokenizer.get_vocab().items():
        if token in vocabulary:
            rows[index] = known[vocabulary[token]]
            kept += 1
        else:
            # as text: the decoder undoes the byte-level alphabet; a piece of a character is left as it was drawn
            pieces = earlier.encode(tokenizer.decode([index])).ids
            if pieces:
                rows[index] = known[pieces].mean(dim=0)
    return kept


def _layers(shape: Shape) -> tuple[int, int, int, int]:
    return shape.hidden, shape.layers, shape.heads, shape.intermediate
