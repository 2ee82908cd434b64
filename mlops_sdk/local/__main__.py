"""The first process of a stack's namespace; started by `mlops local up`, never by hand."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from mlops_sdk.errors import MlopsError
from mlops_sdk.local.isolation import become_init


def main() -> int:
    """Fork into init and supervisor; the supervisor runs the stack."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--state-dir", type=Path, required=True)
    parser.add_argument("--only", default="")
    parser.add_argument("--hold", default="")
    parser.add_argument("--with", default="", dest="profiles")
    parser.add_argument("--faults", action="store_true")
    parser.add_argument("--until-stdin-closes", action="store_true")
    arguments = parser.parse_args()
    try:
        become_init()
        _run(arguments)
    except MlopsError as error:
        sys.stderr.write(f"mlops local up: {error}\n")
        return 1
    return 0


def _run(arguments: argparse.Namespace) -> None:
    # Imported after the fork, so that the init process stays small.
    from mlops_sdk.local.stack import Options, run_stack  # noqa: PLC0415

    only, hold, profiles = (
        tuple(name for name in listed.split(",") if name)
        for listed in (arguments.only, arguments.hold, arguments.profiles)
    )
    options = Options(state_dir=arguments.state_dir, only=only, faults=arguments.faults, hold=hold, profiles=profiles)
    run_stack(options, until_stdin_closes=arguments.until_stdin_closes)


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # threads that wait in a socket call must not hold up the end
