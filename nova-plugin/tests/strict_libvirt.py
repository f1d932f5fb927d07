"""What libvirt refuses, for Nova's fake libvirt, which accepts anything.

The rules for <disk type='vhostuser'> are those of virDomainDiskVhostUserValidate and of
qemuValidateDomainDeviceDefDisk (libvirt 9.0 and 11.3 agree). The fake also forgets memoryBacking and
the source of such disks: here a domain's XML is given back as it was defined.
"""

import fixtures
from lxml import etree
from nova.tests.fixtures import libvirt as fakelibvirt

DISK_CHILDREN = {"driver", "alias", "source", "target", "boot", "address"}
DISK_ATTRIBUTES = {"type", "device"}
DRIVER_ATTRIBUTES = {"name", "type", "queues"}


def check_disk(disk, shared):
    """Why libvirt refuses a disk (an element), or None."""
    if disk.get("type") != "vhostuser":
        return None
    problems = [f"<{c.tag}>" for c in disk if c.tag not in DISK_CHILDREN]
    problems += [f"{a}=" for a in disk.attrib if a not in DISK_ATTRIBUTES]
    driver, source, target = disk.find("driver"), disk.find("source"), disk.find("target")
    if driver is not None:
        problems += [f"driver {a}=" for a in driver.attrib if a not in DRIVER_ATTRIBUTES]
    if disk.get("device") != "disk":
        problems.append(f"device={disk.get('device')}")
    if target is None or target.get("bus") != "virtio":
        problems.append("bus")
    if source is None or source.get("type") != "unix" or not source.get("path"):
        problems.append("source")
    if not shared:
        problems.append("'vhostuser' requires shared memory")
    return "; ".join(problems) or None


def check_domain(xml):
    dom = etree.fromstring(xml)
    shared = is_shared(dom)
    for disk in dom.findall("./devices/disk"):
        refuse(check_disk(disk, shared))


def is_shared(dom):
    cells = dom.findall("./cpu/numa/cell")
    if cells and all(c.get("memAccess") == "shared" for c in cells):
        return True
    return dom.find("./memoryBacking/access[@mode='shared']") is not None


def refuse(problem):
    if problem:
        raise fakelibvirt.make_libvirtError(
            fakelibvirt.libvirtError,
            f"unsupported configuration: {problem}",
            error_code=fakelibvirt.VIR_ERR_CONFIG_UNSUPPORTED,
            error_domain=fakelibvirt.VIR_FROM_DOMAIN,
        )


class StrictLibvirt(fixtures.Fixture):
    """Patches Nova's fake libvirt. ``seen`` are the XMLs it was given (domains and disks)."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def _setUp(self):
        define = fakelibvirt.Connection.defineXML
        create = fakelibvirt.Connection.createXML
        attach = fakelibvirt.Domain.attachDevice
        describe = fakelibvirt.Domain.XMLDesc

        def keep(domain, xml):
            dom = etree.fromstring(xml)
            domain._seal_memory = [
                e for e in (dom.find("memoryBacking"), dom.find("cpu")) if e is not None
            ]
            domain._seal_disks = {
                d.find("target").get("dev"): d
                for d in dom.findall("./devices/disk[@type='vhostuser']")
            }
            return domain

        def strict_define(connection, xml):
            self.seen.append(xml)
            check_domain(xml)
            return keep(define(connection, xml), xml)

        def strict_create(connection, xml, flags):
            self.seen.append(xml)
            check_domain(xml)
            return keep(create(connection, xml, flags), xml)

        def strict_attach(domain, xml):
            self.seen.append(xml)
            element = etree.fromstring(xml)
            if element.tag == "disk":
                refuse(check_disk(element, is_shared(etree.fromstring(domain.XMLDesc(0)))))
                if element.get("type") == "vhostuser":
                    domain._seal_disks[element.find("target").get("dev")] = element
            return attach(domain, xml)

        def full_description(domain, flags):
            dom = etree.fromstring(describe(domain, flags))
            for element in getattr(domain, "_seal_memory", []):
                for old in dom.findall(element.tag):
                    dom.remove(old)
                dom.append(element)
            for disk in dom.findall("./devices/disk[@type='vhostuser']"):
                known = domain._seal_disks[disk.find("target").get("dev")]
                disk.getparent().replace(disk, etree.fromstring(etree.tostring(known)))
            return etree.tostring(dom).decode()

        for owner, name, new in (
            (fakelibvirt.Connection, "defineXML", strict_define),
            (fakelibvirt.Connection, "createXML", strict_create),
            (fakelibvirt.Domain, "attachDevice", strict_attach),
            (fakelibvirt.Domain, "XMLDesc", full_description),
        ):
            self.useFixture(
                fixtures.MonkeyPatch(f"{owner.__module__}.{owner.__name__}.{name}", new)
            )
