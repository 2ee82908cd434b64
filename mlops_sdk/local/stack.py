"""The embedded stack, put together: which services there are, what each needs, and the loop that runs them."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlops_sdk.errors import MlopsError, StackError
from mlops_sdk.local import addresses, secrets
from mlops_sdk.local.layout import COMPUTE, Layout, Tools, write_private_json
from mlops_sdk.local.progress import Progress
from mlops_sdk.local.service import Service, Unit, base_environment, with_needs
from mlops_sdk.local.services.airflow import AirflowOptions, airflow_services
from mlops_sdk.local.services.ceph import ceph_services
from mlops_sdk.local.services.compute import compute_services
from mlops_sdk.local.services.ironic import ironic_service
from mlops_sdk.local.services.keystone import keystone_service
from mlops_sdk.local.services.machines import MachineNetwork, machine_services
from mlops_sdk.local.services.mlflow import mlflow_services
from mlops_sdk.local.services.serving import serving_connections, serving_service
from mlops_sdk.local.services.webhooks import git_connections, webhook_environment, webhook_services
from mlops_sdk.local.settings_files import write_settings
from mlops_sdk.local.site import Site
from mlops_sdk.local.supervisor import Supervisor


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How to run a stack.

    Attributes:
        state_dir: Where it keeps everything.
        only: These services and what they need; empty: all of them.
        faults: Let nodes use the deploy interface that fails on demand (tests).
        hold: These services, and what needs them, start when they are released.
        profiles: What there is beside the usual services: "compute".
    """

    state_dir: Path
    only: tuple[str, ...] = ()
    faults: bool = False
    hold: tuple[str, ...] = ()
    profiles: tuple[str, ...] = ()


def services_of(
    site: Site, *, airflow: AirflowOptions, faults: bool, profiles: tuple[str, ...] = ()
) -> tuple[Service, ...]:
    """All services of a stack, the slow ones first: of those that may start, an earlier one starts earlier."""
    network = MachineNetwork(site=site)
    return (
        *mlflow_services(site),
        keystone_service(site),
        *ceph_services(site, network=("network",)),
        ironic_service(site, needs=(), faults=faults),
        Service(
            name="settings",
            needs=("keystone", "ceph-rgw"),
            prepare=lambda: write_settings(site, nova=COMPUTE in profiles),
        ),
        *machine_services(site, network, faults=faults, metal=COMPUTE in profiles),
        serving_service(site, network),
        *airflow_services(
            site,
            airflow,
            api_environment=webhook_environment(site),
            connections=lambda: {**serving_connections(site), **git_connections(site)},
        ),
        *webhook_services(site),
        *(compute_services(site, network, faults=faults) if COMPUTE in profiles else ()),
    )


def prepare_site(layout: Layout, tools: Tools) -> Site:
    """Choose or load addresses and secrets."""
    chosen = addresses.choose_or_load(layout)
    return Site(
        layout=layout, tools=tools, addresses=chosen, secrets=secrets.choose_or_load(layout), node_host=chosen.gateway
    )


def run_stack(options: Options, *, until_stdin_closes: bool) -> None:
    """Run the stack in this process until SIGTERM, SIGINT or SIGHUP, or, if asked, until standard input closes.

    Raises:
        StackError: a service did not start or keeps dying; everything has been ended by then.
    """
    layout = Layout.at(options.state_dir)
    site = prepare_site(layout, Tools.find())
    services = services_of(
        site, airflow=AirflowOptions.from_environment(), faults=options.faults, profiles=options.profiles
    )
    try:
        wanted = with_needs(services, options.only) if options.only else services
        run = _Run(layout, wanted, hold=options.hold)
    except ValueError as error:
        raise StackError(
            "the stack has no such service", seen=str(error), next_step="see `mlops local up --help`"
        ) from error
    asyncio.run(run.run(until_stdin_closes=until_stdin_closes))


class _Run:
    def __init__(self, layout: Layout, services: tuple[Service, ...], *, hold: tuple[str, ...]) -> None:
        self._layout = layout
        self._began = time.monotonic()
        self._error = ""
        self._ready_s: float | None = None
        self._progress = Progress(sys.stdout)
        self._supervisor = Supervisor(
            services,
            log_of=layout.log,
            environment=base_environment(layout.state_dir),
            changed=self._changed,
            hold=hold,
        )

    async def run(self, *, until_stdin_closes: bool) -> None:
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGINT, self._stop_or_give_up, stop)
        for number in (signal.SIGTERM, signal.SIGHUP):  # may arrive twice: from their sender, and passed on
            loop.add_signal_handler(number, stop.set)
        if until_stdin_closes:
            watcher = threading.Thread(target=_call_at_end_of_input, args=(loop, stop.set), daemon=True)
            watcher.start()
        for unit in self._supervisor.units.values():
            if unit.log.exists():
                unit.log.replace(unit.log.with_suffix(".log.1"))
        self._write_status()
        server = await self._listen(stop)
        try:
            with self._progress.live(list(self._supervisor.units.values())):
                await self._supervisor.run(stop, all_ready=self._all_ready)
        except MlopsError as error:
            self._error = str(error)
            raise
        finally:
            server.close()
            self._write_status()

    def _stop_or_give_up(self, stop: asyncio.Event) -> None:
        if stop.is_set():
            os._exit(130)  # asked twice: the kernel ends the rest of the namespace
        self._progress.say("stopping; once more to end at once")
        stop.set()

    def _changed(self, unit: Unit) -> None:
        self._progress.changed(unit)
        self._write_status()

    def _all_ready(self) -> None:
        self._ready_s = time.monotonic() - self._began
        self._write_status()
        self._progress.say(f"ready in {self._ready_s:.1f} s; settings in {self._layout.client_toml}")
        self._progress.say(f"stop with Ctrl-C, or: mlops local down --state-dir {self._layout.state_dir}")

    def _write_status(self) -> None:
        write_private_json(
            self._layout.status_json,
            {
                "ready": self._supervisor.ready,
                "ready_s": self._ready_s,
                "error": self._error,
                "services": [unit.to_json() for unit in self._supervisor.units.values()],
            },
        )

    async def _listen(self, stop: asyncio.Event) -> asyncio.Server:
        """Take orders: one JSON object a line in, one out. Who may connect is who may read the state directory."""
        self._layout.control_socket.unlink(missing_ok=True)
        orders: dict[str, Callable[[str], Awaitable[None]]] = {
            "hold": self._supervisor.hold,
            "release": self._supervisor.release,
        }

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            with contextlib.suppress(ConnectionError):
                while line := await reader.readline():
                    writer.write(json.dumps(await _obey(orders, line)).encode() + b"\n")
                    await writer.drain()
            writer.close()

        del stop
        return await asyncio.start_unix_server(serve, path=self._layout.control_socket)


async def _obey(orders: dict[str, Callable[[str], Awaitable[None]]], line: bytes) -> dict[str, Any]:
    try:
        request = json.loads(line)
        await orders[request["order"]](request["service"])
    except (ValueError, KeyError) as error:
        return {"error": f"{type(error).__name__}: {error}"}
    return {"error": ""}


def _call_at_end_of_input(loop: asyncio.AbstractEventLoop, stop: Callable[[], None]) -> None:
    while os.read(sys.stdin.fileno(), 4096):
        pass
    loop.call_soon_threadsafe(stop)
