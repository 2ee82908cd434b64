"""Serve an OpenStack API from its WSGI module: serve_wsgi.py MODULE:APPLICATION PORT [ARGUMENT...].

One threaded process on 127.0.0.1. The services parse `sys.argv` when their module is imported, so it is replaced first,
by the arguments behind the port; pre-forking servers would do that import in every worker and trip over it. With
SQLITE_BEGIN_IMMEDIATE in the environment, transactions begin as `sqlite_writes` says.
"""

import importlib
import os
import signal
import sys

from cheroot import wsgi


def main() -> None:
    """Serve until SIGTERM."""
    target, port, *arguments = sys.argv[1:]
    module, _, attribute = target.partition(":")
    sys.argv = [module, *arguments]
    application = getattr(importlib.import_module(module), attribute)
    if os.environ.get("SQLITE_BEGIN_IMMEDIATE"):
        importlib.import_module("sqlite_writes").begin_immediate()  # after the service chose its kind of threads
    server = wsgi.Server(("127.0.0.1", int(port)), application, numthreads=8, request_queue_size=64)

    def stop(_number: int, _frame: object) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, stop)
    try:
        server.start()
    except KeyboardInterrupt:
        server.stop()


if __name__ == "__main__":
    main()
