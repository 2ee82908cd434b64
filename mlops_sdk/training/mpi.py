"""A plan as one `mpirun` (Open MPI 4.1) on the first machine; the others guard what it starts on them. Pure.

`mpirun` logs in to the other machines with the key the machines of one run share, and knows their host keys beforehand.
"""

from __future__ import annotations

from mlops_sdk.identity.ssh_keys import SshKey
from mlops_sdk.remote.lifeline import MARK
from mlops_sdk.training.plan import PYTHON, NodeCommand, Plan


def commands(plan: Plan, peer_key: SshKey) -> list[NodeCommand]:
    """The command of each machine, in the placement's order."""
    files = {
        f"{plan.directory}/peer_key": peer_key.private.encode(),
        f"{plan.directory}/known_hosts": _known_hosts(plan),
    }
    first = NodeCommand(
        argv=_argv(plan), env=_environment(plan), files=files | {f"{plan.directory}/hostfile": _hostfile(plan)}
    )
    return [first, *(NodeCommand(argv=(), env={}, files=files) for _ in plan.placement.nodes[1:])]


def _argv(plan: Plan) -> tuple[str, ...]:
    ssh = {
        "IdentitiesOnly": "yes",
        "BatchMode": "yes",
        "StrictHostKeyChecking": "yes",
        "UserKnownHostsFile": f"{plan.directory}/known_hosts",
        "GlobalKnownHostsFile": "/dev/null",
        "LogLevel": "ERROR",
        "ConnectTimeout": "10",
    }
    options = " ".join(f"-o {name}={value}" for name, value in ssh.items())
    settings = {
        "plm_rsh_agent": "ssh",
        "plm_rsh_args": f"-F /dev/null -i {plan.directory}/peer_key {options}",
        "orte_launch_agent": f"env {MARK}={plan.run_key} orted",
        "oob_tcp_if_include": plan.network,
        "btl": "self,vader,tcp",
        "btl_tcp_if_include": plan.network,
        "orte_keep_fqdn_hostnames": "1",
    }
    return (
        "mpirun",
        "--allow-run-as-root",
        "--hostfile",
        f"{plan.directory}/hostfile",
        "-np",
        str(plan.placement.world_size),
        "--map-by",
        "slot",
        "--bind-to",
        "none",
        *(word for name, value in settings.items() for word in ("--mca", name, value)),
        *(word for name in sorted([*_environment(plan), MARK]) for word in ("-x", name)),
        PYTHON,
        "-m",
        "mlops_sdk.training.worker",
    )


def _environment(plan: Plan) -> dict[str, str]:
    return plan.environment() | {"MASTER_ADDR": plan.master_address, "MASTER_PORT": str(plan.master_port)}


def _hostfile(plan: Plan) -> bytes:
    slots = plan.placement.processes_per_node
    return "".join(f"{node.address} slots={slots}\n" for node in plan.placement.nodes).encode()


def _known_hosts(plan: Plan) -> bytes:
    return "".join(f"{node.address} {node.host_public_key.strip()}\n" for node in plan.placement.nodes).encode()
