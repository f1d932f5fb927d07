//! From a volume and a key to a disk that a session can serve: the composition.
//!
//! Contract: blocks (storage, key source, key derivation), so it runs on a thread of its own. The
//! passphrase is gone when [`open`] returns; what stays is the volume key, in protected memory.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, anyhow, bail, ensure};
use sealblk_api::{Encryption, VolumeStatus};
use sealblk_block::{Geometry, SECTOR_BYTES, VolumeError, in_one_line};
use sealblk_cipher::{Implementation, SegmentSpec, sector_cipher};
use sealblk_engine::{Disk, EngineConfig};
use sealblk_keys::KeySource;
use sealblk_luks::{Header, LuksError, Policy, ReadAt, Rotation, RotationStatus};
use sealblk_rotation::{Ages, HeaderLock, Reader, known_age};
use sealblk_session::StopHandle;
use sealblk_virtqueue::blk::{DiskProfile, RangeLimits};
use sealblk_volume::{Handed, OpenOptions, Volume};

use crate::aging::Aging;
use crate::audit;
use crate::config::{self, OnError, Protection, SERIAL_BYTES, SocketConfig, VolumeConfig};
use crate::growth::{Growth, Layout, is_dynamic};
use crate::host::Host;
use crate::mend::mend_header;
use crate::news;
use crate::rotator::{Parts, Rotator};
use crate::status::View;

/// How long to wait for a volume that somebody holds: the kernel may still be finishing the last
/// writes of a daemon that was killed a moment ago.
const LOCK_WAIT: Duration = Duration::from_secs(10);

/// Limits of one range of a discard, 4 GiB less a block, and of ranges in one: what the kernel's
/// driver sends at most (`MAX_DISCARD_SEGMENTS` is 256).
const DISCARD: RangeLimits = RangeLimits { sectors_max: 8_388_600, ranges_max: 64 };

/// Zeroes are written as ciphertext, and their queue does nothing else meanwhile: 4 MiB at a time
/// keep others' requests from waiting for seconds. The guest's kernel splits what is longer.
/// A multiple of every block size.
const WRITE_ZEROES: RangeLimits = RangeLimits { sectors_max: 8192, ranges_max: 1 };

/// Longest data buffer in bytes: the kernel's driver makes longer requests of several.
const SEGMENT_BYTES_MAX: u32 = 1 << 20;

/// A disk, ready to be served.
pub(crate) struct Opened {
    pub(crate) name: String,
    pub(crate) socket: SocketConfig,
    pub(crate) profile: DiskProfile,
    pub(crate) host: Host,
    volume: Arc<dyn Volume>,
    status: VolumeStatus,
    /// None for a volume without keys.
    rotator: Option<Rotator>,
    pub(crate) growth: Growth,
}

impl Opened {
    /// What `status` shows of it.
    pub(crate) fn view(&self, session: StopHandle) -> View {
        View {
            fixed: self.status.clone(),
            rotator: self.rotator.clone(),
            growth: self.growth.clone(),
            asked: self.host.asked(),
            stats: self.host.stats(),
            path: self.host.path(),
            session,
        }
    }

    /// To see whether the volume is closed for good.
    pub(crate) fn volume(&self) -> std::sync::Weak<dyn Volume> {
        Arc::downgrade(&self.volume)
    }

    /// Ends the queue threads and makes everything durable that the volume has taken.
    ///
    /// # Errors
    /// The last flush failed: nobody knows what of the guest's last writes is durable.
    pub(crate) fn close(self) -> anyhow::Result<()> {
        let Self { host, volume, rotator, name, .. } = self;
        if let Some(rotator) = rotator {
            rotator.stop();
        }
        drop(host);
        if volume.geometry().read_only {
            audit::record(&audit::Event::VolumeClosed { volume: &name, error: None });
            return Ok(());
        }
        let flushed =
            volume.flush().map_err(nameless).context("the last flush failed, writes may be lost");
        let error = flushed.as_ref().err().map(|error| in_one_line(error.as_ref()));
        audit::record(&audit::Event::VolumeClosed { volume: &name, error: error.as_deref() });
        flushed
    }
}

