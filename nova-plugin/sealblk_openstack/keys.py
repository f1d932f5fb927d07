"""A volume's key on its way from the key manager to the agent: castellan -> sealed memfd -> descriptor.

Contract: the bytes are what os-brick would type at cryptsetup: a secret of type passphrase as it is,
any other as lowercase hexadecimal digits. They are written to memory that only the descriptor names,
sealed, and our own copy is overwritten. Castellan's copies are Python's immutable bytes: they go when
the collector takes them, which is why hardened nodes use key_access ``deployment`` or ``host``, where
no key passes through nova-compute.
"""

import binascii
import contextlib
import fcntl
import os

from castellan import key_manager
from castellan.common import exception as castellan_exception
from castellan.common.objects import passphrase
import nova.conf
from oslo_log import log as logging

from sealblk_openstack import errors

LOG = logging.getLogger(__name__)

# Bytes of a passphrase: LUKS tools accept no more from a terminal either.
PASSPHRASE_MAX = 8192
# How deep to look for the error that a key manager's client raised first.
_CAUSES_MAX = 8
_STATUS = {401: errors.KeyDenied, 403: errors.KeyDenied, 404: errors.KeyMissing}
_DENIED = (
    castellan_exception.Forbidden,
    castellan_exception.AuthTypeInvalidError,
    castellan_exception.InsufficientCredentialDataError,
)
_SEALS = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE


@contextlib.contextmanager
def descriptor(context, volume, key_id):
    """A sealed memfd with the passphrase of ``key_id``, fetched with the request's context."""
    secret = _fetch(context, volume, key_id)
    try:
        fd = os.memfd_create("sealblk-key", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            view = memoryview(secret)
            while view:
                view = view[os.write(fd, view) :]
            os.lseek(fd, 0, os.SEEK_SET)
            fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS)
            _wipe(secret)
            yield fd
        finally:
            os.close(fd)
    finally:
        _wipe(secret)


def _fetch(context, volume, key_id):
    try:
        key = key_manager.API(nova.conf.CONF).get(context, key_id)
        encoded = key.get_encoded()
    except Exception as e:
        # The text of such an error names URLs and roles: for the log alone.
        LOG.error("volume %s: fetching its key %s: %s: %s", volume, key_id, type(e).__name__, e)
        raise _error(e)(volume, str(e)) from e
    if isinstance(encoded, str):
        encoded = encoded.encode()
    if not isinstance(key, passphrase.Passphrase):
        encoded = binascii.hexlify(encoded or b"")
    if not encoded or len(encoded) > PASSPHRASE_MAX:
        raise errors.KeyWrong(
            volume, f"the secret makes a passphrase of {len(encoded or b'')} bytes"
        )
    return bytearray(encoded)


def _error(e):
    if isinstance(e, castellan_exception.ManagedObjectNotFoundError):
        return errors.KeyMissing
    if isinstance(e, _DENIED):
        return errors.KeyDenied
    # Castellan's Barbican driver wraps all else; the client's error beneath has the HTTP status.
    seen = e
    for _ in range(_CAUSES_MAX):
        status = getattr(seen, "status_code", None) or getattr(seen, "http_status", None)
        if status in _STATUS:
            return _STATUS[status]
        seen = seen.__cause__ or seen.__context__
        if seen is None:
            break
    return errors.KeyUnreachable


def _wipe(secret):
    secret[:] = bytes(len(secret))
