"""Runs on the serving host: keeps the instances of the slots alive, fetches models, asks instances and the proxy.

    python -I keeper.py --root DIR look                                 what there is, as JSON
    python -I keeper.py --root DIR reaches          < {host, port}      whether this host gets a connection there
    python -I keeper.py --root DIR fetch            < {name, files, through}    a model's files, from presigned URLs
    python -I keeper.py --root DIR start SLOT       < instance          start an instance, unless it runs
    python -I keeper.py --root DIR stop SLOT        < {grace_s}         end it and forget it; returns at once
    python -I keeper.py --root DIR ask SLOT         < {model, prompt}   one real completion
    python -I keeper.py --root DIR proxy            < {socket, commands}
    python -I keeper.py --root DIR prune            < {keep_profiles_days}   remove what no slot needs: see `_prune`
    python -I keeper.py --root DIR hold NAME                            a lock for as long as standard input is open
    python -I keeper.py --root DIR resume                               after a boot: every instance runs again

Everything below DIR. An instance is `slots/<slot>/instance.json`: as long as the file is there, a process of its own
(the slot's keeper, which outlives the login that started it) starts it again whenever it ends, after a pause that
doubles. Every order may be given twice. Replies are one JSON object on standard output; a refusal is exit status 3 and
a sentence on standard error. Standard library only, Linux only; one file, because it is sent to the host as it is.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import hashlib
import http.client
import json
import os
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Generator
from pathlib import Path
from typing import Any

MARK = "MLOPS_SERVING_SLOT"
REFUSED = 3
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 1.0, 30.0
_GOOD_AFTER_S = 60.0  # an instance that lived this long starts its pauses anew
_TICK_S = 0.2
_TIMEOUT_S = 30.0
_REACH_S = 5.0
_CHUNK = 1 << 20
_TAIL = 4000
_DAY_S = 86400.0


class Refused(Exception):
    """An order that cannot be carried out; the text is for the person who reads the driver's error."""


def main() -> int:
    """Carry out one order."""
    parser = argparse.ArgumentParser(prog="keeper")
    parser.add_argument("--root", type=Path, required=True)
    parser.add_argument("order", choices=[*_ORDERS, "keep"])
    parser.add_argument("name", nargs="?", default="")
    given = parser.parse_args()
    root: Path = given.root
    os.umask(0o077)
    if given.order == "keep":
        return _keep(root, given.name)
    try:
        reply = _ORDERS[given.order](root, given.name)
    except Refused as refusal:
        sys.stderr.write(f"{refusal}\n")
        return REFUSED
    sys.stdout.write(json.dumps(reply) + "\n")
    return 0


# -- what there is ---------------------------------------------------------------------------------


def _look(root: Path, _name: str) -> dict[str, Any]:
    slots = {folder.name: _slot(folder) for folder in sorted((root / "slots").glob("*")) if folder.is_dir()}
    models = sorted(f.name for f in (root / "models").glob("*") if f.is_dir() and not f.name.startswith("."))
    return {"slots": {name: view for name, view in slots.items() if view}, "models": models}


def _slot(folder: Path) -> dict[str, Any]:
    """Instance, state and last words of a slot; empty when there is nothing in it."""
    instance, state = _read(folder / "instance.json"), _read(folder / "state.json")
    kept, processes = _is_kept(folder), bool(_marked(folder.name))
    if not instance and not kept and not processes:
        return {}
    return {
        "model": instance.get("model", ""),
        "version": instance.get("version", ""),
        "sha256": instance.get("sha256", ""),
        "kept": kept,
        "stopping": not instance or bool(state.get("stopping")),
        "pid": int(state.get("pid", 0)) if kept else 0,
        "running": processes,
        "restarts": int(state.get("restarts", 0)),
        "since": float(state.get("since", 0.0)),
        "last_exit": str(state.get("last_exit", "")),
        "tail": _tail(folder / "log") if state.get("last_exit") else "",
    }


# -- models ----------------------------------------------------------------------------------------


def _reaches(_root: Path, _name: str) -> dict[str, Any]:
    order = _stdin()
    try:
        socket.create_connection((str(order["host"]), int(order["port"])), timeout=_REACH_S).close()
    except OSError as error:
        return {"reached": False, "seen": str(error)}
    return {"reached": True, "seen": ""}


