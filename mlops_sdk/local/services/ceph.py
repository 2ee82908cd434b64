"""Ceph with the S3 gateway: one monitor, one OSD on a sparse file, one radosgw; from the distribution's packages.

Authentication inside the cluster is off and its daemons listen on loopback only; the gateway asks for S3 signatures.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from mlops_sdk.config import S3Settings
from mlops_sdk.errors import StackError
from mlops_sdk.identity.s3_policy import ROLE_NAME, role_policy, trust_policy
from mlops_sdk.local.addresses import LOOPBACK
from mlops_sdk.local.layout import write_private, write_private_json
from mlops_sdk.local.probes import answers_http, ask_ceph_socket, ceph_socket_says
from mlops_sdk.local.service import Command, Service
from mlops_sdk.local.site import BUCKET, Site, s3_settings
from mlops_sdk.objects import ObjectStore

_RGW = "client.rgw.a"
_USERS = {"mlops": "pipelines", "mlflow": "MLflow's artifacts"}
_QUORUM_TIMEOUT_S = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class S3Keys:
    """The pair of keys of one RGW user."""

    access_key_id: str
    secret_access_key: str = field(repr=False)


def ceph_services(site: Site, *, network: tuple[str, ...]) -> tuple[Service, ...]:
    """The monitor, the OSD and the S3 gateway. `network` is what must be there before the gateway binds."""
    ceph = _Ceph(site)
    ports = site.addresses
    return (
        Service(
            name="ceph-mon",
            address=f"{LOOPBACK}:{ports.mon}",
            prepare=ceph.prepare_mon,
            command=lambda: ceph.daemon("ceph-mon", "-i", "a"),
            probe=lambda: ceph_socket_says(ceph.socket("mon.a"), "mon_status", "state", ("leader",)),
        ),
        Service(
            name="ceph-osd",
            needs=("ceph-mon",),
            address=f"{LOOPBACK}:{ports.osd_first}-{ports.osd_last}",
            prepare=ceph.prepare_osd,
            command=lambda: ceph.daemon("ceph-osd", "-i", "0"),
            probe=lambda: ceph_socket_says(ceph.socket("osd.0"), "status", "state", ("active",)),
            stop_timeout_s=20.0,
        ),
        Service(
            name="ceph-rgw",
            needs=("ceph-osd", *network),
            address=", ".join(f"{host}:{ports.rgw}" for host in site.listen_hosts),
            command=lambda: ceph.daemon("radosgw", "-n", _RGW),
            probe=lambda: answers_http(ports.rgw),
            finish=ceph.finish_rgw,
        ),
    )


def s3_keys(site: Site, user: str) -> S3Keys:
    """The keys that Ceph made for one of the stack's S3 users (the gateway must have been ready once)."""
    return S3Keys(**json.loads(_keys_file(site).read_text())[user])


def _keys_file(site: Site) -> Path:
    return site.layout.data("ceph") / "s3-keys.json"


