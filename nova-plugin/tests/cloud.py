"""A cloud for tests: Nova's real API, conductor, scheduler, placement and compute over a fake libvirt,
with sealblk's driver, an agent for each host, and Cinder volumes that are files.

Words of the tests: a server boots, a volume is ``encrypted`` (ours) or ``plain``.
"""

import contextlib
import os
import shutil
import tempfile
from unittest import mock

import agents
import keystore
from lxml import etree
import nova.conf
from nova.tests import fixtures as nova_fixtures
from nova.tests.fixtures import libvirt as fakelibvirt
from nova.tests.functional.api import client
from nova.tests.functional.libvirt import base
from nova.volume import cinder
from oslo_utils import uuidutils
import strict_libvirt

from sealblk_openstack import agent
from sealblk_openstack import conf

CONF = nova.conf.CONF
GIB = 2**30
# Nova 26's fake is older than libvirt's first release with vhostuser disks.
LIBVIRT = max(7_001_000, fakelibvirt.FAKE_LIBVIRT_VERSION)


class Cloud(base.ServersTestBase):
    microversion = "latest"
    ADMIN_API = True
    CAST_AS_CALL = True

    def setUp(self):
        conf.register(CONF)
        self.directory = tempfile.mkdtemp(prefix="sealblk-")
        self.addCleanup(shutil.rmtree, self.directory, ignore_errors=True)
        keystore.DIRECTORY = os.path.join(self.directory, "keys")
        os.mkdir(keystore.DIRECTORY)
        # By volume: GiB, encryption metadata, connection_info, image properties, Cinder's fields.
        self.sizes, self.metadata, self.connections, self.images, self.cinders = {}, {}, {}, {}, {}
        self.agents = {}
        self.flags(backend="keystore.Keystore", group="key_manager")
        # The fake libvirt sends no event when a device is gone; Nova looks then by itself.
        self.flags(device_detach_timeout=1, group="libvirt")
        self.flags(
            ready_timeout=20,
            key_source=f"file:{keystore.DIRECTORY}/{{key_id}}",
            group="sealblk",
        )
        self.asked = []
        self._record_requests()
        super().setUp()
        self.strict = self.useFixture(strict_libvirt.StrictLibvirt())
        self.flavor = self._create_flavor(disk=0, ephemeral=0)
        self._patch_cinder()

    def useFixture(self, fixture):
        """Nova 26 has no CAST_AS_CALL: there its fixture is always used."""
        if isinstance(fixture, nova_fixtures.CastAsCallFixture) and not self.CAST_AS_CALL:
            return fixture
        return super().useFixture(fixture)

    def _setup_compute_service(self):
        self.flags(compute_driver="sealblk.SealLibvirtDriver")

    def _patch_cinder(self):
        # Nova's fixture replaced it by a mock (34) or by a method (26).
        nova_get = cinder.API.get

        def get(context, volume_id, microversion=None):
            args = () if hasattr(nova_get, "side_effect") else (None,)
            volume = nova_get(*args, context, volume_id, microversion)
            if volume_id in self.sizes:
                volume.update(size=self.sizes[volume_id], bootable=True)
                volume["volume_image_metadata"] = {
                    "image_id": "155d900f-4e14-4e4c-a73d-069cbf4541e6",
                    **self.images.get(volume_id, {}),
                }
                volume.update(self.cinders.get(volume_id, {}))
            return volume

        def metadata(context, volume_id):
            found = self.metadata[volume_id]
            if isinstance(found, Exception):
                raise found
            return dict(found)

        api = "nova.volume.cinder.API"
        for patch in (
            mock.patch(f"{api}.get", side_effect=get, autospec=False),
            mock.patch(
                f"{api}.get_volume_encryption_metadata", side_effect=metadata, autospec=False
            ),
            mock.patch.dict(self.cinder.VOLUME_CONNECTION_INFO, self.connections),
        ):
            patch.start()
            self.addCleanup(patch.stop)

    def _record_requests(self):
        """Notes what the plugin asks the agent and what it answers: ``asked``."""
        ask = agent.Agent._ask

        def recorded(client, request, **kwargs):
            answer = ask(client, request, **kwargs)
            self.asked.append((request, answer))
            return answer

        patch = mock.patch.object(agent.Agent, "_ask", recorded)
        patch.start()
        self.addCleanup(patch.stop)

    def requests(self, op):
        """The requests of one kind that succeeded, with their answers."""
        return [(r, a) for r, a in self.asked if r["op"] == op]

    # Hosts

    def host(self, name="host1", **kwargs):
        """Starts an agent and a compute service."""
        directory = os.path.join(self.directory, name)
        os.mkdir(directory)
        self.agents[name] = agents.choose(directory)
        self.addCleanup(self.agents[name].end)
        self.flags(agent_socket=self.agents[name].socket, group="sealblk")
        self.start_compute(name, libvirt_version=LIBVIRT, **kwargs)

    def restart(self, name="host1", **kwargs):
        """Starts nova-compute anew; guests go on unless keep_hypervisor_state is false."""
        self.flags(agent_socket=self.agents[name].socket, group="sealblk")
        return self.restart_compute_service(name, **kwargs)

    def reboot_host(self, name="host1"):
        """Nothing runs any more: no guest, no daemon; then everything starts."""
        self.agents[name].crash_host()
        self.agents[name].start()
        self.restart(name, keep_hypervisor_state=False, libvirt_version=LIBVIRT)

    # Volumes

    def key(self):
        """A new secret in the key manager; its id."""
        key_id = uuidutils.generate_uuid()
        self.set_key(key_id)
        return key_id

    def set_key(self, key_id):
        path = os.path.join(keystore.DIRECTORY, key_id)
        with open(os.open(path, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o600), "w") as f:
            f.write(os.urandom(32).hex())

    @contextlib.contextmanager
    def key_is(self, key_id, state):
        """The secret is for a while ``denied``, ``down`` or ``deleted``."""
        path = os.path.join(keystore.DIRECTORY, key_id)
        other = f"{path}.{state}"
        if state == "deleted":
            os.rename(path, other)
        else:
            open(other, "w").close()
        yield
        if state == "deleted":
            os.rename(other, path)
        else:
            os.unlink(other)

    def plain(self, **data):
        """A volume of a plain type: an empty file of 1 GiB."""
        volume = uuidutils.generate_uuid()
        path = os.path.join(self.directory, volume)
        with open(path, "wb") as f:
            f.truncate(GIB)
        self.sizes[volume] = 1
        connection_info = {"driver_volume_type": "local", "data": {"device_path": path, **data}}
        self.connections[volume] = self.cinder.VOLUME_CONNECTION_INFO[volume] = connection_info
        return volume

    def encrypted(self, metadata=None, **data):
        """A volume of an encrypted type, which nobody has formatted yet."""
        volume = self.plain(encrypted=True, **data)
        self.metadata[volume] = {
            "provider": "luks2",
            "cipher": "aes-xts-plain64",
            "key_size": 512,
            "control_location": "front-end",
            "encryption_key_id": self.key(),
            **(metadata or {}),
        }
        return volume

    def path(self, volume):
        return self.connections[volume]["data"]["device_path"]

    def key_of(self, volume):
        return self.metadata[volume]["encryption_key_id"]

    def grow(self, volume, gib):
        self.sizes[volume] = gib
        os.truncate(self.path(volume), gib * GIB)

    def is_luks(self, volume):
        with open(self.path(volume), "rb") as f:
            return f.read(6) == b"LUKS\xba\xbe"

    def is_blank(self, volume):
        with open(self.path(volume), "rb") as f:
            return not any(f.read(2**20))

    # Servers

    def request(self, volume=None, flavor=None, bdm=None, **kwargs):
        """A request for a server that boots from ``volume``, or from an image."""
        server = self._build_server(
            flavor_id=flavor or self.flavor, networks="none", image_uuid=None if not volume else ""
        )
        if volume:
            server["block_device_mapping_v2"] = [
                {
                    "source_type": "volume",
                    "destination_type": "volume",
                    "uuid": volume,
                    "boot_index": 0,
                    **(bdm or {}),
                }
            ]
        server.update(kwargs)
        return server

    def boot(self, volume=None, state="ACTIVE", **kwargs):
        server = self.api.post_server({"server": self.request(volume, **kwargs)})
        server = self._wait_for_state_change(server, state)
        # Nova's fixtures make no disks, and with them no directory.
        os.makedirs(os.path.join(CONF.instances_path, server["id"]), exist_ok=True)
        return server

    def fault(self, server):
        return self.api.get_server(server["id"])["fault"]["message"]

    def attach(self, server, volume):
        """Nova's fixture makes calls of casts: it is done when the API answers."""
        attachment = {"volumeAttachment": {"volumeId": volume}}
        self.api.post_server_volume(server["id"], attachment)

    def detach(self, server, volume):
        self.api.delete_server_volume(server["id"], volume)

    def attach_fails(self, server, volume, **kwargs):
        """An attachment that must fail; what the user reads about it."""
        attachment = {"volumeAttachment": {"volumeId": volume, **kwargs}}
        return self.fails(
            server, "attach_volume", lambda: self.api.post_server_volume(server["id"], attachment)
        )

    def fails(self, server, action, call):
        """A call that must fail in the compute service; what the user reads about it.

        Nova's fixture makes calls of casts, so that such an error comes back to the API, too.
        """
        self.assertRaises(client.OpenStackApiException, call)
        return self.last_event(server, action)

    def last_event(self, server, action):
        """The text of the failed event of an action, as the user sees it."""
        actions = self.api.get_instance_actions(server["id"])
        request = next(a["request_id"] for a in actions if a["action"] == action)
        path = f"/servers/{server['id']}/os-instance-actions/{request}"
        events = self.api.api_get(path).body["instanceAction"]["events"]
        event = next(e for e in events if e["result"] == "Error")
        return event["details"]

    def disks(self, server, host="host1"):
        """The guest's disks in libvirt: target -> element."""
        return {
            d.find("target").get("dev"): d
            for d in self.domain(server, host).findall("./devices/disk")
        }

    def domain(self, server, host="host1"):
        connection = self.computes[host].driver._host.get_connection()
        return etree.fromstring(connection.lookupByUUIDString(server["id"]).XMLDesc(0))

    def served(self, server, volume, host="host1"):
        """The agent's state of a volume at a server, or None."""
        return self.agents[host].volumes().get((server["id"], volume))

    def connection_info(self, server, volume):
        """What Nova has in its database."""
        from nova import context
        from nova import objects

        bdm = objects.BlockDeviceMapping.get_by_volume_and_instance(
            context.get_admin_context(), volume, server["id"]
        )
        return bdm.connection_info
