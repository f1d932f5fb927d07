//! A volume to test with: a sparse file and a key file in a directory that vanishes with it.

use std::ffi::OsString;
use std::fs::File;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::programs::{kat, sealblk, unpack_kat};

/// A directory on a real file system (O_DIRECT works there), with a path short enough for a
/// Unix socket in it (108 bytes). `SEALBLK_TEST_DIR` says where, default /var/tmp.
pub struct Scratch(tempfile::TempDir);

impl Scratch {
    /// A new, empty one.
    pub fn new() -> Result<Self> {
        let base = std::env::var_os("SEALBLK_TEST_DIR").unwrap_or_else(|| "/var/tmp".into());
        let directory = tempfile::Builder::new()
            .prefix("sealblk-")
            .tempdir_in(&base)
            .with_context(|| format!("no scratch directory in {}", base.display()))?;
        Ok(Self(directory))
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        self.0.path()
    }

    /// A path in it.
    pub fn file(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }
}

/// An image file, the passphrase that opens it, and room for sockets beside them.
pub struct TestVolume {
    /// Its directory.
    pub scratch: Scratch,
    /// The image.
    pub image: PathBuf,
    /// Holds the passphrase.
    pub key: PathBuf,
}

/// The passphrase of volumes made here: as many lowercase hex digits as Cinder's have.
pub(crate) const PASSPHRASE: &str =
    "7d0c5f9be2a84613905a7fdc1e38b264a9f0d3c26b51e8477c92ad05f6183be0";

impl TestVolume {
    /// An image of `size_bytes` without content, and a key file.
    pub fn blank(size_bytes: u64) -> Result<Self> {
        let scratch = Scratch::new()?;
        let (image, key) = (scratch.file("volume.img"), scratch.file("key"));
        File::create(&image)?.set_len(size_bytes)?;
        std::fs::write(&key, PASSPHRASE)?;
        Ok(Self { scratch, image, key })
    }

    /// A volume that `sealblk format` made, 16 MiB of header before `data_bytes` of data.
    pub fn formatted(data_bytes: u64, sector_bytes: u32) -> Result<Self> {
        Self::formatted_with(data_bytes, &["--sector-size", &sector_bytes.to_string()])
    }

    /// The same with arguments of one's own.
    pub fn formatted_with(data_bytes: u64, arguments: &[&str]) -> Result<Self> {
        let volume = Self::blank(data_bytes + (16 << 20))?;
        let mut all: Vec<OsString> = vec!["format".into()];
        all.extend(volume.volume_args());
        all.push("--yes".into());
        if !arguments.contains(&"--kdf") {
            all.extend(["--kdf".into(), "pbkdf2".into()]);
        }
        all.extend(arguments.iter().map(OsString::from));
        sealblk(&all)?;
        Ok(volume)
    }

    /// A volume that somebody else made: a known answer and its passphrase.
    pub fn known_answer(name: &str) -> Result<Self> {
        let scratch = Scratch::new()?;
        let image = unpack_kat(name, scratch.path())?;
        let key = scratch.file("key");
        std::fs::copy(kat("pw"), &key)?;
        Ok(Self { scratch, image, key })
    }

    /// The volume as our programs name it.
    pub fn uri(&self) -> String {
        format!("file:{}", self.image.display())
    }

    /// The key as our programs name it.
    pub fn key_uri(&self) -> String {
        format!("file:{}", self.key.display())
    }

    /// `--volume URI --key file:PATH`
    pub fn volume_args(&self) -> Vec<OsString> {
        vec!["--volume".into(), self.uri().into(), "--key".into(), self.key_uri().into()]
    }
}
