"""The model: the Llama architecture in plain torch, with the parameter names of Hugging Face's `LlamaForCausalLM`.

An export therefore loads in transformers and vLLM as it is (a test compares the logits). The nodes do without the
transformers package: importing it takes 8 s of CPU per rank, and that again at every restart.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """The sizes of the model. The defaults make 5.5 M parameters with a vocabulary of 2048."""

    vocabulary: int = 2048
    hidden: int = 384
    layers: int = 3
    heads: int = 6
    intermediate: int = 896
    context: int = 512
    rope_theta: float = 10000.0
    norm_eps: float = 1e-5

    def hf_config(self, *, end_id: int) -> dict[str, Any]:
        """The ``config.json`` of Hugging Face's Llama."""
        return {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "vocab_size": self.vocabulary,
            "hidden_size": self.hidden,
            "intermediate_size": self.intermediate,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.heads,
            "head_dim": self.hidden // self.heads,
            "hidden_act": "silu",
            "max_position_embeddings": self.context,
            "initializer_range": 0.02,
            "rms_norm_eps": self.norm_eps,
            "rope_theta": self.rope_theta,
            "attention_bias": False,
            "mlp_bias": False,
            "tie_word_embeddings": True,
            "bos_token_id": end_id,
            "eos_token_id": end_id,
            "dtype": "float32",
            "use_cache": True,
        }

    @classmethod
    def from_hf_config(cls, config: dict[str, Any]) -> Shape:
        """The inverse of :meth:`hf_config`."""
        return cls(
            vocabulary=config["vocab_size"],
            hidden=config["hidden_size"],
            layers=config["num_hidden_layers"],
            heads=config["num_attention_heads"],
            intermediate=config["intermediate_size"],
            context=config["max_position_embeddings"],
            rope_theta=config["rope_theta"],
            norm_eps=config["rms_norm_eps"],
        )


class Llama(nn.Module):
    """Token ids ``[batch, sequence]`` to logits ``[batch, sequence, vocabulary]``; embeddings are tied."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.model = _Decoder(shape)
        for name, parameter in self.named_parameters():
            if parameter.dim() == 2:  # noqa: PLR2004 - matrices; norms stay at one
                std = 0.02
                if name.endswith(("o_proj.weight", "down_proj.weight")):  # GPT-2: residual branches start smaller
                    std /= math.sqrt(2 * shape.layers)
                nn.init.normal_(parameter, std=std)

    def forward(self, ids: Tensor) -> Tensor:
        """Logits of the next token at every position."""
        return functional.linear(self.model(ids), self.model.embed_tokens.weight)

    def parameter_count(self) -> int:
        """Number of trained parameters (tied embeddings counted once)."""
        return sum(p.numel() for p in self.parameters())


class _Decoder(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(shape.vocabulary, shape.hidden)
        self.layers = nn.ModuleList(_Layer(shape) for _ in range(shape.layers))
        self.norm = nn.RMSNorm(shape.hidden, eps=shape.norm_eps)
        cos, sin = _rotations(shape)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)

    def forward(self, ids: Tensor) -> Tensor:
        hidden = self.embed_tokens(ids)
        length = ids.shape[1]
        cos, sin = self.get_buffer("cos")[:length], self.get_buffer("sin")[:length]
        for layer in self.layers:
            hidden = layer(hidden, cos, sin)
        return self.norm(hidden)


class _Layer(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.input_layernorm = nn.RMSNorm(shape.hidden, eps=shape.norm_eps)
        self.self_attn = _Attention(shape)
        self.post_attention_layernorm = nn.RMSNorm(shape.hidden, eps=shape.norm_eps)
        self.mlp = _Mlp(shape)

    def forward(self, hidden: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        hidden = hidden + self.self_attn(self.input_layernorm(hidden), cos, sin)
        return hidden + self.mlp(self.post_attention_layernorm(hidden))


class _Attention(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.heads = shape.heads
        self.q_proj = nn.Linear(shape.hidden, shape.hidden, bias=False)
        self.k_proj = nn.Linear(shape.hidden, shape.hidden, bias=False)
        self.v_proj = nn.Linear(shape.hidden, shape.hidden, bias=False)
        self.o_proj = nn.Linear(shape.hidden, shape.hidden, bias=False)

    def forward(self, hidden: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        query = _rotate(self._split(self.q_proj(hidden)), cos, sin)
        key = _rotate(self._split(self.k_proj(hidden)), cos, sin)
        value = self._split(self.v_proj(hidden))
        mixed = functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        return self.o_proj(mixed.transpose(1, 2).flatten(2))

    def _split(self, hidden: Tensor) -> Tensor:
        return hidden.unflatten(2, (self.heads, -1)).transpose(1, 2)


class _Mlp(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(shape.hidden, shape.intermediate, bias=False)
        self.up_proj = nn.Linear(shape.hidden, shape.intermediate, bias=False)
        self.down_proj = nn.Linear(shape.intermediate, shape.hidden, bias=False)

    def forward(self, hidden: Tensor) -> Tensor:
        return self.down_proj(functional.silu(self.gate_proj(hidden)) * self.up_proj(hidden))


def _rotations(shape: Shape) -> tuple[Tensor, Tensor]:
    """Rotary position embedding: cosines and sines ``[context, head]`` (Su et al. 2021; halves as in Llama's code)."""
    head = shape.hidden // shape.heads
    frequencies = 1.0 / shape.rope_theta ** (torch.arange(0, head, 2, dtype=torch.float32) / head)
    angles = torch.outer(torch.arange(shape.context, dtype=torch.float32), frequencies)
    angles = torch.cat((angles, angles), dim=1)
    return angles.cos(), angles.sin()


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-second, first), dim=-1) * sin
