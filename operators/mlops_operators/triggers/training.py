"""Waiting for a training: the job itself runs in the triggerer's event loop."""

from __future__ import annotations

import time
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import stamina

from mlops_operators.triggers.base import MlopsTrigger
from mlops_sdk.capacity.lease import to_iso
from mlops_sdk.capacity.lifecycle import reason_of
from mlops_sdk.client import Client
from mlops_sdk.errors import JobFailed, LeaseEnding, LeaseLost, MlopsError, ServiceUnavailable
from mlops_sdk.run import Lease, Run
from mlops_sdk.training.events import AttemptEnded, AttemptStarted, JobEvent, RankStarted, StepDone, Warned
from mlops_sdk.training.job import arun_job
from mlops_sdk.training.site import Site
from mlops_sdk.training.trained import Trained, ordered, remember, remembered

_SHOW_EVERY_S = 5.0


class TrainTrigger(MlopsTrigger):
    """Runs the ordered training of a run on the machines that it holds.

    Cancelled (a person's kill, a triggerer that stops), it ends what runs on the machines. Made again elsewhere, or
    after its process was killed, it starts the next attempt, which resumes from the last committed checkpoint.
    """

    def __init__(self, **connections: str) -> None:
        super().__init__(**connections)
        self._shown = 0.0

    async def work(self) -> dict[str, Any]:
        """Train; what came of it in small."""
        client = await self.client()
        run: Run | None = await self.blocking(client.find, self.run_name)
        if run is None:
            raise LeaseLost(f"there is no run {self.run_name!r}", next_step="provision machines first")
        trained: Trained | None = await self.blocking(remembered, run)
        if trained is None:
            try:
                trained = await self._train(client, run)
            except BaseException:
                self.caretaker.let_go(run)
                raise
            self.hand_over(run)
        return summary(run, trained)

    async def _train(self, client: Client, run: Run) -> Trained:
        wanted = await self.blocking(ordered, run)
        lease = await self._adopt(client, run)
        self.caretaker.take_over(run.key)
        site = Site.of(run, tracking_run_id=wanted.tracking_run_id)
        try:
            done = await arun_job(site, wanted.launch, lease.nodes, on_event=self._tell, check=run.raise_if_lost)
        except (
            LeaseEnding
        ) as ending:  # what was learned is in a checkpoint: give back at once, somebody may wait for it
            with self._noting("giving back"):
                await self.drive(run.releasing(reason_of(ending)), client)
            raise
        except JobFailed:
            if lease.request.hold_on_failure_s > 0:
                with self._noting("keeping the machines for a person"):
                    until = await self.blocking(run.hold)
                    self.log.info("its machines stay until %s: mlops lease login %s", to_iso(until), run.key)
            raise
        return await self.blocking(remember, run, lease, wanted, done)

    @contextmanager
    def _noting(self, what: str) -> Generator[None]:
        """What goes wrong within does not hide why we are here; the task's next step, or the reaper, does it again."""
        try:
            yield
        except MlopsError as error:
            self.log.warning("%s failed: %s", what, error)

    async def _adopt(self, client: Client, run: Run) -> Lease:
        """The machines that are leased; a service that is away for a moment does not cost them."""
        async for trying in stamina.retry_context(
            on=ServiceUnavailable, attempts=None, timeout=run.settings.lease.renew_for_s, wait_initial=0.5, wait_max=5.0
        ):
            with trying:
                return await self.drive(run.adopting(), client)
        raise RuntimeError("stamina ended without a result or an error")

    def _tell(self, event: JobEvent) -> None:
        """Into the task's log."""
        match event:
            case AttemptStarted():
                self.log.info("attempt %d: machines prepared in %.1f s", event.attempt, event.prepared_s)
            case RankStarted():
                self.log.info("attempt %d: rank %d runs on %s", event.attempt, event.rank, event.node)
            case StepDone():
                if time.monotonic() - self._shown > _SHOW_EVERY_S:
                    self._shown = time.monotonic()
                    figures = ", ".join(f"{name} {value:.4g}" for name, value in event.metrics.items())
                    self.log.info("attempt %d: step %d: %s", event.attempt, event.step, figures)
            case AttemptEnded():
                why = "".join(f", {text}" for text in (event.what, event.seen) if text)
                again = "; trying again" if event.retry else ""
                self.log.info("attempt %d: %s after %.0f s%s%s", event.attempt, event.cause, event.seconds, why, again)
            case Warned():
                self.log.warning("%s", event.text)


def summary(run: Run, trained: Trained) -> dict[str, Any]:
    """A finished training, as small as XCom wants it; everything is in the run's journal."""
    return {
        "run": run.key,
        "model_name": trained.model_name,
        "bits_per_byte": trained.bits_per_byte,
        "held_out": trained.held_out,
        "attempts": trained.attempts,
        "resumed_from": trained.resumed_from,
    }
