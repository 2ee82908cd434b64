"""What Airflow's provider manager reads about this distribution."""

from __future__ import annotations

from typing import Any


def get_provider_info() -> dict[str, Any]:
    """The provider description. Operators, hooks and connection types are added as they are built."""
    return {
        "package-name": "openinfra-mlops",
        "name": "OpenInfra MLOps",
        "description": "Lease OpenStack capacity, train, checkpoint, register and give everything back.",
    }
