"""What openstack.sh's servers need to know once: accounts, volume types, OpenBao's mounts and policies.

usage: openstack_accounts.py identity KEYSTONE BARBICAN CINDER     (OS_PASSWORD: the administrator's)
       openstack_accounts.py volumes                               (OS_* of the administrator)
       openstack_accounts.py bao INIT_FILE ADDRESS
`identity` and `bao` print lines of DIR/env. All are idempotent. Runs with the Python of openstack-venv.sh.

People: `alice` is a member of the project `tenant`, no more: the user of a cloud. `mallory` is a member of
another one. Service users: `sealblk` (whom a secret's ACL may name) and `stranger` (whom none does), each
with an application credential, as a compute node's agent would have.
"""

import json
import os
import secrets
import sys
import time

import requests
from keystoneauth1 import session
from keystoneauth1.identity import v3

DEFAULT = {"user_domain_id": "default", "project_domain_id": "default"}


def login(url, user, password, project):
    return session.Session(auth=v3.Password(auth_url=url, username=user, password=password, project_name=project, **DEFAULT))


def find_or_make(manager, name, *args, **kwargs):
    found = [entry for entry in manager.list() if entry.name == name]
    return found[0] if found else manager.create(name, *args, **kwargs)


def identity(url, barbican, cinder):
    from keystoneclient.v3 import client

    password = os.environ["OS_PASSWORD"]
    keystone = client.Client(session=login(url, "admin", password, "admin"))
    service, tenant, other = (find_or_make(keystone.projects, name, "default") for name in ("service", "tenant", "other"))
    roles = {name: find_or_make(keystone.roles, name) for name in ("admin", "service", "creator", "member", "reader")}
    passwords = {"barbican": password, "cinder": password}
    users = {}
    for name, project, granted in (
        ("barbican", service, ("admin", "service", "creator")),
        ("cinder", service, ("admin", "service", "creator")),
        ("alice", tenant, ("member",)),
        ("mallory", other, ("member",)),
        ("sealblk", service, ("reader",)),
        ("stranger", service, ("reader",)),
    ):
        passwords.setdefault(name, secrets.token_hex(16))
        users[name] = find_or_make(keystone.users, name, "default")
        keystone.users.update(users[name], password=passwords[name])
        for role in granted:
            keystone.roles.grant(roles[role], user=users[name], project=project)
    # Barbican's way to be asked for keys by an administrator's token.
    admin = find_or_make(keystone.users, "admin")
    keystone.roles.grant(roles["creator"], user=admin, project=find_or_make(keystone.projects, "admin"))
    for name, kind, address in (
        ("barbican", "key-manager", barbican),
        ("cinderv3", "volumev3", cinder + "/v3/%(project_id)s"),
    ):
        entry = find_or_make(keystone.services, name, kind)
        if not keystone.endpoints.list(service=entry):
            for interface in ("public", "internal", "admin"):
                keystone.endpoints.create(entry, address, interface=interface, region="RegionOne")

    for name, project in (("alice", "tenant"), ("mallory", "other")):
        print(f"export {name.upper()}_PASSWORD={passwords[name]} {name.upper()}_PROJECT={project}")
    for name in ("sealblk", "stranger"):
        own = client.Client(session=login(url, name, passwords[name], "service"))
        made = own.application_credentials.create(
            f"node-{secrets.token_hex(4)}", user=users[name].id, roles=[{"name": "reader"}]
        )
        word = name.upper()
        print(f"export {word}_USER_ID={users[name].id} {word}_PASSWORD={passwords[name]}")
        print(f"export {word}_APP_CRED_ID={made.id} {word}_APP_CRED_SECRET={made.secret}")