def _fetch(root: Path, _name: str) -> dict[str, Any]:
    """Bring a model's files; each is checked, and the folder has its name only when all are right.

    With `through`, over that port of this host, which leads to the store.
    """
    order = _stdin()
    target = root / "models" / str(order["name"])
    partial = target.with_name(f".{target.name}.partial")
    fetched = 0
    with _locked(root / "models" / f".{target.name}.lock"):
        if not target.exists():
            partial.mkdir(parents=True, exist_ok=True)
            for file in order["files"]:
                fetched += _fetch_file(file, partial / str(file["name"]), int(order.get("through", 0)))
            partial.rename(target)
    return {"folder": str(target), "bytes": fetched}


def _fetch_file(file: dict[str, Any], path: Path, through: int) -> int:
    if path.exists() and _sha256(path) == file["sha256"]:
        return 0
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with _opener(through).open(file["url"], timeout=_TIMEOUT_S) as reply, path.open("wb") as out:
            shutil.copyfileobj(reply, out, _CHUNK)
    except urllib.error.HTTPError as error:  # its text would show the signed address
        raise Refused(f"file {file['name']!r} of the model: the store answered {error.code} {error.reason}") from None
    except (OSError, http.client.HTTPException) as error:
        raise Refused(f"file {file['name']!r} of the model: no answer from the store: {error}") from None
    seen = _sha256(path)
    if seen != file["sha256"]:
        path.unlink()
        raise Refused(f"file {file['name']!r} of the model is damaged: SHA-256 {seen}, expected {file['sha256']}")
    return path.stat().st_size


def _opener(through: int) -> urllib.request.OpenerDirector:
    """Sends to the port `through` of this host, if there is one, what it would send to the store."""
    if not through:
        return urllib.request.build_opener()

    class Plain(http.client.HTTPConnection):
        def connect(self) -> None:
            self.sock = socket.create_connection(("127.0.0.1", through), self.timeout)

    class Secure(http.client.HTTPSConnection):
        def connect(self) -> None:
            link = socket.create_connection(("127.0.0.1", through), self.timeout)
            self.sock = ssl.create_default_context().wrap_socket(link, server_hostname=self.host)

    class PlainHandler(urllib.request.HTTPHandler):
        def http_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
            return self.do_open(Plain, req)

    class SecureHandler(urllib.request.HTTPSHandler):
        def https_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
            return self.do_open(Secure, req)

    return urllib.request.build_opener(urllib.request.ProxyHandler({}), PlainHandler, SecureHandler)


def _prune(root: Path, _name: str) -> dict[str, Any]:
    """Remove models that no slot names, and counted prompts of versions that nothing has served for so many days."""
    before = time.time() - float(_stdin().get("keep_profiles_days", 30.0)) * _DAY_S
    instances = [_read(path) for path in (root / "slots").glob("*/instance.json")]
    models = {str(instance.get("folder", "")) for instance in instances}
    versions = {str(instance.get("version", "")) for instance in instances}
    unused = [
        *(folder for folder in _folders(root / "models") if str(folder) not in models),
        *(f for f in _folders(root / "profiles") if f.name not in versions and _changed_at(f) < before),
    ]
    for folder in unused:
        shutil.rmtree(folder, ignore_errors=True)
    return {"removed": sorted(folder.name for folder in unused)}


# -- instances -------------------------------------------------------------------------------------


def _start(root: Path, slot: str) -> dict[str, Any]:
    """Put an instance into a slot. Doing it again changes nothing; another instance there is a refusal."""
    wanted = _stdin()
    folder = _slot_folder(root, slot)
    with _locked(folder / "order.lock"):
        there = _read(folder / "instance.json")
        if there and there != wanted:
            raise Refused(
                f"slot {slot!r} holds version {there.get('version')!r} of {there.get('model')!r}: stop it first"
            )
        if not there:
            if _is_kept(folder):
                raise Refused(f"slot {slot!r} is being stopped")
            _write(folder / "state.json", {})
            _write(folder / "instance.json", wanted)
        _ensure_kept(root, slot)
    return {"started": not there}


