"""What ``compute_driver = sealblk.SealLibvirtDriver`` imports; everything is in sealblk_openstack.

Nova looks for drivers below ``nova.virt`` only, so this file must lie in Nova's own directory.
"""

from sealblk_openstack.driver import SealLibvirtDriver

__all__ = ["SealLibvirtDriver"]
