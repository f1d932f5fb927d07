"""Servers that require encryption, and the veto against giving them a plain disk.

Contract: the flavor's ``sealblk:require`` and the image's ``sealblk_require`` say ``volumes`` (every
volume is one of ours) or ``all`` (no local disk either: no root or ephemeral disk, no swap, no config
drive). The stronger of the two holds. A word that isn't known is refused, not ignored.
"""

from sealblk_openstack import errors

FLAVOR, IMAGE = "sealblk:require", "image_sealblk_require"
VOLUMES, ALL = "volumes", "all"
_STRENGTH = {None: 0, VOLUMES: 1, ALL: 2}


def mode(instance, flavor=None):
    """What ``instance`` requires (with another flavor, when it is being resized)."""
    flavor = flavor or instance.flavor
    wanted = [
        ("flavor", flavor.extra_specs.get(FLAVOR)),
        ("image", instance.system_metadata.get(IMAGE)),
    ]
    for where, word in wanted:
        if word not in _STRENGTH:
            raise errors.Unmet(
                f"The {where} requires sealblk '{str(word)[:40]}', which is unknown: volumes or all"
            )
    return max((word for _, word in wanted), key=_STRENGTH.get)


def check_volume(instance, volume, ours, flavor=None):
    """The veto for one volume; ``ours``: whether sealblk would serve it."""
    if not ours and mode(instance, flavor):
        raise errors.Unmet(
            f"Volume {volume} is not encrypted by sealblk, but the server's flavor or image requires "
            "it: use a volume of an encrypted type"
        )


def check_local(instance, mapping, flavor=None):
    """The veto for local disks; ``mapping`` is of nova.virt.libvirt.blockinfo."""
    local = sorted(name for name in mapping if name.startswith("disk"))
    if local and mode(instance, flavor) == ALL:
        raise errors.Unmet(
            "The server's flavor or image requires all disks to be encrypted by sealblk, but it would "
            f"have local ones ({', '.join(local)}): boot from an encrypted volume"
        )
