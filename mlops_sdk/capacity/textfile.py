"""Leaves figures where the node exporter's textfile collector finds them."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from mlops_sdk.capacity.metrics import Family, render


def write_textfile(file: Path, families: Iterable[Family]) -> None:
    """Replace the file whole, so that a reader never meets half of it. Its name ends in ``.prom``.

    Raises:
        OSError: the folder is not there, or not ours to write to.
    """
    unfinished = file.with_name(f".{file.name}.{os.getpid()}")
    unfinished.write_text(render(families))
    unfinished.replace(file)
