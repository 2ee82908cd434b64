"""Changes the decisions a little, one change at a time, and says which changes no test notices (see run.sh).

`equivalent.txt` names changes that nobody could notice, each as three kinds of lines: the function, what was there (-)
and is instead (+), and why that is the same. They are counted apart.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tomllib
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NotRequired, TypedDict

from mutmut.configuration import reset_config
from mutmut.mutation.data import SourceFileMutationData
from mutmut.mutation.diff_apply import get_diff_for_mutant
from mutmut.stats import status_by_exit_code
from mutmut.utils.file_utils import walk_mutatable_files

GOAL: Final = 0.9
HERE: Final = Path(__file__).parent
ROOT: Final = HERE.parent.parent
WORK: Final = ROOT / ".mlops" / "mutation"
COPIED: Final = ("benchmarks", "dags", "docs", "hooks", "operators", "pipelines")
_NOTICED: Final = {"killed", "timeout", "segfault"}
_UNTRIED: Final = {"not checked", "check was interrupted by user"}
# Words for people are not held to tests: log lines, and what an error says.
_WORDS: Final = (r"_LOG\.", r"\braise [A-Z]")


class Group(TypedDict):
    """Modules, and the tests that are to notice their changes."""

    modules: list[str]
    tests: list[str]
    leave_out: NotRequired[list[str]]


@dataclass(frozen=True, slots=True)
class Change:
    """One change of one function, whatever its number is now."""

    function: str
    was: str
    now: str


def main(names: list[str]) -> int:
    """Run these groups, or all; then tell of all that were ever run."""
    groups: dict[str, Group] = tomllib.loads((HERE / "groups.toml").read_text(encoding="utf-8"))
    for name in names or groups:
        say(f"== {name}")
        run(WORK / name, groups[name])
    return tell([WORK / name for name in groups])


def run(folder: Path, group: Group) -> None:
    """One group in its folder. What was found there earlier stays, but for what survived or has changed."""
    copy_to(folder)
    with (folder / "pyproject.toml").open("a", encoding="utf-8") as file:
        file.write(settings_of(group))
    for path, data in results(folder):
        survived = [name for name, code in data.exit_code_by_key.items() if status_by_exit_code[code] not in _NOTICED]
        if survived and str(path) in group["modules"]:
            data.exit_code_by_key.update(dict.fromkeys(survived, None))
            data.save()
    os.chdir(ROOT)
    subprocess.run([sys.executable, "-m", "mutmut", "run", "--max-children", "1"], cwd=folder, check=True)


def copy_to(folder: Path) -> None:
    """The tracked files as they are, with their times: by those mutmut knows what has changed."""
    for old in folder.iterdir() if folder.exists() else ():
        if old.name != "mutants":
            shutil.rmtree(old) if old.is_dir() else old.unlink()
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--", "mlops_sdk", "tests", "pyproject.toml", *COPIED],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)


def settings_of(group: Group) -> str:
    """For mutmut. Each change has a process that has only collected the tests: some of them keep something in a module.

    Nothing looks for garbage after each test: that is half of the time of a change.
    """
    plugins = ["-p", "no:cacheprovider", "-p", "no:unraisableexception", "--hypothesis-profile=ci"]
    chosen = [*(f"--deselect={name}" for name in group.get("leave_out", [])), *group["tests"]]
    return f"""
[tool.mutmut]
source_paths = ["mlops_sdk"]
only_mutate = {json.dumps(group["modules"])}
do_not_mutate_patterns = {json.dumps(_WORDS)}
also_copy = {json.dumps(COPIED)}
pytest_add_cli_args = {json.dumps(plugins)}
pytest_add_cli_args_test_selection = {json.dumps(chosen)}
process_isolation = "forkserver"
timeout_multiplier = 8.0
use_git_change_detection = false
on_dependency_change = "ignore"
"""


def results(folder: Path) -> Iterator[tuple[Path, SourceFileMutationData]]:
    """What was found in a folder, by module."""
    os.chdir(folder)
    reset_config()
    for path in walk_mutatable_files():
        data = SourceFileMutationData(path=path)
        data.load()
        yield path, data


def tell(folders: list[Path]) -> int:
    """Print what survived, and the share that was noticed of each module and of all."""
    excused = read_equivalent((HERE / "equivalent.txt").read_text(encoding="utf-8"))
    met: set[Change] = set()
    of: dict[str, Counter[str]] = defaultdict(Counter)
    for folder in (folder for folder in folders if folder.exists()):
        for path, data in results(folder):
            for name, code in data.exit_code_by_key.items():
                status = status_by_exit_code[code]
                if status in _NOTICED or status in _UNTRIED:
                    of[str(path)]["noticed" if status in _NOTICED else "untried"] += 1
                    continue
                difference = get_diff_for_mutant(name, path=path)
                change = change_of(name, difference)
                met.add(change)
                of[str(path)]["same" if change in excused else "survived"] += 1
                if change not in excused:
                    say(f"\n# {name}: {status}", *difference.splitlines()[2:])
    for change in excused.keys() - met:
        if f"{change.function.rpartition('.')[0].replace('.', '/')}.py" not in of:
            continue  # of a group that was not run
        say(f"{change.function}: this change was noticed, or is not made any more: {change.was} -> {change.now}")
    say("")
    for path, counts in sorted(of.items()):
        say(f"{path:55} {words(counts)}")
    total = sum(of.values(), Counter[str]())
    say(f"{'together':55} {words(total)}")
    return 0 if share(total) >= GOAL and not total["untried"] else 1


def change_of(name: str, difference: str) -> Change:
    """What a mutant changes, read from its difference."""
    lines = difference.splitlines()[2:]
    was, now = (" ".join(line[1:].strip() for line in lines if line[:1] == sign) for sign in "-+")
    return Change(name.rpartition("__mutmut_")[0], was, now)


def read_equivalent(text: str) -> dict[Change, str]:
    """The changes that nobody could notice, with the reason."""
    found: dict[Change, str] = {}
    for block in text.split("\n\n"):
        lines = [line for line in block.splitlines() if line and line[0] != "#"]
        if not lines:
            continue
        was, now = (" ".join(line[1:].strip() for line in lines if line[0] == sign) for sign in "-+")
        reason = " ".join(line for line in lines[1:] if line[0] not in "-+").strip()
        if not reason or not was + now:
            raise SystemExit(f"what is the change, and why does it change nothing? {block!r}")
        found[Change(lines[0].strip(), was, now)] = reason
    return found


def share(counts: Counter[str]) -> float:
    """Of the changes that were tried and can be noticed, those that were."""
    return counts["noticed"] / max(1, counts["noticed"] + counts["survived"])


def words(counts: Counter[str]) -> str:
    """For a person."""
    tried = counts["noticed"] + counts["survived"]
    apart = "".join(f"; {counts[kind]} {text}" for kind, text in _APART if counts[kind])
    return f"{counts['noticed']:5} of {tried:5} noticed: {share(counts):6.1%}{apart}"


_APART: Final = (("same", "change nothing"), ("untried", "were not tried"))


def say(*lines: str) -> None:
    """To standard output."""
    sys.stdout.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
