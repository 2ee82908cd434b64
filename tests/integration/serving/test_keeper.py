"""The keeper on the serving host, on real processes: what it keeps alive, what it ends, what it refuses."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mlops_sdk.serving import keeper
from support import eventually

KEEPER = Path(keeper.__file__)
# a parent with a child that does not end with it, as a server with an engine process
PROGRAM = "import subprocess, sys; subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)']).wait()"


class Host:
    def __init__(self, root: Path) -> None:
        self.root = root

    def order(self, *order: str, stdin: dict[str, Any] | None = None) -> dict[str, Any]:
        done = subprocess.run(
            [sys.executable, "-I", "-S", str(KEEPER), "--root", str(self.root), *order],
            input=json.dumps(stdin or {}),
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise AssertionError(done.stderr)
        return json.loads(done.stdout.splitlines()[-1])

    def start(self, version: str = "1", program: str = PROGRAM) -> dict[str, Any]:
        spec = {"model": "lm", "version": version, "sha256": "a", "folder": "", "port": 1}
        return self.order("start", "blue", stdin={**spec, "argv": [sys.executable, "-c", program], "env": {}})

    def slot(self) -> dict[str, Any]:
        return self.order("look")["slots"].get("blue", {})

    def pid(self) -> int:
        eventually(lambda: self.slot().get("pid", 0) > 0, within_s=10, what="it runs")
        return self.slot()["pid"]


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    host = Host(tmp_path)
    yield host
    host.order("stop", "blue", stdin={"grace_s": 0})
    eventually(lambda: not host.slot(), within_s=10, what="nothing is left")


def test_what_dies_is_started_again_with_a_count_and_its_end(host: Host):
    assert host.start() == {"started": True}
    first = host.pid()
    assert host.start() == {"started": False}
    assert host.pid() == first
    os.kill(first, signal.SIGKILL)
    eventually(lambda: host.slot()["pid"] not in {0, first}, within_s=10, what="it runs again")
    assert (host.slot()["restarts"], host.slot()["last_exit"]) == (1, "ended by SIGKILL")


def test_a_keeper_that_was_killed_leaves_what_it_kept_and_a_new_one_takes_over(host: Host):
    host.start()
    first = host.pid()
    parent = int(Path(f"/proc/{first}/stat").read_text().rpartition(")")[2].split()[1])
    os.kill(parent, signal.SIGKILL)
    eventually(lambda: not host.slot()["kept"], within_s=5, what="nobody keeps it")
    assert host.slot()["running"]
    assert host.order("resume") == {"resumed": ["blue"]}
    assert host.pid() != first
    eventually(lambda: not Path(f"/proc/{first}").exists(), within_s=5, what="only one of them runs")


def test_a_slot_is_not_given_to_another_until_it_is_empty(host: Host):
    host.start("1")
    with pytest.raises(AssertionError, match="slot 'blue' holds version '1' of 'lm': stop it first"):
        host.start("2")
    host.pid()
    host.order("stop", "blue", stdin={"grace_s": 5})
    eventually(lambda: not host.slot(), within_s=10, what="it has ended, and its child with it")
    assert host.start("2") == {"started": True}


def test_one_that_ignores_sigterm_is_killed_after_its_grace(host: Host):
    host.start(program="import signal, time; signal.signal(15, signal.SIG_IGN); time.sleep(600)")
    host.pid()
    host.order("stop", "blue", stdin={"grace_s": 0.5})
    eventually(lambda: not host.slot(), within_s=10, what="it is gone")


def test_files_are_checked_and_a_model_is_there_whole_or_not_at_all(host: Host, tmp_path: Path):
    source = tmp_path / "weights"
    source.write_bytes(b"weights")
    file = {"name": "sub/weights", "url": source.as_uri(), "sha256": hashlib.sha256(b"weights").hexdigest()}
    with pytest.raises(AssertionError, match="'sub/weights' of the model is damaged"):
        host.order("fetch", stdin={"name": "m1", "files": [{**file, "sha256": "0" * 64}]})
    assert host.order("look")["models"] == []
    fetched = host.order("fetch", stdin={"name": "m1", "files": [file]})
    assert (Path(fetched["folder"]) / "sub/weights").read_bytes() == b"weights"
    assert host.order("fetch", stdin={"name": "m1", "files": [file]})["bytes"] == 0
    assert host.order("prune") == {"removed": ["m1"]}


def test_two_roll_outs_do_not_work_at_once(host: Host):
    argv = [sys.executable, "-I", "-S", str(KEEPER), "--root", str(host.root), "hold", "rollout"]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as first:
        assert first.stdout is not None
        first.stdout.readline()
        with pytest.raises(AssertionError, match="'rollout' is held by somebody else"):
            host.order("hold", "rollout")
        first.kill()
    assert host.order("hold", "rollout")  # the lock ended with who held it


def test_a_proxy_or_instance_that_is_away_is_told_in_words(host: Host):
    host.start()
    host.pid()
    assert "refused" in host.order("ask", "blue", stdin={"model": "lm@1", "prompt": "x"})["seen"]
    with pytest.raises(AssertionError, match=r"haproxy does not answer at /nowhere/admin\.sock"):
        host.order("proxy", stdin={"socket": "/nowhere/admin.sock", "commands": ["show info"]})


def test_counted_prompts_are_kept_while_their_version_serves_and_some_time_after(host: Host):
    host.start("2")
    for version, days in {"1": 40, "2": 40, "3": 10}.items():
        profile = host.root / "profiles" / version / f"{version}-77-ab.json"
        profile.parent.mkdir(parents=True)
        profile.write_text("{}")
        long_ago = time.time() - days * 86400
        os.utime(profile, (long_ago, long_ago))
        os.utime(profile.parent, (long_ago, long_ago))
    assert host.order("prune", stdin={"keep_profiles_days": 30}) == {"removed": ["1"]}
    assert sorted(folder.name for folder in (host.root / "profiles").iterdir()) == ["2", "3"]
    recent = host.root / "profiles" / "3" / "3-78-ac.json"
    recent.write_text("{}")  # a process that still counts rewrites its file
    assert host.order("prune", stdin={"keep_profiles_days": 5}) == {"removed": []}
