"""What can go wrong, in words for the user whose server it concerns.

Contract: a message names the volume or the server, what failed and what to do. It reaches the user
(instance fault, instance action), so it holds no host path, no address and no key; those are in
nova-compute's log. Nova cuts faults at 255 characters and puts a prefix before them.
"""

from nova import exception


class SealError(exception.NovaException):
    """Any failure of ours. Nova may try another host."""

    msg_fmt = "%(reason)s"

    def __init__(self, reason, **kwargs):
        super().__init__(reason=reason, **kwargs)


class Refused(SealError, exception.VolumeEncryptionNotSupported):
    """Not here and not on another host either.

    Nova aborts a build on VolumeEncryptionNotSupported instead of trying other hosts.
    """


class NotPossible(Refused, NotImplementedError):
    """An operation that servers with volumes of ours don't have.

    Nova leaves a server as it was on NotImplementedError.
    """


class Unmet(Refused):
    """The server requires encryption and would have got a plain disk."""


class Misconfigured(SealError):
    """This node isn't as nova.conf says; for the operator."""


class AgentError(SealError):
    """The agent answered with an error of ``kind`` (docs/agent-protocol.md).

    ``detail`` is its own message, which may name devices and key managers: for logs only.
    """

    kind = "internal"
    text = "sealblk's agent failed; see its log"

    def __init__(self, volume=None, detail=""):
        self.volume = volume
        self.detail = detail
        super().__init__(f"Volume {volume}: {self.text}" if volume else self.text)


class AgentUnreachable(AgentError):
    """No answer: the agent isn't running, or hangs."""

    kind = "unreachable"
    text = "sealblk's agent on the compute node doesn't answer; try again, or tell the operator"


class AgentInvalid(AgentError):
    kind = "invalid"
    text = "sealblk's agent doesn't understand the request; the operator finds both in the logs"


class AgentRefused(AgentError):
    kind = "refused"
    text = (
        "sealblk's agent doesn't accept requests of nova-compute; the operator must allow its user"
    )


class NotFound(AgentError):
    kind = "not-found"
    text = "sealblk's agent doesn't know it"


class Conflict(AgentError):
    kind = "conflict"
    text = "it is in use by another server, or from another device, on this compute node"


class Unsupported(Refused, AgentError):
    kind = "unsupported"
    text = "its encryption format or cipher is not supported"


class NotEncrypted(Refused, AgentError):
    kind = "not-encrypted"
    text = "it has no LUKS header and may not be formatted (not empty?); nothing was written to it"


class BadHeader(Refused, AgentError):
    kind = "header"
    text = "its LUKS header is damaged; nothing was written to it"


class KeyDenied(Refused, AgentError):
    kind = "key-denied"
    text = "the key manager refuses access to its key (owner, roles, ACL?)"


class KeyMissing(Refused, AgentError):
    kind = "key-missing"
    text = "the key manager has no such key; was the secret deleted?"


class KeyUnreachable(AgentError):
    kind = "key-unreachable"
    text = "the key manager doesn't answer or fails; try again"


class KeyWrong(Refused, AgentError):
    kind = "key-wrong"
    text = "the key from the key manager doesn't open it"


class VolumeTrouble(AgentError):
    kind = "volume"
    text = "its storage can't be opened on the compute node (absent, in use, or failing)"


class AgentTimeout(AgentError):
    kind = "timeout"
    text = "it wasn't ready in time; try again"


KINDS = {
    cls.kind: cls
    for cls in (
        AgentError,
        AgentInvalid,
        AgentRefused,
        NotFound,
        Conflict,
        Unsupported,
        NotEncrypted,
        BadHeader,
        KeyDenied,
        KeyMissing,
        KeyUnreachable,
        KeyWrong,
        VolumeTrouble,
        AgentTimeout,
    )
}
