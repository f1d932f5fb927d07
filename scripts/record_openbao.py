"""Records what `sealblk key check` and an OpenBao server say to each other, for the unit test that replays it.

usage: . DIR/env; VENV/bin/python record_openbao.py SEALBLK OUTPUT       (DIR, VENV: openstack.sh's; SEALBLK: the program)
Seals and unseals the server. Tokens, secret ids and the server's identifiers of requests are replaced in OUTPUT.
"""

import http.server
import json
import os
import re
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import ClassVar

import requests

ENV = os.environ
SECRETS = Path(__file__).parent.parent / "tests/tests/key_managers/secrets.py"
# A key that protects nothing.
SECRET = "00112233445566778899aabbccddeeff"


def secrets(*arguments):
    return subprocess.run(
        [sys.executable, SECRETS, "bao", *arguments], check=True, capture_output=True, text=True
    ).stdout.strip()


class Proxy(http.server.BaseHTTPRequestHandler):
    """Passes everything on, and writes it down."""

    exchanges: ClassVar[list] = []

    def do_GET(self):
        self.pass_on("GET")

    def do_POST(self):
        self.pass_on("POST")

    def pass_on(self, method):
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        session = requests.Session()
        session.trust_env = False
        fields = {
            name: value
            for name, value in self.headers.items()
            if name.lower().startswith(("x-vault", "accept", "content-type"))
        }
        reply = session.request(
            method,
            ENV["BAO_URL"] + self.path,
            data=body,
            headers=fields,
            timeout=30,
            allow_redirects=False,
        )
        self.exchanges.append(
            {
                "asked": f"{method} {self.path}",
                "with_token": "x-vault-token" in self.headers,
                "status": reply.status_code,
                "body": reply.text,
            }
        )
        self.send_response(reply.status_code)
        self.send_header("content-length", str(len(reply.content)))
        self.end_headers()
        self.wfile.write(reply.content)

    def log_message(self, *_):
        pass


def clean(text):
    for secret in (
        ENV["BAO_TOKEN"],
        ENV["BAO_ROOT_TOKEN"],
        ENV["BAO_SECRET_ID"],
        ENV["BAO_ROLE_ID"],
    ):
        text = text.replace(secret, "replaced")
    text = re.sub(
        r'("(?:client_token|accessor|token_accessor|secret_id_accessor|request_id|entity_id|role_id)":")[^"]+',
        r"\1replaced",
        text,
    )
    return re.sub(r"\b[sbr]\.[A-Za-z0-9]{20,}", "replaced", text)


def record(sealblk, port, directory, name, version, login, key):
    Proxy.exchanges.clear()
    config = {
        "url": f"http://127.0.0.1:{port}",
        "kv_version": version,
        "mount": {1: "kv1", 2: "secret"}[version],
        "total_timeout_seconds": 1,
    }
    credential = directory / "credential"
    credential.write_text(login[1])
    credential.chmod(0o600)
    if login[0] == "token":
        config["token_file"] = str(credential)
    else:
        config |= {"role_id": ENV["BAO_ROLE_ID"], "secret_id_file": str(credential)}
    managers = directory / "keys.toml"
    managers.write_text(
        "[vault]\n" + "".join(f"{name} = {json.dumps(value)}\n" for name, value in config.items())
    )
    managers.chmod(0o600)
    # It fails where a failure is recorded.
    command = [
        sealblk,
        "key",
        "check",
        "--json",
        "--key",
        f"vault:{key}",
        "--key-managers",
        managers,
    ]
    answer = subprocess.run(command, check=False, capture_output=True, text=True).stdout
    verdict = json.loads(answer)
    exchanges = [exchange | {"body": clean(exchange["body"])} for exchange in Proxy.exchanges]
    if name == "sealed":
        exchanges = exchanges[:1]
    print(name, verdict.get("kind", "ok"), len(exchanges))
    return {
        "name": name,
        "kv_version": version,
        "login": login[0],
        "key": key,
        "kind": verdict.get("kind"),
        "exchanges": exchanges,
    }


def main(sealblk, output):
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Proxy)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    port = server.server_address[1]
    token, role = ("token", ENV["BAO_TOKEN"]), ("role", ENV["BAO_SECRET_ID"])
    cases = []
    with tempfile.TemporaryDirectory() as scratch:

        def case(name, version, login, key):
            cases.append(record(sealblk, port, Path(scratch), name, version, login, key))

        for version in (1, 2):
            case(
                f"symmetric, KV {version}, by role",
                version,
                role,
                "castellan/" + secrets("store", str(version), "symmetric", SECRET),
            )
            case(
                f"passphrase, KV {version}, by token",
                version,
                token,
                "castellan/" + secrets("store", str(version), "passphrase", SECRET),
            )
            case(f"denied, KV {version}", version, role, secrets("deny", str(version)))
            case(
                f"expired token, KV {version}",
                version,
                ("token", secrets("expired")),
                "castellan/x",
            )
            case(f"missing, KV {version}", version, token, "castellan/missing")
        for verb in ("delete", "destroy"):
            key = secrets("store", "2", "symmetric", SECRET)
            secrets(verb, "2", key)
            case(f"{verb}, KV 2", 2, token, "castellan/" + key)
        case("wrong secret id", 2, ("role", "wrong"), "castellan/x")
        secrets("seal")
        try:
            case("sealed", 2, token, "castellan/x")
        finally:
            secrets("unseal")
    Path(output).write_text(json.dumps({"secret": SECRET, "cases": cases}, indent=1) + "\n")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    main(*sys.argv[1:])
