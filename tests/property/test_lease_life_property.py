"""Whatever is decided about a lease, in whatever order, by whichever process: its journal makes sense, and it ends."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from mlops_sdk.capacity.lease import LeaseRequest, Priority
from mlops_sdk.capacity.lifecycle import EndReason
from mlops_sdk.errors import MlopsError
from mlops_sdk.keeper import Beat, Stop
from mlops_sdk.run import Run
from mlops_sdk.testing.cloud import FakeCloud
from mlops_sdk.testing.faults import Crash

pytestmark = pytest.mark.slow  # ten seconds of CPU; the single steps are in tests/unit/run

SECONDS = st.sampled_from([1, 5, 15, 25, 60, 200])
WHO = st.sampled_from([0, 1])
CRASH = st.none() | st.integers(1, 40)  # at which outside call of a step its process dies, if it makes so many


class ByHand:
    """Nobody beats but the machine."""

    def keep(self, beat: Beat, every_s: float) -> Stop:
        del beat, every_s
        return lambda: None


class Life(RuleBasedStateMachine):
    """Two processes of one preemptible run, which die anywhere, a run of a higher priority, the reaper, and time."""

    @initialize()
    def begin(self) -> None:
        self.cloud = FakeCloud()
        lease = self.cloud.settings.lease.model_copy(update={"notice_s": 15.0})
        self.cloud.settings = self.cloud.settings.model_copy(update={"lease": lease})
        self.processes = [self.start() for _ in range(2)]
        self.urgent = self.cloud.client(keeper=ByHand()).start_run(name="urgent")
        self.processes[0].lease(self.request(60))

    def start(self) -> Run:
        return self.cloud.client(keeper=ByHand()).start_run(name="nightly")

    def request(self, seconds: float, *, nodes: int = 3, priority: Priority = Priority.BATCH) -> LeaseRequest:
        return LeaseRequest(
            nodes=nodes,
            resource_class="gpu.h200.8x",
            deadline=self.cloud.clock.now() + timedelta(seconds=seconds),
            wait_s=20.0,
            priority=priority,
            preemptible=priority is Priority.BATCH,
            hold_on_failure_s=30.0,
        )

    def step(self, who: int, crash: int | None, what: Callable[[Run], object]) -> None:
        """One process does something; what is refused is refused, and one that dies is followed by another."""
        self.cloud.faults.clear()
        if crash is not None:
            self.cloud.faults.fail_at("*", crash, error=Crash())
        died = False
        try:
            what(self.processes[who])
        except MlopsError:
            pass
        except Crash:
            died = True
        if died:
            self.processes[who].close()
        self.cloud.faults.clear()
        if died:
            self.processes[who] = self.start()

    @rule(who=WHO, crash=CRASH)
    def lease(self, who: int, crash: int | None) -> None:
        self.step(who, crash, lambda run: run.lease(self.request(60)))

    @rule(who=WHO, crash=CRASH, seconds=SECONDS)
    def extend(self, who: int, crash: int | None, seconds: int) -> None:
        self.step(who, crash, lambda run: run.extend(run.deadline + timedelta(seconds=seconds)))

    @rule(who=WHO, crash=CRASH)
    def hold(self, who: int, crash: int | None) -> None:
        self.step(who, crash, lambda run: run.hold())

    @rule(who=WHO, crash=CRASH, seconds=SECONDS)
    def park(self, who: int, crash: int | None, seconds: int) -> None:
        self.step(who, crash, lambda run: run.park(seconds))

    @rule(who=WHO, crash=CRASH)
    def beat(self, who: int, crash: int | None) -> None:
        self.step(who, crash, lambda run: run._heartbeat._again())

    @rule(who=WHO, crash=CRASH)
    def release(self, who: int, crash: int | None) -> None:
        self.step(who, crash, lambda run: run.release(EndReason.FINISHED))

    @rule(who=WHO, crash=CRASH)
    def next_generation(self, who: int, crash: int | None) -> None:
        self.step(who, crash, lambda run: run.next_generation())

    @rule(who=WHO)
    def another_process(self, who: int) -> None:
        self.processes[who].close()
        self.processes[who] = self.start()

    @rule()
    def somebody_urgent(self) -> None:
        with suppress(MlopsError):
            next(self.urgent.leasing(self.request(600, nodes=2, priority=Priority.URGENT)), None)
        self.urgent.release()
        self.urgent.next_generation()

    @rule(seconds=SECONDS)
    def time_passes(self, seconds: int) -> None:
        for _ in range(0, seconds, 5):
            self.cloud.clock.sleep(min(seconds, 5))
            for run in self.processes:
                run._heartbeat._again()
                run.ending()

    @rule()
    def reap(self) -> None:
        self.cloud.reaper().reap_once()

    @invariant()
    def its_journal_makes_sense(self) -> None:
        if hasattr(self, "cloud"):
            for generation in self.start().history().generations.values():
                assert generation.impossible == []

    def teardown(self) -> None:
        if not hasattr(self, "cloud"):
            return
        for run in self.processes:
            run.close()
        self.cloud.clock.sleep(300)  # longer than anything was asked for, or kept
        self.cloud.reaper().reap_once()
        self.cloud.clock.sleep(60)
        self.cloud.reaper().reap_once()
        assert not self.cloud.held
        assert not self.cloud.credentials
        proof = self.start().prove()
        assert proof.complete, proof.missing


Life.TestCase.settings = settings(
    max_examples=60, stateful_step_count=12, deadline=None, suppress_health_check=list(HealthCheck)
)
TestLifeOfALease = Life.TestCase
