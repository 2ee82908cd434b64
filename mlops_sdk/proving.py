"""Looks at the cloud for everything a run's journal says it created, and gathers the proof."""

from __future__ import annotations

from mlops_sdk.capacity.evidence import NodeEvidence, Outcome
from mlops_sdk.capacity.fence import Fence
from mlops_sdk.capacity.lease import DEFAULT_PROVIDER
from mlops_sdk.capacity.owned import Held, Seen, Standing
from mlops_sdk.capacity.provider import Provider
from mlops_sdk.history import Generation, History, Piece
from mlops_sdk.identity.credential import CredentialBroker
from mlops_sdk.proof import Proof, ProofItem, ProofKind
from mlops_sdk.services import Services


def prove(run_key: str, history: History, services: Services, fence: Fence) -> Proof:
    """One item per allocation, machine and credential that was ever intended, and per claim that is left."""
    items: list[ProofItem] = []
    for generation in history.generations.values():
        asked = generation.request.provider if generation.request else DEFAULT_PROVIDER
        provider = services.provider(asked, fence=fence)
        for piece in generation.pieces.values():
            items.extend(_prove_piece(piece, provider))
        items.extend(_prove_credential(generation, services.broker))
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


def _prove_piece(piece: Piece, provider: Provider) -> list[ProofItem]:
    evidence = piece.evidence
    written_down = evidence is not None and evidence.outcome is not Outcome.PENDING
    node_id = "" if written_down else piece.node_id
    seen = provider.inspect(Held(name=piece.name, node_id=node_id, deployed=piece.deployed, since=piece.since))
    items = [
        ProofItem(
            kind=ProofKind.ALLOCATION,
            resource=piece.name,
            returned=seen.standing is not Standing.HELD,
            evidence=seen.words,
        )
    ]
    if evidence is not None and written_down and (piece.node_id or evidence.node_id):
        items.append(_from_evidence(evidence))
    elif seen.outcome is not None:
        items.append(_from_machine(piece, seen, seen.outcome))
    return items


def _from_evidence(evidence: NodeEvidence) -> ProofItem:
    parts = [f"{evidence.outcome.value} ({evidence.provision_state}, {evidence.power_state or 'power unknown'})"]
    if evidence.cleaned_at:
        steps = f" ({', '.join(evidence.steps)})" if evidence.steps else ""
        parts.append(f"cleaned {_to_seconds(evidence.cleaned_at)}{steps}")
    if evidence.recleans:
        parts.append(f"cleaned again {evidence.recleans} times")
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


def _from_machine(piece: Piece, seen: Seen, outcome: Outcome) -> ProofItem:
    """Nobody wrote down how this one ended (its releaser died): judged by what the machine itself shows now."""
    return ProofItem(
        kind=ProofKind.MACHINE,
        resource=piece.node_name or piece.node_id,
        returned=outcome in {Outcome.CLEANED, Outcome.NEVER_DEPLOYED},
        evidence=f"{outcome.value} ({seen.machine_words}), seen now",
    )


def _prove_credential(generation: Generation, broker: CredentialBroker) -> list[ProofItem]:
    items: list[ProofItem] = []
    for name in sorted(generation.credentials):
        absent = broker.absent(name)
        words = "Keystone knows no credential of this name" if absent else "Keystone still has it"
        items.append(ProofItem(kind=ProofKind.CREDENTIAL, resource=name, returned=absent, evidence=words))
    return items
