"""The same plan as torchrun and as mpirun command lines."""

from __future__ import annotations

import pytest

from mlops_sdk.capacity.node import Node
from mlops_sdk.identity.ssh_keys import SshKey
from mlops_sdk.training import mpi, torchrun
from mlops_sdk.training.launch import place
from mlops_sdk.training.plan import Plan

PEER = SshKey(private="-----BEGIN OPENSSH PRIVATE KEY-----\nsecret\n", public="ssh-ed25519 PEER")


@pytest.fixture
def plan() -> Plan:
    nodes = [
        Node(id=str(i), name=f"gpu-0{i}", index=0, address=f"10.0.0.{i}", host_public_key=f"ssh-ed25519 K{i}")
        for i in (2, 1)
    ]
    return Plan(
        placement=place(nodes, 4),
        run_key="abcdefghijkl",
        attempt=2,
        python_path=("/scratch/b/program", "/scratch/b/site"),
        network="10.0.0.0/24",
        env={"OMP_NUM_THREADS": "3", "PYTHONPATH": "/evil"},
    )


def after(argv: tuple[str, ...], option: str) -> str:
    return argv[argv.index(option) + 1]


def test_torchrun_starts_one_agent_per_machine_with_its_own_rank(plan: Plan) -> None:
    commands = torchrun.commands(plan)
    assert [after(c.argv, "--node-rank") for c in commands] == ["0", "1"]
    assert {after(c.argv, "--master-addr") for c in commands} == {"10.0.0.1"}
    assert {after(c.argv, "--nproc-per-node") for c in commands} == {"4"}
    assert {after(c.argv, "--max-restarts") for c in commands} == {"0"}
    assert [after(c.argv, "--local-addr") for c in commands] == ["10.0.0.1", "10.0.0.2"]
    assert commands[0].argv[-2:] == ("-m", "mlops_sdk.training.worker")


def test_mpirun_runs_once_and_the_other_machines_guard(plan: Plan) -> None:
    first, second = mpi.commands(plan, PEER)
    assert first.argv[0] == "mpirun"
    assert after(first.argv, "-np") == "8"
    assert second.argv == ()
    assert first.files["/run/mlops/abcdefghijkl/hostfile"] == b"10.0.0.1 slots=4\n10.0.0.2 slots=4\n"


def test_mpirun_knows_the_host_keys_and_accepts_no_others(plan: Plan) -> None:
    first, second = mpi.commands(plan, PEER)
    known = b"10.0.0.1 ssh-ed25519 K1\n10.0.0.2 ssh-ed25519 K2\n"
    assert first.files["/run/mlops/abcdefghijkl/known_hosts"] == known
    assert second.files["/run/mlops/abcdefghijkl/known_hosts"] == known
    assert "StrictHostKeyChecking=yes" in " ".join(first.argv)


def test_no_secret_is_in_a_command_line_or_environment(plan: Plan) -> None:
    for command in (*torchrun.commands(plan), *mpi.commands(plan, PEER)):
        assert "secret" not in " ".join((*command.argv, *command.env.values()))


def test_the_program_may_add_to_the_environment_but_not_replace_the_bundles_path(plan: Plan) -> None:
    for command in (torchrun.commands(plan)[0], mpi.commands(plan, PEER)[0]):
        assert command.env["OMP_NUM_THREADS"] == "3"
        assert command.env["PYTHONPATH"] == "/scratch/b/program:/scratch/b/site"
        assert command.env["MLOPS_JOB_FILE"] == "/run/mlops/abcdefghijkl/job.json"


def test_mpirun_passes_the_environment_on_by_name_only(plan: Plan) -> None:
    argv = mpi.commands(plan, PEER)[0].argv
    names = [argv[i + 1] for i, word in enumerate(argv) if word == "-x"]
    assert {"MASTER_ADDR", "MASTER_PORT", "PYTHONPATH", "MLOPS_JOB_FILE", "MLOPS_LIFELINE"} <= set(names)
    assert not any("=" in name for name in names)


def test_another_attempt_meets_at_another_port(plan: Plan) -> None:
    assert after(torchrun.commands(plan)[0].argv, "--master-port") == "29502"
