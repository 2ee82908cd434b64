"""Deploy interface `machine`: deploying hands the node an image and a config drive, and powers it on.

All power goes through the node's power interface (Redfish), all media through the machine's slot
(`driver_info["machine_dir"]`). Nothing is kept in memory, so a conductor that dies at any point can be started again:
each method first brings the machine to a known state.
"""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

from ironic.common import context, exception, image_service, states
from ironic.conductor import task_manager
from ironic.drivers import base
from oslo_log import log
from oslo_utils import uuidutils

from ironic_machine import configdrive, session_keys
from ironic_machine.slot import Slot

LOG = log.getLogger(__name__)
_IMAGE_PROPERTY = "machine_image"


class MachineDeploy(base.DeployInterface):
    """Config drive in, power on; power off, config drive out; cleaning erases the data disk."""

    def __init__(self) -> None:
        super().__init__()
        session_keys.derive_once()

    def get_properties(self) -> dict[str, str]:
        """The `driver_info` keys of this interface."""
        return {"machine_dir": "Absolute path of the machine's slot on the conductor. Required."}

    def validate(self, task: task_manager.TaskManager) -> None:
        """Refuse a node whose slot is not there, and one that was not told what to boot."""
        slot_of(task)
        image_of(task)

    def prepare(self, task: task_manager.TaskManager) -> None:
        """Start from a machine that is off and has no media."""
        self._switch_off(task)

    @base.deploy_step(priority=100)
    @task_manager.require_exclusive_lock
    def deploy(self, task: task_manager.TaskManager) -> str | None:
        """Insert the image and the config drive (if the request brought one), and power on. Returns at once."""
        slot_of(task).insert_image(image_of(task))
        self._insert_config_drive(task)
        task.driver.power.set_power_state(task, states.POWER_ON)
        _note_power(task, states.POWER_ON)
        return None

    @task_manager.require_exclusive_lock
    def tear_down(self, task: task_manager.TaskManager) -> str:
        """Power the machine off, which ends every process on it, and take its media out."""
        self._switch_off(task)
        return states.DELETED

    def clean_up(self, task: task_manager.TaskManager) -> None:
        """After a failed deployment (and before each tear-down): nothing may run, no key may lie about."""
        self._switch_off(task)

    def take_over(self, task: task_manager.TaskManager) -> None:
        """Another conductor became responsible: a running machine needs nothing from it."""

    def prepare_cleaning(self, task: task_manager.TaskManager) -> None:
        """Cleaning works on the disk of a machine that is off; no ramdisk is booted."""
        self._switch_off(task)

    def tear_down_cleaning(self, task: task_manager.TaskManager) -> None:
        """Leave the machine off."""
        self._switch_off(task)

    @base.clean_step(priority=10, requires_ramdisk=False)
    @task_manager.require_exclusive_lock
    def erase_scratch(self, task: task_manager.TaskManager) -> None:
        """Erase the data disk and leave evidence in `node.extra["cleaned"]`."""
        node = task.node
        if task.driver.power.get_power_state(task) != states.POWER_OFF:
            raise exception.NodeCleaningFailure(node=node.uuid, reason="the machine is not off; its disk is in use")
        try:
            erased = slot_of(task).erase_scratch()
        except OSError as error:
            raise exception.NodeCleaningFailure(node=node.uuid, reason=str(error)) from error
        node.extra = node.extra | {
            "cleaned": {
                "finished_at": datetime.now(UTC).isoformat(),
                "steps": ["erase_scratch"],
                "erased_entries": erased.entries,
                "erased_bytes": erased.bytes,
            }
        }
        node.save()
        LOG.info("Erased %s entries, %s bytes from the data disk of node %s", erased.entries, erased.bytes, node.uuid)

    def _insert_config_drive(self, task: task_manager.TaskManager) -> None:
        node, slot = task.node, slot_of(task)
        content = node.instance_info.get("configdrive")
        if not content:
            slot.eject_config_drive()
            return
        try:
            slot.insert_config_drive(configdrive.image_of(content, node_uuid=node.uuid, node_name=node.name or ""))
        except (OSError, ValueError) as error:
            raise exception.InstanceDeployFailure(f"Config drive of node {node.uuid}: {error}") from error

    def _switch_off(self, task: task_manager.TaskManager) -> None:
        if task.driver.power.get_power_state(task) != states.POWER_OFF:
            task.driver.power.set_power_state(task, states.POWER_OFF)
        _note_power(task, states.POWER_OFF)
        slot_of(task).eject_config_drive()
        slot_of(task).eject_image()


def image_of(task: task_manager.TaskManager) -> Path:
    """The folder that the node is told to boot: named by ``image_source``, or by the image of Glance that this names.

    Raises:
        MissingParameterValue, InvalidParameterValue: `instance_info["image_source"]` is no ``file://`` folder here, and
            no image of Glance whose property ``machine_image`` is one.
    """
    source = task.node.instance_info.get("image_source")
    if not source:
        raise exception.MissingParameterValue(f"instance_info of node {task.node.uuid} lacks image_source")
    if uuidutils.is_uuid_like(source):
        source = _folder_of_image(source)
    path = Path(source.removeprefix("file://"))
    if not source.startswith("file://") or not path.is_dir():
        raise exception.InvalidParameterValue(f"image_source {source!r} is not a folder here: file:///...")
    return path


def _folder_of_image(image_id: str) -> str:
    """What an image of Glance says it stands for. Read with Ironic's own login: the caller's may expire meanwhile."""
    try:
        image = image_service.GlanceImageService(context=context.get_admin_context()).show(image_id)
    except exception.IronicException as error:
        raise exception.InvalidParameterValue(f"image {image_id}: {error}") from error
    folder = (image.get("properties") or {}).get(_IMAGE_PROPERTY)
    if not folder:
        raise exception.InvalidParameterValue(f"image {image_id} has no property {_IMAGE_PROPERTY}")
    return str(folder)


def slot_of(task: task_manager.TaskManager) -> Slot:
    """The slot of the task's node.

    Raises:
        MissingParameterValue, InvalidParameterValue: when `driver_info["machine_dir"]` is not a directory here.
    """
    path = task.node.driver_info.get("machine_dir")
    if not path:
        raise exception.MissingParameterValue(f"driver_info of node {task.node.uuid} lacks machine_dir")
    if not Path(path).is_absolute() or not Path(path).is_dir():
        raise exception.InvalidParameterValue(f"machine_dir {path!r} of node {task.node.uuid} is not a directory here")
    return Slot(Path(path))


def _note_power(task: task_manager.TaskManager, state: str) -> None:
    """Record the power state that the BMC confirmed: allocations skip nodes whose recorded state is unknown."""
    task.node.power_state = state
    task.node.target_power_state = states.NOSTATE
    task.node.save()
