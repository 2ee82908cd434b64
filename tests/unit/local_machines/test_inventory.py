from __future__ import annotations

import json

from mlops_sdk.local.inventory import farm_config, metal_inventory, reference_inventory

SUBNET = "10.77.3.0/24"


def test_it_follows_from_the_subnet_alone() -> None:
    assert reference_inventory(SUBNET) == reference_inventory(SUBNET)
    assert [m.address for m in reference_inventory(SUBNET).machines] == [f"10.77.3.{n}" for n in (11, 12, 13, 14)]


def test_a_machine_has_what_an_h200_server_has() -> None:
    for machine in reference_inventory(SUBNET).machines:
        assert [(gpu.vendor_id, gpu.device_id) for gpu in machine.gpus] == [("10de", "2335")] * 8
        assert [(port.kind, port.gbps) for port in machine.infiniband] == [("InfiniBand", 400)] * 8
        assert [(port.kind, port.gbps) for port in machine.ethernet] == [("Ethernet", 200)] * 2
        assert len(machine.drives) == 8
        assert len(machine.processors) == 2
        assert machine.memory_gib == 2048


def test_two_machines_share_a_leaf_and_no_port_is_used_twice() -> None:
    machines = reference_inventory(SUBNET).machines

    assert [m.leaf for m in machines] == ["leaf-01", "leaf-01", "leaf-02", "leaf-02"]
    assert [m.position for m in machines] == [1, 9, 1, 9]
    assert all(m.position == m.infiniband[0].switch_port for m in machines)
    assert all(port.switch == m.leaf for m in machines for port in m.infiniband)
    cabled = [(port.switch, port.switch_port) for m in machines for port in (*m.infiniband, *m.ethernet)]
    assert len(set(cabled)) == len(cabled)


def test_identities_are_unique() -> None:
    machines = reference_inventory(SUBNET).machines
    macs = [port.mac for m in machines for port in (*m.infiniband, *m.ethernet)]

    assert len(set(macs)) == len(macs) == 40
    assert len({m.system_uuid for m in machines}) == 4
    assert len({m.serial for m in machines}) == 4
    assert all(port.client_id for m in machines for port in m.infiniband)


def test_what_nova_leases_is_beside_the_others_and_of_a_class_and_shard_of_its_own() -> None:
    ours, of_nova = reference_inventory(SUBNET), metal_inventory(SUBNET)
    machines = [*ours.machines, *of_nova.machines]
    macs = [port.mac for m in machines for port in (*m.infiniband, *m.ethernet)]

    assert len(set(macs)) == len(macs) == 60
    for of_each in ({m.name for m in machines}, {m.system_uuid for m in machines}, {m.address for m in machines}):
        assert len(of_each) == 6
    assert ours.resource_class != of_nova.resource_class
    assert (ours.shard, of_nova.shard) == ("", "nova")
    assert set(of_nova.unowned) < {m.name for m in of_nova.machines}


def test_the_farms_configuration_is_json() -> None:
    config = farm_config(
        reference_inventory(SUBNET).machines,
        port=1,
        username="bmc",
        password="secret",
        state_dir="/s",
        image_dir="/i",
        fabric={"pid": 1},
    )

    assert json.loads(json.dumps(config))["machines"][0]["name"] == "gpu-01"
