"""The node's other parts: sealblk-agent with its daemons, volumes on loop devices, and what others say
is on them.
"""

import os
import re
import signal
import subprocess
import tempfile
import time
import uuid

from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers import algorithms
from cryptography.hazmat.primitives.ciphers import modes

from sealblk_openstack import agent

SECTOR = 512


def programs():
    """Where sealblk-agent and sealblkd are."""
    return os.environ["SEALBLK_BIN_DIR"]


def run(*command, **kwargs):
    done = subprocess.run(command, capture_output=True, **kwargs)
    if done.returncode:
        raise AssertionError(
            f"{command}: {done.returncode}\n{done.stderr.decode(errors='replace')}"
        )
    return done.stdout


def until(what, condition, limit=60):
    """The first true value of ``condition``, which must come within ``limit`` seconds."""
    end = time.monotonic() + limit
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > end:
            raise AssertionError(f"waited {limit} s in vain for {what}")
        time.sleep(0.05)


def stat(pid):
    """Fields of /proc/PID/stat behind the program's name: state, parent's process id and so on."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()
    except OSError:
        return ["X", "0"]


def is_alive(pid):
    """A zombie, which some PID 1 are slow to bury, is dead."""
    return stat(pid)[0] not in "XZ"


def children(pid):
    """Living children of a process."""
    found = [
        int(name) for name in os.listdir("/proc") if name.isdigit() and stat(name)[1] == str(pid)
    ]
    return [child for child in found if is_alive(child)]


class Agent:
    """A sealblk-agent whose files are all in ``directory``. Daemons run as nobody."""

    def __init__(self, directory, more=""):
        self.directory = directory
        self.socket = os.path.join(directory, "agent.sock")
        self._config = os.path.join(directory, "agent.toml")
        self._process = None
        keys = os.path.join(directory, "keys.toml")
        if not os.path.exists(keys):
            open(keys, "w").close()
        with open(self._config, "w") as file:
            file.write(f"""
