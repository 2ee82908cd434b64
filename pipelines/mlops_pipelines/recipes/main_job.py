"""The main job: test, prepare, quote, lease, train, register, give back, prove; on any deployment, by settings alone.

    python -m mlops_pipelines.recipes.main_job --name my-training

A job is found again by its name. Started again after whatever ended it, it goes on where it stopped: it adopts machines
that are still leased, resumes from the last committed checkpoint, and does not train what is trained already.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from pydantic import JsonValue

from mlops_pipelines.programs.code_lm import corpus
from mlops_pipelines.programs.code_lm.baseline import baseline_bits_per_byte
from mlops_pipelines.programs.code_lm.plan import TrainArgs
from mlops_pipelines.recipes.timeline import Step, Timeline
from mlops_pipelines.specs import CapacitySpec, TrainSpec
from mlops_sdk.capacity.accounts import cost_of_run, tag_versions
from mlops_sdk.capacity.cost_lines import by_line
from mlops_sdk.capacity.lease import LeaseRequest, Priority
from mlops_sdk.capacity.node import Node
from mlops_sdk.client import Client
from mlops_sdk.config import Settings
from mlops_sdk.errors import MlopsError, RegistryError
from mlops_sdk.journal import EntryKind
from mlops_sdk.registry.lineage import GitState, Lineage
from mlops_sdk.registry.model_files import ModelFolder, fetch_model
from mlops_sdk.registry.models import RegisteredModel, ensure_run, register
from mlops_sdk.registry.provenance import git_state
from mlops_sdk.run import Lease, Run
from mlops_sdk.source import test_program
from mlops_sdk.training.bundle import put_bundle
from mlops_sdk.training.events import AttemptEnded, AttemptStarted, JobEvent, RankStarted, StepDone, Warned
from mlops_sdk.training.job import JobResult, run_job
from mlops_sdk.training.program import ProgramSpec
from mlops_sdk.training.site import Site
from mlops_sdk.training.spec import BundleRef, DataRef
from mlops_sdk.training.trained import Trained, TrainingOrder, check_same, lineage_of, order, remember, remembered

PROGRAM_TESTS = Path("tests/unit/code_lm")
PROMPT = "def __init__(self"
_SHOW_EVERY = 20  # steps; the log has every report


@dataclass(frozen=True, slots=True, kw_only=True)
class MainJob:
    """What is asked for.

    Attributes:
        name: The job is found again by it.
        spec: Machines, program and name of the model.
        checkout: The source tree: what is tested, sent to the machines and named in the lineage.
        workdir: For prepared data and the fetched model; what is there already is used again.
        vocabulary: Of the tokenizer.
        beat_baseline: Refuse to register a model that does not beat the 3-gram baseline.
    """

    name: str
    spec: TrainSpec
    checkout: Path
    workdir: Path
    vocabulary: int = 4096
    beat_baseline: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class RunningJob:
    """A training that is under way: what a watcher needs to look at it, or to disturb it."""

    site: Site
    nodes: tuple[Node, ...]
    step: Step


OnEvent = Callable[[RunningJob, JobEvent], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class MainJobResult:
    """What came of it."""

    run_key: str
    model: RegisteredModel
    bits_per_byte: float
    baseline_bits_per_byte: float
    attempts: int
    resumed_from: int
    node_seconds: float


def default_spec(**arguments: JsonValue) -> TrainSpec:
    """Two H200 machines, torchrun, the code language model; `arguments` are the program's (see `plan.TrainArgs`)."""
    program = ProgramSpec(module="mlops_pipelines.programs.code_lm.train", arguments=arguments)
    return TrainSpec(model_name="code-lm", capacity=CapacitySpec(nodes=2), program=program)


