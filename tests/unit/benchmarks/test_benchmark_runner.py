"""The contract of `python -m benchmarks`: a last line that a program can read, and honest memory figures."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from types import ModuleType

import pytest

from benchmarks import __main__ as runner
from benchmarks.pss import Sampler, tree
from benchmarks.report import Goal, Options, Report


def test_the_last_line_is_one_json_object_with_figures_and_goals(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    module = ModuleType("benchmarks.pretend")

    def run(options: Options) -> Report:
        sys.stdout.write("a table\n")
        figures = {"seconds": 2.0 if options.quick else 4.0, "seed": float(options.seed)}
        return Report(figures=figures, goals={"seconds": Goal(op="<=", goal=3)})

    module.run = run
    monkeypatch.setitem(sys.modules, "benchmarks.pretend", module)
    monkeypatch.setitem(runner.REGISTRY, "pretend", ("benchmarks.pretend", "nothing"))

    assert runner.main(["pretend", "--quick", "--seed", "7"]) == 0
    quick = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert set(quick) == {"name", "machine", "figures", "goals"}
    assert quick["name"] == "pretend"
    assert "cores" in quick["machine"]
    assert quick["figures"] == {"seconds": 2.0, "seed": 7.0}
    assert quick["goals"] == {"seconds": {"op": "<=", "goal": 3, "met": True}}

    assert runner.main(["pretend"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["goals"]["seconds"]["met"] is False


def test_a_goal_without_a_figure_is_refused() -> None:
    with pytest.raises(ValueError, match="memory_mib"):
        Report(figures={"seconds": 1.0}, goals={"memory_mib": Goal(op="<=", goal=1)})


def test_every_registered_benchmark_exists_and_says_what_it_measures(capsys: pytest.CaptureFixture[str]) -> None:
    assert runner.main(["--list"]) == 0
    listed = capsys.readouterr().out
    for name, (module, what) in runner.REGISTRY.items():
        assert name in listed
        assert what in listed
        assert callable(__import__(module, fromlist=["run"]).run)


def test_memory_of_a_process_tree_counts_the_grandchildren() -> None:
    held = "x = bytearray(64 << 20); x[::4096] = b'x' * len(x[::4096]); print('held', flush=True); input()"
    script = (
        "import subprocess, sys; "
        f"child = subprocess.Popen([sys.executable, '-c', {held!r}], stdin=subprocess.PIPE); "
        "sys.stdin.read(); child.communicate()"
    )
    process = subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert process.stdout
        assert process.stdout.readline() == b"held\n"
        with Sampler(pid=process.pid, every_s=0.01) as memory:
            while not memory.samples_mib:
                os.sched_yield()
        assert len(tree(process.pid)) == 2
        assert 64 < memory.peak_mib < 200
    finally:
        process.communicate()
