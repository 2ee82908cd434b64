"""How a machine of Ironic ended that a server of Nova was: judged by what Ironic shows of it. Pure.

Nova forgets such a server as soon as Ironic has begun to clean its machine, also when the tear-down failed and the
machine goes on running; that a cleaning ended, and what it did, only Ironic knows. Ironic shows a machine to the
project that owns it, and while it is deployed to the project whose server it is. We look, and end only what Nova has
forgotten: a machine whose cleaning failed is its operator's to repair.
"""

from __future__ import annotations

from dataclasses import dataclass

from mlops_sdk.capacity.evidence import Cleaning, Outcome
from mlops_sdk.capacity.providers.ironic_states import STATES, ReleaseStep, judge_outcome, release_step
from mlops_sdk.capacity.providers.ironic_view import Machine, words_of
from mlops_sdk.capacity.providers.nova_marker import Metal

NOT_SHOWN = "its machine went back to Ironic, which does not show its cleaning to this login"


@dataclass(frozen=True, slots=True, kw_only=True)
class MetalEnd:
    """How a machine ended, what shows it, and the cleaning that proves it.

    Attributes:
        torn_down: Nothing of ours runs on it any more, whatever becomes of its cleaning.
        forgotten: Nova gave it up without ending it: its own host was down, and nobody comes back to it.
    """

    outcome: Outcome
    words: str
    cleaning: Cleaning | None = None
    torn_down: bool = False
    forgotten: bool = False

    @property
    def steps(self) -> tuple[str, ...]:
        """What its cleaning did."""
        return self.cleaning.steps if self.cleaning is not None else ()


def judge_metal(metal: Metal, machine: Machine | None, cleaning: Cleaning | None, *, skew_s: float) -> MetalEnd:
    """How a machine ended whose server is gone; `PENDING` while it is on its way.

    Args:
        metal: What was noted of it.
        machine: What Ironic shows of it now; None where it shows nothing to this login.
        cleaning: Its last one that ended well.
        skew_s: By which the clocks of Nova and Ironic may differ.
    """
    if not metal.node_id or metal.noted_at is None or machine is None:
        return MetalEnd(outcome=Outcome.UNPROVEN, words=NOT_SHOWN)
    words = f"machine {machine.name or machine.id}: {words_of(machine)}"
    if machine.last_error:
        words += f", {machine.last_error}"
    if machine.instance_id == metal.server_id:
        words += "; Ironic still has our server on it, which Nova has forgotten"
        return MetalEnd(outcome=Outcome.PENDING, words=words, forgotten=True)
    step, torn_down = release_step(None, machine), machine.taken or machine.provision_state in _TORN_DOWN
    if step in _STUCK or (machine.provision_state not in STATES and not machine.taken):
        return MetalEnd(outcome=Outcome.NOT_CLEAN, words=words, torn_down=torn_down)
    outcome = judge_outcome(machine, deployed=True, cleaning=cleaning, started_at=metal.noted_at, skew_s=skew_s)
    if outcome is Outcome.CLEANED:
        return MetalEnd(outcome=outcome, words=words, cleaning=cleaning, torn_down=True)
    if outcome is Outcome.UNPROVEN:
        words = f"{words}; Ironic has no cleaning on record that erased its disks since"
    return MetalEnd(outcome=outcome, words=words, torn_down=torn_down)


def by_novas_word(outcome: Outcome, words: str, *, may_be_metal: bool) -> tuple[Outcome, str]:
    """How a server ended of which nothing is left but Nova's word, which does not tell what it ran on.

    Args:
        outcome: By that word.
        words: It.
        may_be_metal: Whether whole machines may be asked for, too.
    """
    if outcome is Outcome.CLEANED and may_be_metal:
        return Outcome.UNPROVEN, f"{words}; whether that was a machine of Ironic, and is clean, nobody noted"
    return outcome, words


_TORN_DOWN = {"cleaning", "clean wait", "clean hold", "clean failed", "manageable", "available"}
_STUCK = {ReleaseStep.TEAR_DOWN, ReleaseStep.RECLEAN, ReleaseStep.PROVIDE, ReleaseStep.NOT_CLEAN}
