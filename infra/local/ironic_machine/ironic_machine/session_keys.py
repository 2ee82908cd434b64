"""Make Ironic's Redfish client remember the keys of its session cache.

For every single request to a BMC the client derives the name of the cached session from the password anew, by PBKDF2
with 600,000 rounds: 0.4 s of processor time a call, some ten calls for each deployment and each cleaning. On a computer
with few cores that is most of what a deployment costs. The result depends on address and password only, so it is kept.
"""

from __future__ import annotations

import functools
import hashlib
import types

from ironic.drivers.modules.redfish import utils

_KEPT = 256  # BMCs per conductor whose keys are kept


def derive_once() -> None:
    """Keep derived keys in the memory of this process, where the sessions and passwords are anyway. Idempotent."""
    if utils.hashlib is hashlib:
        kept = functools.lru_cache(maxsize=_KEPT)(hashlib.pbkdf2_hmac)
        utils.hashlib = types.SimpleNamespace(pbkdf2_hmac=kept)
