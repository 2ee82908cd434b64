"""From the library's errors to Airflow's failures: what is said, and whether the task is tried again."""

from __future__ import annotations

from collections.abc import Collection, Generator, Mapping
from contextlib import contextmanager
from typing import Any

from airflow.sdk.exceptions import AirflowFailException

from mlops_sdk import errors
from mlops_sdk.capacity.lifecycle import END_RETRY, Retry, reason_of
from mlops_sdk.errors import AccessDenied, MlopsError, RemoteCommandError

_CURABLE = frozenset({Retry.LATER, Retry.NEXT_GENERATION})


def worth_retrying(error: MlopsError) -> bool:
    """Whether a later try of the same task can succeed where this one failed. Pure.

    A service that was away comes back, machines become free, another generation of a lease gets other machines. A wrong
    setting, a refused secret or a program that raises stay what they are.
    """
    return error.retriable or END_RETRY[reason_of(error)] in _CURABLE or type(error) is RemoteCommandError


@contextmanager
def airflow_failures(
    *, hopeless: tuple[type[MlopsError], ...] = (), connections: Collection[str] = ()
) -> Generator[None]:
    """Within: an error of the library that trying again cannot cure fails the task at once, without its retries.

    The text of the task's failure is the library's: what failed, what was seen, what to do next.

    Args:
        hopeless: Kinds of errors that this task cannot cure though others can.
        connections: Ids of those that the task uses: a refused secret is one of theirs.

    Raises:
        AirflowFailException: trying again cannot help.
        MlopsError: it can; Airflow retries as the task says.
    """
    try:
        yield
    except MlopsError as error:
        if worth_retrying(error) and not isinstance(error, hopeless):
            raise
        denied = connections and isinstance(error, AccessDenied)
        where = f"; it is in one of the connections {', '.join(connections)}" if denied else ""
        raise AirflowFailException(f"{type(error).__name__}: {error}{where}") from error


def error_to_json(error: MlopsError) -> dict[str, str]:
    """An error as it crosses from a trigger to its task."""
    return {"kind": type(error).__name__, "what": error.what, "seen": error.seen, "next_step": error.next_step}


def error_from_json(data: Mapping[str, Any]) -> MlopsError:
    """The error that a trigger told of; of a kind that this version does not know, the base of all."""
    kind = getattr(errors, str(data.get("kind", "")), MlopsError)
    if not (isinstance(kind, type) and issubclass(kind, MlopsError)):
        kind = MlopsError
    return kind(str(data.get("what", "")), seen=str(data.get("seen", "")), next_step=str(data.get("next_step", "")))