def _stop(root: Path, slot: str) -> dict[str, Any]:
    """Forget the instance of a slot; its keeper ends it: SIGTERM, after `grace_s` SIGKILL."""
    grace_s = float(_stdin().get("grace_s", 60.0))
    folder = _slot_folder(root, slot)
    with _locked(folder / "order.lock"):
        _write(folder / "grace.json", {"grace_s": grace_s})
        (folder / "instance.json").unlink(missing_ok=True)
        if _is_kept(folder) or _marked(slot):
            _ensure_kept(root, slot)
    return {"stopped": not _is_kept(folder)}


def _resume(root: Path, _name: str) -> dict[str, Any]:
    slots = sorted(path.parent.name for path in (root / "slots").glob("*/instance.json"))
    for slot in slots:
        _ensure_kept(root, slot)
    return {"resumed": slots}


def _ensure_kept(root: Path, slot: str) -> None:
    if not _is_kept(root / "slots" / slot):
        subprocess.Popen(
            [sys.executable, "-I", "-S", str(Path(__file__).resolve()), "--root", str(root), "keep", slot],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            cwd="/",
        )


def _keep(root: Path, slot: str) -> int:
    """The slot's keeper: one per slot, by a lock; ends when the instance is no longer wanted."""
    folder = _slot_folder(root, slot)
    lock = os.open(folder / "keeper.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return 0
    state: dict[str, Any] = {"restarts": 0}
    pause = _FIRST_PAUSE_S
    while instance := _read(folder / "instance.json"):
        _sweep(slot, grace_s=0.0)  # of a keeper that was killed
        child = _spawn(folder, slot, instance)
        began = time.monotonic()
        state |= {"pid": child.pid, "since": time.time()}
        _write(folder / "state.json", state)
        ended = _watch(folder, child)
        if not ended:
            break
        pause = _FIRST_PAUSE_S if time.monotonic() - began > _GOOD_AFTER_S else pause
        state |= {"pid": 0, "restarts": state["restarts"] + 1, "last_exit": _exit_text(child.returncode)}
        _write(folder / "state.json", state)
        _sweep(slot, grace_s=0.0)
        _rest(folder, pause)
        pause = min(_LONGEST_PAUSE_S, pause * 2)
    _write(folder / "state.json", state | {"stopping": True})
    _sweep(slot, grace_s=float(_read(folder / "grace.json").get("grace_s", 60.0)))
    for name in ("state.json", "grace.json"):
        (folder / name).unlink(missing_ok=True)
    return 0


def _spawn(folder: Path, slot: str, instance: dict[str, Any]) -> subprocess.Popen[bytes]:
    log = folder / "log"
    if log.exists():
        log.replace(folder / "log.previous")
    for made in instance.get("folders", []):
        Path(made).mkdir(parents=True, exist_ok=True)
    with log.open("wb") as out:
        return subprocess.Popen(
            instance["argv"],
            env={**instance["env"], MARK: slot},
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            cwd=str(folder),
        )


def _watch(folder: Path, child: subprocess.Popen[bytes]) -> bool:
    """Whether the child ended by itself (True), or is no longer wanted (False)."""
    while child.poll() is None:
        if not (folder / "instance.json").exists():
            return False
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(_TICK_S)
    return True


def _rest(folder: Path, seconds: float) -> None:
    until = time.monotonic() + seconds
    while time.monotonic() < until and (folder / "instance.json").exists():
        time.sleep(_TICK_S)


def _sweep(slot: str, *, grace_s: float) -> None:
    """End every process of a slot: first those without a parent among them, who tell the others."""
    began = time.monotonic()
    told: set[int] = set()
    while alive := _marked(slot):
        late = time.monotonic() - began >= grace_s
        for pid in alive if late else [p for p in alive if _parent(p) not in alive and p not in told]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL if late else signal.SIGTERM)
            told.add(pid)
        _reap()
        time.sleep(0.05)


def _marked(slot: str) -> set[int]:
    """Living processes that were started for a slot, found by the mark in their environment."""
    wanted = f"{MARK}={slot}".encode()
    found: set[int] = set()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            with contextlib.suppress(OSError, IndexError):
                if wanted in (entry / "environ").read_bytes().split(b"\0") and _stat(int(entry.name))[0] not in "ZX":
                    found.add(int(entry.name))
    return found


def _parent(pid: int) -> int:
    try:
        return int(_stat(pid)[1])
    except (OSError, IndexError):
        return 0


