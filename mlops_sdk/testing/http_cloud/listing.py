"""A page of a list, as Nova, Neutron and Cinder give it; and ids as they look."""

from __future__ import annotations

from typing import Any, Final

from mlops_sdk.testing.http_cloud.messages import Answer, Call

_MOST: Final = 1000
_SPREAD: Final = 2654435761  # Knuth's: ids are no counter, so the oldest is not always the least


def page(kind: str, shown: list[dict[str, Any]], call: Call, *, host: str) -> Answer:
    """What comes after `marker`, at most `limit`, with a link to the rest where there is some."""
    limit, marker = int(call.query.get("limit", _MOST)), call.query.get("marker", "")
    start = next((i + 1 for i, raw in enumerate(shown) if raw["id"] == marker), 0)
    body: dict[str, Any] = {kind: shown[start : start + limit]}
    if start + limit < len(shown):
        last = shown[start + limit - 1]["id"]
        body[f"{kind}_links"] = [{"rel": "next", "href": f"http://{host}{call.path}?limit={limit}&marker={last}"}]
    return Answer(status=200, body=body)


def ident(kind: int, number: int) -> str:
    """The id of the so-manieth thing of a kind."""
    return f"{number * _SPREAD % 2**32:08x}-{kind:04x}-4000-8000-{number:012x}"
