"""The boot program: process 1 of a machine. Applies the config drive, runs the SSH daemon, reaps orphans.

Runs inside the machine with the image's Python, standard library only. Without a config drive there is nothing to boot:
the machine stays on and answers nobody.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

_USER_DATA = Path("/run/config-drive/user_data.json")
_SERVICES = Path("/run/boot-services.json")  # of a static host: what it runs beside the SSH daemon
_HOST_KEY = Path("/etc/ssh/ssh_host_ed25519_key")
_SSHD = ["/usr/sbin/sshd", "-D", "-e", "-f", "/etc/ssh/sshd_config"]
_RESTART_AFTER_S = 1.0


def main() -> None:
    """Boot, then be process 1 until the power goes."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: sys.exit(0))
    if not _USER_DATA.exists():
        _say("no operating system deployed: there is no config drive")
        _reap_forever([])
    _apply(json.loads(_USER_DATA.read_text()))
    _say(f"booting {os.uname().nodename}")
    services = json.loads(_SERVICES.read_text()) if _SERVICES.exists() else {"once": [], "keep": []}
    for command in services["once"]:
        _start(command)
    _reap_forever([_SSHD, *services["keep"]])


def _apply(user_data: dict[str, Any]) -> None:
    """The keys of cloud-config that this image understands: ssh_keys and ssh_authorized_keys (hostname: set before)."""
    keys = user_data.get("ssh_keys") or {}
    _write(_HOST_KEY, keys.get("ed25519_private", ""), 0o600)
    _write(_HOST_KEY.with_suffix(".pub"), keys.get("ed25519_public", ""), 0o644)
    Path("/root/.ssh").mkdir(mode=0o700, exist_ok=True)
    authorized = user_data.get("ssh_authorized_keys") or []
    _write(Path("/root/.ssh/authorized_keys"), "".join(f"{key.strip()}\n" for key in authorized), 0o600)
    Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)


def _write(path: Path, text: str, mode: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode), "w") as file:
        file.write(text if text.endswith("\n") else f"{text}\n")


def _reap_forever(services: list[list[str]]) -> None:
    """Collect every child that ends; a service among them is started again, a second later."""
    running = {_start(service): service for service in services}
    while True:
        try:
            ended, status = os.waitpid(-1, 0)
        except ChildProcessError:
            signal.pause()
            continue
        if service := running.pop(ended, None):
            _say(f"{service[0]} ended with {os.waitstatus_to_exitcode(status)}")
            time.sleep(_RESTART_AFTER_S)
            running[_start(service)] = service


def _start(service: list[str]) -> int:
    return subprocess.Popen(service, stdin=subprocess.DEVNULL, start_new_session=True).pid


def _say(text: str) -> None:
    sys.stdout.write(f"boot: {text}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
