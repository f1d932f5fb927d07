//! The Ceph cluster of `make bench-ceph`: its own, made for the run and gone with it.
//!
//! It inherits the processors of the thread that starts it. Its OSD keeps everything in memory: what
//! a request costs there is the least that Ceph can take, and the same every time, so that what
//! clients cost shows best. A run that was killed leaves it behind; the next one removes it.

use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};

use crate::{interrupt, report};

/// Where the cluster is.
const DIRECTORY: &str = "SEALBLK_CEPH_DIR";
const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../scripts/ceph.sh");

/// `memstore_page_set`: otherwise an object is a list of what was written to it, and each write into
/// a long list takes longer than the one before. `rbd_cache`: a request is done when the OSD has it,
/// for every client.
const EXTRA: &str = "\
[osd]
osd_objectstore = memstore
memstore_device_bytes = 17179869184
memstore_page_set = true
[client]
rbd_cache = false
";

/// A running cluster, which `sealblk_tests::Ceph::shared` finds.
pub(crate) struct Cluster(());

impl Cluster {
    /// Starts it in `SEALBLK_CEPH_DIR`, which bench.sh sets: without, it would be the tests' own.
    pub(crate) fn start() -> Result<Self> {
        ensure!(
            std::env::var_os(DIRECTORY).is_some(),
            "{DIRECTORY} says where the cluster goes: run `make bench-ceph`"
        );
        script("down")?;
        let cluster = Self(());
        interrupt::at_exit(remove);
        script("up")?;
        Ok(cluster)
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        remove();
    }
}

/// Also the lock that keeps two calls of the script apart: nobody else uses this cluster.
fn remove() {
    let removed = script("down").and_then(|()| {
        let mut lock = std::env::var_os(DIRECTORY).unwrap_or_default();
        lock.push(".lock");
        Ok(std::fs::remove_file(lock)?)
    });
    if let Err(error) = removed {
        report::line(format!("The Ceph cluster is not gone: {error:#}"));
    }
}

/// Quiet unless it fails.
fn script(verb: &str) -> Result<()> {
    let mut command = Command::new(SCRIPT);
    command.arg(verb).env("SEALBLK_CEPH_EXTRA", EXTRA).stdin(Stdio::null());
    let output = command.output().with_context(|| format!("can't run {command:?}"))?;
    let text = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{SCRIPT} {verb}: {}", text.trim());
    Ok(())
}
