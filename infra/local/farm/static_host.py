"""A static SSH host: a machine that is always on and that nobody leases; one of the stack's services.

    python static_host.py --config host.json

Its power supply, boot program, files and isolation are those of the farm's machines. The configuration (0600: it holds
the host's private key) is what `power_on.py` reads, without `files`, `boot_program` and `root`, and with:

    slot         its folder: `scratch/` is kept, `root/` is an empty mount point
    neighbours   names and addresses for /etc/hosts
    user_data    as in a config drive: ssh_keys, ssh_authorized_keys
    extra_files  more files, by path
    services     {"once": [argv, ...], "keep": [argv, ...]}: started at boot; those kept are started again when they end
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

_HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(_HERE))  # isolated mode leaves the script's folder out

import etc  # noqa: E402 - after the path


def main() -> None:
    """Write what the power supply reads, and become it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", type=Path, required=True)
    config = json.loads(parser.parse_args().config.read_text())
    slot = Path(config["slot"])
    for folder in (slot / "scratch", slot / "root"):
        folder.mkdir(mode=0o755, parents=True, exist_ok=True)
    specification = slot / "power-on.json"
    descriptor = os.open(specification, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w") as file:
        json.dump(specification_of(config, slot), file)
    os.dup2(os.open(specification, os.O_RDONLY), 0)
    os.execv(sys.executable, [sys.executable, "-I", "-S", str(_HERE / "power_on.py")])  # noqa: S606 - it becomes it


def specification_of(config: dict[str, Any], slot: Path) -> dict[str, Any]:
    """What `power_on.py` reads."""
    name = str(config["name"])
    return {
        **{key: config[key] for key in ("name", "mac", "address", "fabric", "image_dir")},
        "hostname": name,
        "root": str(slot / "root"),
        "scratch": str(slot / "scratch"),
        "scratch_mib": None,
        "boot_program": str(_HERE / "boot.py"),
        "files": {
            **etc.files(name, {name: config["address"], **config["neighbours"]}),
            **config["extra_files"],
            "/run/config-drive/user_data.json": json.dumps(config["user_data"]),
            "/run/boot-services.json": json.dumps(config["services"]),
        },
    }


if __name__ == "__main__":
    main()
