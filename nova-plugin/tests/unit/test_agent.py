"""The client of the protocol: answers of every kind, senseless ones, and none."""

import json
import os
import socket
import tempfile
import threading
import unittest

import agents

from sealblk_openstack import agent
from sealblk_openstack import errors

INSTANCE = "11111111-2222-4333-8444-555555555555"
VOLUME = "5b111111-2222-4333-8444-555555555555"
KINDS = [
    "invalid",
    "refused",
    "not-found",
    "conflict",
    "unsupported",
    "not-encrypted",
    "header",
    "key-denied",
    "key-missing",
    "key-unreachable",
    "key-wrong",
    "volume",
    "timeout",
    "internal",
]


class Once:
    """A listener that gives each connection one answer: bytes, or None to hang up."""

    def __init__(self, path, answer):
        self.listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.listener.bind(path)
        self.listener.listen()
        self.answer = answer
        threading.Thread(target=self.run, daemon=True).start()

    def run(self):
        connection, _ = self.listener.accept()
        with connection:
            connection.recv(agent.MESSAGE_MAX)
            if self.answer is not None:
                connection.send(self.answer)
        self.listener.close()


class AgentTest(unittest.TestCase):
    def setUp(self):
        directory = tempfile.TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        self.path = os.path.join(directory.name, "agent.sock")
        self.directory = directory.name
        self.client = agent.Agent(self.path, 10, 10)

    def fake(self):
        fake = agents.Fake(self.directory).start()
        self.addCleanup(fake.stop)
        return fake

    def test_each_kind_of_error_has_its_class_and_tells_no_path(self):
        fake = self.fake()
        for kind in KINDS:
            with self.subTest(kind):
                fake.fail(detach=kind)
                with self.assertRaises(errors.KINDS[kind]) as caught:
                    self.client.detach(INSTANCE, VOLUME)
                text = caught.exception.format_message()
                self.assertIs(errors.KINDS[kind], type(caught.exception))
                self.assertIn(VOLUME, text)
                self.assertNotIn("/", text)
                self.assertIn("/dev/secret-path", caught.exception.detail)
                # Nova cuts at 255, after "Build of instance UUID aborted: ".
                self.assertLess(len(text), 255 - 68)
        self.assertEqual(set(KINDS), set(errors.KINDS))

    def test_a_kind_of_tomorrow_is_an_agent_error(self):
        self.fake().fail(park="brand-new")
        with self.assertRaises(errors.AgentError):
            self.client.park(INSTANCE, VOLUME)

    def test_answers_that_make_no_sense(self):
        for answer in (
            b"",
            b"\xff",
            b"[]",
            b"{}",
            b'"ok"',
            b'{"ok": 1}',
            b'{"error": {"message": "x"}}',
            b'{"error": ["kind"]}',
            b"[" * 50_000,
            b'{"ok": {"x": "' + b"x" * agent.MESSAGE_MAX + b'"}}',
        ):
            with self.subTest(answer[:30]):
                Once(self.path, answer)
                with self.assertRaises(errors.AgentError):
                    self.client.resize(INSTANCE, VOLUME)
                os.unlink(self.path)

    def test_an_agent_that_is_not_there_hangs_up_or_hangs(self):
        with self.assertRaises(errors.AgentUnreachable):
            self.client.hello()
        Once(self.path, None)
        with self.assertRaises(errors.AgentUnreachable):
            self.client.hello()
        os.unlink(self.path)
        self.fake().fail(hello="silent")
        with self.assertRaises(errors.AgentUnreachable):
            agent.Agent(self.path, 0.05, 0.05).hello()

    def test_another_version_of_the_protocol_is_refused(self):
        Once(self.path, json.dumps({"ok": {"version": "9", "api": 2}}).encode())
        with self.assertRaisesRegex(errors.Misconfigured, "same release of both"):
            self.client.hello()

    def test_lists_in_parts_are_read_to_the_end(self):
        fake = self.fake()
        wanted = [f"{n}" + INSTANCE[1:] for n in range(5)]
        for instance in wanted:
            fake.ask(op="test", do="lost", instance=instance, volume=VOLUME)
        self.assertEqual(wanted, [e["instance"] for e in self.client.instances()])
        self.assertEqual({VOLUME}, set(self.client.volumes(wanted[3])))
        self.assertEqual({}, self.client.volumes("9" + INSTANCE[1:]))

    def test_requests_from_many_threads(self):
        self.fake()
        results = []
        threads = [
            threading.Thread(target=lambda: results.append(self.client.hello()["api"]))
            for _ in range(32)
        ]
        for t in threads:
            t.start()
        for t in threads:
            t.join()
        self.assertEqual([1] * 32, results)
