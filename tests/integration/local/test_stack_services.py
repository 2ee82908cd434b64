"""The whole stack: status, logs, secrets, and that each service is what it claims to be."""

from __future__ import annotations

import http.client
import json
import os
import signal
import stat
import subprocess
import sys
import time
from base64 import b64encode
from pathlib import Path
from typing import Any

import openstack
import pytest
import requests

from mlops_sdk.local import control
from mlops_sdk.local.isolation import members
from mlops_sdk.objects import ObjectStore
from support import eventually

pytestmark = pytest.mark.stack


def mlops_local(*arguments: str) -> subprocess.CompletedProcess[str]:
    code = "import sys; from mlops_sdk.cli.local import local; local(sys.argv[1:])"
    return subprocess.run([sys.executable, "-c", code, *arguments], check=False, capture_output=True, text=True)


def test_status_shows_every_service_and_its_exit_status_tells_the_truth(stack: Any) -> None:
    done = mlops_local("status", "--state-dir", str(stack.state_dir), "--json")
    assert done.returncode == 0
    said = json.loads(done.stdout)
    assert said["ready"]
    states = {service["name"]: service["state"] for service in said["services"]}
    assert set(states) >= {
        "network",
        "ceph-mon",
        "ceph-osd",
        "ceph-rgw",
        "mlflow",
        "keystone",
        "ironic",
        "farm",
        "nodes",
        "reaper",
    }
    assert set(states.values()) <= {"ready", "held"}
    assert states["reaper"] == "ready"

    with stack.held("mlflow"):
        assert mlops_local("status", "--state-dir", str(stack.state_dir)).returncode == 1
    assert mlops_local("status", "--state-dir", str(stack.state_dir)).returncode == 0


def test_status_of_a_directory_where_nothing_runs(tmp_path: Path) -> None:
    done = mlops_local("status", "--state-dir", str(tmp_path))
    assert done.returncode == 1
    assert "no stack runs" in done.stdout


def test_logs_prints_the_end_of_a_services_log(stack: Any) -> None:
    done = mlops_local("logs", "ironic", "-n", "3", "--state-dir", str(stack.state_dir))
    assert done.returncode == 0
    assert len(done.stdout.splitlines()) == 3


@pytest.mark.parametrize("name", ["ceph-rgw", "farm", "ironic", "keystone", "reaper"])
def test_a_killed_service_is_restarted_and_counted(stack: Any, name: str) -> None:
    before = service(stack, name)
    os.kill(before.pid, signal.SIGKILL)
    deadline = time.monotonic() + 60
    now = before
    while time.monotonic() < deadline:
        now = service(stack, name)
        if now.state == "ready" and now.restarts > before.restarts:
            break
        time.sleep(0.1)
    assert now.restarts == before.restarts + 1
    assert control.status(stack.layout).ready


def test_no_secret_is_an_argument_of_any_process(stack: Any) -> None:
    secrets = every_secret(stack.state_dir)
    assert len(secrets) >= 12
    for pid in members(stack.pid):
        try:
            command = Path(f"/proc/{pid}/cmdline").read_text(errors="replace")
        except OSError:
            continue
        assert [name for name, value in secrets.items() if value in command] == []


def test_no_secret_is_in_any_log(stack: Any) -> None:
    secrets = every_secret(stack.state_dir)
    for log in (path for path in (stack.state_dir / "logs").rglob("*") if path.is_file()):
        text = log.read_text(errors="replace")
        assert [f"{log.name}: {name}" for name, value in secrets.items() if value in text] == []


def test_files_with_secrets_are_for_their_owner_only(stack: Any) -> None:
    assert stat.S_IMODE(stack.state_dir.stat().st_mode) == 0o700
    for name in ("client.toml", "reaper.toml", "admin.json", "secrets.json"):
        assert stat.S_IMODE((stack.state_dir / name).stat().st_mode) == 0o600, name


