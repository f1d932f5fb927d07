//! The servers under test: their names, their storage's content, their command lines. And programs
//! that do the same work without a server, by which a storage's own client library is known.

use std::cell::OnceCell;
use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use sealblk_tests::{Daemon, Pattern, run, sealblk, sealblkd_program};
use tempfile::TempDir;

use crate::store::{Class, Place, Store};
use crate::work::{DISK_BYTES, MEMORY_BYTES, Work};

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

/// Who encrypts under qemu-storage-daemon's drivers for storage in the network.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Layer {
    Plain,
    /// QEMU itself.
    Luks,
    /// librbd, below QEMU.
    Librbd,
}

/// A server under test.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Kind {
    /// sealblkd with encryption sectors of so many bytes.
    Encrypted(u32),
    /// sealblkd --plain
    Plain,
    QemuPlain(Aio),
    QemuLuks(Aio),
    /// The baseline in benches/textbook, with encryption sectors of so many bytes.
    Textbook(u32),
    /// No server: io_uring on the storage itself.
    Raw,
    /// qemu-storage-daemon on storage in the network.
    QemuNetwork(Layer),
    /// No server: fio's rbd engine, which is librbd and nothing else.
    Fio,
    /// No server: libiscsi's own benchmark, which only reads.
    IscsiPerf,
    /// By command line.
    Other {
        name: String,
        command: String,
    },
}

impl Kind {
    /// All that we know for one kind of storage, sealblk first: the first is the one that is measured
    /// twice.
    pub(crate) fn for_class(class: Class, full: bool) -> Vec<Self> {
        let mut all = vec![Self::Encrypted(4096), Self::Plain];
        match class {
            Class::Disk | Class::Memory | Class::Zram => return Self::known(),
            Class::Rbd => {
                all.extend([Layer::Plain, Layer::Luks, Layer::Librbd].map(Self::QemuNetwork));
                all.push(Self::Fio);
            }
            Class::Iscsi => {
                all.extend([Layer::Plain, Layer::Luks].map(Self::QemuNetwork));
                all.push(Self::IscsiPerf);
            }
        }
        if full {
            all.insert(1, Self::Encrypted(512));
        }
        all
    }

    /// All that we know for files and block devices.
    pub(crate) fn known() -> Vec<Self> {
        let mut all = vec![Self::Encrypted(4096), Self::Encrypted(512), Self::Plain];
        all.extend([Aio::IoUring, Aio::Native].map(Self::QemuPlain));
        all.extend([Aio::IoUring, Aio::Native].map(Self::QemuLuks));
        all.extend([Self::Textbook(4096), Self::Raw]);
        all
    }

    /// Those for two queues: whoever can have a thread for each, and the ceiling.
    pub(crate) fn has_queue_threads(&self) -> bool {
        matches!(self, Self::Encrypted(4096) | Self::Plain | Self::Raw | Self::Other { .. })
    }

    /// `NAME=COMMAND`
    pub(crate) fn other(text: &str) -> Result<Self, String> {
        let (name, command) = text.split_once('=').ok_or("NAME=COMMAND is needed")?;
        let fits = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        if name.is_empty() || !name.chars().all(fits) {
            return Err("NAME is letters, digits, and any of -_.".into());
        }
        if !command.contains("{socket}") || !command.contains("{image}") {
            return Err("COMMAND must contain {socket} and {image}".into());
        }
        Ok(Self::Other { name: name.into(), command: command.into() })
    }

    /// As results.rs lists it.
    pub(crate) fn id(&self) -> String {
        match self {
            Self::Encrypted(sector_bytes) => format!("sealblk-{sector_bytes}"),
            Self::Plain => "sealblk-plain".into(),
            Self::QemuPlain(aio) => format!("qemu-plain-{}", aio.name()),
            Self::QemuLuks(aio) => format!("qemu-luks-{}", aio.name()),
            Self::Textbook(sector_bytes) => format!("textbook-{sector_bytes}"),
            Self::Raw => "raw".into(),
            Self::QemuNetwork(Layer::Plain) => "qemu-plain".into(),
            Self::QemuNetwork(Layer::Luks) => "qemu-luks".into(),
            Self::QemuNetwork(Layer::Librbd) => "qemu-librbd-luks".into(),
            Self::Fio => "fio-rbd".into(),
            Self::IscsiPerf => "iscsi-perf".into(),
            Self::Other { name, .. } => name.clone(),
        }
    }

