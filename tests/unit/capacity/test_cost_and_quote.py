"""What machines cost, and what they would."""

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlops_sdk.capacity.cost import Interval, node_seconds, price_of
from mlops_sdk.capacity.lease import LeaseRequest
from mlops_sdk.capacity.providers.ironic_api import IronicApi
from mlops_sdk.capacity.providers.ironic_view import Allocation, Machine, supply_of
from mlops_sdk.capacity.quote import priced
from mlops_sdk.cloud import Cloud, Reply
from mlops_sdk.testing.settings import fake_settings

NOW = datetime(2026, 5, 1, tzinfo=UTC)


def interval(start: float, end: float, node: str = "a", kind: str = "gpu") -> Interval:
    return Interval(
        node_id=node,
        resource_class=kind,
        start=NOW + timedelta(seconds=start),
        end=NOW + timedelta(seconds=end),
    )


def test_machines_add_up_and_classes_have_their_price():
    held = [interval(0, 100), interval(0, 50, "b"), interval(0, 10, "c", "cpu")]
    assert node_seconds(held) == 160
    assert price_of(held, {"gpu": 0.5}) == 75


def test_the_same_time_of_one_machine_is_paid_once():
    assert node_seconds([interval(0, 100), interval(0, 100), interval(50, 120)]) == 120
    assert node_seconds([interval(10, 5)]) == 0


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(0, 50)), max_size=8))
def test_node_seconds_are_the_seconds_that_some_interval_covers(pairs):
    expected = len({s for start, end in pairs for s in range(start, end)})
    assert node_seconds([interval(start, end) for start, end in pairs]) == pytest.approx(expected)


def test_a_quote_counts_what_could_be_had_now():
    def machine(name: str, state: str = "available", **changes: object) -> Machine:
        values = {"power_state": "power off", "resource_class": "gpu", "traits": ("T",), **changes}
        return Machine(id=name, name=name, provision_state=state, **values)

    machines = [
        machine("free"),
        machine("taken", "active", allocation_id="x"),
        machine("allocated", allocation_id="y"),
        machine("cleaning", "cleaning"),
        machine("broken", "clean failed", maintenance=True),
        machine("unknown power", power_state=""),
        machine("other class", resource_class="cpu"),
        machine("lacks the trait", traits=()),
    ]
    request = LeaseRequest(nodes=2, resource_class="gpu", traits=("T",), deadline=NOW + timedelta(seconds=100))
    supply = supply_of(request, machines=machines, allocations=[Allocation(id="1", name="n", state="allocating")])
    answer = priced(request, supply, prices={"gpu": 0.25}, currency="EUR", now=NOW)
    assert (answer.free, answer.busy, answer.out_of_service, answer.waiting) == (1, 3, 2, 1)
    assert answer.total == 50
    assert not answer.available_now
    assert "not now (1 free)" in str(answer)


def test_a_quote_says_how_long_ago_its_machines_were_seen_in_order_and_where_they_are():
    def machine(name: str, hours: float, partition: str, **changes: object) -> Machine:
        values = {"power_state": "power off", "resource_class": "gpu", **changes}
        return Machine(
            id=name,
            name=name,
            provision_state="available",
            checked_at=NOW - timedelta(hours=hours),
            extra={"topology": {"partition": partition}},
            **values,
        )

    machines = [
        machine("one", 1, "0x8001"),
        machine("two", 30, "0x8001"),
        machine("three", 3, "0x8002"),
        machine("taken", 900, "0x8003", allocation_id="x"),
    ]
    request = LeaseRequest(nodes=2, resource_class="gpu", deadline=NOW + timedelta(hours=1))
    answer = priced(request, supply_of(request, machines=machines, allocations=[]), prices={}, currency="EUR", now=NOW)
    assert "last seen in order at most 30 h ago; in partition 0x8001 (2), 0x8002 (1)" in str(answer)
    assert answer.to_json()["checked_at"] == (NOW - timedelta(hours=30)).isoformat()
    assert answer.to_json()["partitions"] == {"0x8001": 2, "0x8002": 1}


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        ({"provision_state": "available", "provision_updated_at": "2026-05-01T10:00:00+00:00"}, 10),
        ({"provision_state": "active", "provision_updated_at": "2026-05-01T10:00:00+00:00"}, None),
        ({"provision_state": "active", "inspection_finished_at": "2026-05-01T08:00:00+00:00"}, 8),
        (
            {
                "provision_state": "available",
                "inspection_finished_at": "2026-05-01T12:00:00+00:00",
                "provision_updated_at": "2026-05-01T10:00:00+00:00",
            },
            12,
        ),
    ],
)
def test_a_machine_was_in_order_when_it_was_inspected_or_became_available(raw, expected):
    class OneMachine(Cloud):
        def request(self, *_args: object, **_kwargs: object) -> Reply:
            return Reply(status=200, body={"uuid": "1", **raw})

    found = IronicApi(OneMachine(fake_settings().keystone)).get_machine("1")
    assert found is not None
    assert (found.checked_at.hour if found.checked_at else None) == expected
