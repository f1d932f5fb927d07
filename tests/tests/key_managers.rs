//! Keys from key managers: what opens a volume is what Nova and Cinder make of the secret, and what
//! goes wrong is told apart.
//!
//! A KMIP server is started here. Tests in modules `openstack_...` need Keystone, Barbican and
//! OpenBao, which `scripts/openstack.sh` starts; their addresses come in the environment.

#[path = "key_managers/check.rs"]
mod check;
#[path = "key_managers/kmip.rs"]
mod kmip;
#[path = "key_managers/openstack_barbican.rs"]
mod openstack_barbican;
#[path = "key_managers/openstack_vault.rs"]
mod openstack_vault;
