"""Keys, metadata, volumes and agents that aren't as they should be: each a clear error for the user,
nothing left running, nothing written to the volume.
"""

import cloud


class BadInputTest(cloud.Cloud):
    def test_hot_attach_of_volumes_that_can_not_be_opened(self):
        self.flags(agent_timeout=2, ready_timeout=5, group="sealblk")
        self.host()
        server = self.boot(self.encrypted())
        agent = self.agents["host1"]

        # A volume whose key is another one now.
        changed = self.encrypted()
        self.attach(server, changed)
        self.detach(server, changed)
        right = self.read(changed)
        self.set_key(self.key_of(changed))
        self.refuses(server, changed, "doesn't open it", blank=False)
        self.assertEqual(right, self.read(changed))

        blank = self.encrypted()
        for state, text in (
            ("deleted", "no such key"),
            ("denied", "refuses access"),
            ("down", "doesn't answer"),
        ):
            with self.key_is(self.key_of(blank), state):
                self.refuses(server, blank, text)

        # Data that nobody encrypted: never formatted.
        data = self.encrypted()
        with open(self.path(data), "r+b") as f:
            f.seek(1024)
            f.write(b"somebody's file system")
        before = self.read(data)
        self.refuses(server, data, "nothing was written to it", blank=False)
        self.assertEqual(before, self.read(data))

        gone = self.encrypted()
        self.connections[gone]["data"]["device_path"] += ".gone"
        self.assertIn("storage can't be opened", self.attach_fails(server, gone))

        for wrong, text in (
            ({}, "no encryption metadata"),
            ({"provider": "luks2"}, "name no key"),
            ({"provider": "luks2", "encryption_key_id": 7}, "name no key"),
        ):
            self.metadata[blank] = wrong
            self.refuses(server, blank, text)

        limits = self.encrypted(qos_specs={"total_iops_sec": "many"})
        self.refuses(server, limits, "is no number")

        late = self.encrypted()
        with agent.hangs():
            self.assertIn("doesn't answer", self.attach_fails(server, late))
        self.assertIsNone(self.served(server, late))
        self.attach(server, late)

        agent.stop()
        self.assertIn("doesn't answer", self.attach_fails(server, blank_again := self.encrypted()))
        self.assertTrue(self.is_blank(blank_again))

    def refuses(self, server, volume, text, blank=True):
        seen = len(self.strict.seen)
        told = self.attach_fails(server, volume)
        self.assertIn(text, told)
        self.assertIn(volume, told)
        self.assertNotIn("/", told)
        self.assertIsNone(self.served(server, volume))
        self.assertEqual(seen, len(self.strict.seen))
        if blank:
            self.assertTrue(self.is_blank(volume))
        self.assertEqual({}, self.cinder.volume_to_attachment[volume])

    def read(self, volume):
        with open(self.path(volume), "rb") as f:
            return f.read(2**20)

    def test_boot_from_a_volume_that_can_not_be_opened(self):
        self.host()
        root = self.encrypted()
        with self.key_is(self.key_of(root), "deleted"):
            failed = self.boot(root, state="ERROR")
        self.assertIn("no such key; was the secret deleted?", self.fault(failed))
        self.assertEqual([], self.strict.seen)
        self.assertEqual({}, self.agents["host1"].volumes())
        self.assertTrue(self.is_blank(root))
        self._delete_server(failed)

        # Formatting is the operator's choice.
        self.flags(format_new_volumes=False, group="sealblk")
        failed = self.boot(root, state="ERROR")
        self.assertIn("no LUKS header", self.fault(failed))
        self.assertTrue(self.is_blank(root))
        self._delete_server(failed)

    def test_a_server_can_be_deleted_when_its_agent_is_gone(self):
        self.host()
        server = self.boot(self.encrypted())
        self.agents["host1"].stop()
        self._delete_server(server)
