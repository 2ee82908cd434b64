"""The files below /etc of a machine."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

_HERE = Path(__file__).parent
_PATH = "/opt/image/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def files(hostname: str, neighbours: Mapping[str, str]) -> dict[str, str]:
    """By path. Names are resolved from /etc/hosts only (`neighbours`: name to address): there is no DNS to be slow."""
    return {
        "/etc/hostname": f"{hostname}\n",
        "/etc/hosts": "\n".join(["127.0.0.1 localhost", *(f"{a} {name}" for name, a in neighbours.items()), ""]),
        "/etc/resolv.conf": "options timeout:1 attempts:1\n",
        "/etc/nsswitch.conf": "passwd: files\ngroup: files\nshadow: files\nhosts: files\n",
        "/etc/passwd": (
            "root:x:0:0:root:/root:/bin/bash\nsshd:x:100:65534::/run/sshd:/usr/sbin/nologin\n"
            "nobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n"
        ),
        "/etc/group": "root:x:0:\ntty:x:5:\nnogroup:x:65534:\n",
        "/etc/shadow": "root:*:19000:0:99999:7:::\nsshd:!:19000::::::\nnobody:!:19000::::::\n",
        "/etc/profile": f"export PATH={_PATH}\n",
        "/etc/ssh/sshd_config": (_HERE / "sshd_config").read_text(),
    }
