"""What libvirt is told: disks and memory."""

import types
import unittest

from lxml import etree
import nova.conf
from nova.virt.libvirt import config as vconfig
from nova.virt.libvirt import migration as libvirt_migrate
from oslo_config import fixture
import strict_libvirt

from sealblk_openstack import conf
from sealblk_openstack import diskxml
from sealblk_openstack import errors
from sealblk_openstack import memory

VOLUME = "5b111111-2222-4333-8444-555555555555"
SOCKET = f"/run/sealblk/{VOLUME}.sock"


class XmlTest(unittest.TestCase):
    def setUp(self):
        conf.register(nova.conf.CONF)
        diskxml.patch()
        memory.patch()
        self.conf = fixture.Config(nova.conf.CONF)
        self.conf.setUp()
        self.addCleanup(self.conf.cleanUp)


class DiskTest(XmlTest):
    def disk(self):
        """As Nova's volume driver makes it, with all that libvirt forbids on ours."""
        disk = vconfig.LibvirtConfigGuestDisk()
        disk.source_type, disk.source_path = "block", "/dev/sdb"
        disk.driver_name, disk.driver_format = "qemu", "raw"
        disk.driver_cache, disk.driver_io, disk.driver_discard = "none", "native", "unmap"
        disk.target_dev, disk.target_bus, disk.serial = "vdb", "virtio", VOLUME
        disk.disk_total_iops_sec = "500"
        disk.logical_block_size = disk.physical_block_size = "4096"
        disk.readonly = disk.shareable = True
        disk.auth_username, disk.auth_secret_type, disk.auth_secret_uuid = "u", "ceph", VOLUME
        disk.boot_order = "1"
        if hasattr(disk, "alias"):
            disk.alias = f"ua-{VOLUME}"
        return disk

    def test_nothing_is_left_that_libvirt_refuses(self):
        disk = diskxml.to_vhostuser(self.disk(), SOCKET, VOLUME)
        # Nova sets the cache mode once more after us.
        disk.driver_cache, disk.driver_io = "none", "native"
        dom = etree.fromstring(disk.to_xml())
        self.assertIsNone(strict_libvirt.check_disk(dom, shared=True))
        alias = f'<alias name="ua-{VOLUME}"/>' if hasattr(disk, "alias") else ""
        expected = (
            '<disk type="vhostuser" device="disk"><driver name="qemu" type="raw" queues="1"/>'
            f'{alias}<source type="unix" path="{SOCKET}"><reconnect enabled="yes" timeout="1"/>'
            '</source><target dev="vdb" bus="virtio"/><boot order="1"/></disk>'
        )
        self.assertEqual(_canonical(expected), _canonical(etree.tostring(dom)))

    def test_a_description_of_libvirt_goes_round(self):
        disk = diskxml.to_vhostuser(self.disk(), SOCKET, VOLUME)
        parsed = vconfig.LibvirtConfigGuestDisk()
        parsed.parse_str(disk.to_xml())
        self.assertEqual(_canonical(disk.to_xml()), _canonical(parsed.to_xml()))
        self.assertIsNone(parsed.source_path)

    def test_other_disks_are_as_before(self):
        xml = self.disk().to_xml()
        for kept in ("serial", "iotune", "blockio", "readonly", "shareable", "auth"):
            self.assertIn(f"<{kept}", xml)
        self.assertIn('cache="none"', xml)
        self.assertIn('dev="/dev/sdb"', xml)

    def test_another_bus_is_refused(self):
        for bus in ("scsi", "sata", "ide", "usb", None):
            disk = self.disk()
            disk.target_bus = bus
            with self.assertRaisesRegex(errors.Refused, "need the virtio bus"):
                diskxml.to_vhostuser(disk, SOCKET, VOLUME)

    def test_the_patch_is_made_once(self):
        before = vconfig.LibvirtConfigGuestDisk.format_dom
        diskxml.patch()
        self.assertIs(before, vconfig.LibvirtConfigGuestDisk.format_dom)


class MemoryTest(XmlTest):
    def shared(self, backing=None, extra=None, image=None):
        flavor = types.SimpleNamespace(extra_specs=extra or {})
        image = types.SimpleNamespace(properties=image or {})
        return memory.shared(backing, flavor, image)

    def test_a_guest_is_born_with_shared_memory(self):
        xml = self.shared().to_xml()
        expected = '<memoryBacking><source type="memfd"/><access mode="shared"/></memoryBacking>'
        self.assertEqual(_canonical(expected), _canonical(xml))
        self.assertTrue(memory.is_shared(f"<domain>{xml}</domain>"))

    def test_what_nova_made_is_kept(self):
        backing = vconfig.LibvirtConfigGuestMemoryBacking()
        backing.locked, backing.sharedpages = True, False
        tags = [c.tag for c in etree.fromstring(self.shared(backing).to_xml())]
        self.assertEqual(["nosharepages", "locked", "source", "access"], tags)

    def test_guests_that_share_already_or_can_not_are_left_alone(self):
        huge = vconfig.LibvirtConfigGuestMemoryBacking()
        huge.hugepages = [vconfig.LibvirtConfigGuestMemoryBackingPage()]
        files = vconfig.LibvirtConfigGuestMemoryBacking()
        files.filesource = files.sharedaccess = True
        for backing in (huge, files):
            self.assertIs(backing, self.shared(backing))
        self.assertIsNone(self.shared(extra={"hw:mem_encryption": "true"}))
        self.assertIsNone(self.shared(image={"hw_mem_encryption": True}))
        self.assertIsNotNone(self.shared(extra={"hw:mem_encryption": "false"}))
        self.conf.config(memory_backing="none", group="sealblk")
        self.assertIsNone(self.shared())

    def test_what_libvirt_takes_for_shared(self):
        for xml, expected in (
            ("<memoryBacking/>", False),
            ("<memoryBacking><source type='memfd'/></memoryBacking>", False),
            ("<memoryBacking><hugepages/></memoryBacking>", False),
            ("<memoryBacking><access mode='shared'/></memoryBacking>", True),
            ("<cpu><numa><cell memAccess='shared'/><cell/></numa></cpu>", False),
            ("<cpu><numa><cell memAccess='shared'/></numa></cpu>", True),
        ):
            self.assertIs(expected, memory.is_shared(f"<domain>{xml}</domain>"), xml)

    def test_a_migration_keeps_memfd(self):
        xml = f"<domain>{self.shared().to_xml()}</domain>"
        found = libvirt_migrate._update_memory_backing_xml(etree.fromstring(xml), {})
        self.assertTrue(memory.is_shared(etree.tostring(found)))
        plain = "<domain><memoryBacking><locked/></memoryBacking></domain>"
        found = libvirt_migrate._update_memory_backing_xml(etree.fromstring(plain), {})
        self.assertFalse(memory.is_shared(etree.tostring(found)))


def _canonical(xml):
    parser = etree.XMLParser(remove_blank_text=True)
    return etree.tostring(etree.fromstring(xml, parser), method="c14n")
