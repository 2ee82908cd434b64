"""The receiver: an ASGI application that authenticates an event, stores it and answers 202. It starts nothing itself.

In this order: method, size, body, signature, form, inbox. Nothing of a body that is not authenticated is parsed, and
no body, signature or secret is ever logged. Airflow puts no authentication in front of what a plugin mounts.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, MutableMapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from mlops_sdk.errors import BadSignature, Malformed, MlopsError, ServiceUnavailable, TooLarge
from mlops_sdk.webhooks.config import WebhookSettings
from mlops_sdk.webhooks.entry import Arrival
from mlops_sdk.webhooks.event import PING, PUSH, parse_headers, parse_push, parse_repository
from mlops_sdk.webhooks.inbox import Inbox
from mlops_sdk.webhooks.routing import Ignored, Route, key_of, key_of_other, why_ignored
from mlops_sdk.webhooks.verify import HEADER, verify

if TYPE_CHECKING:
    from fastapi import FastAPI, Request

PREFIX: Final = "/webhooks"
PATH: Final = "/github"
_LOG = logging.getLogger(__name__)

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

STATUS: Final[Mapping[type[MlopsError], int]] = {
    Malformed: 400,
    BadSignature: 401,
    TooLarge: 413,
    ServiceUnavailable: 503,
}
_ACCEPTED: Final = 202
_TOO_SLOW: Final = 408
_UNREAD: Final = frozenset({_TOO_SLOW, STATUS[TooLarge], STATUS[ServiceUnavailable]})
_DISCARDED_BYTES: Final = 64 * 1024 * 1024
_DISCARDED_S: Final = 1.0
_OUR_FAULT: Final = 500


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What the sender is told."""

    status: int
    content: Mapping[str, Any]


class Receiver:
    """The work behind the HTTP border.

    Args:
        settings: Secrets, size, routes.
        inbox: Where events are kept.
    """

    def __init__(self, settings: WebhookSettings, inbox: Inbox) -> None:
        self._secrets = settings.live_secrets()
        self._routes = settings.routes
        self._inbox = inbox

    def accept(self, body: bytes, headers: Mapping[str, str]) -> Answer:
        """Authenticate, parse and store one delivery. Blocks on the database.

        Raises:
            BadSignature, Malformed, ServiceUnavailable: it was not stored.
        """
        verify(body, headers.get(HEADER.lower(), ""), self._secrets)
        given = parse_headers(
            headers.get("x-github-event", ""), headers.get("x-github-delivery", ""), headers.get("content-type", "")
        )
        if given.event == PING:
            return Answer(status=200, content={"state": "pong"})
        arrival = arrival_of(given.event, given.delivery, body, self._routes)
        stored = self._inbox.store(arrival)
        content = {"key": arrival.key, "state": stored.state.value, "duplicate": stored.duplicate}
        if arrival.ignored:
            content["reason"] = arrival.ignored
        _LOG.info(
            "webhook: %s %s %s: %s%s",
            arrival.event,
            arrival.repository,
            arrival.key[:12],
            stored.state.value,
            ", a duplicate" if stored.duplicate else "",
        )
        return Answer(status=_ACCEPTED, content=content)


def arrival_of(event: str, delivery: str, body: bytes, routes: Mapping[str, Route]) -> Arrival:
    """An authenticated delivery as the inbox keeps it: every event is recorded, pushes to a routed ref start a run.

    Raises:
        Malformed: the body is not such an event.
    """
    if event != PUSH:
        return Arrival(
            key=key_of_other(event, body),
            event=event,
            delivery=delivery,
            repository=parse_repository(body),
            ignored=Ignored.OTHER_EVENT.value,
        )
    push = parse_push(body)
    return Arrival(
        key=key_of(push),
        event=event,
        delivery=delivery,
        repository=push.repository,
        ref=push.ref,
        after=push.after,
        ignored=why_ignored(push, routes) or "",
    )


async def read_capped(chunks: AsyncIterator[bytes], declared: str, max_bytes: int) -> bytes:
    """A body of at most `max_bytes`; what its sender declared is looked at before anything is read.

    Raises:
        TooLarge: declared larger, or larger than declared.
        Malformed: the declared length is no number.
    """
    if declared and not (declared.isascii() and declared.isdigit()):
        raise Malformed("the header Content-Length is not a number", next_step="send a correct one")
    if declared and int(declared) > max_bytes:
        raise _too_large(max_bytes)
    body = bytearray()
    async for chunk in chunks:
        body += chunk
        if len(body) > max_bytes:
            raise _too_large(max_bytes)
    return bytes(body)


