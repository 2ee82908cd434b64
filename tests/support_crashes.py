"""A deployment whose processes die, race, and meet failures: runs and reapers in threads of this one, each with a wire
of its own."""

from __future__ import annotations

import itertools
import random
import sys
import threading
import time
import uuid
from collections.abc import Generator, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from benchmarks.leaks_faults import Fault, Kind
from mlops_sdk.capacity.lease import LeaseRequest
from mlops_sdk.capacity.reaper import Reaper
from mlops_sdk.client import Client
from mlops_sdk.config import Settings
from mlops_sdk.errors import MlopsError
from mlops_sdk.names import run_id_for, run_key
from mlops_sdk.run import Run
from mlops_sdk.services import connect_services
from mlops_sdk.testing.faults import Crash
from support_wire import Sent, Wire

RENEW_S = 6.0
AT_ONCE = 3  # runs
# How a call fails. What is late comes while the machine is cleaned, or later.
FAILURES = (
    Fault(kind=Kind.LOST_REPLY),
    Fault(kind=Kind.TIMEOUT),
    Fault(kind=Kind.LATE, seconds=4.0),
    Fault(kind=Kind.LATE, seconds=15.0),
    Fault(kind=Kind.DUPLICATE, seconds=0.3),
    Fault(kind=Kind.CONFLICT),
    Fault(kind=Kind.THROTTLED, seconds=3.0),
    Fault(kind=Kind.ERROR),
    Fault(kind=Kind.ERROR_DONE),
    Fault(kind=Kind.EXPIRED),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Bed:
    """A deployment, and all that its processes changed.

    Attributes:
        settings: As runs have them.
        reaper: As reapers have them.
        resource_class: Of the one machine that each run leases.
        provider: Whose.
        log: Every change of every process.
    """

    settings: Settings
    reaper: Settings
    resource_class: str
    provider: str
    log: list[Sent] = field(default_factory=list[Sent])

    @classmethod
    def of(cls, settings: Settings, reaper: Settings, *, resource_class: str, provider: str) -> Bed:
        """With a renewal so short that the dead are found soon."""

        def brief(long: Settings) -> Settings:
            changes = {"renew_for_s": RENEW_S, "reaper_period_s": 2.0, "metrics_file": ""}
            return long.model_copy(update={"lease": long.lease.model_copy(update=changes)})

        return cls(settings=brief(settings), reaper=brief(reaper), resource_class=resource_class, provider=provider)

    def key(self, name: str) -> str:
        """Of a run."""
        return run_key(run_id_for(self.settings.deployment_id, name))

    def wire(self, die_at: int = -1, *, meets: Mapping[int, Fault] | None = None) -> Wire:
        """Of a process that dies at this moment, or whose calls of these numbers fail."""
        return Wire(die_at=die_at, log=self.log, meets=meets)

    def start(self, name: str, wire: Wire) -> Run:
        """A run, begun or continued."""
        return Client.with_services(wire.services(self.settings)).start_run(name=name)

    def request(self, nodes: int = 1) -> LeaseRequest:
        """So many machines for ten minutes."""
        return LeaseRequest(
            nodes=nodes,
            resource_class=self.resource_class,
            deadline=datetime.now(UTC) + timedelta(minutes=10),
            provider=self.provider,
            wait_s=30.0,
        )

    def live(self, name: str, wire: Wire) -> list[str]:
        """A program that leases a machine and gives it back, or goes on with what one by its name left; its errors."""
        run, errors = None, list[str]()
        try:
            run = self.start(name, wire)
            run.lease(self.request())
            run.release()
        except Crash:
            pass
        except MlopsError as error:
            errors.append(f"{type(error).__name__}: {error}")
        finally:
            if run is not None:
                run.close()
        return errors

    @contextmanager
    def reaping(self, wire: Wire) -> Generator[None]:
        """Within the block, a reaper works until it dies."""
        stop = threading.Event()

        def work() -> None:
            with suppress(Crash):
                Reaper(wire.services(self.reaper, service="reaper")).run(stop)

        thread = threading.Thread(target=work, name="reaper", daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join(60)

    def left(self, names: Sequence[str]) -> list[str]:
        """What exists of these runs: machines and their parts, credentials, access rules, claims."""
        services = connect_services(self.settings)
        found = [owned.name for owned in services.provider(self.provider).list_owned()]
        found += [stored.name for stored in services.broker.stored()]
        found += services.broker.names_of_rules()
        found += [str(claim.details) for claim in services.fence().claims()]
        return [each for each in found if any(self.key(name) in each for name in names)]

    def wait_until_nothing_is_left(self, names: Sequence[str], victim: Wire) -> None:
        """Until a reaper has returned everything, or has died."""
        lease = self.settings.lease
        end = time.monotonic() + 2 * lease.renew_for_s + 2 * lease.reaper_period_s + lease.clean_timeout_s / 4
        with self.reaping(victim):
            while (left := self.left(names)) and not victim.died:
                assert time.monotonic() < end, f"not returned in time: {left}"
                time.sleep(0.3)  # a look is a handful of calls

    def proven(self, name: str) -> bool:
        """Whether a run proves that it gave back everything. One that died before its first word has nothing to."""
        client = Client(self.settings)
        if client.find(name) is None:
            return True
        return client.attach(self.key(name)).prove().complete


def crash_in_pairs(bed: Bed, *, seed: int, batches: int) -> list[str]:
    """Let runs die, and then whoever goes on with what they left; at the end nothing of them is held.

    Half of the batches are of runs that die twice: at the second time while a process of the same name goes on with
    what the first one left. In the other half it is the reaper that dies, while it returns what three dead runs hold;
    another one takes its place. At which moments is drawn: for the first crash every moment of a life without any
    comes up before one comes up again.

    Returns what died where, a line for each pair.
    """
    source = random.Random(seed)  # noqa: S311 - what is drawn is repeated
    whole = bed.wire()
    assert bed.live(f"whole-{uuid.uuid4()}", whole) == []
    life = len(whole.moments)
    quiet = bed.wire()
    _die(bed, [life // 4, life // 2, 3 * life // 4], seconds=None, reaper=quiet)
    returning = len(quiet.moments)
    sys.stderr.write(f"{life} moments in the life of a run, {returning} of a reaper that returns three dead ones\n")
    firsts = _again_and_again(range(life), source)
    told: list[str] = []
    for batch in range(batches):
        first = list(itertools.islice(firsts, AT_ONCE))
        if batch % 2:
            told += _die(bed, first, seconds=None, reaper=bed.wire(source.randrange(returning)))
        else:
            told += _die(bed, first, seconds=[source.randrange(life) for _ in first], reaper=None)
    return told


def fail_at_calls(bed: Bed, *, seed: int, lives: int) -> list[str]:
    """Let one call of each life fail in one of the ways in which a service or the way to it does; nothing stays held.

    Each way comes up as often as another; half of the calls are such to OpenStack, which are fewer than those to S3. A
    life may end with an error for it; whoever is to see to what it left is the reaper.

    Returns what failed where, a line for each life.
    """
    source = random.Random(seed)  # noqa: S311 - what is drawn is repeated
    whole = bed.wire()
    assert bed.live(f"whole-{uuid.uuid4()}", whole) == []
    sys.stderr.write(f"{len(whole.changes)} calls of a life change something\n")
    of_openstack = _again_and_again([k for k, what in enumerate(whole.changes) if " /v" in what], source)
    of_any = _again_and_again(range(len(whole.changes)), source)
    drawn: list[tuple[int, Fault]] = []
    for life, fault in zip(range(lives), itertools.cycle(FAILURES), strict=False):
        drawn.append((next(of_any if life // len(FAILURES) % 2 else of_openstack), fault))
    told: list[str] = []
    for begin in range(0, lives, AT_ONCE):
        wires = [bed.wire(meets={number: fault}) for number, fault in drawn[begin : begin + AT_ONCE]]
        names = [f"failing-{uuid.uuid4()}" for _ in wires]
        with ThreadPoolExecutor(AT_ONCE) as pool:
            ended = list(pool.map(bed.live, names, wires))
        for wire in wires:
            wire.wait_for_the_late()
        bed.wait_until_nothing_is_left(names, bed.wire())
        assert [name for name in names if not bed.proven(name)] == []
        for wire, errors in zip(wires, ended, strict=True):
            told.append(f"{'; '.join(wire.met) or 'never came to it'} -> {'; '.join(errors) or 'went on'}")
            sys.stderr.write(f"{told[-1]}\n")
    return told


def _again_and_again(numbers: Sequence[int], source: random.Random) -> Iterator[int]:
    """Them in some order, each once before one comes up again."""
    while True:
        yield from source.sample(numbers, len(numbers))


def _die(bed: Bed, firsts: Sequence[int], *, seconds: Sequence[int] | None, reaper: Wire | None) -> list[str]:
    names = [f"killed-{uuid.uuid4()}" for _ in firsts]
    wires = [bed.wire(first) for first in firsts]
    again = [bed.wire(second) for second in seconds or ()]
    with ThreadPoolExecutor(AT_ONCE) as pool:
        list(pool.map(bed.live, names, wires))
        list(pool.map(bed.live, names, again))
    if reaper is not None:
        bed.wait_until_nothing_is_left(names, reaper)
    bed.wait_until_nothing_is_left(names, bed.wire())
    unproven = [name for name in names if not bed.proven(name)]
    assert unproven == []
    then = [f"run {wire.died}" for wire in again] or [f"reaper {reaper.died}" if reaper else ""] * len(names)
    told = [f"run {wire.died}; {second}" for wire, second in zip(wires, then, strict=True)]
    sys.stderr.write("".join(f"{line}\n" for line in told))
    return told
