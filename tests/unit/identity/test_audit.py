"""The audit log: whole, append-only, without secrets, and there again after S3 was away."""

from __future__ import annotations

import json
import threading
from dataclasses import replace
from datetime import timedelta

import pytest
from botocore.exceptions import EndpointConnectionError
from click.testing import CliRunner
from pydantic import SecretStr

from mlops_sdk.capacity.lease import LeaseRequest
from mlops_sdk.capacity.reaper import Reaper
from mlops_sdk.cli import audit as command
from mlops_sdk.errors import AccessDenied, LeaseLost, ServiceUnavailable
from mlops_sdk.identity.audit import Audit, audit_of, read_audit
from mlops_sdk.identity.audit_entry import PREFIX, AuditEntry, AuditResult, breaks
from mlops_sdk.identity.credential import CredentialBroker, CredentialRequest
from mlops_sdk.names import run_id_for
from mlops_sdk.testing.cloud import FakeCloud, FakeCredentials
from mlops_sdk.testing.memory_s3 import MemoryS3, memory_store

AWAY = EndpointConnectionError(endpoint_url="http://s3")


@pytest.fixture
def cloud() -> FakeCloud:
    return FakeCloud()


def log_of(cloud: FakeCloud, who: str = "anna") -> Audit:
    return Audit(memory_store(cloud.s3), who, now=cloud.clock.now)


def entries(cloud: FakeCloud) -> list[AuditEntry]:
    now = cloud.clock.now()
    return list(read_audit(memory_store(cloud.s3), since=now - timedelta(days=40), until=now))


def told(cloud: FakeCloud) -> list[tuple[str, str]]:
    return [(entry.action, entry.result.value) for entry in entries(cloud)]


def broker(cloud: FakeCloud) -> CredentialBroker:
    return CredentialBroker(FakeCredentials(cloud), SecretStr("a broker key that is long enough for us"), log_of(cloud))


def wanted(cloud: FakeCloud) -> CredentialRequest:
    return CredentialRequest(
        run_id=run_id_for(cloud.settings.deployment_id, "audited"),
        deployment_id=cloud.settings.deployment_id,
        generation=1,
        deadline=cloud.clock.now() + timedelta(hours=1),
        grace_s=60,
    )


def test_minting_and_revoking_tell_who_what_when_and_on_what(cloud):
    request = wanted(cloud)
    minted = broker(cloud).mint(request, now=cloud.clock.now())
    cloud.clock.sleep(1)
    broker(cloud).revoke(request.name)
    assert told(cloud) == [
        ("credential.mint", "asked"),
        ("credential.mint", "done"),
        ("credential.revoke", "asked"),
        ("credential.revoke", "done"),
    ]
    _, done, _, revoked = entries(cloud)
    assert (done.who, done.resource, done.detail["credential_id"]) == ("anna", request.name, minted.id)
    assert revoked.at - done.at == timedelta(seconds=1)
    assert revoked.detail == {"was_there": True}
    stored = b"".join(cloud.s3.objects.values())
    assert minted.secret.get_secret_value().encode() not in stored


@pytest.mark.parametrize(
    ("error", "result"), [(AccessDenied("no role"), "refused"), (ServiceUnavailable("?"), "failed")]
)
def test_what_is_refused_is_written_down_too(cloud, error, result):
    cloud.faults.fail_at("create_credential", 1, error=error)
    with pytest.raises(type(error)):
        broker(cloud).mint(wanted(cloud), now=cloud.clock.now())
    assert told(cloud) == [("credential.mint", "asked"), ("credential.mint", result)]
    assert entries(cloud)[1].detail["error"].startswith(type(error).__name__)


def test_a_name_of_somebody_else_is_a_refusal(cloud):
    FakeCredentials(cloud).create(
        name=wanted(cloud).name, secret="s", description="", expires_at=cloud.clock.now(), roles=(), access_rules=()
    )
    with pytest.raises(LeaseLost):
        broker(cloud).mint(wanted(cloud), now=cloud.clock.now())
    assert told(cloud)[-1] == ("credential.mint", "refused")


def test_nothing_is_minted_that_cannot_be_written_down(cloud):
    cloud.faults.fail_at("put_object", 1, error=AWAY)
    with pytest.raises(ServiceUnavailable):
        broker(cloud).mint(wanted(cloud), now=cloud.clock.now())
    assert not cloud.credentials


def test_taking_rights_away_never_waits_for_the_log_and_the_log_is_whole_afterwards(cloud):
    audited = broker(cloud)
    request = wanted(cloud)
    audited.mint(request, now=cloud.clock.now())
    cloud.faults.fail_at("put_object", 3, error=AWAY)
    assert audited.revoke(request.name)
    assert len(entries(cloud)) == 2
    assert audited.audit.waiting == 2
    audited.audit.flush()
    assert told(cloud)[2:] == [("credential.revoke", "asked"), ("credential.revoke", "done")]
    assert breaks(entries(cloud)) == []


