"""What every provider of machines must do: the same checks for the fake cloud, the real Ironic, and every other one.

    @pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
    def test_my_provider_keeps_the_contract(check):
        check(Bench(open=..., clock=..., resource_class="gpu.h200.8x", plant=...))

Each check leaves nothing behind. A process that dies is one whose boundary raises `Crash`: the next one begins with a
provider of its own.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any, Protocol, TypeVar

from pydantic import SecretStr

from mlops_sdk.capacity.boundary import Boundary, no_boundary
from mlops_sdk.capacity.evidence import NodeEvidence, Outcome
from mlops_sdk.capacity.lease import EndReason, LeaseRequest
from mlops_sdk.capacity.owned import Held, Owned, Standing
from mlops_sdk.capacity.provider import Grant, Provider
from mlops_sdk.clock import Clock
from mlops_sdk.errors import CapacityError, LeaseLost, NoCapacity
from mlops_sdk.steps import Steps, drive
from mlops_sdk.testing.contracts import ContractBroken
from mlops_sdk.testing.faults import Crash

T = TypeVar("T")

_POLLS = 300


class Open(Protocol):
    """Makes a provider as a process of its own would have it: with its own claims."""

    def __call__(self, boundary: Boundary = no_boundary) -> Provider:
        """Through the deployment's own login."""
        ...


class Plant(Protocol):
    """Puts something of somebody else's where a lease of this name would be; returns what takes it away again.

    That one returns whether it was still there, untouched.
    """

    def __call__(self, grant: Grant) -> Callable[[], bool]:
        """Of the grant's first name."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Bench:
    """A provider on the bench.

    Attributes:
        open: A provider as another process would have it.
        clock: By which pauses pass.
        deployment_id: Whose leases these are.
        resource_class: A kind of machine of which there are at least two, free.
        plant: Something of a stranger's in our way.
        nodes: How many machines a lease of the checks asks for.
    """

    open: Open
    clock: Clock
    deployment_id: uuid.UUID
    resource_class: str
    plant: Plant
    nodes: int = 2

    def grant(self, **changes: Any) -> Grant:
        """For a run of its own."""
        provider = self.open()
        values: dict[str, Any] = {
            "nodes": self.nodes,
            "resource_class": self.resource_class,
            "deadline": provider.now() + timedelta(minutes=30),
            "provider": provider.name,
        }
        return Grant(
            run_id=uuid.uuid4(),
            deployment_id=self.deployment_id,
            generation=1,
            owner="contract",
            request=LeaseRequest(**{**values, **changes}),
            broker_key=SecretStr("a key that only these checks know"),
        )

    def release(self, grant: Grant, provider: Provider | None = None) -> tuple[NodeEvidence, ...]:
        """Give everything of a grant back, as a process that knows only the names."""
        noted: list[NodeEvidence] = []
        steps = (provider or self.open()).release(
            grant, [Held(name=name) for name in grant.names], reason=EndReason.FINISHED, on_evidence=noted.append
        )
        evidence = drive(steps, self.clock)
        _expect(sorted(noted, key=_name) == sorted(evidence, key=_name), "each piece of evidence is told once")
        return evidence

    def drive(self, steps: Steps[T]) -> T:
        """Do what waits now and then, in this clock's time."""
        return drive(steps, self.clock)

    def owned(self, grant: Grant) -> dict[str, Owned]:
        """What exists of a grant, by name."""
        return {item.name: item for item in self.open().list_owned() if item.name in grant.names and not item.parent}


def acquiring_twice_is_one_lease(bench: Bench) -> None:
    """Also from another process, and for one that begins without waiting."""
    with _lease(bench) as (provider, grant):
        bench.drive(provider.begin(grant))
        nodes = bench.drive(provider.acquire(grant))
        _expect(len({node.id for node in nodes}) == bench.nodes, "as many machines as were asked for")
        _expect([node.index for node in nodes] == list(range(bench.nodes)), "in their order")
        _expect(bench.drive(provider.acquire(grant)) == nodes, "asked again, it adopts")
        _expect(bench.drive(bench.open().acquire(grant)) == nodes, "another process adopts")
        owned = bench.owned(grant)
        _expect({item.node_id for item in owned.values()} == {node.id for node in nodes}, "there is one lease")


def what_is_owned_is_listed_with_its_marker(bench: Bench) -> None:
    """Exactly what carries our marker, under a name that agrees with it."""
    with _lease(bench) as (provider, grant):
        began = provider.now()
        bench.drive(provider.acquire(grant))
        for index, name in enumerate(grant.names):
            item = bench.owned(grant).get(name)
            _expect(item is not None, f"{name} is listed")
            if item is not None:
                made = grant.marker(index, now=provider.now(), renew_for_s=0)
                _expect(replace(item.marker, renewed_until=made.renewed_until) == made, "the marker is the grant's")
                _expect(item.marker.renewed_until > began, "it is renewed when it is made")
                _expect((item.provider, item.held.name) == (provider.name, name), "it says whose it is")
        held = {machine.held_by for machine in provider.pool()}
        _expect(set(grant.names) <= held, "the pool shows who holds which machine")
        _expect(provider.inspect(Held(name=grant.name(0))).standing is Standing.HELD, "it is seen as held")
    _expect(bench.owned(grant) == {}, "given back is not listed")


