//! `sealblk format`: a new LUKS2 header, and for files the file.

use std::fs::File;
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, anyhow};
use sealblk_cipher::Algorithm;
use sealblk_luks::{FormatParams, Found, PROBED_TAIL_BYTES, SlotKdf};
use sealblk_volume::Uri;

use crate::args::{self, Cipher, Kdf};
use crate::console::Console;
use crate::failure::Failure;
use crate::keyfile;
use crate::size::human;
use crate::target::Target;
use crate::time::now;
use sealblk_rotation::random;

/// Where `sealblk-luks` puts the data of new volumes, in bytes: cryptsetup's default.
const HEADER_BYTES: u64 = 16 << 20;

/// Guests address 512-byte sectors, and a whole number of 4 KiB fits every sector size.
const SIZE_UNIT: u64 = 4096;

pub(crate) fn run(args: &args::Format, console: &mut Console<'_>) -> Result<(), Failure> {
    let fetched = keyfile::fetch(&args.key, console)?;
    let sector_bytes = args.sector_size.parse().context("--sector-size")?;
    let kdf = slot_kdf(args.kdf, args.iterations)?;
    let mut made = make_file(args)?;
    let target = Target::open(&args.volume, console)?;
    if target.block_bytes() > sector_bytes {
        return Err(anyhow!(
            "{} has blocks of {} bytes: format it with --sector-size 4096",
            args.volume,
            target.block_bytes()
        )
        .into());
    }
    if made.is_none() {
        consent(args, &target, console)?;
    }
    let params = FormatParams {
        volume_bytes: target.size_bytes(),
        algorithm: algorithm(args.cipher),
        sector_bytes,
        kdf,
        label: args.label.clone(),
        subsystem: String::new(),
        token: None,
        created_at: Some(now()),
    };
    let plan = sealblk_luks::format(&params, &fetched.passphrase, &mut random)
        .with_context(|| args.volume.clone())?;
    target.execute(plan)?;
    match &mut made {
        Some(file) => file.keep()?,
        // Not before the header is durable: a crash must not leave the old content without its
        // backup partition table and the like.
        None => {
            let tail = target.size_bytes().saturating_sub(HEADER_BYTES).min(PROBED_TAIL_BYTES);
            target.wipe(target.size_bytes() - tail, tail)?;
        }
    }
    report(args, &target, console)
}

/// Makes the file of a `file:` volume that isn't there yet, for which a size is needed.
fn make_file(args: &args::Format) -> Result<Option<MadeFile>, Failure> {
    let (path, size) = match (Uri::parse_argument(&args.volume)?, args.size) {
        (Uri::File(path), Some(size)) => (path, size),
        (Uri::File(path), None) if !path.exists() => {
            return Err(anyhow!("{} does not exist; --size makes it", path.display()).into());
        }
        (Uri::Device(_), Some(_)) => {
            return Err(anyhow!("a block device has the size it has; leave out --size").into());
        }
        (Uri::Rbd(_), Some(_)) => {
            return Err(anyhow!("an RBD image is made by `rbd create`; leave out --size").into());
        }
        (Uri::Iscsi(_), Some(_)) => {
            return Err(anyhow!("a logical unit has the size it has; leave out --size").into());
        }
        (_, None) => return Ok(None),
    };
    if size % SIZE_UNIT != 0 {
        return Err(anyhow!("--size {size} is no multiple of {SIZE_UNIT}").into());
    }
    let total = size.checked_add(HEADER_BYTES).context("--size is too large")?;
    let file = File::options().write(true).create_new(true).mode(0o600).open(&path);
    let file = file.map_err(|error| match error.kind() {
        io::ErrorKind::AlreadyExists => {
            anyhow!("{} exists, so it has a size; leave out --size", path.display())
        }
        _ => anyhow!(error).context(format!("cannot make {}", path.display())),
    })?;
    let made = MadeFile { path, keep: false };
    file.set_len(total).with_context(|| format!("cannot make it {}", human(total)))?;
    Ok(Some(made))
}

/// A file of our making, which goes again unless the volume was completed.
struct MadeFile {
    path: PathBuf,
    keep: bool,
}

impl MadeFile {
    /// Keeps it, and sees to it that it is there after a crash: its data, its size and its name.
    fn keep(&mut self) -> anyhow::Result<()> {
        let sync = |path: &Path| {
            let what = || format!("making {} durable", path.display());
            File::open(path).and_then(|file| file.sync_all()).with_context(what)
        };
        sync(&self.path)?;
        sync(self.path.parent().unwrap_or(Path::new("/")))?;
        self.keep = true;
        Ok(())
    }
}

impl Drop for MadeFile {
    fn drop(&mut self) {
        if !self.keep {
            // Nobody misses it; the error that brought us here is what matters.
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

/// Whether what is on the volume may be destroyed.
fn consent(args: &args::Format, target: &Target, console: &mut Console<'_>) -> Result<(), Failure> {
    let found = sealblk_luks::probe(&mut target.reader())?;
    if found != Found::Nothing && !args.overwrite_signature {
        return Err(Failure::Refused(format!(
            "{} holds {found}; --overwrite-signature destroys it",
            args.volume
        )));
    }
    let holds = match found {
        Found::Nothing => String::new(),
        found => format!(" It holds {found}."),
    };
    let size = human(target.size_bytes());
    let what = format!("All data on {} ({size}) will be lost.{holds}", args.volume);
    console.confirm(&what, args.yes)
}

fn algorithm(cipher: Cipher) -> Algorithm {
    match cipher {
        Cipher::Aes256Xts => Algorithm::Aes256XtsPlain64,
        Cipher::Aes128Xts => Algorithm::Aes128XtsPlain64,
    }
}

/// Costs of a new keyslot. Argon2id: 64 MiB as RFC 9106 section 4 recommends where memory counts,
/// and twice its passes; a daemon may have many volumes to unlock at its start. PBKDF2, unless told:
/// the least that cryptsetup accepts, as a random secret needs no stretching.
pub(super) fn slot_kdf(kdf: Kdf, iterations: Option<u32>) -> anyhow::Result<SlotKdf> {
    match (kdf, iterations) {
        (Kdf::Argon2id, None) => {
            Ok(SlotKdf::Argon2id { passes: 6, memory_kib: 64 << 10, lanes: 4 })
        }
        (Kdf::Argon2id, Some(_)) => Err(anyhow!("--iterations is for --kdf pbkdf2")),
        (Kdf::Pbkdf2, n) => Ok(SlotKdf::Pbkdf2Sha256 { iterations: n.unwrap_or(1000) }),
    }
}

fn report(args: &args::Format, target: &Target, console: &mut Console<'_>) -> Result<(), Failure> {
    let disk = target.size_bytes() - HEADER_BYTES;
    writeln!(
        console.out,
        "{}: LUKS2, {}-byte sectors; the guest's disk is {} ({disk} bytes), behind {} of header",
        args.volume,
        args.sector_size,
        human(disk),
        human(HEADER_BYTES),
    )?;
    Ok(())
}
