"""Servers with encrypted volumes between hosts, and hosts and services that go down and come back."""

import cloud
import fixtures
import keystore
from nova.api.openstack import api_version_request
from oslo_utils import uuidutils

from sealblk_openstack import errors


class MovesTest(cloud.Cloud):
    def setUp(self):
        super().setUp()
        # A migration looks by ssh whether the hosts share their directories: they do here.
        self.useFixture(
            fixtures.MockPatch("nova.virt.libvirt.driver.LibvirtDriver._is_path_shared_with")
        )
        self.host("host1")
        self.host("host2")

    def test_cold_migration_resize_and_revert(self):
        root = self.encrypted()
        server = self.boot(root, host="host1")
        self._migrate_server(server)
        self.assertIsNone(self.served(server, root, "host1"))
        self.assertEqual("serving", self.served(server, root, "host2"))
        self._confirm_resize(server)

        bigger = self._create_flavor(disk=0, ephemeral=0, memory_mb=4096)
        self.api.post_server_action(server["id"], {"resize": {"flavorRef": bigger}})
        self._wait_for_state_change(server, "VERIFY_RESIZE")
        self.assertEqual("serving", self.served(server, root, "host1"))
        self._revert_resize(server)
        self.assertIsNone(self.served(server, root, "host1"))
        self.assertEqual("serving", self.served(server, root, "host2"))
        self.assertEqual("vhostuser", self.disks(server, "host2")["vda"].get("type"))

    def test_evacuation_from_a_dead_host(self):
        root = self.encrypted()
        server = self.boot(root, host="host1")
        self.agents["host1"].crash_host()
        self.computes["host1"].stop()
        service = self.admin_api.get_services(binary="nova-compute", host="host1")[0]
        self.admin_api.put_service(service["id"], {"forced_down": "true"})
        # Since microversion 2.95 an evacuated server is left stopped.
        stopped = api_version_request.max_api_version() >= api_version_request.APIVersionRequest(
            "2.95"
        )
        state = "SHUTOFF" if stopped else "ACTIVE"
        server = self._evacuate_server(server, expected_host="host2", expected_state=state)
        if stopped:
            self._start_server(server)
        self.assertEqual("serving", self.served(server, root, "host2"))


class RestartTest(cloud.Cloud):
    def test_nova_compute_restarts_and_forgets_what_is_not_its_own(self):
        self.host()
        root = self.encrypted()
        server = self.boot(root)
        stray, volume = uuidutils.generate_uuid(), self.encrypted()
        answer = self.agents["host1"].ask(
            op="attach",
            instance=stray,
            volume=volume,
            source={"kind": "file", "path": self.path(volume)},
            key={"from": "source", "source": f"file:{keystore.DIRECTORY}/{self.key_of(volume)}"},
            key_access="deployment",
            format="if-blank",
            read_only=False,
            serial=volume[:20],
        )
        self.assertIn("ok", answer)
        self.restart()
        self.assertEqual({(server["id"], root): "serving"}, self.agents["host1"].volumes())
        self._reboot_server(server, hard=True)
        self.assertEqual("serving", self.served(server, root))

    def test_nova_compute_does_not_start_without_its_agent(self):
        self.host()
        self.agents["host1"].crash_host()
        self.flags(ready_timeout=1, group="sealblk")
        with self.assertRaisesRegex(errors.Misconfigured, "is its unit running"):
            self.restart()

    def test_after_a_host_reboot_servers_come_back_by_their_key_access(self):
        self.flags(resume_guests_state_on_host_boot=True)
        self.host()
        service = self._create_flavor(
            disk=0, ephemeral=0, extra_spec={"sealblk:key_access": "deployment"}
        )
        own, others = self.encrypted(), self.encrypted()
        by_user = self.boot(own)
        by_service = self.boot(others, flavor=service)
        self.reboot_host()

        self._wait_for_state_change(by_service, "ACTIVE")
        self.assertEqual("serving", self.served(by_service, others))
        by_user = self._wait_for_state_change(by_user, "ERROR")
        self.assertIn("owner must hard reboot", self.fault(by_user))
        self.assertIsNone(self.served(by_user, own))

        self._reboot_server(by_user, hard=True)
        self.assertEqual("serving", self.served(by_user, own))
