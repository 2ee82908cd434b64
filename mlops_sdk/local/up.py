"""The outer half of `mlops local up`: refuse what cannot work, take the lock, become the namespace."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import NoReturn

from mlops_sdk.errors import MlopsError, StackError
from mlops_sdk.local import addresses
from mlops_sdk.local.isolation import enter_namespace, take_lock
from mlops_sdk.local.layout import DEFAULT_STATE_DIR, Layout, Tools


def up(
    state_dir: Path,
    *,
    only: str = "",
    hold: str = "",
    profiles: str = "",
    faults: bool = False,
    until_stdin_closes: bool = False,
) -> NoReturn:
    """Become the embedded stack of a state directory. Returns only by raising.

    Raises:
        StackError: not root, not set up, already running, or a port is taken.
    """
    if os.geteuid() != 0:
        raise StackError("the embedded stack needs root: it makes namespaces", next_step="run it as root")
    Tools.find().check_profiles(name for name in profiles.split(",") if name)
    layout = Layout.at(state_dir)
    layout.create()
    lock = take_lock(layout)
    layout.status_json.unlink(missing_ok=True)
    addresses.check_free(addresses.choose_or_load(layout))
    flags = ["--faults"] * faults + ["--until-stdin-closes"] * until_stdin_closes
    chosen = ["--only", only, "--hold", hold, "--with", profiles]
    enter_namespace(lock, ["--state-dir", str(layout.state_dir), *chosen, *flags])


def main() -> int:
    """``python -m mlops_sdk.local.up``: what `StackProcess` starts, without the rest of the command line's imports."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--state-dir", type=Path, default=DEFAULT_STATE_DIR)
    parser.add_argument("--only", default="")
    parser.add_argument("--hold", default="")
    parser.add_argument("--with", default="", dest="profiles")
    parser.add_argument("--faults", action="store_true")
    parser.add_argument("--until-stdin-closes", action="store_true")
    arguments = parser.parse_args()
    try:
        up(
            arguments.state_dir,
            only=arguments.only,
            hold=arguments.hold,
            profiles=arguments.profiles,
            faults=arguments.faults,
            until_stdin_closes=arguments.until_stdin_closes,
        )
    except MlopsError as error:
        sys.stderr.write(f"mlops local up: {error}\n")
        return 1


if __name__ == "__main__":
    sys.exit(main())
