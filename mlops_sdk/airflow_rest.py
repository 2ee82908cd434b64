"""Airflow seen through its public REST API: start runs, look at them, act on tasks. Needs no Airflow installed."""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from http import HTTPStatus
from typing import Any, Final, cast

from pydantic import SecretStr

from mlops_sdk.errors import AccessDenied, RemoteError, ServiceUnavailable

RUN_ENDED: Final = frozenset({"success", "failed"})
_TIMEOUT_S: Final = 60.0
_PAGE: Final = 100
_LEFT_OUT_OF_LOGS: Final = frozenset({"timestamp", "event", "level", "logger", "filename", "lineno", "error_detail"})


class AirflowRest:
    """One Airflow, as one user. Logs in at its first call, and again when the token has expired. Not thread-safe.

    Every method raises `ServiceUnavailable` when Airflow does not answer, `AccessDenied` for a wrong password or a
    missing role, and `RemoteError` with Airflow's own words for everything else that it refuses.

    Example:
        >>> airflow = AirflowRest("http://127.0.0.1:8080", "mlops", SecretStr("..."))  # doctest: +SKIP
        >>> airflow.trigger("retrain_lm", "by-hand-1", {})  # doctest: +SKIP
        True
    """

    def __init__(self, url: str, username: str, password: SecretStr, *, timeout_s: float = _TIMEOUT_S) -> None:
        self._url = url.rstrip("/")
        self._username = username
        self._password = password
        self._timeout_s = timeout_s
        self._token = SecretStr("")

    @property
    def url(self) -> str:
        """Where it is."""
        return self._url

    def health(self) -> dict[str, Any]:
        """``{"scheduler": {"status": "healthy", ...}, "triggerer": ..., ...}``. Needs no login."""
        try:
            return self._send("GET", "/api/v2/monitor/health")
        except _Refused as refused:
            raise refused.as_error() from refused

    def dags(self) -> list[dict[str, Any]]:
        """Every DAG that was parsed and still exists, paused or not."""
        return list(self._pages("/api/v2/dags", "dags"))

    def import_errors(self) -> list[dict[str, Any]]:
        """DAG files that could not be imported, with the traceback."""
        return list(self._pages("/api/v2/importErrors", "import_errors"))

    def pause(self, dag_id: str) -> None:
        """Start no further task and no further run of a DAG. Idempotent."""
        self._call("PATCH", _dag(dag_id), {"is_paused": True})

    def unpause(self, dag_id: str) -> None:
        """Undo `pause`. Idempotent."""
        self._call("PATCH", _dag(dag_id), {"is_paused": False})

    def trigger(self, dag_id: str, run_id: str, conf: Mapping[str, Any]) -> bool:
        """Start a run under an id of the caller's choice. Idempotent.

        Returns:
            True when it was created now, False when there is one with this id already.
        """
        body = {"dag_run_id": run_id, "logical_date": None, "conf": dict(conf)}
        return self._call("POST", f"{_dag(dag_id)}/dagRuns", body, fine=(HTTPStatus.CONFLICT,)) is not None

    def dag_run(self, dag_id: str, run_id: str) -> dict[str, Any]:
        """One run: ``state``, ``conf``, ``start_date``, ``end_date`` and more."""
        return self._call("GET", _run(dag_id, run_id)) or {}

    def dag_runs(self, dag_id: str) -> list[dict[str, Any]]:
        """All runs of a DAG, oldest first."""
        return list(self._pages(f"{_dag(dag_id)}/dagRuns", "dag_runs", order_by="id"))

    def wait_for_run(
        self, dag_id: str, run_id: str, *, timeout_s: float, every_s: float = 0.2, patient: bool = False
    ) -> dict[str, Any]:
        """Wait until a run has ended; the run. With `patient`, Airflow may be away in between.

        Raises:
            ServiceUnavailable: it did not end in time; names the state of each task.
        """
        deadline = time.monotonic() + timeout_s
        run: dict[str, Any] = {}
        while time.monotonic() < deadline:
            try:
                run = self.dag_run(dag_id, run_id)
            except ServiceUnavailable:
                if not patient:
                    raise
            if run.get("state") in RUN_ENDED:
                return run
            time.sleep(every_s)
        states = {task["task_id"]: task["state"] for task in self.tasks(dag_id, run_id)}
        raise ServiceUnavailable(
            f"run {run_id!r} of DAG {dag_id!r} did not end within {timeout_s:.0f} s",
            seen=f"{run.get('state')}, tasks {states}",
            next_step="see the logs of its tasks",
        )

    def set_run_state(self, dag_id: str, run_id: str, state: str) -> None:
        """Mark a run as ``success``, ``failed`` or ``queued``; its running tasks are ended."""
        self._call("PATCH", _run(dag_id, run_id), {"state": state})

    def delete_run(self, dag_id: str, run_id: str) -> None:
        """Forget a run. One that is not there is fine."""
        self._call("DELETE", _run(dag_id, run_id), fine=(HTTPStatus.NOT_FOUND,))

    def tasks(self, dag_id: str, run_id: str) -> list[dict[str, Any]]:
        """The task instances of a run: ``task_id``, ``state``, ``try_number``, ``start_date`` and more."""
        return list(self._pages(f"{_run(dag_id, run_id)}/taskInstances", "task_instances"))

    def task(self, dag_id: str, run_id: str, task_id: str) -> dict[str, Any]:
        """One task instance."""
        return self._call("GET", _task(dag_id, run_id, task_id)) or {}

    def clear(
        self,
        dag_id: str,
        run_id: str,
        task_ids: Sequence[str] | None = None,
        *,
        only_failed: bool = False,
        downstream: bool = True,
    ) -> list[str]:
        """Let tasks of a run run again: those named, or all; of these only the failed ones, if asked.

        With `downstream`, also those that come after them.

        Returns:
            The ids of the tasks that were cleared.
        """
        body: dict[str, Any] = {
            "dry_run": False,
            "dag_run_id": run_id,
            "only_failed": only_failed,
            "include_downstream": downstream,
            "reset_dag_runs": True,
        }
        if task_ids is not None:
            body["task_ids"] = list(task_ids)
        reply = self._call("POST", f"{_dag(dag_id)}/clearTaskInstances", body) or {}
        return [str(task["task_id"]) for task in reply.get("task_instances", [])]

    def set_task_state(self, dag_id: str, run_id: str, task_id: str, state: str) -> None:
        """Mark a task instance as ``success``, ``failed`` or ``skipped``; if it runs, it is ended."""
        self._call("PATCH", _task(dag_id, run_id, task_id), {"new_state": state})

    def task_log(self, dag_id: str, run_id: str, task_id: str, *, attempt: int = 1) -> str:
        """The log of one attempt at a task, a line per event."""
        path = f"{_task(dag_id, run_id, task_id)}/logs/{attempt}?full_content=true"
        content = (self._call("GET", path) or {}).get("content", [])
        return "\n".join(_log_line(event) for event in content) if isinstance(content, list) else str(content)

    def xcom(self, dag_id: str, run_id: str, task_id: str, key: str = "return_value") -> Any:
        """What a task left under a key, as a JSON value."""
        path = f"{_task(dag_id, run_id, task_id)}/xcomEntries/{_quoted(key)}?deserialize=true"
        return (self._call("GET", path) or {}).get("value")

    def connection(self, conn_id: str) -> dict[str, Any]:
        """A connection as Airflow shows it: secrets are masked."""
        return self._call("GET", f"/api/v2/connections/{_quoted(conn_id)}") or {}

    def assets(self) -> list[dict[str, Any]]:
        """Every asset: ``id``, ``name``, ``uri``."""
        return list(self._pages("/api/v2/assets", "assets"))

    def asset_events(self, uri: str) -> list[dict[str, Any]]:
        """The events of an asset, oldest first."""
        return list(
            self._pages("/api/v2/assets/events", "asset_events", asset_id=self._asset(uri), order_by="timestamp")
        )

    def emit(self, uri: str, extra: Mapping[str, Any]) -> dict[str, Any]:
        """Record an event of an asset; DAGs that are scheduled by it start.

        Raises:
            RemoteError: no DAG knows an asset with this URI.
        """
        return self._call("POST", "/api/v2/assets/events", {"asset_id": self._asset(uri), "extra": dict(extra)}) or {}

    def _asset(self, uri: str) -> int:
        found = next((asset for asset in self.assets() if asset["uri"] == uri), None)
        if found is None:
            raise RemoteError(
                f"Airflow knows no asset {uri!r}", next_step="name it in a DAG, and wait until it is parsed"
            )
        return int(found["id"])

    def _pages(self, path: str, key: str, **query: str | int) -> Iterator[dict[str, Any]]:
        offset = 0
        while True:
            query_string = urllib.parse.urlencode({**query, "limit": _PAGE, "offset": offset})
            page = self._call("GET", f"{path}?{query_string}") or {}
            yield from page.get(key, [])
            offset += _PAGE
            if offset >= int(page.get("total_entries", 0)):
                return

    def _call(
        self, method: str, path: str, body: Any = None, *, fine: Collection[HTTPStatus] = ()
    ) -> dict[str, Any] | None:
        """One authenticated request; None when the answer was one of the statuses that are `fine`."""
        fresh = not self._token.get_secret_value()
        if fresh:
            self._log_in()
        try:
            return self._send(method, path, body)
        except _Refused as refused:
            if refused.status in fine:
                return None
            if refused.status != HTTPStatus.UNAUTHORIZED or fresh:
                raise refused.as_error() from refused
        self._token = SecretStr("")  # it has expired
        return self._call(method, path, body, fine=fine)

    def _log_in(self) -> None:
        self._token = SecretStr("")
        login = {"username": self._username, "password": self._password.get_secret_value()}
        try:
            self._token = SecretStr(str(self._send("POST", "/auth/token", login)["access_token"]))
        except _Refused as refused:
            raise refused.as_error() from refused

    def _send(self, method: str, path: str, body: Any = None) -> dict[str, Any]:
        headers = {"Accept": "application/json"}
        token = self._token.get_secret_value()
        if token:
            headers["Authorization"] = f"Bearer {token}"
        if body is not None:
            headers["Content-Type"] = "application/json"
        data = None if body is None else json.dumps(body).encode()
        where = f"{method} {self._url}{path.partition('?')[0]}"
        request = urllib.request.Request(self._url + path, data=data, headers=headers, method=method)  # noqa: S310 - our operator's URL
        try:
            with urllib.request.urlopen(request, timeout=self._timeout_s) as reply:  # noqa: S310 - as above
                content = reply.read()
                return dict(json.loads(content)) if content else {}
        except urllib.error.HTTPError as error:
            raise _refusal(where, error) from error
        except (OSError, ValueError) as error:
            raise ServiceUnavailable(
                f"Airflow did not answer: {where}", seen=str(error), next_step="is its api-server running?"
            ) from error


