"""Provision by provider, each in the words of its cloud; one operator, one trigger and one release behind all of them.

machines = NovaProvisionOperator(task_id="provision", nodes=2, flavor="gpu.a100.mig3").as_setup()
machines >> train >> ReleaseOperator(task_id="release").as_teardown(setups=machines)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from mlops_operators.capacity import ProvisionOperator

IRONIC: Final = "ironic"
NOVA: Final = "nova"
STATIC: Final = "static"


class IronicProvisionOperator(ProvisionOperator):
    """Lease bare-metal machines from Ironic.

    Args:
        nodes: How many machines. Templated.
        resource_class: Of each node. Templated.
        traits: That each must have. Templated.
        kwargs: Of `ProvisionOperator`.
    """

    def __init__(self, *, nodes: int | str, resource_class: str, traits: Sequence[str] = (), **kwargs: Any) -> None:
        super().__init__(nodes=nodes, resource_class=resource_class, traits=traits, provider=IRONIC, **kwargs)


class NovaProvisionOperator(ProvisionOperator):
    """Lease servers from Nova.

    Args:
        nodes: How many servers. Templated.
        flavor: Of each; its extra specs are read before anything is asked for. Templated.
        traits: That its flavor must require. Templated.
        kwargs: Of `ProvisionOperator`.
    """

    def __init__(self, *, nodes: int | str, flavor: str, traits: Sequence[str] = (), **kwargs: Any) -> None:
        super().__init__(nodes=nodes, resource_class=flavor, traits=traits, provider=NOVA, **kwargs)


class StaticProvisionOperator(ProvisionOperator):
    """Lease hosts of the deployment's fixed pool.

    Args:
        nodes: How many hosts. Templated.
        host_class: Of each, as the pool's settings say. Templated.
        traits: That each must have. Templated.
        kwargs: Of `ProvisionOperator`.
    """

    def __init__(self, *, nodes: int | str, host_class: str, traits: Sequence[str] = (), **kwargs: Any) -> None:
        super().__init__(nodes=nodes, resource_class=host_class, traits=traits, provider=STATIC, **kwargs)