def test_a_lost_reply_writes_no_entry_twice(cloud):
    cloud.faults.fail_at("put_object", 1, error=AWAY, when="after")
    log = log_of(cloud)
    with pytest.raises(ServiceUnavailable):
        log.append("a", "x", AuditResult.DONE)
    log.append("b", "x", AuditResult.DONE)
    assert [entry.action for entry in entries(cloud)] == ["a", "b"]
    assert breaks(entries(cloud)) == []


def test_taking_rights_away_does_not_wait_for_a_thread_that_waits_for_s3(cloud):
    slow, let_go = threading.Event(), threading.Event()

    class Slow(MemoryS3):
        def put_object(self, **call):
            slow.set()
            assert let_go.wait(10)
            return super().put_object(**call)

    server = Slow()
    log = Audit(memory_store(server), "anna", now=cloud.clock.now)
    minting = threading.Thread(target=log.append, args=("mint", "x", AuditResult.ASKED))
    minting.start()
    assert slow.wait(10)
    log.note("revoke", "y", AuditResult.DONE)
    assert log.waiting == 2
    let_go.set()
    minting.join(10)
    found = read_audit(memory_store(server), since=cloud.clock.now(), until=cloud.clock.now())
    assert [entry.action for entry in found] == ["mint", "revoke"]


def test_two_processes_write_at_once_and_neither_is_lost(cloud):
    anna, ben = log_of(cloud), log_of(cloud, "ben")
    for log in (anna, ben, anna):
        log.append("a", "x", AuditResult.DONE)
    assert sorted(entry.who for entry in entries(cloud)) == ["anna", "anna", "ben"]
    assert breaks(entries(cloud)) == []


def test_an_entry_that_is_missing_or_changed_shows(cloud):
    log = log_of(cloud)
    for action in ("a", "b", "c"):
        log.append(action, "x", AuditResult.DONE)
    keys = sorted(key for key in cloud.s3.objects if key.startswith(PREFIX))
    changed = dict(cloud.s3.objects)
    cloud.s3.objects[keys[1]] = changed[keys[1]].replace(b'"x"', b'"y"')
    assert breaks(entries(cloud)) == [f"{log.writer}: entry 2 is not what entry 3 was written after"]
    del cloud.s3.objects[keys[1]]
    assert breaks(entries(cloud)) == [f"{log.writer}: entries 2 to 2 are missing"]


def test_errors_that_are_not_ours_are_named_and_not_quoted(cloud):
    with pytest.raises(ValueError, match="hush"), log_of(cloud).around("a", "x", must=True):
        raise ValueError("hush")
    assert entries(cloud)[1].detail == {"error": "ValueError"}


def test_what_the_reaper_takes_back_is_written_down(cloud):
    with cloud.client().start_run(name="dead") as run:
        run.lease(
            LeaseRequest(
                nodes=1, resource_class="gpu.h200.8x", deadline=cloud.clock.now() + timedelta(hours=1), wait_s=5
            )
        )
        run.keep()
    cloud.clock.sleep(600)
    Reaper(replace(cloud.services(), broker=broker(cloud))).reap_once()
    assert set(told(cloud)) == {
        ("machine.release", "done"),
        ("credential.revoke", "asked"),
        ("credential.revoke", "done"),
    }
    released = next(entry for entry in entries(cloud) if entry.action == "machine.release")
    assert released.detail["reason"] == "not_renewed"
    assert released.detail["node_name"]


def test_days_are_read_apart(cloud):
    log = log_of(cloud)
    log.append("old", "x", AuditResult.DONE)
    cloud.clock.sleep(3 * 86400)
    log.append("new", "x", AuditResult.DONE)
    now = cloud.clock.now()
    found = read_audit(memory_store(cloud.s3), since=now - timedelta(days=1), until=now)
    assert [entry.action for entry in found] == ["new"]


def test_the_reaper_is_named_as_itself(cloud):
    log = audit_of(cloud.settings, memory_store(cloud.s3), service="reaper")
    assert log.append("machine.release", "x", AuditResult.DONE).who.startswith("reaper (")


def test_the_command_lists_exports_and_tells_when_the_log_was_changed(cloud, monkeypatch):
    store = memory_store(cloud.s3)
    monkeypatch.setattr(command, "_store", lambda: store)
    log = Audit(store, "anna")
    for _ in range(3):
        log.append("credential.mint", "ml-x-g1-cred", AuditResult.DONE)
    listed = CliRunner().invoke(command.audit, ["list"])
    assert listed.exit_code == 0, listed.output
    assert listed.output.count("credential.mint") == 3
    exported = CliRunner().invoke(command.audit, ["export"])
    lines = [json.loads(line) for line in exported.output.splitlines()]
    assert [AuditEntry.parse(line) for line in lines] == entries_of(store)
    assert json.loads(CliRunner().invoke(command.audit, ["list", "--json"]).output)["breaks"] == []
    del cloud.s3.objects[entries_of(store)[1].key]
    broken = CliRunner().invoke(command.audit, ["list"])
    assert broken.exit_code == 1
    assert "are missing" in broken.output


def entries_of(store):
    return list(read_audit(store, **command.last_days(2)))