/// No keyslot opens with what the key source gave: why, and what to do.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct WrongKey(String);

/// Opens the volume (which may have been `handed` to us open), unlocks it, and starts its queue
/// threads. What no volume has a place for is in `ages`.
pub(crate) fn open(
    config: VolumeConfig,
    ages: &Ages,
    handed: Option<Handed>,
) -> anyhow::Result<Opened> {
    let options = OpenOptions {
        read_only: config.read_only,
        only_look: false,
        create_bytes: None,
        lock_wait: LOCK_WAIT,
        io_timeout: config.io_timeout,
        state_dir: Some(ages.directory().to_owned()),
        handed,
    };
    let volume = sealblk_volume::open(config.uri.with_secret(), &options).map_err(nameless)?;
    let geometry = volume.geometry();
    let mut unlocked = match &config.protection {
        Protection::Key(key) => unlock(&volume, key, &config, ages)?,
        Protection::Plain => {
            tracing::warn!(
                disk = config.name,
                "served UNENCRYPTED (`plain`): whoever has the volume has the data"
            );
            plain(geometry)
        }
    };
    let serial = config.serial.clone().unwrap_or_else(|| {
        let default = unlocked.encryption.as_ref().map_or(&config.name, |e| &e.uuid);
        default.chars().filter(char::is_ascii_graphic).take(SERIAL_BYTES).collect()
    });
    let profile = profile(&config, geometry, &unlocked.segments, &serial)?;
    if let Some(e) = &unlocked.encryption {
        tracing::info!(
            disk = config.name,
            uri = %config.uri,
            cipher = e.cipher,
            key_bits = e.key_bits,
            sector_bytes = e.sector_bytes,
            by = e.implementation,
            "unlocked (LUKS{})",
            e.luks_version
        );
    }
    unlocked.record(&config.name);
    let engine = engine_config(&config);
    let disk = Disk::new(&volume, &unlocked.segments, &profile, &engine)?;
    disk.path().listen(audit::path_listener(&config.name));
    if let Some(ring) = disk.ring_features() {
        tracing::info!(
            disk = config.name,
            level = ?ring.level,
            fixed_files = ring.fixed_files,
            fixed_buffers = ring.fixed_buffers,
            restricted = ring.restricted,
            "io_uring"
        );
    }
    let rotator = match unlocked.keys.take() {
        Some(keys) => {
            let rotator = Rotator::new(Parts {
                name: config.name.clone(),
                volume: volume.clone(),
                board: disk.switchboard(),
                key: keys.key,
                key_managers: config.key_managers.clone(),
                policy: config.rotation.clone(),
                ages: ages.clone(),
                uuid: keys.uuid,
                state_dir: ages.directory().to_owned(),
                aging: keys.aging,
            });
            if let Some(rotation) = keys.rotation {
                rotator.resume(keys.unlocked, rotation);
            }
            Some(rotator)
        }
        None => None,
    };
    let growth = Growth::new(
        &config.name,
        &volume,
        disk.grower(),
        Layout::new(&unlocked.segments, profile.block_bytes, unlocked.dynamic),
        rotator.clone(),
        profile.capacity_sectors,
    );
    let (size_ear, name) = (growth.ear(), config.name.clone());
    volume.listen(Arc::new(move |event| {
        news::log(&name, &event);
        size_ear(&event);
    }));
    if volume.measure_size().is_ok_and(|size_bytes| size_bytes != geometry.size_bytes) {
        // It was resized while nobody listened.
        growth.ask_soon();
    }
    let status = VolumeStatus {
        name: config.name.clone(),
        uri: config.uri.to_string(),
        socket: config.socket.path.display().to_string(),
        capacity_bytes: profile.capacity_sectors * SECTOR_BYTES,
        block_bytes: profile.block_bytes,
        read_only: profile.read_only,
        discard: profile.discard.is_some(),
        serial,
        encryption: unlocked.encryption,
        limits: config.limits.shown(),
        ..VolumeStatus::default()
    };
    Ok(Opened {
        name: config.name,
        socket: config.socket,
        profile,
        host: Host::new(disk),
        volume,
        status,
        rotator,
        growth,
    })
}

