"""How the library's own supervised processes begin and end: a log of JSON lines, until SIGTERM or SIGINT."""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Callable

from mlops_sdk.errors import MlopsError
from mlops_sdk.json_lines import log_json_lines

Work = Callable[[threading.Event], None]


def run_until_stopped(logger: logging.Logger, prepare: Callable[[], Work]) -> int:
    """Do the work that `prepare` returns until a signal sets its event; the exit status. Of the main thread only.

    An error of the library while preparing (a setting, say) is one line of the log and exit status 1.

    Example:
        >>> sys.exit(run_until_stopped(_LOG, lambda: Reaper.connect(Settings.load()).run))  # doctest: +SKIP
    """
    log_json_lines(logger)
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda _number, _frame: stop.set())
    try:
        work = prepare()
    except MlopsError as error:
        logger.error("cannot start", extra={"data": {"error": str(error)}})  # noqa: TRY400 - it says all; no traceback
        return 1
    logger.info("started")
    work(stop)
    logger.info("stopped")
    return 0
