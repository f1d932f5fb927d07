"""The life of one encrypted volume at one server: whether it is ours, served, resized, released.

Contract: Nova's and os-brick's own encryption code never sees a volume of ours (it may format what it
doesn't recognise); a volume that says it is encrypted but whose metadata make no sense is refused, so
that nothing is ever written to it in the clear. There is no second way: what the agent refuses fails.

Whether a volume *would be* ours is decided by Cinder's metadata when it is connected; whether it *is*
ours, by its socket in connection_info or, since Nova replaces connection_info at times, by the agent.
"""

import os

import nova.conf
from os_brick import encryptors
from oslo_log import log as logging

from nova.virt import block_device as driver_block_device
from sealblk_openstack import connection
from sealblk_openstack import errors
from sealblk_openstack import keys
from sealblk_openstack import require

LOG = logging.getLogger(__name__)

KEY_ACCESS = "sealblk:key_access"
# What the agent formats a new volume as. Another cipher in a volume's type is served where a header
# is there already, but not created.
CIPHER = "aes-xts-plain64"
# Characters of the serial number that virtio-blk has room for.
SERIAL_MAX = 20


class Volumes:
    """``node`` is this compute node; ``metadata`` Nova's way to a volume's encryption metadata."""

    def __init__(self, node, metadata):
        self._node = node
        self._metadata = metadata

    def encryption(self, context, connection_info, given=None):
        """Cinder's encryption metadata if the volume is for us, else None."""
        volume = volume_id(connection_info)
        encrypted = bool(connection_info["data"].get("encrypted"))
        found = self._metadata(context, connection_info) if given is None else given
        if not found:
            if encrypted:
                raise errors.Refused(
                    f"Volume {volume}: its type is encrypted, but Cinder tells no encryption metadata"
                )
            return None
        provider = found.get("provider")
        provider = encryptors.LEGACY_PROVIDER_CLASS_TO_FORMAT_MAP.get(provider, provider)
        if provider not in nova.conf.CONF.sealblk.adopt_providers:
            return None
        if not isinstance(found.get("encryption_key_id"), str) or not found["encryption_key_id"]:
            raise errors.Refused(
                f"Volume {volume}: Cinder's encryption metadata name no key (encryption_key_id)"
            )
        return found

    def plan(self, context, connection_info, instance, given=None):
        """As ``encryption``; in addition raises if the volume may not be connected to the server."""
        volume = volume_id(connection_info)
        found = self.encryption(context, connection_info, given)
        require.check_volume(instance, volume, found is not None)
        if found is None:
            connection_info["data"].pop(connection.SOCKET, None)
            return None
        if connection_info.get("multiattach"):
            raise errors.Refused(
                f"Volume {volume}: encrypted volumes can't be attached to several servers (multiattach)"
            )
        self._key_access(instance)
        return found

    def serve(self, context, connection_info, instance, encryption, known=False):
        """Makes a connected volume ready for QEMU and notes its socket.

        ``known``: the agent has it already, with its key.
        """
        volume = volume_id(connection_info)
        key_id = encryption["encryption_key_id"]
        read_only = connection.read_only(connection_info, volume)
        request = {
            "instance": instance.uuid,
            "volume": volume,
            "source": connection.source(connection_info, volume),
            "key_id": key_id,
            "key_access": self._key_access(instance),
            "read_only": read_only,
            "format": "never" if read_only else _format(encryption),
            "limits": connection.limits(connection_info, volume),
            "serial": volume[:SERIAL_MAX],
            "queues": nova.conf.CONF.sealblk.queues,
        }
        answer = self._attach(context, request, known)
        socket = answer.get("socket")
        if not isinstance(socket, str) or not socket.startswith("/"):
            raise errors.AgentError(volume, "its answer names no socket")
        connection_info["data"][connection.SOCKET] = socket
        LOG.info(
            "volume %s: LUKS%s, %s bytes, key %s%s",
            volume,
            answer.get("luks_version"),
            answer.get("capacity_bytes"),
            key_id,
            ", formatted" if answer.get("formatted") else "",
            instance=instance,
        )

    def is_served(self, connection_info, instance):
        """Whether this node serves the volume to the server, by the agent's word."""
        return volume_id(connection_info) in self._node.agent.volumes(instance.uuid)

    def abandon(self, connection_info, instance):
        """After a failed ``serve``: nothing may be left running. Never raises."""
        connection_info["data"].pop(connection.SOCKET, None)
        try:
            self._node.agent.detach(instance.uuid, volume_id(connection_info))
        except errors.SealError as e:
            LOG.error("after a failed attachment: %s (%s)", e, e.kind, instance=instance)

    def release(self, context, connection_info, instance, keep_key, force):
        """Closes the volume before its device goes. False: it is for Nova's own encryptors.

        ``force``: nothing may keep a server from being deleted; failures are logged.
        """
        data = connection_info.get("data") or {}
        ours = bool(data.get(connection.SOCKET))
        if not ours and not data.get("encrypted"):
            return False
        volume = volume_id(connection_info)
        try:
            ours = ours or self.is_served(connection_info, instance)
            if ours and keep_key:
                self._node.agent.park(instance.uuid, volume)
            elif ours:
                self._node.agent.detach(instance.uuid, volume)
        except errors.SealError as e:
            if not force:
                raise
            LOG.error("volume %s stays open: %s", volume, e, instance=instance)
        return ours or (
            not _is_mapped(data.get("device_path"))
            and bool(self.encryption(context, connection_info))
        )

    def resize(self, connection_info, instance, requested_size):
        """Tells the guest that the volume has grown to ``requested_size`` bytes."""
        volume = volume_id(connection_info)
        answer = self._node.agent.resize(instance.uuid, volume)
        if answer.get("waits_for_rotation"):
            LOG.warning("volume %s grows when its rotation is done", volume, instance=instance)
        elif (answer.get("volume_bytes") or 0) < requested_size:
            raise errors.VolumeTrouble(
                volume, f"it has {answer.get('volume_bytes')} bytes, not {requested_size}"
            )

    def _key_access(self, instance):
        access = instance.flavor.extra_specs.get(KEY_ACCESS) or nova.conf.CONF.sealblk.key_access
        if access not in self._node.key_access:
            raise errors.Misconfigured(
                f"Keys by '{str(access)[:20]}' aren't set up on this compute node "
                "(flavor's sealblk:key_access; operators can require a trait)"
            )
        return access

    def _attach(self, context, request, known):
        """The agent's answer, with the key by the first way that has it."""
        access, volume = request["key_access"], request["volume"]
        if known or access == "host":
            try:
                return self._node.agent.attach(dict(request, key={"from": "kept"}))
            except (errors.KeyMissing, errors.KeyWrong, errors.NotFound) as e:
                LOG.info("volume %s: no key is kept (%s)", volume, e.kind)
        if access != "user":
            named = nova.conf.CONF.sealblk.key_source.format(key_id=request["key_id"])
            return self._node.agent.attach(dict(request, key={"from": "source", "source": named}))
        try:
            with keys.descriptor(context, volume, request["key_id"]) as fd:
                return self._node.agent.attach(dict(request, key={"from": "descriptor"}), key=fd)
        except (errors.KeyDenied, errors.KeyUnreachable):
            if context.user_id:  # a request of somebody, not of nova-compute itself
                raise
            raise errors.Refused(
                f"Volume {volume}: its key needs the token of the server's owner (key access 'user'): "
                "the owner must hard reboot the server"
            ) from None


def volume_id(connection_info):
    return driver_block_device.get_volume_id(connection_info)


def _is_mapped(path):
    """Whether os-brick has a dm-crypt device on it: a server that was started before this plugin."""
    return bool(path) and os.path.exists(f"/dev/mapper/crypt-{os.path.basename(path)}")


def _format(encryption):
    if not nova.conf.CONF.sealblk.format_new_volumes:
        return "never"
    return "if-blank" if encryption.get("cipher") in (None, CIPHER) else "never"
