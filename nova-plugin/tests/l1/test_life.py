"""The life of servers with encrypted volumes: what a cloud user does with them."""

import os

import cloud
import keystore
from nova.tests.functional.api import client
from oslo_serialization import jsonutils
from oslo_utils import uuidutils


class LifeTest(cloud.Cloud):
    def test_boot_from_an_encrypted_volume_attach_another_reboot_detach_delete(self):
        self.host()
        root, data = self.encrypted(), self.encrypted(metadata={"provider": "luks"})
        plain = self.plain()

        server = self.boot(root)
        self.assertTrue(self.is_luks(root))
        self.assertEqual("serving", self.served(server, root))
        self.attach(server, data)
        self.attach(server, plain)
        types = {dev: disk.get("type") for dev, disk in self.disks(server).items()}
        self.assertEqual({"vda": "vhostuser", "vdb": "vhostuser", "vdc": "block"}, types)

        # Soft: the daemon sees QEMU go and come. Hard: devices are closed, keys stay where they are.
        self._reboot_server(server)
        self.assertEqual([], self.requests("park"))
        with self.key_is(self.key_of(root), "denied"):
            self._reboot_server(server, hard=True)
        self.assertEqual({root, data}, {r["volume"] for r, _ in self.requests("park")})
        self.assertEqual({"vda", "vdb", "vdc"}, set(self.disks(server)))
        self.assertEqual("serving", self.served(server, data))

        self.detach(server, data)
        self.assertEqual({"vda", "vdc"}, set(self.disks(server)))
        self.assertIsNone(self.served(server, data))
        self.assertEqual("serving", self.served(server, root))

        self.no_secret_outside(server, root)
        self._delete_server(server)
        self.assertEqual({}, self.agents["host1"].volumes())

    def no_secret_outside(self, server, volume):
        """Neither libvirt nor Nova's database has a key, and the database just one word of ours."""
        with open(os.path.join(keystore.DIRECTORY, self.key_of(volume))) as f:
            secret = f.read()
        info = self.connection_info(server, volume)
        for text in [info, *self.strict.seen]:
            self.assertNotIn(secret, text)
        self.assertNotIn(self.key_of(volume), "".join(self.strict.seen))
        ours = set(jsonutils.loads(info)["data"]) - set(self.connections[volume]["data"])
        self.assertEqual({"sealblk_socket"}, ours - {"volume_id", "attachment_id"})
        secrets = self.computes["host1"].driver._host.get_connection()._secrets
        self.assertEqual({}, dict(secrets))

    def test_what_a_guest_gets_is_what_the_volume_type_says(self):
        self.host()
        server = self.boot(self.encrypted())
        limited = self.encrypted(
            qos_specs={"total_iops_sec": "500", "read_bytes_sec_max": "1048576"},
            physical_block_size="4096",
            discard=True,
        )
        self.attach(server, limited)
        self.detach(server, limited)
        self.connections[limited]["data"]["access_mode"] = "ro"
        self.attach(server, limited)
        request, answer = self.requests("attach")[-1]
        self.assertEqual({"total_iops_sec": 500, "read_bytes_sec_max": 1048576}, request["limits"])
        self.assertIs(True, request["read_only"])
        self.assertEqual(limited[:20], request["serial"])
        disk = self.disks(server)["vdb"]
        self.assertEqual(answer["socket"], disk.find("source").get("path"))
        self.assertEqual(
            {"driver", "source", "target"}, {c.tag for c in disk} - {"alias", "address"}
        )

    def test_extend_while_the_server_runs(self):
        self.host()
        root = self.encrypted()
        server = self.boot(root)
        self.grow(root, 2)
        self.extended(server, root)
        _, answer = self.requests("resize")[-1]
        self.assertEqual(2 * cloud.GIB, answer["volume_bytes"])

        # Cinder says 3 GiB, the device still has 2: this must not pass for done.
        self.sizes[root] = 3
        self.assertRaises(client.OpenStackApiException, self.extended, server, root)
        self.assertEqual("ACTIVE", self.api.get_server(server["id"])["status"])

    def extended(self, server, volume):
        event = {"name": "volume-extended", "server_uuid": server["id"], "tag": volume}
        self.api.create_server_external_events([event])

    def test_stop_start_shelve_unshelve_rescue_unrescue(self):
        self.host()
        root, data = self.encrypted(), self.encrypted()
        server = self.boot(root)
        self.attach(server, data)
        self._stop_server(server)
        self._start_server(server)
        self.assertEqual("serving", self.served(server, data))

        self.api.post_server_action(server["id"], {"rescue": {"rescue_image_ref": self.image()}})
        self._wait_for_state_change(server, "RESCUE")
        self.assertEqual("serving", self.served(server, root))
        self.api.post_server_action(server["id"], {"unrescue": None})
        self._wait_for_state_change(server, "ACTIVE")
        types = {d.get("type") for d in self.disks(server).values()}
        self.assertEqual({"vhostuser"}, types)

        self._shelve_server(server)
        self.assertEqual({}, self.agents["host1"].volumes())
        self._unshelve_server(server)
        self.assertEqual("serving", self.served(server, root))
        self.assertEqual("serving", self.served(server, data))
        self.assertFalse(any(a["formatted"] for r, a in self.requests("attach")[2:]))

    def image(self):
        """One that Nova takes for the rescue of a server that boots from a volume."""
        properties = {"hw_rescue_device": "disk", "hw_rescue_bus": "virtio"}
        image = self.glance.show(None, "155d900f-4e14-4e4c-a73d-069cbf4541e6")
        image = dict(image, id=uuidutils.generate_uuid(), properties=properties)
        return self.glance.create(None, image)["id"]
