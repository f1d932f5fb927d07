"""A key's way to the agent."""

import errno
import os
import types
import unittest
from unittest import mock

from castellan.common import exception as castellan_exception
from castellan.common.objects import opaque_data
from castellan.common.objects import passphrase
from castellan.common.objects import symmetric_key
from os_brick import utils as brick_utils

from sealblk_openstack import errors
from sealblk_openstack import keys

VOLUME = "5b111111-2222-4333-8444-555555555555"


class KeysTest(unittest.TestCase):
    def manager(self, **kwargs):
        manager = types.SimpleNamespace(get=mock.Mock(**kwargs))
        patch = mock.patch.object(keys.key_manager, "API", return_value=manager)
        patch.start()
        self.addCleanup(patch.stop)
        return manager

    def read(self, secret):
        manager = self.manager(return_value=secret)
        with keys.descriptor("context", VOLUME, "id") as fd:
            manager.get.assert_called_once_with("context", "id")
            return os.pread(fd, 9999, 0)

    def test_the_passphrase_is_what_os_brick_would_use(self):
        for secret in (
            symmetric_key.SymmetricKey("AES", 256, bytes(range(32))),
            opaque_data.OpaqueData(b"\xff\x00z"),
            passphrase.Passphrase(b"caf\xc3\xa9 / words"),
        ):
            with self.subTest(type(secret)):
                expected = brick_utils.get_passphrase_from_secret(secret)
                self.assertEqual(expected.encode(), self.read(secret))

    def test_the_descriptor_is_sealed_at_its_start_and_closed_afterwards(self):
        self.manager(return_value=symmetric_key.SymmetricKey("AES", 8, b"\x01"))
        with keys.descriptor("context", VOLUME, "id") as fd:
            self.assertEqual(0, os.lseek(fd, 0, os.SEEK_CUR))
            with self.assertRaises(PermissionError):
                os.write(fd, b"x")
            with self.assertRaises(PermissionError):
                os.ftruncate(fd, 0)
        with self.assertRaises(OSError) as caught:
            os.fstat(fd)
        self.assertEqual(errno.EBADF, caught.exception.errno)

    def test_our_copy_is_overwritten(self):
        self.manager(return_value=symmetric_key.SymmetricKey("AES", 8, b"\x01"))
        kept = []
        wipe = keys._wipe
        with mock.patch.object(keys, "_wipe", lambda s: (wipe(s), kept.append(bytes(s)))):
            with keys.descriptor("context", VOLUME, "id") as fd:
                self.assertEqual([b"\0\0"], kept)
                self.assertEqual(b"01", os.pread(fd, 9, 0))

    def test_what_key_managers_say_is_told_apart(self):
        def wrapped(status):
            error = castellan_exception.KeyManagerError(reason="http://barbican/secret")
            error.__context__ = Status(status)
            return error

        for raised, expected in (
            (castellan_exception.ManagedObjectNotFoundError(uuid="id"), errors.KeyMissing),
            (castellan_exception.Forbidden(), errors.KeyDenied),
            (castellan_exception.InsufficientCredentialDataError(), errors.KeyDenied),
            (wrapped(401), errors.KeyDenied),
            (wrapped(403), errors.KeyDenied),
            (wrapped(404), errors.KeyMissing),
            (wrapped(503), errors.KeyUnreachable),
            (castellan_exception.KeyManagerError(reason="x"), errors.KeyUnreachable),
            (OSError("no route to 10.0.0.1"), errors.KeyUnreachable),
        ):
            with self.subTest(repr(raised)):
                manager = self.manager(side_effect=raised)
                with self.assertRaises(expected) as caught, keys.descriptor(None, VOLUME, "id"):
                    self.fail("got a key")
                self.assertNotIn("barbican", caught.exception.format_message())
                self.assertNotIn("10.0.0.1", caught.exception.format_message())
                manager.get.assert_called_once()

    def test_secrets_that_are_no_passphrase(self):
        for secret in (b"", b"x" * 5000):
            self.manager(return_value=opaque_data.OpaqueData(secret))
            with self.assertRaises(errors.KeyWrong), keys.descriptor(None, VOLUME, "id"):
                self.fail("took it")


class Status(Exception):
    def __init__(self, status_code):
        super().__init__(status_code)
        self.status_code = status_code