def run_main_job(
    client: Client,
    job: MainJob,
    timeline: Timeline,
    *,
    on_event: OnEvent = lambda _job, _event: None,
) -> MainJobResult:
    """Do the job, step by step on the timeline. However it ends, what it leased is given back.

    Args:
        client: The deployment.
        job: What is asked for.
        timeline: Who watches.
        on_event: Told what happens during training.

    Raises:
        MlopsError: naming what failed; the timeline names the step's log.
    """
    prepared = _prepare(client, job, timeline)
    with timeline.step("open the run") as step:
        run = client.start_run(job.name)
        run.on_event(lambda what, phase, detail: timeline.note(f"{phase} {what}: {detail}"))
        trained = _trained_already(step, run, job)
    with run:
        if trained is None:
            trained = _lease_and_train(prepared, run, timeline, on_event)
        registered = _try_and_register(prepared, run, timeline, trained)
        with timeline.step("give the machines back") as step:
            _release(step, run)
    with timeline.step("prove that nothing is held") as step:
        node_seconds = _prove(step, client, run)
    return MainJobResult(
        run_key=run.key,
        model=registered,
        bits_per_byte=trained.bits_per_byte,
        baseline_bits_per_byte=prepared.baseline,
        attempts=trained.attempts,
        resumed_from=trained.resumed_from,
        node_seconds=node_seconds,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Prepared:
    """A job before it leases: its code, its data, and the bits per byte that its model has to beat."""

    client: Client
    job: MainJob
    git: GitState
    data: corpus.PreparedData
    baseline: float


def _prepare(client: Client, job: MainJob, timeline: Timeline) -> _Prepared:
    """All that costs no machine: tests, data, baseline, and what the machines will cost."""
    args, git = TrainArgs.parse(job.spec.program.arguments), git_state(job.checkout)
    with timeline.step("test the program") as step:
        _test_program(step, job.checkout)
    with timeline.step("prepare the data") as step:
        data = _prepare_data(step, client, job)
    with timeline.step("measure the baseline") as step:
        baseline = baseline_bits_per_byte(data, args.evaluate_bytes)
        step.show(f"byte 3-gram: {baseline:.3f} bits per byte on {args.evaluate_bytes:,} held-out bytes")
    with timeline.step("quote") as step:
        step.show(str(client.quote(_request(client, job.spec.capacity))))
    return _Prepared(client=client, job=job, git=git, data=data, baseline=baseline)


def _trained_already(step: Step, run: Run, job: MainJob) -> Trained | None:
    trained = remembered(run)
    if trained is not None:
        check_same(run, trained, model_name=job.spec.model_name, program=job.spec.program)
    step.show(f"run {run.key}, generation {run.generation}" + (", trained already" if trained else ""))
    return trained


def _lease_and_train(prepared: _Prepared, run: Run, timeline: Timeline, on_event: OnEvent) -> Trained:
    client, job = prepared.client, prepared.job
    with timeline.step("send the code") as step:
        bundle = put_bundle(run.store, source=job.checkout)
        step.show(f"commit {_commit(prepared.git)}; bundle {bundle.sha256[:12]}, {bundle.size:,} bytes")
    with timeline.step("lease the machines") as step:
        lease = _lease(step, run, _request(client, job.spec.capacity))
    with timeline.step("train") as step:
        wanted = _order(job.spec, prepared.git, bundle, prepared.data, _tracking_run(client, run, job))
        order(run, wanted)
        site = Site.of(run, tracking_run_id=wanted.tracking_run_id)
        done = _train(RunningJob(site=site, nodes=lease.nodes, step=step), run, wanted, on_event)
        trained = remember(run, lease, wanted, done)
        _show_training(step, trained, done)
    return trained


def _try_and_register(prepared: _Prepared, run: Run, timeline: Timeline, trained: Trained) -> RegisteredModel:
    client, job, baseline = prepared.client, prepared.job, prepared.baseline
    with timeline.step("fetch and try the model") as step:
        model = _fetch(step, run, trained, job.workdir)
        _compare(step, trained, baseline, refuse=job.beat_baseline)
    with timeline.step("register the model") as step:
        lineage = lineage_of(client, run, trained, metrics={"baseline_bits_per_byte": baseline})
        registered = _register(step, client, model, job.spec.model_name, lineage)
        run.journal.note(EntryKind.OUTCOME, "register", registered.uri, generation=trained.generation)
    return registered


def _test_program(step: Step, checkout: Path) -> None:
    """A red program never costs a machine."""
    step.show(test_program(checkout, [str(PROGRAM_TESTS)], step.log))


def _prepare_data(step: Step, client: Client, job: MainJob) -> corpus.PreparedData:
    data = corpus.prepared(job.workdir / "data", vocabulary=job.vocabulary)
    corpus.upload(data, client.store)
    train, held_out = data.meta.train, data.meta.held_out
    step.show(
        f"standard library of Python {data.meta.python}: {len(train.paths)} files, {train.bytes:,} bytes, "
        f"{train.tokens:,} tokens; held out {len(held_out.paths)} files, {held_out.bytes:,} bytes"
    )
    step.show(f"SHA-256 {data.sha256[:12]} at s3://{client.store.bucket}/{data.key}")
    return data


def _request(client: Client, capacity: CapacitySpec) -> LeaseRequest:
    return LeaseRequest(
        nodes=capacity.nodes,
        resource_class=capacity.resource_class,
        traits=capacity.traits,
        deadline=client.services.now() + timedelta(hours=capacity.hours),
        wait_s=capacity.wait_s,
        priority=Priority.named(capacity.priority),
        preemptible=capacity.preemptible,
        spares=capacity.spares,
        provider=capacity.provider,
        hold_on_failure_s=capacity.hold_on_failure_s,
    )


def _lease(step: Step, run: Run, request: LeaseRequest) -> Lease:
    lease = run.lease(request)
    for node in lease.nodes:
        where = f"{node.leaf} port {node.position}" if node.leaf else "no fabric"
        step.show(f"{node.name}: {node.address}, {where}, {node.gpus} GPUs, image {node.image}, driver {node.driver}")
    step.show(f"credential {run.credential.name} until {run.credential.expires_at:%H:%M} UTC, for this run only")
    return lease


def _tracking_run(client: Client, run: Run, job: MainJob) -> str:
    """The MLflow run that gets the metrics while it trains; registration finds it again."""
    experiment = job.spec.model_name
    return ensure_run(client.mlflow, run.id, run.generation, experiment=experiment, name=job.name).id


def _order(
    spec: TrainSpec, git: GitState, bundle: BundleRef, data: corpus.PreparedData, tracking_run_id: str
) -> TrainingOrder:
    return TrainingOrder(
        model_name=spec.model_name,
        program=spec.program,
        bundle=bundle,
        data=(DataRef(name=corpus.FILE_NAME, sha256=data.sha256, size=data.size, key=data.key),),
        git=git,
        tracking_run_id=tracking_run_id,
    )


def _train(job: RunningJob, run: Run, wanted: TrainingOrder, on_event: OnEvent) -> JobResult:
    def tell(event: JobEvent) -> None:
        _tell(job.step, event)
        on_event(job, event)

    return run_job(job.site, wanted.launch, job.nodes, on_line=job.step.note, on_event=tell, check=run.raise_if_lost)


def _show_training(step: Step, trained: Trained, done: JobResult) -> None:
    step.show(
        f"{trained.parameters:,} parameters on {len(trained.nodes)} machines; attempt {trained.attempts} began at step "
        f"{trained.resumed_from} and did {trained.tokens_per_s:,.0f} tokens/s"
    )
    step.show(f"logs {done.log_uri}")


def _tell(step: Step, event: JobEvent) -> None:
    match event:
        case AttemptStarted():
            step.say(f"attempt {event.attempt}: machines prepared in {event.prepared_s:.1f} s")
        case RankStarted():
            step.say(f"attempt {event.attempt}: rank {event.rank} runs on {event.node} as process {event.pid}")
        case StepDone():
            figures = ", ".join(f"{name} {value:.4g}" for name, value in event.metrics.items())
            tell = step.note if event.step % _SHOW_EVERY else step.say
            tell(f"step {event.step}: {figures}")
        case AttemptEnded():
            why = "".join(f", {text}" for text in (event.what, event.seen) if text)
            again = "; trying again" if event.retry else ""
            step.show(f"attempt {event.attempt}: {event.cause} after {event.seconds:.0f} s{why}{again}")
        case Warned():
            step.say(f"warning: {event.text}")


def _fetch(step: Step, run: Run, trained: Trained, workdir: Path) -> ModelFolder:
    from mlops_pipelines.programs.code_lm.complete import complete  # noqa: PLC0415 - torch, not before it is needed

    model = fetch_model(run.store, trained.model_prefix, workdir / f"model-{run.key}", sha256=trained.model_sha256)
    size = sum(record.bytes for record in model.manifest.files.values())
    step.show(f"{len(model.manifest.files)} files, {size:,} bytes, manifest {model.sha256[:12]}")
    step.show(f"{PROMPT!r} -> {complete(model.folder, PROMPT, tokens=24)!r}")
    return model


def _compare(step: Step, trained: Trained, baseline: float, *, refuse: bool) -> None:
    better = trained.bits_per_byte < baseline
    step.show(
        f"held out: model {trained.bits_per_byte:.3f} bits per byte, 3-gram baseline {baseline:.3f}: "
        f"{'better' if better else 'not better'}"
    )
    if refuse and not better:
        raise RegistryError(
            "the model does not beat the baseline",
            seen=f"{trained.bits_per_byte:.4f} bits per byte, the byte 3-gram has {baseline:.4f}",
            next_step="train longer or change the program; nothing was registered",
        )


def _register(step: Step, client: Client, model: ModelFolder, name: str, lineage: Lineage) -> RegisteredModel:
    registered = register(client.mlflow, name, model.folder, lineage, experiment=name)
    step.show(f"{registered.uri} (MLflow run {registered.mlflow_run_id})")
    step.show(
        f"commit {_commit(lineage.git)}, data {lineage.data_sha256[:12]}, "
        f"checkpoint of step {lineage.checkpoint.step}, {lineage.cost.node_seconds:.0f} node-seconds so far"
    )
    return registered


def _release(step: Step, run: Run) -> None:
    for evidence in run.release():
        step.show(
            f"{evidence.node_name or evidence.resource}: {evidence.outcome.value}, {evidence.provision_state}, "
            f"{evidence.power_state}, by the {evidence.released_by}"
        )


def _prove(step: Step, client: Client, run: Run) -> float:
    """Everything the run ever created, as the services see it now; returns its node-seconds."""
    proof = run.prove()
    for item in proof.items:
        step.show(f"{item.kind.value} {item.resource}: {item.evidence}")
    if not proof.complete:
        raise MlopsError(
            f"run {run.key!r} has not given everything back",
            seen="; ".join(f"{item.kind.value} {item.resource}: {item.evidence}" for item in proof.missing),
            next_step=f"the reaper keeps at it; look again with `mlops runs show {run.key}`",
        )
    summary = client.summary(run.key)
    step.show(f"cost: {summary.node_seconds:.0f} node-seconds, {summary.cost:.2f} {client.settings.currency}")
    _tell_costs(step, client, run)
    return summary.node_seconds


def _tell_costs(step: Step, client: Client, run: Run) -> None:
    """What was paid for, line by line: here, and on the model version in MLflow."""
    report = cost_of_run(client, run.key)
    (costs,) = report.runs
    lines = ", ".join(f"{line.value} {cost:.2f}" for line, cost in by_line(costs.portions).items())
    step.show(f"{lines} {report.currency}")
    tag_versions(client, report)


def _commit(git: GitState) -> str:
    return git.commit[:12] + (" with local changes" if git.dirty else "")


def main() -> int:
    """Run the job on the deployment that the settings name."""
    parser = argparse.ArgumentParser(prog="python -m mlops_pipelines.recipes.main_job", description=main.__doc__)
    parser.add_argument("--name", required=True, help="the job is found again by it")
    parser.add_argument("--nodes", type=int, default=2)
    parser.add_argument("--launcher", choices=["torchrun", "mpirun"], default="torchrun")
    parser.add_argument("--workdir", type=Path, default=Path(".mlops/jobs"))
    arguments = parser.parse_args()
    spec = default_spec()
    spec = spec.model_copy(
        update={
            "capacity": spec.capacity.model_copy(update={"nodes": arguments.nodes}),
            "program": spec.program.model_copy(update={"launcher": arguments.launcher}),
        }
    )
    job = MainJob(name=arguments.name, spec=spec, checkout=Path.cwd(), workdir=arguments.workdir)
    timeline = Timeline(log_dir=arguments.workdir / f"{arguments.name}-logs")
    with timeline.closing() as outcome:
        run_main_job(Client(Settings.load()), job, timeline)
    return outcome.status


if __name__ == "__main__":
    sys.exit(main())
