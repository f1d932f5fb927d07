"""What servers with encrypted volumes can't do: refused before anything has begun, with the reason."""

from unittest import mock

import cloud
from nova.tests.functional.api import client


class RefusedTest(cloud.Cloud):
    def test_operations_that_are_not_possible_leave_the_server_running(self):
        self.host("host1")
        self.host("host2")
        root, data, other = self.encrypted(), self.encrypted(), self.encrypted()
        server = self.boot(root, host="host1")
        self.attach(server, data)
        plain = self.boot(self.plain(), host="host1")
        before = self.asked[:]

        migrate = {"os-migrateLive": {"host": "host2", "block_migration": "auto"}}
        told = self.fails(server, "live-migration", lambda: self.action(server, migrate))
        self.assertIn("can't be live-migrated", told)
        self._wait_for_migration_status(server, ["error"])

        self.refused(server, "suspend", lambda: self.action(server, {"suspend": None}))
        self.cinders[data] = {"migration_status": "migrating"}
        swap = {"volumeAttachment": {"volumeId": other}}
        url = f"/servers/{server['id']}/os-volume_attachments/{data}"
        self.refused(server, "swap_volume", lambda: self.api.api_put(url, swap))
        snapshot = {
            "snapshot": {
                "volume_id": data,
                "create_info": {"snapshot_id": "s", "type": "qcow2", "new_file": "f"},
            }
        }
        told = "nova.volume.cinder.API.update_snapshot_status"
        with mock.patch(told, autospec=False) as told:
            url = "/os-assisted-volume-snapshots"
            self.assertRaises(client.OpenStackApiException, self.api.api_post, url, snapshot)
        self.assertEqual("error", told.call_args.args[2])

        server = self._wait_for_state_change(server, "ACTIVE")
        self.assertEqual("host1", server["OS-EXT-SRV-ATTR:host"])
        self.assertIsNone(server["OS-EXT-STS:task_state"])
        changes = [r["op"] for r, _ in self.asked[len(before) :] if r["op"] != "list"]
        self.assertEqual([], changes)
        self.assertEqual({}, self.agents["host2"].volumes())
        self.assertTrue(self.is_blank(other))

        # Nova's own volumes are as free as ever.
        self._suspend_server(plain)

    def refused(self, server, action, call):
        self.assertIn("ncrypted volume", self.fails(server, action, call))

    def action(self, server, body):
        self.api.post_server_action(server["id"], body)

    def test_volumes_and_buses_that_are_not_possible(self):
        self.host()
        server = self.boot(self.encrypted())
        shared = self.encrypted()
        self.cinders[shared] = {"multiattach": True}
        self.assertIn("multiattach", self.attach_fails(server, shared))
        qcow2 = self.encrypted(format="qcow2")
        self.assertIn("qcow2", self.attach_fails(server, qcow2))
        for volume in (shared, qcow2):
            self.assertIsNone(self.served(server, volume))
            self.assertTrue(self.is_blank(volume))

        sata = self.encrypted()
        self.images[sata] = {"hw_disk_bus": "scsi"}
        failed = self.boot(sata, state="ERROR")
        self.assertIn("need the virtio bus, not scsi", self.fault(failed))
        self.assertTrue(self.is_blank(sata))

        on_ide = self.plain()
        self.images[on_ide] = {"hw_disk_bus": "scsi"}
        server = self.boot(on_ide)
        extra = self.encrypted()
        self.assertIn("need the virtio bus, not scsi", self.attach_fails(server, extra))
        self.assertTrue(self.is_blank(extra))

    def test_a_guest_without_shared_memory_is_told_to_reboot(self):
        self.flags(memory_backing="none", group="sealblk")
        self.host()
        server = self.boot(self.plain())
        self.flags(memory_backing="memfd", group="sealblk")
        data = self.encrypted()
        self.assertIn("Hard reboot it once", self.attach_fails(server, data))
        self.assertIsNone(self.served(server, data))
        self.assertTrue(self.is_blank(data))
        self._reboot_server(server, hard=True)
        self.attach(server, data)
        self.assertEqual("serving", self.served(server, data))
