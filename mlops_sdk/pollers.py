"""The pollers of one event loop: one for each cloud, login and provider, shared by all runs that wait there."""

from __future__ import annotations

from mlops_sdk.capacity.poller import Poller
from mlops_sdk.capacity.watching import Watchable, Watched
from mlops_sdk.config import KeystoneSettings
from mlops_sdk.services import Services
from mlops_sdk.steps import Pause

# Of the renewal time: how long a cloud may be away before who waits gives up. Nobody takes machines back meanwhile:
# that needs the cloud too.
_PATIENCE = 0.5

_Place = tuple[KeystoneSettings, str]


class Pollers:
    """One per event loop. Looks go through the deployment's own login: it alone may list what all runs hold.

    Example:
        >>> lease = await adrive(run.leasing(request), clock, pollers.pause(services))  # doctest: +SKIP
    """

    def __init__(self) -> None:
        self._pollers: list[tuple[_Place, Poller]] = []

    def of(self, services: Services, provider: str) -> Poller | None:
        """Of this provider; None when it cannot show everything at once: whoever waits looks for itself then."""
        place = (services.settings.keystone, provider)
        for known, poller in self._pollers:
            if known == place:
                return poller
        found = services.provider(provider)
        if not isinstance(found, Watchable):
            return None
        lease = services.settings.lease
        poller = Poller(
            found.sights, period_s=lease.poll_s, clock=services.clock, patience_s=lease.renew_for_s * _PATIENCE
        )
        self._pollers = [(known, each) for known, each in self._pollers if each.works]  # a login that was changed, say
        self._pollers.append((place, poller))
        return poller

    def pause(self, services: Services) -> Pause:
        """How work of these services pauses: with the poller where it says what it waits for, else with the clock."""

        async def pause(seconds: float) -> None:
            poller = self.of(services, seconds.provider) if isinstance(seconds, Watched) else None
            if poller is None or not isinstance(seconds, Watched):
                await services.clock.asleep(seconds)
            else:
                await poller.called(seconds.keys, at_most_s=seconds.at_most_s, quiet=seconds.quiet)

        return pause