class _Refused(Exception):
    """Airflow answered with a 4xx."""

    def __init__(self, where: str, status: int, said: str) -> None:
        super().__init__(where, status, said)
        self.where, self.status, self.said = where, status, said

    def as_error(self) -> RemoteError:
        seen = f"status {self.status}: {self.said}"
        kinds: dict[int, Callable[[], RemoteError]] = {
            HTTPStatus.UNAUTHORIZED: lambda: AccessDenied(
                f"Airflow does not accept the login: {self.where}", seen=seen, next_step="check user name and password"
            ),
            HTTPStatus.FORBIDDEN: lambda: AccessDenied(
                f"the role does not allow it: {self.where}", seen=seen, next_step="use a user with the role"
            ),
        }
        other = RemoteError(f"Airflow refused: {self.where}", seen=seen, next_step="correct the request")
        return kinds.get(self.status, lambda: other)()


def _refusal(where: str, error: urllib.error.HTTPError) -> Exception:
    said = error.read(2000).decode(errors="replace")
    if error.code >= HTTPStatus.INTERNAL_SERVER_ERROR:
        return ServiceUnavailable(
            f"Airflow failed: {where}",
            seen=f"status {error.code}: {said}",
            next_step="see the log of its api-server",
        )
    return _Refused(where, error.code, said)


def _quoted(text: str) -> str:
    return urllib.parse.quote(text, safe="")


def _dag(dag_id: str) -> str:
    return f"/api/v2/dags/{_quoted(dag_id)}"


def _run(dag_id: str, run_id: str) -> str:
    return f"{_dag(dag_id)}/dagRuns/{_quoted(run_id)}"


def _task(dag_id: str, run_id: str, task_id: str) -> str:
    return f"{_run(dag_id, run_id)}/taskInstances/{_quoted(task_id)}"


def _log_line(event: Any) -> str:
    """A line of a task log; Airflow stores it structured."""
    if not isinstance(event, Mapping):
        return str(event)
    known = cast("Mapping[str, Any]", event)
    rest = {k: v for k, v in known.items() if k not in _LEFT_OUT_OF_LOGS}
    raised = [f"{cause['exc_type']}: {cause['exc_value']}" for cause in known.get("error_detail") or []]
    parts = [known.get("timestamp"), known.get("level"), known.get("event"), " < ".join(raised), rest]
    return " ".join(str(part) for part in parts if part)
