"""The state of a training in torch as named tensors, and back.

    model/<parameter or buffer>              as in `state_dict`, shared tensors once
    optimizer/<entry>/<parameter>            for AdamW: step, exp_avg, exp_avg_sq
    rng                                      torch's CPU generator (a rank's own)

Together with the data position this resumes bit-exactly in one process.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from mlops_sdk.checkpoint.store import own_name
from mlops_sdk.errors import CheckpointCorrupt

if TYPE_CHECKING:
    import torch

_RNG = "rng"


def training_tensors(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """What all ranks of data-parallel training hold alike."""
    tensors: dict[str, torch.Tensor] = {f"model/{name}": t for name, t in _model_tensors(model)}
    names: dict[torch.Tensor, str] = {parameter: name for name, parameter in model.named_parameters()}
    for parameter, entries in optimizer.state.items():
        for entry, value in entries.items():
            tensors[f"optimizer/{entry}/{names[parameter]}"] = value
    return tensors


def rank_tensors() -> dict[str, torch.Tensor]:
    """What every rank has for itself: the state of torch's random generator."""
    import torch  # noqa: PLC0415 - extra [train]

    return {_RNG: torch.get_rng_state()}


def restore(
    tensors: Mapping[str, torch.Tensor], model: torch.nn.Module, optimizer: torch.optim.Optimizer, *, rank: int
) -> None:
    """Put a checkpoint's tensors into model, optimizer and random generator.

    A rank that has no generator state in the checkpoint (the job has more ranks now) keeps its own.

    Raises:
        CheckpointCorrupt: a tensor is missing or has another shape: it is not a checkpoint of this model.
    """
    import torch  # noqa: PLC0415 - extra [train]

    with torch.no_grad():
        for name, target in _model_tensors(model):
            target.copy_(_take(tensors, f"model/{name}", target.shape))
    _restore_optimizer(tensors, model, optimizer)
    rng = tensors.get(own_name(rank, _RNG))
    if rng is not None:
        torch.set_rng_state(rng)


def _restore_optimizer(
    tensors: Mapping[str, torch.Tensor], model: torch.nn.Module, optimizer: torch.optim.Optimizer
) -> None:
    entries: dict[str, dict[str, torch.Tensor]] = {}
    for name, tensor in tensors.items():
        kind, _, rest = name.partition("/")
        if kind == "optimizer":
            entry, _, parameter = rest.partition("/")
            entries.setdefault(parameter, {})[entry] = tensor
    names: dict[torch.Tensor, str] = {parameter: name for name, parameter in model.named_parameters()}
    state: dict[int, dict[str, torch.Tensor]] = {}
    index = 0
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            state[index] = entries.get(names[parameter], {})
            index += 1
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def _model_tensors(model: torch.nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Parameters and persistent buffers; a tensor with several names under the first."""
    seen: set[int] = set()
    for name, tensor in model.state_dict(keep_vars=True).items():
        if id(tensor) not in seen:
            seen.add(id(tensor))
            yield name, tensor


def _take(tensors: Mapping[str, torch.Tensor], name: str, shape: Any) -> torch.Tensor:
    tensor = tensors.get(name)
    if tensor is None or tensor.shape != shape:
        raise CheckpointCorrupt(
            f"the checkpoint does not fit the model: {name!r}",
            seen="no such tensor" if tensor is None else f"shape {tuple(tensor.shape)}, expected {tuple(shape)}",
            next_step="resume with the configuration the checkpoint was made with (see `program` in its manifest)",
        )
    return tensor