[agent]
socket = "{self.socket}"
run_dir = "{directory}/run"
state_dir = "{directory}/state"
daemon_state_dir = "{directory}/daemons"
key_managers = "{keys}"
launcher = "process"
user = "nobody"
group = "nogroup"
socket_owner_group = "nogroup"
allow_users = []
log_level = "info"
{more}
""")
        self.start()

    def start(self):
        with open(os.path.join(self.directory, "agent.log"), "ab") as log:
            self._process = subprocess.Popen(
                [os.path.join(programs(), "sealblk-agent"), "--config", self._config],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip
        until("the agent's socket", self._listens)

    def _listens(self):
        if self._process.poll() is not None:
            with open(os.path.join(self.directory, "agent.log"), errors="replace") as log:
                raise AssertionError(f"the agent ended: {log.read()[-2000:]}")
        try:
            return self.client().hello()
        except agent.errors.AgentUnreachable:
            return None

    def kill(self):
        self._process.kill()
        self._process.wait()

    def stop(self):
        """Ends all daemons, then it."""
        if self._process.poll() is not None:
            self.start()
        for entry in self.client().instances():
            self.client().forget(entry["instance"])
        self._process.terminate()
        self._process.wait(timeout=30)

    def client(self):
        return agent.Agent(self.socket, 60, 60)

    def ask(self, **request):
        return self.client()._ask(request)

    def instance(self, instance):
        """What it tells of an instance, or None."""
        return next((e for e in self.client().instances() if e["instance"] == instance), None)

    def volume(self, instance, volume):
        entry = self.instance(instance) or {"volumes": []}
        return next((v for v in entry["volumes"] if v["volume"] == volume), None)

    def rotation(self, instance, volume):
        """The daemon's own word on a volume's rotation."""
        for entry in self.ask(op="status", instance=instance)["instances"]:
            for found in (entry.get("status") or {}).get("volumes", []):
                if found.get("name") == volume:
                    return found.get("rotation")
        return None

    def kill_daemon(self, instance):
        """SIGKILL to the process that serves the instance's volumes; waits until another has its place.

        ``sealblkd --instance`` is a keeper and its child, which serves.
        """
        keeper, serving = self._keeper_and_serving(instance)
        os.kill(serving, signal.SIGKILL)
        until(
            "a successor",
            lambda: is_alive(keeper) and [c for c in children(keeper) if c != serving],
        )

    def _keeper_and_serving(self, instance):
        pid = self.instance(instance)["pid"]
        parent = int(stat(pid)[1])
        with open(f"/proc/{parent}/cmdline", "rb") as file:
            if instance.encode() in file.read().split(b"\0"):
                return parent, pid
        return pid, children(pid)[0]


class Volume:
    """A volume of Cinder's on a loop device: what Nova is told of it. Its passphrase is ``passphrase``."""

    def __init__(self, directory, mib, key_id, passphrase, **data):
        self.id = str(uuid.uuid4())
        self.key_id, self.passphrase = key_id, passphrase
        self.device = None
        self.image = os.path.join(directory, self.id)
        with open(self.image, "wb") as file:
            file.truncate(mib << 20)
        self.loop = (
            run("losetup", "--show", "--find", "--direct-io=on", self.image).decode().strip()
        )
        self.connection_info = {
            "driver_volume_type": "local",
            "serial": self.id,
            "volume_id": self.id,
            "data": {
                "volume_id": self.id, "device_path": self.loop, "encrypted": True, "access_mode": "rw",
                "qos_specs": None, "discard": False, **data,
            },
        }  # fmt: skip

    def remove(self):
        run("losetup", "--detach", self.loop)
        os.remove(self.image)

    def grow(self, mib):
        with open(self.image, "ab") as file:
            file.truncate(mib << 20)
        run("losetup", "--set-capacity", self.loop)

    def write(self, content):
        """Puts bytes on the device, past all that serves it."""
        with open(self.loop, "r+b") as device:
            device.write(content)
            device.flush()
            os.fsync(device.fileno())

    def raw(self):
        """All bytes of the volume as the storage has them."""
        run("blockdev", "--flushbufs", self.loop)
        with open(self.loop, "rb") as device:
            return device.read()

    def encrypt(self, plain_image):
        """Makes it a LUKS1 volume with this content, by QEMU, as Cinder does with images."""
        with open_secret(self.passphrase) as secret:
            luks = self.image + ".luks"
            run(
                "qemu-img", "convert", "-O", "luks", "--object", f"secret,id=s,file={secret.name}",
                "-o", "key-secret=s,cipher-alg=aes-256,cipher-mode=xts,ivgen-alg=plain64", plain_image, luks,
            )  # fmt: skip
        with open(luks, "rb") as file:
            self.write(file.read())
        os.remove(luks)

    def format(self, *arguments):
        """Makes it a LUKS2 volume, by cryptsetup."""
        run(
            "cryptsetup", "luksFormat", "--batch-mode", "--type", "luks2", "--pbkdf", "pbkdf2",
            "--pbkdf-force-iterations", "1000", "--key-file", "-", *arguments, self.image,
            input=self.passphrase,
        )  # fmt: skip

    def volume_key(self):
        return volume_key(self.image, self.passphrase)

    def plaintext(self):
        return plaintext(self.image, self.passphrase)


def open_secret(passphrase):
    """A file with a passphrase, for programs that take none otherwise; of tests alone."""
    file = tempfile.NamedTemporaryFile(mode="wb", prefix="sealblk-secret-")
    file.write(passphrase)
    file.flush()
    return file


def volume_key(image, passphrase):
    """The volume key, according to cryptsetup."""
    dump = run(
        "cryptsetup",
        "luksDump",
        "--dump-volume-key",
        "--batch-mode",
        "--key-file",
        "-",
        image,
        input=passphrase,
    ).decode()
    digits = re.sub(r"[^0-9a-f]", "", dump.partition("MK dump:")[2])
    assert digits, dump
    return bytes.fromhex(digits)


def plaintext(image, passphrase, limit=None):
    """The first ``limit`` bytes on a volume: cryptsetup opens its header, OpenSSL deciphers the rest.

    Neither is ours.
    """
    dump = run("cryptsetup", "luksDump", image).decode()
    key = volume_key(image, passphrase)
    found = re.search(r"offset: (\d+) \[bytes\]", dump)
    offset = (
        int(found[1]) if found else int(re.search(r"Payload offset:\s*(\d+)", dump)[1]) * SECTOR
    )
    assert len(re.findall(r"^  \d+: crypt", dump, re.M)) == 1 or not found, (
        f"more than one data segment:\n{dump}"
    )
    step = int((re.search(r"sector: (\d+) \[bytes\]", dump) or ["", SECTOR])[1])
    plain = bytearray()
    with open(image, "rb") as file:
        file.seek(offset)
        number = 0
        while (limit is None or len(plain) < limit) and (sector := file.read(step)):
            tweak = number.to_bytes(16, "little")
            plain += Cipher(algorithms.AES(key), modes.XTS(tweak)).decryptor().update(sector)
            number += step // SECTOR
    return bytes(plain)
