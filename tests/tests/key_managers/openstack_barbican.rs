//! Barbican: a tenant's secret, read by a service user whom its ACL names.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use sealblk_tests::Scratch;

use super::check::{SECRET, fails, hex, opens, private, python};

struct World {
    scratch: Scratch,
}

pub(super) fn env(name: &str) -> Result<String> {
    std::env::var(name).with_context(|| format!("{name} isn't set: source openstack.sh's DIR/env"))
}

pub(super) fn secrets(arguments: &[&str]) -> Result<String> {
    let program = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/key_managers/secrets.py");
    let all: Vec<&str> = std::iter::once(program).chain(arguments.iter().copied()).collect();
    python(&Path::new(&env("OPENSTACK_VENV")?).join("bin/python"), &all)
}

impl World {
    fn new() -> Result<Self> {
        Ok(Self { scratch: Scratch::new()? })
    }

    fn store(&self, kind: &str, secret: &[u8]) -> Result<String> {
        Ok(format!("barbican:{}", secrets(&["barbican", "store", kind, &hex(secret)])?))
    }

    /// keys.toml for the application credential of `SEALBLK` or `STRANGER`.
    fn managers(&self, who: &str, more: &str) -> Result<PathBuf> {
        let secret =
            private(&self.scratch.file("secret"), &env(&format!("{who}_APP_CRED_SECRET"))?)?;
        let id = env(&format!("{who}_APP_CRED_ID"))?;
        self.configure(&format!(
            "application_credential_id = \"{id}\"\napplication_credential_secret_file = {secret:?}\n{more}"
        ))
    }

    fn configure(&self, lines: &str) -> Result<PathBuf> {
        let text = format!("[barbican]\nauth_url = \"{}\"\n{lines}", env("OS_AUTH_URL")?);
        private(&self.scratch.file("keys.toml"), &text)
    }
}

#[test]
fn every_type_of_secret_gives_the_passphrase_that_nova_makes_of_it() -> Result<()> {
    let world = World::new()?;
    let managers = world.managers("SEALBLK", "")?;
    for kind in ["symmetric", "opaque"] {
        let key = world.store(kind, &SECRET)?;
        opens(&managers, &key, hex(&SECRET).as_bytes(), world.scratch.path()).context(kind)?;
    }
    let key = world.store("passphrase", "Pässwort".as_bytes())?;
    opens(&managers, &key, "Pässwort".as_bytes(), world.scratch.path()).context("passphrase")
}

#[test]
fn a_password_and_a_configured_endpoint_do_as_well() -> Result<()> {
    let world = World::new()?;
    let key = world.store("symmetric", &SECRET)?;
    let password =
        private(&world.scratch.file("password"), &format!("{}\n", env("SEALBLK_PASSWORD")?))?;
    let managers = world.configure(&format!(
        "endpoint = \"{}\"\nusername = \"sealblk\"\npassword_file = {password:?}\n\
         project_name = \"service\"\nuser_domain_id = \"default\"\nproject_domain_id = \"default\"\n",
        env("BARBICAN_URL")?
    ))?;
    opens(&managers, &key, hex(&SECRET).as_bytes(), world.scratch.path())
}

#[test]
fn what_goes_wrong_is_told_apart() -> Result<()> {
    let world = World::new()?;
    let key = world.store("symmetric", &SECRET)?;
    let id = key.trim_start_matches("barbican:");

    let stranger = world.managers("STRANGER", "")?;
    fails(&stranger, &key, 4, "denied", "ACL")?;
    let managers = world.managers("SEALBLK", "total_timeout_seconds = 1\n")?;
    secrets(&["barbican", "forbid", id])?;
    fails(&managers, &key, 4, "denied", "ACL")?;
    secrets(&["barbican", "delete", id])?;
    fails(&managers, &key, 5, "missing", "was it deleted")?;
    let nothing = "barbican:00000000-0000-4000-8000-000000000000";
    fails(&managers, nothing, 5, "missing", "was it deleted")?;

    let managers = world.managers("SEALBLK", "region = \"Elsewhere\"\n")?;
    fails(&managers, nothing, 8, "unconfigured", "catalogue")?;
    let managers = world
        .managers("SEALBLK", "endpoint = \"http://127.0.0.1:9\"\ntotal_timeout_seconds = 1\n")?;
    fails(&managers, nothing, 6, "unreachable", "nobody listens there")?;
    let managers = world.managers("SEALBLK", "")?;
    private(&world.scratch.file("secret"), "wrong")?;
    fails(&managers, nothing, 4, "denied", "credentials")
}
