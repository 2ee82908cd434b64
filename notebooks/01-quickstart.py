# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # The loop, by hand
#
# The same steps that Airflow runs in `retrain_lm`, from a notebook and through the library alone: a commit is tested, data are
# validated and pinned, machines leased, a model trained, registered, gated and served; then users send something else, and the
# loop goes round again.
#
# It needs a deployment: `make up` starts one on this computer. Run the notebook in the repository.

# %%
import uuid
from datetime import UTC, datetime, timedelta
from pathlib import Path

from openai import OpenAI

from mlops_pipelines.programs.code_lm import corpus, prompts, table
from mlops_sdk.capacity.lease import LeaseRequest
from mlops_sdk.client import Client
from mlops_sdk.commit_check import check_commit
from mlops_sdk.config import Settings
from mlops_sdk.data.validation import validate
from mlops_sdk.data.versioning import pin
from mlops_sdk.drift.on_host import profiles_folder
from mlops_sdk.drift.watcher import look, read_profiles
from mlops_sdk.local.layout import Layout
from mlops_sdk.local.services.serving import ServingAccess
from mlops_sdk.registry.champion import read_champion
from mlops_sdk.registry.gate import GateBounds
from mlops_sdk.registry.provenance import git_state
from mlops_sdk.registry.registration import admit_trained, register_trained, trained_by
from mlops_sdk.serving.registered import deploy_registered, keep_reference
from mlops_sdk.source import SourceRef
from mlops_sdk.training.job import run_job
from mlops_sdk.training.ordering import place_order
from mlops_sdk.training.program import ProgramSpec
from mlops_sdk.training.site import Site
from mlops_sdk.training.trained import remember

# %% tags=["parameters"]
STACK = Path(".mlops/stacks/default")
MODEL = "code-lm"
NODES = 2
ARGUMENTS = {"steps": 120, "evaluate_bytes": 60_000}
WORSE_BY = 0.1

# %% [markdown]
# ## The deployment
#
# On a cloud of your own, `Client()` reads the settings that `MLOPS_CONFIG` names; only the serving host and the data repository
# are those of the embedded stack here.

# %%
layout = Layout.at(STACK)
client = Client(Settings.load(layout.client_toml))
host = ServingAccess.load(layout).target()
data_repository = str(layout.data("git") / "data.git")
cache = layout.data("notebook")

# %% [markdown]
# ## The code: exactly one commit, and its tests
#
# A red commit never costs a machine.

# %%
repository = Path.cwd()
code = SourceRef(repository=str(repository), commit=git_state(repository).commit)
check_commit(client.store, code, ["tests/unit/code_lm"])

# %% [markdown]
# ## One turn
#
# `with run:` gives everything back, however the block ends. If this kernel dies, the reaper does it.

# %%
request = LeaseRequest(nodes=NODES, resource_class="gpu.h200.8x", deadline=datetime.now(UTC) + timedelta(hours=1))
print(client.quote(request))


# %%
def prepare(kinds):
    """Data that hold what they promise, under a revision."""
    print(validate(client.store, table.rows(kinds), table.SUITE).uri)
    built = corpus.build(cache / "-".join(kinds), kinds=kinds)
    return pin(client.settings.s3, data_repository, built, cache=cache / "dvc")


def train(kinds):
    """A trained model of these kinds of text; the machines are back when this returns."""
    data = prepare(kinds)
    champion = read_champion(client.mlflow, MODEL)
    arguments = ARGUMENTS | ({"champion": champion.argument(), "warm_start": True} if champion else {})
    program = ProgramSpec(module="mlops_pipelines.programs.code_lm.train", arguments=arguments)
    run = client.start_run(f"quickstart-{uuid.uuid4()}")
    with run:
        lease = run.lease(request)
        order = place_order(
            client,
            run,
            model_name=MODEL,
            program=program,
            code=code,
            data=[data.ref()],
            data_revision=data.revision,
        )
        site = Site.of(run, tracking_run_id=order.tracking_run_id)
        done = run_job(site, order.launch, lease.nodes, check=run.raise_if_lost)
        remember(run, lease, order, done)
    print(f"run {run.key}: everything given back: {run.prove().complete}")
    return run


async def serve(run):
    """Registered, let through the gate, rolled out."""
    print(register_trained(client, run).uri)
    print(admit_trained(client, run, GateBounds(worse_by=WORSE_BY)).table())
    reference = keep_reference(client, trained_by(run).held_out, prompts.prompt_reference)
    return await deploy_registered(client, run, host, reference=reference, tell=print)


# %%
first = train(["python"])

# %%
served = await serve(first)
served

# %% [markdown]
# ## Users
#
# The unmodified `openai` client.

# %%
openai = OpenAI(base_url=served.endpoint, api_key="none")


def ask(kind, count):
    """Send prompts of a kind; the last answer."""
    for prompt in prompts.held_out_prompts(kind, count, seed=7):
        answer = openai.completions.create(model=MODEL, prompt=prompt, max_tokens=8)
    return answer.choices[0].text


ask("python", 60)


# %% [markdown]
# ## Drift
#
# The host counts features of prompts and keeps no text. Python prompts are what this model was made for; C++ headers are not.


# %%
def seen():
    """One look at what was served since the last one."""
    return look(client.store, MODEL, read_profiles(host.host, profiles_folder(host.root)), by="quickstart")


print(seen().words())
ask("cpp", 80)
drift = seen()
print(drift.words())

# %% [markdown]
# ## The second turn
#
# On what it knew and on what users began to send. The gate asks for better on the new kind, and not worse than the bound on the old.

# %%
second = train(["python", *(kind for kind in drift.widen_to if kind != "python")])
served = await serve(second)
served

# %%
ask("cpp", 3)

# %% [markdown]
# ## What it cost
#
# Everything that the two runs ever created, with the evidence that it was given back.

# %%
for run in (first, second):
    summary = client.summary(run.key)
    print(f"{run.key}: {summary.node_seconds:.0f} node-seconds, {summary.cost:.2f} {client.settings.currency}")
    for item in run.prove().items:
        print("  ", item.kind.value, item.resource, "-", item.evidence)
