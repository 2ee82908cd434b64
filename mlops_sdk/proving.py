"""Looks at the cloud for everything a run's journal says it created, and gathers the proof."""

from __future__ import annotations

from mlops_sdk.capacity.evidence import NodeEvidence, Outcome, judge_outcome
from mlops_sdk.capacity.fence import Fence
from mlops_sdk.capacity.providers.ironic_api import BaremetalApi
from mlops_sdk.history import Generation, History, Piece
from mlops_sdk.identity.credential import CredentialBroker
from mlops_sdk.proof import Proof, ProofItem, ProofKind


def prove(
    run_key: str,
    history: History,
    *,
    baremetal: BaremetalApi,
    broker: CredentialBroker,
    fence: Fence,
    skew_s: float,
) -> Proof:
    """One item per allocation, machine and credential that was ever intended, and per claim that is left."""
    items: list[ProofItem] = []
    for generation in history.generations.values():
        for piece in generation.pieces.values():
            items.extend(_prove_piece(piece, baremetal, skew_s))
        items.extend(_prove_credential(generation, broker))
    items.extend(
        ProofItem(
            kind=ProofKind.FENCE,
            resource=claim.resource_id,
            returned=False,
            evidence=f"claimed until {claim.expires_at:%H:%M:%S} UTC",
        )
        for claim in fence.claims()
        if claim.details.get("run_key") == run_key
    )
    return Proof(run_key=run_key, items=tuple(items))


def _prove_piece(piece: Piece, baremetal: BaremetalApi, skew_s: float) -> list[ProofItem]:
    allocation = baremetal.get_allocation(piece.name)
    items = [
        ProofItem(
            kind=ProofKind.ALLOCATION,
            resource=piece.name,
            returned=allocation is None,
            evidence="Ironic knows no allocation of this name"
            if allocation is None
            else f"state {allocation.state!r}, machine {allocation.node_id or 'none'}",
        )
    ]
    if not piece.node_id and not (piece.evidence and piece.evidence.node_id):
        return items
    if piece.evidence is not None and piece.evidence.outcome is not Outcome.PENDING:
        items.append(_from_evidence(piece.evidence))
    else:
        items.append(_from_machine(piece, baremetal, skew_s))
    return items


def _from_evidence(evidence: NodeEvidence) -> ProofItem:
    parts = [f"{evidence.outcome.value} ({evidence.provision_state}, {evidence.power_state or 'power unknown'})"]
    if evidence.cleaned_at:
        parts.append(f"cleaned {_to_seconds(evidence.cleaned_at)}")
    if evidence.last_error:
        parts.append(evidence.last_error)
    parts.append(f"seen {_to_seconds(evidence.finished_at)} by the {evidence.released_by}")
    return ProofItem(
        kind=ProofKind.MACHINE,
        resource=evidence.node_name or evidence.node_id,
        returned=evidence.clean,
        evidence=", ".join(parts),
    )


def _to_seconds(moment: str) -> str:
    """An ISO time without its fraction: Ironic's clock and its HTTP Date header differ below that."""
    return f"{moment[:19]}Z" if moment else "at an unknown time"


def _from_machine(piece: Piece, baremetal: BaremetalApi, skew_s: float) -> ProofItem:
    """Nobody wrote down how this one ended (its releaser died): judge by what the machine itself shows now."""
    machine = baremetal.get_machine(piece.node_id)
    outcome = judge_outcome(
        machine,
        deployed=piece.deployed,
        saw_cleaning=False,
        started_at=piece.since or baremetal.now(),
        skew_s=skew_s,
    )
    state = machine.provision_state if machine else "not visible"
    cleaned = f", cleaned {machine.cleaned_at:%Y-%m-%dT%H:%M:%S}Z" if machine and machine.cleaned_at else ""
    return ProofItem(
        kind=ProofKind.MACHINE,
        resource=piece.node_name or piece.node_id,
        returned=outcome in {Outcome.CLEANED, Outcome.NEVER_DEPLOYED},
        evidence=f"{outcome.value} ({state}{cleaned}), seen now",
    )


def _prove_credential(generation: Generation, broker: CredentialBroker) -> list[ProofItem]:
    if not generation.credential:
        return []
    absent = broker.absent(generation.credential)
    return [
        ProofItem(
            kind=ProofKind.CREDENTIAL,
            resource=generation.credential,
            returned=absent,
            evidence="Keystone knows no credential of this name" if absent else "Keystone still has it",
        )
    ]
