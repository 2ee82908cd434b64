"""A roll-out in a process of its own, which a test kills: prints each step, then the slot that serves."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from mlops_sdk.config import Settings
from mlops_sdk.local.layout import Layout
from mlops_sdk.local.services.serving import ServingAccess
from mlops_sdk.serving.deploy import roll_out_and_wait
from mlops_sdk.serving.target import ServedModel


def main() -> None:
    layout = Layout.at(Path(sys.argv[1]))
    model = ServedModel(**json.loads(sys.argv[2]))
    target = ServingAccess.load(layout).target()
    s3 = Settings.load(layout.client_toml).s3
    done = roll_out_and_wait(target, model, s3, tell=say)
    say(f"serves {done.version} in {done.slot}")


def say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
