"""Finds out which machines of a run are lost, on evidence, and puts others in their places."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from mlops_sdk.capacity.loss import Suspicion, Verdict, evidence_of, judge
from mlops_sdk.capacity.node import Node
from mlops_sdk.errors import LeaseLost
from mlops_sdk.remote.witness import SshWitness, Witness
from mlops_sdk.run import Lease, Run
from mlops_sdk.steps import Steps, drive


def look(run: Run, witness: Witness | None = None) -> dict[str, Verdict]:
    """One look at every machine that a run holds, spares too: what each channel says, and what follows.

    Example:
        >>> [name for name, verdict in look(run).items() if verdict.lost]  # doctest: +SKIP
        ['gpu-02']
    """
    lease = run.held
    if lease is None:
        raise LeaseLost(f"run {run.key!r} holds no lease", next_step="call run.lease() first")
    nodes = (*lease.nodes, *lease.spares)
    said = (witness or SshWitness.of(run)).look(nodes)
    needed = run.settings.lease.loss_evidence
    return {node.name: judge((*said.get(node.name, ()), run.power(node)), needed=needed) for node in nodes}


def repair(run: Run, witness: Witness | None = None) -> Lease:
    """Look for as long as it takes to be sure, and replace what is lost. The lease as it is then.

    Raises:
        NotFenced: a lost machine could not be switched off; nothing has taken its place. `Run.replace` with the word of
            a person who did it goes on.
        NoCapacity: there is no machine for a place.
        LeaseLost: the whole lease is.
    """
    return drive(repairing(run, witness), run.clock)


def mending(run: Run, nodes: Sequence[Node]) -> Steps[Sequence[Node]]:
    """The machines to go on with after one of a job's went away: repaired, where its provider can do that."""
    if not run.replaceable:
        return nodes
    lease = yield from repairing(run)
    return lease.nodes


def repairing(run: Run, witness: Witness | None = None) -> Steps[Lease]:
    """`repair`, as steps."""
    settings = run.settings.lease
    suspicions: dict[str, Suspicion] = {}
    pause = max(settings.poll_s, settings.loss_after_s / 4)
    while True:
        run.raise_if_lost()
        verdicts = look(run, witness)
        now = run.clock.monotonic()
        answers = {
            name: suspicions.setdefault(name, Suspicion(lasting_s=settings.loss_after_s)).look(verdict, at=now)
            for name, verdict in verdicts.items()
        }
        if None not in answers.values():
            break
        yield pause
    lost = [name for name, answer in answers.items() if answer]
    return (yield from _replacing(run, lost, suspicions))


def _replacing(run: Run, lost: list[str], suspicions: Mapping[str, Suspicion]) -> Steps[Lease]:
    """Those that work first: they may need a spare. A spare that is lost as well takes no place."""
    lease = run.held
    if lease is None:
        raise LeaseLost(f"run {run.key!r} holds no lease", next_step="call run.lease() first")
    working = [node.name for node in lease.nodes]
    for name in sorted(lost, key=lambda name: name not in working):
        why = {"evidence": evidence_of(suspicions[name].looks)}
        lease = yield from run.replacing(name, why=why, unfit=set(lost) - {name})
    return lease
