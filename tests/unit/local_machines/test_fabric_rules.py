"""Who may talk to whom, as decided before the kernel is asked. (What the kernel does: tests/integration/machines.)"""

from __future__ import annotations

import ipaddress
from types import ModuleType

from mlops_sdk.local.network import StaticHost, ruleset


def test_peers_are_the_machines_of_one_run(farm_fabric: ModuleType) -> None:
    def plug(name: str, address: str, run_key: str):
        return farm_fabric.Plug(name=name, mac="02:00:00:00:00:01", address=address, run_key=run_key)

    plugs = [plug("a", "10.0.0.1", "r1"), plug("b", "10.0.0.2", "r1"), plug("c", "10.0.0.3", "r2")]

    assert farm_fabric.peer_pairs(plugs) == [("10.0.0.1", "10.0.0.2"), ("10.0.0.2", "10.0.0.1")]


def test_machines_without_a_run_have_no_peers(farm_fabric: ModuleType) -> None:
    plugs = [farm_fabric.Plug(name=n, mac="02:00:00:00:00:01", address=n, run_key="") for n in ("a", "b")]

    assert farm_fabric.peer_pairs(plugs) == []


def test_the_firewall_drops_by_default_and_publishes_the_named_ports() -> None:
    rules = ruleset(ipaddress.IPv4Network("10.77.3.0/24"), [5000, 7480])

    assert "policy drop" in rules
    assert "ip daddr 10.77.3.1 tcp dport { 5000, 7480 } accept" in rules
    assert "ip saddr 10.77.3.1 tcp dport 22 accept" in rules


def test_a_static_host_serves_the_stack_on_its_own_port_only() -> None:
    host = StaticHost(name="serve-1", mac="02:00:00:00:00:01", address="10.77.3.200", serves=8000)
    rules = ruleset(ipaddress.IPv4Network("10.77.3.0/24"), [7480], [host])
    known = 'iifname "serve-1" ether saddr 02:00:00:00:00:01'
    assert f"ether type ip {known} ip saddr 10.77.3.200 goto from_machine" in rules
    assert f"ether type arp {known} arp saddr ip 10.77.3.200 goto arp_from_machine" in rules
    assert "ip saddr 10.77.3.1 ip daddr 10.77.3.200 tcp dport 8000 accept" in rules
    assert "ip saddr 10.77.3.200 ip daddr 10.77.3.1 tcp sport 8000" in rules
    assert "8000" not in ruleset(ipaddress.IPv4Network("10.77.3.0/24"), [7480])
