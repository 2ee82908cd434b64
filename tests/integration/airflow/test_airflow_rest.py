"""The client of Airflow's REST API where no real Airflow can be brought to it: expired tokens, pages, failures."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any, ClassVar

import pytest
from pydantic import SecretStr

from mlops_sdk.airflow_rest import AirflowRest
from mlops_sdk.errors import AccessDenied, RemoteError, ServiceUnavailable

DAGS = [{"dag_id": f"dag_{number}"} for number in range(230)]


class Airflow(BaseHTTPRequestHandler):
    """Answers as Airflow 3.3 does; a token is good for `uses` requests."""

    logins: ClassVar[int] = 0
    uses: ClassVar[int] = 2
    left: ClassVar[int] = 0
    status: ClassVar[int] = 200

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path == "/auth/token":
            if body["password"] != "right":
                return self.answer(401, {"detail": "Invalid credentials"})
            Airflow.logins += 1
            Airflow.left = Airflow.uses
            return self.answer(201, {"access_token": f"token-{Airflow.logins}"})
        return self.answer(409, {"detail": "exists"}) if self.accepted() else None

    def do_GET(self) -> None:
        if not self.accepted():
            return
        query = dict(pair.split("=") for pair in self.path.partition("?")[2].split("&"))
        first, count = int(query["offset"]), int(query["limit"])
        self.answer(Airflow.status, {"dags": DAGS[first : first + count], "total_entries": len(DAGS)})

    def accepted(self) -> bool:
        good = self.headers["Authorization"] == f"Bearer token-{Airflow.logins}" and Airflow.left > 0
        Airflow.left -= 1
        if not good:
            self.answer(401, {"detail": "Token has expired"})
        return good

    def answer(self, status: int, body: Any) -> None:
        content = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def url() -> Iterator[str]:
    Airflow.logins, Airflow.left, Airflow.status = 0, 0, 200
    with ThreadingHTTPServer(("127.0.0.1", 0), Airflow) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}/"
        server.shutdown()


def test_it_reads_every_page_and_logs_in_again_when_the_token_has_expired(url: str) -> None:
    assert AirflowRest(url, "mlops", SecretStr("right")).dags() == DAGS
    assert Airflow.logins == 2  # three pages, two requests a token


def test_a_run_that_is_there_already_is_no_error(url: str) -> None:
    assert not AirflowRest(url, "mlops", SecretStr("right")).trigger("dag", "run", {})


def test_a_wrong_password_is_told_apart_and_not_repeated(url: str) -> None:
    with pytest.raises(AccessDenied) as caught:
        AirflowRest(url, "mlops", SecretStr("wrong-secret")).dags()
    assert "wrong-secret" not in str(caught.value)


@pytest.mark.parametrize(("status", "kind"), [(500, ServiceUnavailable), (422, RemoteError), (403, AccessDenied)])
def test_a_failure_says_by_its_type_whether_trying_again_can_help(
    url: str, status: int, kind: type[RemoteError]
) -> None:
    Airflow.status = status
    with pytest.raises(RemoteError) as caught:
        AirflowRest(url, "mlops", SecretStr("right")).dags()
    assert type(caught.value) is kind


def test_nobody_there_is_unavailable() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    with pytest.raises(ServiceUnavailable, match="did not answer"):
        AirflowRest(f"http://127.0.0.1:{port}", "mlops", SecretStr("right")).health()
