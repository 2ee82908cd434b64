"""Serve an OpenStack API from its WSGI module: serve_wsgi.py MODULE:APPLICATION PORT.

One threaded process on 127.0.0.1. The services parse `sys.argv` when their module is imported, so it is cleared first;
pre-forking servers would do that import in every worker and trip over it.
"""

import importlib
import signal
import sys

from cheroot import wsgi


def main() -> None:
    """Serve until SIGTERM."""
    target, port = sys.argv[1], int(sys.argv[2])
    module, _, attribute = target.partition(":")
    sys.argv = [module]
    application = getattr(importlib.import_module(module), attribute)
    server = wsgi.Server(("127.0.0.1", port), application, numthreads=8, request_queue_size=64)

    def stop(_number: int, _frame: object) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, stop)
    try:
        server.start()
    except KeyboardInterrupt:
        server.stop()


if __name__ == "__main__":
    main()
