"""Our prices in CloudKitty: the rules that are made, changed and left alone, against its API in memory."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from mlops_sdk.capacity.cloudkitty import SERVICE, CloudKitty
from mlops_sdk.cloud import Cloud, Reply
from mlops_sdk.config import KeystoneSettings
from mlops_sdk.errors import RemoteError
from mlops_sdk.testing.rating import FakeRating, check_rating

HASHMAP = "/v1/rating/module_config/hashmap"
RECORDED = json.loads((Path(__file__).parent / "files" / "cloudkitty-25.json").read_text())  # its source is in it
UUID = re.compile("[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


def test_the_fake_fulfils_the_contract():
    check_rating(FakeRating())


class Recorded(Cloud):
    """CloudKitty as it was: the same requests, in the same order, get the same replies."""

    def __init__(self) -> None:
        super().__init__(KeystoneSettings(auth_url="http://keystone.invalid/v3"))
        self.left = list(RECORDED["exchanges"])

    def request(self, service, method, path, *, body=None, params=None, headers=None, accept=(), attempts=0) -> Reply:
        exchange = self.left.pop(0)
        asked = {"method": method, "path": path, "params": dict(params or {}), "body": body}
        assert asked == {key: exchange[key] for key in asked}
        assert exchange["status"] < 400 or exchange["status"] in accept
        return Reply(status=exchange["status"], body=exchange["reply"] or {})


def test_the_real_ones_recorded_replies_fulfil_the_contract():
    cloud = Recorded()
    check_rating(cloud)
    assert cloud.left == []


def test_the_fake_answers_what_the_real_one_answered():
    fake = FakeRating()
    ids: dict[str, str] = {}  # the real one's, as the fake chose them
    for exchange in RECORDED["exchanges"]:
        asked = translated({key: exchange[key] for key in ("path", "params", "body")}, ids)
        seen = fake.request("rating", exchange["method"], asked["path"], body=asked["body"], params=asked["params"])
        assert seen.status == exchange["status"], exchange
        if exchange["reply"]:
            ids |= dict(zip(found_ids(told(seen.body, exchange["reply"])), found_ids(seen.body), strict=True))
            assert same(seen.body, translated(exchange["reply"], ids))


def translated(value: Any, ids: dict[str, str]) -> Any:
    return json.loads(UUID.sub(lambda match: ids.get(match[0], match[0]), json.dumps(value)))


def told(mine: Any, theirs: Any) -> Any:
    """What the real one said of what the fake says."""
    if isinstance(mine, dict):
        return {key: told(value, theirs[key]) for key, value in mine.items()}
    if isinstance(mine, list):
        return [told(one, other) for one, other in zip(mine, theirs, strict=True)]
    return theirs


def found_ids(body: Any) -> list[str]:
    return [match[0] for match in UUID.finditer(json.dumps(body))]


def same(mine: Any, theirs: Any) -> bool:
    """Whether the fake says the same, as far as it says anything; decimals are text with more or fewer digits."""
    if isinstance(mine, dict):
        return all(key in theirs and same(value, theirs[key]) for key, value in mine.items())
    if isinstance(mine, list):
        return len(mine) == len(theirs) and all(map(same, mine, theirs))
    if isinstance(mine, str) and re.fullmatch(r"[0-9.]+", mine):
        return float(mine) == float(theirs)
    return mine == theirs


def test_the_module_is_switched_on_once_and_rules_of_others_stay():
    cloud = FakeRating()
    theirs = cloud.request("rating", "POST", f"{HASHMAP}/services", body={"name": "image.size"}).body["service_id"]
    field = cloud.request("rating", "POST", f"{HASHMAP}/fields", body={"name": "resource_class", "service_id": theirs})
    rule = {"field_id": field.body["field_id"], "value": "gpu.a", "type": "flat", "cost": "7"}
    cloud.request("rating", "POST", f"{HASHMAP}/mappings", body=rule)
    rating = CloudKitty(cloud)
    rating.publish({"gpu.a": 1.0})
    rating.publish({})
    assert cloud.enabled
    assert [float(item["cost"]) for item in cloud.items["mappings"]] == [7.0]
    assert cloud.calls.count(("PUT", "/v1/rating/modules/hashmap")) == 1


def test_whoever_loses_the_race_for_the_service_uses_the_winners(monkeypatch):
    cloud = FakeRating()
    answer = cloud.request
    first = True

    def late(service, method, path, **rest):
        nonlocal first
        if first and (method, path) == ("POST", f"{HASHMAP}/services"):
            first = False
            answer(service, method, path, body={"name": SERVICE})
        return answer(service, method, path, **rest)

    monkeypatch.setattr(cloud, "request", late)
    CloudKitty(cloud).publish({"gpu.a": 1.0})
    assert len(cloud.items["services"]) == 1


def test_a_cloud_without_a_rating_service_says_so(monkeypatch):
    cloud = FakeRating()
    monkeypatch.setattr("mlops_sdk.capacity.cloudkitty._RATING", "metering")
    with pytest.raises(RemoteError, match="no public endpoint"):
        CloudKitty(cloud).publish({"gpu.a": 1.0})
