"""Nova's libvirt driver with volumes served by sealblk.

Contract: each method does one thing before or after Nova's own, for volumes of ours alone; for all
others Nova's behaviour is untouched. ``encryption={}`` tells Nova's code that there is nothing for its
own encryptors to do. Live migration, suspend, swap and assisted snapshots of such volumes are refused
before anything has begun.
"""

import sys

from nova.compute import utils as compute_utils
import nova.conf
from nova.virt.libvirt import blockinfo
from nova.virt.libvirt import driver as libvirt_driver
from oslo_log import log as logging
from oslo_serialization import jsonutils
from oslo_utils import excutils

from nova import exception
from nova import objects
from nova.virt import driver as virt_driver
from sealblk_openstack import conf
from sealblk_openstack import connection
from sealblk_openstack import diskxml
from sealblk_openstack import errors
from sealblk_openstack import memory
from sealblk_openstack import node
from sealblk_openstack import require
from sealblk_openstack import signatures
from sealblk_openstack import volumes

CONF = nova.conf.CONF
LOG = logging.getLogger(__name__)
conf.register(CONF)


class SealLibvirtDriver(libvirt_driver.LibvirtDriver):
    def __init__(self, virtapi, read_only=False):
        signatures.check(libvirt_driver.LibvirtDriver)
        super().__init__(virtapi, read_only)
        diskxml.patch()
        memory.patch()
        self._node = node.Node()
        self._volumes = volumes.Volumes(self._node, self._get_volume_encryption)

    def init_host(self, host):
        super().init_host(host)
        self._node.start(host, self._host.has_min_version, self.list_instance_uuids)

    @property
    def static_traits(self):
        return dict(super().static_traits, **self._node.traits())

    # Volumes come and go

    def _connect_volume(self, context, connection_info, instance, encryption=None):
        ours = self._volumes.plan(context, connection_info, instance, encryption)
        if ours is None:
            return super()._connect_volume(
                context, connection_info, instance, encryption=encryption
            )
        # Rescue connects what is connected already (a failure here must not end that), and a hard
        # reboot what is parked.
        known = self._volumes.is_served(connection_info, instance)
        super()._connect_volume(context, connection_info, instance, encryption={})
        try:
            self._volumes.serve(context, connection_info, instance, ours, known)
        except Exception:
            with excutils.save_and_reraise_exception():
                if not known:
                    self._volumes.abandon(connection_info, instance)
                    driver = self._get_volume_driver(connection_info)
                    driver.disconnect_volume(connection_info, instance, force=True)

    def _disconnect_volume(
        self, context, connection_info, instance, encryption=None, destroy_secrets=True, force=False
    ):
        if self._volumes.release(context, connection_info, instance, not destroy_secrets, force):
            encryption = {}
        super()._disconnect_volume(
            context,
            connection_info,
            instance,
            encryption=encryption,
            destroy_secrets=destroy_secrets,
            force=force,
        )

    def _attach_encryptor(self, context, connection_info, encryption):
        """Nova's own encryption: the last place to keep a volume of ours from being formatted."""
        if encryption is None:
            encryption = self._get_volume_encryption(context, connection_info)
        if encryption and self._volumes.encryption(context, connection_info, encryption):
            volume = volumes.volume_id(connection_info)
            raise errors.AgentError(volume, "Nova's own encryption was called for it")
        super()._attach_encryptor(context, connection_info, encryption)

    def attach_volume(
        self,
        context,
        connection_info,
        instance,
        mountpoint,
        disk_bus=None,
        device_type=None,
        encryption=None,
    ):
        if self._volumes.plan(context, connection_info, instance, encryption):
            volume = volumes.volume_id(connection_info)
            bdm = {
                "device_name": mountpoint.rpartition("/")[2],
                "disk_bus": disk_bus,
                "device_type": device_type,
            }
            virt_type, image = CONF.libvirt.virt_type, instance.image_meta
            info = blockinfo.get_info_from_bdm(instance, virt_type, image, bdm)
            diskxml.check_bus(info["bus"], volume)
            memory.check_guest(self._host.get_guest(instance), volume)
        super().attach_volume(
            context,
            connection_info,
            instance,
            mountpoint,
            disk_bus=disk_bus,
            device_type=device_type,
            encryption=encryption,
        )

    def extend_volume(self, context, connection_info, instance, requested_size):
        if not self._is_ours(connection_info, instance):
            return super().extend_volume(context, connection_info, instance, requested_size)
        try:
            self._extend_volume(connection_info, instance, requested_size)
        except NotImplementedError:
            LOG.debug("nothing to rescan on the host before extending", instance=instance)
        self._volumes.resize(connection_info, instance, requested_size)

    # What the guest is made of

    def _get_volume_config(self, *args):
        # (instance, connection_info, disk_info) until Nova 33, without instance since.
        disk = super()._get_volume_config(*args)
        connection_info = args[-2]
        socket = connection_info["data"].get(connection.SOCKET)
        if socket:
            diskxml.to_vhostuser(disk, socket, volumes.volume_id(connection_info))
        return disk

    def _get_guest_memory_backing_config(self, inst_topology, numatune, flavor, image_meta):
        backing = super()._get_guest_memory_backing_config(
            inst_topology, numatune, flavor, image_meta
        )
        return memory.shared(backing, flavor, image_meta)

    # Requirements

    def spawn(
        self,
        context,
        instance,
        image_meta,
        injected_files,
        admin_password,
        allocations,
        network_info=None,
        block_device_info=None,
        **kwargs,
    ):
        virt_type = CONF.libvirt.virt_type
        info = blockinfo.get_disk_info(virt_type, instance, image_meta, block_device_info)
        self._check(context, instance, info["mapping"], block_device_info)
        super().spawn(
            context,
            instance,
            image_meta,
            injected_files,
            admin_password,
            allocations,
            network_info=network_info,
            block_device_info=block_device_info,
            **kwargs,
        )

    def _get_guest_storage_config(
        self,
        context,
        instance,
        image_meta,
        disk_info,
        rescue,
        block_device_info,
        flavor,
        os_type,
    ):
        """Each way to a guest goes through here: spawn, reboot, unshelve, migration, rescue."""
        self._check(context, instance, disk_info["mapping"], block_device_info)
        return super()._get_guest_storage_config(
            context, instance, image_meta, disk_info, rescue, block_device_info, flavor, os_type
        )

    def migrate_disk_and_power_off(
        self, context, instance, dest, flavor, network_info, block_device_info=None, *args, **kwargs
    ):
        """Before a resize: the new flavor may require what the server doesn't have."""
        virt_type, image = CONF.libvirt.virt_type, instance.image_meta
        info = blockinfo.get_disk_info(virt_type, instance, image, block_device_info)
        try:
            self._check(context, instance, info["mapping"], block_device_info, flavor)
        except errors.SealError as e:
            raise exception.InstanceFaultRollback(inner_exception=e) from e
        return super().migrate_disk_and_power_off(
            context, instance, dest, flavor, network_info, block_device_info, *args, **kwargs
        )

    def _check(self, context, instance, mapping, block_device_info, flavor=None):
        """The veto, and buses, for all of a server's disks before any is connected."""
        required = require.mode(instance, flavor)
        require.check_local(instance, mapping, flavor)
        for bdm in virt_driver.block_device_info_get_mapping(block_device_info):
            connection_info = bdm["connection_info"]
            disk = mapping.get(bdm["mount_device"]) or {}
            wrong_bus = disk.get("bus", "virtio") != "virtio"
            encrypted = bool(connection_info["data"].get("encrypted"))
            if not required and not (wrong_bus and encrypted):
                continue
            volume = volumes.volume_id(connection_info)
            ours = self._volumes.encryption(context, connection_info) is not None
            require.check_volume(instance, volume, ours, flavor)
            if ours and wrong_bus:
                diskxml.check_bus(disk["bus"], volume)

    # What isn't possible yet

    def check_can_live_migrate_destination(self, context, instance, *args, **kwargs):
        for bdm in objects.BlockDeviceMappingList.get_by_instance_uuid(context, instance.uuid):
            if not bdm.is_volume or not bdm.connection_info:
                continue
            connection_info = jsonutils.loads(bdm.connection_info)
            connection_info.setdefault("serial", bdm.volume_id)
            if self._volumes.encryption(context, connection_info) is not None:
                self._refuse_migration(volumes.volume_id(connection_info))
        return super().check_can_live_migrate_destination(context, instance, *args, **kwargs)

    def check_can_live_migrate_source(
        self, context, instance, dest_check_data, block_device_info=None
    ):
        for bdm in virt_driver.block_device_info_get_mapping(block_device_info):
            if self._is_ours(bdm["connection_info"], instance):
                self._refuse_migration(volumes.volume_id(bdm["connection_info"]))
        return super().check_can_live_migrate_source(
            context, instance, dest_check_data, block_device_info
        )

    def resume_state_on_host_boot(self, context, instance, *args, **kwargs):
        """Nova logs a failure here and sets the server to ERROR; its owner wants the reason."""
        try:
            super().resume_state_on_host_boot(context, instance, *args, **kwargs)
        except errors.SealError as e:
            compute_utils.add_instance_fault_from_exc(context, instance, e, sys.exc_info())
            raise

    def suspend(self, context, instance):
        if self._served(instance):
            raise errors.NotPossible(
                "A server with encrypted volumes can't be suspended yet: stop or shelve it instead"
            )
        super().suspend(context, instance)

    def swap_volume(
        self, context, old_connection_info, new_connection_info, instance, mountpoint, resize_to
    ):
        new = self._volumes.encryption(context, new_connection_info) is not None
        if new or self._is_ours(old_connection_info, instance):
            raise errors.NotPossible(
                "An encrypted volume can't be swapped, retyped or migrated while it is attached: "
                "detach it first"
            )
        super().swap_volume(
            context, old_connection_info, new_connection_info, instance, mountpoint, resize_to
        )

    def _volume_snapshot_create(self, context, instance, guest, volume_id, new_file):
        self._refuse_assisted(instance, volume_id)
        super()._volume_snapshot_create(context, instance, guest, volume_id, new_file)

    def _volume_snapshot_delete(self, context, instance, volume_id, *args, **kwargs):
        self._refuse_assisted(instance, volume_id)
        super()._volume_snapshot_delete(context, instance, volume_id, *args, **kwargs)

    def _refuse_assisted(self, instance, volume):
        if volume in self._served(instance):
            raise errors.NotPossible(
                f"Volume {volume}: snapshots through Nova (NFS and the like) aren't possible for an "
                "attached encrypted volume: detach it first"
            )

    def _refuse_migration(self, volume):
        raise exception.MigrationPreCheckError(
            reason=f"encrypted volume {volume} can't be live-migrated yet; migrate the server cold"
        )

    def _is_ours(self, connection_info, instance):
        data = connection_info.get("data") or {}
        if data.get(connection.SOCKET):
            return True
        return bool(data.get("encrypted")) and self._volumes.is_served(connection_info, instance)

    def _served(self, instance):
        return self._node.agent.volumes(instance.uuid)
