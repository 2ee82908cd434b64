"""``make demo`` itself: its exit status tells the truth, and a step that failed names its log."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]


def demo(state_dir: Path, *, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "mlops_pipelines.recipes.demo", "--state-dir", str(state_dir)],
        cwd=cwd,
        env={**os.environ, "MLOPS_HOME": str(REPOSITORY)},  # the environments of this checkout, whatever is in `cwd`
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_folder_without_commits_is_refused_before_anything_starts(state_dir: Path, tmp_path: Path):
    done = demo(state_dir, cwd=tmp_path)
    assert done.returncode == 1
    assert "the git state of" in done.stdout
    assert "run from a checkout" in done.stdout
    assert "Traceback" not in done.stdout + done.stderr
    assert "embedded stack" not in done.stdout


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_demo_does_what_it_promises(state_dir: Path):
    done = demo(state_dir, cwd=REPOSITORY)
    assert done.returncode == 0, done.stdout
    for promised in (
        "kill -9 of rank 1",
        "trying again",
        "better",
        "models:/code-lm/1",
        "Ironic knows no allocation of this name",
        "Keystone knows no credential of this name",
        "no process is left on the machines",
        "no process, lock or interface of it is left",
    ):
        assert promised in done.stdout


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_failed_step_names_its_log(state_dir: Path, tmp_path: Path):
    subprocess.run(["git", "clone", "-q", str(REPOSITORY), str(tmp_path / "red")], check=True)
    (tmp_path / "red/tests/unit/code_lm/test_red.py").write_text("def test_red():\n    assert 1 == 2\n")
    done = demo(state_dir, cwd=tmp_path / "red")
    assert done.returncode == 1
    log = next(line.split("log: ")[1] for line in done.stdout.splitlines() if "log: " in line)
    assert "assert 1 == 2" in Path(log.strip()).read_text()
    assert "no machine was asked for" in done.stdout
