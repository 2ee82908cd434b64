"""boto3 without a network: botocore's requests go to the fake cloud; signing, retries and parsing are its own."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, cast
from unittest import mock
from urllib.parse import parse_qsl, unquote, urlsplit
from xml.sax.saxutils import escape

from botocore.awsrequest import AWSPreparedRequest, AWSResponse
from botocore.compat import HTTPHeaders
from botocore.exceptions import ReadTimeoutError
from botocore.retries import quota, standard

from mlops_sdk.config import S3Settings
from mlops_sdk.objects import connect_s3
from mlops_sdk.testing.http_cloud.messages import Answer, Call, NoAnswer, Send
from mlops_sdk.testing.http_cloud.s3 import Listing, S3Failure

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

_ALL: Final = 10_000  # more than a budget holds
_XML: Final = '<?xml version="1.0" encoding="UTF-8"?>'


def s3_through(settings: S3Settings, send: Send) -> S3Client:
    """A real S3 client whose requests are carried by `send`.

    Example:
        >>> cloud = HttpCloud(time.monotonic)  # doctest: +SKIP
        >>> ObjectStore(s3_through(settings.s3, cloud.deliver), "mlops").put("key", b"body")
    """
    client, _ = s3_to_reuse(settings, send)
    return client


def s3_to_reuse(settings: S3Settings, send: Send) -> tuple[S3Client, Callable[[], None]]:
    """The same, with an even back-off, and what makes it forget how often it has retried: a client is dear to make."""
    budgets: list[quota.RetryQuota] = []

    class Counted(quota.RetryQuota):
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **options)
            budgets.append(self)

    even = functools.partial(standard.ExponentialBackoff, random=lambda: 0.5)
    with mock.patch.object(quota, "RetryQuota", Counted), mock.patch.object(standard, "ExponentialBackoff", even):
        client = connect_s3(settings)

    def carry(request: AWSPreparedRequest, **_: Any) -> AWSResponse:
        try:
            answer = send(_call_of(request))
        except NoAnswer as error:
            raise ReadTimeoutError(endpoint_url=request.url, error=error) from error
        return response_of(request, answer)

    def forget() -> None:
        for budget in budgets:
            budget.release(_ALL)

    # its stubs say that a handler returns nothing; what this event's handlers return is the response
    client.meta.events.register("before-send.s3", cast("Callable[..., None]", carry))
    return client, forget


def _call_of(request: AWSPreparedRequest) -> Call:
    url = urlsplit(request.url)
    headers = {str(name).lower(): _text(value) for name, value in request.headers.items()}
    body: Any = request.body
    if body is not None and not isinstance(body, bytes):
        body = body.encode() if isinstance(body, str) else body.read()
    return Call(
        service="s3",
        method=str(request.method),
        path=unquote(url.path),
        query=dict(parse_qsl(url.query, keep_blank_values=True)),
        headers=headers,
        body=body,
    )


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


class _Body:
    """What botocore reads a response from."""

    def __init__(self, content: bytes) -> None:
        self._content = content

    def read(self, amount: int | None = None) -> bytes:
        del amount
        content, self._content = self._content, b""
        return content

    def stream(self, *_: Any, **__: Any) -> Any:
        if self._content:
            yield self.read()

    def close(self) -> None:
        self._content = b""


def response_of(request: AWSPreparedRequest, answer: Answer) -> AWSResponse:
    """An answer as botocore reads it."""
    content = _rendered(answer) if request.method != "HEAD" else b""
    headers = HTTPHeaders()
    for name, value in {"Content-Length": str(len(content)), **answer.headers}.items():
        headers[name] = value
    return AWSResponse(request.url, answer.status, headers, _Body(content))


def _rendered(answer: Answer) -> bytes:
    body = answer.body
    if isinstance(body, Listing):
        return _listing(body).encode()
    if isinstance(body, S3Failure):
        return f"{_XML}<Error><Code>{body.code}</Code><Message>{escape(body.words)}</Message></Error>".encode()
    return bytes(body or b"")


def _listing(body: Listing) -> str:
    objects = "".join(
        f"<Contents><Key>{escape(item.key)}</Key><ETag>&quot;{item.etag}&quot;</ETag><Size>{item.size}</Size></Contents>"
        for item in body.objects
    )
    folders = "".join(f"<CommonPrefixes><Prefix>{escape(name)}</Prefix></CommonPrefixes>" for name in body.folders)
    return (
        f"{_XML}<ListBucketResult><Name>{body.bucket}</Name><Prefix>{escape(body.prefix)}</Prefix>"
        f"<IsTruncated>false</IsTruncated>{objects}{folders}</ListBucketResult>"
    )
