"""What a job needs of the run it belongs to."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from pydantic import SecretStr

from mlops_sdk.capacity.node import Node
from mlops_sdk.capacity.orders import Notice
from mlops_sdk.capacity.spending import ATTEMPT
from mlops_sdk.config import PerRun, S3Settings
from mlops_sdk.identity.audit import audit_of
from mlops_sdk.identity.ssh_keys import SshKey
from mlops_sdk.identity.sts import RunTokens, StsTokens
from mlops_sdk.journal import EntryKind, Journal
from mlops_sdk.names import run_key
from mlops_sdk.objects import ObjectStore
from mlops_sdk.remote.pool import gateway_of
from mlops_sdk.remote.ssh import Host
from mlops_sdk.steps import Steps
from mlops_sdk.training.metrics import Tracking

if TYPE_CHECKING:
    from mlops_sdk.run import Run

_log = logging.getLogger(__name__)


def as_they_are(nodes: Sequence[Node]) -> Steps[Sequence[Node]]:
    """Where nothing can be repaired."""
    yield from ()
    return nodes


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """What the machines must be told besides the program, and how to reach them.

    Attributes:
        run_id: The run that owns everything.
        client_key: Logs the controller in to the machines.
        peer_key: Logs the machines in to each other.
        store: The deployment's bucket, as the controller reaches it.
        node_s3: The same bucket with the credentials the machines get; its `node_endpoint` is where they reach it.
        tokens: Makes the machines' S3 logins, which take the place of the keys in `node_s3`; None where S3 has no STS.
        tracking: MLflow run for metrics, if wanted; the controller sends them.
        secrets: Named secrets for the program.
        ssh_timeout_s: How long a machine may take to answer.
        journal: Where attempts are written down, which is how their cost is told from idling; None for nowhere.
        generation: Of the lease.
        gateways: By name: those that machines of the lease may be behind.
        ending: Asked about once a second: the notice that the lease has, if it has one. The program is told.
        mend: Given the machines of the job after one went away: those to go on with.
    """

    run_id: uuid.UUID
    client_key: SshKey = field(repr=False)
    peer_key: SshKey = field(repr=False)
    store: ObjectStore = field(repr=False)
    node_s3: S3Settings
    tokens: RunTokens | None = field(default=None, repr=False)
    tracking: Tracking | None = field(default=None, repr=False)
    secrets: Mapping[str, SecretStr] = field(default_factory=dict[str, SecretStr], repr=False)
    ssh_timeout_s: float = 120.0
    journal: Journal | None = field(default=None, repr=False)
    generation: int = 0
    gateways: Mapping[str, Host] = field(default_factory=dict[str, Host], repr=False)
    ending: Callable[[], Notice | None] = field(default=lambda: None, repr=False)
    mend: Callable[[Sequence[Node]], Steps[Sequence[Node]]] = field(default=as_they_are, repr=False)

    @classmethod
    def of(cls, run: Run, *, tracking_run_id: str = "", secrets: Mapping[str, SecretStr] | None = None) -> Site:
        """The site of a run that holds a lease.

        Args:
            run: Gives keys, bucket and settings.
            tracking_run_id: MLflow run that gets the metrics; "" for none.
            secrets: Named secrets for the program.
        """
        from mlops_sdk.repairing import mending  # noqa: PLC0415 - it looks at machines over SSH, as a site tells how

        settings = run.settings
        return cls(
            run_id=run.id,
            client_key=run.client_key,
            peer_key=run.peer_key,
            store=run.store,
            node_s3=settings.s3.model_copy(update={"per_run": PerRun.NONE, "run_role": ""}),
            tokens=_tokens(run),
            tracking=Tracking(settings=settings.mlflow, run_id=tracking_run_id) if tracking_run_id else None,
            secrets=secrets or {},
            ssh_timeout_s=settings.lease.ssh_timeout_s,
            journal=run.journal,
            generation=run.generation,
            gateways={g.name: found for g in settings.static_gateways if (found := gateway_of(settings, g.name))},
            ending=run.ending,
            mend=lambda nodes: mending(run, nodes),
        )

    @property
    def run_key(self) -> str:
        """The run's key in names."""
        return run_key(self.run_id)

    @property
    def prefix(self) -> str:
        """Where the run's objects are."""
        return f"runs/{self.run_key}"

    def host(self, node: Node) -> Host:
        """How to log in to a machine of the lease."""
        return Host(
            name=node.name,
            address=node.address,
            host_public_key=node.host_public_key,
            client_private_key=self.client_key.private,
            username=node.user,
            port=node.port,
            via=self.gateways[node.gateway] if node.gateway else None,
        )

    def note_begin(self, attempt: int) -> None:
        """Write down that an attempt is at work from now on. Never fails because S3 is down."""
        if self.journal is not None:
            self.journal.note(EntryKind.INTENT, ATTEMPT, generation=self.generation, attempt=attempt)

    def note_end(self, attempt: int, cause: str) -> None:
        """Write down how it ended. One that nobody lived to write down ends with the next one or with the release."""
        if self.journal is not None:
            self.journal.note(EntryKind.OUTCOME, ATTEMPT, generation=self.generation, attempt=attempt, cause=cause)


def _tokens(run: Run) -> RunTokens | None:
    if run.settings.s3.per_run is PerRun.STS:
        return StsTokens(run.settings.s3, run.key, audit_of(run.settings, run.store))
    _log.warning(
        "the machines of run %s get the deployment's own S3 login: s3.per_run is none, see `mlops doctor`", run.key
    )
    return None
