"""Roll a model out: the loop around `rollout.next_step`, and what each step does on the host.

Nothing here keeps state of its own: started again after a `kill -9` at any line, it goes on from what it finds.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from mlops_sdk.config import S3Settings
from mlops_sdk.errors import MlopsError, RolledBack, ServingError
from mlops_sdk.objects import ObjectStore
from mlops_sdk.registry.model_files import ModelManifest, read_manifest
from mlops_sdk.serving.host import ServingHost, connected_host
from mlops_sdk.serving.rollout import Instance, Kind, Limits, Memory, Slot, Step, next_step
from mlops_sdk.serving.router import Admin
from mlops_sdk.serving.target import Deployed, ServedModel, VllmTarget
from mlops_sdk.serving.vllm import Middleware, instance, model_folder

_URL_LIFETIME_S = 3600
_FETCH_S = 3600.0
_PROMPT = "The"
_TRUST_S = 60.0  # how long the host or its proxy may be unreachable before the roll-out gives up

_ADMIN = {Kind.ADMIT: Admin.READY, Kind.DRAIN: Admin.DRAIN, Kind.REST: Admin.MAINT}

OnStep = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How to roll out.

    Attributes:
        limits: How long to wait for what.
        poll_s: How often to look.
        wait_for_others_s: For another roll-out on the same host.
        middleware: To load into vLLM.
        prompt: Of the completion by which the new version proves itself.
    """

    limits: Limits = field(default_factory=Limits)
    poll_s: float = 0.5
    wait_for_others_s: float = 900.0
    middleware: Middleware | None = None
    prompt: str = _PROMPT


async def roll_out(
    target: VllmTarget,
    model: ServedModel,
    s3: S3Settings,
    options: Options | None = None,
    *,
    tell: OnStep | None = None,
) -> Deployed:
    """Serve this model and nothing else; returns when its version alone answers and the old one has ended.

    Idempotent: a version that serves already is asked once and left as it is. Does not block the event loop.

    Args:
        target: Where.
        model: What.
        s3: Where its files are; the host is sent to `node_endpoint`.
        options: How.
        tell: Called with a line at each step that is not waiting.

    Raises:
        RolledBack: the new version did not get ready, or failed; what served before still does.
        ServingError: its files could not be brought (nothing was changed); another roll-out is at work; the proxy does
            not answer.
        HostKeyMismatch, NodeFailed, RemoteCommandError: the host cannot be reached.
    """
    chosen = options or Options()
    async with connected_host(target) as host, host.alone(wait_s=chosen.wait_for_others_s):
        return await _RollOut(host, model, s3, chosen, tell or _say_nothing).run()


def roll_out_and_wait(
    target: VllmTarget,
    model: ServedModel,
    s3: S3Settings,
    options: Options | None = None,
    *,
    tell: OnStep | None = None,
) -> Deployed:
    """As `roll_out`, for notebooks and scripts. Not from inside an event loop."""
    return asyncio.run(roll_out(target, model, s3, options, tell=tell))


async def withdraw(target: VllmTarget) -> None:
    """End everything on the host: every slot leaves the proxy, is ended and forgotten, and the models are removed."""
    async with connected_host(target) as host, host.alone(wait_s=_TRUST_S):
        for slot in target.ports:
            await host.tell_proxy([], dict.fromkeys(target.ports, ""), slot, Admin.MAINT)
            await host.order("stop", slot, stdin={"grace_s": 1.0})
        while not all(slot.empty for slot in (await host.look()).values()):  # noqa: ASYNC110 - it is another computer
            await asyncio.sleep(Options().poll_s)
        await host.prune()


