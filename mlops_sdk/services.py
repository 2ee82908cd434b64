"""What a run talks to, in one bundle: the real services, or the fakes of `mlops_sdk.testing`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from mlops_sdk.capacity.providers.ironic_api import BaremetalApi
from mlops_sdk.clock import Clock, SystemClock
from mlops_sdk.config import KeystoneSettings, Settings
from mlops_sdk.identity.credential import CredentialBroker
from mlops_sdk.keeper import Keeper, ThreadKeeper
from mlops_sdk.objects import ObjectStore


@dataclass(frozen=True, slots=True, kw_only=True)
class Services:
    """What a run talks to. `Client` builds it; tests put fakes in.

    Attributes:
        settings: The deployment.
        store: Its bucket.
        broker: Mints and revokes credentials, with the broker's own login.
        baremetal: Ironic through the broker's login: clock, quotes, proofs, release when the run's credential is gone.
        connect: Ironic through another login: each run's own.
        clock: Durations and pauses.
        keeper: Calls the heartbeats of runs.
    """

    settings: Settings
    store: ObjectStore
    broker: CredentialBroker
    baremetal: BaremetalApi
    connect: Callable[[KeystoneSettings], BaremetalApi]
    clock: Clock = field(default_factory=SystemClock)
    keeper: Keeper = field(default_factory=ThreadKeeper)