/// The segments of a volume, with their key.
struct Unlocked {
    segments: Vec<SegmentSpec>,
    /// They reach to the volume's end, also when it grows.
    dynamic: bool,
    encryption: Option<Encryption>,
    keys: Option<Keys>,
}

impl Unlocked {
    /// For the audit log.
    fn record(&self, volume: &str) {
        let key = self.keys.as_ref().map(|keys| (keys.key.to_string(), &keys.fingerprint));
        let (key, fingerprint) = key.as_ref().map_or(("", ""), |(key, print)| (key, print));
        let encryption = self.encryption.as_ref();
        audit::record(&audit::Event::unlocked(volume, key, encryption, fingerprint));
    }
}

/// What a rotation goes on with.
struct Keys {
    unlocked: sealblk_luks::Unlocked,
    /// The volume's UUID.
    uuid: String,
    /// The source that opened.
    key: KeySource,
    /// What the volume key's digest begins with.
    fingerprint: String,
    /// One that is under way.
    rotation: Option<Rotation>,
    aging: Aging,
}

fn unlock(
    volume: &Arc<dyn Volume>,
    key: &KeySource,
    config: &VolumeConfig,
    ages: &Ages,
) -> anyhow::Result<Unlocked> {
    let name = config.name.as_str();
    let mut io = Reader(&**volume);
    let header = load(&mut io, config)?;
    let (unlocked, key) = open_keys(&**volume, &header, key, config)?;
    mend_header(&**volume, &mut io, &header, name);
    let (header, segments, rotation) = take_up(&**volume, header, &unlocked, config, ages)?;
    let encryption = describe_encryption(&header, &segments, config.cipher.into())?;
    for warning in sealblk_cipher::warnings() {
        tracing::warn!(disk = name, "{warning}");
    }
    let aging = aging(&header, volume.geometry().read_only, config, ages);
    Ok(Unlocked {
        segments,
        dynamic: is_dynamic(&header),
        encryption,
        keys: Some(Keys {
            fingerprint: audit::fingerprint(&header, &unlocked),
            unlocked,
            uuid: header.uuid(),
            key,
            rotation,
            aging,
        }),
    })
}

/// Recovers the volume key, or both in the middle of a rotation; gives the source that opened.
fn open_keys(
    volume: &dyn Volume,
    header: &Header,
    key: &KeySource,
    config: &VolumeConfig,
) -> anyhow::Result<(sealblk_luks::Unlocked, KeySource)> {
    let mut failure = None;
    for source in std::iter::once(key).chain(&config.new_key) {
        let fetched = match config.key_managers.fetch(source) {
            Ok(fetched) => fetched,
            Err(error) => {
                // Of two that fail the first is the one to end with.
                tracing::warn!(disk = config.name, "{error}");
                audit::key_fetch_failed(&config.name, source, &error.to_string());
                failure = Some(failure.unwrap_or_else(|| error.into()));
                continue;
            }
        };
        if let Some(warning) = &fetched.warning {
            tracing::warn!(disk = config.name, "{warning}");
        }
        match sealblk_rotation::unlock(volume, header, &[&fetched.passphrase]) {
            Ok(unlocked) => return Ok((unlocked, source.clone())),
            Err(error) => {
                let error = explain(error, source, fetched.hint());
                audit::key_fetch_failed(&config.name, source, &in_one_line(error.as_ref()));
                failure = Some(failure.unwrap_or(error));
            }
        }
    }
    Err(failure.unwrap_or_else(|| anyhow!("there is no key")))
}

