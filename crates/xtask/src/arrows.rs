//! Which crate may use which: the layers of docs/ARCHITECTURE.md as a table.
//!
//! Only arrows along the table exist, dev-dependencies included; `session` and `engine` never see
//! each other.

use std::path::PathBuf;

use anyhow::{Context, Result};
use serde_json::Value;

use crate::Complaint;

/// A workspace member.
#[derive(Debug)]
pub(crate) struct Package {
    pub(crate) name: String,
    pub(crate) manifest: PathBuf,
    pub(crate) dependencies: Vec<String>,
}

const PREFIX: &str = "sealblk-";

/// Crate and what of the workspace it may use directly.
const ALLOWED: &[(&str, &[&str])] = &[
    ("api", &[]),
    ("rpc", &[]),
    ("block", &[]),
    ("secret", &[]),
    ("ring", &["block"]),
    ("virtqueue", &["block"]),
    ("keys", &["secret"]),
    ("cipher", &["block", "secret"]),
    ("luks", &["block", "secret", "cipher"]),
    ("volume", &["block", "ring"]),
    ("rotation", &["block", "secret", "ring", "cipher", "luks", "volume"]),
    ("session", &["block", "virtqueue"]),
    ("engine", &["block", "secret", "ring", "virtqueue", "cipher", "volume"]),
    ("cli", &["api", "rpc", "block", "secret", "keys", "cipher", "luks", "volume", "rotation"]),
    (
        "backend",
        &[
            "api",
            "rpc",
            "block",
            "secret",
            "keys",
            "cipher",
            "luks",
            "ring",
            "virtqueue",
            "volume",
            "engine",
            "rotation",
            "session",
        ],
    ),
    // Pages are written from the programs' own command lines.
    ("manual", &["backend", "cli"]),
    // Whole-system tests meet us as everybody else does: as processes.
    ("tests", &[]),
    // So does the benchmark's whole-system part, with the same harness; its layers call what they
    // measure.
    ("bench", &["block", "secret", "ring", "virtqueue", "cipher", "volume", "engine", "tests"]),
    // The baseline has nothing of ours to be compared with us; its test drives it with the harness.
    ("textbook", &["tests"]),
];

/// Crates of others that only these may use.
const RESERVED: &[(&str, &[&str])] = &[
    ("tokio", &["backend"]),
    ("axum", &["backend"]),
    ("vhost", &["session", "tests", "textbook"]),
    // The benchmark's client without a server is none of our data path.
    ("io-uring", &["ring", "volume", "engine", "bench"]),
    ("aws-lc-sys", &["cipher", "secret"]),
    // Other people's libraries come into the process in one crate.
    ("libloading", &["volume"]),
];

/// The members from `cargo metadata --no-deps`.
pub(crate) fn packages(metadata: &Value) -> Result<Vec<Package>> {
    let packages = metadata.get("packages").and_then(Value::as_array).context("no packages")?;
    packages.iter().map(|package| package_of(package).context("cargo metadata")).collect()
}

fn package_of(package: &Value) -> Option<Package> {
    let text = |value: &Value, key: &str| Some(value.get(key)?.as_str()?.to_owned());
    let dependencies = package.get("dependencies")?.as_array()?;
    Some(Package {
        name: text(package, "name")?,
        manifest: text(package, "manifest_path")?.into(),
        dependencies: dependencies.iter().filter_map(|one| text(one, "name")).collect(),
    })
}

/// Arrows that the tables don't have.
pub(crate) fn check(packages: &[Package]) -> Vec<Complaint> {
    let mut complaints = Vec::new();
    for package in packages {
        let short = package.name.strip_prefix(PREFIX);
        let allowed = short.and_then(|short| ALLOWED.iter().find(|(name, _)| *name == short));
        for dependency in &package.dependencies {
            if let Some(ours) = dependency.strip_prefix(PREFIX) {
                // A crate's tests may ask for more of its own features.
                let itself = *dependency == package.name;
                if !itself && allowed.is_none_or(|(_, list)| !list.contains(&ours)) {
                    complaints.push(Complaint::Error(format!(
                        "{} must not use {dependency}: no such arrow in docs/ARCHITECTURE.md",
                        package.name
                    )));
                }
            } else if let Some((_, users)) = RESERVED.iter().find(|(name, _)| name == dependency)
                && short.is_none_or(|short| !users.contains(&short))
            {
                complaints.push(Complaint::Error(format!(
                    "{} must not use {dependency}: only {} may",
                    package.name,
                    users.join(", ")
                )));
            }
        }
        if allowed.is_none() && package.name != "xtask" {
            complaints.push(Complaint::Error(format!(
                "{}: an unknown crate; give it its place in xtask's table and in \
                 docs/ARCHITECTURE.md",
                package.name
            )));
        }
    }
    complaints
}

#[cfg(test)]
mod tests {
    use super::*;

    fn complaints(name: &str, dependencies: &[&str]) -> usize {
        let dependencies = dependencies.iter().map(|&name| name.to_owned()).collect();
        check(&[Package { name: name.to_owned(), manifest: PathBuf::new(), dependencies }]).len()
    }

    #[test]
    fn an_arrow_along_the_layers_is_fine() {
        assert_eq!(complaints("sealblk-luks", &["sealblk-cipher", "sealblk-block", "serde"]), 0);
        assert_eq!(complaints("sealblk-backend", &["sealblk-engine", "tokio"]), 0);
    }

    #[test]
    fn an_arrow_against_the_layers_is_not() {
        assert_eq!(complaints("sealblk-block", &["sealblk-cipher"]), 1);
        assert_eq!(complaints("sealblk-session", &["sealblk-engine"]), 1);
        assert_eq!(complaints("sealblk-engine", &["sealblk-session"]), 1);
        assert_eq!(complaints("xtask", &["sealblk-block"]), 1);
    }

    #[test]
    fn tokio_stays_in_the_backend() {
        assert_eq!(complaints("sealblk-cli", &["tokio"]), 1);
    }

    #[test]
    fn a_crate_without_a_place_is_told_so() {
        assert_eq!(complaints("sealblk-surprise", &[]), 1);
    }

    #[test]
    fn the_table_itself_has_no_cycle() {
        // Whoever is used comes before its user.
        for (index, (name, uses)) in ALLOWED.iter().enumerate() {
            for used in *uses {
                let at = ALLOWED.iter().position(|(other, _)| other == used);
                assert!(at.is_some_and(|at| at < index), "{name} uses {used}");
            }
        }
    }

    #[test]
    fn packages_are_read_from_cargo_s_answer() {
        let metadata = serde_json::json!({"packages": [{
            "name": "sealblk-block", "manifest_path": "/x/Cargo.toml",
            "dependencies": [{"name": "thiserror", "kind": null}],
        }]});
        let packages = packages(&metadata).unwrap();
        assert_eq!(packages[0].name, "sealblk-block");
        assert_eq!(packages[0].dependencies, ["thiserror"]);
        assert!(super::packages(&serde_json::json!({"packages": [{}]})).is_err());
    }
}
