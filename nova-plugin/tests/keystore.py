"""A castellan key manager whose secrets are files: [key_manager] backend = keystore.Keystore.

A file holds the passphrase that a secret makes (hexadecimal digits), so that an agent may read it too.
Who may read is by the file's name: ID.denied refuses, as Barbican does for a foreign project.
"""

import binascii
import os

from castellan.common import exception
from castellan.common.objects import symmetric_key
from castellan.key_manager import key_manager

DIRECTORY = None
# Requests of nova-compute itself have no user and no token: Barbican refuses them.
TOKEN_NEEDED = True


class Keystore(key_manager.KeyManager):
    def __init__(self, configuration):
        super().__init__(configuration)

    def get(self, context, managed_object_id, metadata_only=False):
        path = os.path.join(DIRECTORY, managed_object_id)
        if TOKEN_NEEDED and not context.user_id:
            raise exception.InsufficientCredentialDataError()
        if os.path.exists(path + ".denied"):
            raise exception.Forbidden()
        if os.path.exists(path + ".down"):
            raise exception.KeyManagerError(reason="http://barbican.internal:9311 refused")
        try:
            with open(path, "rb") as f:
                secret = binascii.unhexlify(f.read())
        except FileNotFoundError as e:
            raise exception.ManagedObjectNotFoundError(uuid=managed_object_id) from e
        return symmetric_key.SymmetricKey("AES", len(secret) * 8, secret)

    def _unsupported(self, *args, **kwargs):
        raise NotImplementedError

    create_key = create_key_pair = store = copy = delete = list = _unsupported
    add_consumer = remove_consumer = _unsupported
