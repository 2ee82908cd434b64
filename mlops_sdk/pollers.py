"""The pollers of one event loop: one for each cloud, login and provider, shared by all runs that wait there."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta

from mlops_sdk.capacity.poller import Poller
from mlops_sdk.capacity.provider import Grant
from mlops_sdk.capacity.renewals import Renewals
from mlops_sdk.capacity.watching import Watchable, Watched
from mlops_sdk.config import KeystoneSettings
from mlops_sdk.errors import RemoteError
from mlops_sdk.heartbeat import HEARTBEAT, heartbeat_of
from mlops_sdk.names import run_key
from mlops_sdk.services import Services
from mlops_sdk.steps import Pause

# Of the renewal time: how long a cloud may be away before who waits gives up. Nobody takes machines back meanwhile:
# that needs the cloud too.
_PATIENCE = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class _Shared:
    keystone: KeystoneSettings
    provider: str
    poller: Poller
    renewals: Renewals


class Pollers:
    """One per event loop. Looks and renewals go through the deployment's own login.

    It alone may list what all runs hold; a run's login sees its own names, one by one.

    Example:
        >>> lease = await adrive(run.leasing(request), clock, pollers.pause(services))  # doctest: +SKIP
    """

    def __init__(self) -> None:
        self._shared: list[_Shared] = []

    @property
    def all(self) -> tuple[Poller, ...]:
        """Every one that there is now."""
        return tuple(shared.poller for shared in self._shared)

    def of(self, services: Services, provider: str) -> Poller | None:
        """Of this provider; None when it cannot show everything at once: whoever waits looks for itself then."""
        shared = self._of(services, provider)
        return shared.poller if shared is not None else None

    def pause(self, services: Services) -> Pause:
        """How work of these services pauses: with the poller where it says what it waits for, else with the clock."""

        async def pause(seconds: float) -> None:
            poller = self.of(services, seconds.provider) if isinstance(seconds, Watched) else None
            if poller is None or not isinstance(seconds, Watched):
                await services.clock.asleep(seconds)
            else:
                await poller.called(seconds.keys, at_most_s=seconds.at_most_s, quiet=seconds.quiet)

        return pause

    @contextmanager
    def keeping(self, services: Services, grant: Grant) -> Generator[None]:
        """Renew a lease that was asked for, together with all others, while somebody waits for it here."""
        shared = self._of(services, grant.request.provider)
        if shared is None:
            yield
            return
        with shared.renewals.keeping(grant):
            yield

    def _of(self, services: Services, provider: str) -> _Shared | None:
        keystone = services.settings.keystone
        for known in self._shared:
            if known.provider == provider and known.keystone == keystone:
                return known
        found = services.provider(provider)
        if not isinstance(found, Watchable):
            return None
        lease = services.settings.lease

        def beat(grant: Grant) -> None:
            until = services.now() + timedelta(seconds=lease.renew_for_s)
            found.renew(grant)
            with suppress(RemoteError):  # as `RunHeartbeat`: S3 being down does not cost a lease
                key = f"runs/{run_key(grant.run_id)}/{HEARTBEAT}"
                services.store.put_json(key, heartbeat_of(grant, renewed_until=until))

        renewals = Renewals(beat, now=services.now, renew_for_s=lease.renew_for_s)
        poller = Poller(
            found.sights,
            period_s=lease.poll_s,
            clock=services.clock,
            patience_s=lease.renew_for_s * _PATIENCE,
            on_snapshot=renewals.look,
        )
        self._shared = [known for known in self._shared if known.poller.works]  # a login that was changed, say
        self._shared.append(_Shared(keystone=keystone, provider=provider, poller=poller, renewals=renewals))
        return self._shared[-1]
