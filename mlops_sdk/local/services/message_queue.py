"""RabbitMQ, through which the processes of Nova, Neutron and Cinder talk to each other."""

from __future__ import annotations

from typing import Final

from mlops_sdk.local.addresses import LOOPBACK
from mlops_sdk.local.layout import write_private
from mlops_sdk.local.probes import accepts, speaks_amqp
from mlops_sdk.local.service import Command, Service
from mlops_sdk.local.site import Site

_USER: Final = "openstack"
_NODE: Final = "mlops@localhost"  # messages are kept under this name
# One scheduler, and none that spins while it has nothing to do: the broker carries a few messages a second.
_ERLANG: Final = "-kernel inet_dist_use_interface {127,0,0,1} +S 1:1 +sbwt none +sbwtdcpu none +sbwtdio none"


def message_queue_services(site: Site) -> tuple[Service, ...]:
    """The broker, and the port mapper that Erlang nodes ask for: a service of its own, or it would stay behind."""
    broker = _Broker(site)
    return (
        Service(
            name="epmd",
            address=f"{LOOPBACK}:{site.addresses.epmd}",
            command=lambda: Command(argv=("epmd", "-port", str(site.addresses.epmd), "-address", LOOPBACK)),
            probe=lambda: accepts(site.addresses.epmd),
        ),
        Service(
            name="rabbitmq",
            needs=("epmd",),  # heavy, too, but most of the profile waits for it: it starts beside the two that may
            address=f"{LOOPBACK}:{site.addresses.amqp}",
            prepare=broker.prepare,
            command=broker.command,
            probe=lambda: speaks_amqp(site.addresses.amqp),
            stop_timeout_s=15.0,
        ),
    )


def transport_url(site: Site) -> str:
    """What oslo.messaging takes. It holds the password: for files only."""
    return f"rabbit://{_USER}:{site.secrets.rabbitmq}@{LOOPBACK}:{site.addresses.amqp}/"


class _Broker:
    def __init__(self, site: Site) -> None:
        self._site = site
        self._root = site.layout.data("rabbitmq")

    def prepare(self) -> None:
        self._root.mkdir(mode=0o700, exist_ok=True)
        values = {"port": self._site.addresses.amqp, "username": _USER, "password": self._site.secrets.rabbitmq}
        self._site.render("rabbitmq.conf", values, self._root / "rabbitmq.conf")
        write_private(self._root / "plugins", "[].\n")

    def command(self) -> Command:
        return Command(
            argv=(str(self._site.tools.rabbitmq),),
            env={
                "HOME": str(self._root),  # the cookie by which Erlang nodes trust each other
                "ERL_EPMD_PORT": str(self._site.addresses.epmd),
                "RABBITMQ_NODENAME": _NODE,
                "RABBITMQ_DIST_PORT": str(self._site.addresses.amqp_peers),
                "RABBITMQ_CONFIG_FILE": str(self._root / "rabbitmq.conf"),
                "RABBITMQ_ENABLED_PLUGINS_FILE": str(self._root / "plugins"),
                "RABBITMQ_MNESIA_BASE": str(self._root / "mnesia"),
                "RABBITMQ_LOG_BASE": str(self._root / "log"),
                "RABBITMQ_LOG": "-color",
                "RABBITMQ_PID_FILE": str(self._root / "pid"),
                "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": _ERLANG,
            },
        )
