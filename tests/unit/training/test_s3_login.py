"""The machines' S3 login is renewed over SSH while the attempt runs."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from contextlib import suppress
from datetime import UTC, datetime, timedelta

import pytest
from pydantic import SecretStr

from mlops_sdk.config import S3Settings
from mlops_sdk.errors import RemoteCommandError, ServiceUnavailable
from mlops_sdk.identity.s3_token import S3Token
from mlops_sdk.training.program import ProgramSpec
from mlops_sdk.training.s3_login import MachinesLogin
from mlops_sdk.training.trained import models_in


class Tokens:
    """Numbered logins; the k-th asked for fails where told."""

    def __init__(self, *, lifetime_s: float = 900.0, failing: tuple[int, ...] = ()) -> None:
        self.lifetime_s = lifetime_s
        self.asked: list[tuple[str, ...]] = []
        self._failing = failing

    def mint(self, reads: Iterable[str]) -> S3Token:
        self.asked.append(tuple(reads))
        if len(self.asked) in self._failing:
            raise ServiceUnavailable("S3 is away")
        return S3Token(
            access_key_id=f"key-{len(self.asked)}",
            secret_access_key=SecretStr("hush"),
            session_token=SecretStr("token"),
            expires_at=datetime.now(UTC) + timedelta(seconds=self.lifetime_s),
        )


class Machine:
    """What was put on it; as many logins as wanted set `enough`."""

    def __init__(self, *, wanted: int = 1, broken: bool = False) -> None:
        self.files: dict[str, bytes] = {}
        self.puts = 0
        self.enough = asyncio.Event()
        self._wanted = wanted
        self._broken = broken

    async def put_bytes(self, path: str, data: bytes) -> None:
        if self._broken:
            raise RemoteCommandError("cut off")
        self.files[path] = data
        self.puts += 1
        if self.puts >= self._wanted:
            self.enough.set()


async def test_every_machine_gets_the_same_login_for_the_jobs_inputs() -> None:
    tokens, machines = Tokens(), [Machine(), Machine()]
    await MachinesLogin(tokens, ["bundles/x"], machines, "/run/s3.json", warn=pytest.fail).give()
    assert tokens.asked == [("bundles/x",)]
    assert machines[0].files == machines[1].files
    assert S3Token.model_validate_json(machines[0].files["/run/s3.json"]).access_key_id == "key-1"


async def test_it_is_renewed_while_the_attempt_runs_also_after_a_failure() -> None:
    tokens, machine, warnings = Tokens(lifetime_s=0.03, failing=(2,)), Machine(wanted=3), []
    login = MachinesLogin(tokens, [], [machine], "/run/s3.json", warn=warnings.append)
    task = asyncio.create_task(login.keep_fresh())
    await asyncio.wait_for(machine.enough.wait(), timeout=10)
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task
    assert len(tokens.asked) >= 4
    assert len(warnings) == 1
    assert "S3 is away" in warnings[0]


async def test_a_machine_that_is_lost_does_not_keep_the_others_from_their_login() -> None:
    lost, well = Machine(broken=True), Machine()
    with pytest.raises(RemoteCommandError):
        await MachinesLogin(Tokens(), [], [lost, well], "/run/s3.json", warn=pytest.fail).give()
    assert well.puts == 1


def test_the_machines_are_told_a_file_and_no_key() -> None:
    ours = S3Settings(endpoint="http://s3", access_key_id="id", secret_access_key=SecretStr("hush"))
    told = MachinesLogin(Tokens(), [], [], "/run/s3.json", warn=pytest.fail).settings(ours)
    assert (told.access_key_id, told.secret_access_key.get_secret_value()) == ("", "")
    assert (told.endpoint, told.credentials_file) == ("http://s3", "/run/s3.json")


@pytest.mark.parametrize("name", ["runs/*", "/etc", "", "data/$x"])
def test_inputs_are_named_without_wildcards(name: str) -> None:
    assert ProgramSpec(module="m", reads=("data/x/", "data/a file")).reads
    with pytest.raises(ValueError, match="reads"):
        ProgramSpec(module="m", reads=(name,))


def test_models_that_arguments_name_may_be_read() -> None:
    arguments = {"champion": {"prefix": "runs/a/model", "sha256": "0"}, "other": {"prefix": "runs/b"}, "steps": 1}
    assert models_in(arguments) == ("runs/a/model/",)