def _stat(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()


def _reap() -> None:
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def _exit_text(code: int) -> str:
    return f"ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit status {code}"


# -- questions -------------------------------------------------------------------------------------


def _ask(root: Path, slot: str) -> dict[str, Any]:
    """One completion by the instance itself, not through the proxy. What goes wrong is in the reply."""
    order = _stdin()
    port = int(_read(root / "slots" / slot / "instance.json").get("port", 0))
    body = {"model": order["model"], "prompt": order["prompt"], "max_tokens": 4, "temperature": 0}
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=float(order.get("timeout_s", _TIMEOUT_S)))
    try:
        headers = {"Content-Type": "application/json", "x-mlops-probe": "1"}  # no prompt of a user
        connection.request("POST", "/v1/completions", json.dumps(body), headers)
        reply = connection.getresponse()
        said = reply.read().decode(errors="replace")
    except (OSError, http.client.HTTPException) as error:
        return {"status": 0, "model": "", "tokens": 0, "seen": str(error) or type(error).__name__}
    finally:
        connection.close()
    try:
        answer: dict[str, Any] = json.loads(said)
        tokens = int(answer["usage"]["completion_tokens"]) if reply.status == http.HTTPStatus.OK else 0
        return {"status": reply.status, "model": str(answer.get("model", "")), "tokens": tokens, "seen": said[:300]}
    except (ValueError, KeyError, TypeError):
        return {"status": reply.status, "model": "", "tokens": 0, "seen": said[:300]}


def _proxy(_root: Path, _name: str) -> dict[str, Any]:
    """Commands to haproxy's runtime API, each on a connection of its own; the replies in order."""
    order = _stdin()
    replies: list[str] = []
    for command in order["commands"]:
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
                connection.settimeout(_TIMEOUT_S)
                connection.connect(str(order["socket"]))
                connection.sendall(f"{command}\n".encode())
                reply = b""
                while piece := connection.recv(1 << 16):
                    reply += piece
        except OSError as error:
            raise Refused(f"haproxy does not answer at {order['socket']}: {error}") from None
        replies.append(reply.decode(errors="replace").strip())
    return {"replies": replies}


def _hold(root: Path, name: str) -> dict[str, Any]:
    """Hold a lock of this name until standard input closes; says so with a first line."""
    with _locked(root / f"{name}.lock", wait=False):
        sys.stdout.write('{"held": true}\n')
        sys.stdout.flush()
        while os.read(0, 4096):
            pass
    return {"held": False}


# -- files -----------------------------------------------------------------------------------------


def _slot_folder(root: Path, slot: str) -> Path:
    if not slot.isalnum():
        raise Refused(f"{slot!r} is no name of a slot")
    folder = root / "slots" / slot
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _is_kept(folder: Path) -> bool:
    """Whether the slot's keeper lives: it holds the lock."""
    try:
        lock = os.open(folder / "keeper.lock", os.O_RDWR)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(lock)
    return False


@contextlib.contextmanager
def _locked(path: Path, *, wait: bool = True) -> Generator[None]:
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError:
        raise Refused(f"{path.stem!r} is held by somebody else") from None
    finally:
        os.close(lock)


def _read(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return {}


def _write(path: Path, value: dict[str, Any]) -> None:
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    scratch.write_text(json.dumps(value))
    scratch.replace(path)


def _stdin() -> dict[str, Any]:
    return json.loads(sys.stdin.read() or "{}")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _folders(parent: Path) -> list[Path]:
    return [folder for folder in parent.glob("*") if folder.is_dir()]


def _changed_at(folder: Path) -> float:
    """When something in it was last written: a folder's own time is that of its last new name."""
    return max(path.stat().st_mtime for path in (folder, *folder.iterdir()))


def _tail(path: Path) -> str:
    try:
        return path.read_text(errors="replace")[-_TAIL:]
    except OSError:
        return ""


_ORDERS = {
    "look": _look,
    "reaches": _reaches,
    "fetch": _fetch,
    "prune": _prune,
    "start": _start,
    "stop": _stop,
    "resume": _resume,
    "ask": _ask,
    "proxy": _proxy,
    "hold": _hold,
}

if __name__ == "__main__":
    sys.exit(main())