class _Ceph:
    def __init__(self, site: Site) -> None:
        self._site = site
        self._root = site.layout.data("ceph")
        self._log = site.layout.log("ceph-setup")
        self._env = {"CEPH_CONF": str(self._root / "ceph.conf")}

    def daemon(self, program: str, *arguments: str) -> Command:
        return Command(argv=(program, "-f", *arguments), env=self._env)

    def socket(self, name: str) -> Path:
        return self._root / "run" / f"{name}.asok"

    def prepare_mon(self) -> None:
        self._site.once("ceph", self._create_mon)
        self._write_config()  # the address of the machines' network is only known at start
        for folder in ("run", "crash"):
            (self._root / folder).mkdir(exist_ok=True)
        self.socket("mon.a").unlink(missing_ok=True)  # of a former life; the others may be alive, and theirs in use

    def prepare_osd(self) -> None:
        self.socket("osd.0").unlink(missing_ok=True)
        if (self._root / "osd" / ".prepared").exists():
            return
        osd = self._root / "osd" / "0"
        shutil.rmtree(osd, ignore_errors=True)  # half made by a start that was interrupted; nothing is stored there yet
        self._create_osd(osd)

    def finish_rgw(self) -> None:
        if not _keys_file(self._site).exists():
            keys = {user: self._create_user(user, display) for user, display in _USERS.items()}
            write_private_json(_keys_file(self._site), keys)
        self._grant_role()
        keys = s3_keys(self._site, "mlops")
        check_s3(s3_settings(self._site, keys.access_key_id, keys.secret_access_key))

    def _create_mon(self, root: Path) -> None:
        for folder in ("mon", "osd", "rgw/a", "run"):
            (root / folder).mkdir(parents=True)
        self._write_config()
        keyring, monmap = root / "keyring", root / "monmap"
        allow = ["--cap", "mon", "allow *", "--cap", "osd", "allow *"]
        self._run("ceph-authtool", "--create-keyring", keyring, "--gen-key", "-n", "client.admin", *allow)
        self._run("ceph-authtool", keyring, "--gen-key", "-n", "mon.", "--cap", "mon", "allow *")
        address = f"[v2:{LOOPBACK}:{self._site.addresses.mon}]"
        self._run("monmaptool", "--create", "--fsid", self._site.secrets.ceph_fsid, "--addv", "a", address, monmap)
        self._run("ceph-mon", "--mkfs", "-i", "a", "--monmap", monmap, "--keyring", keyring)

    def _create_osd(self, osd: Path) -> None:
        uuid = self._site.secrets.ceph_osd
        _until(self._in_quorum, "the monitor formed no quorum")
        self._run("ceph", "osd", "new", uuid, "0")
        self._run("ceph", "osd", "crush", "add", "osd.0", "1", "root=default")
        osd.mkdir(parents=True)
        self._run("ceph-osd", "-i", "0", "--mkfs", "--osd-uuid", uuid)
        (osd.parent / ".prepared").touch()

    def _in_quorum(self) -> bool:
        try:
            return ask_ceph_socket(self.socket("mon.a"), "mon_status").get("state") == "leader"
        except OSError:
            return False

    def _create_user(self, user: str, display: str) -> dict[str, str]:
        """Ceph chooses the keys and prints them, so that no secret is ever an argument."""
        output = self._run("radosgw-admin", "user", "create", f"--uid={user}", f"--display-name={display}")
        made = json.loads(output)["keys"][0]
        return {"access_key_id": made["access_key"], "secret_access_key": made["secret_key"]}

    def _grant_role(self) -> None:
        """The role that is assumed for each run, with today's rights; what an earlier start began is completed."""
        trust, rights = trust_policy("arn:aws:iam:::user/mlops"), role_policy(BUCKET)
        granted = self._root / ".run-role"
        if granted.exists() and granted.read_text() == trust + rights:
            return
        name = f"--role-name={ROLE_NAME}"
        try:
            self._run("radosgw-admin", "role", "get", name)
        except StackError:  # there is none, or the next call fails for the same reason
            self._run("radosgw-admin", "role", "create", name, f"--assume-role-policy-doc={trust}")
        else:
            self._run("radosgw-admin", "role", "modify", name, f"--assume-role-policy-doc={trust}")
        self._run("radosgw-admin", "role-policy", "put", name, "--policy-name=runs", f"--policy-doc={rights}")
        write_private(granted, trust + rights)

    def _run(self, *argv: str | Path) -> str:
        return self._site.run(list(argv), log=self._log, env=self._env)

    def _write_config(self) -> None:
        ports = self._site.addresses
        endpoints = " ".join(f"endpoint={host}:{ports.rgw}" for host in self._site.listen_hosts)
        values: dict[str, str | int | Path] = {
            "root": self._root,
            "fsid": self._site.secrets.ceph_fsid,
            "mon_port": ports.mon,
            "osd_first": ports.osd_first,
            "osd_last": ports.osd_last,
            "endpoints": endpoints,
            "sts_key": self._site.secrets.rgw_sts,
        }
        self._site.render("ceph.conf", values, self._root / "ceph.conf")
        write_private(self._root / "ceph.env", f"export CEPH_CONF={self._root}/ceph.conf\n")


def check_s3(settings: S3Settings) -> None:
    """Make the bucket and refuse an S3 server whose conditional PUT does not hold.

    Raises:
        RemoteError: the probe's verdict.
    """
    store = ObjectStore.open(settings)
    store.ensure_bucket()
    store.probe_conditional_put()


def _until(condition: Callable[[], bool], problem: str) -> None:
    deadline = time.monotonic() + _QUORUM_TIMEOUT_S
    while not condition():
        if time.monotonic() > deadline:
            raise StackError(problem, next_step="see the log of ceph-mon")
        time.sleep(0.05)
