"""The fake cloud without HTTP libraries in between: for schedules by the ten thousand.

keystoneauth, requests and botocore cost twenty times what our own code costs. These two stand for them and do what was
seen of them: one new login after a 401, botocore's four tries, the errors that `Cloud` and `ObjectStore` translate.
`tests/unit/http_cloud` sends the same schedules both ways and compares every call and every answer.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, Final, get_args
from urllib.parse import quote

from botocore.exceptions import ClientError, ReadTimeoutError

from mlops_sdk.cloud import Cloud, Reply, again_after, error_for, words_of
from mlops_sdk.config import KeystoneSettings
from mlops_sdk.errors import AccessDenied, ServiceUnavailable
from mlops_sdk.testing.http_cloud.messages import Answer, Call, NoAnswer, Send, ServiceName
from mlops_sdk.testing.http_cloud.s3 import Listing, S3Failure

_UNAUTHORIZED: Final = 401
_ERROR: Final = 400
_SERVER_ERROR: Final = 500
_JITTER_S: Final = 0.5  # of stamina, at its middle
_S3_TRIES: Final = 4
_S3_AGAIN: Final = {500, 502, 503, 504, 429}
_SERVICES: Final[Mapping[str, ServiceName]] = {name: name for name in get_args(ServiceName)}

Pause = Callable[[float], None]


class LightCloud(Cloud):
    """`Cloud`, as keystoneauth would make it behave.

    Args:
        settings: The login.
        send: Carries calls.
        pause: Lets the world's time pass between tries.
    """

    def __init__(self, settings: KeystoneSettings, send: Send, pause: Pause) -> None:
        super().__init__(settings)
        self._wire = send
        self._pause = pause
        self._token = ""
        self._user = ""
        self._project = ""
        self._catalogue: frozenset[str] = frozenset()

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
        """See `Cloud.request`."""
        action = f"{service} {method} {path}"
        sent = json.loads(json.dumps(body)) if body is not None else None
        lower = {name.lower(): value for name, value in (headers or {}).items()}
        query = {name: given if isinstance(given, str) else ",".join(given) for name, given in (params or {}).items()}
        tries = attempts or self._attempts
        for attempt in range(1, tries + 1):
            try:
                answer = self._once(
                    Call(service=_SERVICES[service], method=method, path=path, query=query, headers=lower, body=sent)
                )
                parsed = answer.body if isinstance(answer.body, dict) else {}
                if answer.status < _ERROR or answer.status in accept:
                    return Reply(status=answer.status, body=parsed)
                raise error_for(
                    answer.status, action, words_of(parsed), retry_after=answer.headers.get("Retry-After", "")
                )
            except ServiceUnavailable as error:
                wait = again_after(error)
                if attempt == tries or wait is False:
                    raise
                self._pause(min(0.2 * 2 ** (attempt - 1) + _JITTER_S, 2.0) if wait is True else wait)
        raise AssertionError("unreachable")  # pragma: no cover

    def user_id(self) -> str:
        """See `Cloud.user_id`."""
        if not self._token:
            self._log_in()
        return self._user

    def project_id(self) -> str:
        """See `Cloud.project_id`."""
        if not self._token:
            self._log_in()
        return self._project

    def has(self, service: str) -> bool:
        """See `Cloud.has`."""
        if not self._token:
            self._log_in()
        return service in self._catalogue

    def endpoint(self, service: str) -> str:
        """See `Cloud.endpoint`."""
        return f"http://{service}.invalid"

    def _once(self, call: Call) -> Answer:
        """Logged in; once more with a new login when the answer is 401, unless another call has met that already."""
        answer = self._logged_in(call)
        if answer.status != _UNAUTHORIZED or not self._token:
            return answer
        self._token = ""
        return self._logged_in(call)

    def _logged_in(self, call: Call) -> Answer:
        if not self._token:
            self._log_in()
        answer = self._carried(
            Call(
                service=call.service,
                method=call.method,
                path=call.path,
                query=call.query,
                headers={**call.headers, "x-auth-token": self._token},
                body=call.body,
            )
        )
        self._set_clock(call.service, answer.headers.get("Date", ""))
        return answer

    def _carried(self, call: Call) -> Answer:
        try:
            return self._wire(call)
        except NoAnswer as error:
            raise ServiceUnavailable(f"{call} got no usable answer", seen=str(error), next_step="") from error

    def _log_in(self) -> None:
        settings = self._settings
        if settings.application_credential_id:
            kind = "application_credential"
            secret = settings.application_credential_secret.get_secret_value()
            about: dict[str, Any] = {"id": settings.application_credential_id, "secret": secret}
        else:
            kind = "password"
            about = {"user": {"name": settings.username, "password": settings.password.get_secret_value()}}
        body = {"auth": {"identity": {"methods": [kind], kind: about}}}
        answer = self._carried(Call(service="identity", method="POST", path="/v3/auth/tokens", body=body))
        if answer.status >= _SERVER_ERROR:
            raise ServiceUnavailable("the login got no usable answer", seen=str(answer.status), next_step="")
        if answer.status in {401, 403, 404}:
            raise AccessDenied("Keystone refused our login", seen=words_of(answer.body), next_step="")
        if answer.status >= _ERROR:
            raise error_for(answer.status, "login", words_of(answer.body))
        self._token = answer.headers["X-Subject-Token"]
        told = answer.body["token"]
        self._user, self._project = str(told["user"]["id"]), str(told["project"]["id"])
        self._catalogue = frozenset(str(each["type"]) for each in told["catalog"])


class LightS3:
    """What `ObjectStore` needs of a boto3 client, as botocore would make it behave.

    Args:
        send: Carries calls.
        pause: Lets the world's time pass between tries.
    """

    def __init__(self, send: Send, pause: Pause) -> None:
        self._send = send
        self._pause = pause

    def put_object(self, *, Bucket: str, Key: str, Body: bytes, **conditions: str) -> dict[str, Any]:  # noqa: N803 - boto3's names
        """Store; 412 when a condition does not hold."""
        headers = {_HEADERS[name]: value for name, value in conditions.items()}
        answer = self._call("PutObject", "PUT", f"/{Bucket}/{Key}", headers=headers, body=Body)
        return {"ETag": answer.headers["ETag"]}

    def get_object(self, *, Bucket: str, Key: str) -> dict[str, Any]:  # noqa: N803 - boto3's names
        """Fetch; 404 when it is not there."""
        answer = self._call("GetObject", "GET", f"/{Bucket}/{Key}")
        return {"Body": io.BytesIO(answer.body), "ETag": answer.headers["ETag"]}

    def delete_object(self, *, Bucket: str, Key: str) -> dict[str, Any]:  # noqa: N803 - boto3's names
        """Remove; what is not there is fine."""
        self._call("DeleteObject", "DELETE", f"/{Bucket}/{Key}")
        return {}

    def get_paginator(self, operation: str) -> LightS3:
        """Of ``list_objects_v2``."""
        if operation != "list_objects_v2":
            raise NotImplementedError(operation)
        return self

    def paginate(self, *, Bucket: str, Prefix: str, Delimiter: str = "") -> Iterator[dict[str, Any]]:  # noqa: N803 - boto3's names
        """One page."""
        query = {"list-type": "2", "prefix": Prefix, "encoding-type": "url"}
        if Delimiter:
            query["delimiter"] = quote(Delimiter, safe="/")
        found: Listing = self._call("ListObjectsV2", "GET", f"/{Bucket}", query=query).body
        contents = [{"Key": item.key, "Size": item.size, "ETag": f'"{item.etag}"'} for item in found.objects]
        yield {"Contents": contents, "CommonPrefixes": [{"Prefix": name} for name in found.folders]}

    def _call(
        self,
        operation: str,
        method: str,
        path: str,
        *,
        headers: Mapping[str, str] | None = None,
        query: Mapping[str, str] | None = None,
        body: bytes | None = None,
    ) -> Answer:
        call = Call(service="s3", method=method, path=path, query=query or {}, headers=headers or {}, body=body)
        for attempt in range(1, _S3_TRIES + 1):
            last = attempt == _S3_TRIES
            try:
                answer = self._send(call)
            except NoAnswer as error:
                if last:
                    raise ReadTimeoutError(endpoint_url=path, error=error) from error
            else:
                if answer.status < _ERROR:
                    return answer
                if last or answer.status not in _S3_AGAIN:
                    raise _refusal(operation, answer)
            self._pause(0.5 * min(2 ** (attempt - 1), 20))
        raise AssertionError("unreachable")  # pragma: no cover


_HEADERS: Final = {"IfNoneMatch": "if-none-match", "IfMatch": "if-match"}


def _refusal(operation: str, answer: Answer) -> ClientError:
    body = answer.body
    code = body.code if isinstance(body, S3Failure) else str(answer.status)
    about: Any = {"Error": {"Code": code}, "ResponseMetadata": {"HTTPStatusCode": answer.status}}
    return ClientError(about, operation)
