"""The agent under test: the real sealblk-agent, or fake_agent.py. SEALBLK_TEST_AGENT=fake|real chooses.

Each is a process of its own on a private directory. ``start`` returns when it answers.
"""

import contextlib
import grp
import json
import os
import pwd
import select
import shutil
import signal
import socket
import subprocess
import sys
import time

HERE = os.path.dirname(os.path.abspath(__file__))
MESSAGE_MAX = 128 * 1024


class Base:
    def __init__(self, directory):
        self.directory = directory
        self.socket = os.path.join(directory, "agent.sock")
        self.process = None

    def ask(self, **request):
        """One request, past the plugin."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as s:
            s.connect(self.socket)
            s.send(json.dumps(request).encode())
            return json.loads(s.recv(MESSAGE_MAX))

    def instances(self):
        found, after = [], {}
        while True:
            answer = self.ask(op="list", **after)["ok"]
            found += answer["instances"]
            if not answer.get("next"):
                return found
            after = {"after": answer["next"]}

    def volumes(self):
        """(instance, volume) -> state, of all volumes."""
        return {
            (entry["instance"], volume["volume"]): volume["state"]
            for entry in self.instances()
            for volume in entry["volumes"]
        }

    def stop(self):
        """Ends the agent, not its daemons; nothing is tidied up."""
        if self.process:
            self.process.kill()
            self.process.wait()
            self.process.stdout.close()
            self.process = None

    @contextlib.contextmanager
    def hangs(self):
        """The agent takes connections and doesn't answer."""
        self.process.send_signal(signal.SIGSTOP)
        yield
        self.process.send_signal(signal.SIGCONT)


class Fake(Base):
    def start(self):
        command = [sys.executable, os.path.join(HERE, "fake_agent.py"), self.socket, self.directory]
        env = {"PATH": os.environ["PATH"]}
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, env=env)
        assert self.process.stdout.readline() == b"ready\n"
        return self

    def crash_host(self):
        self.stop()
        os.unlink(self.socket)

    end = Base.stop

    def fail(self, **kinds):
        self.ask(op="test", do="fail", fail=kinds)


class Real(Base):
    """sealblk-agent, and the daemons that it starts, as plain processes of this user."""

    CONFIG = """
[agent]
socket = "{d}/agent.sock"
run_dir = "{d}/run"
state_dir = "{d}/state"
daemon_state_dir = "{d}/daemons"
key_managers = "{d}/keys.toml"
user = "{user}"
group = "{group}"
socket_group = ""
socket_owner_group = "{group}"
launcher = "process"
file_prefixes = ["{data}"]
key_prefixes = ["{data}"]
"""

    def start(self):
        data = os.path.dirname(self.directory)
        names = {
            "user": pwd.getpwuid(os.getuid()).pw_name,
            "group": grp.getgrgid(os.getgid()).gr_name,
        }
        config = os.path.join(self.directory, "agent.toml")
        for path, text in (
            (config, self.CONFIG.format(d=self.directory, data=data, **names)),
            (os.path.join(self.directory, "keys.toml"), ""),
        ):
            with open(path, "w") as f:
                f.write(text)
        for name in ("run", "state", "daemons"):
            os.makedirs(os.path.join(self.directory, name), exist_ok=True)
        program = os.path.join(binaries(), "sealblk-agent")
        self.log = open(os.path.join(self.directory, "log"), "ab")  # noqa: SIM115
        self.process = subprocess.Popen(
            [program, "--config", config], stderr=self.log, stdout=self.log
        )
        self.wait()
        return self

    def wait(self):
        """Until it answers, or has ended with the reason in its log."""
        while True:
            try:
                return self.ask(op="hello")
            except OSError:
                if self.process.poll() is not None:
                    with open(self.log.name) as f:
                        raise AssertionError(f"sealblk-agent ended: {f.read()}") from None
                time.sleep(0.01)

    def stop(self):
        if self.process:
            self.process.kill()
            self.process.wait()
            self.process = None
            self.log.close()

    def crash_host(self):
        """The agent and all its daemons at once, as when power fails; what /run held is gone."""
        self.stop()
        for pid in self.daemons():
            kill(pid)
        for name in ("run", "agent.sock"):
            path = os.path.join(self.directory, name)
            shutil.rmtree(path) if os.path.isdir(path) else os.unlink(path)

    def daemons(self):
        """The processes that run in our directory: each daemon has two."""
        for pid in filter(str.isdigit, os.listdir("/proc")):
            with contextlib.suppress(OSError), open(f"/proc/{pid}/cmdline", "rb") as f:
                if f"{self.directory}/run/".encode() in f.read():
                    yield int(pid)

    def end(self):
        if os.path.exists(self.socket):
            self.crash_host()


def kill(pid):
    """Kills a process that isn't our child, and waits for its end by a descriptor of it."""
    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    signal.pidfd_send_signal(fd, signal.SIGKILL)
    select.select([fd], [], [])
    os.close(fd)


def binaries():
    wanted = os.environ.get("SEALBLK_BIN_DIR")
    target = os.path.join(HERE, "..", "..", "target")
    for path in [wanted] if wanted else [os.path.join(target, p) for p in ("test-fast", "debug")]:
        if os.path.exists(os.path.join(path, "sealblk-agent")):
            return os.path.abspath(path)
    raise AssertionError("no sealblk-agent: cargo build --profile test-fast -p sealblk-backend")


def choose(directory):
    """An agent on ``directory``, started."""
    wanted = os.environ.get("SEALBLK_TEST_AGENT", "real")
    return {"fake": Fake, "real": Real}[wanted](directory).start()
