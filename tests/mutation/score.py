"""Reads what mutmut found, in the folder in which it ran: which changes survived, and the share that was noticed.

`score.py again` makes the next run test again what survived, with the tests that there are now.
`score.py tell EQUIVALENT` prints it, and fails below 90 %.

EQUIVALENT names changes that nobody could notice, each as three kinds of lines: the function, what was there (-) and is
instead (+), and why that is the same. They are counted apart.
"""

from __future__ import annotations

import sys
from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from mutmut.mutation.data import SourceFileMutationData
from mutmut.mutation.diff_apply import get_diff_for_mutant
from mutmut.stats import status_by_exit_code
from mutmut.utils.file_utils import walk_mutatable_files

GOAL: Final = 0.9
_NOTICED: Final = {"killed", "timeout", "segfault"}
_UNTRIED: Final = {"not checked", "check was interrupted by user"}


@dataclass(frozen=True, slots=True)
class Change:
    """One change of one function, whatever its number is now."""

    function: str
    was: str
    now: str


def again() -> int:
    """Forget the verdict on what survived."""
    for path in walk_mutatable_files():
        data = SourceFileMutationData(path=path)
        data.load()
        survived = [name for name, code in data.exit_code_by_key.items() if status_by_exit_code[code] not in _NOTICED]
        if survived:
            data.exit_code_by_key.update(dict.fromkeys(survived, None))
            data.save()
    return 0


def tell(equivalent: Path) -> int:
    """Print what survived, and the share that was noticed of each module and of all."""
    excused = read_equivalent(equivalent.read_text(encoding="utf-8"))
    met: set[Change] = set()
    of: dict[str, Counter[str]] = defaultdict(Counter)
    for path in walk_mutatable_files():
        data = SourceFileMutationData(path=path)
        data.load()
        for name, code in data.exit_code_by_key.items():
            status = status_by_exit_code[code]
            if status in _NOTICED or status in _UNTRIED:
                of[str(path)]["noticed" if status in _NOTICED else "untried"] += 1
                continue
            difference = get_diff_for_mutant(name, path=path)
            change = change_of(name, difference)
            met.add(change)
            if change in excused:
                of[str(path)]["same"] += 1
                continue
            of[str(path)]["survived"] += 1
            say(f"\n# {name}: {status}", *difference.splitlines()[2:])
    for change in excused.keys() - met:
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
    sys.exit(again() if sys.argv[1] == "again" else tell(Path(sys.argv[2])))
