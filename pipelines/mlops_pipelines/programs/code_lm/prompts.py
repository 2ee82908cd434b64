"""What users of the code model send: prompts cut from held-out text, for references of drift and for load."""

from __future__ import annotations

import functools
from collections.abc import Iterable

from mlops_pipelines.programs.code_lm.sources import KINDS, Kind, checked_kinds, corpus_files, is_held_out
from mlops_sdk.drift.profile import Reference, build_reference
from mlops_sdk.drift.prompts import cut_prompts
from mlops_sdk.errors import SettingsError

_OF_EACH_KIND = 2000
_REFERENCE_SEED = 20_260_101


def prompt_reference(trained: Iterable[str]) -> Reference:
    """What is normal for a model that was trained on these kinds; it knows the others that are installed here, too.

    Deterministic: the same installed corpora and kinds give the same reference.

    Raises:
        SettingsError: a kind that does not exist, or a trained one that is not installed.
    """
    kinds = checked_kinds(trained)
    known: list[Kind] = [kind for kind in KINDS if kind in kinds or _is_installed(kind)]
    prompts = {kind: held_out_prompts(kind, _OF_EACH_KIND, seed=_REFERENCE_SEED) for kind in known}
    return build_reference(prompts, trained=kinds)


def held_out_prompts(kind: str, count: int, *, seed: int = 0) -> list[str]:
    """Prompts of one kind that no training has seen. Another seed, other prompts.

    Raises:
        SettingsError: the kind does not exist or is not installed.
    """
    return cut_prompts(_held_out(*checked_kinds([kind])), count=count, seed=seed)


@functools.cache
def _held_out(kind: Kind) -> tuple[str, ...]:
    return tuple(file.text.decode() for file in corpus_files([kind]) if is_held_out(file.path))


def _is_installed(kind: Kind) -> bool:
    try:
        return bool(_held_out(kind))
    except SettingsError:
        return False
