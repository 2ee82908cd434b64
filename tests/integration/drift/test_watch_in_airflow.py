"""`watch_lm` and `report_leases` in the stack's Airflow, against its serving host and S3."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import pytest

from mlops_operators.drift import drift_asset
from mlops_sdk.client import Client
from mlops_sdk.config import Settings
from mlops_sdk.drift.on_host import profiles_folder
from mlops_sdk.drift.profile import Profile
from mlops_sdk.drift.store import alerts, put_reference
from mlops_sdk.local.services.serving import ServingAccess
from mlops_sdk.remote.ssh import Host, connect, run_once
from support_drift import reference, traffic

pytestmark = [pytest.mark.stack, pytest.mark.slow]


@pytest.fixture
def served(stack: Any) -> Iterator[Any]:
    """Writes what a serving process of a version of the test's own would have counted, on the serving host."""
    target = ServingAccess.load(stack.layout).target()
    known, version = reference("python"), f"t{uuid.uuid4().hex[:8]}"
    put_reference(Client(stack.settings).store, known)
    folder = f"{profiles_folder(target.root)}/{version}"

    def count(prompts: list[str]) -> str:
        profile = Profile(
            model_version=version,
            instance="1-a",
            reference=known.sha256,
            counts=known.count(prompts),
            started_at=datetime.now(UTC),
        )
        asyncio.run(write(target.host, f"{folder}/{version}-1-a.json", profile.to_bytes()))
        return version

    yield count
    run_once(target.host, ["rm", "-rf", folder])


async def write(host: Host, path: str, body: bytes) -> None:
    connection = await connect(host, timeout_s=20)
    try:
        await connection.put_bytes(path, body)
    finally:
        await connection.close()


def test_only_a_drift_gives_the_asset_an_event_and_it_gives_one(airflow: Any, served: Any, settings: Settings) -> None:
    def events() -> list[dict[str, Any]]:
        found = airflow.rest.asset_events(drift_asset("code-lm").uri)
        return [event["extra"] for event in found if event["extra"].get("model_version") == version]

    def look() -> None:  # scheduled runs look in between; what counts is what all of them did together
        assert airflow.run("watch_lm")["state"] == "success"

    calm, drifted = traffic("python", 60, seed=1), traffic("cpp", 60, seed=2)
    version = served(calm)
    try:
        run = airflow.run("watch_lm")
        assert airflow.rest.task("watch_lm", run["dag_run_id"], "detect_drift")["state"] == "skipped"
        assert events() == []
        served(calm + drifted)
        look()
        look()
    finally:
        airflow.rest.pause("watch_lm")
    (event,) = events()
    assert (event["model"], event["widen_to"], event["closest"]) == ("code-lm", ["python", "cpp"], ["cpp"])
    store = Client(settings).store
    assert [alert.id for alert in alerts(store) if version in alert.id] == [event["alert"]]
    assert store.get_json(event["report"].removeprefix(f"s3://{store.bucket}/"))["verdict"]["state"] == "drift"


def test_the_nightly_report_is_kept_and_says_what_runs_cost(airflow: Any, settings: Settings) -> None:
    run = airflow.run("report_leases", timeout_s=240)
    airflow.rest.pause("report_leases")
    assert run["state"] == "success", airflow.rest.task_log("report_leases", run["dag_run_id"], "report_leases")
    result = airflow.rest.xcom("report_leases", run["dag_run_id"], "report_leases")
    store = Client(settings).store
    report = store.get_json(result["uri"].removeprefix(f"s3://{store.bucket}/"))
    assert (len(report["held"]), report["overdue"]) == (result["held"], [])
    assert report["cost"] == pytest.approx(result["cost"])
