"""The one way to OpenStack's HTTP APIs: log in, send, translate what comes back."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable, Collection, Generator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from functools import lru_cache
from time import monotonic
from typing import TYPE_CHECKING, Any, cast

import stamina

from mlops_sdk.config import KeystoneSettings
from mlops_sdk.errors import AccessDenied, RemoteError, ServiceUnavailable, SettingsError

if TYPE_CHECKING:
    from keystoneauth1.session import Session

_TIMEOUT_S = 30.0
_SEEN_LENGTH = 300
_FOUND = 302
_TOO_MANY = 429
_PATIENCE_S = 30.0
_VERSION = re.compile(r"/v[0-9]+(\.[0-9]+)?(/[0-9a-f]{32})?$")  # Cinder's may end with the project


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """An HTTP reply: status and the parsed JSON body ({} when there is none)."""

    status: int
    body: dict[str, Any] = field(default_factory=dict[str, Any])


class Cloud:
    """A login to one OpenStack cloud. Logs in at the first call; thread-safe.

    Args:
        settings: Where Keystone is and who we are.
        attempts: How often a call that got no answer, a 429 or a 5xx is sent. Callers send only what may be sent twice.
        connect: Makes the session; `mlops_sdk.testing.http_cloud` has one that needs no network.
    """

    def __init__(
        self,
        settings: KeystoneSettings,
        *,
        attempts: int = 3,
        connect: Callable[[KeystoneSettings], Session] | None = None,
    ) -> None:
        self._settings = settings
        self._connect = connect or open_session
        self._attempts = attempts
        self._session: Session | None = None
        self._endpoints: dict[str, str] = {}
        self._clocks: dict[str, tuple[datetime, float]] = {}
        self._lock = threading.Lock()

    def request(
        self,
        service: str,
        method: str,
        path: str,
        *,
        body: Any = None,
        params: Mapping[str, str | Sequence[str]] | None = None,
        headers: Mapping[str, str] | None = None,
        accept: Collection[int] = (),
        attempts: int = 0,
    ) -> Reply:
        """Send one request to the public endpoint of a service type.

        Args:
            service: Service type as in the catalogue (``baremetal``, ``identity``).
            method: HTTP method.
            path: Path below the endpoint's root, starting with the API version (``/v1/nodes``).
            body: JSON body.
            params: Query.
            headers: Extra headers (microversion).
            accept: Statuses besides 2xx that the caller understands; every other one is raised.
            attempts: How often it may be sent, where that is not the login's own number: once, what makes a second one.

        Raises:
            AccessDenied: 401 or 403, or the login was refused.
            ServiceUnavailable: no answer, 429 or 5xx, after `attempts` tries.
            RemoteError: any other status.
        """

        def once() -> Reply:
            with _translated(f"{service} {method} {path}", self._settings.auth_url):
                return self._send(service, method, path, body=body, params=params, headers=headers, accept=accept)

        for attempt in stamina.retry_context(
            on=again_after, attempts=attempts or self._attempts, timeout=None, wait_initial=0.2, wait_max=2.0
        ):
            with attempt:
                return once()
        raise RuntimeError("stamina ended without a result or an error")  # pragma: no cover - attempts >= 1

    def now(self, service: str = "baremetal") -> datetime | None:
        """The time by a service's clock (`Date` of its last reply), advanced by our monotonic clock; None before any.

        Resolution: one second.
        """
        clock = self._clocks.get(service)
        return None if clock is None else clock[0] + timedelta(seconds=monotonic() - clock[1])

    def endpoint(self, service: str) -> str:
        """The public address of a service type, without a version."""
        with _translated(f"finding {service}", self._settings.auth_url):
            return self._root(service)

    def has(self, service: str) -> bool:
        """Whether the catalogue has a public endpoint of this service type."""
        with _translated(f"finding {service}", self._settings.auth_url):
            return bool(self._find(service))

    def user_id(self) -> str:
        """Id of the user we are logged in as."""
        with _translated("login", self._settings.auth_url):
            return str(self._login().get_user_id())

    def project_id(self) -> str:
        """Id of the project we are logged in to."""
        with _translated("login", self._settings.auth_url):
            return str(self._login().get_project_id())

    def token(self) -> str:
        """Our token, for a service that goes on in our name. Secret."""
        with _translated("login", self._settings.auth_url):
            return str(self._login().get_token())

    def _send(
        self,
        service: str,
        method: str,
        path: str,
        *,
        body: Any,
        params: Mapping[str, str | Sequence[str]] | None,
        headers: Mapping[str, str] | None,
        accept: Collection[int],
    ) -> Reply:
        response = self._login().request(
            self._root(service) + path,
            method,
            json=body,
            params=dict(params or {}),
            headers={"Accept": "application/json", **(headers or {})},
            raise_exc=False,
            connect_retries=0,
            status_code_retries=0,
            redirect=_FOUND not in accept,  # CloudKitty answers a change with 302 and the path of what was changed
        )
        self._set_clock(service, response.headers.get("Date", ""))
        parsed = _json(response)
        if response.ok or response.status_code in accept:
            return Reply(status=response.status_code, body=parsed)
        raise error_for(
            response.status_code,
            f"{service} {method} {path}",
            words_of(parsed) or str(response.text),
            retry_after=response.headers.get("Retry-After", ""),
        )

    def _root(self, service: str) -> str:
        """The endpoint without its version suffix: paths name the version themselves, nothing has to be discovered."""
        if service not in self._endpoints:
            endpoint = self._find(service)
            if not endpoint:
                raise RemoteError(
                    f"the cloud's catalogue has no public endpoint of service type {service!r}",
                    seen=f"region {self._settings.region!r} at {self._settings.auth_url!r}",
                    next_step="check keystone.region, and the catalogue with `openstack catalog list`",
                )
            self._endpoints[service] = _VERSION.sub("", endpoint.rstrip("/"))
        return self._endpoints[service]

    def _find(self, service: str) -> str:
        """The public endpoint as the catalogue has it; "" where it has none."""
        from keystoneauth1.exceptions import EndpointNotFound  # noqa: PLC0415 - import time that only cloud calls need

        with suppress(EndpointNotFound):
            found = self._login().get_endpoint(
                service_type=service, interface="public", region_name=self._settings.region, skip_discovery=True
            )
            return str(found or "")
        return ""

    def _login(self) -> Session:
        with self._lock:
            if self._session is None:
                self._session = self._connect(self._settings)
            return self._session

    def _set_clock(self, service: str, date: str) -> None:
        moment = _moment_of(date)
        if moment is not None:
            self._clocks[service] = (moment, monotonic())


@lru_cache(maxsize=64)
def _moment_of(date: str) -> datetime | None:
    """What a `Date` header says; many replies come in one second."""
    try:
        return parsedate_to_datetime(date).astimezone(UTC)
    except (TypeError, ValueError):
        return None


def open_session(settings: KeystoneSettings) -> Session:
    """A session of this login, which nothing was sent through yet."""
    from keystoneauth1.identity import v3  # noqa: PLC0415 - import time that only cloud calls need
    from keystoneauth1.session import Session as KeystoneSession  # noqa: PLC0415 - as above

    if settings.application_credential_id:
        auth = v3.ApplicationCredential(
            auth_url=settings.auth_url,
            application_credential_id=settings.application_credential_id,
            application_credential_secret=settings.application_credential_secret.get_secret_value(),
        )
    elif settings.username:
        auth = v3.Password(
            auth_url=settings.auth_url,
            username=settings.username,
            password=settings.password.get_secret_value(),
            project_name=settings.project_name,
            user_domain_name=settings.user_domain_name,
            project_domain_name=settings.project_domain_name,
        )
    else:
        raise SettingsError(
            "keystone settings name neither a user nor an application credential",
            next_step="set keystone.username and .password, or keystone.application_credential_id and its secret",
        )
    return KeystoneSession(auth=auth, timeout=_TIMEOUT_S, app_name="openinfra-mlops")


@contextmanager
def _translated(action: str, auth_url: str) -> Generator[None]:
    from keystoneauth1 import exceptions  # noqa: PLC0415 - import time that only cloud calls need

    try:
        yield
    except (exceptions.Unauthorized, exceptions.Forbidden, exceptions.NotFound) as error:
        # only the login raises; Keystone answers 404 for an application credential that was revoked
        raise AccessDenied(
            f"Keystone at {auth_url!r} refused our login for {action}",
            seen=str(error),
            next_step="check the user name and password, or whether the application credential was revoked or expired",
        ) from None
    except (exceptions.ConnectionError, exceptions.RetriableConnectionFailure, exceptions.HttpServerError) as error:
        raise ServiceUnavailable(
            f"{action} got no usable answer", seen=str(error)[:_SEEN_LENGTH], next_step="check that the service is up"
        ) from error
    except exceptions.ClientException as error:
        raise RemoteError(
            f"{action} failed", seen=str(error)[:_SEEN_LENGTH], next_step="check the keystone settings"
        ) from error


def again_after(error: Exception) -> bool | float:
    """Whether a call that failed is sent again, or after how many seconds. stamina's back-off hook.

    A service that wants to be left alone for longer than a call may take is left alone: whoever asked decides.
    """
    if not isinstance(error, ServiceUnavailable) or error.retry_after_s > _PATIENCE_S:
        return False
    return error.retry_after_s or True


def error_for(status: int, action: str, words: str, *, retry_after: str = "") -> RemoteError:
    """The exception that a status stands for, with the service's own words.

    Args:
        status: HTTP status.
        action: What was asked.
        words: The service's own.
        retry_after: The header of that name, in seconds; a date in it counts as not said.
    """
    seen = f"{status} {words[:_SEEN_LENGTH]}"
    if status in {401, 403}:
        return AccessDenied(
            f"{action} was refused",
            seen=seen,
            next_step="the credential is expired or revoked, or lacks the role or access rule for this call",
        )
    if status == _TOO_MANY or status >= 500:  # noqa: PLR2004 - HTTP: server errors
        limited = "the cloud limits how often it is asked"
        error = ServiceUnavailable(
            f"{action} {'was put off' if status == _TOO_MANY else 'failed'}",
            seen=seen,
            next_step=limited if status == _TOO_MANY else "see the service's log",
        )
        error.retry_after_s = float(retry_after) if retry_after.isdecimal() else 0.0
        return error
    return RemoteError(f"{action} failed", seen=seen, next_step="see the service's log")


def _json(response: Any) -> dict[str, Any]:
    try:
        body = response.json()
    except ValueError:
        return {}
    return body if isinstance(body, dict) else {"items": body}


def words_of(body: Mapping[str, Any]) -> str:
    """The service's own words in an error body.

    Ironic nests a fault, as an object or as JSON text, in ``error_message``; Keystone has ``error.message``; Nova,
    Cinder and Neutron have one object under the name of the fault, Placement a list of ``errors``.
    """
    raw: Any = body.get("error_message") or body.get("error") or _only(body)
    if isinstance(raw, str) and raw.startswith("{"):
        try:
            raw = json.loads(raw)
        except ValueError:
            return str(raw)
    if isinstance(raw, dict):
        fault = cast("dict[str, Any]", raw)
        return str(fault.get("faultstring") or fault.get("message") or fault.get("detail") or fault)
    return str(raw)


def _only(body: Mapping[str, Any]) -> Any:
    values = list(body.values())
    only: Any = values[0] if len(values) == 1 else ""
    if isinstance(only, list):
        only = cast("list[Any]", only)[0] if only else ""
    return only if isinstance(only, dict) else ""
