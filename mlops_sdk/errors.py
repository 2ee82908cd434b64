"""Every exception of the library, in one tree.

    MlopsError
    ├── SettingsError              a setting is missing or wrong
    ├── RemoteError                an outside system failed; `retriable` says whether trying again can help
    │   ├── ServiceUnavailable     no answer, a time-out, or a 5xx
    │   └── AccessDenied           a wrong secret, an expired credential, a role that is missing
    ├── DamagedObject              an object in the bucket is not what its key says
    ├── CapacityError
    │   ├── NoCapacity             nothing free within the stated waiting time
    │   ├── NodeFailed             a machine did not come up, or went away
    │   ├── NotFenced              a lost machine could not be switched off, so nothing may take its place
    │   ├── LeaseLost              the lease ended, or somebody else owns the name
    │   ├── LeaseEnding            a job was told that its lease ends, and stopped; it resumes on the next one
    │   │   └── Preempted          somebody of a higher priority needs the machines
    │   ├── ImpossibleEvent        a journal tells of something that cannot happen to a lease in its state
    │   ├── LeasesOverdue          something is held past its time, and nobody has taken it back
    │   ├── BudgetExceeded         the owner's budget has no room for it
    │   ├── CardNotDivisible       an accelerator cannot be divided or used as asked
    │   └── FlavorRefused          a flavor's extra specs contradict each other, or do not give what was asked
    ├── RemoteCommandError
    │   ├── HostKeyMismatch        the machine at the address is not the machine that was leased
    │   └── JobFailed              the program on the nodes ended with an error; names rank, node and log
    ├── CheckpointError
    │   ├── CheckpointCorrupt      a shard or manifest does not match its recorded hash
    │   └── CheckpointConflict     somebody else committed this step
    ├── BundleError                code delivered to a node is not what was sent
    ├── DataError                  data could not be pinned as a revision
    │   └── DataRejected           data does not meet an expectation; names it, its column, how many, examples
    ├── RegistryError              a model could not be registered
    │   └── GateRefused            the candidate is not good enough to take the champion's place
    ├── DriftError
    │   ├── ProfileDamaged         a profile or reference of prompts cannot be read
    │   └── ProfileMismatch        profiles that were not counted over the same bins
    ├── WebhookError               a delivery was refused
    │   ├── BadSignature           it is not signed with a secret that is valid here
    │   ├── Malformed              it is not what GitHub sends
    │   └── TooLarge               its body is larger than allowed
    ├── SourceError                the code that was asked for cannot be checked out
    ├── RedCommit                  the tests of the code failed
    ├── ServingError               a model could not be served
    │   └── RolledBack             the new version did not get ready and is gone; what served before still does
    └── StackError                 the embedded stack: port taken, service not ready, another stack holds the directory

Each carries what failed, what was seen (in the remote system's own words) and what to do next.
"""

from __future__ import annotations

from typing import Any


class MlopsError(Exception):
    """Base of all errors of the library.

    Args:
        what: What failed and on which object, one sentence.
        seen: What was observed, in the remote system's own words. Never contains a secret.
        next_step: What the reader can do about it.
    """

    retriable: bool = False

    def __init__(self, what: str, *, seen: str = "", next_step: str = "") -> None:
        super().__init__(what, seen, next_step)
        self.what = what
        self.seen = seen
        self.next_step = next_step

    def __str__(self) -> str:
        parts = [self.what]
        if self.seen:
            parts.append(f"seen: {self.seen}")
        if self.next_step:
            parts.append(f"next: {self.next_step}")
        return "; ".join(parts)

    def __reduce__(self) -> tuple[Any, ...]:
        return (_rebuild, (type(self), self.what, self.seen, self.next_step))


def _rebuild(kind: type[MlopsError], what: str, seen: str, next_step: str) -> MlopsError:
    return kind(what, seen=seen, next_step=next_step)


class SettingsError(MlopsError):
    """A setting is missing or wrong."""


