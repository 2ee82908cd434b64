"""Run one program on the machines of a lease until it succeeds, or fails in a way that trying again cannot cure."""

from __future__ import annotations

import asyncio
import threading
import time
import uuid
from collections.abc import Callable, Coroutine, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import PurePosixPath
from queue import Empty, SimpleQueue
from typing import Any

import stamina
from pydantic import JsonValue

from mlops_sdk.capacity.lease import to_iso
from mlops_sdk.capacity.lifecycle import END_TEXT, EndReason
from mlops_sdk.capacity.node import Node
from mlops_sdk.capacity.orders import Notice
from mlops_sdk.clock import SystemClock
from mlops_sdk.errors import JobFailed, LeaseEnding, MlopsError, NodeFailed, Preempted, RemoteError, ServiceUnavailable
from mlops_sdk.objects import to_json
from mlops_sdk.remote.ssh import Connection, connected
from mlops_sdk.steps import adrive, settled
from mlops_sdk.training.attempt import Attempt
from mlops_sdk.training.context import result_key
from mlops_sdk.training.events import AttemptEnded, JobEvent, StepDone, Warned
from mlops_sdk.training.launch import NEXT_STEP, PAUSE_S, Cause, Placement, Verdict, place
from mlops_sdk.training.metrics import MetricsSender
from mlops_sdk.training.site import Site
from mlops_sdk.training.spec import LaunchSpec

_TELL_S = 0.1
_CANCEL_POLL_S = 0.1
_CHECK_S = 1.0
_STORE_WAIT_S = 600.0

