"""The settings of a deployment: where its services are and how to authenticate to them.

Read, later over earlier: defaults, the TOML file (``MLOPS_CONFIG``, else ``.mlops/stacks/default/client.toml`` below
the working directory), environment variables ``MLOPS_<GROUP>__<FIELD>``. `mlops local up` writes such a file (0600).
"""

from __future__ import annotations

import os
import uuid
from enum import StrEnum
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError, model_validator
from pydantic_settings import SettingsConfigDict

from mlops_sdk.capacity.flavors import Delivery, Expected
from mlops_sdk.errors import SettingsError
from mlops_sdk.invalid import wrong_fields
from mlops_sdk.layered import LayeredSettings, read_toml

DEFAULT_CONFIG = Path(".mlops/stacks/default/client.toml")
_HOST_NAME = r"^[a-z0-9][a-z0-9.-]{0,62}$"


class _Group(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class PerRun(StrEnum):
    """Which S3 login the machines of a run get."""

    STS = "sts"  # a short-lived one that reaches the run's own objects and inputs only
    NONE = "none"  # the deployment's own: where the S3 server has no STS


class S3Settings(_Group):
    """An S3 endpoint. `node_endpoint` is what machines are told when they reach it at another address.

    With `per_run` ``sts``, `run_role` (an ARN) is assumed for each run, for `token_s` seconds at a time. A machine has
    no keys but a `credentials_file`, which the controller renews.
    """

    endpoint: str
    node_endpoint: str = ""
    region: str = "us-east-1"
    access_key_id: str
    secret_access_key: SecretStr
    bucket: str = "mlops"
    ca_bundle: str = ""
    per_run: PerRun = PerRun.NONE
    run_role: str = ""
    token_s: float = Field(
        default=900.0, gt=0, description="a token lives this long after its run; S3 cannot revoke it"
    )
    credentials_file: str = ""

    @model_validator(mode="after")
    def _has_a_role(self) -> Self:
        if self.per_run is PerRun.STS and not self.run_role:
            raise ValueError("per_run 'sts' needs run_role")
        return self


class KeystoneSettings(_Group):
    """How to log in to OpenStack: a user with a password, or an application credential."""

    auth_url: str
    region: str = "RegionOne"
    username: str = ""
    password: SecretStr = SecretStr("")
    project_name: str = ""
    user_domain_name: str = "Default"
    project_domain_name: str = "Default"
    application_credential_id: str = ""
    application_credential_secret: SecretStr = SecretStr("")


class MlflowSettings(_Group):
    """The MLflow tracking server and registry, with authentication on. `alias` marks the version that serves."""

    tracking_uri: str
    username: str = ""
    password: SecretStr = SecretStr("")
    alias: str = "champion"


class StaticGateway(_Group):
    """A machine through which hosts of the fixed pool are reached over SSH, with the pool's key."""

    name: str = Field(pattern=_HOST_NAME)
    address: str
    port: int = Field(default=22, gt=0, lt=65536)
    user: str = "mlops"
    host_public_key: str


class StaticHost(_Group):
    """A host of the fixed pool: always on, leased by a claim in S3.

    `user` is an account that only leases use; `gateway` names the one it is reached through, if it is.
    """

    name: str = Field(pattern=_HOST_NAME)
    address: str
    port: int = Field(default=22, gt=0, lt=65536)
    user: str = "mlops"
    host_public_key: str
    resource_class: str
    traits: tuple[str, ...] = ()
    gpus: int = Field(default=0, ge=0)
    gateway: str = ""


class IronicImage(_Group):
    """What Ironic writes to the disk of a bare metal machine of a class."""

    source: str = Field(min_length=1, description="http(s):// or file:// URL, or the id of an image in Glance")
    checksum: str = Field(
        default="", description="SHA-256 or SHA-512, or the URL of a file of them; Glance knows its own"
    )
    kernel: str = Field(default="", description="of a partition image")
    ramdisk: str = Field(default="", description="of a partition image")
    root_gib: int = Field(default=0, ge=0, description="size of the root file system of a partition image")

    @model_validator(mode="after")
    def _is_whole(self) -> Self:
        if self.source.startswith(("http://", "https://")) and not self.checksum:
            raise ValueError(f"checksum is missing: Ironic writes nothing from {self.source} without one")
        if bool(self.kernel) != bool(self.ramdisk):
            raise ValueError("a partition image has a kernel and a ramdisk; name both or none")
        return self

    @property
    def instance_info(self) -> dict[str, str | int]:
        """In Ironic's words: https://docs.openstack.org/ironic/latest/user/deploy.html."""
        told: dict[str, str | int] = {
            "image_source": self.source,
            "image_checksum": self.checksum,
            "kernel": self.kernel,
            "ramdisk": self.ramdisk,
            "root_gb": self.root_gib,
        }
        return {key: value for key, value in told.items() if value}


class NovaFlavor(_Group):
    """What a flavor is meant to give; checked before a server is asked for. What is left out is not checked."""

    delivery: Delivery | None = None
    accelerators: int = Field(default=0, ge=0)
    card: str = ""
    numa_affinity: str = ""
    numa_nodes: int = Field(default=0, ge=0)
    pinned: bool = False
    placement_class: str = Field(default="", description="under which Placement counts a passed-through card")

    @property
    def expected(self) -> Expected:
        """As the check takes it."""
        return Expected(**self.model_dump())


class NovaSettings(_Group):
    """Servers of Nova as machines. The class of a machine is its flavor; `flavors`: those that may be asked for."""

    networks: tuple[str, ...] = Field(min_length=1, description="names or ids; we log in through the first")
    image: str = Field(min_length=1, description="name or id; cloud-init and an SSH daemon in it")
    user: str = Field(default="root", description="root, or the image's own user")
    availability_zone: str = ""
    security_groups: tuple[str, ...] = ()
    vnic_types: dict[str, Literal["normal", "direct", "direct-physical", "macvtap"]] = Field(
        default_factory=dict[str, Literal["normal", "direct", "direct-physical", "macvtap"]],
        description="of the port on a network, where it is not normal: direct is a virtual function of the card",
    )
    gateway: str = Field(default="", description="one of static_gateways, where servers are reached through it")
    root_volume_gib: int = Field(default=0, ge=0, description="boot from a volume of this size instead of a local disk")
    data_volume_gib: int = Field(default=0, ge=0, description="an empty volume besides")
    volume_type: str = ""
    most_servers: int = Field(default=16, gt=0, description="of a flavor, where the cloud does not say how many fit")
    flavors: dict[str, NovaFlavor] = Field(default_factory=dict[str, NovaFlavor])
    service_login: KeystoneSettings | None = Field(
        default=None, description="the reaper's: a user with the role service; Cyborg lets nobody else free a card"
    )

    @model_validator(mode="after")
    def _types_are_of_its_networks(self) -> Self:
        unknown = set(self.vnic_types) - set(self.networks)
        if unknown:
            raise ValueError(f"vnic_types name {', '.join(sorted(unknown))}, which is not in networks")
        return self


class LeaseSettings(_Group):
    """How long things are held. All in seconds."""

    renew_for_s: float = Field(default=120.0, gt=0, description="each renewal extends the hold by this much")
    grace_s: float = Field(default=900.0, ge=0, description="credential expiry = deadline + grace")
    notice_s: float = Field(default=120.0, ge=0, description="a job is told so long before its lease ends")
    clock_skew_s: float = Field(default=2.0, ge=0)
    reaper_period_s: float = Field(default=10.0, gt=0)
    deploy_timeout_s: float = Field(default=1800.0, gt=0)
    clean_timeout_s: float = Field(default=7200.0, gt=0)
    loss_evidence: int = Field(default=2, ge=1, description="so many channels must miss a machine before it is lost")
    loss_after_s: float = Field(default=30.0, ge=0, description="and for so long")
    fence_timeout_s: float = Field(default=60.0, gt=0, description="for a BMC to confirm that a machine is off")
    failures_in_a_row: int = Field(default=3, ge=1, description="then a machine that does not come up leaves the pool")
    reclean_tries: int = Field(default=3, ge=0, description="then a machine that cannot be cleaned leaves the pool")
    ssh_timeout_s: float = Field(default=120.0, gt=0, description="from node active to the first SSH answer")
    poll_s: float = Field(default=2.0, gt=0)
    metrics_file: str = Field(default="", description="where the reaper leaves its figures for Prometheus, a *.prom")
    share_half_life_s: float = Field(default=7 * 86400.0, gt=0, description="use that is this old counts half")
    shares: dict[str, float] = Field(
        default_factory=dict[str, float], description="capacity meant for each owner, relative; 1 where not named"
    )


class CostSettings(_Group):
    """Prices besides those of machines, which are `node_seconds_price`. In the deployment's currency."""

    storage_gib_month: float = Field(default=0.0, ge=0, description="one GiB in the bucket for a month of 365/12 days")
    serving_second: float = Field(default=0.0, ge=0, description="one second of the host that serves")


class BudgetSettings(_Group):
    """What an owner may spend on machines in a calendar month (UTC), in the deployment's currency."""

    per_month: float | None = Field(default=None, ge=0, description="for owners that `owners` does not name")
    owners: dict[str, float] = Field(default_factory=dict[str, float], description="by owner")
    raised_by: str = Field(default="", description="who may raise it: shown to those who are refused")


class Settings(LayeredSettings):
    """All settings of one deployment.

    Attributes:
        environment: Such as dev, test or prod: what has one has a bucket and the alias ``champion-<environment>`` of
            its own, and is refused those of others. "" where there is only one.

    Raises:
        SettingsError: from :meth:`load`, naming the field and the file.
    """

    model_config = SettingsConfigDict(env_prefix="MLOPS_", env_nested_delimiter="__", extra="forbid", frozen=True)

    deployment_id: uuid.UUID
    broker_key: SecretStr = Field(min_length=32)
    owner: str = "unknown"
    environment: str = Field(default="", pattern=r"^([a-z][a-z0-9-]{0,15})?$")
    s3: S3Settings
    keystone: KeystoneSettings
    mlflow: MlflowSettings
    lease: LeaseSettings = LeaseSettings()
    nova: NovaSettings | None = None
    static_hosts: tuple[StaticHost, ...] = ()
    static_gateways: tuple[StaticGateway, ...] = ()
    static_key: SecretStr = Field(default=SecretStr(""), description="logs in to the static hosts; or its file:")
    static_key_file: str = ""
    ironic: bool = Field(default=True, description="the cloud has Ironic; without it, times are judged by S3's clock")
    ironic_images: dict[str, IronicImage] = Field(
        default_factory=dict[str, IronicImage], description='by class of machine; "*": of every other'
    )
    node_seconds_price: dict[str, float] = Field(default_factory=dict[str, float])
    currency: str = "EUR"
    cost: CostSettings = CostSettings()
    budget: BudgetSettings = BudgetSettings()

    @model_validator(mode="after")
    def _pool_is_whole(self) -> Self:
        names = [host.name for host in self.static_hosts]
        if len(set(names)) < len(names):
            raise ValueError("two static_hosts have one name")
        used = {host.gateway for host in self.static_hosts} | {self.nova.gateway if self.nova else ""}
        unknown = used - {"", *(found.name for found in self.static_gateways)}
        if unknown:
            raise ValueError(
                f"static_hosts or nova name gateways that are not in static_gateways: {', '.join(sorted(unknown))}"
            )
        if names and not (self.static_key.get_secret_value() or self.static_key_file):
            raise ValueError("static_hosts need static_key or static_key_file")
        return self

    @model_validator(mode="after")
    def _own_alias(self) -> Self:
        expected = f"champion-{self.environment}"
        if self.environment and self.mlflow.alias != expected:
            raise ValueError(f"environment {self.environment!r} needs mlflow.alias {expected!r}")
        return self

    def instance_info_for(self, resource_class: str) -> dict[str, str | int]:
        """What Ironic is told of the image for a class of machines; empty where nothing is configured for it."""
        image = self.ironic_images.get(resource_class) or self.ironic_images.get("*")
        return image.instance_info if image is not None else {}

    @classmethod
    def load(cls, path: Path | None = None) -> Settings:
        """Read the settings of this deployment.

        Args:
            path: The TOML file; default as the module says. A file named explicitly must exist.
        """
        source = path or Path(os.environ.get("MLOPS_CONFIG") or DEFAULT_CONFIG)
        explicit = path is not None or "MLOPS_CONFIG" in os.environ
        data: dict[str, Any] = {}
        if source.exists():
            data = read_toml(source, next_step="correct the file, or point MLOPS_CONFIG at another")
        elif explicit:
            raise SettingsError(
                f"settings file {str(source)!r} does not exist",
                next_step="start the embedded stack with `mlops local up`, or point MLOPS_CONFIG at your file",
            )
        try:
            return cls(**data)
        except ValidationError as error:
            raise SettingsError(
                f"settings from {str(source)!r} and MLOPS_* variables are incomplete or wrong",
                seen=wrong_fields(error),
                next_step="set the named fields; `mlops doctor` checks them against the services",
            ) from None