class RemoteError(MlopsError):
    """An outside system failed."""


class ServiceUnavailable(RemoteError):
    """No answer, a time-out, a 429 or a 5xx: trying again can help.

    Attributes:
        retry_after_s: The service said that it is to be left alone for so long; 0 when it did not say.
    """

    retriable = True
    retry_after_s: float = 0.0


class AccessDenied(RemoteError):
    """A wrong secret, an expired credential, or a missing role."""


class DamagedObject(MlopsError, ValueError):
    """An object in the bucket is not what its key says. Also a `ValueError`, as what its parser raised."""


class CapacityError(MlopsError):
    """Machines could not be had or kept."""


class NoCapacity(CapacityError):
    """Nothing suitable became free within the stated waiting time."""


class NodeFailed(CapacityError):
    """A machine did not come up, or went away."""


class NotFenced(CapacityError):
    """A machine that may be lost could not be switched off through its BMC: it may still be at work."""


class LeaseLost(CapacityError):
    """The lease ended, or the name belongs to somebody else."""


class LeaseEnding(CapacityError):
    """A job was told that its lease ends at its deadline, and stopped; it resumes on the next lease."""


class Preempted(LeaseEnding):
    """A job was told that somebody of a higher priority needs its machines, and stopped; it resumes on the next."""


class ImpossibleEvent(CapacityError):
    """A run's journal tells of something that cannot happen to a lease in its state."""


class LeasesOverdue(CapacityError):
    """Something is held past its time, and nobody has taken it back (yet: the reaper may be about to)."""

    retriable = True


class BudgetExceeded(CapacityError):
    """The owner's budget for the month has no room for this lease: trying again does not make room."""


class CardNotDivisible(CapacityError):
    """An accelerator cannot be divided or used as asked: it is another model, or has fewer places."""


class FlavorRefused(CapacityError):
    """A flavor's extra specs contradict each other, or do not give what was asked: trying again does not help."""


class RemoteCommandError(MlopsError):
    """A command on a machine could not be run."""


class HostKeyMismatch(RemoteCommandError):
    """The machine at the address is not the machine that was leased."""


class JobFailed(RemoteCommandError):
    """The program on the nodes ended with an error."""


class CheckpointError(MlopsError):
    """A checkpoint could not be written or read."""


class CheckpointCorrupt(CheckpointError):
    """A shard or manifest does not match its recorded hash."""


class CheckpointConflict(CheckpointError):
    """Somebody else committed this step."""


class BundleError(MlopsError):
    """Code delivered to a node is not what was sent."""


class DataError(MlopsError):
    """Data could not be pinned as a revision."""


class DataRejected(DataError):
    """Data does not meet its expectations: the same data never will."""


class RegistryError(MlopsError):
    """A model could not be registered."""


class GateRefused(RegistryError):
    """The candidate is not good enough to take the champion's place: the same candidate never will be."""


class DriftError(MlopsError):
    """Served prompts could not be compared with what a model was made for."""


class ProfileDamaged(DriftError):
    """A profile or reference of prompts cannot be read."""


class ProfileMismatch(DriftError):
    """Profiles that do not belong together: other bins, another reference, another model."""


class WebhookError(MlopsError):
    """A webhook delivery was refused."""


class BadSignature(WebhookError):
    """It is not signed with a secret that is valid here."""


class Malformed(WebhookError):
    """It is not what GitHub sends."""


class TooLarge(WebhookError):
    """Its body is larger than allowed."""


class SourceError(MlopsError):
    """The code that was asked for cannot be checked out."""


class RedCommit(MlopsError):
    """The tests of the code failed."""


class ServingError(MlopsError):
    """A model could not be served: the host, its proxy or the store of its files did not do their part."""

    retriable = True


class RolledBack(ServingError):
    """The new version did not get ready and is gone; what served before still does. It would not the next time."""

    retriable = False


class StackError(MlopsError):
    """The embedded stack could not be started, stopped or inspected."""
