"""`test_connection` asks the service itself: right, wrong secret, nobody there."""

from __future__ import annotations

import json
import os
from typing import Any

import pytest

from mlops_hooks.connection import ConnectionHook
from mlops_hooks.mlflow import MlflowHook
from mlops_hooks.openstack import OpenStackHook
from mlops_hooks.s3 import S3Hook
from support_airflow import connections_of

pytestmark = pytest.mark.stack

HOOKS = (OpenStackHook, S3Hook, MlflowHook)
NOBODY = "http://127.0.0.1:1"


@pytest.fixture
def connect(stack: Any, monkeypatch: pytest.MonkeyPatch):
    """Define the connections to the stack, one of them changed."""

    def define(conn_id: str = "", **changes: str) -> None:
        for name, value in connections_of(stack.settings).items():
            monkeypatch.setenv(name, value)
        if conn_id:
            name = f"AIRFLOW_CONN_{conn_id.upper()}"
            monkeypatch.setenv(name, json.dumps({**json.loads(os.environ[name]), **changes}))

    define()
    return define


@pytest.mark.parametrize("hook", HOOKS)
def test_a_right_connection_is_confirmed_by_the_service(connect, hook: type[ConnectionHook[Any]]):
    works, said = hook().test_connection()
    assert works, said
    assert "127.0.0.1" in said
    assert "\n" not in said


@pytest.mark.parametrize("hook", HOOKS)
def test_a_wrong_secret_is_told_and_not_shown(connect, hook: type[ConnectionHook[Any]]):
    connect(hook.default_conn_name, password="wrong-secret-0001")
    works, said = hook().test_connection()
    assert not works
    assert "refused" in said or "SignatureDoesNotMatch" in said or "denied" in said.lower()
    assert "wrong-secret-0001" not in said


@pytest.mark.parametrize("hook", HOOKS)
def test_nobody_there_is_told(connect, hook: type[ConnectionHook[Any]]):
    connect(hook.default_conn_name, host=NOBODY)
    works, said = hook().test_connection()
    assert not works
    assert NOBODY in said or "127.0.0.1" in said
