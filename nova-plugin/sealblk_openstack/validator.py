"""Nova's check of flavor extra specs, so that a typo fails when a flavor is made, not when it's used.

Loaded by nova-api (entry point nova.api.extra_spec_validators) from microversion 2.86 on. Knowing the
namespace means that any other sealblk:… is refused, too.
"""

from nova.api.validation.extra_specs import base


def register():
    return [
        base.ExtraSpecValidator(
            name="sealblk:require",
            description=(
                "What must be encrypted by sealblk: 'volumes' (each volume of the server) or 'all' "
                "(in addition, the server has no local disk)."
            ),
            value={
                "type": str,
                "description": "How much must be encrypted.",
                "enum": ["volumes", "all"],
            },
        ),
        base.ExtraSpecValidator(
            name="sealblk:key_access",
            description=(
                "Who fetches the keys: 'user' (the owner's token), 'deployment' (the node's service "
                "identity) or 'host' (kept sealed on the node)."
            ),
            value={
                "type": str,
                "description": "Access to the keys.",
                "enum": ["user", "deployment", "host"],
            },
        ),
    ]
