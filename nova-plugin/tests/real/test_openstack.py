"""Real Keystone, Barbican, Cinder and Ceph, and a node's real parts: a cloud user's encrypted volumes.

Needs scripts/openstack.sh's servers; scripts/openstack-test.sh starts them and runs this.
"""

import hashlib
import os
import shutil
import tempfile
import unittest

from nova.volume import cinder

from . import compute
from . import parts
from .cloud import ENV
from .cloud import Person
from .test_local import SCRIPTS

MIB = 1 << 20
# How much of a volume is compared.
COMPARED = 32 * MIB
CEPH = ("-c", ENV.get("CEPH_CONF", ""), "--id", "sealblk")


def setUpModule():
    global directory, agent, node, alice
    directory = tempfile.mkdtemp(
        prefix="sealblk-l3-", dir=os.environ.get("SEALBLK_TEST_DIR", "/var/tmp")
    )
    unittest.addModuleCleanup(shutil.rmtree, directory)
    os.chmod(directory, 0o755)
    libvirt = os.path.join(directory, "libvirt")
    unittest.addModuleCleanup(parts.run, f"{SCRIPTS}/libvirt.sh", "down", libvirt)
    uri = parts.run(f"{SCRIPTS}/libvirt.sh", "up", libvirt).decode().strip()
    # The daemons' user reads no other's files: it gets Ceph's key as a hypervisor's user would.
    keyring = os.path.join(directory, "ceph.keyring")
    shutil.copy(os.path.join(os.path.dirname(ENV["CEPH_CONF"]), "client.sealblk.keyring"), keyring)
    shutil.chown(keyring, "nobody", "nogroup")
    os.chmod(keyring, 0o600)
    with open(ENV["CEPH_CONF"]) as file:
        common = file.read().partition("[mon]")[0]
    with open(os.path.join(directory, "ceph.conf"), "w") as file:
        lines = [
            line
            for line in common.splitlines()
            if not line.startswith(("keyring", "run_dir", "log_file", "crash_dir"))
        ]
        file.write("\n".join([*lines, "[client.sealblk]", f"keyring = {keyring}", ""]))
    secret = os.path.join(directory, "barbican.secret")
    with open(os.open(secret, os.O_WRONLY | os.O_CREAT, 0o600), "w") as file:
        file.write(ENV["SEALBLK_APP_CRED_SECRET"])
    with open(
        os.open(os.path.join(directory, "keys.toml"), os.O_WRONLY | os.O_CREAT, 0o600), "w"
    ) as file:
        file.write(f"""
[barbican]
auth_url = "{ENV["OS_AUTH_URL"]}"
application_credential_id = "{ENV["SEALBLK_APP_CRED_ID"]}"
application_credential_secret_file = "{secret}"
interface = "public"
total_timeout_seconds = 5
""")
    agent = parts.Agent(directory, f'ceph_conf = "{directory}/ceph.conf"')
    unittest.addModuleCleanup(agent.stop)
    compute.configure(
        os.path.join(directory, "nova"),
        uri,
        agent.socket,
        keys="barbican",
        more=[
            ("barbican", "auth_endpoint", ENV["OS_AUTH_URL"]),
            ("barbican", "barbican_endpoint", ENV["BARBICAN_URL"]),
            ("barbican", "number_of_retries", 1),
            ("cinder", "catalog_info", "volumev3:cinderv3:publicURL"),
        ],
    )
    node = compute.Compute(volume_api=cinder.API())
    parts.run(f"{SCRIPTS}/boot-disk.sh", f"{directory}/boot.img")
    alice = Person.alice()


class CinderVolume:
    """An encrypted volume of alice's, connected to a server as Nova does it."""

    def __init__(self):
        self.id = alice.encrypted_volume()
        self.device = None

    def connect(self, server, device):
        self.device = device
        attachment = node.volume_api.attachment_create(
            server.context, self.id, server.instance.uuid,
            connector=node.driver.get_volume_connector(server.instance), mountpoint=f"/dev/{device}",
        )  # fmt: skip
        self.connection_info = attachment["connection_info"]
        self.connection_info["serial"] = self.id
        return self

    def fill(self, plain_image):
        """Writes an image into it by QEMU, as Cinder does when a volume is made from an image."""
        with parts.open_secret(alice.passphrase(self.id)) as secret:
            parts.run(
                "qemu-img", "convert", "-n", "--object", f"secret,id=s,file={secret.name}",
                "--target-image-opts", plain_image,
                f"driver=luks,key-secret=s,file.driver=rbd,file.pool=rbd,file.image=volume-{self.id},"
                f"file.conf={directory}/ceph.conf,file.user=sealblk",
            )  # fmt: skip

    def plaintext(self, passphrase):
        """By `rbd export`, cryptsetup and OpenSSL."""
        image = os.path.join(directory, f"export-{self.id}")
        parts.run("rbd", *CEPH, "export", f"rbd/volume-{self.id}", image)
        try:
            return parts.plaintext(image, passphrase, COMPARED)
        finally:
            os.remove(image)


