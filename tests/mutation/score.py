"""Reads what mutmut found: which mutants survived, and the share that was killed. Fails below 90 %."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Final

GOAL: Final = 0.9
_SURVIVED: Final = {0, 33}  # every test passed; no test reaches it


def main(mutants: Path, equivalent: Path) -> int:
    """Count; mutants that `equivalent` names (a name and a reason on each line) change nothing that anybody can see."""
    excused = {
        line.split()[0] for line in equivalent.read_text(encoding="utf-8").splitlines() if line and line[0] != "#"
    }
    found: dict[str, int | None] = {}
    for meta in sorted(mutants.rglob("*.meta")):
        found.update(json.loads(meta.read_text(encoding="utf-8"))["exit_code_by_key"])
    tested = {name: code for name, code in found.items() if code is not None and name not in excused}
    survived = sorted(name for name, code in tested.items() if code in _SURVIVED)
    share = 1 - len(survived) / max(1, len(tested))
    killed = len(tested) - len(survived)
    words = [*survived, f"{killed} of {len(tested)} mutants killed: {share:.1%}; {len(excused)} are equivalent", ""]
    sys.stdout.write("\n".join(words))
    return 0 if tested and share >= GOAL else 1


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), Path(sys.argv[2])))
