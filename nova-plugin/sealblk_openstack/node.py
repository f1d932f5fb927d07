"""This compute node: its agent, what it can do, and what is left of the time before a restart.

Contract: ``start`` returns only with an agent that speaks our protocol. Running guests need nothing
from nova-compute, so adoption means to look: the agent's list is the truth. What belongs to no server
of this node, in Nova's database and in libvirt, is forgotten.
"""

import time

import nova.conf
from oslo_log import log as logging

from nova import context as nova_context
from nova import objects
from sealblk_openstack import agent
from sealblk_openstack import errors

LOG = logging.getLogger(__name__)

# libvirt's first release with vhostuser disks.
LIBVIRT_MIN = (7, 1, 0)
TRAIT = "CUSTOM_SEALBLK"
KEY_TRAITS = {a: f"CUSTOM_SEALBLK_KEY_{a.upper()}" for a in ("user", "deployment", "host")}
# Seconds between attempts to reach the agent at start-up.
_RETRY = 1


class Node:
    def __init__(self):
        conf = nova.conf.CONF.sealblk
        self.agent = agent.Agent(conf.agent_socket, conf.agent_timeout, conf.ready_timeout)
        self.key_access = frozenset()

    def start(self, host, has_min_version, list_instance_uuids):
        """At nova-compute's start; ``has_min_version`` and the list are libvirt's."""
        if not has_min_version(lv_ver=LIBVIRT_MIN):
            raise errors.Misconfigured(
                f"sealblk needs libvirt {'.'.join(map(str, LIBVIRT_MIN))} or newer"
            )
        hello = self._hello()
        known = hello.get("key_access")
        self.key_access = frozenset(known if isinstance(known, list) else []) & set(KEY_TRAITS)
        LOG.info("sealblk-agent %s: key access %s", hello.get("version"), sorted(self.key_access))
        self._adopt(host, list_instance_uuids)

    def traits(self):
        traits = {trait: access in self.key_access for access, trait in KEY_TRAITS.items()}
        traits[TRAIT] = bool(self.key_access)
        return traits

    def _hello(self):
        end = time.monotonic() + nova.conf.CONF.sealblk.ready_timeout
        while True:
            try:
                return self.agent.hello()
            except errors.AgentUnreachable as e:
                if time.monotonic() + _RETRY > end:
                    raise errors.Misconfigured(
                        f"sealblk-agent doesn't answer ({e.detail}): is its unit running, and is "
                        "[sealblk] agent_socket right?"
                    ) from e
            time.sleep(_RETRY)

    def _adopt(self, host, list_instance_uuids):
        served = self.agent.instances()
        if not served:
            return
        context = nova_context.get_admin_context()
        ours = set(objects.InstanceList.get_uuids_by_host(context, host))
        ours.update(list_instance_uuids())
        for entry in served:
            uuid, state = entry.get("instance"), entry.get("state")
            volumes = [v.get("volume") for v in entry.get("volumes") or [] if isinstance(v, dict)]
            if uuid in ours:
                LOG.info("sealblk: instance %s is %s with volumes %s", uuid, state, volumes)
                continue
            LOG.warning(
                "sealblk: instance %s isn't on this host any more; its volumes %s (%s) are "
                "disconnected and their keys forgotten",
                uuid,
                volumes,
                state,
            )
            try:
                self.agent.forget(uuid)
            except errors.SealError as e:
                LOG.error("sealblk: instance %s can't be forgotten: %s", uuid, e)
