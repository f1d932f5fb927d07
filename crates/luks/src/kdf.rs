//! From passphrase to keyslot key: PBKDF2, Argon2i, Argon2id, with caps on what a header may ask.
//!
//! Contract: the header is hostile, so [`Kdf::check`] comes before [`Kdf::derive`]; costs above the
//! limits make the keyslot unusable. One memory-hard derivation at a time per process: two hostile
//! headers must not add up. Runs for seconds: never call it on a thread that serves I/O.
//! Deliberately absent: parallel lanes; they are computed one after the other, which gives the
//! same result.

use std::sync::{Mutex, PoisonError};

use argon2::{Algorithm, Argon2, Block, Params, Version};
use sealblk_secret::SecretBytes;
use zeroize::{Zeroize as _, Zeroizing};

use crate::error::LuksError;
use crate::hash::Hash;

/// What a header may cost us. The defaults admit everything `cryptsetup` and `qemu-img` create.
///
/// The first three are for one keyslot, the totals for one call of [`crate::Header::unlock`]: a
/// keyslot that would exceed what is left of them is skipped, cheaper ones after it are not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KdfLimits {
    /// Argon2 memory in KiB: 1 GiB, `cryptsetup`'s own default and ceiling for new slots.
    pub argon2_memory_kib: u32,
    /// Argon2 memory in KiB times passes: 64 GiB, about a minute of one core.
    pub argon2_work_kib: u64,
    /// PBKDF2 iterations: 100 million, ten times what `qemu-img` spends on a fast machine.
    pub pbkdf2_iterations: u32,
    /// Argon2 memory in KiB times passes, of all keyslots tried: 64 GiB, which is 16 keyslots of
    /// 1 GiB and 4 passes.
    pub argon2_total_kib: u64,
    /// PBKDF2 iterations of all keyslots tried and of their digests: 200 million, a minute or two
    /// of one core.
    pub pbkdf2_total_iterations: u64,
}

impl Default for KdfLimits {
    fn default() -> Self {
        Self {
            argon2_memory_kib: 1 << 20,
            argon2_work_kib: 64 << 20,
            pbkdf2_iterations: 100_000_000,
            argon2_total_kib: 64 << 20,
            pbkdf2_total_iterations: 200_000_000,
        }
    }
}

/// What is left of the totals of [`KdfLimits`] during one unlocking: a hostile header has up to 32
/// keyslots, each of which may be as costly as a single one is allowed to be.
pub(crate) struct Budget {
    argon2_kib: u64,
    pbkdf2_iterations: u64,
}

impl Budget {
    pub(crate) fn new(limits: &KdfLimits) -> Self {
        Self {
            argon2_kib: limits.argon2_total_kib,
            pbkdf2_iterations: limits.pbkdf2_total_iterations,
        }
    }

    /// Takes off what a keyslot and the digest of its key cost; takes nothing when that is too
    /// much, and gives the reason.
    pub(crate) fn spend(&mut self, kdf: &Kdf, digest_iterations: u32) -> Result<(), String> {
        let (iterations, kib) = match kdf {
            Kdf::Pbkdf2 { iterations, .. } => (u64::from(*iterations), 0),
            Kdf::Argon2 { passes, memory_kib, .. } => {
                (0, u64::from(*passes) * u64::from(*memory_kib))
            }
            Kdf::Unknown(_) => (0, 0),
        };
        let iterations = iterations + u64::from(digest_iterations);
        let left =
            |unit: &str| format!("costs more than the {unit} left after the keyslots before it");
        let argon2_kib = self.argon2_kib.checked_sub(kib).ok_or_else(|| left("Argon2 work"))?;
        self.pbkdf2_iterations = self
            .pbkdf2_iterations
            .checked_sub(iterations)
            .ok_or_else(|| left("PBKDF2 iterations"))?;
        self.argon2_kib = argon2_kib;
        Ok(())
    }
}

/// More lanes than anybody's header has (`cryptsetup` stops at 4).
const MAX_LANES: u32 = 64;

/// Only one derivation may hold its hundreds of MiB.
static MEMORY_HARD: Mutex<()> = Mutex::new(());