    pub(crate) fn name(&self) -> String {
        match self {
            Self::Encrypted(sector_bytes) => format!("sealblk encrypted, {sector_bytes} B sectors"),
            Self::Plain => "sealblk --plain".into(),
            Self::QemuPlain(aio) => format!("qemu-storage-daemon plain, {}", aio.name()),
            Self::QemuLuks(aio) => format!("qemu-storage-daemon LUKS, {}", aio.name()),
            Self::Textbook(sector_bytes) => format!("textbook baseline, {sector_bytes} B sectors"),
            Self::Raw => "no server: io_uring".into(),
            Self::QemuNetwork(Layer::Plain) => "qemu-storage-daemon plain".into(),
            Self::QemuNetwork(Layer::Luks) => "qemu-storage-daemon LUKS".into(),
            Self::QemuNetwork(Layer::Librbd) => "librbd's LUKS2 (under qemu)".into(),
            Self::Fio => "no server: fio, rbd engine".into(),
            Self::IscsiPerf => "no server: iscsi-perf".into(),
            Self::Other { name, .. } => name.clone(),
        }
    }

    /// Whether it can do this work at all.
    pub(crate) fn does(&self, work: &Work) -> bool {
        *self != Self::IscsiPerf || work.pattern.writes_percent == 0
    }

    /// Why it can't be measured here, if so.
    pub(crate) fn missing(&self) -> Option<String> {
        let program = match self {
            Self::Textbook(_) => textbook_program().ok()?,
            _ => return None,
        };
        (!program.exists()).then(|| format!("{} is not there", program.display()))
    }
}

/// A server's command line.
#[derive(Debug)]
pub(crate) struct Launch {
    pub(crate) program: PathBuf,
    pub(crate) args: Vec<OsString>,
    /// Where it will serve.
    pub(crate) socket: PathBuf,
    /// sealblkd: tells when it is ready.
    pub(crate) is_ours: bool,
}

impl Launch {
    /// Runs it until it serves; it inherits the caller's processors.
    pub(crate) fn start(self) -> Result<Daemon> {
        if self.is_ours {
            return Daemon::exactly(&self.socket, self.args);
        }
        let program = self.program.to_str().context("a path that is not UTF-8")?;
        Daemon::of_others(program, &self.socket, self.args)
    }
}

/// Keys, and what is slow to make and can be copied.
pub(crate) struct Materials {
    directory: TempDir,
    luks_image: OnceCell<PathBuf>,
}

impl Materials {
    pub(crate) fn new() -> Result<Self> {
        let directory = TempDir::with_prefix_in("sealblk-bench-", "/var/tmp")?;
        let write = |name, text: &str| -> std::io::Result<()> {
            let path = directory.path().join(name);
            let mut file =
                OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
            file.write_all(text.as_bytes())
        };
        write("key", PASSPHRASE)?;
        write("hex", &PASSPHRASE.repeat(2))?;
        Ok(Self { directory, luks_image: OnceCell::new() })
    }

    fn key(&self) -> PathBuf {
        self.directory.path().join("key")
    }

    fn key_uri(&self) -> String {
        format!("file:{}", self.key().display())
    }

    /// The content that the server wants its storage to begin with. Made in a file on a disk,
    /// whatever the storage: where blocks have 4096 bytes (zram, tmpfs), `sealblk format` makes no
    /// smaller sectors.
    pub(crate) fn make_image(&self, kind: &Kind, image: &Path) -> Result<()> {
        let create = |size| -> Result<()> { Ok(File::create(image)?.set_len(size)?) };
        match kind {
            Kind::Encrypted(sector_bytes) => {
                let made = self.directory.path().join("image");
                File::create(&made)?.set_len(DISK_BYTES + HEADER_BYTES)?;
                let (uri, key) = (format!("file:{}", made.display()), self.key_uri());
                let size = sector_bytes.to_string();
                let volume = ["format", "--volume", &uri, "--key", &key];
                let how = ["--yes", "--kdf", "pbkdf2", "--sector-size", &size];
                sealblk(volume.iter().chain(&how))?;
                copy(&made, image)?;
            }
            Kind::QemuLuks(_) | Kind::QemuNetwork(Layer::Luks) => copy(self.luks_image()?, image)?,
            Kind::Plain
            | Kind::QemuPlain(_)
            | Kind::QemuNetwork(Layer::Plain)
            | Kind::Textbook(_)
            | Kind::Raw => create(DISK_BYTES)?,
            Kind::Fio | Kind::IscsiPerf => noise(image)?,
            Kind::QemuNetwork(Layer::Librbd) | Kind::Other { .. } => {
                create(DISK_BYTES + HEADER_BYTES)?;
            }
        }
        Ok(())
    }

