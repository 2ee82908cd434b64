"""Attempt numbers: in order, and never the same for two controllers."""

from __future__ import annotations

import uuid
from concurrent.futures import ThreadPoolExecutor

from pydantic import SecretStr

from mlops_sdk.config import S3Settings
from mlops_sdk.identity.ssh_keys import SshKey
from mlops_sdk.testing.memory_s3 import memory_store
from mlops_sdk.training.job import claim_attempt
from mlops_sdk.training.site import Site

KEY = SshKey(private="hush", public="ssh-ed25519 A")


def test_two_controllers_of_one_run_never_make_the_same_attempt() -> None:
    site = Site(
        run_id=uuid.UUID(int=7),
        client_key=KEY,
        peer_key=KEY,
        store=memory_store(),
        node_s3=S3Settings(endpoint="http://s3", access_key_id="id", secret_access_key=SecretStr("hush")),
    )
    assert [claim_attempt(site) for _ in range(3)] == [1, 2, 3]
    with ThreadPoolExecutor(4) as pool:
        assert sorted(pool.map(claim_attempt, [site] * 8)) == list(range(4, 12))
    assert "hush" not in repr(site)
