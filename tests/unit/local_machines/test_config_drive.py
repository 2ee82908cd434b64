"""A config drive as Nova makes it for a whole machine, read as the machine reads it."""

import json
import subprocess
from pathlib import Path
from typing import Any

from mlops_sdk.local.layout import Tools

READ = """
import json, pathlib, sys
sys.path.insert(0, sys.argv[1])
import configdrive
drive = configdrive.read(pathlib.Path(sys.argv[2]))
print(json.dumps([drive.hostname, drive.run_key, drive.address, drive.user_data]))
"""
USER_DATA = {"hostname": "trainer", "ssh_authorized_keys": ["ssh-ed25519 AAAA"]}


def drive(folder: Path, files: dict[str, Any]) -> list[Any]:
    """Made by the program that stands for genisoimage, with the arguments that Nova gives it."""
    tools = Tools.find()
    for version in ("latest", "2018-08-27"):
        inside = folder / "tree" / "openstack" / version
        inside.mkdir(parents=True)
        for name, content in files.items():
            (inside / name).write_text(content if isinstance(content, str) else json.dumps(content))
    options = ["-ldots", "-allow-lowercase", "-allow-multidot", "-l", "-publisher", "OpenStack:Nova:34", "-quiet"]
    options += ["-J", "-r", "-V", "config-2"]
    image, program = folder / "drive.iso", str(tools.infra("openstack", "mkisofs.py"))
    python = str(tools.openstack_python)
    made = [python, program, "-o", str(image), *options, str(folder / "tree")]
    subprocess.run(made, check=True)
    farm = str(tools.infra("farm"))
    read = subprocess.run([python, "-c", READ, farm, str(image)], check=True, capture_output=True, text=True)
    return json.loads(read.stdout)


def test_a_machine_takes_run_address_and_keys_from_the_drive_that_nova_made(tmp_path: Path):
    networks = [
        {"id": "network0", "type": "ipv6", "ip_address": "fd00::7"},
        {"id": "network1", "type": "ipv4", "ip_address": "10.77.3.107"},
    ]
    read = drive(
        tmp_path,
        {
            "meta_data.json": {"hostname": "ml-a-g1-0", "meta": {"mlops.run_id": "run-1"}},
            "network_data.json": {"networks": networks, "links": [], "services": []},
            "user_data": f"#cloud-config\n{json.dumps(USER_DATA)}",
        },
    )
    assert read == ["trainer", "run-1", "10.77.3.107", USER_DATA]


def test_without_an_address_on_the_drive_a_machine_keeps_its_own(tmp_path: Path):
    meta_data = {"hostname": "gpu-01", "mlops": {"run_key": "k"}}
    read = drive(tmp_path, {"meta_data.json": meta_data, "user_data": "#cloud-config\n{}"})
    assert read == ["gpu-01", "k", "", {}]
