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
@pytest.mark.timeout(1500)
def test_the_demo_does_what_it_promises(state_dir: Path):
    done = demo(state_dir, cwd=REPOSITORY)
    assert done.returncode == 0, done.stdout
    for promised in (
        "the signed webhook started run push-local-code-",
        "every expectation holds",
        "kill -9 of rank 1",
        "the next attempt went on from step",
        "models:/code-lm/1",
        "code-lm version 1 serves",
        "the alert's asset event started run",
        "corpora python, cpp",
        "new, and better",
        "code-lm version 2 serves",
        "by version 1",
        "by version 2",
        ", 0 failed",
        "no process is left on the machines",
        "no process, lock or interface of it is left",
    ):
        assert promised in done.stdout, promised


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_red_commit_fails_its_run_names_its_log_and_costs_no_machine(state_dir: Path, tmp_path: Path):
    red = tmp_path / "red"
    subprocess.run(["git", "clone", "-q", str(REPOSITORY), str(red)], check=True)
    (red / "tests/unit/code_lm/test_red.py").write_text("def test_red():\n    assert 1 == 2\n")
    git = ["git", "-C", str(red), "-c", "user.name=nobody", "-c", "user.email=nobody@example.org"]
    for argv in (["add", "-A"], ["commit", "-qm", "a red commit"]):
        subprocess.run([*git, *argv], check=True)
    done = demo(state_dir, cwd=red)
    assert done.returncode == 1
    assert "provision begins" not in done.stdout
    log = next(line.split("log: ")[1] for line in done.stdout.splitlines() if "log: " in line)
    assert "assert 1 == 2" in Path(log.strip()).read_text()
