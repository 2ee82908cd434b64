"""Settings of a deployment that is not there."""

from __future__ import annotations

from mlops_sdk.config import KeystoneSettings, MlflowSettings, S3Settings, Settings, StaticHost


def fake_settings() -> Settings:
    """Settings that no socket stands behind."""
    return Settings.model_validate(
        {
            "deployment_id": "6f1c3d1e-0000-4000-8000-000000000001",
            "broker_key": "a broker key that is long enough for us",
            "owner": "tester",
            "s3": S3Settings.model_validate(
                {"endpoint": "http://s3.invalid", "access_key_id": "access", "secret_access_key": "secret"}
            ),
            "keystone": KeystoneSettings.model_validate({"auth_url": "http://keystone.invalid/v3"}),
            "mlflow": MlflowSettings(tracking_uri="http://mlflow.invalid"),
            "lease": {
                "renew_for_s": 20,
                "poll_s": 0.5,
                "reaper_period_s": 3,
                "clock_skew_s": 1,
                "deploy_timeout_s": 60,
                "clean_timeout_s": 120,
            },
            "ironic_images": {"*": {"source": "http://images.invalid/node.qcow2", "checksum": "5" * 64}},
            "node_seconds_price": {"gpu.h200.8x": 0.01},
        }
    )


def with_hosts(settings: Settings, number: int) -> Settings:
    """The same deployment with a fixed pool of hosts."""
    hosts = tuple(
        StaticHost(
            name=f"pool-{index:02d}",
            address=f"10.0.1.{index}",
            host_public_key=f"ssh-ed25519 HOST{index}",
            resource_class="gpu.static",
            gpus=8,
        )
        for index in range(1, number + 1)
    )
    lease = settings.lease.model_copy(update={"ssh_timeout_s": 10.0})
    return settings.model_copy(update={"static_hosts": hosts, "lease": lease}) if hosts else settings
