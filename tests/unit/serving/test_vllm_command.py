"""What vLLM is started with, and what haproxy is told and says."""

from __future__ import annotations

from dataclasses import replace

import pytest

from mlops_sdk.errors import ServingError
from mlops_sdk.remote.ssh import Host
from mlops_sdk.serving import router
from mlops_sdk.serving.router import Admin, Server
from mlops_sdk.serving.target import Engine, ServedModel, VllmTarget
from mlops_sdk.serving.vllm import Middleware, instance

TARGET = VllmTarget(
    host=Host(
        name="serve-1", address="10.0.0.5", host_public_key="ssh-ed25519 AAAA", client_private_key="-----KEY-----"
    ),
    base_url="http://10.0.0.5:8000",
    root="/srv/serving",
    python="/opt/vllm/bin/python",
    haproxy_socket="/srv/serving/proxy/admin.sock",
    ports={"blue": 8101, "green": 8102},
)
MODEL = ServedModel(name="code-lm", version="7", prefix="runs/x/model", sha256="f" * 64)
STATE = """1
# be_id be_name srv_id srv_name srv_addr srv_op_state srv_admin_state srv_uweight srv_iweight srv_time_since_last_change
3 vllm 1 blue 127.0.0.1 2 0 1 1 12
3 vllm 2 green 127.0.0.1 0 5 1 1 12
"""
STAT = "# pxname,svname,qcur,qmax,scur,smax,\nvllm,blue,0,0,3,4,\nvllm,green,0,0,0,0,\n"


def option(argv: list[str], name: str) -> str:
    return argv[argv.index(name) + 1]


def test_a_host_with_a_gpu_gets_vllm_s_own_choices():
    argv = instance(TARGET, MODEL, slot="blue", sha256="a" * 64)["argv"]
    assert argv[:5] == [
        "/opt/vllm/bin/python",
        "-m",
        "vllm.entrypoints.cli.main",
        "serve",
        "/srv/serving/models/" + "a" * 32,
    ]
    assert option(argv, "--port") == "8101"
    assert option(argv, "--host") == "127.0.0.1"
    assert option(argv, "--dtype") == "auto"
    for name in ("--enforce-eager", "--distributed-executor-backend", "--max-num-seqs", "--kv-cache-memory-bytes"):
        assert name not in argv


def test_a_small_cpu_host_gets_one_thread_and_one_process_less():
    spec = instance(replace(TARGET, engine=Engine.for_cpu()), MODEL, slot="green", sha256="a" * 64)
    assert option(spec["argv"], "--port") == "8102"
    assert option(spec["argv"], "--distributed-executor-backend") == "uni"
    assert spec["env"]["OMP_NUM_THREADS"] == "1"
    assert spec["env"]["VLLM_ENABLE_V1_MULTIPROCESSING"] == "0"


def test_every_answer_names_its_version_and_users_ask_by_the_plain_name():
    argv = instance(TARGET, MODEL, slot="blue", sha256="a" * 64)["argv"]
    at = argv.index("--served-model-name")
    assert argv[at + 1 : at + 3] == ["code-lm@7", "code-lm"]


def test_a_middleware_is_loaded_and_told_where_to_write():
    middleware = Middleware(path="pkg.mod.Thing", files={"pkg/mod.py": b""}, environment={"MLOPS_PROFILE_EDGES": "{}"})
    spec = instance(TARGET, MODEL, slot="blue", sha256="a" * 64, middleware=middleware, lib="/srv/serving/lib/x")
    assert option(spec["argv"], "--middleware") == "pkg.mod.Thing"
    assert spec["env"]["PYTHONPATH"] == "/srv/serving/lib/x"
    assert spec["env"]["MLOPS_PROFILE_DIR"] == "/srv/serving/profiles/7"
    assert spec["env"]["MLOPS_PROFILE_EDGES"] == "{}"
    assert "MLOPS_PROFILE_DIR" not in instance(TARGET, MODEL, slot="blue", sha256="a" * 64)["env"]


def test_no_key_of_the_host_reaches_what_runs_on_it():
    assert "KEY" not in str(instance(TARGET, MODEL, slot="blue", sha256="a" * 64))
    assert "KEY" not in repr(TARGET)


def test_the_backend_file_enables_only_who_is_ready():
    text = router.backend("/p", {"green": 2, "blue": 1}, ready=["green"])
    assert "server blue 127.0.0.1:1 disabled\n" in text
    assert "server green 127.0.0.1:2\n" in text
    assert "map(/p/versions.map,none)" in text
    assert router.versions({"green": "7", "blue": ""}) == "blue none\ngreen 7\n"


def test_haproxy_s_words_are_read():
    assert router.read_servers([STATE, STAT]) == {
        "blue": Server(admin=Admin.READY, up=True, sessions=3),
        "green": Server(admin=Admin.MAINT, up=False, sessions=0),
    }
    drained = STATE.replace("blue 127.0.0.1 2 0", "blue 127.0.0.1 2 8")
    assert router.read_servers([drained, STAT])["blue"].admin is Admin.DRAIN
    with pytest.raises(ServingError, match="no servers in backend 'vllm'"):
        router.read_servers(["Can't find backend.\n", "Can't find backend.\n"])
