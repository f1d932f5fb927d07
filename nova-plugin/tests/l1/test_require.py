"""Servers that require encryption: asked for by flavor or image, enforced before libvirt is touched."""

import cloud
from nova.tests.functional.api import client


class RequireTest(cloud.Cloud):
    def flavor_with(self, **extra):
        extra = {name.replace("_", ":", 1): value for name, value in extra.items()}
        return self._create_flavor(disk=0, ephemeral=0, extra_spec=extra)

    def test_a_server_that_requires_encrypted_volumes_gets_nothing_else(self):
        self.host()
        volumes = self.flavor_with(sealblk_require="volumes")
        plain = self.plain()
        failed = self.boot(plain, flavor=volumes, state="ERROR")
        self.assertIn(f"Volume {plain} is not encrypted by sealblk", self.fault(failed))
        self.assertEqual([], self.strict.seen)

        # 'plain' (dm-crypt) and unknown providers are encrypted, but not by us.
        foreign = self.encrypted(metadata={"provider": "plain"})
        failed = self.boot(foreign, flavor=volumes, state="ERROR")
        self.assertIn(f"Volume {foreign} is not encrypted by sealblk", self.fault(failed))
        self.assertEqual([], self.strict.seen)

        server = self.boot(self.encrypted(), flavor=volumes)
        seen = len(self.strict.seen)
        told = self.attach_fails(server, self.plain())
        self.assertIn("is not encrypted by sealblk", told)
        self.assertEqual(seen, len(self.strict.seen))
        self.attach(server, self.encrypted())

    def test_a_server_that_requires_all_gets_no_local_disk(self):
        self.host()
        everything = self.flavor_with(sealblk_require="all")
        failed = self.boot(flavor=everything, state="ERROR")
        self.assertIn("boot from an encrypted volume", self.fault(failed))
        failed = self.boot(self.encrypted(), flavor=everything, config_drive=True, state="ERROR")
        self.assertIn("disk.config", self.fault(failed))
        self.assertEqual([], self.strict.seen)
        self.boot(self.encrypted(), flavor=everything)

    def test_an_image_may_require_it(self):
        self.host()
        demanding = self.plain()
        self.images[demanding] = {"sealblk_require": "volumes"}
        self.assertIn("not encrypted", self.fault(self.boot(demanding, state="ERROR")))
        typo = self.encrypted()
        self.images[typo] = {"sealblk_require": "everything"}
        self.assertIn("'everything', which is unknown", self.fault(self.boot(typo, state="ERROR")))
        self.assertEqual([], self.strict.seen)

    def test_traits_tell_the_scheduler_and_typos_in_flavors_are_refused(self):
        self.host()
        traits = self._get_provider_traits(self.compute_rp_uuids["host1"])
        ours = {t for t in traits if t.startswith("CUSTOM_SEALBLK")}
        self.assertLessEqual(
            {"CUSTOM_SEALBLK", "CUSTOM_SEALBLK_KEY_USER", "CUSTOM_SEALBLK_KEY_DEPLOYMENT"}, ours
        )
        self.assertNotIn("CUSTOM_SEALBLK_KEY_HOST", ours)
        here = self._create_flavor(
            disk=0, ephemeral=0, extra_spec={"trait:CUSTOM_SEALBLK": "required"}
        )
        self.boot(self.encrypted(), flavor=here)
        elsewhere = self._create_flavor(
            disk=0, ephemeral=0, extra_spec={"trait:CUSTOM_SEALBLK_KEY_HOST": "required"}
        )
        self.boot(self.encrypted(), flavor=elsewhere, state="ERROR")

        for name, value in (
            ("sealblk:require", "volume"),
            ("sealblk:key_access", "users"),
            ("sealblk:requires", "all"),
        ):
            error = self.assertRaises(
                client.OpenStackApiException, self._create_flavor, extra_spec={name: value}
            )
            self.assertEqual(400, error.response.status_code)

    def test_a_way_to_the_key_that_the_node_does_not_have(self):
        self.host()
        flavor = self.flavor_with(sealblk_key_access="host")
        root = self.encrypted()
        failed = self.boot(root, flavor=flavor, state="ERROR")
        self.assertTrue(self.is_blank(root))
        self.assertEqual([], self.strict.seen)
        self.assertIsNone(self.served(failed, root))


class ResizeTest(cloud.Cloud):
    # Casts stay casts: otherwise the destination's call would see the source's refusal.
    CAST_AS_CALL = False

    def test_a_resize_does_not_escape_the_new_flavor(self):
        self.host("host1")
        self.host("host2")
        volumes = self._create_flavor(
            disk=0, ephemeral=0, extra_spec={"sealblk:require": "volumes"}
        )
        server = self.boot(self.plain())
        self.api.post_server_action(server["id"], {"resize": {"flavorRef": volumes}})
        self._wait_for_action_fail_completion(server, "resize", "compute_resize_instance")
        self.assertIn("not encrypted by sealblk", self.last_event(server, "resize"))
        self._wait_for_state_change(server, "ACTIVE")
