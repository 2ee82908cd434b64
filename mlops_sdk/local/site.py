"""Everything that the definitions of the services share: files, tools, addresses, secrets."""

from __future__ import annotations

import shutil
import string
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from mlops_sdk.config import S3Settings
from mlops_sdk.errors import StackError
from mlops_sdk.local.addresses import LOOPBACK, Addresses
from mlops_sdk.local.layout import Layout, Tools, write_private
from mlops_sdk.local.secrets import Secrets
from mlops_sdk.local.service import base_environment

REGION = "RegionOne"
BUCKET = "mlops"


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """One stack's place in the world.

    Attributes:
        node_host: Address by which machines reach S3; the loopback address when there is no machine network.
    """

    layout: Layout
    tools: Tools
    addresses: Addresses
    secrets: Secrets = field(repr=False)
    node_host: str

    @property
    def listen_hosts(self) -> tuple[str, ...]:
        """Where the services that machines need listen."""
        return (LOOPBACK,) if self.node_host == LOOPBACK else (LOOPBACK, self.node_host)

    def url(self, service: str) -> str:
        """The address of a service on this computer."""
        return self.addresses.url(service)

    def node_url(self, service: str) -> str:
        """The address of a service as machines see it."""
        return self.addresses.url(service, self.node_host)

    def render(self, template: str, values: Mapping[str, str | int | Path], target: Path) -> None:
        """Fill in ``infra/local/templates/<template>`` (``$$`` for a dollar sign) and write it 0600."""
        write_private(target, self.fill(template, values))

    def fill(self, template: str, values: Mapping[str, str | int | Path]) -> str:
        """The text of a template with its values."""
        text = self.tools.infra("templates", template).read_text()
        return string.Template(text).substitute({k: str(v) for k, v in values.items()})

    def run(
        self,
        argv: list[str | Path],
        *,
        log: Path,
        env: Mapping[str, str] | None = None,
        timeout_s: float = 120.0,
        stdin: str = "",
    ) -> str:
        """Run a tool to its end and return its standard output; what it says on standard error goes to `log`.

        What is secret goes in through `env` or `stdin`.

        Raises:
            StackError: it failed or took too long.
        """
        name = Path(argv[0]).name
        with log.open("ab") as errors:
            try:
                done = subprocess.run(
                    argv,
                    env={**base_environment(self.layout.state_dir), **(env or {})},
                    input=stdin.encode(),
                    stdout=subprocess.PIPE,
                    stderr=errors,
                    timeout=timeout_s,
                    check=False,
                )
            except subprocess.TimeoutExpired as error:
                raise StackError(f"{name} took longer than {timeout_s:.0f} s", next_step=f"see {log}") from error
        if done.returncode != 0:
            last = log.read_text(errors="replace").strip().splitlines()[-5:]
            raise StackError(
                f"{name} failed with exit status {done.returncode}", seen="\n".join(last), next_step=f"see {log}"
            )
        return done.stdout.decode()

    def once(self, service: str, make: Callable[[Path], None]) -> None:
        """Make the data directory of a service, unless an earlier call got to the end of it.

        What a call that was killed left half made is removed first.
        """
        data = self.layout.data(service)
        marker = data / ".prepared"
        if marker.exists():
            return
        shutil.rmtree(data, ignore_errors=True)
        data.mkdir(mode=0o700)
        make(data)
        marker.touch()


def s3_settings(site: Site, access_key_id: str, secret_access_key: str) -> S3Settings:
    """How to reach the stack's S3 with a pair of keys."""
    return S3Settings.model_validate(
        {
            "endpoint": site.url("rgw"),
            "node_endpoint": site.node_url("rgw"),
            "access_key_id": access_key_id,
            "secret_access_key": secret_access_key,
            "bucket": BUCKET,
        }
    )