def a_stranger_is_left_alone(bench: Bench) -> None:
    """Something of our name without our marker is neither adopted, renewed, listed nor given back."""
    grant = bench.grant()
    take_away = bench.plant(grant)
    try:
        provider = bench.open()
        try:
            bench.drive(provider.acquire(grant))
        except LeaseLost:
            pass
        else:
            raise ContractBroken("a stranger's resource of our name is refused")
        _expect(bench.owned(grant) == {}, "a stranger's resource is not listed")
        bench.release(grant)
    finally:
        _expect(take_away(), "a stranger's resource is still there, untouched")
        bench.release(grant)


def renewing_moves_the_first_time_and_extending_both(bench: Bench) -> None:
    """And a process that knows only the old deadline does not move it back."""
    with _lease(bench) as (provider, grant):
        _expect(provider.renew(grant) == 0, "renewing what is not there is no error, and makes nothing")
        _expect(bench.owned(grant) == {}, "nothing was made")
        bench.drive(provider.acquire(grant))
        first = bench.owned(grant)
        bench.clock.sleep(2.1)  # services tell the time in seconds
        _expect(provider.renew(grant) == bench.nodes, "every piece is renewed")
        second = bench.owned(grant)
        for name, item in second.items():
            _expect(item.marker.renewed_until > first[name].marker.renewed_until, "renewed_until has moved")
            _expect(item.marker.deadline == grant.request.deadline, "the deadline has not")
        later = grant.request.deadline + timedelta(minutes=10)
        longer = replace(grant, request=replace(grant.request, deadline=later))
        _expect(provider.extend(longer) == bench.nodes, "every piece is extended")
        bench.open().renew(grant)
        _expect({item.marker.deadline for item in bench.owned(grant).values()} == {later}, "the deadline has moved")
        until = grant.request.deadline - timedelta(minutes=1)
        _expect(
            provider.extend(grant, renewed_until=until) == bench.nodes, "a deadline may move to an earlier time too"
        )
        for item in bench.owned(grant).values():
            _expect(item.marker.deadline == grant.request.deadline, "the earlier deadline counts")
            _expect(item.marker.renewed_until == until, "what nobody will renew is renewed for as long as was said")


def releasing_twice_is_releasing_once(bench: Bench) -> None:
    """With evidence both times; and what never was is given back too."""
    grant = bench.grant()
    for item in bench.release(grant):
        _expect(item.outcome is Outcome.NEVER_DEPLOYED, "what never was had nothing on it")
    provider = bench.open()
    try:
        bench.drive(provider.acquire(grant))
    finally:
        evidence = bench.release(grant)
    for item in evidence:
        _expect(item.outcome is Outcome.CLEANED, f"a machine that was in use is cleaned, not {item.outcome}")
        _expect(bool(item.node_id and item.finished_at and item.released_by), "evidence says what, when and by whom")
    again = bench.release(grant, provider)
    _expect(len(again) == bench.nodes, "evidence for each piece again")
    _expect(bench.owned(grant) == {}, "nothing is left")
    for item in evidence:
        held = Held(name=item.resource, node_id=item.node_id, deployed=True)
        _expect(provider.inspect(held).standing is Standing.ENDED, "it is seen as ended")


def what_was_given_back_is_not_made_again(bench: Bench) -> None:
    """A generation that the journal knows to have been in use stays gone."""
    with _lease(bench) as (provider, grant):
        try:
            bench.drive(provider.acquire(grant, deployed={grant.name(0)}))
        except LeaseLost:
            _expect(bench.owned(grant) == {}, "nothing was made")
        else:
            raise ContractBroken("a generation that was given back is not made again")


def too_few_machines_hold_nothing(bench: Bench) -> None:
    """All or none; the quote says so before."""
    provider = bench.open()
    there = [machine for machine in provider.pool() if machine.resource_class == bench.resource_class]
    grant = bench.grant(nodes=len(there) + 1)
    _expect(not provider.quote(grant.request).available_now, "a quote says what cannot be had")
    try:
        bench.drive(provider.acquire(grant))
    except NoCapacity as error:
        _expect(bool(error.seen and error.next_step), "it says what was seen, and what to do")
    else:
        bench.release(grant)
        raise ContractBroken("more machines than there are is NoCapacity")
    _expect(bench.owned(grant) == {}, "on NoCapacity nothing is held")
    _wait(bench, lambda: provider.quote(bench.grant().request).available_now, "what was got is free again")


