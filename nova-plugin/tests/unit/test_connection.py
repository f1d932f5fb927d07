"""connection_info of Cinder's drivers, as the agent gets it."""

import os
import tempfile
import unittest

import nova.conf
from oslo_config import fixture

from sealblk_openstack import connection
from sealblk_openstack import errors

VOLUME = "5b111111-2222-4333-8444-555555555555"


def info(kind="iscsi", **data):
    return {"driver_volume_type": kind, "data": data}


class SourceTest(unittest.TestCase):
    def source(self, *args, **kwargs):
        return connection.source(info(*args, **kwargs), VOLUME)

    def test_a_file_and_where_it_is_no_block_device(self):
        with tempfile.NamedTemporaryFile() as f:
            expected = {"kind": "file", "path": f.name}
            self.assertEqual(expected, self.source("local", device_path=f.name))
            self.assertEqual(expected, self.source("nfs", device_path=f.name, format="raw"))
            with self.assertRaisesRegex(errors.Refused, "qcow2"):
                self.source("nfs", device_path=f.name, format="qcow2")

    def test_a_device_of_os_brick(self):
        found = [f"/dev/{n}" for n in os.listdir("/dev")]
        device = next(p for p in found if os.path.exists(p) and _is_block(p))
        self.assertEqual({"kind": "device", "path": device}, self.source(device_path=device))

    def test_a_device_that_is_not_there(self):
        with self.assertRaises(errors.VolumeTrouble) as caught:
            self.source(device_path="/dev/mapper/gone")
        self.assertNotIn("/dev", caught.exception.format_message())

    def test_rbd_natively(self):
        data = {
            "name": "volumes/volume-1",
            "hosts": ["10.0.0.1", "fd00::2", "[fd00::3]"],
            "ports": ["6789", "6789", "3300"],
            "auth_enabled": True,
            "auth_username": "cinder",
            "cluster_name": "ceph",
            "keyring": "[client.cinder] key = AQ==",
        }
        expected = {
            "kind": "rbd",
            "image": "volumes/volume-1",
            "user": "cinder",
            "mon_hosts": ["10.0.0.1:6789", "[fd00::2]:6789", "[fd00::3]:3300"],
        }
        self.assertEqual(expected, self.source("rbd", **data))
        other = self.source("rbd", name="p/i", cluster_name="west")
        self.assertEqual("/etc/ceph/west.conf", other["conf"])
        evil = self.source("rbd", name="p/i", cluster_name="../../tmp/x")
        self.assertEqual("/etc/ceph/x.conf", evil["conf"])
        # Nova's workaround option maps rbd volumes: then there is a device.
        with tempfile.NamedTemporaryFile() as f:
            self.assertEqual("file", self.source("rbd", name="p/i", device_path=f.name)["kind"])

    def test_rbd_user_of_nova_conf(self):
        conf = fixture.Config(nova.conf.CONF)
        conf.setUp()
        self.addCleanup(conf.cleanUp)
        conf.config(rbd_user="novauser", group="libvirt")
        self.assertEqual("novauser", self.source("rbd", name="p/i")["user"])

    def test_what_can_not_be_served(self):
        for kind, data in (("sheepdog", {"name": "x"}), ("rbd", {}), ("rbd", {"name": "x"})):
            with self.assertRaises(errors.Refused):
                self.source(kind, **data)


class LimitsTest(unittest.TestCase):
    def limits(self, **specs):
        return connection.limits(info(qos_specs=specs), VOLUME)

    def test_front_end_specs_become_numbers(self):
        self.assertEqual({}, connection.limits(info(qos_specs=None), VOLUME))
        found = self.limits(
            total_iops_sec="500", read_bytes_sec_max=7, write_iops_sec_max_length="3"
        )
        expected = {"total_iops_sec": 500, "read_bytes_sec_max": 7, "write_iops_sec_max_length": 3}
        self.assertEqual(expected, found)

    def test_unknown_specs_are_left_out_and_senseless_ones_refused(self):
        self.assertEqual({}, self.limits(size_iops_sec="4096"))
        for value in ("many", "-1", "1.5", None, str(2**63)):
            with self.assertRaises(errors.Refused):
                self.limits(total_bytes_sec=value)


class ReadOnlyTest(unittest.TestCase):
    def test_access_modes(self):
        self.assertFalse(connection.read_only(info(), VOLUME))
        self.assertFalse(connection.read_only(info(access_mode="rw"), VOLUME))
        self.assertTrue(connection.read_only(info(access_mode="ro"), VOLUME))
        with self.assertRaises(errors.Refused):
            connection.read_only(info(access_mode="write-only"), VOLUME)


def _is_block(path):
    import stat

    return stat.S_ISBLK(os.stat(path).st_mode)
