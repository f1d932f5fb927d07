"""Secrets as OpenStack's services store them, in the servers of scripts/openstack.sh (and its environment).

usage: VENV/bin/python secrets.py barbican store TYPE HEX     as alice; the service user sealblk may read it; prints its id
       VENV/bin/python secrets.py barbican forbid|delete ID   nobody but her project may read it; it is no more
       VENV/bin/python secrets.py bao store KV TYPE HEX       by castellan below castellan/, KV 1 or 2; prints its id
       VENV/bin/python secrets.py bao deny KV                 one where the policy denies it; prints its path
       VENV/bin/python secrets.py bao delete|destroy KV ID
       VENV/bin/python secrets.py bao expired                 prints a token that has expired
       VENV/bin/python secrets.py bao seal|unseal
TYPE: symmetric, passphrase or opaque.
"""

import os
import sys
import time

import requests
from castellan import key_manager, options
from castellan.common.credentials import keystone_password
from castellan.common.objects import opaque_data, passphrase, symmetric_key
from oslo_config import cfg
from oslo_context import context

ENV = os.environ
MAKE = {
    "symmetric": lambda secret: symmetric_key.SymmetricKey("aes", 8 * len(secret), secret, "key"),
    "passphrase": lambda secret: passphrase.Passphrase(secret, "key"),
    "opaque": lambda secret: opaque_data.OpaqueData(secret, "key"),
}


def castellan(backend, values):
    conf = cfg.ConfigOpts()
    conf([])
    options.set_defaults(conf, backend=backend)
    # The options are there once the back-end is loaded, and are read at its first use.
    key_manager.API(conf)
    for name, value in values.items():
        conf.set_override(name, value, backend)
    return key_manager.API(conf)


def alice():
    return keystone_password.KeystonePassword(
        auth_url=ENV["OS_AUTH_URL"],
        username="alice",
        password=ENV["ALICE_PASSWORD"],
        project_name=ENV["ALICE_PROJECT"],
        user_domain_id="default",
        project_domain_id="default",
    )


def barbican(verb, *arguments):
    from barbicanclient import client
    from keystoneauth1 import session
    from keystoneauth1.identity import v3

    auth = v3.Password(
        auth_url=ENV["OS_AUTH_URL"],
        username="alice",
        password=ENV["ALICE_PASSWORD"],
        project_name=ENV["ALICE_PROJECT"],
        user_domain_id="default",
        project_domain_id="default",
    )
    direct = client.Client(session=session.Session(auth=auth), endpoint=ENV["BARBICAN_URL"])
    manager = castellan(
        "barbican", {"barbican_endpoint": ENV["BARBICAN_URL"], "auth_endpoint": ENV["OS_AUTH_URL"]}
    )

    def reference(secret_id):
        return f"{ENV['BARBICAN_URL']}/v1/secrets/{secret_id}"

    if verb == "store":
        kind, secret = arguments
        made = manager.store(alice(), MAKE[kind](bytes.fromhex(secret)))
        direct.acls.create(
            entity_ref=reference(made), users=[ENV["SEALBLK_USER_ID"]], project_access=True
        ).submit()
        print(made)
    elif verb == "forbid":
        direct.acls.get(reference(arguments[0])).remove()
    elif verb == "delete":
        manager.delete(alice(), arguments[0])
    else:
        sys.exit(__doc__)


def ask(method, path, token, body=None):
    session = requests.Session()
    session.trust_env = False
    return session.request(
        method,
        f"{ENV['BAO_URL']}/v1/{path}",
        json=body,
        headers={"X-Vault-Token": token},
        timeout=30,
    )


def must(method, path, body=None, token=None):
    reply = ask(method, path, token or ENV["BAO_ROOT_TOKEN"], body)
    if not reply.ok:
        sys.exit(f"{method} {path}: HTTP {reply.status_code} {reply.text}")
    return reply.json() if reply.content else {}


def until(condition):
    end = time.monotonic() + 60
    while not condition():
        if time.monotonic() > end:
            sys.exit("waited in vain")
        time.sleep(0.1)


def bao(verb, *arguments):
    mount = {"1": "kv1", "2": "secret"}
    if verb == "store":
        version, kind, secret = arguments
        values = {
            "vault_url": ENV["BAO_URL"],
            "kv_version": int(version),
            "kv_mountpoint": mount[version],
            "kv_path": "castellan",
            "approle_role_id": ENV["BAO_ROLE_ID"],
            "approle_secret_id": ENV["BAO_SECRET_ID"],
        }
        print(
            castellan("vault", values).store(
                context.RequestContext(), MAKE[kind](bytes.fromhex(secret))
            )
        )
    elif verb == "deny":
        record = {
            "type": "passphrase",
            "value": "61",
            "algorithm": None,
            "bit_length": None,
            "name": "",
            "created": 0,
        }
        version = arguments[0]
        if version == "1":
            must("POST", "kv1/denied/key", record)
        else:
            must("POST", "secret/data/denied/key", {"data": record})
        print("denied/key")
    elif verb in ("delete", "destroy"):
        version, key = arguments
        if version == "1":
            must("DELETE", f"kv1/castellan/{key}")
        elif verb == "delete":
            must("DELETE", f"secret/data/castellan/{key}")
        else:
            must("PUT", f"secret/destroy/castellan/{key}", {"versions": [1]})
    elif verb == "expired":
        body = {"policies": ["sealblk"], "ttl": "1s", "no_parent": True}
        token = must("POST", "auth/token/create", body)["auth"]["client_token"]
        until(lambda: ask("GET", "auth/token/lookup-self", token).status_code == 403)
        print(token)
    elif verb == "seal":
        must("PUT", "sys/seal")
    elif verb == "unseal":
        must("PUT", "sys/unseal", {"key": ENV["BAO_UNSEAL_KEY"]})
        until(lambda: ask("GET", "sys/health", "").status_code == 200)
    else:
        sys.exit(__doc__)


if __name__ == "__main__":
    if len(sys.argv) < 3 or sys.argv[1] not in ("barbican", "bao"):
        sys.exit(__doc__)
    {"barbican": barbican, "bao": bao}[sys.argv[1]](*sys.argv[2:])
