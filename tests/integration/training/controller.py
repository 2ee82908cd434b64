"""A controller that a test kills: runs the toy program for a long time on the lease it is told of.

controller.py RUN_KEY LAUNCHER BUNDLE_SHA256
"""

from __future__ import annotations

import sys

from mlops_sdk.client import Client
from mlops_sdk.training.events import StepDone
from mlops_sdk.training.job import run_job
from mlops_sdk.training.site import Site
from mlops_sdk.training.spec import BundleRef, Launcher, LaunchSpec


def main(key: str, launcher: str, sha256: str) -> None:
    """Run until killed; says at which step the job is."""
    run = Client().attach(key)
    spec = LaunchSpec(
        module="toy",
        bundle=BundleRef(sha256=sha256, size=0),
        args={"steps": 100_000},
        launcher=Launcher(launcher),
    )

    def tell(event: object) -> None:
        if isinstance(event, StepDone):
            sys.stdout.write(f"step {event.step}\n")
            sys.stdout.flush()

    run_job(Site.of(run), spec, run.lease().nodes, on_event=tell)


if __name__ == "__main__":
    main(*sys.argv[1:])
