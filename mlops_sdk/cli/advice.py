"""What a quote recommends: whole cards, MIG or vGPU for a workload on the machines that are asked for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from mlops_sdk.capacity.lease import LeaseRequest
from mlops_sdk.capacity.sharing import Recommendation, Use, Workload, advise
from mlops_sdk.client import Client

_VIRTUAL = {"nova"}


def workload_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options that say what is to run; without `--memory` nothing is recommended."""
    uses = click.Choice([use.value for use in Use])
    for option in reversed(
        (
            click.option("--memory", "memory_gb", default=0.0, help="GB a process needs: recommend how to get cards"),
            click.option("--use", default=Use.TRAINING.value, show_default=True, type=uses, help="what for"),
            click.option("--processes", default=1, show_default=True, help="that work on one job together"),
            click.option("--copies", default=1, show_default=True, help="independent jobs of this kind"),
            click.option("--tenants", is_flag=True, help="the copies must not be able to disturb each other"),
        )
    ):
        command = option(command)
    return command


def advice(client: Client, request: LeaseRequest, options: dict[str, Any]) -> Recommendation | None:
    """For the cards of the machines of this class, as their traits name them; None without a workload or a known card.

    Raises:
        CardNotDivisible: a process needs more memory than such a card has.
    """
    if not options["memory_gb"]:
        return None
    workload = Workload(
        use=Use(options["use"]),
        memory_gb=options["memory_gb"],
        processes=options["processes"],
        copies=options["copies"],
        tenants=options["tenants"],
        virtual=request.provider in _VIRTUAL,
    )
    pool = client.services.provider(request.provider).pool()
    traits = {trait for m in pool if m.resource_class == request.resource_class for trait in m.traits}
    return advise(sorted({*traits, *request.traits}), workload)
