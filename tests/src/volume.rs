//! A volume to test with: a sparse file, an RBD image or an iSCSI LUN, and a key file in a
//! directory that vanishes with it.

use std::ffi::OsString;
use std::fs::File;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};

use crate::ceph::{Ceph, RbdImage};
use crate::iscsi::{Target, TargetOptions};
use crate::programs::{kat, run, sealblk, unpack_kat};

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

/// What a volume can be on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A file.
    File,
    /// An image in the shared Ceph cluster.
    Rbd,
    /// A LUN of an iSCSI target.
    Iscsi,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::File, Self::Rbd, Self::Iscsi];
}

/// What a volume is on.
pub enum Storage {
    /// [`TestVolume::image`]
    File,
    /// An RBD image.
    Rbd(RbdImage),
    /// An iSCSI target.
    Iscsi(Target),
}

/// A volume, the passphrase that opens it, and room for sockets beside them.
pub struct TestVolume {
    /// Its directory.
    pub scratch: Scratch,
    /// The image file; behind the target if it is one's LUN; of an RBD image there is none.
    pub image: PathBuf,
    /// Holds the passphrase.
    pub key: PathBuf,
    /// What it is on.
    pub storage: Storage,
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
        Ok(Self { scratch, image, key, storage: Storage::File })
    }

    /// A volume of this kind without content, and a key file.
    pub fn blank_on(kind: Kind, size_bytes: u64) -> Result<Self> {
        match kind {
            Kind::File => Self::blank(size_bytes),
            Kind::Rbd => Self::on_rbd(&Ceph::shared()?, size_bytes),
            Kind::Iscsi => Self::on_iscsi(size_bytes),
        }
    }

    /// An RBD image without content, and a key file.
    pub fn on_rbd(ceph: &Ceph, size_bytes: u64) -> Result<Self> {
        Self::on(Storage::Rbd(ceph.image(size_bytes)?))
    }

    /// A target without content, and a key file.
    pub fn on_iscsi(size_bytes: u64) -> Result<Self> {
        Self::on(Storage::Iscsi(Target::new(size_bytes, TargetOptions::default())?))
    }

    /// This storage, and a key file.
    pub fn on(storage: Storage) -> Result<Self> {
        let scratch = Scratch::new()?;
        let (mut image, key) = (scratch.file("volume.img"), scratch.file("key"));
        if let Storage::Iscsi(target) = &storage {
            target.image().clone_into(&mut image);
        }
        std::fs::write(&key, PASSPHRASE)?;
        Ok(Self { scratch, image, key, storage })
    }

    /// A volume that `sealblk format` made, 16 MiB of header before `data_bytes` of data.
    pub fn formatted(data_bytes: u64, sector_bytes: u32) -> Result<Self> {
        Self::formatted_with(data_bytes, &["--sector-size", &sector_bytes.to_string()])
    }

    /// The same with arguments of one's own.
    pub fn formatted_with(data_bytes: u64, arguments: &[&str]) -> Result<Self> {
        Self::formatted_on(Kind::File, data_bytes, arguments)
    }

    /// The same on storage of this kind.
    pub fn formatted_on(kind: Kind, data_bytes: u64, arguments: &[&str]) -> Result<Self> {
        let volume = Self::blank_on(kind, data_bytes + (16 << 20))?;
        volume.format(arguments)?;
        Ok(volume)
    }

    /// The same on a target like this.
    pub fn formatted_behind(
        options: TargetOptions,
        data_bytes: u64,
        arguments: &[&str],
    ) -> Result<Self> {
        let volume = Self::on(Storage::Iscsi(Target::new(data_bytes + (16 << 20), options)?))?;
        volume.format(arguments)?;
        Ok(volume)
    }

    fn format(&self, arguments: &[&str]) -> Result<()> {
        let mut all: Vec<OsString> = vec!["format".into()];
        all.extend(self.volume_args());
        all.push("--yes".into());
        if !arguments.contains(&"--kdf") {
            all.extend(["--kdf".into(), "pbkdf2".into()]);
        }
        all.extend(arguments.iter().map(OsString::from));
        sealblk(&all).map(drop)
    }

    /// The target that it is on.
    pub fn target(&mut self) -> Result<&mut Target> {
        match &mut self.storage {
            Storage::Iscsi(target) => Ok(target),
            _ => bail!("it is not on a target"),
        }
    }

    /// A volume that somebody else made: a known answer and its passphrase.
    pub fn known_answer(name: &str) -> Result<Self> {
        let scratch = Scratch::new()?;
        let image = unpack_kat(name, scratch.path())?;
        let key = scratch.file("key");
        std::fs::copy(kat("pw"), &key)?;
        Ok(Self { scratch, image, key, storage: Storage::File })
    }

    /// The same on storage of this kind.
    pub fn known_answer_on(kind: Kind, name: &str) -> Result<Self> {
        Self::known_answer(name)?.moved_to(kind)
    }

    /// A file's content on storage of this kind, with its key.
    pub fn moved_to(self, kind: Kind) -> Result<Self> {
        let volume = match kind {
            Kind::File => return Ok(self),
            Kind::Rbd => {
                let volume = Self::on_rbd(&Ceph::shared()?, 1 << 20)?;
                volume.write_raw(&self.image)?;
                volume
            }
            Kind::Iscsi => {
                let target = Target::with_copy_of(&self.image, TargetOptions::default())?;
                Self::on(Storage::Iscsi(target))?
            }
        };
        std::fs::copy(&self.key, &volume.key)?;
        Ok(volume)
    }

    /// The ciphertext as somebody else reads it, in a file: the image itself; what Ceph exports;
    /// what a second initiator reads.
    pub fn raw(&self) -> Result<PathBuf> {
        let file = self.scratch.file("raw");
        match &self.storage {
            Storage::File => return Ok(self.image.clone()),
            Storage::Rbd(image) => {
                if file.exists() {
                    std::fs::remove_file(&file)?;
                }
                image.export(&file)?;
            }
            Storage::Iscsi(target) => {
                let (from, to) = (target.qemu().into(), OsString::from(&file));
                let args = ["convert", "-f", "raw", "-O", "raw"].map(OsString::from);
                run("qemu-img", args.into_iter().chain([from, to]))?;
            }
        }
        Ok(file)
    }

    /// The bytes of [`Self::raw`].
    pub fn bytes(&self) -> Result<Vec<u8>> {
        Ok(std::fs::read(self.raw()?)?)
    }

    /// Replaces the ciphertext by a file's, which on a target must have the LUN's size. Nobody may
    /// have the volume open.
    pub fn write_raw(&self, file: &Path) -> Result<()> {
        match &self.storage {
            Storage::File => std::fs::copy(file, &self.image).map(drop).map_err(Into::into),
            Storage::Rbd(image) => image.import(file),
            Storage::Iscsi(target) => {
                let (size, new) = (self.image.metadata()?.len(), file.metadata()?.len());
                ensure!(size == new, "the LUN has {size} bytes, the file {new}");
                let (from, to) = (OsString::from(file), target.qemu().into());
                let args = ["convert", "-n", "-f", "raw", "-O", "raw"].map(OsString::from);
                run("qemu-img", args.into_iter().chain([from, to])).map(drop)
            }
        }
    }

    /// Gives the volume another size, as its owner does, also while it is in use.
    pub fn resize(&self, size_bytes: u64) -> Result<()> {
        match &self.storage {
            Storage::File => {
                Ok(File::options().write(true).open(&self.image)?.set_len(size_bytes)?)
            }
            Storage::Rbd(image) => image.resize(size_bytes),
            Storage::Iscsi(target) => target.resize(size_bytes),
        }
    }

    /// The volume as our programs name it.
    pub fn uri(&self) -> String {
        match &self.storage {
            Storage::File => format!("file:{}", self.image.display()),
            Storage::Rbd(image) => image.uri(),
            Storage::Iscsi(target) => target.uri(),
        }
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

/// Makes tests of a module of scenarios beside it: functions of a [`Kind`]. In a module that is named
/// `rest_on_...` they are left to `make test-storage`, `make test` skips those by their name.
#[macro_export]
macro_rules! scenarios {
    ($kind:expr; $($scenario:ident)+) => {
        $(
            #[test]
            fn $scenario() -> anyhow::Result<()> {
                super::$scenario($kind)
            }
        )+
    };
}
