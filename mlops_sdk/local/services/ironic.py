"""Ironic as one process (API and conductor) on SQLite, behind Keystone."""

from __future__ import annotations

from pathlib import Path

from mlops_sdk.local.probes import answers_http
from mlops_sdk.local.service import Command, Service
from mlops_sdk.local.site import Site


def ironic_service(site: Site, *, needs: tuple[str, ...], faults: bool) -> Service:
    """The bare-metal service. With `faults`, nodes may use the deploy interface that fails on demand."""
    ironic = _Ironic(site, deploy="machine,machine-faults" if faults else "machine")
    return Service(
        name="ironic",
        needs=needs,
        heavy=True,
        address=site.url("ironic"),
        prepare=ironic.prepare,
        command=ironic.command,
        probe=lambda: answers_http(site.addresses.ironic, "/"),
        stop_timeout_s=3.0,
    )


class _Ironic:
    def __init__(self, site: Site, *, deploy: str) -> None:
        self._site = site
        self._deploy = deploy
        self._root = site.layout.data("ironic")
        self._config = self._root / "ironic.conf"

    def prepare(self) -> None:
        self._site.once("ironic", self._create)
        self._write_config()

    def command(self) -> Command:
        return Command(argv=self._argv("serve"))

    def _create(self, root: Path) -> None:
        for folder in ("images", "http", "tftp", "lock"):
            (root / folder).mkdir()
        self._write_config()
        self._site.run([*self._argv("create_schema")], log=self._site.layout.log("ironic-setup"))

    def _argv(self, action: str) -> tuple[str, ...]:
        script = self._site.tools.infra("openstack", "run_ironic.py")
        return (str(self._site.tools.openstack_python), str(script), action, "--config-file", str(self._config))

    def _write_config(self) -> None:
        self._site.render(
            "ironic.conf",
            {
                "root": self._root,
                "deploy": self._deploy,
                "port": self._site.addresses.ironic,
                "keystone": f"{self._site.url('keystone')}/v3",
                "password": self._site.secrets.keystone_ironic,
            },
            self._config,
        )
