"""Which rank runs where, and what the way a job ended means. Pure: no clock, no socket, no file."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from signal import Signals

from mlops_sdk.capacity.node import Node
from mlops_sdk.remote.end import End
from mlops_sdk.training.messages import Raised, RankEnded


class Cause(StrEnum):
    """Why an attempt ended."""

    SUCCEEDED = "succeeded"
    KILLED = "killed"
    NODE_LOST = "node lost"
    SERVICE = "service failed"
    RAISED = "program raised"
    EXITED = "program exited"
    LAUNCHER = "launcher failed"
    STOPPED = "stopped on notice"


RETRIABLE: Mapping[Cause, bool] = {
    Cause.SUCCEEDED: False,
    Cause.KILLED: True,
    Cause.NODE_LOST: True,
    Cause.SERVICE: True,
    Cause.RAISED: False,
    Cause.EXITED: False,
    Cause.LAUNCHER: False,
    Cause.STOPPED: False,
}

NEXT_STEP: Mapping[Cause, str] = {
    Cause.SUCCEEDED: "",
    Cause.KILLED: "look for the kernel's out-of-memory killer or an operator's kill on the machine",
    Cause.NODE_LOST: "look at the machine's console and BMC; lease again",
    Cause.SERVICE: "bring the named service back; the job resumes from its last committed checkpoint",
    Cause.RAISED: "correct the program; trying again would raise again",
    Cause.EXITED: "see the rank's log for why the program ended itself",
    Cause.LAUNCHER: "see the log: the launcher itself could not run",
    Cause.STOPPED: "lease again: the job resumes from its last checkpoint",
}

PAUSE_S: Mapping[Cause, float] = {
    Cause.SUCCEEDED: 0.0,
    Cause.KILLED: 0.0,
    Cause.NODE_LOST: 1.0,
    Cause.SERVICE: 5.0,
    Cause.RAISED: 0.0,
    Cause.EXITED: 0.0,
    Cause.LAUNCHER: 0.0,
    Cause.STOPPED: 0.0,
}
"""How long to wait before the second attempt; doubled before each further one."""

_ECHOES = (
    "gloo",
    "nccl",
    "connection closed by peer",
    "connection reset by peer",
    "broken pipe",
    "tcpstore",
    "mpi_err",
)
_ECHO_TYPES = ("DistBackendError", "DistNetworkError", "DistStoreError", "ConnectionResetError", "BrokenPipeError")


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """Where each rank runs: rank r is local rank ``r % processes_per_node`` on ``nodes[r // processes_per_node]``."""

    nodes: tuple[Node, ...]
    processes_per_node: int

    @property
    def world_size(self) -> int:
        """Ranks in all."""
        return len(self.nodes) * self.processes_per_node

    def node_of(self, rank: int) -> Node:
        """The machine of a rank."""
        return self.nodes[rank // self.processes_per_node]


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """Why an attempt ended: the cause, the rank and machine it started at (rank -1: no single one), what was seen."""

    cause: Cause
    rank: int = -1
    node: str = ""
    what: str = ""
    seen: str = ""
    next_step: str = ""

    @property
    def retriable(self) -> bool:
        """Whether another attempt can cure it."""
        return RETRIABLE[self.cause]


def place(nodes: Iterable[Node], processes_per_node: int) -> Placement:
    """Ranks in the order (leaf, position, name), so that neighbours in a ring hang on the same leaf where they can."""
    ordered = sorted(nodes, key=lambda node: (node.leaf, node.position, node.name))
    return Placement(nodes=tuple(ordered), processes_per_node=processes_per_node)


def judge(
    placement: Placement,
    ends: Sequence[End],
    raised: Sequence[Raised],
    ended: Mapping[int, RankEnded],
    started: Iterable[int],
    *,
    stopped: Mapping[int, int] | None = None,
) -> Verdict:
    """What ended an attempt.

    The failure of one rank makes its peers fail too, with errors of the communication library. So causes are looked
    for in the order in which they can bring about others: a rank killed from outside, a machine that went away, an
    exception that is the program's own, and only then what is left.

    Args:
        placement: The attempt's ranks.
        ends: How the command on each machine ended, in the placement's order.
        raised: Exceptions reported by ranks.
        ended: Last word about each rank's process.
        started: Ranks that had begun.
        stopped: Ranks that ended themselves because of a notice, and the step up to which all is committed.
    """
    if all(end.ok for end in ends):
        if stopped:
            what = f"the job stopped on notice, with a checkpoint of step {max(stopped.values())}"
            return _verdict(Cause.STOPPED, -1, "", what, "")
        return Verdict(cause=Cause.SUCCEEDED)
    own = sorted((error for error in raised if not is_echo(error)), key=lambda error: error.time)
    killed = [e for e in ended.values() if e.signal and not e.asked and not (own and e.signal == Signals.SIGABRT)]
    if killed:
        return _killed(placement, min(killed, key=lambda e: e.rank))
    lost = [i for i, end in enumerate(ends) if end.lost and not end.by_us]
    if lost:
        node = placement.nodes[lost[0]]
        what = f"node {node.name!r} went away"
        return _verdict(Cause.NODE_LOST, lost[0] * placement.processes_per_node, node.name, what, ends[lost[0]].lost)
    if own:
        return _raised(placement, own[0])
    return _unexplained(placement, ends, raised, ended, set(started))


def is_echo(error: Raised) -> bool:
    """Whether an exception only says that a peer went away."""
    text = f"{error.exception} {error.message}".lower()
    return error.exception.rpartition(".")[2] in _ECHO_TYPES or any(word in text for word in _ECHOES)


def signal_name(number: int) -> str:
    """``SIGKILL`` for 9; ``signal N`` for a number without a name."""
    try:
        return Signals(number).name
    except ValueError:
        return f"signal {number}"


def _killed(placement: Placement, end: RankEnded) -> Verdict:
    node = placement.node_of(end.rank).name
    what = f"rank {end.rank} on {node!r} was killed by {signal_name(end.signal)}"
    return _verdict(Cause.KILLED, end.rank, node, what, f"signal {end.signal}")


def _raised(placement: Placement, error: Raised) -> Verdict:
    node = placement.node_of(error.rank).name
    cause = Cause.SERVICE if error.retriable else Cause.RAISED
    what = f"the program raised {error.exception} on rank {error.rank} ({node!r})"
    return Verdict(
        cause=cause,
        rank=error.rank,
        node=node,
        what=what,
        seen=error.message,
        next_step=error.next_step or NEXT_STEP[cause],
    )


def _unexplained(
    placement: Placement,
    ends: Sequence[End],
    raised: Sequence[Raised],
    ended: Mapping[int, RankEnded],
    started: set[int],
) -> Verdict:
    """No rank said it failed by itself: one vanished, left on its own, or the launcher did not get that far."""
    killed = next((i for i, end in enumerate(ends) if end.signal and not end.by_us), None)
    if killed is not None:
        name, node = f"SIG{ends[killed].signal}", placement.nodes[killed].name
        return _verdict(Cause.KILLED, -1, node, f"the launcher on {node!r} was killed by {name}", f"signal {name}")
    left = [e for e in ended.values() if e.status and not e.asked and e.rank not in {error.rank for error in raised}]
    if left:
        node = placement.node_of(left[0].rank).name
        what = f"the program exited with status {left[0].status} on rank {left[0].rank} ({node!r})"
        return _verdict(Cause.EXITED, left[0].rank, node, what, f"exit status {left[0].status}")
    vanished = sorted(started - set(ended))
    if vanished or raised:
        rank = vanished[0] if vanished else raised[0].rank
        node = placement.node_of(rank).name
        what = f"rank {rank} on {node!r} vanished" if vanished else f"rank {rank} on {node!r} lost its peers"
        seen = raised[0].message if raised else "no word from its process"
        return _verdict(Cause.KILLED, rank, node, what, seen)
    index = next((i for i, end in enumerate(ends) if not end.ok and not end.by_us), 0)
    node, status = placement.nodes[index].name, ends[index].status
    return _verdict(Cause.LAUNCHER, -1, node, f"the launcher on {node!r} failed", f"exit status {status}")


def _verdict(cause: Cause, rank: int, node: str, what: str, seen: str) -> Verdict:
    return Verdict(cause=cause, rank=rank, node=node, what=what, seen=seen, next_step=NEXT_STEP[cause])
