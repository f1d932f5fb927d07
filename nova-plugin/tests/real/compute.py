"""nova-compute's libvirt driver with nothing of a cloud around it.

Real: nova.virt.libvirt with its plugin, libvirt, QEMU. Stubs: the conductor (nobody keeps records),
Cinder where there is none, and a key manager that knows the keys it is given. Everything that an
operation of Nova's does to a guest goes through the same methods as in nova-compute.
"""

import contextlib
import itertools
import os
import uuid

from nova import monkey_patch

monkey_patch.patch(backend="threading")

from castellan.common import exception as castellan_exception  # noqa: E402
from castellan.common.objects import passphrase  # noqa: E402
from castellan.common.objects import symmetric_key  # noqa: E402
from castellan.key_manager import key_manager  # noqa: E402
import nova.conf  # noqa: E402
import nova.conf.neutron  # noqa: E402
from nova.network import model as network_model  # noqa: E402
from nova.objects import base as objects_base  # noqa: E402
import nova.privsep  # noqa: E402
from nova.virt.libvirt import guest as libvirt_guest  # noqa: E402
import os_brick  # noqa: E402
import os_brick.privileged  # noqa: E402

from nova import config  # noqa: E402
from nova import context  # noqa: E402
from nova import objects  # noqa: E402
from nova.virt import block_device as driver_block_device  # noqa: E402
from nova.virt import driver as virt_driver  # noqa: E402
from nova.virt import virtapi  # noqa: E402

from . import guest  # noqa: E402

CONF = nova.conf.CONF


class Keys(key_manager.KeyManager):
    """A key manager that holds what tests put into it."""

    secrets = {}
    fails_with = None

    def __init__(self, configuration):
        super().__init__(configuration)

    @classmethod
    def add(cls, secret):
        """The id of a new secret: ``str`` is a passphrase, ``bytes`` a symmetric key."""
        key_id = str(uuid.uuid4())
        if isinstance(secret, str):
            cls.secrets[key_id] = passphrase.Passphrase(secret.encode())
        else:
            cls.secrets[key_id] = symmetric_key.SymmetricKey("AES", len(secret) * 8, secret)
        return key_id

    def get(self, context, managed_object_id, **kwargs):
        if self.fails_with:
            raise self.fails_with
        try:
            return self.secrets[managed_object_id]
        except KeyError:
            raise castellan_exception.ManagedObjectNotFoundError(uuid=managed_object_id) from None

    def _no(self, *args, **kwargs):
        raise NotImplementedError("tests only read keys")

    create_key = create_key_pair = store = copy = delete = list = add_consumer = remove_consumer = (
        _no
    )


class Conductor:
    """Answers as if every record were saved, and none were there but the instances' uuids."""

    def __init__(self):
        self.instances = set()

    def object_action(self, context, objinst, objmethod, args, kwargs):
        assert objmethod == "save", f"{objinst.obj_name()}.{objmethod} would ask the database"
        return {"obj_what_changed": set()}, None

    def object_class_action_versions(
        self, context, objname, objmethod, object_versions, args, kwargs
    ):
        if objname.endswith("List") and objmethod.startswith("get_by_instance"):
            return getattr(objects, objname)(objects=[])
        if objname == "InstanceList" and objmethod == "get_uuids_by_host":
            return list(self.instances)
        if (objname, objmethod) == ("Service", "get_by_compute_host"):
            return objects.Service(
                context, id=1, uuid=str(uuid.uuid4()), host=CONF.host, binary="nova-compute", topic="compute",
                report_count=0, disabled=False, disabled_reason=None, forced_down=False, last_seen_up=None,
                compute_node=objects.ComputeNode(uuid=str(uuid.uuid4()), hypervisor_hostname="node"),
            )  # fmt: skip
        raise AssertionError(f"{objname}.{objmethod} would ask the database")

    def object_backport_versions(self, context, objinst, object_versions):
        return objinst


class Api(virtapi.VirtAPI):
    @contextlib.contextmanager
    def wait_for_instance_event(self, *args, **kwargs):
        yield

    def exit_wait_early(self, events):
        pass

    def update_compute_provider_status(self, context, rp_uuid, enabled):
        pass


