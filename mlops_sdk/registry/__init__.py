"""Register models in MLflow with their lineage."""
