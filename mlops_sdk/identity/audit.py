"""The audit log: every credential minted, revoked or refused, every machine the reaper took back. Append-only, in S3.

One object an entry, made by conditional PUT below ``audit/<day>/``; each names the hash of its writer's one before, so
that a missing or changed entry shows. The bucket's owner can still delete; runs cannot (see `identity.s3_policy`).
"""

from __future__ import annotations

import getpass
import socket
import threading
import uuid
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from time import monotonic
from typing import Any

from mlops_sdk.config import Settings
from mlops_sdk.errors import AccessDenied, LeaseLost, MlopsError, RemoteError
from mlops_sdk.identity.audit_entry import AuditEntry, AuditResult, day_prefix
from mlops_sdk.objects import ObjectStore

_READERS = 8
_SILENCE_S = 30.0


class Audit:
    """One process's part of the log. Thread-safe.

    Args:
        store: The deployment's bucket; None writes nowhere, for fakes.
        who: Person or service, and login.
        now: The clock.
    """

    def __init__(
        self, store: ObjectStore | None, who: str, *, now: Callable[[], datetime] = lambda: datetime.now(UTC)
    ) -> None:
        self._store = store
        self._who = who
        self._now = now
        self.writer = uuid.uuid4().hex[:12]
        self._last: AuditEntry | None = None
        self._backlog: list[AuditEntry] = []
        self._silent_until = 0.0
        self._lock = threading.Lock()  # of what is kept
        self._writing = threading.Lock()  # held while S3 is asked, which can take long

    def append(self, action: str, resource: str, result: AuditResult, /, **detail: Any) -> AuditEntry:
        """Write one entry, behind what is still to be written.

        Raises:
            RemoteError: S3 failed; the entry is kept and written by the next call.
        """
        entry = self._keep(action, resource, result, detail)
        self._flush(wait=True)
        return entry

    def note(self, action: str, resource: str, result: AuditResult, /, **detail: Any) -> None:
        """As `append`, for what must not fail because S3 is away: kept, and written by a later call."""
        self._keep(action, resource, result, detail)
        if monotonic() >= self._silent_until:  # each try takes seconds, and giving back must not wait
            with suppress(RemoteError):
                self._flush(wait=False)

    @contextmanager
    def around(self, action: str, resource: str, *, must: bool, **detail: Any) -> Generator[dict[str, Any]]:
        """Write that it was asked, let it happen, write what came of it. Yields the outcome's details.

        Args:
            action: What.
            resource: On what.
            must: Whether it may not happen when it cannot be written down: for giving rights, not for taking them.
            detail: What is known before.
        """
        write = self.append if must else self.note
        outcome = dict(detail)
        try:
            write(action, resource, AuditResult.ASKED, **detail)
            yield outcome
        except Exception as error:
            refused = isinstance(error, AccessDenied | LeaseLost)
            result = AuditResult.REFUSED if refused else AuditResult.FAILED
            self.note(action, resource, result, **outcome, error=_words(error))
            raise
        self.note(action, resource, AuditResult.DONE, **outcome)

    @property
    def waiting(self) -> int:
        """Entries that S3 has not taken yet."""
        return len(self._backlog)

    def flush(self) -> None:
        """Write what is kept.

        Raises:
            RemoteError: S3 failed.
        """
        self._flush(wait=True)

    def _keep(self, action: str, resource: str, result: AuditResult, detail: dict[str, Any]) -> AuditEntry:
        with self._lock:
            entry = AuditEntry(
                at=self._now(),
                writer=self.writer,
                number=self._last.number + 1 if self._last else 1,
                who=self._who,
                action=action,
                resource=resource,
                result=result,
                detail=detail,
                previous=self._last.sha256 if self._last else "",
            )
            self._last = entry
            self._backlog.append(entry)
            return entry

    def _flush(self, *, wait: bool) -> None:
        """Write what is kept; without `wait`, leave it to the thread that writes now, which looks again afterwards."""
        while self._backlog and self._writing.acquire(blocking=wait):
            try:
                while self._backlog:
                    self._put(self._backlog[0])
                    self._backlog.pop(0)
                self._silent_until = 0.0
            except RemoteError:
                self._silent_until = monotonic() + _SILENCE_S
                raise
            finally:
                self._writing.release()

    def _put(self, entry: AuditEntry) -> None:
        if self._store is not None and not self._store.put_if_absent(entry.key, entry.to_bytes()):
            raise RemoteError(
                f"audit entry {entry.key!r} exists already with other content",
                next_step="find out who writes below audit/ in the bucket; nobody but this process may write this",
            )


def audit_of(settings: Settings, store: ObjectStore, *, service: str = "") -> Audit:
    """The log of this process in a deployment: who runs it, and as what it is logged in to the cloud.

    Args:
        settings: The deployment.
        store: Its bucket.
        service: Name of the service that this process is, such as ``reaper``; "" for a person's program.
    """
    login = settings.keystone.username or f"application credential {settings.keystone.application_credential_id}"
    return Audit(store, f"{service or settings.owner} ({_account()}) as {login}")


def read_audit(store: ObjectStore, *, since: datetime, until: datetime) -> Iterator[AuditEntry]:
    """The entries between two moments, oldest first."""
    day = since.astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    with ThreadPoolExecutor(_READERS) as pool:
        while day <= until:
            keys = [info.key for info in store.list(day_prefix(day))]
            for raw in pool.map(store.get_json, keys):
                if raw is None:
                    continue
                entry = AuditEntry.parse(raw)
                if since <= entry.at <= until:
                    yield entry
            day += timedelta(days=1)


def _words(error: Exception) -> str:
    """Only of our own errors is it known that their words hold no secret."""
    kind = type(error).__name__
    return f"{kind}: {error}" if isinstance(error, MlopsError) else kind


def _account() -> str:
    try:
        return f"{getpass.getuser()}@{socket.gethostname()}"
    except (OSError, KeyError):  # an account without a name
        return socket.gethostname()
