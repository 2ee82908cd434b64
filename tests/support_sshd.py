"""A real SSH daemon with a file system and processes of its own, and an account `pool` that only leases use."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from mlops_sdk.config import StaticHost
from mlops_sdk.identity.ssh_keys import SshKey
from support import eventually

CLASS = "gpu.static"
_UID = 4242

# $1: the root of the machine, $2: port, $3: its image or "", $4: the Python that was made from. It sees its own
# processes and nothing of this machine that it could change.
_BOOT = r"""
set -eu
cd "$1"
hostname "$(cat etc/hostname)"
mount --make-rprivate /
mount --bind /usr usr && mount -o remount,bind,ro usr
mount --rbind /dev dev
mount -t proc proc proc
if [ -n "$3" ]; then
  mount -t sysfs -o ro sysfs sys
  mkdir -p "opt/image" ".$4"
  mount --bind "$3" opt/image && mount -o remount,bind,ro opt/image
  mount --bind "$4" ".$4" && mount -o remount,bind,ro ".$4"
fi
exec chroot . /usr/sbin/sshd -D -e -f /etc/ssh/sshd_config -p "$2"
"""


def new_key() -> SshKey:
    """A key of nobody in particular."""
    key = Ed25519PrivateKey.generate()
    return SshKey(
        private=key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption()).decode(),
        public=key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode(),
    )


@dataclass(slots=True, kw_only=True)
class SshdHost:
    """A running one."""

    name: str
    root: Path
    port: int
    host_key: SshKey
    login: SshKey
    address: str = "127.0.0.1"
    image: Path | None = None
    process: subprocess.Popen[bytes] | None = None

    @classmethod
    def start(cls, name: str, folder: Path, login: SshKey, *, address: str = "", image: Path | None = None) -> SshdHost:
        """Boot it; `login` is let in to its account. With an address it has a network of its own: see `plug`.

        An image is a Python environment, read-only at /opt/image.
        """
        if address:
            host = cls(name=name, root=folder, port=22, host_key=new_key(), login=login, address=address, image=image)
        else:
            with socket.socket() as free:
                free.bind(("127.0.0.1", 0))
                port = free.getsockname()[1]
            host = cls(name=name, root=folder, port=port, host_key=new_key(), login=login)
        host._write_files()
        host.boot()
        return host

    def boot(self) -> None:
        """Power on."""
        unshare = ["unshare", "--mount", "--pid", "--uts", "--fork", "--kill-child"]
        if self.own_network:
            unshare.append("--net")
        with (self.root / "sshd.log").open("ab") as log:
            self.process = subprocess.Popen(
                [*unshare, "sh", "-c", _BOOT, "boot", str(self.root), str(self.port), *self._image()],
                stdout=log,
                stderr=log,
            )
        if not self.own_network:
            eventually(self._answers, within_s=10, what=f"{self.name} answers")

    @property
    def own_network(self) -> bool:
        """Whether it has a network of its own."""
        return self.address != "127.0.0.1"

    @property
    def pid(self) -> int:
        """Of its first process."""
        assert self.process is not None
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        eventually(lambda: bool(children.read_text().split()), within_s=5, what=f"{self.name} boots")
        return int(children.read_text().split()[0])

    def stop(self) -> None:
        """Power off: every process on it ends."""
        if self.process is not None:
            self.process.send_signal(signal.SIGKILL)
            self.process.wait()
            self.process = None

    @property
    def settings(self) -> StaticHost:
        """As a deployment names it."""
        return StaticHost(
            name=self.name,
            address=self.address,
            port=self.port,
            user="pool",
            host_public_key=self.host_key.public,
            resource_class=CLASS,
        )

    @property
    def keys(self) -> list[str]:
        """Who may log in."""
        return (self.root / "home/pool/.ssh/authorized_keys").read_text().splitlines()

    @property
    def commands(self) -> list[str]:
        """What runs under its account, beside the daemon's own sessions."""
        found: list[str] = []
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                words = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode().strip()
                if folder.stat().st_uid == _UID and (folder / "root").readlink() == self.root:
                    found.append(words)
            except OSError:
                continue  # it has ended
        return sorted(words for words in found if words and not words.startswith("sshd"))

    def _image(self) -> tuple[str, str]:
        if self.image is None:
            return "", ""
        told = dict(line.split(" = ", 1) for line in (self.image / "pyvenv.cfg").read_text().splitlines())
        return str(self.image.resolve()), str(Path(told["home"]).resolve().parent)

    def _answers(self) -> bool:
        with socket.socket() as connection:
            connection.settimeout(1)
            return connection.connect_ex(("127.0.0.1", self.port)) == 0

    def _write_files(self) -> None:
        root = self.root
        for folder in (
            "usr",
            "dev",
            "proc",
            "sys",
            "etc/ssh",
            "run/sshd",
            "run/mlops",
            "scratch",
            "tmp",
            "root",
            "var/empty",
        ):
            (root / folder).mkdir(parents=True)
        for link in ("bin", "sbin", "lib", "lib64"):
            (root / link).symlink_to(f"usr/{link}")
        (root / "etc/passwd").write_text(
            f"root:x:0:0::/root:/bin/sh\nsshd:x:100:65534::/run/sshd:/usr/sbin/nologin\n"
            f"pool:x:{_UID}:{_UID}::/home/pool:/bin/sh\nnobody:x:65534:65534::/:/usr/sbin/nologin\n"
        )
        (root / "etc/group").write_text(f"root:x:0:\npool:x:{_UID}:\nnogroup:x:65534:\n")
        (root / "etc/shadow").write_text("root:*:19000::::::\npool:*:19000::::::\n")
        (root / "etc/hostname").write_text(f"{self.name}\n")
        (root / "etc/hosts").write_text(f"127.0.0.1 localhost\n{self.address} {self.name}\n")
        (root / "etc/os-release").write_text('PRETTY_NAME="a host of the tests"\n')
        shutil.copy("/etc/ld.so.cache", root / "etc/ld.so.cache")
        (root / "etc/ssh/host_key").write_text(self.host_key.private)
        (root / "etc/ssh/host_key").chmod(0o600)
        (root / "etc/ssh/sshd_config").write_text(
            "ListenAddress 0.0.0.0\nHostKey /etc/ssh/host_key\nUsePAM no\nUseDNS no\nPasswordAuthentication no\n"
            "KbdInteractiveAuthentication no\nMaxStartups 100\nPidFile none\n"
        )
        ssh = root / "home/pool/.ssh"
        ssh.mkdir(parents=True, mode=0o700)
        (ssh / "authorized_keys").write_text(f"{self.login.public}\n")
        for path in (root / "home/pool", ssh, ssh / "authorized_keys", root / "run/mlops"):
            os.chown(path, _UID, _UID)
        root.chmod(0o755)
        for folder in ("scratch", "tmp"):
            (root / folder).chmod(0o1777)