class VolumeApi:
    """Cinder, as far as the driver asks it."""

    encryption = {}

    def get_volume_encryption_metadata(self, context, volume_id):
        return self.encryption[volume_id]


def configure(directory, libvirt_uri, agent_socket, keys=f"{__name__}.Keys", more=()):
    """nova.conf; ``more``: group, option, value. Once in a process: the driver's modules keep what they read."""
    # Nova reads its options from a file; this one is empty.
    os.makedirs(directory, exist_ok=True)
    open(os.path.join(directory, "nova.conf"), "w").close()
    config.parse_args(
        ["nova-compute"], [os.path.join(directory, "nova.conf")], configure_db=False, init_rpc=False
    )
    for name, value in (
        ("compute_driver", "sealblk.SealLibvirtDriver"),
        ("state_path", directory),
        ("instances_path", os.path.join(directory, "instances")),
        ("my_ip", "127.0.0.1"),
        ("host", "node"),
    ):
        CONF.set_override(name, value)
    for name, value in (
        ("virt_type", "qemu"),
        ("connection_uri", libvirt_uri),
        ("hw_machine_type", ["x86_64=q35"]),
        # Free places for hot-plug.
        ("num_pcie_ports", 12),
        ("cpu_mode", "none"),
    ):
        CONF.set_override(name, value, group="libvirt")
    CONF.set_override("enabled", False, group="vnc")
    CONF.set_override("lock_path", os.path.join(directory, "locks"), group="oslo_concurrency")
    CONF.set_override("backend", keys, group="key_manager")
    os.makedirs(CONF.instances_path, exist_ok=True)
    nova.conf.neutron.register_dynamic_opts(CONF)
    from sealblk_openstack import conf as plugin_conf

    plugin_conf.register(CONF)
    CONF.set_override("agent_socket", agent_socket, group="sealblk")
    for group, name, value in more:
        CONF.set_override(name, value, group=group)
    # We are root: no helper process.
    nova.privsep.sys_admin_pctxt.set_client_mode(False)
    os_brick.privileged.default.set_client_mode(False)
    os_brick.setup(CONF)
    objects.register_all()
    objects_base.NovaObject.indirection_api = Conductor()


class Compute:
    """The driver, as nova-compute has it; ``restart`` is a new nova-compute."""

    def __init__(self, volume_api=None):
        self.volume_api = volume_api or VolumeApi()
        self.restart()

    def restart(self):
        self.driver = virt_driver.load_compute_driver(Api())
        self.driver._volume_api = self.volume_api
        self.driver.init_host(CONF.host)


