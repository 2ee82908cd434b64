"""What a run talks to, in one bundle: the real services, or the fakes of `mlops_sdk.testing`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal

from mlops_sdk.capacity.boundary import Boundary, no_boundary
from mlops_sdk.capacity.fence import Fence
from mlops_sdk.capacity.line import Line
from mlops_sdk.capacity.provider import Party, Provider
from mlops_sdk.capacity.providers import ironic
from mlops_sdk.capacity.providers.ironic_api import BaremetalApi, IronicApi
from mlops_sdk.capacity.providers.nova import NAME as NOVA
from mlops_sdk.capacity.providers.nova import NovaLeases
from mlops_sdk.capacity.providers.nova_http import NovaHttp
from mlops_sdk.capacity.providers.static import NAME as STATIC
from mlops_sdk.capacity.providers.static import StaticHosts
from mlops_sdk.capacity.queue_view import QueueView
from mlops_sdk.clock import Clock, SystemClock
from mlops_sdk.cloud import Cloud
from mlops_sdk.config import KeystoneSettings, Settings
from mlops_sdk.errors import SettingsError
from mlops_sdk.identity.audit import audit_of
from mlops_sdk.identity.credential import CredentialBroker
from mlops_sdk.identity.keystone import KeystoneCredentials
from mlops_sdk.keeper import Keeper, ThreadKeeper
from mlops_sdk.objects import ObjectStore
from mlops_sdk.store_clock import StoreClock

OpenProvider = Callable[[KeystoneSettings | None, Party], Provider]
"""A provider through a login (None: the broker's own) for a party."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Services:
    """What a run talks to. `connect_services` builds it; tests put fakes in.

    Attributes:
        settings: The deployment.
        store: Its bucket.
        broker: Mints and revokes credentials, with the broker's own login.
        baremetal: Ironic through the broker's login.
        connect: Ironic through another login: each run's own.
        clock: Durations and pauses.
        keeper: Calls the heartbeats of runs.
        others: Providers besides Ironic, by name.
        time: The deployment's clock; None is Ironic's.
        views: Of the queue of each provider: what all runs of this process who wait in it read together.
    """

    settings: Settings
    store: ObjectStore
    broker: CredentialBroker
    baremetal: BaremetalApi
    connect: Callable[[KeystoneSettings], BaremetalApi]
    clock: Clock = field(default_factory=SystemClock)
    keeper: Keeper = field(default_factory=ThreadKeeper)
    others: Mapping[str, OpenProvider] = field(default_factory=dict[str, OpenProvider])
    time: Callable[[], datetime] | None = None
    views: dict[str, QueueView] = field(default_factory=dict[str, QueueView], compare=False, repr=False)

    def now(self) -> datetime:
        """The deployment's clock, by which journals are dated and claims expire."""
        return (self.time or self.baremetal.now)()

    @property
    def providers(self) -> tuple[str, ...]:
        """Names of the providers that this deployment has."""
        return (*((ironic.NAME,) if self.settings.ironic else ()), *self.others)

    def fence(self) -> Fence:
        """A claimant of its own."""
        return Fence(self.store, now=self.now, ttl_s=self.settings.lease.renew_for_s)

    def provider(
        self,
        name: str,
        *,
        login: KeystoneSettings | None = None,
        by: Literal["run", "reaper", "person"] = "run",
        fence: Fence | None = None,
        boundary: Boundary = no_boundary,
    ) -> Provider:
        """A provider, by name, through a login.

        Args:
            name: As in `LeaseRequest.provider`.
            login: Whose; None is the broker's own.
            by: Who acts.
            fence: The claims of who acts; None makes a claimant of its own.
            boundary: Told before and after each call that changes something.

        Raises:
            SettingsError: this deployment has no such provider.

        Example:
            >>> services.provider("ironic").quote(request)  # doctest: +SKIP
        """
        fence = fence or self.fence()
        party = Party(settings=self.settings, fence=fence, clock=self.clock, by=by, boundary=boundary)
        if name == ironic.NAME and self.settings.ironic:
            api = self.baremetal if login is None else self.connect(login)
            return ironic.IronicLeases(api, party, ours=self.baremetal)
        if name not in self.others:
            raise SettingsError(
                f"this deployment has no provider {name!r}",
                seen=f"it has {', '.join(self.providers) or 'none'}",
                next_step="ask one of these for machines, or configure the other",
            )
        return self.others[name](login, party)

    def line(self, name: str) -> Line:
        """The queue of a provider."""
        view = self.views.setdefault(name, QueueView(self.clock))
        return Line(self.store, self.provider(name), self.settings.lease, self.clock, view)


def connect_services(settings: Settings, keeper: Keeper | None = None, *, service: str = "") -> Services:
    """The real services of a deployment, each connected to at its first use. `service`: our name in the audit log."""
    cloud = Cloud(settings.keystone)
    baremetal = IronicApi(cloud)
    store = ObjectStore.open(settings.s3)
    time = baremetal.now if settings.ironic else StoreClock(store).now

    def connect(login: KeystoneSettings) -> BaremetalApi:
        return IronicApi(Cloud(login))

    def open_static(login: KeystoneSettings | None, party: Party) -> Provider:
        del login  # the pool's key is the deployment's
        return StaticHosts(store, party, time)

    def open_nova(login: KeystoneSettings | None, party: Party) -> Provider:
        service = settings.nova.service_login if settings.nova is not None else None
        api = NovaHttp(cloud if login is None else Cloud(login), Cloud(service) if service is not None else None)
        return NovaLeases(api, party)

    others: dict[str, OpenProvider] = {STATIC: open_static} if settings.static_hosts else {}
    if settings.nova is not None:
        others[NOVA] = open_nova
    return Services(
        settings=settings,
        store=store,
        broker=CredentialBroker(
            KeystoneCredentials(cloud), settings.broker_key, audit_of(settings, store, service=service)
        ),
        baremetal=baremetal,
        connect=connect,
        keeper=keeper or ThreadKeeper(),
        others=others,
        time=time,
    )
