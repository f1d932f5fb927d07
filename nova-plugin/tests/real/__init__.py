"""Real parts: Nova's libvirt driver with the plugin, libvirtd, QEMU, sealblk-agent, sealblkd.

No OpenStack service runs in test_local.py; test_openstack.py has Keystone, Barbican and Cinder, too.
Run by scripts/libvirt-test.sh and scripts/openstack-test.sh.
"""