class Server:
    """An instance, and what Nova's manager would know of it."""

    _numbers = itertools.count(1)

    def __init__(self, compute, volumes, ctxt=None, extra_specs=None):
        self.compute = compute
        self.context = ctxt or context.get_admin_context()
        self.volumes = list(volumes)
        self.console = None
        flavor = objects.Flavor(
            id=1, name="small", flavorid="1", memory_mb=512, vcpus=1, root_gb=0, ephemeral_gb=0, swap=0,
            rxtx_factor=1.0, vcpu_weight=0, disabled=False, is_public=True, extra_specs=extra_specs or {},
        )  # fmt: skip
        number = next(self._numbers)
        self.instance = objects.Instance(
            id=number, uuid=str(uuid.uuid4()), display_name=f"server{number}", hostname=f"server{number}",
            project_id=self.context.project_id or "p", user_id=self.context.user_id or "u", flavor=flavor,
            old_flavor=None, new_flavor=None, image_ref="", kernel_id="", ramdisk_id="", os_type=None,
            host="node", node="node", vm_mode=None, architecture=None, root_device_name="/dev/vda",
            config_drive="", system_metadata={}, metadata={}, numa_topology=None, vcpu_model=None,
            pci_requests=objects.InstancePCIRequests(requests=[]), pci_devices=objects.PciDeviceList(objects=[]),
            device_metadata=None, ephemeral_gb=0, ephemeral_key_uuid=None, resources=None, trusted_certs=None,
            vm_state="building", power_state=0, task_state=None, cleaned=False, key_data=None,
            availability_zone="nova", memory_mb=512, vcpus=1, root_gb=0, info_cache=objects.InstanceInfoCache(network_info=network_model.NetworkInfo([])), keypairs=objects.KeyPairList(objects=[]),
            migration_context=None, tags=objects.TagList(objects=[]), deleted=False, locked=False, progress=0, user_data=None, launch_index=0,
            reservation_id="r", instance_type_id=1, default_ephemeral_device=None, default_swap_device=None,
            fault=None, compute_id=1, created_at=None, launched_at=None,
            security_groups=objects.SecurityGroupList(objects=[]),
        )  # fmt: skip
        self.instance._context = self.context
        self.instance.obj_reset_changes()
        self.image = objects.ImageMeta.from_dict({"properties": {"hw_disk_bus": "virtio"}})

    @property
    def driver(self):
        return self.compute.driver

    def block_device_info(self):
        mapping = []
        for index, volume in enumerate(self.volumes):
            record = objects.BlockDeviceMapping(
                self.context, id=index + 1, uuid=str(uuid.uuid4()), instance_uuid=self.instance.uuid,
                source_type="volume", destination_type="volume", volume_id=volume.id, boot_index=0 if index == 0 else None,
                device_name=f"/dev/{volume.device}", device_type="disk", disk_bus="virtio", guest_format=None,
                delete_on_termination=False, volume_size=1, volume_type=None, snapshot_id=None, image_id=None, no_device=False,
                attachment_id=None, tag=None, connection_info=None, encrypted=True, encryption_secret_uuid=None,
                encryption_format=None, encryption_options=None,
            )  # fmt: skip
            record.obj_reset_changes()
            entry = driver_block_device.DriverVolumeBlockDevice(record)
            entry["connection_info"] = volume.connection_info
            entry["mount_device"] = f"/dev/{volume.device}"
            mapping.append(entry)
        return {
            "root_device_name": "/dev/vda", "ephemerals": [], "image": [], "swap": None, "block_device_mapping": mapping,
        }  # fmt: skip

    def spawn(self):
        self.driver.spawn(
            self.context,
            self.instance,
            self.image,
            [],
            None,
            {},
            network_info=[],
            block_device_info=self.block_device_info(),
        )
        self.instance.vm_state, self.instance.power_state = "active", 1
        self.instance.obj_reset_changes()
        self.open_console()

    def open_console(self):
        """Waits until the guest is up."""
        self.close_console()
        directory = os.path.join(CONF.instances_path, self.instance.uuid)
        self.console = guest.Console(
            self.xml().find("devices/console[@type='pty']").get("tty"), directory + "/console.log"
        )
        self.console.ready()

    def close_console(self):
        if self.console:
            self.console.close()
            self.console = None

    def xml(self):
        from lxml import etree

        return etree.fromstring(self.guest().get_xml_desc())

    def guest(self) -> libvirt_guest.Guest:
        return self.driver._host.get_guest(self.instance)

    def attach(self, volume, device):
        """Plugs a volume into the running guest, and waits until the guest has it."""
        volume.device = device
        self.driver.attach_volume(
            self.context, volume.connection_info, self.instance, f"/dev/{device}", disk_bus="virtio"
        )
        self.volumes.append(volume)

    def detach(self, volume):
        self.driver.detach_volume(
            self.context, volume.connection_info, self.instance, f"/dev/{volume.device}"
        )
        self.volumes.remove(volume)

    def hard_reboot(self):
        """The console is another one afterwards."""
        self.close_console()
        self.driver.reboot(
            self.context,
            self.instance,
            [],
            "HARD",
            block_device_info=self.block_device_info(),
            accel_info=[],
        )
        self.open_console()

    def destroy(self):
        self.close_console()
        self.driver.destroy(
            self.context,
            self.instance,
            [],
            block_device_info=self.block_device_info(),
            destroy_disks=True,
        )
