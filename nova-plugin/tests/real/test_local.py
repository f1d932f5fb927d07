"""A node's own parts with volumes on loop devices: what Nova does to servers, data verified in the guest
and afterwards by others' programs.
"""

import hashlib
import os
import shutil
import tempfile
import unittest

from . import compute
from . import parts

MIB = 1 << 20
HERE = os.path.dirname(os.path.abspath(__file__))
SCRIPTS = os.path.join(HERE, "..", "..", "..", "scripts")

# Writes random blocks of 1 MiB to the first 16 MiB of the disk, each read back at once, until
# /tmp/stop is there. /tmp/count tells how far it is, /tmp/errors what went wrong.
LOAD = (
    "rm -f /tmp/stop /tmp/errors /tmp/done /tmp/kept.*; echo 0 >/tmp/count; (n=0; while [ ! -e /tmp/stop ]; do n=$((n+1)); at=$((n%16)); "
    "dd if=/dev/urandom of=/tmp/block bs=64k count=16 2>/dev/null; "
    "dd if=/tmp/block of={disk} bs=1M seek=$at oflag=direct conv=notrunc 2>/tmp/dd || cat /tmp/dd >>/tmp/errors; "
    "dd if={disk} of=/tmp/back bs=1M skip=$at count=1 iflag=direct 2>/tmp/dd || cat /tmp/dd >>/tmp/errors; "
    "cmp /tmp/block /tmp/back >>/tmp/errors 2>&1; cp /tmp/block /tmp/kept.$at; echo $n >/tmp/new; mv /tmp/new /tmp/count; "
    "done; echo >/tmp/done) &"
)
PROGRESS = "n=$(cat /tmp/count); while [ $(cat /tmp/count) -lt $((n+{more})) ] && [ ! -s /tmp/errors ]; do usleep 50000; done"
END = (
    "touch /tmp/stop; while [ ! -e /tmp/done ]; do usleep 50000; done; cat /tmp/errors; "
    "[ ! -s /tmp/errors ] || { ls -l {disk}; dmesg | tail -n 5; false; } && "
    "for at in 0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15; do [ ! -e /tmp/kept.$at ] || "
    "dd if={disk} bs=1M skip=$at count=1 iflag=direct 2>/dev/null | cmp - /tmp/kept.$at || echo block $at differs; done; "
    "rm -f /tmp/kept.*"
)


def setUpModule():
    """One node for all tests of this process: Nova's modules keep their configuration."""
    global directory, agent, node
    directory = tempfile.mkdtemp(
        prefix="sealblk-l2-", dir=os.environ.get("SEALBLK_TEST_DIR", "/var/tmp")
    )
    if not os.environ.get("KEEP"):
        unittest.addModuleCleanup(shutil.rmtree, directory)
    os.chmod(directory, 0o755)
    libvirt = os.path.join(directory, "libvirt")
    unittest.addModuleCleanup(parts.run, f"{SCRIPTS}/libvirt.sh", "down", libvirt)
    uri = parts.run(f"{SCRIPTS}/libvirt.sh", "up", libvirt).decode().strip()
    agent = parts.Agent(directory)
    unittest.addModuleCleanup(agent.stop)
    compute.configure(os.path.join(directory, "nova"), uri, agent.socket)
    node = compute.Compute()
    parts.run(f"{SCRIPTS}/boot-disk.sh", f"{directory}/boot.img")


