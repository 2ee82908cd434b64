"""Connections become checked, typed settings; secrets stay secret; what is unknown is refused by name."""

from __future__ import annotations

import asyncio
import json

import pytest
from airflow.sdk import Connection

from mlops_hooks.connection import read_fields
from mlops_hooks.deployment import DeploymentHook
from mlops_hooks.forms import FORMS, OPENSTACK, S3
from mlops_hooks.s3 import S3Hook
from mlops_hooks.ssh import SshHook
from mlops_hooks.vllm import VllmHook
from mlops_sdk.errors import SettingsError

KEY = "a broker key that is long enough for us"
CONNECTIONS = {
    "mlops_openstack": {
        "conn_type": "mlops_openstack",
        "host": "http://127.0.0.1:5000/v3",
        "login": "mlops",
        "password": "keystone/secret@:?",
        "extra": {
            "project_name": "ml-research",
            "deployment_id": "6f1c3d1e-0000-4000-8000-000000000001",
            "broker_secret": KEY,
            "region": None,
            "owner": "",
            "node_seconds_price": {"gpu.h200.8x": 0.01},
            "cost": {"serving_second": 0.5},
            "budget": {"owners": {"ada": 900}},
            "lease": {"renew_for_s": 20, "poll_s": 0.5},
            "ironic_images": {"*": {"source": "file:///opt/node"}},
        },
    },
    "mlops_s3": {
        "conn_type": "mlops_s3",
        "host": "http://127.0.0.1:7480",
        "login": "access",
        "password": "s3-secret",
        "extra": {"node_endpoint": "http://10.0.0.1:7480", "bucket": "models"},
    },
    "mlops_mlflow": {
        "conn_type": "mlops_mlflow",
        "host": "http://127.0.0.1:5001",
        "login": "mlops",
        "password": "mlflow-secret",
    },
    "mlops_serve_1": {
        "conn_type": "mlops_ssh",
        "host": "10.0.0.9",
        "port": 2222,
        "login": "serve",
        "extra": {"private_key": "-----BEGIN OPENSSH PRIVATE KEY-----\nsecret", "host_public_key": "ssh-ed25519 AAAA"},
    },
    "mlops_vllm": {
        "conn_type": "mlops_vllm",
        "host": "http://10.0.0.9:8000/",
        "extra": {
            "ssh_conn_id": "mlops_serve_1",
            "root": "/srv/models",
            "python": "/opt/vllm/bin/python",
            "haproxy_socket": "/run/haproxy.sock",
            "ports": {"blue": 8001, "green": 8002},
        },
    },
}


@pytest.fixture
def connections(monkeypatch):
    """Airflow's own way to give connections without a database."""

    def put(**changes):
        for conn_id, connection in {**CONNECTIONS, **changes}.items():
            monkeypatch.setenv(f"AIRFLOW_CONN_{conn_id.upper()}", json.dumps(connection))

    put()
    return put


def changed(conn_id: str, **extra) -> dict:
    connection = CONNECTIONS[conn_id]
    return {conn_id: {**connection, "extra": {**connection.get("extra", {}), **extra}}}


def test_three_connections_are_a_deployment(connections):
    settings = DeploymentHook().settings()
    assert settings.keystone.auth_url == "http://127.0.0.1:5000/v3"
    assert settings.keystone.password.get_secret_value() == "keystone/secret@:?"
    assert settings.keystone.region == "RegionOne"  # empty in the form: the default
    assert settings.owner == "unknown"
    assert settings.broker_key.get_secret_value() == KEY
    assert (settings.lease.renew_for_s, settings.lease.poll_s) == (20, 0.5)
    assert settings.node_seconds_price == {"gpu.h200.8x": 0.01}
    assert settings.instance_info_for("gpu.h200.8x") == {"image_source": "file:///opt/node"}
    assert (settings.cost.serving_second, settings.budget.owners) == (0.5, {"ada": 900})
    assert (settings.s3.bucket, settings.s3.node_endpoint) == ("models", "http://10.0.0.1:7480")
    assert settings.mlflow.username == "mlops"


