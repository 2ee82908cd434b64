"""SSH keys that follow from a run: host key of each leased machine, the run's client key, the key between its nodes.

All are Ed25519 keys whose seed is an HMAC of the broker key (`names.derive_secret`): a process that attaches to the run
rebuilds them, so no private key has to be stored outside the machine it belongs to.
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass, field

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from mlops_sdk.names import derive_secret


@dataclass(frozen=True, slots=True, kw_only=True)
class SshKey:
    """An Ed25519 key pair: `private` in OpenSSH PEM form (kept out of the repr), `public` as one line."""

    private: str = field(repr=False)
    public: str


def host_key(broker_key: str, run_id: uuid.UUID, generation: int, index: int) -> SshKey:
    """The SSH host key of machine `index` of one generation of a run's lease."""
    return _derive(broker_key, run_id, generation, f"ssh-host-{index}")


def client_key(broker_key: str, run_id: uuid.UUID, generation: int) -> SshKey:
    """The key by which the run's controller logs in to its machines."""
    return _derive(broker_key, run_id, generation, "ssh-client")


def peer_key(broker_key: str, run_id: uuid.UUID, generation: int) -> SshKey:
    """The key by which the machines of one run log in to each other (mpirun)."""
    return _derive(broker_key, run_id, generation, "ssh-peer")


def _derive(broker_key: str, run_id: uuid.UUID, generation: int, purpose: str) -> SshKey:
    key = Ed25519PrivateKey.from_private_bytes(derive_secret(broker_key, run_id, generation, purpose))
    private = key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption()).decode()
    public = key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()
    return SshKey(private=private, public=public)
