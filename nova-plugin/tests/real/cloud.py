"""The people of scripts/openstack.sh's cloud, and its services as they use them.

Addresses and credentials come in the environment (``. DIR/env``).
"""

import os
import time

from barbicanclient import client as barbican_client
from cinderclient import client as cinder_client
from keystoneauth1 import session
from keystoneauth1.identity import v3

from nova import context

ENV = os.environ


class Person:
    """A user of the cloud with a token, as nova-api hands it to nova-compute."""

    def __init__(self, name, password, project):
        auth = v3.Password(
            auth_url=ENV["OS_AUTH_URL"], username=name, password=password, project_name=project,
            user_domain_id="default", project_domain_id="default",
        )  # fmt: skip
        self.session = session.Session(auth=auth)
        access = auth.get_access(self.session)
        self.context = context.RequestContext(
            user_id=access.user_id,
            project_id=access.project_id,
            roles=access.role_names,
            auth_token=access.auth_token,
            service_catalog=[_entry(service) for service in access.service_catalog.catalog],
        )
        self.cinder = cinder_client.Client("3.60", session=self.session)
        self.barbican = barbican_client.Client(session=self.session, endpoint=ENV["BARBICAN_URL"])

    @classmethod
    def alice(cls):
        return cls("alice", ENV["ALICE_PASSWORD"], ENV["ALICE_PROJECT"])

    @classmethod
    def mallory(cls):
        return cls("mallory", ENV["MALLORY_PASSWORD"], ENV["MALLORY_PROJECT"])

    def encrypted_volume(self):
        """A new volume of 1 GiB of the encrypted type."""
        volume = self.cinder.volumes.create(1, volume_type="encrypted")
        end = time.monotonic() + 120
        while volume.status in ("creating", "downloading"):
            assert time.monotonic() < end, f"volume {volume.id} is still {volume.status}"
            time.sleep(0.2)
            volume = self.cinder.volumes.get(volume.id)
        assert volume.status == "available", f"volume {volume.id} is {volume.status}"
        return volume.id

    def key_id(self, volume):
        return self.cinder.volumes.get_encryption_metadata(volume)["encryption_key_id"]

    def reference(self, key_id):
        return f"{ENV['BARBICAN_URL']}/v1/secrets/{key_id}"

    def passphrase(self, volume):
        """As os-brick makes it of Barbican's bytes."""
        return self.barbican.secrets.get(self.reference(self.key_id(volume))).payload.hex().encode()

    def let_read(self, key_id, user_id):
        """An ACL that names the user."""
        self.barbican.acls.create(
            entity_ref=self.reference(key_id), users=[user_id], project_access=True
        ).submit()


def _entry(service):
    """A service of Keystone's catalogue in the form that nova-api's middleware gives it."""
    regions = {}
    for endpoint in service["endpoints"]:
        found = regions.setdefault(endpoint["region"], {"region": endpoint["region"]})
        found[endpoint["interface"] + "URL"] = endpoint["url"]
    return {"type": service["type"], "name": service["name"], "endpoints": list(regions.values())}