/// What the header says of a rotation is done before anybody reads: a zone that was interrupted is
/// redone, and what a rotation left behind is wiped.
fn take_up(
    volume: &dyn Volume,
    header: Header,
    unlocked: &sealblk_luks::Unlocked,
    config: &VolumeConfig,
    ages: &Ages,
) -> anyhow::Result<(Header, Vec<SegmentSpec>, Option<Rotation>)> {
    let geometry = volume.geometry();
    if geometry.read_only {
        ensure!(
            !sealblk_rotation::must_be_taken_up(&header)?,
            "its rotation was interrupted within a zone, which has to be redone before anybody \
             reads: serve it once with the right to write"
        );
        let segments = header.segments(unlocked, geometry.size_bytes)?;
        return Ok((header, segments, None));
    }
    let zone_bytes = config.rotation.hotzone_bytes.unwrap_or(sealblk_rotation::ZONE_BYTES);
    let params = sealblk_rotation::params(volume, zone_bytes);
    let _lock = HeaderLock::take(volume.uri(), &mut || {});
    let taken = sealblk_rotation::take_up(volume, unlocked, params, Some(ages))
        .context("taking up its rotation")?;
    for line in &taken.done {
        tracing::info!(disk = config.name, "{line}");
        audit::record(&audit::Event::HeaderChanged { volume: &config.name, change: line });
    }
    Ok((taken.header, taken.segments, taken.rotation))
}

/// How old its keys are.
fn aging(header: &Header, read_only: bool, config: &VolumeConfig, ages: &Ages) -> Aging {
    let known = known_age(header, read_only, ages);
    for reason in &known.trouble {
        tracing::warn!(disk = config.name, "a note of its keys' age is of no use: {reason}");
    }
    Aging {
        age: known.age,
        schedule: config.rotation.schedule.clone(),
        under_way: header.rotation_status().is_ok_and(|status| status != RotationStatus::None),
    }
}

/// The header, if it is the one that the configuration expects. Storage can answer with an older
/// or another volume's header, whose passphrase we may know.
fn load(io: &mut dyn ReadAt, config: &VolumeConfig) -> anyhow::Result<Header> {
    let header = match config.luks {
        // What was LUKS1 and will be again is LUKS2 for the time of a rotation.
        Some(1) => {
            let header = Header::load(io, &Policy::default())?;
            if header.version() == 2 && !header.is_luks1_for_now_luks2() {
                return Err(LuksError::VersionNotAllowed { found: 2 }.into());
            }
            header
        }
        Some(2) => Header::load(io, &Policy { luks1: false, luks2: true })?,
        _ => Header::load(io, &Policy::default())?,
    };
    if let Some(pinned) = &config.uuid {
        let found = header.uuid();
        ensure!(
            found.eq_ignore_ascii_case(pinned),
            "its LUKS header has the UUID {found:?}, and the configuration (`uuid`) wants \
             {pinned:?}: it is another volume, or somebody replaced its header",
        );
    }
    Ok(header)
}

/// What `status` and the log say about the cipher of the first segment; all have the same.
fn describe_encryption(
    header: &Header,
    segments: &[SegmentSpec],
    implementation: Implementation,
) -> anyhow::Result<Option<Encryption>> {
    let Some(first) = segments.first() else { return Ok(None) };
    let Some((algorithm, key)) = &first.crypt else { return Ok(None) };
    let cipher = sector_cipher(*algorithm, key, first.sector_bytes, implementation)?;
    Ok(Some(Encryption {
        luks_version: header.version(),
        uuid: header.uuid(),
        cipher: "aes-xts-plain64".to_owned(),
        key_bits: algorithm.key_bytes() as u32 * 8,
        sector_bytes: first.sector_bytes,
        implementation: cipher.implementation().to_owned(),
    }))
}

/// The whole volume as it is.
fn plain(geometry: Geometry) -> Unlocked {
    let block_bytes = u64::from(geometry.block_bytes);
    let segment = SegmentSpec {
        start: 0,
        sectors: geometry.size_bytes / block_bytes * block_bytes / SECTOR_BYTES,
        volume_start: 0,
        iv_start: 0,
        sector_bytes: geometry.block_bytes,
        crypt: None,
    };
    Unlocked { segments: vec![segment], dynamic: true, encryption: None, keys: None }
}

