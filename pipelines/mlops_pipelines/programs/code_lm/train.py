"""The program that every rank runs: data-parallel training that resumes by itself, evaluation, export.

python -m mlops_sdk.training.worker  ->  this module, under torchrun or mpirun alike
"""

from __future__ import annotations

import hashlib
import logging
import shutil
import time
from collections.abc import Mapping
from datetime import timedelta
from typing import NoReturn

import torch
import torch.distributed as dist
from pydantic import JsonValue
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn import functional

from mlops_pipelines.programs.code_lm.corpus import FILE_NAME, PreparedData
from mlops_pipelines.programs.code_lm.evaluate import HeldOut
from mlops_pipelines.programs.code_lm.export import read_model, write_model
from mlops_pipelines.programs.code_lm.model import Llama, Shape
from mlops_pipelines.programs.code_lm.plan import TrainArgs, check_world, learning_rate, sequences
from mlops_pipelines.programs.code_lm.warm_start import warm_start
from mlops_sdk.checkpoint.communicator import SingleProcess, TorchCommunicator
from mlops_sdk.checkpoint.manifest import Manifest, manifest_key
from mlops_sdk.checkpoint.snapshot import rank_tensors, restore, training_tensors
from mlops_sdk.checkpoint.store import CheckpointStore
from mlops_sdk.registry.model_files import fetch_model, upload_model
from mlops_sdk.registry.provenance import package_versions
from mlops_sdk.training.worker import WorkerContext, context

_log = logging.getLogger(__name__)
_PACKAGES = ("torch", "numpy", "safetensors", "tokenizers", "transformers", "openinfra-mlops")
_PEER_TIMEOUT = timedelta(minutes=5)


def main() -> None:
    """Train as this rank of the job."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    ctx = context()
    if ctx.world_size > 1:
        dist.init_process_group("gloo", timeout=_PEER_TIMEOUT)
    try:
        train(ctx)
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


def train(ctx: WorkerContext) -> dict[str, JsonValue]:
    """Train to the last step from the newest commit, evaluate, export; returns (and on rank 0 reports) the result."""
    torch.set_num_threads(1)
    args = TrainArgs.parse(ctx.args)
    check_world(args, ctx.world_size)
    data = PreparedData.open(ctx.data(FILE_NAME))
    champion = _champion(ctx, args)  # before the training: one that is not there costs nothing
    trainer = Trainer(ctx, args, data, earlier=champion if args.warm_start else None)
    first = trainer.resume()
    started = time.monotonic()
    for step in range(first, args.steps):
        trainer.step(step)
        if step + 1 < args.steps and trainer.told_to_stop():
            trainer.stop(step + 1)
    committed = trainer.checkpoints.wait()
    trained_s = time.monotonic() - started
    result: dict[str, JsonValue] = {
        "steps": args.steps,
        "resumed_from": first,
        "train_s": round(trained_s, 3),
        "tokens_per_s": round((args.steps - first) * args.batch * args.seq_len / max(trained_s, 1e-9), 1),
        "attempt": ctx.attempt,
        "world_size": ctx.world_size,
        "parameters": trainer.model.parameter_count(),
        "damaged_checkpoints": [str(damage) for damage in trainer.checkpoints.damages],
        "packages": dict[str, JsonValue](package_versions(_PACKAGES)),
        **trainer.evaluate(champion),
    }
    if ctx.rank == 0:
        result |= export(ctx, trainer.model, data, committed, result)
    ctx.report_result(result)
    return result


class Trainer:
    """Model, optimizer, data and checkpoints of one rank."""

    def __init__(
        self, ctx: WorkerContext, args: TrainArgs, data: PreparedData, *, earlier: tuple[Llama, Tokenizer] | None = None
    ) -> None:
        self._ctx = ctx
        self._args = args
        self._data = data
        self._tokens = data.stream("train")
        torch.manual_seed(args.seed)  # the same model on every rank
        self.model = Llama(_shape(args, data))
        if earlier is not None:
            kept = warm_start(self.model, data.tokenizer(), *earlier)
            _log.info("begins with the champion's weights; %d of %d tokens are its own", kept, data.meta.vocabulary)
        self._parallel: nn.Module = self.model
        if ctx.world_size > 1:
            self._parallel = nn.parallel.DistributedDataParallel(self.model, gradient_as_bucket_view=True)
        self._optimizer = _optimizer(self.model, args)
        self.checkpoints = CheckpointStore(
            ctx.store,
            _checkpoints(ctx),
            run_id=str(ctx.run_id),
            attempt=ctx.attempt,
            comm=TorchCommunicator() if ctx.world_size > 1 else SingleProcess(),
            keep=args.keep,
        )
        self._since = time.monotonic()

    def resume(self) -> int:
        """Load the newest good commit; returns the number of steps done (0 when there is none)."""
        found = self.checkpoints.load_latest()
        if found is None:
            torch.manual_seed(self._args.seed * 1000 + self._ctx.rank)
            _log.info("no checkpoint: starting at step 0")
            return 0
        restore(found.tensors, self.model, self._optimizer, rank=self._ctx.rank)
        _log.info("resumed from the checkpoint of step %d (attempt %d)", found.step, found.manifest.attempt)
        return found.step

    def step(self, step: int) -> None:
        """One optimizer step on this rank's share of the batch; logs and commits when it is time."""
        args, ctx = self._args, self._ctx
        rate = learning_rate(args, step)
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        self._parallel.train()
        ids = torch.from_numpy(sequences(self._tokens, args, step, ctx.rank, ctx.world_size))
        loss = functional.cross_entropy(self._parallel(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten())
        self._optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), args.clip)
        self._optimizer.step()
        done = step + 1
        if done % args.log_every == 0 or done == args.steps:
            self._log(done, loss.detach(), rate)
        if done % args.checkpoint_every == 0 or done == args.steps:
            self._save(done, rate)

    def told_to_stop(self) -> bool:
        """Whether any rank knows that the lease ends; all ranks get the same answer."""
        return self._sum_up(float(self._ctx.ending())) > 0

    def stop(self, done: int) -> NoReturn:
        """Commit what is done and end: the next lease goes on from here."""
        if done % self._args.checkpoint_every:
            self._save(done, learning_rate(self._args, done - 1))
        self.checkpoints.wait()
        _log.info("the lease ends: stopped after step %d", done)
        self._ctx.stop(done)

    def evaluate(self, champion: tuple[Llama, Tokenizer] | None = None) -> dict[str, JsonValue]:
        """Bits per byte on the held-out sample of each kind, of this model, the baseline and the champion, if any.

        All ranks together. Tokenizers differ from model to model; bytes do not.
        """
        args, ctx = self._args, self._ctx
        held_out = HeldOut(
            self._data, args.evaluate_bytes, rank=ctx.rank, world_size=ctx.world_size, sum_up=self._sum_up
        )
        started = time.monotonic()
        ours = held_out.of(self.model, seq_len=args.seq_len)
        figures: dict[str, JsonValue] = {
            "bits_per_byte": held_out.together(ours),
            "held_out": dict[str, JsonValue](ours),
            "held_out_bytes": sum(held_out.sizes.values()),
            "held_out_files": held_out.files,
            "baseline_held_out": dict[str, JsonValue](held_out.of_baseline()),
        }
        if champion is not None:
            model, tokenizer = champion
            seq_len = min(args.seq_len, model.shape.context)
            figures["champion_held_out"] = dict[str, JsonValue](held_out.of_other(model, tokenizer, seq_len=seq_len))
        figures["evaluate_s"] = round(time.monotonic() - started, 3)
        named = {f"held_out_{kind}": value for kind, value in ours.items()}
        ctx.log_metrics(args.steps, {"held_out_bits_per_byte": held_out.together(ours), **named})
        return figures

    def _log(self, done: int, loss: Tensor, rate: float) -> None:
        mean = float(self._sum(loss)) / self._ctx.world_size
        now = time.monotonic()
        tokens = self._args.log_every * self._args.batch * self._args.seq_len
        speed = tokens / max(now - self._since, 1e-9)
        self._since = now
        self._ctx.log_metrics(done, {"loss": mean, "learning_rate": rate, "tokens_per_s": speed})

    def _save(self, done: int, rate: float) -> None:
        args = self._args
        self.checkpoints.save(
            done,
            training_tensors(self.model, self._optimizer),
            own=rank_tensors(),
            state={"step": done, "sequences": done * args.batch, "learning_rate": rate},
            program={"name": "code_lm", "args": args.model_dump(mode="json"), "data_sha256": self._data.sha256},
        )

    def _sum_up(self, value: float) -> float:
        return float(self._sum(torch.tensor(value, dtype=torch.float64)))

    def _sum(self, value: Tensor) -> Tensor:
        if self._ctx.world_size > 1:
            dist.all_reduce(value)
        return value