def test_a_pool_of_hosts_comes_from_the_connection_and_its_key_is_a_secret(connections):
    host = {"address": "192.0.2.11", "host_public_key": "ssh-ed25519 AAAA", "resource_class": "lab.a100.4x"}
    gateway = {"address": "192.0.2.1", "host_public_key": "ssh-ed25519 BBBB"}
    pool = {"static_hosts": {"lab-1": {**host, "gateway": "door"}}, "static_gateways": {"door": gateway}}
    connections(**changed("mlops_openstack", **pool, static_private_key="pool's secret"))
    settings = DeploymentHook().settings()
    assert [(found.name, found.address, found.user) for found in settings.static_hosts] == [
        ("lab-1", "192.0.2.11", "mlops")
    ]
    assert settings.static_key.get_secret_value() == "pool's secret"
    assert [found.address for found in settings.static_gateways] == ["192.0.2.1"]
    assert "pool's secret" not in repr(settings)
    connections(**changed("mlops_openstack", static_hosts={"lab-1": host}))
    with pytest.raises(SettingsError, match="static_hosts need static_key"):
        DeploymentHook().settings()


def test_servers_of_nova_come_from_the_connection(connections):
    nova = {"networks": ["gpu-net"], "image": "ubuntu", "flavors": {"gpu": {"delivery": "mig", "accelerators": 1}}}
    connections(**changed("mlops_openstack", nova=nova))
    settings = DeploymentHook().settings()
    assert settings.nova is not None
    assert (settings.nova.networks, settings.nova.flavors["gpu"].accelerators) == (("gpu-net",), 1)
    connections(**changed("mlops_openstack", nova={"networks": [], "image": "ubuntu"}))
    with pytest.raises(SettingsError, match="networks"):
        DeploymentHook().settings()


def test_an_environment_and_logins_of_runs_come_from_connections_too(connections):
    connections(
        **changed("mlops_openstack", environment="dev"),
        **changed("mlops_mlflow", alias="champion-dev"),
        **changed("mlops_s3", per_run="sts", run_role="arn:aws:iam:::role/mlops-run", token_s="1800"),
    )
    settings = DeploymentHook().settings()
    assert (settings.environment, settings.mlflow.alias) == ("dev", "champion-dev")
    assert (settings.s3.per_run, settings.s3.token_s) == ("sts", 1800)


def test_an_alias_of_another_environment_is_refused(connections):
    connections(**changed("mlops_openstack", environment="dev"), **changed("mlops_mlflow", alias="champion-prod"))
    with pytest.raises(SettingsError, match="champion-dev"):
        DeploymentHook().settings()


def test_logins_of_runs_need_a_role(connections):
    connections(**changed("mlops_s3", per_run="sts"))
    with pytest.raises(SettingsError, match="run_role"):
        DeploymentHook().settings()


def test_a_trigger_reads_the_same_without_blocking(connections):
    assert asyncio.run(DeploymentHook().asettings()) == DeploymentHook().settings()


def test_a_client_that_is_logged_in_is_used_again_until_a_connection_changes(connections):
    first = asyncio.run(DeploymentHook().aclient())
    assert asyncio.run(DeploymentHook().aclient(earlier=first)) is first
    connections(mlops_s3={**CONNECTIONS["mlops_s3"], "password": "rotated"})
    second = asyncio.run(DeploymentHook().aclient(earlier=first))
    assert second.settings.s3.secret_access_key.get_secret_value() == "rotated"


def test_the_environment_of_a_worker_does_not_override_a_connection(connections, monkeypatch):
    monkeypatch.setenv("MLOPS_S3__BUCKET", "another")
    monkeypatch.setenv("MLOPS_OWNER", "somebody")
    settings = DeploymentHook().settings()
    assert settings.s3.bucket == "models"
    assert settings.owner == "unknown"


