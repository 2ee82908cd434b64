"""One attempt: prepare the machines, launch, listen, end everything, store the logs, say why it ended."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Awaitable, Callable, Mapping
from functools import partial

import mlops_sdk.errors
from mlops_sdk.canonical import to_json
from mlops_sdk.capacity.lease import to_iso
from mlops_sdk.capacity.lifecycle import END_TEXT
from mlops_sdk.capacity.orders import Notice
from mlops_sdk.errors import BundleError, MlopsError, RemoteCommandError
from mlops_sdk.remote.end import End
from mlops_sdk.remote.group import Command, run_group
from mlops_sdk.remote.ssh import Connection
from mlops_sdk.training import mpi, torchrun
from mlops_sdk.training.events import AttemptStarted, JobEvent, RankStarted, StepDone, Warned
from mlops_sdk.training.jobfile import VARIABLE, FileRef, JobFile
from mlops_sdk.training.launch import Placement, Verdict, judge
from mlops_sdk.training.logs import AttemptLogs
from mlops_sdk.training.messages import Prepared, Progress, Raised, RankEnded, Refused, Started, Stopped, decode
from mlops_sdk.training.plan import NOTICE, PYTHON, NodeCommand, Plan, job_directory
from mlops_sdk.training.s3_login import MachinesLogin
from mlops_sdk.training.site import Site
from mlops_sdk.training.spec import Launcher, LaunchSpec

_UPLOAD_S = 15.0
_NOTICE_S = 1.0
_UPLOAD_BYTES = 4 << 20  # larger logs are stored once, at the end


class Attempt:
    """One start of a job on connected machines. `connections` are in the placement's order."""

    def __init__(
        self,
        site: Site,
        spec: LaunchSpec,
        *,
        number: int,
        placement: Placement,
        connections: list[Connection],
        on_line: Callable[[str], None],
        on_event: Callable[[JobEvent], None],
    ) -> None:
        self.number = number
        self.logs = AttemptLogs(site.store, f"{site.prefix}/logs/attempt-{number}")
        self._site = site
        self._spec = spec
        self._placement = placement
        self._connections = connections
        self._on_line = on_line
        self._on_event = on_event
        self._login = MachinesLogin.of(site, spec, connections, warn=self._warn)
        self._abort = asyncio.Event()
        self._raised: list[Raised] = []
        self._ended: dict[int, RankEnded] = {}
        self._started: set[int] = set()
        self._stopped: dict[int, int] = {}

    async def run(self) -> Verdict:
        """Carry it out. Its logs are stored however it ends.

        Raises:
            BundleError, NodeFailed, RemoteError: a machine could not be prepared.
        """
        besides = [asyncio.create_task(self._upload_now_and_then())]
        try:
            began = time.monotonic()
            await self._put_notice(b"")  # what an earlier attempt was told may be over
            besides.append(asyncio.create_task(self._pass_notice_on()))
            if self._login is not None:
                await self._login.give()
                besides.append(asyncio.create_task(self._login.keep_fresh()))
            prepared = await self._prepare()
            self._on_event(AttemptStarted(attempt=self.number, prepared_s=time.monotonic() - began))
            ends = await self._launch(prepared)
            if any(end.lost or (end.signal == "KILL" and not end.by_us) for end in ends):
                await self._sweep()
            return judge(self._placement, ends, self._raised, self._ended, self._started, stopped=self._stopped)
        finally:
            for task in besides:
                task.cancel()
            await self._upload()

    async def _prepare(self) -> Prepared:
        directory = job_directory(self._site.run_key)
        await self._each(lambda i, c: c.put_bytes(f"{directory}/job.json", self._job_file(i).to_bytes()))
        replies: dict[int, Prepared | Refused] = {}

        def listen(index: int, line: str) -> None:
            message = decode(line)
            if isinstance(message, Prepared | Refused):
                replies[index] = message
            else:
                self._show(index, line)

        fetch = NodeCommand(
            argv=(PYTHON, "-m", "mlops_sdk.training.fetch"), env={VARIABLE: f"{directory}/job.json"}, files={}
        )
        ends = await run_group([self._command(i, fetch) for i in range(len(self._connections))], on_line=listen)
        for index, end in enumerate(ends):
            if not isinstance(replies.get(index), Prepared) and not end.by_us:
                raise self._unprepared(index, end, replies.get(index))
        return next(reply for reply in replies.values() if isinstance(reply, Prepared))

    async def _launch(self, prepared: Prepared) -> list[End]:
        plan = Plan(
            placement=self._placement,
            run_key=self._site.run_key,
            attempt=self.number,
            python_path=tuple(prepared.python_path),
            network=prepared.network,
            env=self._spec.env,
        )
        commands: Mapping[Launcher, Callable[[], list[NodeCommand]]] = {
            Launcher.TORCHRUN: partial(torchrun.commands, plan),
            Launcher.MPIRUN: partial(mpi.commands, plan, self._site.peer_key),
        }
        per_node = commands[self._spec.launcher]()
        for path in {path for command in per_node for path in command.files}:
            holders = {i: command.files[path] for i, command in enumerate(per_node) if path in command.files}
            await asyncio.gather(*(self._connections[i].put_bytes(path, body) for i, body in holders.items()))
        group = [self._command(i, command) for i, command in enumerate(per_node)]
        return await run_group(group, on_line=self._hear, abort=self._abort)

    async def _sweep(self) -> None:
        """End what a life line that was itself killed left behind."""
        sweep = NodeCommand(argv=("true",), env={}, files={})
        open_ones = [i for i, connection in enumerate(self._connections) if connection.is_open()]
        await run_group([self._command(i, sweep) for i in open_ones], on_line=_ignore)

    def _hear(self, index: int, line: str) -> None:
        message = decode(line)
        match message:
            case Started():
                self._started.add(message.rank)
                node = self._placement.node_of(message.rank).name
                self._on_event(RankStarted(attempt=self.number, rank=message.rank, node=node, pid=message.pid))
            case Progress():
                self._on_event(StepDone(attempt=self.number, step=message.step, metrics=message.metrics))
            case Raised():
                self._raised.append(message)
            case Stopped():
                self._stopped[message.rank] = message.step
            case RankEnded():
                self._ended[message.rank] = message
                if message.signal or message.status:
                    self._abort.set()
            case _:
                self._show(index, line)

    def _show(self, index: int, line: str) -> None:
        self._on_line(self.logs.add(self._placement.nodes[index].name, line, self._node_of))

    def _node_of(self, rank: int) -> str:
        return self._placement.node_of(rank).name

    def _command(self, index: int, command: NodeCommand) -> Command:
        return Command(connection=self._connections[index], name=self._site.run_key, argv=command.argv, env=command.env)

    def _job_file(self, index: int) -> JobFile:
        site, spec = self._site, self._spec
        return JobFile(
            run_id=site.run_id,
            run_key=site.run_key,
            attempt=self.number,
            module=spec.module,
            args=dict(spec.args),
            prefix=site.prefix,
            address=self._placement.nodes[index].address,
            scratch=f"/scratch/{site.run_key}",
            s3=self._login.settings(site.node_s3) if self._login is not None else site.node_s3,
            secrets=dict(site.secrets),
            bundle=FileRef(name="bundle.tar", key=spec.bundle.key, sha256=spec.bundle.sha256, size=spec.bundle.size),
            data=tuple(FileRef(name=d.name, key=d.key, sha256=d.sha256, size=d.size) for d in spec.data),
        )

    def _warn(self, text: str) -> None:
        self._on_event(Warned(text=text))

    def _unprepared(self, index: int, end: End, reply: Prepared | Refused | None) -> MlopsError:
        node = self._placement.nodes[index].name
        if isinstance(reply, Refused):
            kind = getattr(mlops_sdk.errors, reply.error, BundleError)
            return kind(f"node {node!r}: {reply.what}", seen=reply.seen, next_step=reply.next_step)
        seen = end.lost or f"{end.signal or end.status}: {self.logs.tail(-1, node)}"
        return RemoteCommandError(
            f"node {node!r} could not be prepared for the job",
            seen=seen,
            next_step=f"see {self.logs.uri(-1, node)}; the image must hold this library at {PYTHON}",
        )

    async def _each(self, action: Callable[[int, Connection], Awaitable[None]]) -> None:
        await asyncio.gather(*(action(i, connection) for i, connection in enumerate(self._connections)))

    async def _pass_notice_on(self) -> None:
        """Tell the ranks that their lease ends, and that it does not any more, for as long as they run."""
        told: Notice | None = None
        while True:
            try:
                notice = await asyncio.to_thread(self._site.ending)
                if notice != told:
                    await self._put_notice(to_json(notice.to_json()) if notice else b"")
                    text = f"notice: {END_TEXT[notice.reason]}; it ends at {to_iso(notice.ends_at)}" if notice else ""
                    self._on_event(Warned(text=text or "the lease was extended: the notice is taken back"))
                    told = notice
            except MlopsError as error:  # a machine that cannot be told now; the attempt itself finds out what it has
                self._on_event(Warned(text=f"the job could not be told that its lease ends: {error}"))
            await asyncio.sleep(_NOTICE_S)

    async def _put_notice(self, body: bytes) -> None:
        path = f"{job_directory(self._site.run_key)}/{NOTICE}"
        await self._each(lambda _, connection: connection.put_bytes(path, body))

    async def _upload_now_and_then(self) -> None:
        while True:
            await asyncio.sleep(_UPLOAD_S)
            await self._upload(up_to=_UPLOAD_BYTES)

    async def _upload(self, *, up_to: float = math.inf) -> None:
        self.logs.flush()
        if warning := await asyncio.to_thread(self.logs.upload, up_to=up_to):
            self._on_event(Warned(text=warning))


def _ignore(_index: int, _line: str) -> None:
    """Of a command whose output does not matter."""
