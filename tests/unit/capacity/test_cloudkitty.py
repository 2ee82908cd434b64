"""Our prices in CloudKitty: the rules that are made, changed and left alone, against its API in memory."""

from __future__ import annotations

import pytest

from mlops_sdk.capacity.cloudkitty import SERVICE, CloudKitty
from mlops_sdk.errors import RemoteError
from mlops_sdk.testing.rating import FakeRating, check_rating

HASHMAP = "/v1/rating/module_config/hashmap"


def test_the_fake_fulfils_the_contract():
    check_rating(FakeRating())


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
