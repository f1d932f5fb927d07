"""``<disk type='vhostuser'>``, which Nova's configuration objects don't know.

Contract: only disks of that source type are touched. libvirt forbids on them what the daemon provides
instead (virDomainDiskVhostUserValidate): serial, cache, io, discard, block sizes, limits, read-only,
encryption, authentication. The class is patched in place: its __init__ names itself by its global
name, so a subclass under that name would recurse.

Two attributes are added to a disk: ``vhostuser_socket`` and ``vhostuser_queues``. source_path stays
None on purpose: Nova takes that for a path of the host's file system.
"""

import functools

from lxml import etree
import nova.conf
from nova.virt.libvirt import config as vconfig

from sealblk_openstack import errors

SOURCE_TYPE = "vhostuser"

# What libvirt refuses on such a disk. Nova sets some of them after us (_set_cache_mode), therefore
# they are left out again when the XML is written.
_NONE = (
    "driver_cache driver_discard driver_io serial snapshot source_path source_protocol source_name",
    "auth_username auth_secret_type auth_secret_uuid volume_encryption ephemeral_encryption",
    "logical_block_size physical_block_size backing_store mirror device_addr",
)
_IOTUNE = "disk_"


def to_vhostuser(disk, socket, volume):
    """Makes Nova's configuration of a disk one of ours, served at ``socket``."""
    check_bus(disk.target_bus, volume)
    _strip(disk)
    disk.source_type = SOURCE_TYPE
    disk.driver_name, disk.driver_format = "qemu", "raw"
    disk.vhostuser_socket = socket
    disk.vhostuser_queues = nova.conf.CONF.sealblk.queues
    return disk


def check_bus(bus, volume):
    if bus != "virtio":
        raise errors.Refused(
            f"Volume {volume}: encrypted volumes need the virtio bus, not {bus} "
            "(image property hw_disk_bus, or disk_bus of the request)"
        )


def patch():
    """Teaches Nova's class to write and to read such disks; again is harmless."""
    cls = vconfig.LibvirtConfigGuestDisk
    if not hasattr(cls.format_dom, "sealblk"):
        cls.format_dom, cls.parse_dom = _format(cls.format_dom), _parse(cls.parse_dom)
        cls.format_dom.sealblk = True


def _strip(disk):
    for name in " ".join(_NONE).split():
        if getattr(disk, name, None) is not None:
            setattr(disk, name, None)
    for name in list(vars(disk)):
        if name.startswith(_IOTUNE):
            setattr(disk, name, None)
    disk.readonly = disk.shareable = False


def _format(original):
    @functools.wraps(original)
    def format_dom(self):
        if self.source_type != SOURCE_TYPE:
            return original(self)
        socket = getattr(self, "vhostuser_socket", None)
        address, self.device_addr = self.device_addr, None
        _strip(self)
        # An address that libvirt gave belongs to the disk: it tells which one to detach.
        self.device_addr = address
        dom = original(self)
        if socket:
            source = etree.Element("source", type="unix", path=socket)
            timeout = str(nova.conf.CONF.sealblk.reconnect)
            source.append(etree.Element("reconnect", enabled="yes", timeout=timeout))
            dom.insert(list(dom).index(dom.find("target")), source)
        queues = getattr(self, "vhostuser_queues", None)
        if queues:
            dom.find("driver").set("queues", str(queues))
        return dom

    return format_dom


def _parse(original):
    @functools.wraps(original)
    def parse_dom(self, xmldoc):
        original(self, xmldoc)
        if self.source_type != SOURCE_TYPE:
            return
        source, driver = xmldoc.find("source"), xmldoc.find("driver")
        self.vhostuser_socket = source.get("path") if source is not None else None
        self.vhostuser_queues = driver.get("queues") if driver is not None else None

    return parse_dom