def export(
    ctx: WorkerContext,
    model: Llama,
    data: PreparedData,
    committed: Manifest | None,
    result: Mapping[str, JsonValue],
) -> dict[str, JsonValue]:
    """Store the model below ``<prefix>/model``; returns what the result says about it."""
    folder = ctx.scratch / f"model-{ctx.run_key}"
    shutil.rmtree(folder, ignore_errors=True)
    write_model(model, data.tokenizer_json(), folder)
    prefix = f"{ctx.prefix}/model"
    about: dict[str, JsonValue] = {
        "run_id": str(ctx.run_id),
        "attempt": ctx.attempt,
        "data_sha256": data.sha256,
        "bits_per_byte": result["bits_per_byte"],
        "held_out": result["held_out"],
    }
    digest = upload_model(ctx.store, prefix, folder, about)
    told: dict[str, JsonValue] = {"model": {"prefix": prefix, "manifest_sha256": digest}, "data_sha256": data.sha256}
    if committed is not None:
        told["checkpoint"] = {
            "key": manifest_key(_checkpoints(ctx), committed.step),
            "sha256": hashlib.sha256(committed.to_bytes()).hexdigest(),
            "step": committed.step,
        }
    return told


def _champion(ctx: WorkerContext, args: TrainArgs) -> tuple[Llama, Tokenizer] | None:
    if args.champion is None:
        return None
    folder = ctx.scratch / f"champion-{args.champion.sha256[:12]}-{ctx.local_rank}"
    fetch_model(ctx.store, args.champion.prefix, folder, sha256=args.champion.sha256)
    return read_model(folder)


def _checkpoints(ctx: WorkerContext) -> str:
    return f"{ctx.prefix}/checkpoints"


def _shape(args: TrainArgs, data: PreparedData) -> Shape:
    return Shape(
        vocabulary=data.meta.vocabulary,
        hidden=args.hidden,
        layers=args.layers,
        heads=args.heads,
        intermediate=args.intermediate,
        context=max(512, args.seq_len),
    )


def _optimizer(model: nn.Module, args: TrainArgs) -> torch.optim.AdamW:
    """AdamW; weight decay on matrices only."""
    matrices = [p for p in model.parameters() if p.dim() > 1]
    vectors = [p for p in model.parameters() if p.dim() <= 1]
    groups = [{"params": matrices, "weight_decay": args.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=args.learning_rate, betas=(0.9, args.beta2), fused=True)


if __name__ == "__main__":
    main()