class Volumes(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        root = CinderVolume()
        root.fill(f"{directory}/boot.img")
        cls.server = compute.Server(node, [], alice.context)
        cls.server.volumes.append(root.connect(cls.server, "vda"))
        cls.addClassCleanup(cls.server.destroy)
        cls.server.spawn()

    def setUp(self):
        self.addCleanup(self.as_alice)
        self.as_alice()

    def as_alice(self):
        self.server.context = alice.context
        self.server.instance.flavor.extra_specs = {}

    def by_service_identity(self):
        self.server.instance.flavor.extra_specs = {"sealblk:key_access": "deployment"}

    def guest(self, command, limit=180):
        return self.server.console.run(command, limit)

    def attach(self, volume):
        self.server.attach(volume, "vdb")
        self.guest("while [ ! -e /dev/vdb ]; do usleep 50000; done")

    def assert_refused(self, volume, reason):
        with self.assertRaises(Exception) as raised:
            self.server.attach(volume, "vdb")
        self.assertIn(volume.id, str(raised.exception))
        self.assertIn(reason, str(raised.exception).lower())
        self.assertIsNone(agent.volume(self.server.instance.uuid, volume.id))
        self.assertNotIn("vdb", self.guest("ls /sys/block"))

    def test_what_a_guest_writes_others_decrypt_with_the_key_of_barbican(self):
        volume = CinderVolume().connect(self.server, "vdb")
        self.attach(volume)
        self.guest(
            "mkfs.ext4 -q /dev/vdb && mount /dev/vdb /mnt && dd if=/dev/urandom of=/mnt/file bs=1M count=16 && umount /mnt"
        )
        seen = self.guest(
            f"dd if=/dev/vdb bs=1M count={COMPARED // MIB} 2>/dev/null | md5sum"
        ).split()[0]
        self.server.detach(volume)
        plain = volume.plaintext(alice.passphrase(volume.id))
        self.assertEqual(seen, hashlib.md5(plain).hexdigest())
        self.assertEqual(b"\x53\xef", plain[0x438:0x43A], "no ext4 file system")

    def test_a_server_comes_back_from_its_volume_after_a_hard_reboot(self):
        self.guest("dd if=/dev/vda of=/dev/null bs=1M count=16")
        self.server.hard_reboot()
        self.assertEqual(
            "rbd",
            agent.volume(self.server.instance.uuid, self.server.volumes[0].id)["source"]["kind"],
        )

    def test_a_service_identity_gets_the_keys_that_an_acl_gives_it(self):
        volume = CinderVolume().connect(self.server, "vdb")
        self.by_service_identity()
        self.assert_refused(volume, "key")
        alice.let_read(alice.key_id(volume.id), ENV["SEALBLK_USER_ID"])
        self.attach(volume)
        self.server.detach(volume)

    def test_another_projects_token_opens_nothing(self):
        volume = CinderVolume().connect(self.server, "vdb")
        # The administrator's context tells the metadata; Mallory's token asks for the key.
        encryption = node.volume_api.get_volume_encryption_metadata(alice.context, volume.id)
        with self.assertRaises(Exception) as raised:
            node.driver.attach_volume(
                Person.mallory().context, volume.connection_info, self.server.instance, "/dev/vdb",
                disk_bus="virtio", encryption=encryption,
            )  # fmt: skip
        self.assertIn("key", str(raised.exception).lower())
        self.assertIsNone(agent.volume(self.server.instance.uuid, volume.id))

    def test_a_deleted_secret_is_told_as_such(self):
        volume = CinderVolume().connect(self.server, "vdb")
        alice.barbican.secrets.delete(alice.reference(alice.key_id(volume.id)))
        self.assert_refused(volume, "key")
        self.by_service_identity()
        self.assert_refused(volume, "key")

    def test_a_key_manager_that_is_down_is_told_as_such_and_passes(self):
        volume = CinderVolume().connect(self.server, "vdb")
        self.addCleanup(
            parts.run, f"{SCRIPTS}/openstack.sh", "start", "barbican", ENV["OPENSTACK_DIR"]
        )
        parts.run(f"{SCRIPTS}/openstack.sh", "stop", "barbican", ENV["OPENSTACK_DIR"])
        self.assert_refused(volume, "key")
        parts.run(f"{SCRIPTS}/openstack.sh", "start", "barbican", ENV["OPENSTACK_DIR"])
        self.attach(volume)
        self.server.detach(volume)


if __name__ == "__main__":
    unittest.main()
