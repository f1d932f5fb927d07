"""A small sealblk-agent for tests of the plugin alone: docs/agent-protocol.md without any encryption.

usage: fake_agent.py SOCKET DIRECTORY. A volume's "header" is LUKS' magic and a hash of its passphrase.
It is a process of its own, so that it behaves the same under eventlet and threads. Beyond the protocol
it knows {"op": "test", "do": …}: "log" answers all requests so far, "fail" makes the next requests of
an op fail with a kind, or be "silent" (never answered).
"""

import array
import hashlib
import json
import os
import socket
import sys
import threading

MAGIC = b"LUKS\xba\xbe\x00\x02"
FORMS = {
    "hello": set(),
    "attach": {
        "instance",
        "volume",
        "source",
        "key",
        "key_id",
        "key_access",
        "read_only",
        "format",
        "limits",
        "serial",
        "queues",
    },
    "park": {"instance", "volume"},
    "detach": {"instance", "volume"},
    "forget": {"instance"},
    "list": {"instance", "after"},
    "resize": {"instance", "volume"},
}


class Failure(Exception):
    def __init__(self, kind, message="made up"):
        super().__init__(message)
        self.kind = kind


class Agent:
    def __init__(self, directory):
        self.directory = directory
        self.lock = threading.Lock()
        self.volumes = {}
        self.log = []
        self.fail = {}

    def answer(self, request, descriptors):
        op = request.get("op")
        if op == "test":
            return self.test(request)
        unknown = set(request) - FORMS.get(op, set()) - {"op"}
        if op not in FORMS or unknown:
            raise Failure("invalid", f"{op}: {unknown}")
        self.log.append(request)
        if op in self.fail:
            kind = self.fail[op]
            if kind == "silent":
                return None
            raise Failure(kind, f"made up for /dev/secret-path by {op}")
        return getattr(self, op)(request, descriptors)

    def test(self, request):
        do = request["do"]
        if do == "log":
            return {"log": self.log}
        if do == "fail":
            self.fail = request["fail"]
        elif do == "lost":
            self.volumes[(request["instance"], request["volume"])] = {
                "state": "serving",
                "source": {},
                "key": b"",
            }
        return {}

    def hello(self, request, descriptors):
        return {
            "version": "0.1.0",
            "api": 1,
            "drivers": ["file", "rbd"],
            "key_access": ["user", "deployment"],
            "socket_dir": self.directory,
            "state": "ready",
            "unknown": 1,
        }

    def attach(self, request, descriptors):
        name = (request["instance"], request["volume"])
        if request["read_only"] and request["format"] != "never":
            raise Failure("invalid", "read_only and format")
        known = self.volumes.get(name)
        if known and known["state"] == "serving" and known["source"] != request["source"]:
            raise Failure("conflict")
        if any(v == name[1] and i != name[0] for i, v in self.volumes):
            raise Failure("conflict")
        key = self.key(request["key"], descriptors, known)
        size = 2**30
        formatted = False
        if request["source"]["kind"] != "rbd":
            formatted, size = self.open(request["source"]["path"], key, request["format"])
        path = os.path.join(self.directory, request["volume"] + ".sock")
        if not known or not known.get("listener"):
            listener = socket.socket(socket.AF_UNIX)
            if os.path.exists(path):
                os.unlink(path)
            listener.bind(path)
            listener.listen()
            known = {"listener": listener}
        known.update(state="serving", source=request["source"], key=key)
        self.volumes[name] = known
        return {
            "socket": path,
            "capacity_bytes": size,
            "serial": request["serial"],
            "read_only": request["read_only"],
            "luks_version": 2,
            "formatted": formatted,
            "state": "serving",
        }

    def key(self, key, descriptors, known):
        if key["from"] == "kept":
            if not known:
                raise Failure("key-missing")
            return known["key"]
        if key["from"] == "descriptor":
            if len(descriptors) != 1:
                raise Failure("invalid", "no descriptor")
            return os.pread(descriptors[0], 8192, 0)
        path = key["source"].removeprefix("file:")
        try:
            with open(path, "rb") as f:
                return f.read()
        except FileNotFoundError as e:
            raise Failure("key-missing", str(e)) from e

    def open(self, path, key, form):
        try:
            with open(path, "r+b") as f:
                head = f.read(4096)
                size = os.fstat(f.fileno()).st_size
                wanted = MAGIC + hashlib.sha256(key).digest()
                if head.startswith(MAGIC):
                    if not head.startswith(wanted):
                        raise Failure("key-wrong")
                    return False, size
                if any(head) or form != "if-blank":
                    raise Failure("not-encrypted")
                f.seek(0)
                f.write(wanted)
                return True, size
        except OSError as e:
            raise Failure("volume", str(e)) from e

    def park(self, request, descriptors):
        known = self.volumes.get((request["instance"], request["volume"]))
        if known:
            known["state"] = "parked"
        return {"state": "parked" if known else "absent"}

    def detach(self, request, descriptors):
        known = self.volumes.pop((request["instance"], request["volume"]), None)
        if known and known.get("listener"):
            known["listener"].close()
            os.unlink(os.path.join(self.directory, request["volume"] + ".sock"))
        return {"state": "absent"}

    def forget(self, request, descriptors):
        for instance, volume in list(self.volumes):
            if instance == request["instance"]:
                self.detach({"instance": instance, "volume": volume}, [])
        return {"state": "absent"}

    def list(self, request, descriptors):
        """One instance in each part of the answer, so that reading on is tried."""
        found = sorted({i for i, _ in self.volumes if request.get("instance") in (None, i)})
        rest = [i for i in found if i > request.get("after", "")]
        answer = {"instances": [self.describe(i) for i in rest[:1]]}
        if len(rest) > 1:
            answer["next"] = rest[0]
        return answer

    def describe(self, instance):
        volumes = [
            {"volume": v, "state": known["state"], "source": known["source"]}
            for (i, v), known in self.volumes.items()
            if i == instance
        ]
        return {"instance": instance, "pid": 1, "state": "running", "volumes": volumes}

    def resize(self, request, descriptors):
        known = self.volumes.get((request["instance"], request["volume"]))
        if not known:
            raise Failure("not-found")
        size = os.path.getsize(known["source"]["path"])
        return {
            "capacity_bytes": size - 2**24,
            "volume_bytes": size,
            "waits_for_rotation": False,
        }


def receive(connection):
    room = socket.CMSG_SPACE(4 * array.array("i").itemsize)
    message, ancillary, _, _ = connection.recvmsg(128 * 1024, room)
    descriptors = array.array("i")
    for _, _, data in ancillary:
        descriptors.frombytes(data)
    return message, list(descriptors)


def serve(agent, connection):
    with connection:
        while True:
            message, descriptors = receive(connection)
            if not message:
                return
            with agent.lock:
                try:
                    ok = agent.answer(json.loads(message), descriptors)
                    answer = {"ok": ok}
                except Failure as e:
                    ok, answer = e, {"error": {"kind": e.kind, "message": str(e)}}
            for fd in descriptors:
                os.close(fd)
            if ok is None:
                connection.recv(1)  # until the caller gives up
                return
            try:
                connection.send(json.dumps(answer).encode())
            except OSError:
                return  # the caller has given up


def main():
    path, directory = sys.argv[1:]
    agent = Agent(directory)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    listener.bind(path)
    listener.listen()
    print("ready", flush=True)
    while True:
        connection, _ = listener.accept()
        threading.Thread(target=serve, args=(agent, connection), daemon=True).start()


if __name__ == "__main__":
    main()