_NET = f"198.18.{os.getpid() % 250}"  # of the network for benchmarks; two test processes use two


@contextmanager
def behind_a_gateway(folder: Path, *, image: Path | None = None) -> Generator[tuple[SshdHost, SshdHost]]:
    """A gateway and a node: this machine has a cable to the gateway, and the gateway one to the node.

    Neither forwards packets. The node has no route but to the gateway's end of its cable, and this machine sends
    nothing to the node: not even to a network of its own that would take it.
    """
    login = new_key()
    started: list[SshdHost] = []
    try:
        for name, address, on in (("gateway", f"{_NET}.2", None), ("node", f"{_NET}.6", image)):
            (folder / name).mkdir()
            started.append(SshdHost.start(name, folder / name, login, address=address, image=on))
        gateway, node = started
        plug(gateway, gateway.address, into=None, peer=f"{_NET}.1")
        plug(node, node.address, into=gateway, peer=f"{_NET}.5")
        subprocess.run(["ip", "route", "replace", "unreachable", f"{_NET}.4/30"], check=True)
        yield gateway, node
    finally:
        for host in started:
            host.stop()
        subprocess.run(["ip", "route", "delete", "unreachable", f"{_NET}.4/30"], check=False)


@contextmanager
def on_a_switch(folder: Path, number: int, *, image: Path) -> Generator[list[SshdHost]]:
    """Hosts with a network of their own between them, and a way to the addresses of this machine."""
    login, bridge = new_key(), f"s{os.getpid()}"
    started: list[SshdHost] = []
    run = partial(subprocess.run, check=True)
    try:
        run(["ip", "link", "add", bridge, "type", "bridge"])
        run(["ip", "address", "add", f"{_NET}.129/25", "dev", bridge])
        run(["ip", "link", "set", bridge, "up"])
        for index in range(number):
            name, address = f"pool-{index + 1}", f"{_NET}.{130 + index}"
            (folder / name).mkdir()
            host = SshdHost.start(name, folder / name, login, address=address, image=image)
            started.append(host)
            inside = ["nsenter", "-t", str(host.pid), "-n", "ip"]
            run(["ip", "link", "add", f"t{host.pid}", "type", "veth", "peer", "name", "up0", "netns", str(host.pid)])
            run(["ip", "link", "set", f"t{host.pid}", "master", bridge, "up"])
            run([*inside, "link", "set", "lo", "up"])
            run([*inside, "address", "add", f"{address}/25", "dev", "up0"])
            run([*inside, "link", "set", "up0", "up"])
            run([*inside, "route", "add", "default", "via", f"{_NET}.129"])
        yield started
    finally:
        for host in started:
            host.stop()
        subprocess.run(["ip", "link", "delete", bridge], check=False)


def plug(host: SshdHost, address: str, *, into: SshdHost | None, peer: str) -> None:
    """A cable from a host with a network of its own to another one, or to this machine; both ends get an address."""
    ours = f"t{host.pid}"
    there = [] if into is None else ["nsenter", "-t", str(into.pid), "-n"]
    run = partial(subprocess.run, check=True)
    run(["ip", "link", "add", ours, "type", "veth", "peer", "name", "up0", "netns", str(host.pid)])
    if into is not None:
        run(["ip", "link", "set", ours, "netns", str(into.pid)])
    for inside, link, own in ((there, ours, peer), (["nsenter", "-t", str(host.pid), "-n"], "up0", address)):
        run([*inside, "ip", "address", "add", f"{own}/30", "dev", link])
        run([*inside, "ip", "link", "set", link, "up"])
    run(["nsenter", "-t", str(host.pid), "-n", "ip", "link", "set", "lo", "up"])