def what_we_are_not_entitled_to_stays(bench: Bench) -> None:
    """Renewed by its run in between: whoever began to give it back stops."""
    with _lease(bench) as (provider, grant):
        bench.drive(provider.acquire(grant))
        for name in grant.names:
            returning = bench.open().returning(
                Held(name=name), reason=EndReason.NOT_RENEWED, entitled=lambda _name, _marker: False, run_key="x"
            )
            evidence = returning.step()
            _expect(returning.abandoned, "it is abandoned")
            _expect(evidence is not None and evidence.outcome is Outcome.PENDING, "and says that it is not back")
        _expect(len(bench.owned(grant)) == bench.nodes, "it is still there")
        _expect(len(bench.drive(provider.acquire(grant))) == bench.nodes, "and in use")


def a_crash_while_acquiring_is_repaired_by_acquiring(bench: Bench) -> None:
    """Before and after each call that changes something."""
    for moment in _moments(bench, _acquire_and_release):
        grant = bench.grant()
        try:
            _die_at(bench, grant, moment)
            if not bench.owned(grant):
                continue  # it died after it had given back
            nodes = _acquired_or_lost(bench, grant)
            _expect(len({node.id for node in nodes}) in {0, bench.nodes}, f"all or none after a crash at {moment}")
        finally:
            bench.release(grant)
            _expect(bench.owned(grant) == {}, f"nothing is left after a crash at {moment}")


def a_crash_anywhere_is_repaired_by_releasing(bench: Bench) -> None:
    """Before and after each call that changes something, in acquiring and in releasing."""
    for moment in _moments(bench, _acquire_and_release):
        grant = bench.grant()
        _die_at(bench, grant, moment)
        evidence = bench.release(grant)
        left = {item.resource: item.outcome.value for item in evidence if item.outcome is Outcome.PENDING}
        _expect(not left, f"everything is given back after a crash at {moment}, not {left}")
        _expect(bench.owned(grant) == {}, f"nothing is left after a crash at {moment}")
    _wait(bench, lambda: bench.open().quote(bench.grant().request).available_now, "the machines are free again")


CHECKS: Sequence[Callable[[Bench], None]] = (
    acquiring_twice_is_one_lease,
    what_is_owned_is_listed_with_its_marker,
    a_stranger_is_left_alone,
    renewing_moves_the_first_time_and_extending_both,
    releasing_twice_is_releasing_once,
    what_was_given_back_is_not_made_again,
    too_few_machines_hold_nothing,
    what_we_are_not_entitled_to_stays,
    a_crash_while_acquiring_is_repaired_by_acquiring,
    a_crash_anywhere_is_repaired_by_releasing,
)


@contextmanager
def _lease(bench: Bench) -> Generator[tuple[Provider, Grant]]:
    grant = bench.grant()
    try:
        yield bench.open(), grant
    finally:
        bench.release(grant)


class _Moments:
    """A boundary that counts the moments before and after each change, and may be where the process dies."""

    def __init__(self, die_at: int = -1) -> None:
        self.names: list[str] = []
        self._die_at = die_at

    @contextmanager
    def __call__(self, step: str, resource: str, **detail: Any) -> Generator[dict[str, Any]]:
        del resource
        self._pass(f"before {step}")
        yield detail
        self._pass(f"after {step}")

    def _pass(self, name: str) -> None:
        self.names.append(name)
        if len(self.names) - 1 == self._die_at:
            raise Crash


def _moments(bench: Bench, live: Callable[[Bench, Grant, Provider], None]) -> list[str]:
    """The moments of a life without a crash, numbered."""
    moments = _Moments()
    live(bench, bench.grant(), bench.open(moments))
    return [f"{number} {name}" for number, name in enumerate(moments.names)]


def _acquire_and_release(bench: Bench, grant: Grant, provider: Provider) -> None:
    bench.drive(provider.acquire(grant))
    bench.release(grant, provider)


def _die_at(bench: Bench, grant: Grant, moment: str) -> None:
    moments = _Moments(int(moment.split(maxsplit=1)[0]))
    try:
        _acquire_and_release(bench, grant, bench.open(moments))
    except Crash:
        return


def _acquired_or_lost(bench: Bench, grant: Grant) -> tuple[Any, ...]:
    """What another process gets; a machine that is being given back already is never adopted."""
    try:
        return bench.drive(bench.open().acquire(grant))
    except CapacityError:
        return ()


def _name(evidence: NodeEvidence) -> str:
    return evidence.resource


def _wait(bench: Bench, done: Callable[[], bool], what: str) -> None:
    for _ in range(_POLLS):
        if done():
            return
        bench.clock.sleep(0.2)
    raise ContractBroken(f"never: {what}")


def _expect(holds: bool, what: str) -> None:
    if not holds:
        raise ContractBroken(f"expected: {what}")
