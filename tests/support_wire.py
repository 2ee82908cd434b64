"""What one process of ours sends to the real services, at the border to HTTP: counted, and it may die at any of it."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, TypeVar
from urllib.parse import unquote, urlsplit

import requests
from botocore.awsrequest import AWSPreparedRequest
from botocore.httpsession import URLLib3Session
from requests.adapters import HTTPAdapter

from mlops_sdk.capacity.provider import Party
from mlops_sdk.capacity.providers.ironic_api import IronicApi
from mlops_sdk.capacity.providers.nova import NAME as NOVA
from mlops_sdk.capacity.providers.nova import NovaLeases
from mlops_sdk.capacity.providers.nova_http import NovaHttp
from mlops_sdk.cloud import Cloud, open_session
from mlops_sdk.config import KeystoneSettings, S3Settings, Settings
from mlops_sdk.identity.audit import audit_of
from mlops_sdk.identity.credential import CredentialBroker
from mlops_sdk.identity.keystone import KeystoneCredentials
from mlops_sdk.keeper import Beat, Stop, ThreadKeeper
from mlops_sdk.objects import ObjectStore, connect_s3
from mlops_sdk.services import Services
from mlops_sdk.store_clock import StoreClock
from mlops_sdk.testing.faults import Crash

Reply = TypeVar("Reply")

_READS = {"GET", "HEAD"}
_LOGIN = "/auth/tokens"
_ID = re.compile(r"[0-9a-f]{8}-?([0-9a-f]{4}-?){3}[0-9a-f]{12}|\b[a-z2-7]{12}\b")


@dataclass(frozen=True, slots=True, kw_only=True)
class Sent:
    """A change that was asked for and answered."""

    what: str
    path: str
    status: int


class Wire:
    """Between one process and everything outside.

    Its *moments* are before and after each call that changes something. A process that dies before a call which only
    reads leaves what one leaves that dies after the change before it: so these are all the crashes there are.

    Args:
        die_at: The number of the moment at which the process dies; from then on every call of it is in vain.
        log: Where changes are written down, of several processes in the order of their answers.
        pause: Called before each call that changes something, with what it is: a process that stands still.
    """

    def __init__(
        self, *, die_at: int = -1, log: list[Sent] | None = None, pause: Callable[[str], None] = lambda _what: None
    ) -> None:
        self.moments: list[str] = []
        self.log: list[Sent] = [] if log is None else log
        self._die_at = die_at
        self._pause = pause
        self._dead = threading.Event()
        self._lock = threading.Lock()

    @property
    def died(self) -> str:
        """At which moment it died; empty while it lives."""
        return self.moments[-1] if self._dead.is_set() else ""

    def services(self, settings: Settings, *, service: str = "") -> Services:
        """The real services through this wire: what `connect_services` makes."""
        ours = self.cloud(settings.keystone)
        store = ObjectStore(self._s3(settings.s3), settings.s3.bucket)
        baremetal = IronicApi(ours)

        def open_nova(login: KeystoneSettings | None, party: Party) -> NovaLeases:
            return NovaLeases(NovaHttp(ours if login is None else self.cloud(login)), party)

        return Services(
            settings=settings,
            store=store,
            broker=CredentialBroker(
                KeystoneCredentials(ours), settings.broker_key, audit_of(settings, store, service=service)
            ),
            baremetal=baremetal,
            connect=lambda login: IronicApi(self.cloud(login)),
            keeper=_Keeper(),
            others={NOVA: open_nova} if settings.nova is not None else {},
            time=baremetal.now if settings.ironic else StoreClock(store).now,
        )

    def cloud(self, login: KeystoneSettings) -> Cloud:
        """A login whose requests go over this wire."""

        def connect(settings: KeystoneSettings) -> Any:
            session = open_session(settings)
            for scheme in ("http://", "https://"):
                session.session.mount(scheme, _Adapter(self))
            return session

        return Cloud(login, connect=connect)

    def _s3(self, settings: S3Settings) -> Any:
        client = connect_s3(settings)
        http = URLLib3Session(verify=settings.ca_bundle or True)

        def carry(request: AWSPreparedRequest, **_: Any) -> Any:
            return self.carry(str(request.method), request.url, b"", lambda: http.send(request))

        client.meta.events.register("before-send.s3", carry)
        return client

    def carry(self, method: str, url: str, body: bytes | str | None, send: Callable[[], Reply]) -> Reply:
        """One call."""
        path = unquote(urlsplit(url).path)
        if method in _READS or path.endswith(_LOGIN):
            self._pass("")
            return send()
        what = f"{method} {_ID.sub('*', path)}{_target(body)}"
        self._pause(what)
        self._pass(f"before {what}")
        reply: Any = send()
        with self._lock:
            self.log.append(Sent(what=what, path=path, status=reply.status_code))
        self._pass(f"after {what}")
        return reply

    def _pass(self, moment: str) -> None:
        with self._lock:
            if self._dead.is_set():
                raise Crash
            if not moment:
                return
            self.moments.append(moment)
            if len(self.moments) - 1 == self._die_at:
                self._dead.set()
                raise Crash


def torn_down_twice(log: Sequence[Sent]) -> list[str]:
    """Machines that Ironic was asked twice to tear down for one deployment, and that agreed twice."""
    twice: list[str] = []
    last: dict[str, str] = {}
    for sent in log:
        if sent.status != requests.codes.accepted or not sent.path.endswith("/states/provision"):
            continue
        target = sent.what.rpartition(" ")[2]
        if target == last.get(sent.path) == "deleted":
            twice.append(sent.path)
        if target in {"active", "deleted"}:
            last[sent.path] = target
    return twice


class _Adapter(HTTPAdapter):
    def __init__(self, wire: Wire) -> None:
        super().__init__()
        self._wire = wire

    def send(self, request: requests.PreparedRequest, *arguments: Any, **options: Any) -> requests.Response:
        def send() -> requests.Response:
            return super(_Adapter, self).send(request, *arguments, **options)

        return self._wire.carry(str(request.method), str(request.url), request.body, send)


class _Keeper(ThreadKeeper):
    """The heart of a process that died beats in vain, and says nothing."""

    def keep(self, beat: Beat, every_s: float) -> Stop:
        def beat_or_not() -> None:
            with suppress(Crash):
                beat()

        return super().keep(beat_or_not, every_s)


def _target(body: bytes | str | None) -> str:
    """Where a machine is to go, of a call that says it."""
    text = body.decode() if isinstance(body, bytes) else body or ""
    found = re.search(r'"target": ?"([a-z ]+)"', text)
    return f" {found[1]}" if found else ""
