"""The setup scripts: with nothing to do they are quick, they name what is missing, they start no service."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SETUP = ROOT / "infra/local/setup"
# Run in a mount namespace of its own, where /usr/sbin is a copy that vanishes with it.
IN_A_COPY_OF_SBIN = """
set -eu
mount -t tmpfs none "$1"
mkdir "$1/upper" "$1/work"
mount -t overlay none -o "lowerdir=/usr/sbin,upperdir=$1/upper,workdir=$1/work" /usr/sbin
rm -f /usr/sbin/policy-rc.d
[ -z "$2" ] || { printf '%s\\n' "$2" > /usr/sbin/policy-rc.d; chmod 755 /usr/sbin/policy-rc.d; }
status=0
setsid --wait "$3" stack </dev/null || status=$?
[ ! -e "$1/killed" ] || { echo was killed; status=0; "$3" stack </dev/null || status=$?; }
echo "policy before apt: $(cat "$1/seen-by-apt" 2>/dev/null || true)"
echo "policy after: $(cat /usr/sbin/policy-rc.d 2>/dev/null || echo none)"
ls /usr/sbin/policy-rc.d.saved* 2>/dev/null || true
exit $status
"""


def script(path: Path, text: str) -> None:
    path.write_text(f"#!/bin/sh\n{text}\n", encoding="utf-8")
    path.chmod(0o755)


@pytest.fixture
def bare(tmp_path: Path) -> Path:
    """A folder of commands, first on PATH, that pretends that no package is installed."""
    folder = tmp_path / "bin"
    folder.mkdir()
    script(folder / "dpkg-query", "exit 1")
    return folder


def setup(*command: str, path: Path | None = None, **settings: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, **settings}
    if path:
        environment["PATH"] = f"{path}:{environment['PATH']}"
    return subprocess.run(
        command, capture_output=True, text=True, check=False, env=environment, stdin=subprocess.DEVNULL, timeout=120
    )


def test_missing_packages_are_listed_with_their_reason_before_anything_is_asked_of_root(bare: Path) -> None:
    script(bare / "id", "[ $1 = -u ] && echo 1000 || echo ada")
    script(bare / "apt-get", "echo must not run >&2; exit 100")
    done = setup(str(SETUP / "system_packages.sh"), "stack", path=bare)
    assert done.returncode == 1
    assert "radosgw            Ceph RGW: the S3 endpoint" in done.stdout
    assert "running as ada, not root; next: " in done.stderr
    assert "must not run" not in done.stderr


@pytest.mark.parametrize("own_policy", ["", "#!/bin/sh\n# mine\nexit 0"])
@pytest.mark.parametrize("apt", ["works", "fails", "is killed with the script, which runs again"])
def test_services_may_not_start_during_the_installation_and_an_own_policy_comes_back(
    bare: Path, tmp_path: Path, own_policy: str, apt: str
) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    end = {
        "works": "exit 0",
        "fails": "exit 100",
    }.get(apt, f"[ -e {scratch}/killed ] || {{ touch {scratch}/killed; kill -9 0; }}")
    script(bare / "apt-get", f"cat /usr/sbin/policy-rc.d > {scratch}/seen-by-apt; {end}")
    script(bare / "dpkg", "exit 0")  # no unit files to disable
    packages = str(SETUP / "system_packages.sh")
    isolated = ["unshare", "--mount", "--propagation", "private", "bash", "-c", IN_A_COPY_OF_SBIN, "sh"]
    done = setup(*isolated, str(scratch), own_policy, packages, path=bare)
    assert (done.returncode == 0) is (apt != "fails"), done.stderr
    before, _, after = done.stdout.partition("policy before apt: ")[2].partition("policy after: ")
    assert "exit 101" in before
    assert after.strip() == (own_policy or "none")
    assert ("was killed" in done.stdout) is apt.startswith("is killed")


def test_an_interpreter_that_is_too_old_or_missing_is_one_clear_error() -> None:
    done = setup(str(SETUP / "python_environments.sh"), "main", PYTHON="/nowhere/python")
    assert done.returncode == 1
    assert "no Python 3.11 or later" in done.stderr
    assert "next: " in done.stderr


def test_an_unknown_environment_is_one_clear_error() -> None:
    done = setup(str(SETUP / "python_environments.sh"), "spark")
    assert done.returncode == 1
    assert "no environment is called 'spark'" in done.stderr


def test_a_second_setup_changes_nothing() -> None:
    done = setup(str(SETUP / "python_environments.sh"), "main", "base")
    assert done.returncode == 0, done.stderr
    again = setup(str(SETUP / "python_environments.sh"), "main", "base")
    assert again.stdout.splitlines() == ["[setup] .venv: up to date", "[setup] .mlops/envs/base: up to date"]


def test_make_offers_every_target_and_says_what_each_does() -> None:
    told = setup("make", "-s", "-C", str(ROOT), "help").stdout
    for target in ("demo", "check", "test", "test-full", "up", "down", "clean", "bench", "lock", "setup"):
        assert f"make {target} " in told