def test_no_secret_in_a_repr(connections):
    settings = DeploymentHook().settings()
    fields = [
        read_fields(Connection(**{**CONNECTIONS[i], "conn_id": i, "extra": json.dumps(CONNECTIONS[i].get("extra"))}), f)
        for i, f in (("mlops_openstack", OPENSTACK), ("mlops_s3", S3))
    ]
    shown = f"{settings!r} {fields!r} {SshHook('mlops_serve_1').settings()!r} {DeploymentHook()!r}"
    for secret in ("keystone/secret", KEY, "s3-secret", "mlflow-secret", "PRIVATE KEY"):
        assert secret not in shown


def test_an_unknown_extra_is_refused_with_the_known_ones(connections):
    connections(**changed("mlops_s3", buckett="models"))
    with pytest.raises(SettingsError, match="mlops_s3") as caught:
        S3Hook().settings()
    assert caught.value.seen == "buckett"
    assert "bucket" in caught.value.next_step
    assert "ca_bundle" in caught.value.next_step


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (changed("mlops_openstack", deployment_id="not a uuid"), "deployment_id"),
        (changed("mlops_openstack", broker_secret="too short"), "broker_key"),
        (changed("mlops_openstack", lease={"renew_for": 3}), "lease.renew_for"),
        ({"mlops_s3": {**CONNECTIONS["mlops_s3"], "host": ""}}, "host"),
        ({"mlops_s3": {**CONNECTIONS["mlops_s3"], "conn_type": "aws"}}, "'aws'"),
        ({"mlops_s3": {**CONNECTIONS["mlops_s3"], "extra": "[1]"}}, "not a JSON object"),
    ],
)
def test_what_is_wrong_is_named_and_no_value_is_shown(connections, change, named):
    connections(**change)
    with pytest.raises(SettingsError) as caught:
        DeploymentHook().settings()
    assert named in str(caught.value)
    assert next(iter(change)) in str(caught.value)
    assert "too short" not in str(caught.value)


def test_ssh_and_vllm_targets(connections):
    host = SshHook("mlops_serve_1").settings()
    assert (host.name, host.address, host.port, host.username) == ("mlops_serve_1", "10.0.0.9", 2222, "serve")
    target = VllmHook().settings()
    assert target.base_url == "http://10.0.0.9:8000"
    assert target.ports == {"blue": 8001, "green": 8002}


def test_a_host_behind_a_gateway_has_the_gateways_own_key_pinned(connections):
    door = {**CONNECTIONS["mlops_serve_1"], "host": "203.0.113.7", "login": "door"}
    connections(**changed("mlops_serve_1", gateway_conn_id="door"), door=door)
    host = SshHook("mlops_serve_1").settings()
    assert host.via is not None
    assert (host.via.name, host.via.address, host.via.username) == ("door", "203.0.113.7", "door")
    assert VllmHook().target().host == host == asyncio.run(SshHook("mlops_serve_1").asettings())
    twice = {**door, "extra": {**door["extra"], "gateway_conn_id": "another"}}
    connections(**changed("mlops_serve_1", gateway_conn_id="door"), door=twice)
    with pytest.raises(SettingsError, match="'door' is a gateway and names another one"):
        SshHook("mlops_serve_1").settings()


@pytest.mark.parametrize("conn_id", list(CONNECTIONS))
def test_a_connection_survives_the_cache_of_airflow(conn_id):
    """Airflow keeps connections as URIs in its cache: objects in extras come back as they were."""
    raw = CONNECTIONS[conn_id]
    form = next(form for form in FORMS if form.conn_type == raw["conn_type"])
    one = Connection(**{**raw, "conn_id": conn_id, "extra": json.dumps(raw.get("extra", {}))})
    assert read_fields(Connection.from_uri(one.get_uri(), conn_id=conn_id), form) == read_fields(one, form)
