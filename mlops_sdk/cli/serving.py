"""`mlops serving`: how users get to a model."""

from __future__ import annotations

import asyncio
import logging
import sys
import threading

import click

from mlops_sdk.config import Settings
from mlops_sdk.errors import MlopsError, SettingsError
from mlops_sdk.remote.forward import forwarded
from mlops_sdk.remote.pool import pool_host
from mlops_sdk.remote.ssh import Host
from mlops_sdk.supervised import Work, run_until_stopped

_LOG = logging.getLogger("mlops.forward")
_POLL_S = 0.2


@click.group()
def serving() -> None:
    """How users get to a model."""


@serving.command()
@click.argument("name")
@click.option("--port", default=8000, show_default=True, help="of the proxy on the host")
@click.option("--to", default="127.0.0.1", show_default=True, help="where the proxy listens, as the host sees it")
@click.option("--listen", default="127.0.0.1:8000", show_default=True, metavar="ADDRESS:PORT", help="for users, here")
def forward(name: str, port: int, to: str, listen: str) -> None:
    """Lead users to the proxy of host NAME (of static_hosts) over SSH, through its gateway; until SIGTERM.

    The keys of both hops are the pinned ones of the settings. A broken connection is made again.
    """
    address, _, number = listen.rpartition(":")
    if not address or not number.isdigit():
        raise click.BadParameter(f"{listen!r} is not ADDRESS:PORT", param_hint="--listen")

    def prepare() -> Work:
        host = _host(name)
        return lambda stop: asyncio.run(_forward(host, port, to, (address, int(number)), stop))

    sys.exit(run_until_stopped(_LOG, prepare))


def _host(name: str) -> Host:
    settings = Settings.load()
    for host in settings.static_hosts:
        if host.name == name:
            return pool_host(settings, host)
    raise SettingsError(
        f"there is no host {name!r}",
        seen=", ".join(host.name for host in settings.static_hosts) or "the settings name none",
        next_step="add it to static_hosts, in a resource class of its own",
    )


async def _forward(host: Host, port: int, to: str, listen: tuple[str, int], stop: threading.Event) -> None:
    try:
        async with forwarded(host, port, to=to, listen=listen, tell=_LOG.warning) as way:
            _LOG.info("listening", extra={"data": {"url": way.url, "host": host.name}})
            while not stop.is_set():  # noqa: ASYNC110 - a signal sets it
                await asyncio.sleep(_POLL_S)
    except MlopsError as error:
        _LOG.error("cannot lead there", extra={"data": {"error": str(error)}})
        sys.exit(1)