_Told = SimpleQueue[tuple[Callable[[Any], None], Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class JobResult:
    """A job that succeeded.

    Attributes:
        attempts: How each attempt ended; the last one succeeded.
        seconds: From the first connection to the end.
        result: What the program reported, {} when it reported nothing.
        log_uri: Where the logs of all attempts are.
    """

    attempts: tuple[AttemptEnded, ...]
    seconds: float
    result: dict[str, JsonValue]
    log_uri: str


def run_job(
    site: Site,
    spec: LaunchSpec,
    nodes: Sequence[Node],
    *,
    on_line: Callable[[str], None] = lambda _: None,
    on_event: Callable[[JobEvent], None] = lambda _: None,
    check: Callable[[], None] = lambda: None,
) -> JobResult:
    """Run the program on all nodes; returns when it has succeeded.

    An attempt that ended for a cause that trying again can cure is followed by the next one, up to `spec.max_attempts`;
    the program resumes from its last committed checkpoint by itself. A machine that went away is replaced before that,
    where its provider can do that. When this returns or raises, no process of the job is left on a machine that can be
    reached. Works inside a running event loop too: the job has a thread of its own. The callbacks are called in the
    caller's thread and may take their time; an exception in one ends the job and comes out of here.

    Args:
        site: What the job needs of its run.
        spec: What to run.
        nodes: The machines of the lease.
        on_line: Each line of output, with its rank and machine.
        on_event: What happens.
        check: Called about once a second; what it raises (`Run.raise_if_lost`) ends the job and comes out of here.

    Raises:
        JobFailed: names rank, node, exception or signal, last lines and log.
        BundleError: code or data on a node is not what was sent, or the image does not fit.
        NodeFailed: a node cannot be reached, came not back, or its scratch is full.
        HostKeyMismatch: another machine answers at a node's address.
        LeaseEnding: the lease ends; the program was told, and stopped with a checkpoint if it listens to that.
        ServiceUnavailable: S3 stayed away for ten minutes between two attempts.
    """
    told: _Told = SimpleQueue()
    thread = _JobThread(
        _run(site, spec, nodes, lambda line: told.put((on_line, line)), lambda event: told.put((on_event, event))),
        name=f"job-{site.run_key}",
    )
    checked = time.monotonic()
    try:
        while not thread.over.is_set():
            _pass_on(told, wait_s=_TELL_S)
            if time.monotonic() - checked > _CHECK_S:
                check()
                checked = time.monotonic()
    finally:
        thread.end()
    _pass_on(told, wait_s=0)
    return thread.result()


async def arun_job(
    site: Site,
    spec: LaunchSpec,
    nodes: Sequence[Node],
    *,
    on_line: Callable[[str], None] = lambda _: None,
    on_event: Callable[[JobEvent], None] = lambda _: None,
    check: Callable[[], None] = lambda: None,
) -> JobResult:
    """`run_job` in the event loop that runs now, for Airflow's triggerer: the same events and errors.

    No thread but the one that sends metrics to MLflow. The callbacks are called in the loop and must not block; `check`
    is called in a worker thread. Cancelled, it ends what runs on the machines before the cancellation comes out,
    however often it is cancelled meanwhile.
    """
    broken: asyncio.Future[BaseException] = asyncio.get_running_loop().create_future()

    def guarded(callback: Callable[[Any], None]) -> Callable[[Any], None]:
        def call(what: Any) -> None:
            try:
                callback(what)
            except Exception as error:  # noqa: BLE001 - ends the job and comes out of arun_job
                if not broken.done():
                    broken.set_result(error)

        return call

    job = asyncio.create_task(_run(site, spec, nodes, guarded(on_line), guarded(on_event)))
    try:
        while not job.done() and not broken.done():
            await asyncio.wait([job, broken], timeout=_CHECK_S, return_when=asyncio.FIRST_COMPLETED)
            if not job.done() and not broken.done():
                await asyncio.to_thread(check)
    finally:
        await _ended(job)
    if broken.done():
        raise broken.result()
    return job.result()


async def _ended(job: asyncio.Task[JobResult]) -> None:
    """Cancel it if it still runs, once: a second one would cut off the ending of what runs on the machines."""
    if not job.done():
        job.cancel()
    await settled(job)
    if not job.cancelled():
        job.exception()  # looked at, for the case that another error is on its way out


class _JobThread:
    """A coroutine in a thread and loop of its own."""

    def __init__(self, job: Coroutine[None, None, JobResult], *, name: str) -> None:
        self.over = threading.Event()
        self._cancelled = threading.Event()
        self._outcome: JobResult | BaseException | None = None
        threading.Thread(target=self._work, args=(job,), name=name).start()

    def end(self) -> None:
        """Cancel it if it still runs, and wait until it has cleaned up."""
        self._cancelled.set()
        self.over.wait()  # not join(): one that Ctrl-C interrupts takes the thread for ended ever after (CPython 3.11)

    def result(self) -> JobResult:
        """What came of it."""
        if isinstance(self._outcome, JobResult):
            return self._outcome
        raise self._outcome or RuntimeError("the job's thread ended without a word")

    def _work(self, job: Coroutine[None, None, JobResult]) -> None:
        try:
            self._outcome = asyncio.run(self._until_cancelled(job))
        except BaseException as error:  # noqa: BLE001 - handed to the caller's thread
            self._outcome = error
        finally:
            self.over.set()

    async def _until_cancelled(self, job: Coroutine[None, None, JobResult]) -> JobResult:
        task = asyncio.create_task(job)
        while not task.done() and not self._cancelled.is_set():
            await asyncio.wait([task], timeout=_CANCEL_POLL_S)
        await _ended(task)
        return task.result()


def _pass_on(told: _Told, *, wait_s: float) -> None:
    """Call back with all that was told so far, waiting at most `wait_s` for the first."""
    item = _next(told, wait_s)
    while item is not None:
        callback, what = item
        callback(what)
        item = _next(told, 0)


def _next(told: _Told, wait_s: float) -> tuple[Callable[[Any], None], Any] | None:
    try:
        return told.get(timeout=wait_s) if wait_s else told.get_nowait()
    except Empty:
        return None


async def _run(
    site: Site,
    spec: LaunchSpec,
    nodes: Sequence[Node],
    on_line: Callable[[str], None],
    on_event: Callable[[JobEvent], None],
) -> JobResult:
    """All attempts. What the program measures goes to MLflow from here, if it is wanted there."""
    if site.tracking is None:
        return await _attempts(site, spec, nodes, on_line, on_event)
    sender = MetricsSender(site.tracking)

    def hear(event: JobEvent) -> None:
        if isinstance(event, StepDone):
            sender.add(event.step, event.metrics)
        on_event(event)

    try:
        return await _attempts(site, spec, nodes, on_line, hear)
    finally:
        if warning := await asyncio.to_thread(sender.close):
            on_event(Warned(text=warning))


async def _attempts(
    site: Site,
    spec: LaunchSpec,
    nodes: Sequence[Node],
    on_line: Callable[[str], None],
    on_event: Callable[[JobEvent], None],
) -> JobResult:
    began = time.monotonic()
    ended: list[AttemptEnded] = []
    while True:
        attempt_began = time.monotonic()
        async with AsyncExitStack() as opened:
            placement, connections = await _reach(opened, site, spec, nodes)
            nodes = placement.nodes
            number = await _claim(site)
            attempt = Attempt(
                site,
                spec,
                number=number,
                placement=placement,
                connections=connections,
                on_line=on_line,
                on_event=on_event,
            )
            verdict = await _noted(site, attempt)
        notice = await asyncio.to_thread(site.ending)
        stopped = verdict.cause is Cause.STOPPED
        retry = notice is None and (stopped or (verdict.retriable and len(ended) + 1 < spec.max_attempts))
        seconds = time.monotonic() - attempt_began
        ended.append(
            AttemptEnded(
                attempt=number, cause=verdict.cause, what=verdict.what, seen=verdict.seen, seconds=seconds, retry=retry
            )
        )
        on_event(ended[-1])
        attempt.logs.close()
        if verdict.cause is Cause.SUCCEEDED:
            result = await asyncio.to_thread(site.store.get_json, result_key(site.prefix, number))
            return JobResult(
                attempts=tuple(ended),
                seconds=time.monotonic() - began,
                result=result or {},
                log_uri=f"s3://{site.store.bucket}/{site.prefix}/logs/",
            )
        if notice is not None and (stopped or verdict.retriable):
            raise _ending(notice, verdict)
        if not retry:
            raise _failure(attempt, verdict, len(ended), spec.max_attempts)
        await asyncio.sleep(PAUSE_S[verdict.cause] * 2 ** (len(ended) - 1))
        if verdict.cause is Cause.NODE_LOST:
            nodes = await adrive(site.mend(nodes), SystemClock())


async def _reach(
    opened: AsyncExitStack, site: Site, spec: LaunchSpec, nodes: Sequence[Node]
) -> tuple[Placement, list[Connection]]:
    """Connections to all machines, in the placement's order; one that does not answer may be replaced, once."""
    placement = place(nodes, spec.processes_per_node)
    hosts = [site.host(node) for node in placement.nodes]
    try:
        return placement, await opened.enter_async_context(connected(hosts, timeout_s=site.ssh_timeout_s))
    except NodeFailed:
        others = await adrive(site.mend(nodes), SystemClock())
        if set(others) == set(nodes):
            raise
    placement = place(others, spec.processes_per_node)
    hosts = [site.host(node) for node in placement.nodes]
    return placement, await opened.enter_async_context(connected(hosts, timeout_s=site.ssh_timeout_s))


async def _claim(site: Site) -> int:
    """The next attempt number; waits for S3 to come back, as an attempt without S3 could only fail."""
    async for trying in stamina.retry_context(
        on=ServiceUnavailable, attempts=None, timeout=_STORE_WAIT_S, wait_initial=1.0, wait_max=10.0
    ):
        with trying:
            return await asyncio.to_thread(claim_attempt, site)
    raise RuntimeError("stamina ended without a result or an error")


async def _noted(site: Site, attempt: Attempt) -> Verdict:
    """The attempt, with its begin and end in the run's journal. A cancelled one is not ended there: its release is."""
    await asyncio.to_thread(site.note_begin, attempt.number)
    try:
        verdict = await _verdict_of(attempt)
    except Exception as error:
        await asyncio.to_thread(site.note_end, attempt.number, type(error).__name__)
        raise
    await asyncio.to_thread(site.note_end, attempt.number, verdict.cause.value)
    return verdict


async def _verdict_of(attempt: Attempt) -> Verdict:
    """Services that fail while a machine is prepared are causes like those while it runs."""
    try:
        return await attempt.run()
    except RemoteError as error:
        if not error.retriable:
            raise
        return Verdict(
            cause=Cause.SERVICE, what=error.what, seen=error.seen, next_step=error.next_step or NEXT_STEP[Cause.SERVICE]
        )


def _failure(attempt: Attempt, verdict: Verdict, tries: int, allowed: int) -> MlopsError:
    last = attempt.logs.tail(verdict.rank, verdict.node)
    seen = verdict.seen + (f"; last lines: {last}" if last else "")
    again = f" (attempt {tries} of {allowed})" if verdict.retriable else ""
    return JobFailed(
        f"{verdict.what}{again}",
        seen=seen,
        next_step=f"{verdict.next_step}; log: {attempt.logs.uri(verdict.rank, verdict.node)}",
    )


def _ending(notice: Notice, verdict: Verdict) -> LeaseEnding:
    """The lease ends: either the program has stopped for that, or there is no time for another attempt."""
    kind = Preempted if notice.reason is EndReason.PREEMPTED else LeaseEnding
    return kind(
        verdict.what,
        seen=f"{END_TEXT[notice.reason]}; it ends at {to_iso(notice.ends_at)}",
        next_step=NEXT_STEP[Cause.STOPPED],
    )


def claim_attempt(site: Site) -> int:
    """The next attempt number of this run; no two controllers get the same."""
    folder, claim = f"{site.prefix}/attempts/", to_json({"claim": uuid.uuid4().hex})
    number = 1 + max((int(PurePosixPath(found.key).stem) for found in site.store.list(folder)), default=0)
    while not site.store.put_if_absent(f"{folder}{number:06d}.json", claim):
        number += 1
    return number
