"""`mlops accelerators`: what cards there are, and how to divide them for a workload. Asks no service."""

from __future__ import annotations

import json

import click

from mlops_sdk.capacity.accelerators import CARDS, Card, card_named
from mlops_sdk.capacity.sharing import Use, Workload, recommend, recommend_instances
from mlops_sdk.cli.columns import print_columns

_as_json = click.option("--json", "as_json", is_flag=True, help="print JSON")


@click.group()
def accelerators() -> None:
    """What accelerators can do. From the vendors' documents; not run on hardware."""


@accelerators.command("list")
@_as_json
def list_cards(as_json: bool) -> None:
    """The cards that we know something about."""
    if as_json:
        click.echo(json.dumps([_to_json(card) for card in CARDS], indent=1))
        return
    headings = ("card", "memory", "MIG instances", "MIG profiles", "virtual functions", "vGPU licence", "trait")
    print_columns(headings, [_row(card) for card in CARDS])


@accelerators.command("recommend")
@click.argument("card")
@click.option("--use", type=click.Choice([use.value for use in Use]), default=Use.TRAINING.value, show_default=True)
@click.option("--memory", "memory_gb", type=float, required=True, help="GB that one process needs on its card")
@click.option("--processes", type=int, default=1, show_default=True, help="that work on one job together")
@click.option("--copies", type=int, default=1, show_default=True, help="independent jobs of this kind")
@click.option("--virtual", is_flag=True, help="in virtual machines, not on leased machines")
@click.option("--tenants", is_flag=True, help="the copies must not be able to disturb each other")
@click.option("--mig", "profile", default="", help="rather check this wish: a MIG profile, --copies of it a card")
@_as_json
def recommend_for(
    *,
    card: str,
    use: str,
    memory_gb: float,
    processes: int,
    copies: int,
    virtual: bool,
    tenants: bool,
    profile: str,
    as_json: bool,
) -> None:
    """Whole cards, MIG or vGPU for a workload on CARD, and why. CARD is a name, a trait or a PCI id."""
    found = card_named(card)
    if profile:
        answer = recommend_instances(found, profile, per_card=copies, virtual=virtual)
    else:
        workload = Workload(
            use=Use(use), memory_gb=memory_gb, processes=processes, copies=copies, virtual=virtual, tenants=tenants
        )
        answer = recommend(found, workload)
    if as_json:
        click.echo(json.dumps(answer.to_json(), indent=1))
        return
    click.echo(str(answer))
    for warning in answer.warnings:
        click.echo(f"note: {warning}")


def _row(card: Card) -> tuple[str, ...]:
    return (
        f"{card.vendor.name} {card.name}",
        f"{card.memory_gb} GB",
        str(card.most_instances or ""),
        " ".join(profile.name for profile in card.mig),
        " or ".join(str(number) for number in card.functions),
        card.vgpu_licence,
        card.trait,
    )


def _to_json(card: Card) -> dict[str, object]:
    return {
        "name": card.name,
        "vendor": card.vendor.name,
        "memory_gb": card.memory_gb,
        "pci_ids": [f"{card.vendor.value}:{device}" for device in card.device_ids],
        "placement_classes": list(card.placement_classes),
        "trait": card.trait,
        "mig": {profile.name: profile.most for profile in card.mig},
        "virtual_functions": list(card.functions),
        "vgpu_licence": card.vgpu_licence,
        "peers": card.peers,
    }
