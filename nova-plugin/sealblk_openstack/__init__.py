"""Nova's side of sealblk: encrypted volumes served to guests by vhost-user-blk.

``driver`` overrides a dozen methods of Nova's libvirt driver; every other module holds one idea and
can be read alone. Decisions about keys, devices and processes are the agent's (docs/agent-protocol.md).
"""
