"""The compute profile: Nova, Placement, Neutron, Glance, Cinder, Cyborg on SQLite and RabbitMQ, behind our Keystone.

Real services; in place of hardware stand the drivers of `infra/local/compute_drivers`: one host with eight A100, whose
servers are machines of the stack's network, and two A30 that Cyborg hands out. Started with
`mlops local up --with compute`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal

from mlops_sdk.local.layout import write_private_json
from mlops_sdk.local.probes import answers_http, said
from mlops_sdk.local.service import Command, Service
from mlops_sdk.local.services import metal
from mlops_sdk.local.services.compute_offer import HOST, PHYSICAL_NETWORK, offer
from mlops_sdk.local.services.keystone import CLEANER, register
from mlops_sdk.local.services.machines import MachineNetwork
from mlops_sdk.local.services.message_queue import message_queue_services, transport_url
from mlops_sdk.local.site import REGION, Site

_USERS: Final = ("cinder", "cyborg", "glance", "neutron", "nova", "placement")
_STARTED: Final = "node (version"  # what Nova and Cinder log when a process of theirs begins to work
_SERVES: Final = "Created RPC server"  # what Cyborg's log then
_DAEMONS: Final = (
    *("nova-conductor", "nova-scheduler", "nova-compute"),
    *("cinder-scheduler", "cinder-volume", "cyborg-conductor", "cyborg-agent"),
)
_QUIET: Final = {"PYTHONWARNINGS": "ignore"}  # hundreds of deprecations among OpenStack's own modules at each start
_COMPUTE: Final = "nova.cmd.compute"
_HOST_CONFIG: Final = "nova-compute.conf"
_APIS: Final = ("placement", "glance", "neutron", "nova-api", "cinder-api", "cyborg-api")


def _nothing() -> None:
    return


Part = Literal["cinder", "cyborg", "glance", "neutron", "nova", "placement"]


def compute_services(site: Site, network: MachineNetwork, *, faults: bool) -> tuple[Service, ...]:
    """All of the profile. With `faults`, servers fail as their metadata says."""
    placement = _Component(site=site, name="placement", kind="placement")
    glance = _Component(site=site, name="glance", kind="image", template="glance-api.conf")
    neutron = _Component(site=site, name="neutron", kind="network")
    nova = _Component(
        site=site, name="nova", kind="compute", more={"driver": _driver(faults=faults)}, beside=_HOST_CONFIG
    )
    cinder = _Component(site=site, name="cinder", kind="block-storage")
    cyborg = _Component(site=site, name="cyborg", kind="accelerator", started=_SERVES)
    return (
        *message_queue_services(site),
        Service(name="compute-identity", needs=("keystone",), prepare=lambda: _register(site)),
        placement.api("placement.wsgi.api:application", {"OS_PLACEMENT_CONFIG_DIR": str(placement.root)}),
        glance.api("glance.wsgi.api:application", {"OS_GLANCE_CONFIG_DIR": str(glance.root)}),
        neutron.api(
            "neutron.wsgi.api:application",
            {"OS_NEUTRON_CONFIG_DIR": str(neutron.root), "OS_NEUTRON_CONFIG_FILES": "neutron.conf"},
            needs=("rabbitmq",),
        ),
        nova.tables(),
        nova.api(
            "nova.wsgi.osapi_compute:application",
            # Nova takes the first of its files as the description of the API's pipeline
            {"OS_NOVA_CONFIG_DIR": str(nova.root), "OS_NOVA_CONFIG_FILES": f"{nova.etc}/nova/api-paste.ini;nova.conf"},
            needs=("nova-tables", "rabbitmq"),
            name="nova-api",
        ),
        nova.daemon("nova-conductor", "nova.cmd.conductor"),
        nova.daemon("nova-scheduler", "nova.cmd.scheduler", needs=("placement", "compute-identity")),
        _compute_host(site, network, nova),
        _metal_host(site, nova),
        cinder.tables(),
        cinder.api("cinder.wsgi.api:application", {}, needs=("cinder-tables", "rabbitmq"), name="cinder-api"),
        cinder.daemon("cinder-scheduler", "cinder.cmd.scheduler"),
        cinder.daemon("cinder-volume", "cinder.cmd.volume"),
        cyborg.tables(),
        cyborg.api("cyborg.wsgi.api:application", {}, needs=("cyborg-tables", "rabbitmq"), name="cyborg-api"),
        cyborg.daemon("cyborg-conductor", "cyborg.cmd.conductor", needs=("placement", "compute-identity")),
        cyborg.daemon("cyborg-agent", "cyborg.cmd.agent", needs=("cyborg-conductor", "nova-compute")),
        Service(
            name="compute",
            needs=("compute-identity", *_APIS, *_DAEMONS),
            address=site.url("nova"),
            prepare=lambda: offer(site),
        ),
        Service(name="metal", needs=("compute", metal.NAME), prepare=lambda: metal.wait_for_machines(site)),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Component:
    """One of OpenStack's parts: its settings, its tables, its processes.

    Attributes:
        kind: Its type in Keystone's catalogue.
        template: Of its settings; by default named like it.
        more: Values of the template that only this part has.
        beside: A second file of its settings, without the databases.
        started: What its processes log when they begin to work.
    """

    site: Site
    name: Part
    kind: str
    template: str = ""
    more: Mapping[str, str] = field(default_factory=dict[str, str])
    beside: str = ""
    started: str = _STARTED

    @property
    def root(self) -> Path:
        """Its data directory."""
        return self.site.layout.data(self.name)

    @property
    def etc(self) -> Path:
        """The files that its package brings for /etc."""
        return self.site.tools.compute_python.parent.parent / "etc"

    @property
    def config(self) -> Path:
        """Its settings."""
        return self.root / (self.template or f"{self.name}.conf")

    def tables(self) -> Service:
        """Its settings and tables as a step, for a part that is several processes."""
        return Service(name=f"{self.name}-tables", heavy=True, prepare=self.prepare)

    def api(
        self, application: str, environment: Mapping[str, str], *, needs: tuple[str, ...] = (), name: str = ""
    ) -> Service:
        """Its API. One without a step of its own for the tables makes them itself."""
        tables = f"{self.name}-tables" in needs
        port = self.site.addresses.ports()[self.name]
        server = self.site.tools.infra("openstack", "serve_wsgi.py")
        # the others find their settings by their environment, and do not know this argument
        arguments = () if environment else ("--config-file", str(self.config))
        return Service(
            name=name or self.name,
            needs=needs,
            heavy=True,
            address=self.site.url(self.name),
            prepare=_nothing if tables else self.prepare,
            command=lambda: Command(
                argv=(str(self.site.tools.compute_python), str(server), application, str(port), *arguments),
                env={"SQLITE_BEGIN_IMMEDIATE": "1", **_QUIET, **environment},
            ),
            probe=lambda: answers_http(port, "/"),
        )

    def daemon(
        self,
        name: str,
        module: str,
        *,
        needs: tuple[str, ...] = (),
        configs: tuple[Path, ...] = (),
        prepare: Callable[[], None] = _nothing,
        address: str = "",
    ) -> Service:
        """One of its other processes; `configs` in place of its settings, a later one counts before an earlier one."""
        life = _Life(self.site.layout.log(name), self.started)
        return Service(
            name=name,
            needs=(f"{self.name}-tables", "rabbitmq", *needs),
            heavy=True,
            address=address,
            prepare=prepare,
            command=lambda: life.of(self.command(module, *configs)),
            probe=life.begun,
        )

    def command(self, module: str, *configs: Path) -> Command:
        """How one of its console scripts is run."""
        runner = self.site.tools.infra("openstack", "run_service.py")
        files = [part for config in configs or (self.config,) for part in ("--config-file", str(config))]
        return Command(argv=(str(self.site.tools.compute_python), str(runner), module, *files), env=_QUIET)

    def prepare(self) -> None:
        """Settings, and once the tables."""
        self.site.once(self.name, self._create)
        self._write_config()

    def _create(self, root: Path) -> None:
        (root / "lock").mkdir()
        self._write_config()
        self.site.run(
            [
                self.site.tools.compute_python,
                self.site.tools.infra("openstack", "prepare_compute.py"),
                self.name,
                self.config,
            ],
            log=self.site.layout.log(f"{self.name}-setup"),
        )

    @property
    def login(self) -> str:
        """How it logs in at the others: the lines of one section."""
        return self.site.fill("keystone_login.conf", self._account)

    @property
    def _account(self) -> dict[str, str]:
        return {
            "keystone": f"{self.site.url('keystone')}/v3",
            "username": self.name,
            "password": self.site.secrets.keystone_compute,
            "service_type": self.kind,
        }

    def _write_config(self) -> None:
        database = f"sqlite:///{self.root}/{self.name}.db?timeout=60"
        api_database = f"sqlite:///{self.root}/{self.name}-api.db?timeout=60"
        values = {
            "root": self.root,
            "etc": self.etc,
            "host": HOST,
            "host_settings": _host_settings(self.site),
            "url": self.site.url(self.name),
            "glance": self.site.url("glance"),
            "region": REGION,
            "transport": transport_url(self.site),
            "physical_network": PHYSICAL_NETWORK,
            "database": database,
            "databases": self.site.fill("nova_databases.conf", {"database": database, "api_database": api_database}),
            "login": self.login,
            "authtoken": self.site.fill("keystone_authtoken.conf", self._account),
            **self.more,
        }
        template = self.template or f"{self.name}.conf"
        self.site.render(template, values, self.config)
        if self.beside:
            self.site.render(template, {**values, "databases": ""}, self.root / self.beside)


class _Life:
    """The present life of a process: what an earlier one logged does not make it ready."""

    def __init__(self, log: Path, started: str) -> None:
        self._log = log
        self._started = started
        self._since = 0

    def of(self, command: Command) -> Command:
        """Note where its log begins, and return its command."""
        self._since = self._log.stat().st_size if self._log.exists() else 0
        return command

    def begun(self) -> None:
        """It has begun to work."""
        said(self._log, self._started, since=self._since)


def _compute_host(site: Site, network: MachineNetwork, nova: _Component) -> Service:
    """The host. Its servers are this process's children: when it dies, so do they, and it starts them again."""
    needs = ("nova-conductor", "placement", "neutron", "compute-identity", "network")

    def prepare() -> None:
        settings = {
            "state_dir": str(nova.root / "servers"),
            "image_dir": str(site.tools.node_image),
            "fabric": network.description(),
        }
        write_private_json(_host_settings(site), settings)

    configs = (nova.root / _HOST_CONFIG,)
    return nova.daemon("nova-compute", _COMPUTE, needs=needs, configs=configs, prepare=prepare, address=HOST)