    /// What can only be done to the storage itself: librbd makes its own LUKS2 header, 16 MiB with
    /// sectors of 4096 bytes.
    pub(crate) fn finish(&self, kind: &Kind, store: &Store) -> Result<()> {
        if *kind != Kind::QemuNetwork(Layer::Librbd) {
            return Ok(());
        }
        let Place::Rbd(image) = &store.place else { bail!("librbd encrypts RBD images only") };
        let key = self.key();
        let key = key.to_str().context("a path that is not UTF-8")?;
        image.ceph().rbd(&["encryption", "format", &image.spec(), "luks2", key])?;
        Ok(())
    }

    /// qemu-img takes seconds for one: it tries how many iterations of PBKDF2 fit into two.
    fn luks_image(&self) -> Result<&Path> {
        if let Some(path) = self.luks_image.get() {
            return Ok(path);
        }
        let path = self.directory.path().join("luks");
        let secret = format!("secret,id=s,file={}", self.key().display());
        let size = DISK_BYTES.to_string();
        let image = path.to_str().context("a path that is not UTF-8")?;
        let how = ["create", "-q", "-f", "luks", "--object", &secret, "-o", "key-secret=s"];
        run("qemu-img", how.iter().copied().chain([image, &size]))?;
        Ok(self.luks_image.get_or_init(|| path))
    }

    /// How to start it; none for the raw client.
    pub(crate) fn launch(&self, kind: &Kind, store: &Store, queues: u16) -> Result<Option<Launch>> {
        let socket = store.scratch.file("vu.sock");
        let (queue_count, uri, key_uri) = (queues.to_string(), store.uri(), self.key_uri());
        let at = socket.to_str().context("a path that is not UTF-8")?;
        let words = |words: &[&str]| words.iter().map(OsString::from).collect::<Vec<_>>();
        let common = ["--socket", at, "--queues", &queue_count];
        let (program, args) = match kind {
            Kind::Raw | Kind::Fio | Kind::IscsiPerf => return Ok(None),
            Kind::Encrypted(_) => {
                let volume = ["--volume", &uri, "--key", &key_uri];
                (sealblkd_program()?, words(&[&volume[..], &common].concat()))
            }
            Kind::Plain => {
                let volume = ["--volume", &uri, "--plain"];
                (sealblkd_program()?, words(&[&volume[..], &common].concat()))
            }
            Kind::QemuPlain(aio) => {
                let file = qemu_file(*aio, store)?;
                ("qemu-storage-daemon".into(), self.qemu_args(false, &file, at, queues))
            }
            Kind::QemuLuks(aio) => {
                let file = qemu_file(*aio, store)?;
                ("qemu-storage-daemon".into(), self.qemu_args(true, &file, at, queues))
            }
            Kind::QemuNetwork(layer) => {
                let (file, luks) = (qemu_network(*layer, store)?, *layer == Layer::Luks);
                ("qemu-storage-daemon".into(), self.qemu_args(luks, &file, at, queues))
            }
            Kind::Textbook(sector_bytes) => {
                let (hex, size) = (self.directory.path().join("hex"), sector_bytes.to_string());
                let hex = hex.to_str().context("a path that is not UTF-8")?;
                let path = text(store.path()?)?;
                let volume =
                    ["--volume", path, "--key-hex-file", hex, "--sector-size", size.as_str()];
                (textbook_program()?, words(&[&volume[..], &common].concat()))
            }
            Kind::Other { command, .. } => {
                let path = text(store.path()?)?;
                let command = command.replace("{socket}", at).replace("{image}", path);
                let command = command.replace("{queues}", &queue_count);
                ("sh".into(), words(&["-c", &format!("exec {command}")]))
            }
        };
        let is_ours = matches!(kind, Kind::Encrypted(_) | Kind::Plain);
        Ok(Some(Launch { program, args, socket, is_ours }))
    }

