"""Airflow as a library: its folder is below the checkout, not in the home of who runs the tests."""

from __future__ import annotations

import os
from pathlib import Path

# before anything imports airflow
os.environ.setdefault("AIRFLOW_HOME", str(Path(__file__).parents[3] / ".mlops" / "airflow-unit"))
