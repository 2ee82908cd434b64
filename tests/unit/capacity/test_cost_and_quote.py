"""What machines cost, and what they would."""

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlops_sdk.capacity.cost import Interval, node_seconds, price_of
from mlops_sdk.capacity.lease import LeaseRequest
from mlops_sdk.capacity.providers.ironic_view import Allocation, Machine, supply_of
from mlops_sdk.capacity.quote import priced

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