    /// qemu-storage-daemon with an I/O thread, as libvirt users would run it; `file` is the node
    /// `f0`.
    fn qemu_args(&self, luks: bool, file: &str, socket: &str, queues: u16) -> Vec<OsString> {
        let disk = if luks {
            "driver=luks,node-name=d0,file=f0,key-secret=s"
        } else {
            "driver=raw,node-name=d0,file=f0"
        };
        let secret = format!("secret,id=s,file={}", self.key().display());
        let export = format!(
            "type=vhost-user-blk,id=e0,node-name=d0,addr.type=unix,addr.path={socket},\
             writable=on,num-queues={queues},logical-block-size=512,iothread=io0",
        );
        let pairs = [
            ["--object", "iothread,id=io0"],
            ["--object", &secret],
            ["--blockdev", file],
            ["--blockdev", disk],
            ["--export", &export],
        ];
        pairs.as_flattened().iter().map(OsString::from).collect()
    }
}

/// QEMU's driver for a file or a block device.
fn qemu_file(aio: Aio, store: &Store) -> Result<String> {
    let driver = if matches!(store.place, Place::Device(_)) { "host_device" } else { "file" };
    let (path, aio) = (store.path()?.display(), aio.name());
    Ok(format!("driver={driver},node-name=f0,filename={path},cache.direct=on,aio={aio}"))
}

/// QEMU's driver for storage in the network. `cache.direct` is how it is told not to use librbd's
/// cache.
fn qemu_network(layer: Layer, store: &Store) -> Result<String> {
    match &store.place {
        Place::Rbd(image) => {
            let mut node = format!(
                "driver=rbd,node-name=f0,cache.direct=on,pool=rbd,image={},conf={},user=admin",
                image.name(),
                image.ceph().conf().display(),
            );
            if layer == Layer::Librbd {
                node += ",encrypt.format=luks2,encrypt.key-secret=s";
            }
            Ok(node)
        }
        Place::Iscsi(target) => {
            let url = target.url();
            let mut parts = url.trim_start_matches("iscsi://").split('/');
            let mut part = || parts.next().context("not an iSCSI URL");
            let (portal, name, unit) = (part()?, part()?, part()?);
            Ok(format!(
                "driver=iscsi,node-name=f0,cache.direct=on,transport=tcp,portal={portal},\
                 target={name},lun={unit}"
            ))
        }
        Place::File(_) | Place::Device(_) => bail!("this storage is not in the network"),
    }
}

fn text(path: &Path) -> Result<&str> {
    path.to_str().context("a path that is not UTF-8")
}

/// For who reads storage that no client has filled: the same noise as the client's.
fn noise(image: &Path) -> Result<()> {
    let mut file = File::create(image)?;
    for (seed, at) in (0..DISK_BYTES).step_by(MEMORY_BYTES).enumerate() {
        file.write_all(&Pattern(seed as u64).bytes(at, MEMORY_BYTES))?;
    }
    Ok(())
}

/// Leaves holes where there are zeroes.
fn copy(from: &Path, to: &Path) -> Result<()> {
    run("cp", ["--sparse=always".as_ref(), from.as_os_str(), to.as_os_str()])?;
    Ok(())
}

/// Built beside our programs.
fn textbook_program() -> Result<PathBuf> {
    let ours = sealblkd_program()?;
    ensure!(ours.is_file(), "{} is not there", ours.display());
    Ok(ours.with_file_name("sealblk-textbook"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_have_ids_and_names_of_their_own() {
        let known = Kind::known();
        let mut all: Vec<String> = known.iter().flat_map(|kind| [kind.id(), kind.name()]).collect();
        all.sort();
        // The raw client and others by command line may be called as they are named.
        all.dedup();
        assert_eq!(all.len(), 2 * known.len());
    }

    #[test]
    fn a_server_by_command_line_needs_its_places() {
        let other = Kind::other("spdk=vhost {socket} -i {image}").unwrap();
        assert_eq!((other.id(), other.has_queue_threads()), ("spdk".into(), true));
        for wrong in ["x", "=a {socket} {image}", "a b=c {socket} {image}", "x=c {socket}"] {
            assert!(Kind::other(wrong).is_err(), "{wrong}");
        }
    }
}
