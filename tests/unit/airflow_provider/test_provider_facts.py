"""What `airflow providers` and the connection forms show of us, asked of Airflow's own provider manager."""

from __future__ import annotations

import importlib
import inspect
import json
import pkgutil
from pathlib import Path

import airflow
import pytest
from airflow.plugins_manager import get_import_errors, get_plugin_info
from airflow.providers_manager import ProvidersManager
from airflow.sdk import BaseOperator
from airflow.sdk.providers_manager_runtime import ProvidersManagerTaskRuntime
from airflow.triggers.base import BaseTrigger
from jsonschema import Draft7Validator

import mlops_operators
import mlops_operators.triggers
from mlops_hooks.forms import FORMS
from mlops_operators.base import MlopsOperator
from mlops_operators.provider_info import get_provider_info

NAME = "openinfra-mlops"


@pytest.fixture(scope="module")
def manager() -> ProvidersManager:
    return ProvidersManager()


def modules_of(kind: str) -> set[str]:
    return {name for item in get_provider_info()[kind] for name in item["python-modules"]}


def classes_in(package, base: type) -> set[type]:
    """Every class of a kind that any module of a package defines."""
    found = set()
    for info in pkgutil.iter_modules(package.__path__, f"{package.__name__}."):
        module = importlib.import_module(info.name)
        members = [c for _, c in inspect.getmembers(module, inspect.isclass) if c.__module__ == info.name]
        found |= {c for c in members if issubclass(c, base) and not inspect.isabstract(c)}
    return found - {MlopsOperator}


def test_airflow_knows_us_by_name_and_version(manager):
    ours = manager.providers[NAME]
    assert ours.version == "0.1.0"
    assert ours.data["name"] == "OpenInfra MLOps"


def test_the_description_obeys_airflows_schema():
    schema = json.loads((Path(airflow.__file__).parent / "provider_info.schema.json").read_text())
    assert [error.message for error in Draft7Validator(schema).iter_errors(get_provider_info())] == []


def test_every_operator_and_trigger_is_announced():
    assert {c.__module__ for c in classes_in(mlops_operators, BaseOperator)} == modules_of("operators")
    assert {c.__module__ for c in classes_in(mlops_operators.triggers, BaseTrigger)} == modules_of("triggers")


def test_every_connection_type_has_a_hook_that_airflow_can_make():
    hooks = ProvidersManagerTaskRuntime().hooks
    for form in FORMS:
        info = hooks[form.conn_type]
        assert info is not None
        assert info.package_name == NAME
        assert info.hook_name == form.name
        assert info.connection_testable
        module, _, name = info.hook_class_name.rpartition(".")
        hook = getattr(importlib.import_module(module), name)(**{info.connection_id_attribute_name: "some_id"})
        assert hook.conn_id == "some_id"


def test_the_forms_show_every_extra_and_hide_the_secret_ones(manager):
    widgets = manager.connection_form_widgets
    for form in FORMS:
        for name, extra in form.extras.items():
            widget = widgets[f"extra__{form.conn_type}__{name}"]
            assert widget.is_sensitive == extra.secret
        assert manager.field_behaviours[form.conn_type]["hidden_fields"] == list(form.hidden)
    secret = {name for form in FORMS for name, extra in form.extras.items() if extra.secret}
    assert secret == {"application_credential_secret", "broker_secret", "private_key", "static_private_key"}


def test_links_are_registered(manager):
    ours = {name for name in manager.extra_links_class_names if name.startswith("mlops_")}
    links = ("MlflowRunLink", "ModelVersionLink", "NodeLink", "EndpointLink")
    assert ours == {f"mlops_operators.links.{name}" for name in links}


def test_the_plugin_is_loaded_once():
    assert [info["name"] for info in get_plugin_info()].count("mlops") == 1
    assert not [error for error in get_import_errors().items() if "mlops" in str(error)]


@pytest.mark.parametrize("operator", sorted(classes_in(mlops_operators, MlopsOperator), key=lambda c: c.__name__))
def test_every_operator_templates_its_run_and_connections_and_says_what_it_does(operator):
    assert set(MlopsOperator.template_fields) <= set(operator.template_fields)
    assert operator.__doc__
    parameters = {name for c in operator.__mro__ for name in inspect.signature(c.__init__).parameters}
    assert set(operator.template_fields) <= parameters
