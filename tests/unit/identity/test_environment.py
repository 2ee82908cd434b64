"""A deployment of one environment does not begin runs in another's bucket, nor move another's alias."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from mlops_sdk.errors import SettingsError
from mlops_sdk.identity.environment import MARKER
from mlops_sdk.testing.cloud import FakeCloud
from mlops_sdk.testing.settings import fake_settings


def cloud_of(environment: str, bucket: FakeCloud | None = None) -> FakeCloud:
    """A cloud whose settings name this environment, with the bucket of another."""
    settings = fake_settings()
    alias = f"champion-{environment}" if environment else "champion"
    mlflow = settings.mlflow.model_copy(update={"alias": alias})
    cloud = FakeCloud(settings=settings.model_copy(update={"environment": environment, "mlflow": mlflow}))
    if bucket is not None:
        cloud.s3 = bucket.s3
    return cloud


def test_the_first_run_of_an_environment_makes_the_bucket_its_own():
    prod = cloud_of("prod")
    prod.client().start_run("one")
    prod.client().start_run("two")
    assert b'"prod"' in prod.s3.objects[MARKER]


@pytest.mark.parametrize("environment", ["dev", ""])
def test_prods_bucket_takes_no_run_of_others_and_is_left_as_it_was(environment):
    prod = cloud_of("prod")
    prod.client().start_run("one")
    before = prod.s3.snapshot()
    with pytest.raises(SettingsError, match="belongs to environment 'prod'"):
        cloud_of(environment, prod).client().start_run("two")
    with pytest.raises(SettingsError, match="belongs to environment 'prod'"):
        cloud_of(environment, prod).client().find("one")
    assert prod.s3.snapshot() == before


def test_where_no_environment_is_named_nothing_is_written():
    cloud = cloud_of("")
    cloud.client().start_run("one")
    assert MARKER not in cloud.s3.objects


@pytest.mark.parametrize("alias", ["champion", "champion-prod"])
def test_settings_with_another_environments_alias_are_refused(alias):
    raw = fake_settings().model_dump()
    raw["mlflow"]["alias"] = alias
    with pytest.raises(ValidationError, match=r"needs mlflow\.alias 'champion-dev'"):
        type(fake_settings()).model_validate(raw | {"environment": "dev"})


@pytest.mark.parametrize("name", ["Prod", "-dev", "a" * 20, "dev prod"])
def test_a_name_has_one_form(name):
    with pytest.raises(ValidationError, match="environment"):
        type(fake_settings()).model_validate(fake_settings().model_dump() | {"environment": name})
