"""What Airflow's provider manager reads about this distribution."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from mlops_hooks.forms import FORMS

_INTEGRATION = "OpenInfra MLOps"
_OPERATORS = ("tests", "data", "capacity", "providers", "training", "registry", "serving", "drift", "reports")
_TRIGGERS = ("capacity", "machines", "training", "serving")
_LINKS = ("MlflowRunLink", "ModelVersionLink", "NodeLink", "EndpointLink")
_PRELOAD = {
    "description": "Modules that the scheduler imports at its start, so that tasks of LocalExecutor find them loaded. "
    "Set it in the scheduler's environment alone.",
    "type": "string",
    "version_added": "0.1.0",
    "example": "great_expectations,pandas",
    "default": "",
}


def get_provider_info() -> dict[str, Any]:
    """The provider description. Imports nothing of Airflow: every process of Airflow reads it.

    The plugin is not in it: it has an entry point of its own, and Airflow refuses one that is registered twice.
    """
    hooks = [form.hook_class.rpartition(".")[0] for form in FORMS]
    return {
        "package-name": "openinfra-mlops",
        "name": _INTEGRATION,
        "description": "Lease OpenStack capacity, train, give it back; register, gate, serve, and watch for drift.",
        "integrations": [
            {
                "integration-name": _INTEGRATION,
                "external-doc-url": "https://docs.openstack.org/ironic/latest/",
                "tags": ["service"],
            }
        ],
        "operators": [_modules(f"mlops_operators.{name}" for name in _OPERATORS)],
        "hooks": [_modules(["mlops_hooks.deployment", *hooks])],
        "triggers": [_modules(f"mlops_operators.triggers.{name}" for name in _TRIGGERS)],
        "connection-types": [form.to_json() for form in FORMS],
        "extra-links": [f"mlops_operators.links.{name}" for name in _LINKS],
        "config": {"mlops": {"description": "Settings of openinfra-mlops.", "options": {"preload_modules": _PRELOAD}}},
    }


def _modules(names: Iterable[str]) -> dict[str, Any]:
    return {"integration-name": _INTEGRATION, "python-modules": list(names)}