def _metal_host(site: Site, nova: _Component) -> Service:
    """The host that stands for the machines of Ironic which are set aside for Nova."""
    own = site.layout.data(metal.NAME) / _HOST_CONFIG
    return nova.daemon(
        metal.NAME,
        _COMPUTE,
        needs=("nova-conductor", "placement", "neutron", "glance", "compute-identity", "metal-nodes"),
        configs=(nova.root / _HOST_CONFIG, own),
        prepare=lambda: metal.prepare(site, own, login=nova.login),
        address=metal.HOST,
    )


def _host_settings(site: Site) -> Path:
    return site.layout.data("nova") / "gpu-host.json"


def _driver(*, faults: bool) -> str:
    return f"compute_drivers.{'GpuHostWithFaults' if faults else 'GpuHost'}"


def _register(site: Site) -> None:
    register(site, {CLEANER: site.secrets.keystone_cleaner}, (), roles=("service",))
    register(
        site,
        dict.fromkeys(_USERS, site.secrets.keystone_compute),
        (
            ("placement", "placement", site.url("placement")),
            ("glance", "image", site.url("glance")),
            ("neutron", "network", site.url("neutron")),
            ("nova", "compute", f"{site.url('nova')}/v2.1"),
            ("cinder", "block-storage", f"{site.url('cinder')}/v3"),
            ("cyborg", "accelerator", f"{site.url('cyborg')}/v2"),
        ),
    )
