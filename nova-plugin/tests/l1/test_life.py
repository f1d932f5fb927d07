"""The life of servers with encrypted volumes: what a cloud user does, and what happens to hosts."""

import cloud


class LifeTest(cloud.Cloud):
    def test_boot_from_an_encrypted_volume_attach_another_reboot_detach_delete(self):
        self.host()
        root, data = self.encrypted(), self.encrypted(metadata={"provider": "luks"})
        server = self.boot(root)

        disk = self.disks(server)["vda"]
        self.assertEqual("vhostuser", disk.get("type"))
        self.assertEqual("serving", self.served(server, root))
        self.assertTrue(self.is_luks(root))

        self._attach_volume(server, data)
        self.assertEqual("vhostuser", self.disks(server)["vdb"].get("type"))
        self.assertEqual("serving", self.served(server, data))

        self._reboot_server(server)
        self._reboot_server(server, hard=True)
        self.assertEqual({"vda", "vdb"}, set(self.disks(server)))
        self.assertEqual("serving", self.served(server, data))

        self.api.delete_server_volume(server["id"], data)
        self._wait_for_volume_detach(server["id"], data)
        self.assertEqual({"vda"}, set(self.disks(server)))
        self.assertIsNone(self.served(server, data))
        self.assertEqual("serving", self.served(server, root))

        self._delete_server(server)
        self.assertEqual({}, self.agents["host1"].volumes())
