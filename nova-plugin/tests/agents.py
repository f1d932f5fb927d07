"""The agent under test: the real sealblk-agent, or fake_agent.py. SEALBLK_TEST_AGENT=fake|real chooses.

Each is a process of its own on a private directory. ``start`` returns when it answers.
"""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys

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

    def volumes(self):
        """(instance, volume) -> state, of all volumes."""
        found, after = {}, {}
        while True:
            answer = self.ask(op="list", **after)["ok"]
            for entry in answer["instances"]:
                for volume in entry["volumes"]:
                    found[(entry["instance"], volume["volume"])] = volume["state"]
            if not answer.get("next"):
                return found
            after = {"after": answer["next"]}

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

    def fail(self, **kinds):
        self.ask(op="test", do="fail", fail=kinds)


def choose(directory):
    """An agent on ``directory``, started."""
    wanted = os.environ.get("SEALBLK_TEST_AGENT", "fake")
    return {"fake": Fake}[wanted](directory).start()