def test_s3_answers_on_loopback_and_on_the_machines_network(stack: Any) -> None:
    assert stack.bridge_address in stack.settings.s3.node_endpoint
    here, there = ObjectStore.open(stack.settings.s3), ObjectStore.open(stack.settings.s3, node=True)
    here.put("test/both", b"same")
    assert there.get("test/both") == b"same"
    here.delete("test/both")


def test_mlflow_wants_a_password(stack: Any) -> None:
    settings = stack.settings.mlflow
    address = settings.tracking_uri.removeprefix("http://")
    good = f"{settings.username}:{settings.password.get_secret_value()}"
    answers = [mlflow_status(address, login) for login in ("", "mlops:wrong", good)]
    assert answers == [401, 401, 200]


def test_the_reaper_says_when_it_last_looked(stack: Any) -> None:
    file, name = stack.layout.reaper_figures, "mlops_reaper_last_success_timestamp_seconds "
    began = time.time()

    def looked() -> bool:
        text = file.read_text() if file.exists() else ""
        return any(float(line.split()[1]) > began for line in text.splitlines() if line.startswith(name))

    eventually(looked, within_s=60, what="a pass in which the reaper could do everything")


def test_services_listen_on_nothing_but_loopback_and_the_machines_network(stack: Any) -> None:
    inside = set(members(stack.pid))
    lines = subprocess.run(["ss", "-Hltnp"], check=True, capture_output=True, text=True).stdout.splitlines()
    ours = [line.split()[3] for line in lines if any(f"pid={pid}," in line for pid in inside)]
    assert len(ours) >= 8
    hosts = {address.rpartition(":")[0] for address in ours}
    assert hosts <= {"127.0.0.1", stack.bridge_address}


def test_a_revoked_credential_stops_working_at_once_even_with_an_old_token(stack: Any) -> None:
    user = connect(
        stack,
        username=stack.settings.keystone.username,
        password=stack.settings.keystone.password.get_secret_value(),
        project_name=stack.settings.keystone.project_name,
        user_domain_name="Default",
        project_domain_name="Default",
    )
    made = user.identity.create_application_credential(
        user.current_user_id,
        name=f"test-{os.getpid()}",
        access_rules=[{"service": "baremetal", "method": "GET", "path": "/v1/nodes"}],
    )
    ironic = stack.admin["ironic_url"]
    limited = connect(stack, application_credential_id=made.id, application_credential_secret=made.secret)
    token = limited.auth_token
    assert get(f"{ironic}/v1/nodes", token) == 200
    assert get(f"{ironic}/v1/allocations", token) == 401  # no access rule
    user.identity.delete_application_credential(user.current_user_id, made)
    assert get(f"{ironic}/v1/nodes", token) == 401


def service(stack: Any, name: str) -> control.ServiceStatus:
    return next(s for s in control.status(stack.layout).services if s.name == name)


def every_secret(state_dir: Path) -> dict[str, str]:
    found = {k: v for k, v in json.loads((state_dir / "secrets.json").read_text()).items() if len(v) > 36}
    for user, keys in json.loads((state_dir / "ceph" / "s3-keys.json").read_text()).items():
        found[f"s3 {user}"] = keys["secret_access_key"]
    return found


def mlflow_status(address: str, login: str) -> int:
    connection = http.client.HTTPConnection(address, timeout=10)
    headers = {"Authorization": "Basic " + b64encode(login.encode()).decode()} if login else {}
    connection.request("GET", "/api/2.0/mlflow/experiments/search?max_results=1", headers=headers)
    return connection.getresponse().status


def get(url: str, token: str) -> int:
    return requests.get(url, headers={"X-Auth-Token": token}, timeout=30).status_code


def connect(stack: Any, **auth: str) -> Any:
    kind = "v3applicationcredential" if "application_credential_id" in auth else "v3password"
    return openstack.connect(
        auth_type=kind,
        auth={"auth_url": stack.settings.keystone.auth_url, **auth},
        region_name=stack.settings.keystone.region,
        load_yaml_config=False,
        load_envvars=False,
    )
