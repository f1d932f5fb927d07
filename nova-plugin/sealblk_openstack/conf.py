"""The options of ``[sealblk]`` in nova.conf. nova-plugin/etc/sealblk.conf.sample is made from them."""

from oslo_config import cfg

GROUP = cfg.OptGroup("sealblk", title="Encrypted volumes served by sealblk")

OPTIONS = [
    cfg.StrOpt(
        "agent_socket",
        default="/run/sealblk-agent/agent.sock",
        help="The socket of sealblk-agent on this node. nova-compute's user must be among the "
        "agent's allow_users.",
    ),
    cfg.IntOpt(
        "agent_timeout",
        default=30,
        min=1,
        max=3600,
        help="Seconds to wait for an answer of the agent, other than to an attachment.",
    ),
    cfg.IntOpt(
        "ready_timeout",
        default=60,
        min=1,
        max=3600,
        help="Seconds until a volume must be ready for QEMU. Longer than the agent's own limits "
        "for the key manager and the storage, so that its reason arrives.",
    ),
    cfg.ListOpt(
        "adopt_providers",
        default=["luks", "luks2"],
        help="Encryption providers of Cinder's volume types whose volumes are served by sealblk. "
        "The old names of a provider belong to it. All other volumes are Nova's as before.",
    ),
    cfg.BoolOpt(
        "format_new_volumes",
        default=True,
        help="Format a volume of an adopted type at its first attachment. Cinder creates such "
        "volumes empty and leaves that to Nova. The agent formats only a volume on which nothing "
        "was ever written.",
    ),
    cfg.StrOpt(
        "key_access",
        default="user",
        choices=[
            ("user", "By the user's token: nothing starts without its owner's request."),
            ("deployment", "By the node's service identity, also after a host reboot."),
            ("host", "Kept sealed on the node (TPM), also after a host reboot."),
        ],
        help="Who fetches a volume's key, unless the flavor says so (sealblk:key_access). The "
        "words are Nova's for vTPM.",
    ),
    cfg.StrOpt(
        "key_source",
        default="barbican:{key_id}",
        help="What the agent fetches by itself (key_access deployment and host). {key_id} is the "
        "id that Cinder keeps with the volume; for Vault: vault:PATH/{key_id}.",
    ),
    cfg.StrOpt(
        "memory_backing",
        default="memfd",
        choices=[
            ("memfd", "Every guest of this node is born with shared memory."),
            ("none", "Only guests with huge pages or file_backed_memory can have sealblk volumes."),
        ],
        help="vhost-user needs memory that is shared with QEMU, and a running guest can't get it "
        "afterwards. memfd can be overcommitted as before, but KSM doesn't merge it.",
    ),
    cfg.IntOpt(
        "queues",
        default=1,
        min=1,
        max=64,
        help="Queues of each volume, and threads that serve them.",
    ),
    cfg.IntOpt(
        "reconnect",
        default=1,
        min=1,
        max=60,
        help="Seconds between QEMU's attempts to reach sealblkd when it was restarted.",
    ),
    cfg.BoolOpt(
        "allow_untested",
        default=False,
        help="Start on a Nova whose inner interfaces this version of the plugin doesn't know. For "
        "trials: a changed interface may fail in the middle of an operation.",
    ),
]


def register(conf):
    """Adds the options to Nova's configuration; again is harmless."""
    conf.register_group(GROUP)
    conf.register_opts(OPTIONS, group=GROUP)


def list_opts():
    """For oslo-config-generator (entry point oslo.config.opts)."""
    return [(GROUP, OPTIONS)]
