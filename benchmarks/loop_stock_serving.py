"""The stock chain's roll-out of `benchmarks.loop`: vLLM started over SSH, asked by a sensor, switched in haproxy."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from benchmarks.loop_stock import Access, model_folder, ssh
from benchmarks.loop_workload import MODEL
from mlops_sdk.errors import MlopsError
from mlops_sdk.serving import router
from mlops_sdk.serving.target import SLOTS, Engine, ServedModel, VllmTarget
from mlops_sdk.serving.vllm import instance

# Runs on the serving host when the proxy's files are written: tells the running proxy, waits until its own check of the
# new server passes, and takes the old one out.
_SWITCH: Final = """
import json, socket, sys, time
order = json.loads(sys.argv[1])

def tell(command):
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(order["socket"])
        connection.sendall(command.encode() + b"\\n")
        said = b""
        while piece := connection.recv(65536):
            said += piece
    return said.decode()

for known, unknown in order["announce"]:
    if "not found" in tell(known):
        tell(unknown)
tell(order["ready"])
until = time.monotonic() + 30
while not any(line.split()[3:6:2] == [order["slot"], "2"] for line in tell(order["look"]).splitlines()[2:]):
    if time.monotonic() > until:
        sys.exit("haproxy's check of the new server does not pass")
    time.sleep(0.1)
if order["drain"]:
    tell(order["drain"])
"""


def start_vllm(registered: Mapping[str, Any]) -> dict[str, str]:
    """Bring the model and start vLLM in the slot that is free; which that is."""
    access = Access()
    target, version = _target(access), str(registered["version"])
    root = target.path("stock")
    old = (ssh(access, target.host.address, f"cat {root}/slot 2>/dev/null || true") or "").strip()
    slot = next(name for name in SLOTS if name != old)
    spec = instance(target, ServedModel(name=MODEL, version=version, prefix=""), slot=slot, sha256="0" * 64)
    folder = f"{root}/models/{version}"
    with model_folder(access, registered["model"]) as files:
        ssh(access, target.host.address, f"mkdir -p {folder} && tar -C {folder} -xf -", stdin=_tar(files))
    argv = [folder if word == spec["folder"] else word for word in spec["argv"]]
    command = shlex.join(["env", "-i", *(f"{name}={value}" for name, value in spec["env"].items()), *argv])
    script = (
        f"mkdir -p {' '.join(spec['folders'])}; cd {root}; setsid nohup {command} > {slot}.log 2>&1 < /dev/null & "
        f"echo $! > {root}/{slot}.pid"
    )
    ssh(access, target.host.address, script)
    return {"slot": slot, "old": old, "version": version}


def ready(started: Mapping[str, str]) -> bool:
    """Whether the new version gives a completion."""
    access = Access()
    target = _target(access)
    body = {"model": f"{MODEL}@{started['version']}", "prompt": "The", "max_tokens": 4}
    url = f"http://127.0.0.1:{target.ports[started['slot']]}/v1/completions"
    ask = ["curl", "-fsS", "-H", "Content-Type: application/json", "-d", json.dumps(body), url]
    alive = f"kill -0 $(cat {target.path('stock', started['slot'])}.pid) || exit 9"
    said = ssh(access, target.host.address, f"{alive}; {shlex.join(ask)} || echo", check=False)
    if said is None:
        log = ssh(access, target.host.address, f"tail -c 2000 {target.path('stock', started['slot'])}.log", check=False)
        raise MlopsError("vLLM has ended", seen=str(log))
    return bool(said.strip())


def switch(started: Mapping[str, str]) -> None:
    """Users get the new version from here on; the old one is drained and ended."""
    access = Access()
    target, slot, old = _target(access), started["slot"], started["old"]
    host, proxy, root = target.host.address, target.proxy_folder, target.path("stock")
    versions = {name: started["version"] if name == slot else "" for name in SLOTS}
    for name, content in (
        (router.VERSIONS_FILE, router.versions(versions)),
        (router.BACKEND_FILE, router.backend(proxy, target.ports, ready=(slot,))),
    ):
        ssh(access, host, f"cat > {proxy}/{name}.new && mv {proxy}/{name}.new {proxy}/{name}", stdin=content.encode())
    known, unknown = (router.announce(proxy, slot, started["version"], known=k) for k in (True, False))
    order = {
        "socket": target.haproxy_socket,
        "slot": slot,
        "announce": [[known, unknown]],
        "ready": router.order(slot, router.Admin.READY),
        "look": router.LOOK[0],
        "drain": router.order(old, router.Admin.DRAIN) if old else "",
    }
    run = shlex.join([target.python, "-I", "-S", "-", json.dumps(order)])
    ssh(access, host, f"{run} && echo {slot} > {root}/slot", stdin=_SWITCH.encode())
    if old:
        ssh(access, host, f"kill -TERM $(cat {root}/{old}.pid)", check=False)


def crown(registered: Mapping[str, Any]) -> None:
    """It serves: it is the champion."""
    Access().tracking().set_registered_model_alias(MODEL, "champion", str(registered["version"]))


def end_script(target: VllmTarget) -> str:
    """Ends whatever this chain serves, on the host."""
    root = shlex.quote(target.path("stock"))
    return f"for pid in $(cat {root}/*.pid 2>/dev/null); do kill -KILL $pid 2>/dev/null; done; rm -rf {root}; true"


def _target(access: Access) -> VllmTarget:
    from mlops_sdk.remote.ssh import Host  # noqa: PLC0415 - tasks only

    login, serving = access.key, access.serving
    return VllmTarget(
        host=Host(
            name="serve-1",
            address=login["address"],
            host_public_key=login["host_public_key"],
            client_private_key=login["private_key"],
        ),
        base_url=str(serving["base_url"]),
        root=str(serving["root"]),
        python=str(serving["python"]),
        haproxy_socket=str(serving["haproxy_socket"]),
        ports=serving["ports"],
        engine=Engine.model_validate(serving["engine"]),
    )


def _tar(folder: Path) -> bytes:
    import io  # noqa: PLC0415 - tasks only
    import tarfile  # noqa: PLC0415 - as above

    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        archive.add(folder, arcname=".")
    return buffer.getvalue()