class Case(unittest.TestCase):
    def volume(self, mib, secret=None, **data):
        """A volume without content whose key is in the key manager."""
        secret = os.urandom(32) if secret is None else secret
        passphrase = secret.encode() if isinstance(secret, str) else secret.hex().encode()
        volume = parts.Volume(directory, mib, compute.Keys.add(secret), passphrase, **data)
        self.addCleanup(volume.remove)
        node.volume_api.encryption[volume.id] = {
            "provider": "luks", "cipher": "aes-xts-plain64", "key_size": 512, "control_location": "front-end",
            "encryption_key_id": volume.key_id,
        }  # fmt: skip
        return volume

    def boot_volume(self):
        volume = self.volume(64)
        volume.encrypt(f"{directory}/boot.img")
        volume.device = "vda"
        return volume

    def server(self, *volumes):
        """A server that runs from an encrypted volume, with others plugged in before it starts."""
        server = compute.Server(node, [self.boot_volume(), *volumes])
        self.addCleanup(server.destroy)
        server.spawn()
        return server

    def assert_nothing_is_left(self, server):
        self.assertIsNone(agent.instance(server.instance.uuid))
        run = os.path.join(directory, "run")
        left = [name for _, _, names in os.walk(run) for name in names if name.endswith(".sock")]
        self.assertEqual(
            [], [name for name in left if name.startswith(tuple(v.id for v in server.volumes))]
        )


class Lifecycle(Case):
    """Each of these has a server of its own."""

    def test_a_server_boots_from_its_volume_and_keeps_its_data_over_a_hard_reboot(self):
        server = self.server()
        run = server.console.run
        root, new = server.volumes[0], self.volume(48)
        self.assertEqual(root.id[:20], run("cat /sys/block/vda/serial"))
        # Never written before: formatted by the agent, at the first attachment.
        server.attach(new, "vdb")
        self.assertEqual(
            new.id[:20],
            run(
                "while [ ! -e /sys/block/vdb/serial ]; do usleep 50000; done; cat /sys/block/vdb/serial"
            ),
        )
        self.assertIn(
            "LUKS header information\nVersion:       \t2",
            parts.run("cryptsetup", "luksDump", new.image).decode(),
        )
        run(
            "mkfs.ext4 -q /dev/vdb && mount /dev/vdb /mnt && dd if=/dev/urandom of=/mnt/file bs=1M count=8 && sync",
            120,
        )
        written = run("md5sum </mnt/file")
        # The key manager is asked no more: the node keeps the keys of parked volumes.
        before = agent.instance(server.instance.uuid)["pid"]
        keys = dict(compute.Keys.secrets)
        self.addCleanup(compute.Keys.secrets.update, keys)
        compute.Keys.secrets.clear()
        server.hard_reboot()
        self.assertEqual(before, agent.instance(server.instance.uuid)["pid"])
        run = server.console.run
        self.assertEqual(written, run("mount /dev/vdb /mnt && md5sum </mnt/file"))
        run("umount /mnt; sync")
        whole = run("md5sum </dev/vdb", 120)
        server.detach(new)
        self.assertIsNone(agent.volume(server.instance.uuid, new.id))
        self.assertNotIn("vdb", run("ls /sys/block"))
        self.assertEqual(hashlib.md5(new.plaintext()).hexdigest(), whole.split()[0])
        server.destroy()
        self.assert_nothing_is_left(server)

    def test_what_cannot_be_attached_leaves_nothing_behind(self):
        server = self.server()
        run = server.console.run
        good, wrong, gone, foreign = (
            self.volume(32),
            self.volume(32),
            self.volume(32),
            self.volume(32),
        )
        wrong.format()
        compute.Keys.secrets[wrong.key_id] = compute.Keys.secrets[good.key_id]
        gone.format()
        del compute.Keys.secrets[gone.key_id]
        foreign.write(b"somebody's data " * 4096)
        for volume, reason in ((wrong, "key"), (gone, "key"), (foreign, "header")):
            before = hashlib.sha256(volume.raw()).hexdigest()
            with self.assertRaises(Exception) as raised:
                server.attach(volume, "vdb")
            self.assertIn(volume.id, str(raised.exception))
            self.assertIn(reason, str(raised.exception).lower())
            self.assertIsNone(agent.volume(server.instance.uuid, volume.id))
            self.assertNotIn("vdb", run("ls /sys/block"))
            self.assertEqual(before, hashlib.sha256(volume.raw()).hexdigest())
        # And the server is as it was.
        server.attach(good, "vdb")
        run(
            "while [ ! -e /sys/block/vdb ]; do usleep 50000; done; dd if=/dev/vdb of=/dev/null bs=1M"
        )


