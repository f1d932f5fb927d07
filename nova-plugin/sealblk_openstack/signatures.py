"""The inner interfaces of Nova that this plugin stands on, and the check that they are as known.

Contract: nova-compute refuses to start (unless ``[sealblk] allow_untested``) when Nova's release isn't
one of RELEASES or a method that we override or call has other parameters than in a release that we
know. 26 and 34 are tested, the releases between them were read.
"""

import inspect

import nova.conf
from nova.virt.libvirt import config as vconfig
from nova.virt.libvirt import migration as libvirt_migrate
from oslo_log import log as logging

from nova import version
from sealblk_openstack import errors

LOG = logging.getLogger(__name__)

RELEASES = range(26, 35)

_ENCRYPTION = "self context connection_info instance encryption"
_MEMORY = "self inst_topology numatune flavor image_meta"
_STORAGE = "self context instance image_meta disk_info rescue block_device_info flavor os_type"
_SPAWN = (
    "self context instance image_meta injected_files admin_password allocations network_info "
    "block_device_info power_on accel_info"
)

# Method of LibvirtDriver -> each list of parameters that is known.
DRIVER = {
    "__init__": ["self virtapi read_only"],
    "init_host": ["self host"],
    "spawn": [_SPAWN],
    "attach_volume": [
        "self context connection_info instance mountpoint disk_bus device_type encryption"
    ],
    "extend_volume": ["self context connection_info instance requested_size"],
    "swap_volume": [
        "self context old_connection_info new_connection_info instance mountpoint resize_to"
    ],
    "resume_state_on_host_boot": [
        "self context instance network_info block_device_info",  # until 28
        "self context instance network_info share_info block_device_info",
    ],
    "suspend": ["self context instance"],
    "migrate_disk_and_power_off": [
        "self context instance dest flavor network_info block_device_info timeout retry_interval"
    ],
    "check_can_live_migrate_source": [
        "self context instance dest_check_data block_device_info",
    ],
    "check_can_live_migrate_destination": [
        "self context instance src_compute_info dst_compute_info block_migration disk_over_commit"
    ],
    "_connect_volume": [_ENCRYPTION],
    "_disconnect_volume": [_ENCRYPTION + " destroy_secrets force"],
    "_attach_encryptor": ["self context connection_info encryption"],
    "_get_volume_encryption": ["self context connection_info"],
    "_get_volume_driver": ["self connection_info"],
    "_get_volume_config": [
        "self instance connection_info disk_info",  # until 33
        "self connection_info disk_info",
    ],
    "_get_guest_storage_config": [_STORAGE],
    "_get_guest_memory_backing_config": [_MEMORY],
    "_volume_snapshot_create": ["self context instance guest volume_id new_file"],
    "_volume_snapshot_delete": ["self context instance volume_id snapshot_id delete_info"],
    "_extend_volume": ["self connection_info instance requested_size"],
    "list_instance_uuids": ["self"],
}
OTHERS = {
    (vconfig.LibvirtConfigGuestDisk, "format_dom"): ["self"],
    (vconfig.LibvirtConfigGuestDisk, "parse_dom"): ["self xmldoc"],
    (vconfig.LibvirtConfigGuestMemoryBacking, "format_dom"): ["self"],
    (libvirt_migrate, "_update_memory_backing_xml"): ["xml_doc migrate_data"],
}


def check(driver):
    """Raises unless ``driver`` (Nova's own class) is as known."""
    found = list(_unknown(driver))
    if not found:
        return
    if nova.conf.CONF.sealblk.allow_untested:
        LOG.warning("sealblk: unknown inner interfaces of Nova are tolerated: %s", "; ".join(found))
        return
    raise errors.Misconfigured(
        f"this release of sealblk's plugin doesn't know Nova's inner interfaces: {'; '.join(found)}. "
        "Install a matching release, or set [sealblk] allow_untested for a trial"
    )


def _unknown(driver):
    release = version.version_string()
    if release.split(".")[0] not in {str(major) for major in RELEASES}:
        yield f"Nova {release} (known: {RELEASES[0]} to {RELEASES[-1]})"
    wanted = {(driver, name): known for name, known in DRIVER.items()}
    wanted.update(OTHERS)
    for (owner, name), known in wanted.items():
        method = getattr(owner, name, None)
        if method is None:
            yield f"{owner.__name__}.{name} is gone"
            continue
        parameters = " ".join(inspect.signature(method).parameters)
        if parameters not in known:
            yield f"{owner.__name__}.{name}({parameters})"
