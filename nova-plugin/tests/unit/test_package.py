"""What is installed where, the options' sample, the requirements' words, Nova's known interfaces."""

from importlib import metadata
import os
import types
import unittest
from unittest import mock

import nova.conf
from nova.virt.libvirt import driver as libvirt_driver
from oslo_config import fixture
import sample_config

import nova
import sealblk_openstack
from sealblk_openstack import conf
from sealblk_openstack import errors
from sealblk_openstack import node
from sealblk_openstack import require
from sealblk_openstack import signatures

PLUGIN = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))


class PackageTest(unittest.TestCase):
    def test_the_wheel_puts_the_shim_beside_novas_drivers_and_nothing_else_there(self):
        beside = os.path.dirname(os.path.dirname(os.path.abspath(nova.__file__)))
        files = [str(f) for f in metadata.files("sealblk-openstack")]
        self.assertEqual(
            ["nova/virt/sealblk/__init__.py"], [f for f in files if f.startswith("nova/")]
        )
        self.assertTrue(os.path.exists(os.path.join(beside, "nova/virt/sealblk/__init__.py")))
        self.assertTrue(sealblk_openstack.__file__.startswith(beside))
        self.assertEqual([], metadata.requires("sealblk-openstack") or [])

    def test_the_sample_of_the_options_is_current(self):
        with open(os.path.join(PLUGIN, "etc", "sealblk.conf.sample")) as f:
            self.assertEqual(f.read(), sample_config.sample(), "run scripts/nova.sh sample")


class SignaturesTest(unittest.TestCase):
    def setUp(self):
        conf.register(nova.conf.CONF)
        self.conf = fixture.Config(nova.conf.CONF)
        self.conf.setUp()
        self.addCleanup(self.conf.cleanUp)

    def test_this_nova_is_known(self):
        signatures.check(libvirt_driver.LibvirtDriver)

    def test_a_changed_or_absent_method_is_refused_unless_allowed(self):
        class Changed(libvirt_driver.LibvirtDriver):
            def _connect_volume(self, context, bdm):
                pass

            list_instance_uuids = None

        with self.assertRaises(errors.Misconfigured) as caught:
            signatures.check(Changed)
        text = caught.exception.format_message()
        self.assertIn("_connect_volume(self context bdm)", text)
        self.assertIn("list_instance_uuids is gone", text)
        self.conf.config(allow_untested=True, group="sealblk")
        signatures.check(Changed)

    def test_a_release_of_tomorrow_is_refused(self):
        with mock.patch.object(signatures.version, "version_string", return_value="77.1.0"):
            with self.assertRaisesRegex(errors.Misconfigured, r"Nova 77.1.0 \(known: 26 to 34\)"):
                signatures.check(libvirt_driver.LibvirtDriver)

    def test_each_method_that_the_driver_overrides_is_checked(self):
        from sealblk_openstack import driver

        ours = {
            name
            for name, value in vars(driver.SealLibvirtDriver).items()
            if callable(value) and hasattr(libvirt_driver.LibvirtDriver, name)
        }
        self.assertEqual(set(), ours - set(signatures.DRIVER))


class RequireTest(unittest.TestCase):
    def server(self, flavor=None, image=None):
        extra = {require.FLAVOR: flavor} if flavor else {}
        image = {require.IMAGE: image} if image else {}
        flavor = types.SimpleNamespace(extra_specs=extra)
        return types.SimpleNamespace(flavor=flavor, system_metadata=image)

    def test_the_stronger_of_flavor_and_image_holds(self):
        for flavor, image, expected in (
            (None, None, None),
            ("volumes", None, "volumes"),
            (None, "volumes", "volumes"),
            ("volumes", "all", "all"),
            ("all", "volumes", "all"),
        ):
            self.assertEqual(expected, require.mode(self.server(flavor, image)))

    def test_unknown_words_are_refused(self):
        for server in (self.server("al"), self.server(image="Volumes")):
            with self.assertRaises(errors.Unmet):
                require.mode(server)

    def test_local_disks(self):
        volumes_only = {"root": {}, "/dev/vda": {}}
        require.check_local(self.server("all"), volumes_only)
        for name in ("disk", "disk.local", "disk.eph0", "disk.swap", "disk.config", "disk.rescue"):
            with self.assertRaisesRegex(errors.Unmet, name):
                require.check_local(self.server("all"), dict(volumes_only, **{name: {}}))
            require.check_local(self.server("volumes"), {name: {}})


class NodeTest(unittest.TestCase):
    def test_an_old_libvirt_is_refused(self):
        conf.register(nova.conf.CONF)
        with self.assertRaisesRegex(errors.Misconfigured, "libvirt 7.1.0"):
            node.Node().start("host", lambda lv_ver: lv_ver <= (6, 0, 0), list)
