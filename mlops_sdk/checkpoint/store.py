"""Write checkpoints: shards first, the manifest last, by conditional PUT."""

from __future__ import annotations

import hashlib
import logging
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from pydantic import JsonValue

from mlops_sdk.checkpoint.communicator import Communicator, SingleProcess, agree
from mlops_sdk.checkpoint.manifest import Manifest, Shard, assign, manifest_key, parse_key, shard_key, superfluous
from mlops_sdk.checkpoint.reports import report_of
from mlops_sdk.checkpoint.resume import Checkpoint, Damage, resume
from mlops_sdk.errors import CheckpointConflict, RemoteError
from mlops_sdk.objects import ObjectStore

if TYPE_CHECKING:
    import torch

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Job:
    step: int
    tensors: Mapping[str, torch.Tensor]
    state: Mapping[str, JsonValue]
    program: Mapping[str, JsonValue]


class CheckpointStore:
    """The checkpoints of one run, as one rank of one attempt sees them. Every rank makes the same calls.

    `save` copies the tensors into buffers that are kept from save to save, and returns; a thread uploads. At most one
    upload is in flight: the next `save` or `wait` waits for it and raises what went wrong. Retries are those of the S3
    client. When a save fails, what was committed before stays.

    Args:
        store: The bucket.
        prefix: ``runs/<run key>/checkpoints``.
        run_id: Goes into the manifest.
        attempt: Which start of the job this is; a left-over rank of an earlier one cannot overwrite our shards.
        comm: The ranks.
        keep: How many committed checkpoints to keep.
        now: The clock for the manifest's `created`.

    Example:
        >>> checkpoints = CheckpointStore(store, "runs/abc/checkpoints", run_id="...", attempt=1)  # doctest: +SKIP
        >>> found = checkpoints.load_latest()  # doctest: +SKIP
        >>> checkpoints.save(10, {"weight": weight}, state={"seen": 640})  # doctest: +SKIP
        >>> checkpoints.wait()  # doctest: +SKIP
    """

    def __init__(
        self,
        store: ObjectStore,
        prefix: str,
        *,
        run_id: str,
        attempt: int,
        comm: Communicator | None = None,
        keep: int = 2,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._store = store
        self._prefix = prefix.rstrip("/")
        self._run_id = run_id
        self._attempt = attempt
        self._comm = comm or SingleProcess()
        self._keep = keep
        self._now = now
        self._buffers: dict[str, torch.Tensor] = {}
        self._thread: threading.Thread | None = None
        self._failure: BaseException | None = None
        self._latest: Manifest | None = None
        self._condemned: dict[int, str] = {}
        self.damages: tuple[Damage, ...] = ()

    def load_latest(self) -> Checkpoint | None:
        """The newest committed checkpoint that verifies on every rank; None when there is none.

        What was passed over because it is damaged is in `damages` afterwards, and logged.
        """
        found = resume(self._store, self._prefix, self._comm)
        self.damages = found.damages
        self._condemned = dict(found.condemned)
        for damage in found.damages:
            _log.warning("%s", damage)
        if found.checkpoint is not None:
            self._latest = found.checkpoint.manifest
        return found.checkpoint

    def save(
        self,
        step: int,
        tensors: Mapping[str, torch.Tensor],
        *,
        own: Mapping[str, torch.Tensor] | None = None,
        state: Mapping[str, JsonValue] | None = None,
        program: Mapping[str, JsonValue] | None = None,
    ) -> None:
        """Begin to store a checkpoint.

        Args:
            step: Training steps done.
            tensors: What all ranks hold alike; each rank writes its part of them.
            own: What only this rank holds; stored as ``rank-<rank>/<name>``.
            state: Scalars; rank 0's count.
            program: What the program wants to find in the manifest; rank 0's count.

        Raises:
            Exception: what went wrong in the save before this one.
        """
        self.wait()
        mine = assign({name: t.nbytes for name, t in tensors.items()}, self._comm.world_size)[self._comm.rank]
        chosen = {name: tensors[name] for name in mine}
        chosen.update({own_name(self._comm.rank, name): tensor for name, tensor in (own or {}).items()})
        job = _Job(step=step, tensors=self._snapshot(chosen), state=dict(state or {}), program=dict(program or {}))
        self._thread = threading.Thread(target=self._run, args=(job,), name=f"checkpoint-{step}", daemon=True)
        self._thread.start()

    def wait(self) -> Manifest | None:
        """Wait for the upload in flight. Returns the newest commit this object knows of.

        Raises:
            ServiceUnavailable: S3 did not answer, on whichever rank.
            CheckpointConflict: somebody else committed this step.
        """
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        failure, self._failure = self._failure, None
        if failure is not None:
            raise failure
        return self._latest

    def _snapshot(self, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        import torch  # noqa: PLC0415 - extra [train]

        buffers: dict[str, torch.Tensor] = {}
        for name, tensor in tensors.items():
            buffer = self._buffers.get(name)
            if buffer is None or buffer.shape != tensor.shape or buffer.dtype != tensor.dtype:
                buffer = torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu")
            buffers[name] = buffer.copy_(tensor.detach())
        self._buffers = buffers
        return buffers

    def _run(self, job: _Job) -> None:
        try:
            self._latest = self._write(job)
        except BaseException as error:  # noqa: BLE001 - kept for the training thread, which raises it
            self._failure = error

    def _write(self, job: _Job) -> Manifest:
        report: JsonValue
        try:
            report = {"shard": self._put_shard(job).model_dump(mode="json")}
        except Exception as error:  # noqa: BLE001 - the other ranks wait for an answer, whatever went wrong here
            report = report_of(error)
        reports = agree(self._comm, report)
        shards = tuple(Shard.model_validate(r["shard"]) for r in reports if isinstance(r, dict))
        outcome: JsonValue = None
        if self._comm.rank == 0:
            try:
                outcome = {"manifest": self._commit(job, shards).model_dump(mode="json")}
            except Exception as error:  # noqa: BLE001 - as above
                outcome = report_of(error)
        committed = agree(self._comm, outcome)[0]
        return Manifest.model_validate(committed["manifest"] if isinstance(committed, dict) else None)

    def _put_shard(self, job: _Job) -> Shard:
        from safetensors.torch import save  # noqa: PLC0415 - extra [train]

        body = save(dict(job.tensors))
        key = shard_key(self._prefix, job.step, self._attempt, self._comm.rank, self._comm.world_size)
        self._store.put(key, body)
        digest = hashlib.sha256(body).hexdigest()
        return Shard(key=key, bytes=len(body), sha256=digest, tensors=tuple(sorted(job.tensors)))

    def _commit(self, job: _Job, shards: tuple[Shard, ...]) -> Manifest:
        manifest = Manifest(
            run_id=self._run_id,
            step=job.step,
            attempt=self._attempt,
            world_size=self._comm.world_size,
            created=self._now(),
            shards=shards,
            state=dict(job.state),
            program=dict(job.program),
        )
        key = manifest_key(self._prefix, job.step)
        if not self._put_manifest(key, job.step, manifest.to_bytes()):
            raise CheckpointConflict(
                f"step {job.step} is committed already, with other content: {key!r}",
                seen=f"attempt {self._attempt} lost the conditional PUT",
                next_step="make sure that one attempt of the run is at work; a new attempt resumes from that commit",
            )
        self._condemned.pop(job.step, None)
        self._tidy(manifest)
        return manifest

    def _put_manifest(self, key: str, step: int, body: bytes) -> bool:
        """Commit; a manifest that this attempt found damaged is replaced, as long as it is still that one."""
        if self._store.put_if_absent(key, body):
            return True
        etag = self._condemned.get(step)
        return bool(etag) and self._store.put_if_match(key, body, etag) is not None

    def _tidy(self, newest: Manifest) -> None:
        """Remove what is not needed any more; what fails now is tried again after the next commit."""
        try:
            objects = [parse_key(self._prefix, info.key) for info in self._store.list(f"{self._prefix}/")]
            for key in superfluous([o for o in objects if o is not None], newest, keep=self._keep):
                self._store.delete(key)
        except RemoteError as error:
            _log.warning("old checkpoints below %r could not be removed: %s", self._prefix, error)


def own_name(rank: int, name: str) -> str:
    """The name under which a tensor is stored that only one rank holds."""
    return f"rank-{rank:05d}/{name}"