async def discard(receive: Receive) -> None:
    """Let a sender finish what it is sending, within limits: one that is cut off never sees its answer."""
    left = _DISCARDED_BYTES
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_DISCARDED_S):
            while left > 0:
                message = await receive()
                left -= len(message.get("body", b""))
                if message["type"] != "http.request" or not message.get("more_body", False):
                    return


def create_app(load: Callable[[], WebhookSettings] = WebhookSettings.load) -> FastAPI:
    """The application: ``POST /github`` below wherever it is mounted.

    Settings are read and the inbox is opened at the first delivery, in the process that serves it; while the settings
    are missing or wrong every delivery is answered with 503 and the log says why.
    """
    from fastapi import FastAPI, Request  # noqa: PLC0415 - an extra; Airflow brings it
    from fastapi.responses import JSONResponse  # noqa: PLC0415 - as above

    app = FastAPI(title="MLOps webhooks", docs_url=None, redoc_url=None, openapi_url=None)
    opened: list[tuple[Receiver, WebhookSettings]] = []

    def ready() -> tuple[Receiver, WebhookSettings]:
        if not opened:
            settings = load()
            opened.append((Receiver(settings, Inbox(settings.inbox_url.get_secret_value())), settings))
        return opened[0]

    class Refusal(JSONResponse):
        """An answer to a body that was not read to its end."""

        async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
            del scope
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            await send({"type": "http.response.body", "body": self.body, "more_body": True})
            await discard(receive)
            await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def receive(request: Request) -> JSONResponse:
        answer = await _answer(request, ready)
        if answer.status in _UNREAD:
            return Refusal(dict(answer.content), status_code=answer.status, headers={"Connection": "close"})
        return JSONResponse(dict(answer.content), status_code=answer.status)

    # The annotation is a name inside this function, which FastAPI cannot resolve from a string.
    receive.__annotations__ = {"request": Request}
    app.add_api_route(PATH, receive, methods=["POST"], response_model=None)
    return app


async def _answer(request: Request, ready: Callable[[], tuple[Receiver, WebhookSettings]]) -> Answer:
    from starlette.requests import ClientDisconnect  # noqa: PLC0415 - an extra

    try:
        receiver, settings = await asyncio.to_thread(ready)
        chunks = request.stream()
        async with asyncio.timeout(settings.read_timeout_s):
            body = await read_capped(chunks, request.headers.get("content-length", ""), settings.max_bytes)
        return await asyncio.to_thread(receiver.accept, body, request.headers)
    except ClientDisconnect:
        return Answer(status=STATUS[Malformed], content={"error": "the body is incomplete"})
    except TimeoutError:
        return Answer(status=_TOO_SLOW, content={"error": "the body took too long to arrive"})
    except (BadSignature, Malformed, TooLarge) as error:
        _LOG.warning("webhook: refused, %s", error)
        return Answer(status=STATUS[type(error)], content={"error": error.what, "seen": error.seen})
    except MlopsError as error:
        _LOG.error("webhook: not stored, %s", error)
        return Answer(status=STATUS[ServiceUnavailable], content={"error": "the event cannot be stored now"})
    except Exception as error:  # noqa: BLE001 - the border: whatever it is, the sender gets no traceback
        _LOG.error("webhook: defect, %s", type(error).__name__)  # no message: it might quote the body
        return Answer(status=_OUR_FAULT, content={"error": "internal error"})


class LazyReceiver:
    """An ASGI application that builds the real one at its first request.

    Airflow imports plugins in every one of its processes; only the api-server serves requests.
    """

    def __init__(self, build: Callable[[], Any] = create_app) -> None:
        self._build = build
        self._app: Any = None

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if self._app is None:
            self._app = self._build()
        await self._app(scope, receive, send)


def _too_large(max_bytes: int) -> TooLarge:
    return TooLarge(f"the body has more than {max_bytes} bytes", next_step="raise max_bytes, or send less")
