"""A client of sealblk-agent as small as can be, and a stand-in for systemd's readiness socket.

usage: try-packages-client.py start PROGRAM ARGS...  starts it, waits for READY=1, prints its pid
       try-packages-client.py stop PID               SIGTERM, waits for its end
       try-packages-client.py agent FILE KEYFILE     attach, list, park, attach again
       try-packages-client.py agent-again            what `agent` left is listed, then detached
"""

import json
import os
import select
import signal
import socket
import subprocess
import sys

AGENT = "/run/sealblk-agent/agent.sock"
INSTANCE = "11111111-1111-4111-8111-111111111111"
VOLUME = "22222222-2222-4222-8222-222222222222"
LIMIT = 60  # seconds; what takes longer has failed


def start(program):
    path = f"/run/try-notify-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
        notify.bind(path)
        os.chmod(path, 0o666)
        notify.settimeout(LIMIT)
        with open(f"/tmp/{os.path.basename(program[0])}.log", "ab") as log:
            process = subprocess.Popen(
                program,
                env=dict(os.environ, NOTIFY_SOCKET=path),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        try:
            while b"READY=1" not in notify.recv(4096):
                pass
        except TimeoutError:
            sys.exit(f"{program} is not ready: see {log.name}")
        finally:
            os.unlink(path)
    print(process.pid)


def stop(pid):
    with_end = os.pidfd_open(pid)
    os.kill(pid, signal.SIGTERM)
    if not select.select([with_end], [], [], LIMIT)[0]:
        sys.exit(f"process {pid} doesn't end")


def ask(request, key=None):
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as agent:
        agent.settimeout(LIMIT)
        agent.connect(AGENT)
        socket.send_fds(agent, [json.dumps(request).encode()], [key] if key is not None else [])
        answer = json.loads(agent.recv(1 << 18))
    print(request["op"], "->", json.dumps(answer))
    if "ok" not in answer:
        sys.exit(1)
    return answer["ok"]


def attach(path, key, descriptor=None):
    return ask(
        {
            "op": "attach",
            "instance": INSTANCE,
            "volume": VOLUME,
            "source": {"kind": "file", "path": path},
            "key": {"from": key},
            "key_access": "user",
        },
        descriptor,
    )


def one_volume():
    (instance,) = ask({"op": "list"})["instances"]
    (volume,) = instance["volumes"]
    return volume


def agent(path, keyfile):
    ask({"op": "hello"})
    key = os.memfd_create("key", os.MFD_CLOEXEC)
    with open(keyfile, "rb") as file:
        os.write(key, file.read())
    served = attach(path, "descriptor", key)
    if not os.path.exists(served["socket"]) or served["capacity_bytes"] != 64 << 20:
        sys.exit(f"not what was asked for: {served}")
    ask({"op": "status"})
    ask({"op": "park", "instance": INSTANCE, "volume": VOLUME})
    if one_volume()["state"] != "parked":
        sys.exit("not parked")
    attach(path, "kept")


def agent_again():
    if one_volume()["state"] != "serving":
        sys.exit("not served any more")
    ask({"op": "detach", "instance": INSTANCE, "volume": VOLUME})
    if ask({"op": "list"})["instances"]:
        sys.exit("something is left")


match sys.argv[1:]:
    case ["start", *program]:
        start(program)
    case ["stop", pid]:
        stop(int(pid))
    case ["agent", path, keyfile]:
        agent(path, keyfile)
    case ["agent-again"]:
        agent_again()
    case _:
        sys.exit(__doc__)