class Loaded(Case):
    """With a disk /dev/vdb of the server ``shared`` under load."""

    shared = None

    def guest(self, command, limit=120):
        return self.shared.console.run(command, limit)

    def load(self):
        # It ends before the disk goes, however the test does: else it would make a file of that name.
        self.addCleanup(
            self.guest, "touch /tmp/stop; while [ ! -e /tmp/done ]; do usleep 50000; done"
        )
        self.guest(LOAD.format(disk="/dev/vdb"))
        self.progress(2)

    def progress(self, more):
        self.guest(PROGRESS.format(more=more))

    def end_load(self):
        self.assertEqual("", self.guest(END.replace("{disk}", "/dev/vdb")))

    def detach_and_compare(self, volume):
        """What the guest saw is what others find."""
        whole = self.guest("sync; md5sum </dev/vdb").split()[0]
        self.shared.detach(volume)
        self.assertEqual(whole, hashlib.md5(volume.plaintext()).hexdigest())


class Killed(Loaded):
    def test_a_killed_daemon_is_not_noticed_by_the_guest(self):
        """Of disks that QEMU was started with.

        libvirt 9.0 tells QEMU not to reconnect when it hot-plugs one, whatever the XML says.
        """
        volume = self.volume(40)
        volume.format()
        volume.device = "vdb"
        self.shared = self.server(volume)
        self.load()
        for _ in range(3):
            agent.kill_daemon(self.shared.instance.uuid)
            self.progress(3)
        self.end_load()
        self.detach_and_compare(volume)


class Running(Loaded):
    """These share a server, each with a disk of its own."""

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        maker = cls("run")
        cls.addClassCleanup(maker.doCleanups)
        cls.shared = maker.server()

    def disk(self, mib=40):
        volume = self.volume(mib)
        volume.format()
        self.shared.attach(volume, "vdb")
        self.addCleanup(self.release, volume)
        self.guest("while [ ! -b /dev/vdb ]; do usleep 50000; done")
        return volume

    def release(self, volume):
        if volume in self.shared.volumes:
            self.shared.detach(volume)

    def test_agent_and_nova_may_end_and_start_again(self):
        volume = self.disk()
        self.load()
        agent.kill()
        self.progress(3)
        agent.start()
        node.restart()
        found = agent.volume(self.shared.instance.uuid, volume.id)
        self.assertEqual(("serving", True), (found["state"], found["connected"]))
        self.progress(3)
        self.end_load()
        self.detach_and_compare(volume)

    def test_an_extended_volume_is_larger_in_the_guest(self):
        volume = self.disk(40)
        before = int(self.guest("cat /sys/block/vdb/size"))
        self.load()
        volume.grow(56)
        self.shared.driver.extend_volume(
            self.shared.context, volume.connection_info, self.shared.instance, 56 * MIB
        )
        self.guest(
            f"while [ $(cat /sys/block/vdb/size) != {before + 16 * MIB // 512} ]; do usleep 50000; done"
        )
        self.end_load()
        self.guest("dd if=/dev/urandom of=/dev/vdb bs=1M seek=32 count=8 oflag=direct conv=notrunc")
        self.detach_and_compare(volume)

    def test_a_rotation_under_load_ends_with_another_key_and_the_same_data(self):
        volume = self.disk()
        old = volume.volume_key()
        self.load()
        answer = agent.ask(op="rotate", select={"volume": volume.id}, order={"action": "start"})
        self.assertEqual([None], [entry.get("error") for entry in answer["volumes"]])
        uuid = self.shared.instance.uuid
        rotation = parts.until(
            "the rotation's end",
            lambda: (
                (r := agent.rotation(uuid, volume.id))
                and r["state"] in ("completed", "failed")
                and r
            ),
            120,
        )
        self.assertEqual("completed", rotation["state"], rotation)
        self.progress(2)
        self.end_load()
        self.detach_and_compare(volume)
        self.assertNotEqual(old, volume.volume_key())


if __name__ == "__main__":
    unittest.main()
