"""A controller of its own process for the crash tests: leases one machine, gives it back, and dies at a named boundary.

python controller.py NAME STEP PHASE NODES [SPARES]

With a spare, it replaces its first machine before it gives everything back.
"""

import os
import signal
import sys
from datetime import UTC, datetime, timedelta

from mlops_sdk.capacity.lease import LeaseRequest
from mlops_sdk.client import Client


def main(name: str, step: str, phase: str, nodes: int, spares: int = 0) -> None:
    def die_here(seen: str, when: str, detail: dict[str, object]) -> None:
        if (seen, when) == (step, phase):
            os.kill(os.getpid(), signal.SIGKILL)

    deadline = datetime.now(UTC) + timedelta(minutes=10)
    request = LeaseRequest(nodes=nodes, spares=spares, resource_class="gpu.h200.8x", deadline=deadline, wait_s=30)
    with Client().start_run(name=name) as run:
        run.on_event(die_here)
        lease = run.lease(request)
        if spares:
            run.replace(lease.nodes[0].name)
    sys.exit(3)  # the boundary was never reached


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3], *map(int, sys.argv[4:]))
