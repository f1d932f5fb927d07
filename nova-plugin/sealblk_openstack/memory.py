"""Guest memory that QEMU shares with sealblkd.

Contract: with ``memory_backing = memfd`` every guest of this node is born with shared memory, since a
running one can't get it. Guests that share already (huge pages, file_backed_memory) stay as they are,
and so do guests with encrypted memory (SEV, TDX), which can't share: volumes of ours are refused there.
"""

import functools

from lxml import etree
import nova.conf
from nova.virt.libvirt import config as vconfig
from nova.virt.libvirt import migration as libvirt_migrate

from sealblk_openstack import errors


class SharedMemory(vconfig.LibvirtConfigGuestMemoryBacking):
    """memoryBacking with an anonymous file, which Nova's class can't express."""

    def format_dom(self):
        dom = super().format_dom()
        access = dom.find("access")
        dom.insert(list(dom).index(access), etree.Element("source", type="memfd"))
        return dom


def shared(backing, flavor, image_meta):
    """``backing`` (or None) as Nova made it, with shared memory added where it isn't there."""
    if nova.conf.CONF.sealblk.memory_backing == "none" or _encrypted(flavor, image_meta):
        return backing
    if backing is not None and (backing.hugepages or backing.filesource):
        return backing
    found = SharedMemory()
    if backing is not None:
        found.__dict__.update(vars(backing))
    found.sharedaccess = True
    return found


def _encrypted(flavor, image_meta):
    wanted = [
        flavor.extra_specs.get("hw:mem_encryption"),
        flavor.extra_specs.get("hw:mem_encryption_model"),
        image_meta.properties.get("hw_mem_encryption"),
    ]
    return any(str(w).lower() not in ("none", "false", "0", "no", "off", "") for w in wanted)


def is_shared(xml):
    """Whether libvirt takes a guest of this XML for one with shared memory."""
    dom = etree.fromstring(xml)
    cells = dom.findall("./cpu/numa/cell")
    if cells and all(cell.get("memAccess") == "shared" for cell in cells):
        return True
    return dom.find("./memoryBacking/access[@mode='shared']") is not None


def check_guest(guest, volume):
    """Refuses a volume for a guest that was started without shared memory."""
    if is_shared(guest.get_xml_desc()):
        return
    raise errors.Refused(
        f"Volume {volume}: the server was started without shared memory, which encrypted volumes "
        "need. Hard reboot it once, then attach again."
    )


def patch():
    """Keeps memfd in the XML that goes to a migration's destination; again is harmless.

    Nova takes source and access away unless the destination uses file_backed_memory.
    """
    original = libvirt_migrate._update_memory_backing_xml
    if hasattr(original, "sealblk"):
        return

    @functools.wraps(original)
    def update(xml_doc, migrate_data):
        memfd = xml_doc.find("./memoryBacking/source[@type='memfd']") is not None
        xml_doc = original(xml_doc, migrate_data)
        backing = xml_doc.find("./memoryBacking")
        if memfd and backing is not None and backing.find("source") is None:
            backing.append(etree.Element("source", type="memfd"))
            backing.append(etree.Element("access", mode="shared"))
        return xml_doc

    update.sealblk = True
    libvirt_migrate._update_memory_backing_xml = update
