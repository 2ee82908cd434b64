"""Serve MLflow from one process: python -m mlops_sdk.local.mlflow_server PORT HOST...

`mlflow server` keeps a second process; this starts the same application (uvicorn, basic
authentication) in this one. Its settings come from the variables that `mlflow server` reads.
"""

from __future__ import annotations

import os
import socket
import sys

_BACKLOG = 128


def main() -> None:
    """Serve until SIGTERM."""
    port, hosts = int(sys.argv[1]), sys.argv[2:]
    _tell_mlflow()
    import uvicorn  # noqa: PLC0415 - MLflow reads the variables set above when it is imported
    from mlflow.server.auth import create_app  # noqa: PLC0415 - as above

    sockets = [_listen(host, port) for host in hosts]
    uvicorn.Server(uvicorn.Config(create_app(), log_level="warning", timeout_graceful_shutdown=3)).run(sockets=sockets)


def _tell_mlflow() -> None:
    """Put the server's settings where the application looks for them, as `mlflow server` does for its workers."""
    os.environ["_MLFLOW_SGI_NAME"] = "uvicorn"
    os.environ["_MLFLOW_IN_JOB_EXECUTOR"] = "false"
    from mlflow.server import constants  # noqa: PLC0415 - after the two variables above

    backend = os.environ["MLFLOW_BACKEND_STORE_URI"]
    os.environ[constants.BACKEND_STORE_URI_ENV_VAR] = backend
    os.environ[constants.REGISTRY_STORE_URI_ENV_VAR] = backend
    os.environ[constants.ARTIFACTS_DESTINATION_ENV_VAR] = os.environ["MLFLOW_ARTIFACTS_DESTINATION"]
    os.environ[constants.ARTIFACT_ROOT_ENV_VAR] = "mlflow-artifacts:/"
    os.environ[constants.SERVE_ARTIFACTS_ENV_VAR] = "true"


def _listen(host: str, port: int) -> socket.socket:
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind((host, port))
    listener.listen(_BACKLOG)
    return listener


if __name__ == "__main__":
    main()
