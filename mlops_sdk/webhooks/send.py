"""Tell a receiver about a push: what a git server or a CI system runs.

    echo "$OLD $NEW refs/heads/main" | python -m mlops_sdk.webhooks.send --config webhook.json

Standard input has the lines that git gives to a post-receive hook: old commit, new commit, ref. The configuration is a
JSON file that only its owner can read, ``{"url": ..., "secrets": [...], "repository": "owner/name"}``; the first secret
signs.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError

from mlops_sdk.errors import AccessDenied, MlopsError, RemoteError, ServiceUnavailable, SettingsError
from mlops_sdk.invalid import wrong_fields
from mlops_sdk.webhooks.event import PING, PUSH
from mlops_sdk.webhooks.verify import HEADER, sign

_NO_COMMIT: Final = "0" * 40
_PAUSES_S: Final = (0.2, 0.5, 1.0, 2.0, 4.0)
_TIMEOUT_S: Final = 10.0
_FIELDS: Final = 3
_SERVER_ERROR: Final = 500
_DENIED: Final = frozenset({401, 403})


class Receiver(BaseModel):
    """Where deliveries go, how they are signed, and which repository they speak of."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    url: str = Field(pattern=r"^https?://")
    secrets: tuple[SecretStr, ...] = Field(min_length=1)
    repository: str = ""

    @classmethod
    def load(cls, path: Path) -> Receiver:
        """Read a configuration file.

        Raises:
            SettingsError: it cannot be read, or a field is wrong; values are not repeated.
        """
        try:
            return cls.model_validate_json(path.read_bytes())
        except OSError as error:
            seen = error.strerror or type(error).__name__
        except ValidationError as error:
            seen = wrong_fields(error)
        raise SettingsError(
            f"the webhook configuration {str(path)!r} cannot be used", seen=seen, next_step="give url and secrets"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class RefUpdate:
    """One line of a post-receive hook."""

    before: str
    after: str
    ref: str


def ref_updates(lines: Iterable[str]) -> list[RefUpdate]:
    """The lines that git gives to a post-receive hook.

    Raises:
        SettingsError: a line is not `<old> <new> <ref>`.
    """
    updates: list[RefUpdate] = []
    for line in lines:
        words = line.split()
        if not words:
            continue
        if len(words) != _FIELDS:
            raise SettingsError(
                "a line of the push cannot be read", seen=repr(line), next_step="give: old commit, new commit, ref"
            )
        updates.append(RefUpdate(before=words[0], after=words[1], ref=words[2]))
    return updates


def push_payload(update: RefUpdate, repository: str) -> bytes:
    """A push as GitHub describes it; the same update has the same bytes."""
    payload = {
        "ref": update.ref,
        "before": update.before,
        "after": update.after,
        "created": update.before == _NO_COMMIT,
        "deleted": update.after == _NO_COMMIT,
        "repository": {"name": repository.rpartition("/")[2], "full_name": repository},
    }
    return json.dumps(payload, separators=(",", ":")).encode()


def deliver(
    receiver: Receiver, event: str, body: bytes, *, pause: Callable[[float], None] = time.sleep
) -> dict[str, Any]:
    """Send one signed event; the receiver's answer. Repeated for some seconds while it is not there.

    Repeating is safe: one push has one key at the receiver, whatever the delivery id.

    Raises:
        AccessDenied: it does not accept our signature.
        ServiceUnavailable: it did not answer.
        RemoteError: it refused the event.
    """
    delivery = str(uuid.uuid4())
    for seconds in _PAUSES_S:
        try:
            return _post(receiver, event, body, delivery)
        except ServiceUnavailable:
            pause(seconds)
    return _post(receiver, event, body, delivery)


def _post(receiver: Receiver, event: str, body: bytes, delivery: str) -> dict[str, Any]:
    request = urllib.request.Request(  # noqa: S310 - the pattern of `url` allows http and https only
        receiver.url,
        data=body,
        headers={
            "Content-Type": "application/json",
            "User-Agent": "mlops-webhooks",
            "X-GitHub-Event": event,
            "X-GitHub-Delivery": delivery,
            HEADER: sign(receiver.secrets[0].get_secret_value().encode(), body),
        },
    )
    try:
        with urllib.request.urlopen(request, timeout=_TIMEOUT_S) as reply:  # noqa: S310 - as above
            return dict(json.loads(reply.read()))
    except urllib.error.HTTPError as error:
        said = error.read(1000).decode(errors="replace")
        raise _refused(receiver.url, error.code, said) from error
    except (OSError, ValueError) as error:
        raise ServiceUnavailable(
            f"the webhook receiver {receiver.url!r} did not answer", seen=str(error), next_step="is it running?"
        ) from error


def _refused(url: str, status: int, said: str) -> RemoteError:
    what, seen = f"the webhook receiver {url!r} refused the delivery", f"status {status}: {said}"
    if status >= _SERVER_ERROR:
        return ServiceUnavailable(what, seen=seen, next_step="send it again")
    if status in _DENIED:
        return AccessDenied(what, seen=seen, next_step="use one of the receiver's secrets")
    return RemoteError(what, seen=seen, next_step="correct the event")


def main(argv: list[str] | None = None) -> int:
    """Send one signed push event per line of standard input. The exit status is 1 when any was not accepted."""
    parser = argparse.ArgumentParser(prog="python -m mlops_sdk.webhooks.send", description=main.__doc__)
    parser.add_argument("--config", type=Path, required=True, help="JSON file with url, secrets and repository")
    parser.add_argument("--repository", default="", metavar="OWNER/NAME", help="instead of the file's")
    parser.add_argument("--ping", action="store_true", help="only ask whether the receiver accepts our signature")
    arguments = parser.parse_args(argv)
    try:
        receiver = Receiver.load(arguments.config)
        repository = arguments.repository or receiver.repository
        updates = [] if arguments.ping else ref_updates(sys.stdin)
    except MlopsError as error:
        sys.stderr.write(f"webhook: {error}\n")
        return 1
    if arguments.ping:
        return 0 if _sent(receiver, PING, PING, b"{}") else 1
    sent = [
        _sent(receiver, f"{update.ref} {update.after[:12]}", PUSH, push_payload(update, repository))
        for update in updates
    ]
    return 0 if all(sent) else 1


def _sent(receiver: Receiver, what: str, event: str, body: bytes) -> bool:
    """One delivery, told to whoever pushed; one that is refused does not keep the next from being sent."""
    try:
        answer = deliver(receiver, event, body)
    except MlopsError as error:
        sys.stderr.write(f"webhook: {what}: {error}\n")
        return False
    sys.stdout.write(f"webhook: {what}: {answer.get('state', 'accepted')} {str(answer.get('key', ''))[:12]}\n")
    return True


if __name__ == "__main__":
    sys.exit(main())
