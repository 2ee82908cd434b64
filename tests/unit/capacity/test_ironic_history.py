"""Which cleaning a machine has had, in the words of Ironic 39's node history."""

from datetime import UTC, datetime, timedelta

from mlops_sdk.capacity.evidence import Cleaning, NodeEvidence, Outcome
from mlops_sdk.capacity.lifecycle import EndReason
from mlops_sdk.capacity.providers.ironic_history import HistoryEntry, last_cleaning
from mlops_sdk.capacity.providers.ironic_view import Machine

NOW = datetime(2026, 11, 23, 8, 30, tzinfo=UTC)
STEPS = (
    "[{'step': 'erase_devices_metadata', 'priority': 99, 'interface': 'deploy', 'abortable': False, 'argsinfo': None,"
    " 'requires_ramdisk': True}, {'step': 'erase_devices', 'priority': 10, 'interface': 'deploy', 'abortable': True,"
    " 'argsinfo': {'level': {'description': 'x'}}, 'requires_ramdisk': False}]"
)
STARTED = f"Starting automated cleaning with steps={STEPS}"
ENDED = "Automated Cleaning completed successfully with steps=[]"  # Ironic forgets them before it writes this
FAILED = f"Automated Cleaning aborted at step 'erase_devices' with steps={STEPS}"


def entry(seconds: float, kind: str, words: str, *, error: bool = False) -> HistoryEntry:
    return HistoryEntry(at=NOW + timedelta(seconds=seconds), kind=kind, words=words, error=error)


START = entry(0, "automated_cleaning_start", STARTED)
END = entry(60, "automated_cleaning_end", ENDED)


def machine(**extra: object) -> Machine:
    return Machine(id="1", name="gpu-01", provision_state="available", extra=extra)


def test_a_cleaning_that_ended_well_has_the_steps_of_its_start():
    found = last_cleaning(machine(), [END, START])
    assert found == Cleaning(
        finished_at=NOW + timedelta(seconds=60), steps=("deploy.erase_devices_metadata", "deploy.erase_devices")
    )
    assert found.erased


def test_one_that_failed_or_goes_on_is_none():
    failed = entry(60, "automated_cleaning_end", FAILED, error=True)
    other = entry(30, "provisioning", "node lock released")
    assert last_cleaning(machine(), [failed, START]) is None
    assert last_cleaning(machine(), [other, START]) is None
    assert last_cleaning(machine(), []) is None
    later = [entry(200, "automated_cleaning_end", FAILED, error=True), entry(100, START.kind, STARTED), END, START]
    earlier = last_cleaning(machine(), later)
    assert earlier is not None
    assert earlier.finished_at == END.at  # which is older than the release that failed


def test_what_a_deploy_interface_left_counts_where_ironic_keeps_no_history():
    record = {"finished_at": (NOW + timedelta(seconds=90)).isoformat(), "steps": ["erase_scratch"]}
    assert last_cleaning(machine(cleaned=record), []) == Cleaning(
        finished_at=NOW + timedelta(seconds=90), steps=("erase_scratch",)
    )
    younger = last_cleaning(machine(cleaned=record), [END, START])
    assert younger is not None
    assert younger.steps == ("erase_scratch",)
    for rubbish in (
        "yesterday",
        {"finished_at": "yesterday"},
        {"steps": 3},
        {"finished_at": NOW.isoformat(), "steps": 3},
    ):
        assert last_cleaning(machine(cleaned=rubbish), []) is None


def test_words_that_are_no_list_tell_no_steps():
    for words in ("Starting automated cleaning", "steps=[", "steps=__import__('os')", "steps=[1, 'x']"):
        found = last_cleaning(machine(), [END, entry(0, START.kind, words)])
        assert found is not None
        assert not found.steps
        assert not found.erased


def test_evidence_keeps_the_steps_and_reads_what_older_versions_wrote():
    evidence = NodeEvidence(
        resource="ml-a-g1-0",
        allocation_id="a",
        node_id="1",
        outcome=Outcome.CLEANED,
        reason=EndReason.FINISHED,
        released_by="run",
        steps=("deploy.erase_devices",),
        recleans=2,
    )
    assert NodeEvidence.parse(evidence.to_json()) == evidence
    older = {key: value for key, value in evidence.to_json().items() if key not in {"steps", "recleans"}}
    assert NodeEvidence.parse(older).steps == ()
