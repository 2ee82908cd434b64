"""keystoneauth, and so openstacksdk, without a network: their requests go to the fake cloud, all else is real."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import parse_qs, urlsplit

import requests
from requests.adapters import BaseAdapter

from mlops_sdk.cloud import open_session
from mlops_sdk.config import KeystoneSettings
from mlops_sdk.testing.http_cloud.messages import Answer, Call, NoAnswer, Send, ServiceName

if TYPE_CHECKING:
    from keystoneauth1.session import Session

_SERVICES: Final[Mapping[str, ServiceName]] = {
    "keystone.invalid": "identity",
    "ironic.invalid": "baremetal",
    "nova.invalid": "compute",
    "neutron.invalid": "network",
    "cinder.invalid": "block-storage",
    "glance.invalid": "image",
    "placement.invalid": "placement",
}


def session_through(send: Send) -> Callable[[KeystoneSettings], Session]:
    """What `Cloud` connects with: a real session whose requests are carried by `send`.

    Example:
        >>> cloud = HttpCloud(time.monotonic)  # doctest: +SKIP
        >>> Cloud(settings, connect=session_through(cloud.deliver)).request("baremetal", "GET", "/v1/nodes")
    """

    def connect(settings: KeystoneSettings) -> Session:
        session = open_session(settings)
        http: requests.Session = session.session
        http.trust_env = False  # a proxy of this machine's environment has no business here, and reading it is slow
        for scheme in ("http://", "https://"):
            http.mount(scheme, _Adapter(send))
        return session

    return connect


class _Adapter(BaseAdapter):
    """The last layer of `requests`: a prepared request in, a response out."""

    def __init__(self, send: Send) -> None:
        super().__init__()
        self._send = send

    def send(self, request: requests.PreparedRequest, *_args: Any, **_options: Any) -> requests.Response:
        try:
            answer = self._send(call_of(request))
        except NoAnswer as error:
            raise requests.exceptions.ReadTimeout(str(error), request=request) from error
        return response_of(request, answer)

    def close(self) -> None:
        """Nothing is open."""


def call_of(request: requests.PreparedRequest) -> Call:
    """A prepared request as the fake cloud reads it."""
    url = urlsplit(str(request.url))
    body = request.body
    if body is not None and not isinstance(body, str | bytes):
        raise TypeError(f"the fake cloud reads no streams: {type(body)!r}")
    return Call(
        service=_SERVICES[url.hostname or ""],
        method=str(request.method),
        path=url.path or "/",
        query={name: ",".join(given) for name, given in parse_qs(url.query).items()},
        headers={name.lower(): str(value) for name, value in request.headers.items()},
        body=json.loads(body) if body else None,
    )


def response_of(request: requests.PreparedRequest, answer: Answer) -> requests.Response:
    """An answer as `requests` hands it on."""
    response = requests.Response()
    response.status_code = answer.status
    response.request = request
    response.url = str(request.url)
    response.encoding = "utf-8"
    response.headers.update({"Content-Type": "application/json", **answer.headers})
    content = b"" if answer.body is None else json.dumps(answer.body).encode()
    response._content = content  # noqa: SLF001  # pyright: ignore[reportPrivateUsage] - how requests' own tests fill one
    return response
