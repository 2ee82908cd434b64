"""The waits benchmark in small: what its cloud shows, what is counted, and how its figures are made. No Airflow."""

from __future__ import annotations

import json
import time
from uuid import UUID

import pytest

from benchmarks.waits import Measured, Size, percentile, report_of
from benchmarks.waits_cloud import ScriptedCloud
from mlops_sdk.capacity.poller import Poller
from mlops_sdk.capacity.providers.ironic_api import IronicApi
from mlops_sdk.capacity.providers.ironic_sights import sights_of
from mlops_sdk.capacity.watching import Phase
from mlops_sdk.clock import SystemClock
from mlops_sdk.cloud import Reply
from mlops_sdk.names import resource_name, run_id_for

DEPLOYMENT = UUID("6f1c3d1e-0000-4000-8000-00000000beef")
NAMES = [resource_name(run_id_for(DEPLOYMENT, f"waits/{number}"), 1, 0) for number in range(2500)]


class Here:
    """The benchmark's cloud without a socket, as the library's client sees it."""

    def __init__(self, cloud: ScriptedCloud) -> None:
        self.cloud = cloud

    def request(self, _service, method, path, *, params=None, **_rest) -> Reply:
        query = "&".join(f"{key}={value}" for key, value in (params or {}).items())
        status, body, _ = self.cloud.answer(method, f"{path}?{query}", b"", 0)
        return Reply(status=status, body=json.loads(body))


@pytest.fixture
def cloud() -> ScriptedCloud:
    return ScriptedCloud(names=NAMES)


def look(cloud: ScriptedCloud) -> dict:
    ironic = IronicApi(Here(cloud))
    return sights_of(list(ironic.list_allocations()), ironic.list_machines(brief=True))


def test_the_library_reads_every_allocation_and_machine_of_it_in_few_calls(cloud):
    sights = look(cloud)
    assert {name: sights[name].phase for name in NAMES} == dict.fromkeys(NAMES, Phase.COMING)
    assert sights[NAMES[7]].node_name == "gpu-00007"
    assert cloud.calls == {"list allocations": 3, "list nodes": 3}


def test_a_machine_is_ready_from_its_time_on(cloud):
    cloud.answer("POST", "/script", json.dumps([time.time() - 1, time.time() + 60] + [None] * 2498).encode(), 0)
    sights = look(cloud)
    assert [sights[name].phase for name in NAMES[:3]] == [Phase.READY, Phase.COMING, Phase.COMING]


async def test_a_poller_finds_what_the_script_changes_with_the_lists_alone(cloud):
    poller = Poller(lambda: look(cloud), period_s=0.2, clock=SystemClock())
    cloud.ready_at[1234] = time.time() + 0.5
    snapshot = await poller.ready([NAMES[1234]], at_most_s=4.0)
    assert snapshot is not None
    assert snapshot.of(NAMES[1234]).phase is Phase.READY
    assert not [kind for kind in cloud.calls if kind.startswith("get")]


def test_the_peer_is_counted_in_proportion_and_renewals_are_not_looks(cloud):
    def measured(kind: str, waits: int, calls_per_s: float) -> Measured:
        return Measured(
            kind=kind,
            size=Size(waits=waits, per_second=1, seconds=100),
            started_s=1.0,
            delays_s=[number / 100 for number in range(1, 101)],
            seen_s=[0.5] * 100,
            lags_ms=[1.0] * 99 + [9.0],
            start_lags_ms=[100.0],
            calls_per_s=calls_per_s,
            memory_mib=100.0,
        )

    report = report_of(measured("shared", 10_000, 10.0), measured("per node", 500, 250.0))
    assert report.figures["calls_over_per_node"] == 0.002
    assert report.figures["event_delay_p99_s"] == 0.99
    assert report.figures["loop_lag_p99_ms"] == 1.0


def test_percentiles_are_values_that_were_measured():
    assert [percentile([4.0, 1.0, 3.0, 2.0], percent) for percent in (1, 50, 75, 99, 100)] == [1.0, 2.0, 3.0, 4.0, 4.0]
