"""The agent under test: the real sealblk-agent, or fake_agent.py. SEALBLK_TEST_AGENT=fake|real chooses.

Each is a process of its own on a private directory. ``start`` returns when it answers.
"""

import json
import os
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
        """As a crash: nothing is tidied up."""
        if self.process:
            self.process.kill()
            self.process.wait()
            self.process.stdout.close()
            self.process = None


class Fake(Base):
    def start(self):
        command = [sys.executable, os.path.join(HERE, "fake_agent.py"), self.socket, self.directory]
        env = {"PATH": os.environ["PATH"]}
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, env=env)
        assert self.process.stdout.readline() == b"ready\n"
        return self

    def requests(self, op):
        return [r for r in self.ask(op="test", do="log")["ok"]["log"] if r["op"] == op]

    def fail(self, **kinds):
        self.ask(op="test", do="fail", fail=kinds)


def choose(directory):
    """An agent on ``directory``, started."""
    wanted = os.environ.get("SEALBLK_TEST_AGENT", "fake")
    return {"fake": Fake}[wanted](directory).start()


