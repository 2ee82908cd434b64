"""Deploy interface `machine-faults`: `machine` with failures on demand. For tests only; never enable it in production.

A node that uses it fails as its `extra["fault"]` says, and works again when that is removed:

    {"deploy": "fail"}      the deploy step raises: the node becomes `deploy failed`
    {"deploy": "hang"}      deployment never ends: `wait call-back` until it is aborted or times out
    {"deploy": "no-boot"}   the node becomes `active`, but its operating system never comes up: no SSH daemon
    {"clean": "fail"}       the clean step raises: the node becomes `clean failed`, in maintenance
    {"tear_down": "fail"}   tear-down raises: the node becomes `error`
"""

from __future__ import annotations

from ironic.common import exception, states
from ironic.conductor import task_manager
from ironic.drivers import base

from ironic_machine.deploy import MachineDeploy


class FaultyMachineDeploy(MachineDeploy):
    """`MachineDeploy` that fails where `node.extra["fault"]` says so."""

    @base.deploy_step(priority=100)
    @task_manager.require_exclusive_lock
    def deploy(self, task: task_manager.TaskManager) -> str | None:
        """Deploy, unless told to fail, to hang, or to boot nothing."""
        fault = _fault(task, "deploy")
        if fault == "fail":
            raise exception.InstanceDeployFailure("injected fault: the deployment fails")
        if fault == "hang":
            return states.DEPLOYWAIT
        if fault == "no-boot":
            task.node.set_instance_info("configdrive", None)
        return super().deploy(task)

    @task_manager.require_exclusive_lock
    def tear_down(self, task: task_manager.TaskManager) -> str:
        """Tear down, unless told to fail."""
        if _fault(task, "tear_down") == "fail":
            raise exception.InstanceDeployFailure("injected fault: the tear-down fails")
        return super().tear_down(task)

    @base.clean_step(priority=10, requires_ramdisk=False)
    @task_manager.require_exclusive_lock
    def erase_scratch(self, task: task_manager.TaskManager) -> None:
        """Clean, unless told to fail."""
        if _fault(task, "clean") == "fail":
            raise exception.NodeCleaningFailure(node=task.node.uuid, reason="injected fault: the cleaning fails")
        super().erase_scratch(task)


def _fault(task: task_manager.TaskManager, where: str) -> str | None:
    return (task.node.extra.get("fault") or {}).get(where)
