"""The library behind the platform: importable without Airflow and without torch."""
