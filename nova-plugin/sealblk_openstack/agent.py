"""The client of sealblk-agent: docs/agent-protocol.md from the asking side.

Contract: each call is one connection, one message, one answer, within a time limit; so that it may
be used from any thread (or greenlet: only plain methods of the socket are used). Errors are the
classes of ``errors``. Every request is idempotent, therefore nothing here remembers anything.

Left out on purpose: retries. An attachment that fails is Nova's to repeat.
"""

import array
import contextlib
import json
import socket

from oslo_log import log as logging

from sealblk_openstack import errors

LOG = logging.getLogger(__name__)

# The protocol's version that this client speaks.
API = 1
# Bytes of a message, either way.
MESSAGE_MAX = 128 * 1024
# Parts of a long answer: more than any node has instances.
PARTS_MAX = 10_000


class Agent:
    """``timeout`` and ``ready_timeout`` are seconds."""

    def __init__(self, path, timeout, ready_timeout):
        self._path = path
        self._timeout = timeout
        self._ready_timeout = ready_timeout

    def hello(self):
        """The agent's version and abilities; an error when it speaks another protocol."""
        answer = self._ask({"op": "hello"})
        if answer.get("api") != API:
            raise errors.Misconfigured(
                f"sealblk-agent {answer.get('version')} speaks version {answer.get('api')} of its "
                f"protocol, this plugin {API}: install the same release of both"
            )
        return answer

    def attach(self, request, key=None):
        """Serves a volume; ``key`` is a descriptor that holds the passphrase."""
        request = dict(request, op="attach")
        return self._ask(request, descriptor=key, timeout=self._ready_timeout)

    def park(self, instance, volume):
        return self._ask({"op": "park", "instance": instance, "volume": volume})

    def detach(self, instance, volume):
        return self._ask({"op": "detach", "instance": instance, "volume": volume})

    def resize(self, instance, volume):
        return self._ask({"op": "resize", "instance": instance, "volume": volume})

    def forget(self, instance):
        return self._ask({"op": "forget", "instance": instance})

    def instances(self):
        """Everything that the node serves, all parts of the answer put together."""
        found, request = [], {"op": "list"}
        for _ in range(PARTS_MAX):
            answer = self._ask(request)
            found += _objects(answer, "instances")
            if not answer.get("next"):
                return found
            request["after"] = answer["next"]
        raise errors.AgentError(detail="list: the answer has no end")

    def volumes(self, instance):
        """What ``list`` tells of an instance's volumes, by their ids."""
        answer = self._ask({"op": "list", "instance": instance})
        return {
            found.get("volume"): found
            for entry in _objects(answer, "instances")
            if entry.get("instance") == instance
            for found in _objects(entry, "volumes")
        }

    def _ask(self, request, descriptor=None, timeout=None):
        volume = request.get("volume")
        message = json.dumps(request).encode()
        if len(message) > MESSAGE_MAX:
            raise errors.AgentInvalid(volume, f"the request has {len(message)} bytes")
        try:
            answer = self._exchange(message, descriptor, timeout or self._timeout)
        except OSError as e:
            detail = f"{self._path}: {e}"
            LOG.error("sealblk-agent: %s of %s: %s", request["op"], volume, detail)
            raise errors.AgentUnreachable(volume, detail) from e
        return _result(request, volume, answer)

    def _exchange(self, message, descriptor, timeout):
        with contextlib.closing(socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)) as s:
            s.settimeout(timeout)
            s.connect(self._path)
            if descriptor is None:
                s.send(message)
            else:
                rights = array.array("i", [descriptor])
                s.sendmsg([message], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)])
            answer = s.recv(MESSAGE_MAX + 1)
        if not answer:
            raise ConnectionResetError("the agent hung up without an answer")
        return answer


def _result(request, volume, answer):
    """The ``ok`` of an answer, or its error as an exception."""
    try:
        if len(answer) > MESSAGE_MAX:
            raise ValueError("it is too long")
        answer = json.loads(answer)
        if isinstance(answer.get("ok"), dict):
            return answer["ok"]
        kind, detail = str(answer["error"]["kind"]), str(answer["error"]["message"])
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as e:
        LOG.error("sealblk-agent: %s of %s: senseless answer: %r", request["op"], volume, e)
        raise errors.AgentError(volume, "its answer makes no sense") from e
    LOG.error("sealblk-agent: %s of %s: %s (%s)", request["op"], volume, detail, kind)
    raise errors.KINDS.get(kind, errors.AgentError)(volume, detail)


def _objects(answer, name):
    """A list of objects in an answer; anything else in there counts as absent."""
    found = answer.get(name)
    return [o for o in found if isinstance(o, dict)] if isinstance(found, list) else []