/// A key derivation with its parameters, as a keyslot states it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Kdf {
    Pbkdf2 { hash: String, iterations: u32, salt: Vec<u8> },
    Argon2 { id: bool, passes: u32, memory_kib: u32, lanes: u32, salt: Vec<u8> },
    Unknown(String),
}

impl Kdf {
    /// The name LUKS2 gives it.
    pub(crate) fn name(&self) -> &str {
        match self {
            Self::Pbkdf2 { .. } => "pbkdf2",
            Self::Argon2 { id: true, .. } => "argon2id",
            Self::Argon2 { id: false, .. } => "argon2i",
            Self::Unknown(name) => name,
        }
    }

    /// Whether we can and may run it; the reason if not.
    pub(crate) fn check(&self, limits: &KdfLimits) -> Result<(), String> {
        match self {
            Self::Pbkdf2 { hash, iterations, .. } => {
                if Hash::from_name(hash).is_none() {
                    return Err(format!("pbkdf2 with the unknown hash {hash:?}"));
                }
                check_iterations(*iterations, limits)
            }
            Self::Argon2 { passes, memory_kib, lanes, salt, .. } => {
                if *memory_kib > limits.argon2_memory_kib {
                    return Err(format!(
                        "{} wants {memory_kib} KiB of memory, more than the limit of {} KiB",
                        self.name(),
                        limits.argon2_memory_kib
                    ));
                }
                let work_kib = u64::from(*memory_kib) * u64::from(*passes);
                if work_kib > limits.argon2_work_kib {
                    return Err(format!(
                        "{} wants {passes} passes over {memory_kib} KiB, more than the limit of \
                         {} KiB in total",
                        self.name(),
                        limits.argon2_work_kib
                    ));
                }
                if *lanes > MAX_LANES {
                    return Err(format!(
                        "{} wants {lanes} lanes, more than {MAX_LANES}",
                        self.name()
                    ));
                }
                params(*passes, *memory_kib, *lanes)?;
                if salt.len() < argon2::MIN_SALT_LEN {
                    return Err(format!("{} with a salt of {} bytes", self.name(), salt.len()));
                }
                Ok(())
            }
            Self::Unknown(name) => Err(format!("unknown key derivation {name:?}")),
        }
    }

    /// Derives `key_bytes` from `passphrase`.
    ///
    /// # Errors
    /// When [`Self::check`] would fail, or memory is short.
    pub(crate) fn derive(
        &self,
        passphrase: &SecretBytes,
        key_bytes: usize,
        limits: &KdfLimits,
    ) -> Result<SecretBytes, LuksError> {
        self.check(limits).map_err(LuksError::Kdf)?;
        let mut key = SecretBytes::zeroed(key_bytes)?;
        let derived = self.derive_into(passphrase, &mut key);
        sealblk_secret::wipe_stack();
        derived.map(|()| key)
    }

    /// In a frame of its own, which [`sealblk_secret::wipe_stack`] then overwrites.
    #[inline(never)]
    fn derive_into(
        &self,
        passphrase: &SecretBytes,
        key: &mut SecretBytes,
    ) -> Result<(), LuksError> {
        match self {
            Self::Pbkdf2 { hash, iterations, salt } => {
                let hash = Hash::from_name(hash).ok_or_else(|| LuksError::Kdf("hash".into()))?;
                hash.pbkdf2(passphrase.expose(), salt, *iterations, key.expose_mut());
                Ok(())
            }
            Self::Argon2 { id, passes, memory_kib, lanes, salt } => {
                let params = params(*passes, *memory_kib, *lanes).map_err(LuksError::Kdf)?;
                let algorithm = if *id { Algorithm::Argon2id } else { Algorithm::Argon2i };
                argon2_into(algorithm, params, passphrase, salt, key)
            }
            Self::Unknown(name) => Err(LuksError::Kdf(format!("unknown {name:?}"))),
        }
    }
}

/// Iterations of a keyslot or a digest: at least one, at most the limit.
pub(crate) fn check_iterations(iterations: u32, limits: &KdfLimits) -> Result<(), String> {
    if iterations == 0 {
        return Err("pbkdf2 with 0 iterations".into());
    }
    if iterations > limits.pbkdf2_iterations {
        return Err(format!(
            "pbkdf2 wants {iterations} iterations, more than the limit of {}",
            limits.pbkdf2_iterations
        ));
    }
    Ok(())
}