fn explain(error: LuksError, key: &KeySource, hint: Option<&str>) -> anyhow::Error {
    match error {
        LuksError::NoKeyslotOpens { .. } => match hint {
            Some(hint) => WrongKey(format!("unlocking it with key {key}: {error}; {hint}")).into(),
            None => WrongKey(format!("unlocking it with key {key}: {error}")).into(),
        },
        error => anyhow!(error).context("unlocking it"),
    }
}

/// The guest's disk. Its logical block is a whole encryption sector and a whole block of the
/// volume, so that no request needs a read before its write.
fn profile(
    config: &VolumeConfig,
    geometry: Geometry,
    segments: &[SegmentSpec],
    serial: &str,
) -> anyhow::Result<DiskProfile> {
    for (index, segment) in segments.iter().enumerate() {
        let offset_bytes = u128::from(segment.volume_start) * u128::from(SECTOR_BYTES);
        ensure!(
            offset_bytes % u128::from(geometry.block_bytes) == 0,
            "segment {index} lies at offset {offset_bytes}, which is no multiple of the volume's \
             blocks of {} bytes: such a volume can only be served from a device with smaller blocks",
            geometry.block_bytes,
        );
    }
    let encryption_sector = segments.iter().map(|s| s.sector_bytes).max().unwrap_or(512);
    let block_bytes = encryption_sector.max(geometry.block_bytes);
    let block_sectors = u64::from(block_bytes) / SECTOR_BYTES;
    let capacity_sectors = capacity(segments) / block_sectors * block_sectors;
    if capacity_sectors == 0 {
        bail!("the volume has no room for data behind its header");
    }
    let may_discard = config.discard && geometry.discard;
    if config.discard && !geometry.discard {
        tracing::warn!(disk = config.name, "the volume cannot discard, so `discard` has no effect");
    }
    let mut serial_bytes = [0; SERIAL_BYTES];
    for (to, from) in serial_bytes.iter_mut().zip(serial.bytes()) {
        *to = from;
    }
    Ok(DiskProfile {
        capacity_sectors,
        block_bytes,
        physical_block_bytes: geometry.physical_block_bytes.max(block_bytes),
        queues: config.queues,
        // A request needs a descriptor each for its header and its status.
        seg_max: u32::from(config.queue_size) - 2,
        size_max_bytes: SEGMENT_BYTES_MAX,
        read_only: geometry.read_only,
        discard: may_discard.then_some(DISCARD),
        discard_alignment_sectors: (geometry.physical_block_bytes.max(block_bytes)
            / SECTOR_BYTES as u32),
        write_zeroes: Some(WRITE_ZEROES),
        // Discarded ciphertext does not read back as plaintext zeroes.
        write_zeroes_may_unmap: false,
        serial: serial_bytes,
    })
}

fn capacity(segments: &[SegmentSpec]) -> u64 {
    segments.last().map_or(0, |last| last.start + last.sectors)
}

fn engine_config(config: &VolumeConfig) -> EngineConfig {
    EngineConfig {
        queues: config.queues,
        queue_size_max: config.queue_size,
        poll_max: config.poll.unwrap_or(EngineConfig::POLL_MAX),
        on_error: match config.on_error {
            OnError::Report => sealblk_engine::OnError::Report,
            OnError::Hold => sealblk_engine::OnError::Hold,
        },
        hold_limit: config.hold_limit,
        limits: config::engine_limits(&config.limits),
        implementation: config.cipher.into(),
        name: config.name.clone(),
        ..EngineConfig::default()
    }
}

/// An error without the volume's name, for who has said it already.
fn nameless(error: VolumeError) -> anyhow::Error {
    match error.source {
        Some(source) => anyhow!(source).context(error.what),
        None => anyhow!(error.what),
    }
}

#[cfg(test)]
mod tests;
