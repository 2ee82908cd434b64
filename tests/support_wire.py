"""What one process of ours sends to the real services, at the border to HTTP: counted; any of it may fail, and the
process may die at any of it."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote, urlsplit

import requests
from botocore.awsrequest import AWSPreparedRequest
from botocore.exceptions import ReadTimeoutError
from botocore.httpsession import URLLib3Session
from requests.adapters import HTTPAdapter

from benchmarks.leaks_faults import Fault, Kind
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
from mlops_sdk.testing.http_cloud import openstack_wire, s3_wire
from mlops_sdk.testing.http_cloud.messages import Answer, Call, ServiceName

_READS = {"GET", "HEAD"}
_LOGIN = "/auth/tokens"
_ID = re.compile(r"[0-9a-f]{8}-?([0-9a-f]{4}-?){3}[0-9a-f]{12}|\b[a-z2-7]{12}\b")


@dataclass(frozen=True, slots=True, kw_only=True)
class Sent:
    """A change that was asked for and answered."""

    what: str
    path: str
    status: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """A request that was not sent yet.

    Attributes:
        service: Whose words an error has.
        send: Sends it, and returns the reply.
        lost: What the caller meets that waits for a reply in vain.
        reply: The reply that says this.
    """

    service: ServiceName
    method: str
    url: str
    body: bytes | str | None
    send: Callable[[], Any]
    lost: Callable[[], Exception]
    reply: Callable[[Answer], Any]


class Wire:
    """Between one process and everything outside.

    Its *moments* are before and after each call that changes something. A process that dies before a call which only
    reads leaves what one leaves that dies after the change before it: so these are all the crashes there are.

    Args:
        die_at: The number of the moment at which the process dies; from then on every call of it is in vain.
        log: Where changes are written down, of several processes in the order of their answers.
        pause: Called before each call that changes something, with what it is: a process that stands still.
        meets: Failures, by the number of the call that changes something.
    """

    def __init__(
        self,
        *,
        die_at: int = -1,
        log: list[Sent] | None = None,
        pause: Callable[[str], None] = lambda _what: None,
        meets: Mapping[int, Fault] | None = None,
    ) -> None:
        self.moments: list[str] = []
        self.log: list[Sent] = [] if log is None else log
        self.changes: list[str] = []
        self.met: list[str] = []
        self._meets = dict(meets or {})
        self._late: list[threading.Thread] = []
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
            def send() -> Any:
                request.reset_stream()  # sent twice, it begins anew
                return http.send(request)

            return self.carry(
                Request(
                    service="s3",
                    method=str(request.method),
                    url=request.url,
                    body=b"",
                    send=send,
                    lost=lambda: ReadTimeoutError(endpoint_url=request.url),
                    reply=lambda answer: s3_wire.response_of(request, answer),
                )
            )

        client.meta.events.register("before-send.s3", carry)
        return client

    def carry(self, request: Request) -> Any:
        """One call; its reply."""
        path = unquote(urlsplit(request.url).path)
        if request.method in _READS or path.endswith(_LOGIN):
            self._pass("")
            return request.send()
        what = f"{request.method} {_ID.sub('*', path)}{_target(request.body)}"
        self._pause(what)
        self._pass(f"before {what}")
        reply = self._change(request, what, path)
        self._pass(f"after {what}")
        return reply

    def wait_for_the_late(self) -> None:
        """Until what is on its way was carried out."""
        for thread in self._late:
            thread.join()

    def _change(self, request: Request, what: str, path: str) -> Any:
        def send() -> Any:
            reply = request.send()
            with self._lock:
                self.log.append(Sent(what=what, path=path, status=reply.status_code))
            return reply

        with self._lock:
            fault = self._meets.get(len(self.changes))
            self.changes.append(what)
            if fault is not None:
                self.met.append(f"{fault} at {what}")
        if fault is None:
            return send()
        answer = fault.answer(Call(service=request.service, method=request.method, path=path))
        if answer is not None:
            if fault.done:
                send()
            return request.reply(answer)
        match fault.kind:
            case Kind.DUPLICATE:
                send()
                time.sleep(fault.seconds)
                return send()
            case Kind.LOST_REPLY:
                send()
            case Kind.LATE:
                self._late.append(threading.Timer(fault.seconds, send))
                self._late[-1].start()
            case Kind.TIMEOUT:
                pass
            case _:
                raise ValueError(f"a wire cannot make this: {fault}")
        raise request.lost()

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

        return self._wire.carry(
            Request(
                service="baremetal" if urlsplit(str(request.url)).path.startswith("/v1/") else "compute",
                method=str(request.method),
                url=str(request.url),
                body=request.body,
                send=send,
                lost=lambda: requests.exceptions.ReadTimeout(request=request),
                reply=lambda answer: openstack_wire.response_of(request, answer),
            )
        )


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
