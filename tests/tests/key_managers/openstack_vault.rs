//! OpenBao: keys that castellan stored.

use std::path::PathBuf;

use anyhow::{Context, Result};
use sealblk_tests::Scratch;

use super::check::{SECRET, fails, hex, opens, private};
use super::openstack_barbican::{env, secrets};

struct World {
    scratch: Scratch,
}

impl World {
    fn new() -> Result<Self> {
        Ok(Self { scratch: Scratch::new()? })
    }

    fn store(&self, version: &str, kind: &str, secret: &[u8]) -> Result<String> {
        Ok(format!("vault:castellan/{}", secrets(&["bao", "store", version, kind, &hex(secret)])?))
    }

    fn configure(&self, version: &str, lines: &str) -> Result<PathBuf> {
        let mount = if version == "1" { "kv1" } else { "secret" };
        let text = format!(
            "[vault]\nurl = \"{}\"\nkv_version = {version}\nmount = \"{mount}\"\n\
             total_timeout_seconds = 1\n{lines}",
            env("BAO_URL")?
        );
        private(&self.scratch.file("keys.toml"), &text)
    }

    fn by_role(&self, version: &str) -> Result<PathBuf> {
        let file = private(&self.scratch.file("secret-id"), &env("BAO_SECRET_ID")?)?;
        let lines = format!("role_id = \"{}\"\nsecret_id_file = {file:?}\n", env("BAO_ROLE_ID")?);
        self.configure(version, &lines)
    }

    fn by_token(&self, version: &str, token: &str) -> Result<PathBuf> {
        let file = private(&self.scratch.file("token"), token)?;
        self.configure(version, &format!("token_file = {file:?}\n"))
    }
}

#[test]
fn both_engines_and_both_logins_give_what_castellan_stored() -> Result<()> {
    let world = World::new()?;
    for version in ["1", "2"] {
        for kind in ["symmetric", "opaque"] {
            let key = world.store(version, kind, &SECRET)?;
            let managers = world.by_role(version)?;
            opens(&managers, &key, hex(&SECRET).as_bytes(), world.scratch.path()).context(kind)?;
        }
        let key = world.store(version, "passphrase", "Pässwort".as_bytes())?;
        let managers = world.by_token(version, &env("BAO_TOKEN")?)?;
        opens(&managers, &key, "Pässwort".as_bytes(), world.scratch.path())
            .context("passphrase")?;
    }
    // castellan's kv_path is the configuration's `path`.
    let key = world.store("2", "symmetric", &SECRET)?.replace("castellan/", "");
    let file = private(&world.scratch.file("token"), &env("BAO_TOKEN")?)?;
    let lines = format!("token_file = {file:?}\npath = \"castellan\"\n");
    let managers = world.configure("2", &lines)?;
    opens(&managers, &key, hex(&SECRET).as_bytes(), world.scratch.path())
}

#[test]
fn what_goes_wrong_is_told_apart() -> Result<()> {
    let world = World::new()?;
    for version in ["1", "2"] {
        let denied = format!("vault:{}", secrets(&["bao", "deny", version])?);
        fails(&world.by_role(version)?, &denied, 4, "denied", "policy")?;
        let key = world.store(version, "symmetric", &SECRET)?;
        let id = key.trim_start_matches("vault:castellan/");
        let expired = secrets(&["bao", "expired"])?;
        fails(&world.by_token(version, &expired)?, &key, 4, "denied", "the token has expired")?;
        secrets(&["bao", "delete", version, id])?;
        let told = if version == "1" { "was it deleted" } else { "undelete" };
        fails(&world.by_role(version)?, &key, 5, "missing", told)?;
        let key = world.store(version, "symmetric", &SECRET)?;
        secrets(&["bao", "destroy", version, key.trim_start_matches("vault:castellan/")])?;
        let told = if version == "1" { "was it deleted" } else { "destroyed" };
        fails(&world.by_role(version)?, &key, 5, "missing", told)?;
    }
    let managers = world.by_role("2")?;
    private(&world.scratch.file("secret-id"), "wrong")?;
    fails(&managers, "vault:castellan/x", 4, "denied", "AppRole")?;
    let managers = world.by_token("2", "wrong")?;
    fails(&managers, "vault:castellan/x", 4, "denied", "the token has expired")?;

    // Last, and undone whatever comes of it: other tests may want the server.
    let managers = world.by_token("2", &env("BAO_TOKEN")?)?;
    secrets(&["bao", "seal"])?;
    let told = fails(&managers, "vault:castellan/x", 6, "unreachable", "sealed");
    secrets(&["bao", "unseal"])?;
    told
}
