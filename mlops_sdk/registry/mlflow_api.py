"""MLflow's REST API, as far as registration needs it.

Plain HTTP rather than the mlflow package: that takes the password from environment variables of the whole process, and
waits four minutes for a server that is down. Reference: https://mlflow.org/docs/latest/rest-api.html
"""

from __future__ import annotations

import base64
import http.client
import json
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mlops_sdk.config import MlflowSettings
from mlops_sdk.errors import AccessDenied, RegistryError, ServiceUnavailable

_API = "/api/2.0/mlflow/"
_ARTIFACTS = "/api/2.0/mlflow-artifacts/artifacts/"
_TIMEOUT_S = 30.0
_DENIED = {
    401: "check mlflow.username and its password",
    403: "it belongs to another MLflow user, such as another environment's: name the model otherwise, or let its owner "
    "grant you the permission (docs/permissions.md)",
}
_SERVER_ERROR = 500
_TOO_MANY = 429


class MlflowFailure(Exception):
    """An answer that the caller may know what to do with: MLflow's error code and message."""

    def __init__(self, action: str, *, status: int, code: str, message: str) -> None:
        super().__init__(action, status, code, message)
        self.action = action
        self.status = status
        self.code = code
        self.message = message


class MlflowApi:
    """One MLflow server. Every method is one request; trying again is up to whoever knows what may be done twice."""

    def __init__(self, settings: MlflowSettings, *, timeout_s: float = _TIMEOUT_S) -> None:
        self._timeout_s = timeout_s
        self._url = settings.tracking_uri.rstrip("/")
        secret = f"{settings.username}:{settings.password.get_secret_value()}".encode()
        self._authorization = f"Basic {base64.b64encode(secret).decode()}" if settings.username else ""

    def get(self, path: str, **query: str) -> dict[str, Any]:
        """Ask something."""
        suffix = "?" + urllib.parse.urlencode(query) if query else ""
        return self._json("GET", f"{_API}{path}{suffix}", None)

    def post(self, path: str, **body: Any) -> dict[str, Any]:
        """Do something."""
        return self._json("POST", f"{_API}{path}", body)

    def delete(self, path: str, **body: Any) -> None:
        """Remove something."""
        self._json("DELETE", f"{_API}{path}", body)

    def artifacts(self, root: str, path: str = "") -> dict[str, int]:
        """Names and sizes directly below a folder of artifacts; `root` as in ``mlflow-artifacts:/1/<id>/artifacts``."""
        where = "/".join(part for part in (_artifact_path(root), path) if part)
        query = urllib.parse.urlencode({"path": where})
        files = self._json("GET", f"{_ARTIFACTS.rstrip('/')}?{query}", None).get("files", [])
        return {str(f["path"]): int(f.get("file_size") or 0) for f in files if not f.get("is_dir")}

    def put_artifact(self, root: str, name: str, source: Path | bytes) -> None:
        """Store one artifact, replacing what was there."""
        path = f"{_ARTIFACTS}{urllib.parse.quote(f'{_artifact_path(root)}/{name}')}"
        if isinstance(source, bytes):
            self._send("PUT", path, source, len(source), "application/octet-stream")
            return
        with source.open("rb") as file:
            self._send("PUT", path, file, source.stat().st_size, "application/octet-stream")

    def _json(self, method: str, path: str, body: Mapping[str, Any] | None) -> dict[str, Any]:
        data = None if body is None else json.dumps(body).encode()
        reply = self._send(method, path, data, None if data is None else len(data), "application/json")
        return json.loads(reply or b"{}")

    def _send(self, method: str, path: str, data: Any, length: int | None, kind: str) -> bytes:
        headers = {"Content-Type": kind}
        if length is not None:
            headers["Content-Length"] = str(length)
        if self._authorization:
            headers["Authorization"] = self._authorization
        url = f"{self._url}{path}"
        action = f"MLflow {method} {path.partition('?')[0]!r} at {self._url!r}"
        request = urllib.request.Request(url, data=data, headers=headers, method=method)  # noqa: S310 - the deployment's own setting
        try:
            with urllib.request.urlopen(request, timeout=self._timeout_s) as reply:  # noqa: S310 - same
                return reply.read()
        except urllib.error.HTTPError as error:
            raise _failure(action, error) from error
        except (OSError, http.client.HTTPException) as error:
            raise ServiceUnavailable(
                f"{action} got no answer",
                seen=str(error),
                next_step="check that the MLflow server is up; registering again continues where it stopped",
            ) from error


def tag_list(tags: Mapping[str, str]) -> Sequence[dict[str, str]]:
    """Tags (or parameters) as the API takes them."""
    return [{"key": key, "value": value} for key, value in tags.items()]


def _artifact_path(root: str) -> str:
    scheme, _, path = root.partition(":")
    if scheme != "mlflow-artifacts":
        raise RegistryError(
            f"artifacts of {root!r} are not stored through the MLflow server",
            next_step="start MLflow with --serve-artifacts: machines and users have no credentials for its bucket",
        )
    return urllib.parse.urlparse(root).path.strip("/") if path.startswith("//") else path.strip("/")


def _failure(action: str, error: urllib.error.HTTPError) -> Exception:
    raw = error.read().decode(errors="replace")
    try:
        said: dict[str, Any] = json.loads(raw)
    except ValueError:
        said = {}
    code, message = str(said.get("error_code", "")), str(said.get("message", "") or raw.strip())[:300]
    seen = f"{error.code} {code} {message}".strip()
    if error.code in _DENIED:
        return AccessDenied(f"{action} was refused", seen=seen, next_step=_DENIED[error.code])
    if error.code >= _SERVER_ERROR or error.code == _TOO_MANY:
        return ServiceUnavailable(f"{action} failed", seen=seen, next_step="see the MLflow server's log")
    return MlflowFailure(action, status=error.code, code=code, message=message)
