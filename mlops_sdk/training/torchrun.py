"""A plan as torchrun commands: one agent on each machine, static rendezvous at the first. Pure.

No restarts by torchrun itself: an attempt ends as a whole and the next one starts from the last commit.
"""

from __future__ import annotations

from mlops_sdk.training.plan import PYTHON, NodeCommand, Plan


def commands(plan: Plan) -> list[NodeCommand]:
    """The command of each machine, in the placement's order."""
    return [
        NodeCommand(argv=_argv(plan, rank), env=plan.environment(), files={})
        for rank in range(len(plan.placement.nodes))
    ]


def _argv(plan: Plan, node_rank: int) -> tuple[str, ...]:
    options = {
        "--nnodes": len(plan.placement.nodes),
        "--nproc-per-node": plan.placement.processes_per_node,
        "--node-rank": node_rank,
        "--rdzv-backend": "static",
        "--rdzv-id": f"{plan.run_key}-{plan.attempt}",
        "--master-addr": plan.master_address,
        "--master-port": plan.master_port,
        "--local-addr": plan.placement.nodes[node_rank].address,
        "--max-restarts": 0,
        "--monitor-interval": 0.1,
    }
    flat = [word for name, value in options.items() for word in (name, str(value))]
    return (PYTHON, "-m", "torch.distributed.run", *flat, "-m", "mlops_sdk.training.worker")
