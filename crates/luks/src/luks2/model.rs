//! The typed view of LUKS2 metadata, and how it is read from JSON (specification section 3).
//!
//! Contract: a [`Metadata`] exists only when every rule of this module and of [`super::rules`]
//! holds. It keeps the JSON it came from: fields and objects we don't know survive a rewrite. What
//! we don't know (types of keyslots, tokens, segments, key derivations) is kept, not fatal; whether
//! we serve such a volume is for [`super::refusal`] to say.

use std::collections::BTreeMap;

use serde_json::Value;

use super::node::Node;
use super::rules;
use crate::error::Flaw;
use crate::kdf::Kdf;

/// The valid metadata of one header.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Metadata {
    /// The JSON as it is on the volume.
    pub(crate) raw: Value,
    pub(crate) keyslots: BTreeMap<u32, Keyslot>,
    pub(crate) segments: BTreeMap<u32, Segment>,
    pub(crate) digests: BTreeMap<u32, Digest>,
    pub(crate) tokens: BTreeMap<u32, Token>,
    pub(crate) config: Config,
}

/// A range of the keyslots area, in bytes from the start of the volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Area {
    pub(crate) offset: u64,
    pub(crate) size: u64,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Keyslot {
    pub(crate) key_size: u32,
    /// 0: only when named; 1: normal; 2: first.
    pub(crate) priority: u32,
    pub(crate) area: Option<Area>,
    pub(crate) kind: KeyslotKind,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum KeyslotKind {
    Luks2(Luks2Keyslot),
    Reencrypt { mode: String, direction: String, protection: Protection },
    Unknown(String),
}

/// How the area of a reencrypt keyslot protects the range in work (specification section 3.2).
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Protection {
    Checksum {
        hash: String,
        block_bytes: u32,
    },
    Journal,
    /// `none`, the `datashift` types, or what nobody knows.
    Other(String),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Luks2Keyslot {
    pub(crate) af: Af,
    pub(crate) area_type: String,
    pub(crate) encryption: String,
    pub(crate) area_key_size: u32,
    pub(crate) kdf: Kdf,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Af {
    Luks1 { stripes: u32, hash: String },
    Unknown(String),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Segment {
    /// Bytes from the start of the volume.
    pub(crate) offset: u64,
    /// Bytes; `None` is "dynamic": to the end of the volume.
    pub(crate) size: Option<u64>,
    pub(crate) flags: Vec<String>,
    pub(crate) kind: SegmentKind,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum SegmentKind {
    Crypt { iv_tweak: u64, encryption: String, sector_bytes: u32, integrity: bool },
    Linear,
    Unknown(String),
}

impl Segment {
    /// A segment that keeps parameters for a re-encryption and maps nothing.
    pub(crate) fn is_backup(&self) -> bool {
        self.flags.iter().any(|flag| flag.starts_with("backup-"))
    }

    pub(crate) fn has_flag(&self, flag: &str) -> bool {
        self.flags.iter().any(|own| own == flag)
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Digest {
    pub(crate) kind: DigestKind,
    pub(crate) keyslots: Vec<u32>,
    pub(crate) segments: Vec<u32>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum DigestKind {
    Pbkdf2 { hash: String, iterations: u32, salt: Vec<u8>, digest: Vec<u8> },
    Unknown(String),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Token {
    pub(crate) kind: String,
    pub(crate) keyslots: Vec<u32>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Config {
    pub(crate) json_size: u64,
    pub(crate) keyslots_size: u64,
    pub(crate) flags: Vec<String>,
    pub(crate) requirements: Vec<String>,
}

impl Metadata {
    /// Reads and validates the metadata of a header whose copies are `hdr_size` bytes each.
    pub(crate) fn from_json(raw: Value, hdr_size: u64) -> Result<Self, Flaw> {
        let root = Node::root(&raw);
        let keyslots = numbered(&root, "keyslots", keyslot)?;
        let tokens = numbered(&root, "tokens", token)?;
        let segments = numbered(&root, "segments", segment)?;
        let digests = numbered(&root, "digests", digest)?;
        let config = config(&root.get("config")?)?;
        let metadata = Self { keyslots, segments, digests, tokens, config, raw };
        rules::check(&metadata, hdr_size)?;
        Ok(metadata)
    }

    /// The JSON text to write, compact.
    pub(crate) fn to_text(&self) -> Vec<u8> {
        self.raw.to_string().into_bytes()
    }

    /// Segments that map data, in order.
    pub(crate) fn live_segments(&self) -> impl Iterator<Item = (u32, &Segment)> {
        self.segments.iter().map(|(id, s)| (*id, s)).filter(|(_, segment)| !segment.is_backup())
    }

    /// The digests that segment `id` is assigned to.
    pub(crate) fn digests_of_segment(&self, id: u32) -> Vec<u32> {
        let owners = self.digests.iter().filter(|(_, digest)| digest.segments.contains(&id));
        owners.map(|(digest, _)| *digest).collect()
    }

    /// The digest that segment `id` is assigned to, if it is exactly one.
    pub(crate) fn digest_of_segment(&self, id: u32) -> Option<u32> {
        match self.digests_of_segment(id)[..] {
            [only] => Some(only),
            _ => None,
        }
    }

    /// Whether a digest's key is one of the data: of live segments, or of what a re-encryption makes
    /// of them.
    pub(crate) fn is_of_data(&self, digest: u32) -> bool {
        self.digests.get(&digest).is_some_and(|digest| !digest.segments.is_empty())
    }

    pub(crate) fn digest_of_keyslot(&self, id: u32) -> Option<u32> {
        self.digests.iter().find(|(_, d)| d.keyslots.contains(&id)).map(|(digest, _)| *digest)
    }
}

fn numbered<T>(
    root: &Node<'_>,
    name: &str,
    read: impl Fn(&Node<'_>) -> Result<T, Flaw>,
) -> Result<BTreeMap<u32, T>, Flaw> {
    root.get(name)?.numbered()?.into_iter().map(|(id, node)| Ok((id, read(&node)?))).collect()
}

fn keyslot(node: &Node<'_>) -> Result<Keyslot, Flaw> {
    let key_size = node.get("key_size")?.u32()?;
    let priority = match node.get_optional("priority")? {
        None => 1,
        Some(priority) => match priority.u32()? {
            value @ 0..=2 => value,
            value => return Err(priority.flaw(format!("is {value}, not 0, 1 or 2"))),
        },
    };
    let area_node = node.get_optional("area")?;
    let area = area_node.as_ref().map(area).transpose()?;
    let needed_area = || node.get("area");
    let kind = match node.get("type")?.string()? {
        "luks2" => KeyslotKind::Luks2(luks2_keyslot(node, &needed_area()?)?),
        "reencrypt" => {
            if key_size != 1 {
                return Err(node.flaw(format!("is a reencrypt keyslot with key_size {key_size}")));
            }
            KeyslotKind::Reencrypt {
                mode: node.get("mode")?.string()?.into(),
                direction: node.get("direction")?.string()?.into(),
                protection: protection(&needed_area()?)?,
            }
        }
        other => KeyslotKind::Unknown(other.into()),
    };
    Ok(Keyslot { key_size, priority, area, kind })
}

fn area(node: &Node<'_>) -> Result<Area, Flaw> {
    Ok(Area { offset: node.get("offset")?.u64_string()?, size: node.get("size")?.u64_string()? })
}

fn protection(area: &Node<'_>) -> Result<Protection, Flaw> {
    Ok(match area.get("type")?.string()? {
        "checksum" => Protection::Checksum {
            hash: area.get("hash")?.string()?.into(),
            block_bytes: area.get("sector_size")?.u32()?,
        },
        "journal" => Protection::Journal,
        other => Protection::Other(other.into()),
    })
}

fn luks2_keyslot(node: &Node<'_>, area: &Node<'_>) -> Result<Luks2Keyslot, Flaw> {
    let af = node.get("af")?;
    let af = match af.get("type")?.string()? {
        "luks1" => {
            Af::Luks1 { stripes: af.get("stripes")?.u32()?, hash: af.get("hash")?.string()?.into() }
        }
        other => Af::Unknown(other.into()),
    };
    Ok(Luks2Keyslot {
        af,
        area_type: area.get("type")?.string()?.into(),
        encryption: area.get("encryption")?.string()?.into(),
        area_key_size: area.get("key_size")?.u32()?,
        kdf: kdf(&node.get("kdf")?)?,
    })
}

fn kdf(node: &Node<'_>) -> Result<Kdf, Flaw> {
    let salt = || node.get("salt")?.base64();
    Ok(match node.get("type")?.string()? {
        "pbkdf2" => Kdf::Pbkdf2 {
            hash: node.get("hash")?.string()?.into(),
            iterations: node.get("iterations")?.u32()?,
            salt: salt()?,
        },
        name @ ("argon2i" | "argon2id") => Kdf::Argon2 {
            id: name == "argon2id",
            passes: node.get("time")?.u32()?,
            memory_kib: node.get("memory")?.u32()?,
            lanes: node.get("cpus")?.u32()?,
            salt: salt()?,
        },
        other => Kdf::Unknown(other.into()),
    })
}

fn segment(node: &Node<'_>) -> Result<Segment, Flaw> {
    let size = node.get("size")?;
    let flags = match node.get_optional("flags")? {
        None => Vec::new(),
        Some(flags) => flags.strings()?.into_iter().map(String::from).collect(),
    };
    let kind = match node.get("type")?.string()? {
        "crypt" => SegmentKind::Crypt {
            iv_tweak: node.get("iv_tweak")?.u64_string()?,
            encryption: node.get("encryption")?.string()?.into(),
            sector_bytes: node.get("sector_size")?.u32()?,
            integrity: node.get_optional("integrity")?.is_some(),
        },
        "linear" => SegmentKind::Linear,
        other => SegmentKind::Unknown(other.into()),
    };
    Ok(Segment {
        offset: node.get("offset")?.u64_string()?,
        size: if size.string()? == "dynamic" { None } else { Some(size.u64_string()?) },
        flags,
        kind,
    })
}

fn digest(node: &Node<'_>) -> Result<Digest, Flaw> {
    let kind = match node.get("type")?.string()? {
        "pbkdf2" => DigestKind::Pbkdf2 {
            hash: node.get("hash")?.string()?.into(),
            iterations: node.get("iterations")?.u32()?,
            salt: node.get("salt")?.base64()?,
            digest: node.get("digest")?.base64()?,
        },
        other => DigestKind::Unknown(other.into()),
    };
    Ok(Digest {
        kind,
        keyslots: node.get("keyslots")?.ids()?,
        segments: node.get("segments")?.ids()?,
    })
}

fn token(node: &Node<'_>) -> Result<Token, Flaw> {
    Ok(Token { kind: node.get("type")?.string()?.into(), keyslots: node.get("keyslots")?.ids()? })
}

fn config(node: &Node<'_>) -> Result<Config, Flaw> {
    let owned = |strings: Vec<&str>| strings.into_iter().map(String::from).collect();
    let flags = match node.get_optional("flags")? {
        None => Vec::new(),
        Some(flags) => owned(flags.strings()?),
    };
    let requirements = match node.get_optional("requirements")? {
        None => Vec::new(),
        Some(requirements) => match requirements.get_optional("mandatory")? {
            None => Vec::new(),
            Some(mandatory) => owned(mandatory.strings()?),
        },
    };
    Ok(Config {
        json_size: node.get("json_size")?.u64_string()?,
        keyslots_size: node.get("keyslots_size")?.u64_string()?,
        flags,
        requirements,
    })
}