class _RollOut:
    def __init__(self, host: ServingHost, model: ServedModel, s3: S3Settings, options: Options, tell: OnStep) -> None:
        self._host = host
        self._target = host.target
        self._model = model
        self._s3 = s3
        self._options = options
        self._tell = tell
        self._memory = Memory()
        self._lib = ""
        self._failed_as: type[ServingError] = RolledBack

    async def run(self) -> Deployed:
        manifest, sha256 = await asyncio.to_thread(_manifest, self._s3, self._model)
        wanted = Instance(model=self._model.name, version=self._model.version, sha256=sha256)
        last, since = Step(kind=Kind.WAIT), time.monotonic()
        while True:
            slots = await self._look()
            self._memory.waited_s = time.monotonic() - since
            step = next_step(slots, wanted, self._memory, self._options.limits)
            if (step.kind, step.slot) != (last.kind, last.slot):
                last, since = step, time.monotonic()
                self._memory.waited_s = 0.0
                self._tell(f"{step.kind} {step.slot} {step.why.partition('; its last words')[0]}".strip())
            if step.kind is Kind.DONE:
                return self._deployed(step.slot)
            if step.kind is Kind.GONE:
                raise self._rolled_back(slots)
            await self._take(step, slots, manifest, sha256)

    async def _look(self) -> dict[str, Slot]:
        """What there is. A host or proxy that does not answer for a while is no failure of the new version."""
        give_up = time.monotonic() + _TRUST_S
        while True:
            try:
                return await self._host.look()
            except MlopsError:
                if time.monotonic() > give_up:
                    raise
                await asyncio.sleep(self._options.poll_s)

    async def _take(self, step: Step, slots: dict[str, Slot], manifest: ModelManifest, sha256: str) -> None:
        slot = step.slot
        if step.kind in {Kind.PLACE, Kind.ASK, Kind.FAIL} and not self._memory.failure:
            self._memory.candidate = slot
        match step.kind:
            case Kind.PLACE:
                await self._place(slot, manifest, sha256)
            case Kind.ASK:
                await self._ask(slot)
            case Kind.ADMIT | Kind.DRAIN | Kind.REST:
                await self._tell_proxy(slots, slot, _ADMIN[step.kind])
            case Kind.STOP:
                await self._host.order("stop", slot, stdin={"grace_s": self._target.engine.shutdown_timeout_s + 10.0})
            case Kind.SETTLE:
                for name, other in slots.items():
                    await self._tell_proxy(slots, name, other.server.admin)
                await self._host.prune()
                self._memory.settled = True
            case Kind.FAIL:
                self._memory.failure = step.why
            case _:
                await asyncio.sleep(self._options.poll_s)

    async def _place(self, slot: str, manifest: ModelManifest, sha256: str) -> None:
        try:
            async with self._host.way_to(self._s3) as through:
                files = await asyncio.to_thread(_presigned, self._s3, self._model, manifest, node=not through)
                order = {"name": model_folder(sha256), "files": files, "through": through}
                await self._host.order("fetch", stdin=order, timeout_s=_FETCH_S)
            await self._send_middleware()
        except ServingError as error:  # the host's refusal: the store is down, a file is damaged
            self._failed_as = ServingError
            self._memory.failure = f"{error.what}: {error.seen}"
            return
        spec = instance(
            self._target, self._model, slot=slot, sha256=sha256, middleware=self._options.middleware, lib=self._lib
        )
        await self._host.order("start", slot, stdin=spec)

    async def _send_middleware(self) -> None:
        middleware = self._options.middleware
        if middleware is None or not middleware.files:
            return
        digest = hashlib.sha256(
            b"".join(p.encode() + b"\0" + c for p, c in sorted(middleware.files.items()))
        ).hexdigest()
        self._lib = self._target.path("lib", digest[:16])
        for path, content in middleware.files.items():
            await self._host.put(f"{self._lib}/{path}", content)

    async def _ask(self, slot: str) -> None:
        question = {"model": self._model.exact_name, "prompt": self._options.prompt}
        answer = await self._host.order("ask", slot, stdin=question)
        if answer["tokens"] and answer["model"] == self._model.exact_name:
            self._memory.answered.add(slot)
            return
        self._memory.last_answer = f"{answer['status']} {answer['seen']}"
        await asyncio.sleep(self._options.poll_s)

    async def _tell_proxy(self, slots: dict[str, Slot], slot: str, admin: Admin) -> None:
        ready = {name for name, other in slots.items() if other.live} - {slot}
        ready |= {slot} if admin is Admin.READY else set()
        versions = {name: other.instance.version if other.instance else "" for name, other in slots.items()}
        await self._host.tell_proxy(sorted(ready), versions, slot, admin)

    def _deployed(self, slot: str) -> Deployed:
        return Deployed(
            endpoint=f"{self._target.base_url}/v1", model=self._model.name, version=self._model.version, slot=slot
        )

    def _rolled_back(self, slots: dict[str, Slot]) -> ServingError:
        serving = [s.instance.version for s in slots.values() if s.live and s.instance]
        return self._failed_as(
            f"version {self._model.version!r} of model {self._model.name!r} was not rolled out; "
            f"{f'version {serving[0]!r} still serves' if serving else 'nothing serves'}",
            seen=self._memory.failure,
            next_step="repair what it says, then roll out again",
        )


def _manifest(s3: S3Settings, model: ServedModel) -> tuple[ModelManifest, str]:
    return read_manifest(ObjectStore.open(s3), model.prefix, sha256=model.sha256)


def _presigned(s3: S3Settings, model: ServedModel, manifest: ModelManifest, *, node: bool) -> list[dict[str, str]]:
    """For each file an address that needs no key and soon expires: the host holds no credential of the store."""
    store = ObjectStore.open(s3, node=node)
    return [
        {
            "name": name,
            "sha256": record.sha256,
            "url": store.presigned(f"{model.prefix}/{name}", seconds=_URL_LIFETIME_S),
        }
        for name, record in manifest.files.items()
    ]


def _say_nothing(_line: str) -> None:
    return
