"""What `benchmarks.loop` sees of serving from outside: how long vLLM loaded, and when a new version first answered.

Both are seen the same way whatever chain rolled out.
"""

from __future__ import annotations

import json
import subprocess
import tempfile
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any, Final, Self

from benchmarks.loop_marks import Span
from benchmarks.loop_stock_serving import end_script
from benchmarks.loop_workload import MODEL
from mlops_sdk.errors import ServiceUnavailable
from mlops_sdk.serving.target import VllmTarget

_VERSION: Final = "x-mlops-model-version"
_EVERY_S: Final = 0.05
_TIMEOUT_S: Final = 10.0

# Runs on the serving host, standard library only: for each vLLM process, when it was started (the kernel's record) and
# when its /health first answered. Ends with its standard input.
_WATCH: Final = """
import http.client, json, os, select, sys, time
ticks = os.sysconf("SC_CLK_TCK")
boot = time.time() - float(open("/proc/uptime").read().split()[0])
told = set()

def servers():
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            words = open(f"/proc/{pid}/cmdline", "rb").read().split(b"\\0")
            if b"vllm.entrypoints.cli.main" in words and b"--port" in words:
                stat = open(f"/proc/{pid}/stat").read().rpartition(")")[2].split()
                yield int(words[words.index(b"--port") + 1]), boot + int(stat[19]) / ticks
        except OSError:
            pass

def healthy(port):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=1)
    try:
        connection.request("GET", "/health")
        return connection.getresponse().status == 200
    except OSError:
        return False
    finally:
        connection.close()

while not select.select([sys.stdin], [], [], 0.05)[0]:
    first = {}
    for port, started in servers():
        first[port] = min(started, first.get(port, started))
    for port, started in first.items():
        if (port, round(started, 1)) not in told and healthy(port):
            told.add((port, round(started, 1)))
            print(json.dumps({"port": port, "started": started, "ready": time.time()}), flush=True)
"""


class LoadWatch:
    """Watches the serving host for the time of a block; `loads` are the spans from process start to first ready."""

    def __init__(self, target: VllmTarget) -> None:
        self._target = target
        self._folder = tempfile.TemporaryDirectory(prefix="mlops-bench-ssh-")
        self._loads: list[Span] = []
        self._process: subprocess.Popen[str] | None = None
        self._thread = threading.Thread(target=self._read, name="loads", daemon=True)

    @property
    def loads(self) -> tuple[Span, ...]:
        """Seen so far."""
        return tuple(self._loads)

    def __enter__(self) -> Self:
        command = [self._target.python, "-u", "-c", f"'{_WATCH.replace(chr(39), chr(34))}'"]
        self._process = subprocess.Popen(
            [*ssh_to(self._target, Path(self._folder.name)), " ".join(command)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._process is not None:
            self._process.communicate()
        self._thread.join()
        self._folder.cleanup()

    def _read(self) -> None:
        if self._process is None or self._process.stdout is None:
            return
        for line in iter(self._process.stdout.readline, ""):
            told: dict[str, Any] = json.loads(line)
            self._loads.append(Span(what="loading", began=told["started"], ended=told["ready"]))


class FirstAnswer:
    """Asks the proxy, from construction on, until a completion comes from another version than the one before.

    The proxy's header tells cheaply that something new is there; what counts is a completion that carries it.
    """

    def __init__(self, base_url: str, *, before: str) -> None:
        self._url = base_url.rstrip("/")
        self._before = before
        self._found: tuple[float, str] | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._work, name="first-answer", daemon=True)
        self._thread.start()

    def wait(self, *, timeout_s: float = 60.0) -> float:
        """When it came.

        Raises:
            ServiceUnavailable: it did not.
        """
        self._thread.join(timeout_s)
        self._stop.set()
        if self._found is None:
            raise ServiceUnavailable(f"no version but {self._before!r} answered at {self._url}", next_step="see vLLM")
        return self._found[0]

    def _work(self) -> None:
        while not self._stop.wait(_EVERY_S):
            if self._new(self._version("/health")) and self._new(self._version("/v1/completions")):
                self._found = (time.time(), "")
                return

    def _new(self, version: str) -> bool:
        return version not in {"", "none", self._before}

    def _version(self, path: str) -> str:
        body = {"model": MODEL, "prompt": "import os", "max_tokens": 1} if path == "/v1/completions" else None
        request = urllib.request.Request(  # noqa: S310 - our own stack's URL
            self._url + path,
            data=json.dumps(body).encode() if body else None,
            headers={"Content-Type": "application/json"},
        )
        try:
            with urllib.request.urlopen(request, timeout=_TIMEOUT_S) as reply:  # noqa: S310 - as above
                reply.read()
                return str(reply.headers.get(_VERSION, ""))
        except (urllib.error.URLError, OSError):
            return ""


def end_stock_serving(target: VllmTarget) -> None:
    """Whatever the stock chain serves is ended."""
    with tempfile.TemporaryDirectory(prefix="mlops-bench-ssh-") as folder:
        subprocess.run([*ssh_to(target, Path(folder)), end_script(target)], check=True)


def ssh_to(target: VllmTarget, folder: Path) -> list[str]:
    """`ssh` to the serving host, its key and host key in files of a folder of the caller's."""
    host = target.host
    key, known = folder / "key", folder / "known_hosts"
    key.touch(mode=0o600)
    key.write_text(host.client_private_key)
    known.write_text(f"{host.address} {host.host_public_key.strip()}\n")
    options = ("BatchMode=yes", f"UserKnownHostsFile={known}", "LogLevel=ERROR")
    return ["ssh", "-i", str(key), *(f"-o{option}" for option in options), f"{host.username}@{host.address}"]