def volumes():
    from cinderclient import client

    env = os.environ
    cinder = client.Client(
        "3.60", session=login(env["OS_AUTH_URL"], env["OS_USERNAME"], env["OS_PASSWORD"], env["OS_PROJECT_NAME"])
    )
    end = time.monotonic() + 90
    while sum(service.state == "up" for service in cinder.services.list()) < 2:
        if time.monotonic() > end:
            sys.exit("Cinder's scheduler and volume service don't report")
        time.sleep(0.2)
    find_or_make(cinder.volume_types, "plain")
    # The RBD driver takes this provider alone, and makes LUKS1 with AES-256-XTS of a 256 bit key:
    # that Barbican's simple_crypto generates; it refuses to make one of 512.
    encrypted = find_or_make(cinder.volume_types, "encrypted")
    if not getattr(encrypted.manager.api.volume_encryption_types.get(encrypted), "provider", None):
        cinder.volume_encryption_types.create(
            encrypted,
            {"provider": "luks", "cipher": "aes-xts-plain64", "key_size": 256, "control_location": "front-end"},
        )


POLICY = """
path "kv1/castellan/*"             { capabilities = ["create", "read", "update", "delete", "list"] }
path "secret/data/castellan/*"     { capabilities = ["create", "read", "update", "delete", "list"] }
path "secret/metadata/castellan/*" { capabilities = ["read", "list"] }
path "kv1/*"                       { capabilities = ["read"] }
path "secret/data/*"               { capabilities = ["read"] }
path "kv1/denied/*"                { capabilities = ["deny"] }
path "secret/data/denied/*"        { capabilities = ["deny"] }
"""


def bao(init_file, address):
    http = requests.Session()
    http.trust_env = False

    def ask(method, path, body=None, may_exist=False):
        reply = http.request(method, f"{address}/v1/{path}", json=body, timeout=30)
        if reply.status_code == 400 and may_exist and "in use" in reply.text:
            return {}
        if not reply.ok:
            sys.exit(f"{method} {path}: HTTP {reply.status_code} {reply.text}")
        return reply.json() if reply.content else {}

    def until_ready():
        # After it is unsealed, it becomes the leader first.
        end = time.monotonic() + 30
        while http.get(f"{address}/v1/sys/health", timeout=10).status_code != 200:
            if time.monotonic() > end:
                sys.exit("OpenBao isn't ready")
            time.sleep(0.1)

    if not ask("GET", "sys/init")["initialized"]:
        made = ask("PUT", "sys/init", {"secret_shares": 1, "secret_threshold": 1})
        with open(init_file, "w") as file:
            json.dump(made, file)
    with open(init_file) as file:
        made = json.load(file)
    ask("PUT", "sys/unseal", {"key": made["keys_base64"][0]})
    until_ready()
    http.headers["X-Vault-Token"] = made["root_token"]
    ask("POST", "sys/mounts/kv1", {"type": "kv", "options": {"version": "1"}}, may_exist=True)
    ask("POST", "sys/mounts/secret", {"type": "kv", "options": {"version": "2"}}, may_exist=True)
    ask("POST", "sys/auth/approle", {"type": "approle"}, may_exist=True)
    ask("PUT", "sys/policies/acl/sealblk", {"policy": POLICY})
    ask("POST", "auth/approle/role/sealblk", {"token_policies": "sealblk", "token_ttl": "1h"})
    role = ask("GET", "auth/approle/role/sealblk/role-id")["data"]["role_id"]
    secret = ask("POST", "auth/approle/role/sealblk/secret-id", {})["data"]["secret_id"]
    token = ask("POST", "auth/token/create", {"policies": ["sealblk"], "ttl": "1h", "no_parent": True})["auth"]["client_token"]
    print(f"export BAO_URL={address} BAO_ROOT_TOKEN={made['root_token']} BAO_TOKEN={token}")
    print(f"export BAO_UNSEAL_KEY={made['keys_base64'][0]} BAO_ROLE_ID={role} BAO_SECRET_ID={secret}")


VERBS = {"identity": identity, "volumes": volumes, "bao": bao}

if __name__ == "__main__":
    if len(sys.argv) < 2 or sys.argv[1] not in VERBS:
        sys.exit(__doc__)
    VERBS[sys.argv[1]](*sys.argv[2:])