fn params(passes: u32, memory_kib: u32, lanes: u32) -> Result<Params, String> {
    Params::new(memory_kib, passes, lanes, None)
        .map_err(|error| format!("argon2 parameters t={passes} m={memory_kib} p={lanes}: {error}"))
}

fn argon2_into(
    algorithm: Algorithm,
    params: Params,
    passphrase: &SecretBytes,
    salt: &[u8],
    key: &mut SecretBytes,
) -> Result<(), LuksError> {
    let _one_at_a_time = MEMORY_HARD.lock().unwrap_or_else(PoisonError::into_inner);
    let blocks = params.block_count();
    let mut memory: Vec<Block> = Vec::new();
    memory
        .try_reserve_exact(blocks)
        .map_err(|_| LuksError::Kdf(format!("no memory for {blocks} KiB of argon2 state")))?;
    memory.resize(blocks, Block::default());
    let mut memory = Wiped(memory);
    Argon2::new(algorithm, Version::V0x13, params)
        .hash_password_into_with_memory(
            passphrase.expose(),
            salt,
            key.expose_mut(),
            memory.0.as_mut_slice(),
        )
        .map_err(|error| LuksError::Kdf(error.to_string()))
}

struct Wiped(Vec<Block>);

impl Drop for Wiped {
    fn drop(&mut self) {
        self.0.iter_mut().for_each(|block| block.zeroize());
    }
}

/// The key derivation of a keyslot to be created.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SlotKdf {
    /// PBKDF2-SHA256: for secrets of a key manager, which carry their own 256 bits of entropy, so
    /// that stretching adds nothing. 1000 is the least `cryptsetup` accepts. LUKS1 has nothing
    /// else for passphrases that people choose either (and its header says which hash): take
    /// 2 million iterations there.
    Pbkdf2Sha256 {
        /// Iterations.
        iterations: u32,
    },
    /// Argon2id: for passphrases that people choose.
    Argon2id {
        /// Passes over the memory.
        passes: u32,
        /// Memory in KiB.
        memory_kib: u32,
        /// Lanes.
        lanes: u32,
    },
}

impl Default for SlotKdf {
    fn default() -> Self {
        Self::Pbkdf2Sha256 { iterations: 1000 }
    }
}

impl SlotKdf {
    pub(crate) fn with_salt(self, hash: Hash, salt: Vec<u8>) -> Kdf {
        match self {
            Self::Pbkdf2Sha256 { iterations } => {
                Kdf::Pbkdf2 { hash: hash.name().into(), iterations, salt }
            }
            Self::Argon2id { passes, memory_kib, lanes } => {
                Kdf::Argon2 { id: true, passes, memory_kib, lanes, salt }
            }
        }
    }

    /// Below these, `cryptsetup` refuses the slot.
    pub(crate) fn check_minimum(self) -> Result<(), LuksError> {
        let (fits, least) = match self {
            Self::Pbkdf2Sha256 { iterations } => (iterations >= 1000, "1000 iterations"),
            Self::Argon2id { passes, memory_kib, lanes } => (
                passes >= 4 && memory_kib >= 32 && (1..=4).contains(&lanes),
                "4 passes, 32 KiB, 1 to 4 lanes",
            ),
        };
        if fits {
            Ok(())
        } else {
            Err(LuksError::BadParameter(format!(
                "key derivation {self:?} is outside what cryptsetup accepts (at least {least})"
            )))
        }
    }
}

/// PBKDF2 of a volume key for its digest.
pub(crate) fn key_digest(
    hash: Hash,
    key: &SecretBytes,
    salt: &[u8],
    iterations: u32,
    digest_bytes: usize,
) -> Zeroizing<Vec<u8>> {
    let mut digest = Zeroizing::new(vec![0; digest_bytes]);
    hash.pbkdf2(key.expose(), salt, iterations, &mut digest);
    sealblk_secret::wipe_stack();
    digest
}
