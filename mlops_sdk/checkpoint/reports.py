"""Errors as JSON, so that all ranks raise the same one. Pure."""

from __future__ import annotations

from collections.abc import Iterable

from pydantic import JsonValue

from mlops_sdk import errors


def report_of(error: Exception) -> dict[str, JsonValue]:
    """An error as a value that travels; one that is not ours becomes a `CheckpointError`."""
    if isinstance(error, errors.MlopsError):
        return {
            "error": type(error).__name__,
            "what": error.what,
            "seen": error.seen,
            "next_step": error.next_step,
        }
    return {
        "error": "CheckpointError",
        "what": "a checkpoint could not be written or read",
        "seen": f"{type(error).__name__}: {error}",
        "next_step": "see the log of the rank",
    }


def error_of(rank: int, report: JsonValue) -> errors.MlopsError | None:
    """The error that a rank reported, if it did; it names the rank."""
    if not isinstance(report, dict) or "error" not in report:
        return None
    kind = getattr(errors, str(report["error"]), errors.CheckpointError)
    return kind(f"rank {rank}: {report['what']}", seen=str(report["seen"]), next_step=str(report["next_step"]))


def first_error(reports: Iterable[JsonValue]) -> errors.MlopsError | None:
    """The error of the lowest rank that reported one."""
    found = (error_of(rank, report) for rank, report in enumerate(reports))
    return next((error for error in found if error is not None), None)
