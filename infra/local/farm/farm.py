"""The BMC farm: one Redfish service for all machines of a stack.

    python farm.py --config farm.json

sushy-tools' emulator answers; behind it stand our machines (`systems.py`), beside it the resources of a GPU server that
the emulator lacks (`bmc.py`). The account of the configuration is required for everything but the service root.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import signal
import sys
import threading
from pathlib import Path
from typing import Any

import bcrypt
import bmc
import flask
from cheroot import wsgi
from fabric import Fabric
from machine import Machine
from sushy_tools.emulator import main as emulator
from systems import MachineSystems

_LOOPBACK = "127.0.0.1"
_THREADS = 12
_BCRYPT_ROUNDS = 4  # the password is long and random, and is checked at every request
_SYSTEM_PATH_PARTS = 5  # "", redfish, v1, Systems, <uuid>

LOG = logging.getLogger("farm")


def main() -> int:
    """Serve until a signal; then power every machine off."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", type=Path, required=True, help="JSON, see README.md")
    config = json.loads(parser.parse_args().config.read_text())
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    fabric = Fabric(config["fabric"])
    machines = [Machine(description, config, fabric) for description in config["machines"]]
    server = wsgi.Server((_LOOPBACK, int(config["port"])), build_app(config, machines), numthreads=_THREADS)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: threading.Thread(target=server.stop).start())
    LOG.info("%d machines behind http://%s:%s/redfish/v1", len(machines), _LOOPBACK, config["port"])
    try:
        server.start()
    finally:
        for machine in machines:
            machine.power_off()
    return 0


def build_app(config: dict[str, Any], machines: list[Machine]) -> flask.Flask:
    """The emulator with our machines behind it."""
    state_dir = Path(config["state_dir"])
    app = emulator.app
    app.configure(
        extra_config={
            "SUSHY_EMULATOR_STATE_DIR": str(state_dir / "redfish"),
            "SUSHY_EMULATOR_AUTH_FILE": str(_write_account(state_dir, config["username"], config["password"])),
        }
    )
    # the emulator chooses its systems driver in a cached property; a class attribute takes its place
    emulator.Application.systems = MachineSystems(machines)
    static: dict[str, bmc.Resource] = {}
    for machine in machines:
        static |= bmc.resources(machine.description)
    by_uuid = {machine.uuid: machine.description for machine in machines}

    @app.before_request
    def serve_static() -> flask.Response | None:
        found = static.get(flask.request.path.rstrip("/"))
        return flask.jsonify(found) if found is not None and flask.request.method == "GET" else None

    @app.after_request
    def complete(response: flask.Response) -> flask.Response:
        parts = flask.request.path.rstrip("/").split("/")
        if flask.request.method != "GET" or response.status_code != 200 or len(parts) != _SYSTEM_PATH_PARTS:  # noqa: PLR2004 - HTTP
            return response
        completions = {"Systems": bmc.complete_system, "Managers": bmc.complete_manager}
        if parts[3] in completions and parts[4] in by_uuid:
            body = json.loads(response.get_data())
            response.set_data(json.dumps(completions[parts[3]](body, by_uuid[parts[4]])))
        return response

    return app


def _write_account(state_dir: Path, username: str, password: str) -> Path:
    """The password file that the emulator's authentication reads: a bcrypt hash."""
    path = state_dir / "bmc-account"
    hashed = bcrypt.hashpw(password.encode(), bcrypt.gensalt(rounds=_BCRYPT_ROUNDS)).decode()
    path.unlink(missing_ok=True)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(f"{username}:{hashed}\n")
    return path


if __name__ == "__main__":
    sys.exit(main())
