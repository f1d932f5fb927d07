//! Which drivers this program has, and whether the libraries that they need are on this host.
//!
//! Contract: librbd and libiscsi are loaded when the first volume that needs one is opened, and not
//! linked: a daemon that serves a local volume neither needs them nor pays for their forty shared
//! objects, and one package serves every node (docs/decisions/0017).

use sealblk_block::{ErrorKind, VolumeError};

/// A kind of volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Driver {
    /// What its names begin with.
    pub scheme: &'static str,
    /// Whether it was built in (a cargo feature of the same name).
    pub built: bool,
    /// The library that it loads; none: it needs none.
    pub library: Option<Library>,
}

/// A library that a driver loads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Library {
    /// Its name and, if it could be loaded, its version.
    pub found: Result<String, String>,
    /// Debian's package.
    pub package: &'static str,
}

/// Debian's package of librbd.
#[cfg_attr(not(feature = "rbd"), expect(dead_code, reason = "only a driver names it"))]
pub(crate) const RBD_PACKAGE: &str = "librbd1";
/// Debian's package of libiscsi.
#[cfg_attr(not(feature = "iscsi"), expect(dead_code, reason = "only a driver names it"))]
pub(crate) const ISCSI_PACKAGE: &str = "libiscsi7";

/// All drivers; looks for their libraries.
pub fn drivers() -> Vec<Driver> {
    vec![
        Driver { scheme: "/dev/, file:", built: true, library: None },
        Driver { scheme: "rbd:", built: cfg!(feature = "rbd"), library: rbd_library() },
        Driver { scheme: "iscsi:", built: cfg!(feature = "iscsi"), library: iscsi_library() },
    ]
}

#[cfg(feature = "rbd")]
fn rbd_library() -> Option<Library> {
    Some(Library { found: crate::rbd::library_version(), package: RBD_PACKAGE })
}

#[cfg(not(feature = "rbd"))]
fn rbd_library() -> Option<Library> {
    None
}

#[cfg(feature = "iscsi")]
fn iscsi_library() -> Option<Library> {
    Some(Library { found: crate::iscsi::library_version(), package: ISCSI_PACKAGE })
}

#[cfg(not(feature = "iscsi"))]
fn iscsi_library() -> Option<Library> {
    None
}

/// A name whose driver was left out of this build.
#[cfg_attr(
    all(feature = "rbd", feature = "iscsi"),
    expect(dead_code, reason = "this build has all drivers")
)]
pub(crate) fn left_out(uri: &str, feature: &str) -> VolumeError {
    let what = format!(
        "this program was built without the driver: build it with the cargo feature `{feature}`, or \
         map the volume as a block device and name /dev/…"
    );
    VolumeError::new(ErrorKind::Unsupported, uri, what)
}

/// A library that isn't there.
#[cfg_attr(
    not(any(feature = "rbd", feature = "iscsi")),
    expect(dead_code, reason = "no driver loads one")
)]
pub(crate) fn missing(uri: &str, package: &str, reason: &str) -> VolumeError {
    let what =
        format!("{reason}: install the package {package} (or your distribution's name of it)");
    VolumeError::new(ErrorKind::Unsupported, uri, what)
}
