"""How hosts of the fixed pool are reached: with the pool's key, some of them through a gateway."""

from __future__ import annotations

from pathlib import Path

from mlops_sdk.config import Settings, StaticHost
from mlops_sdk.errors import SettingsError
from mlops_sdk.remote.ssh import Host


def pool_key(settings: Settings) -> str:
    """The private key that logs in to the hosts and gateways of the pool.

    Raises:
        SettingsError: its file cannot be read.
    """
    if settings.static_key.get_secret_value():
        return settings.static_key.get_secret_value()
    try:
        return Path(settings.static_key_file).expanduser().read_text()
    except OSError as error:
        raise SettingsError(
            f"the key for the static hosts cannot be read from {settings.static_key_file!r}",
            seen=str(error),
            next_step="set static_key, or static_key_file to a file that this account can read",
        ) from error


def pool_host(settings: Settings, host: StaticHost) -> Host:
    """How to log in to a host of the pool.

    Raises:
        SettingsError: the key cannot be read, or its gateway is not in the settings.
    """
    return Host(
        name=host.name,
        address=host.address,
        host_public_key=host.host_public_key,
        client_private_key=pool_key(settings),
        username=host.user,
        port=host.port,
        via=gateway_of(settings, host.gateway),
    )


def gateway_of(settings: Settings, name: str) -> Host | None:
    """The gateway of this name, to go through; None for no name.

    Raises:
        SettingsError: the settings have none of this name.
    """
    if not name:
        return None
    for gateway in settings.static_gateways:
        if gateway.name == name:
            return Host(
                name=name,
                address=gateway.address,
                host_public_key=gateway.host_public_key,
                client_private_key=pool_key(settings),
                username=gateway.user,
                port=gateway.port,
            )
    raise SettingsError(
        f"there is no gateway {name!r}",
        seen=", ".join(gateway.name for gateway in settings.static_gateways) or "the settings name none",
        next_step="add it to static_gateways",
    )
