"""Modules that a scheduler loads before it forks its workers, and a triggerer its runner, so that no task has to.

LocalExecutor forks its workers from the scheduler, and a worker forks each task. What the scheduler has imported, every
task finds in memory, shared; else each imports it again: half a second for our operators, five for Great Expectations.
Name them in the environment of scheduler and triggerer, as ``AIRFLOW__MLOPS__PRELOAD_MODULES``: other components need
none. Workers of other executors are not forked from the scheduler; there it changes nothing.
"""

from __future__ import annotations

import logging
from importlib import import_module

from airflow.configuration import conf
from airflow.listeners import hookimpl

SECTION, OPTION = "mlops", "preload_modules"

_log = logging.getLogger(__name__)


@hookimpl
def on_starting(component: object) -> None:
    """Import them. One that cannot be imported is told of, and fails the tasks that need it, as it would without this.

    Args:
        component: Who starts. Airflow calls this before it knows which kind of job it is.
    """
    del component
    for name in preload_modules():
        try:
            import_module(name)
        except Exception as error:  # noqa: BLE001 - whatever a module does at its import
            _log.warning("could not preload %s: %s", name, error)


def preload_modules() -> list[str]:
    """What the setting ``[mlops] preload_modules`` names."""
    listed = conf.get(SECTION, OPTION, fallback="") or ""
    return [name.strip() for name in listed.split(",") if name.strip()]
