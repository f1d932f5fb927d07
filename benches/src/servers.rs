//! The servers under test, each with storage of its own, pinned to the servers' processor.

use std::ffi::OsString;
use std::fs::File;
use std::path::Path;

use anyhow::{Context, Result};
use sealblk_tests::{Daemon, run, sealblk};

use crate::load::{DISK_BYTES, Load};
use crate::machine::{CLIENT, SERVER, pin};
use crate::store::{Class, Store};

/// As many hexadecimal digits as Cinder's passphrases have.
const PASSPHRASE: &str = "1f6a0c93d47be825906ed3f1825b7ca04c9182fe6b3d50a7e8f40d9c2b7165a3";
/// Room for our LUKS2 header.
const HEADER_BYTES: u64 = 16 << 20;

/// How qemu-storage-daemon does its I/O.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Aio {
    IoUring,
    Native,
}

impl Aio {
    fn name(self) -> &'static str {
        match self {
            Self::IoUring => "io_uring",
            Self::Native => "native",
        }
    }
}

/// A server under test.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// sealblkd with encryption sectors of so many bytes.
    Encrypted(u32),
    /// sealblkd --plain
    Plain,
    QemuPlain(Aio),
    QemuLuks(Aio),
}

impl Kind {
    /// All that are measured.
    pub(crate) fn all(full: bool) -> Vec<Self> {
        let mut all = vec![Self::Encrypted(4096)];
        if full {
            all.push(Self::Encrypted(512));
        }
        all.push(Self::Plain);
        all.extend([Aio::IoUring, Aio::Native].map(Self::QemuPlain));
        all.extend([Aio::IoUring, Aio::Native].map(Self::QemuLuks));
        all
    }

    pub(crate) fn name(self) -> String {
        match self {
            Self::Encrypted(sector_bytes) => format!("sealblk encrypted, {sector_bytes} B sectors"),
            Self::Plain => "sealblk --plain".into(),
            Self::QemuPlain(aio) => format!("qemu-storage-daemon plain, {}", aio.name()),
            Self::QemuLuks(aio) => format!("qemu-storage-daemon LUKS, {}", aio.name()),
        }
    }
}

/// A running server with a client that has filled its disk.
pub(crate) struct Server {
    // Dropped in this order: client, server, storage.
    pub(crate) load: Load,
    _daemon: Daemon,
    _store: Store,
}

impl Server {
    /// Makes the storage, starts the server, connects, fills the disk.
    pub(crate) fn start(kind: Kind, class: Class) -> Result<Self> {
        let started = || -> Result<Self> {
            let keys = tempfile::TempDir::with_prefix_in("sealblk-bench-", "/var/tmp")?;
            let key = keys.path().join("key");
            std::fs::write(&key, PASSPHRASE)?;
            let store = Store::new(class, |image| make_image(kind, image, &key))?;
            if let Kind::Encrypted(sector_bytes) = kind {
                let size = sector_bytes.to_string();
                let (uri, key) = (store.uri(), key_uri(&key));
                let volume = ["format", "--volume", &uri, "--key", &key];
                let how = ["--yes", "--kdf", "pbkdf2", "--sector-size", &size];
                sealblk(volume.iter().chain(&how))?;
            }
            // What is started inherits the processor of the thread that starts it.
            pin(SERVER)?;
            let daemon = serve(kind, &store, &key);
            pin(CLIENT)?;
            let daemon = daemon?;
            let load = Load::connect(&daemon)?;
            Ok(Self { load, _daemon: daemon, _store: store })
        };
        started().with_context(|| format!("{} on {} storage", kind.name(), class.name()))
    }
}

fn key_uri(key: &Path) -> String {
    format!("file:{}", key.display())
}

fn make_image(kind: Kind, image: &Path, key: &Path) -> Result<()> {
    match kind {
        Kind::Encrypted(_) => File::create(image)?.set_len(DISK_BYTES + HEADER_BYTES)?,
        Kind::Plain | Kind::QemuPlain(_) => File::create(image)?.set_len(DISK_BYTES)?,
        Kind::QemuLuks(_) => {
            let secret = format!("secret,id=s,file={}", key.display());
            let size = DISK_BYTES.to_string();
            let image = image.to_str().context("a path that is not UTF-8")?;
            let how = ["create", "-q", "-f", "luks", "--object", &secret, "-o", "key-secret=s"];
            run("qemu-img", how.iter().copied().chain([image, &size]))?;
        }
    }
    Ok(())
}

fn serve(kind: Kind, store: &Store, key: &Path) -> Result<Daemon> {
    let socket = store.scratch.file("vu.sock");
    let (aio, luks) = match kind {
        Kind::Encrypted(_) => {
            let args = ["--volume", &store.uri(), "--key", &key_uri(key)];
            return Daemon::with_args(&socket, args.iter().map(OsString::from).collect());
        }
        Kind::Plain => {
            let args = ["--volume", &store.uri(), "--plain"];
            return Daemon::with_args(&socket, args.iter().map(OsString::from).collect());
        }
        Kind::QemuPlain(aio) => (aio, false),
        Kind::QemuLuks(aio) => (aio, true),
    };
    Daemon::of_others("qemu-storage-daemon", &socket, qemu_args(aio, luks, store, key, &socket))
}

/// qemu-storage-daemon with an I/O thread, as libvirt users would run it.
fn qemu_args(aio: Aio, luks: bool, store: &Store, key: &Path, socket: &Path) -> Vec<OsString> {
    let driver = if store.is_device { "host_device" } else { "file" };
    let file = format!(
        "driver={driver},node-name=f0,filename={},cache.direct=on,aio={}",
        store.path.display(),
        aio.name()
    );
    let disk = if luks {
        "driver=luks,node-name=d0,file=f0,key-secret=s"
    } else {
        "driver=raw,node-name=d0,file=f0"
    };
    let secret = format!("secret,id=s,file={}", key.display());
    let export = format!(
        "type=vhost-user-blk,id=e0,node-name=d0,addr.type=unix,addr.path={},writable=on,\
         num-queues=1,logical-block-size=512,iothread=io0",
        socket.display()
    );
    let pairs = [
        ["--object", "iothread,id=io0"],
        ["--object", &secret],
        ["--blockdev", &file],
        ["--blockdev", disk],
        ["--export", &export],
    ];
    pairs.as_flattened().iter().map(OsString::from).collect()
}
