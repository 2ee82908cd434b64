"""Ports and subnet are chosen once; a taken one is named with its holder. Sockets are bound, never connected."""

from __future__ import annotations

import ipaddress
import json
import os
import socket
from pathlib import Path

import pytest

from mlops_sdk.errors import StackError
from mlops_sdk.local import secrets
from mlops_sdk.local.addresses import LOOPBACK, check_free, choose_or_load
from mlops_sdk.local.holders import holder_of
from mlops_sdk.local.layout import Layout


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    return Layout.at(tmp_path)


def test_addresses_are_chosen_once(layout: Layout) -> None:
    first = choose_or_load(layout)
    assert choose_or_load(layout) == first
    assert len({*first.ports().values(), first.osd_first}) == len(first.ports()) + 1
    assert first.gateway == str(ipaddress.ip_network(first.subnet)[1])


def test_ports_are_not_ephemeral_ones(layout: Layout) -> None:
    lowest_ephemeral = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    assert max(choose_or_load(layout).ports().values()) < lowest_ephemeral


def test_damaged_ports_are_named(layout: Layout) -> None:
    layout.ports_json.write_text("{}")
    with pytest.raises(StackError, match=r"ports\.json"):
        choose_or_load(layout)


def test_a_taken_port_names_its_holder(layout: Layout) -> None:
    addresses = choose_or_load(layout)
    check_free(addresses)
    with socket.create_server((LOOPBACK, addresses.rgw)), pytest.raises(StackError) as caught:
        check_free(addresses)
    assert str(addresses.rgw) in caught.value.what
    assert f"process {os.getpid()} (" in caught.value.seen


def test_a_holder_that_cannot_be_found_is_said_so() -> None:
    assert holder_of(1) == "a process that this user may not see"


def test_a_directory_of_an_earlier_version_keeps_its_ports_and_gets_the_new_one(layout: Layout) -> None:
    chosen = choose_or_load(layout)
    earlier = {name: value for name, value in json.loads(layout.ports_json.read_text()).items() if name != "airflow"}
    layout.ports_json.write_text(json.dumps(earlier))
    assert choose_or_load(layout) == chosen


def test_secrets_that_are_new_are_chosen_once(layout: Layout) -> None:
    chosen = secrets.choose_or_load(layout)
    earlier = {name: value for name, value in json.loads(layout.secrets_json.read_text()).items() if name != "webhook"}
    layout.secrets_json.write_text(json.dumps(earlier))
    again = secrets.choose_or_load(layout)
    assert (again.keystone_admin, again.webhook != chosen.webhook) == (chosen.keystone_admin, True)
    assert secrets.choose_or_load(layout) == again
