//! The questions to a KMIP server, and what its answers say.
//!
//! Contract: an answer is hostile until read: one message, one batch item, and of Get the object that
//! was asked for. What doesn't fit is `None`. Get's messages are the same in all versions up to 2.1;
//! only the version in the header differs.

use std::fmt;

use super::ttlv::{BYTES, ENUMERATION, INTEGER, Item, TEXT, Tag, Writer};

/// Longest answer, in bytes: the longest passphrase and what is around it.
pub(super) const RESPONSE_MAX_BYTES: usize = crate::MAX_KEY_BYTES + 4096;

// KMIP 1.4 section 9.1.3.1, KMIP 2.1 section 11.57: tags.
const BATCH_COUNT: Tag = 0x42000D;
const BATCH_ITEM: Tag = 0x42000F;
const KEY: Tag = 0x42003F;
const KEY_BLOCK: Tag = 0x420040;
const KEY_MATERIAL: Tag = 0x420043;
const KEY_VALUE: Tag = 0x420045;
const KEY_WRAPPING_DATA: Tag = 0x420046;
const MAXIMUM_RESPONSE_SIZE: Tag = 0x420050;
const OBJECT_TYPE: Tag = 0x420057;
const OPAQUE_DATA_VALUE: Tag = 0x42005A;
const OPAQUE_OBJECT: Tag = 0x42005B;
const OPERATION: Tag = 0x42005C;
const PROTOCOL_VERSION: Tag = 0x420069;
const PROTOCOL_VERSION_MAJOR: Tag = 0x42006A;
const PROTOCOL_VERSION_MINOR: Tag = 0x42006B;
const REQUEST_HEADER: Tag = 0x420077;
const REQUEST_MESSAGE: Tag = 0x420078;
const REQUEST_PAYLOAD: Tag = 0x420079;
pub(super) const RESPONSE_MESSAGE: Tag = 0x42007B;
const RESPONSE_PAYLOAD: Tag = 0x42007C;
const RESULT_REASON: Tag = 0x42007E;
const RESULT_STATUS: Tag = 0x42007F;
const SECRET_DATA: Tag = 0x420085;
const SECRET_DATA_TYPE: Tag = 0x420086;
const SYMMETRIC_KEY: Tag = 0x42008F;
const UNIQUE_IDENTIFIER: Tag = 0x420094;

// KMIP 1.4 section 9.1.3.2: operations, object types, secret data types, result status.
const GET: u32 = 0x0A;
const DISCOVER_VERSIONS: u32 = 0x1E;
const TYPE_SYMMETRIC_KEY: u32 = 2;
const TYPE_SECRET_DATA: u32 = 7;
const TYPE_OPAQUE_OBJECT: u32 = 8;
const PASSWORD: u32 = 1;
const SUCCESS: u32 = 0;

/// A version of the protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Version {
    major: u32,
    minor: u32,
}

impl Version {
    pub(super) const fn new(major: u32, minor: u32) -> Self {
        Self { major, minor }
    }

    /// One that this client speaks.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        KNOWN.iter().copied().find(|version| version.to_string() == text)
    }

    /// The newest of these that this client speaks.
    pub(super) fn newest(versions: &[Self]) -> Option<Self> {
        KNOWN.iter().copied().filter(|version| versions.contains(version)).max()
    }
}

const KNOWN: &[Version] = &[
    Version::new(1, 0),
    Version::new(1, 1),
    Version::new(1, 2),
    Version::new(1, 3),
    Version::new(1, 4),
    Version::new(2, 0),
    Version::new(2, 1),
];

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

/// What a server says to a question that it has understood.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Outcome<T> {
    Done(T),
    Refused(Reason),
}

/// A result reason (KMIP 2.1 section 11.48).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Reason(pub(super) u32);

/// What Get brought. Borrows from the answer.
#[derive(PartialEq, Eq)]
pub(super) enum Object<'a> {
    /// Secret data of type Password.
    Password(&'a [u8]),
    /// Other bytes.
    Key(&'a [u8]),
    /// The bytes are encrypted.
    Wrapped,
    /// Nothing that has plain bytes.
    Other,
}

/// Which versions the server has.
pub(super) fn discover(version: Version) -> Vec<u8> {
    request(version, DISCOVER_VERSIONS, |_| {})
}

/// The object with this identifier, in the format in which it is.
pub(super) fn get(version: Version, id: &str) -> Vec<u8> {
    request(version, GET, |payload| payload.text(UNIQUE_IDENTIFIER, id))
}

fn request(version: Version, operation: u32, payload: impl FnOnce(&mut Writer)) -> Vec<u8> {
    let mut writer = Writer::default();
    writer.structure(REQUEST_MESSAGE, |message| {
        message.structure(REQUEST_HEADER, |header| {
            header.structure(PROTOCOL_VERSION, |field| {
                field.integer(PROTOCOL_VERSION_MAJOR, version.major);
                field.integer(PROTOCOL_VERSION_MINOR, version.minor);
            });
            header.integer(MAXIMUM_RESPONSE_SIZE, RESPONSE_MAX_BYTES as u32);
            header.integer(BATCH_COUNT, 1);
        });
        message.structure(BATCH_ITEM, |item| {
            item.enumeration(OPERATION, operation);
            item.structure(REQUEST_PAYLOAD, payload);
        });
    });
    writer.finish()
}

/// The only batch item's payload, or why there is none.
fn payload(answer: &[u8]) -> Option<Outcome<Item<'_>>> {
    let (message, rest) = Item::first(answer)?;
    if message.tag != RESPONSE_MESSAGE || !rest.is_empty() {
        return None;
    }
    let mut batch = message.items()?.filter_map(|item| match item {
        Some(item) if item.tag != BATCH_ITEM => None,
        item => Some(item),
    });
    let item = batch.next()??;
    if batch.next().is_some() {
        return None;
    }
    if item.find(RESULT_STATUS)?.number(ENUMERATION)? != SUCCESS {
        let reason = item.find(RESULT_REASON)?.number(ENUMERATION)?;
        return Some(Outcome::Refused(Reason(reason)));
    }
    item.find(RESPONSE_PAYLOAD).map(Outcome::Done)
}

/// The answer to [`discover`].
pub(super) fn versions(answer: &[u8]) -> Option<Outcome<Vec<Version>>> {
    let payload = match payload(answer)? {
        Outcome::Done(payload) => payload,
        Outcome::Refused(reason) => return Some(Outcome::Refused(reason)),
    };
    let mut versions = Vec::new();
    for item in payload.items()? {
        let item = item?;
        if item.tag == PROTOCOL_VERSION {
            let part = |tag| item.find(tag)?.number(INTEGER);
            versions
                .push(Version::new(part(PROTOCOL_VERSION_MAJOR)?, part(PROTOCOL_VERSION_MINOR)?));
        }
    }
    Some(Outcome::Done(versions))
}

/// The answer to [`get`].
pub(super) fn object<'a>(answer: &'a [u8], id: &str) -> Option<Outcome<Object<'a>>> {
    let payload = match payload(answer)? {
        Outcome::Done(payload) => payload,
        Outcome::Refused(reason) => return Some(Outcome::Refused(reason)),
    };
    if payload.find(UNIQUE_IDENTIFIER)?.bytes(TEXT)? != id.as_bytes() {
        return None;
    }
    let object = match payload.find(OBJECT_TYPE)?.number(ENUMERATION)? {
        TYPE_SYMMETRIC_KEY => match key(&payload.find(SYMMETRIC_KEY)?)? {
            Object::Password(bytes) => Object::Key(bytes),
            other => other,
        },
        TYPE_SECRET_DATA => {
            let data = payload.find(SECRET_DATA)?;
            let kind = data.find(SECRET_DATA_TYPE)?.number(ENUMERATION)?;
            match key(&data)? {
                Object::Key(bytes) if kind == PASSWORD => Object::Password(bytes),
                other => other,
            }
        }
        TYPE_OPAQUE_OBJECT => {
            Object::Key(payload.find(OPAQUE_OBJECT)?.find(OPAQUE_DATA_VALUE)?.bytes(BYTES)?)
        }
        _ => Object::Other,
    };
    Some(Outcome::Done(object))
}

/// What a key block holds (KMIP 1.4 section 2.1.3).
fn key<'a>(object: &Item<'a>) -> Option<Object<'a>> {
    let block = object.find(KEY_BLOCK)?;
    if block.find(KEY_WRAPPING_DATA).is_some() {
        return Some(Object::Wrapped);
    }
    let material = block.find(KEY_VALUE)?.find(KEY_MATERIAL)?;
    // Raw and Opaque are bytes, Transparent Symmetric Key is a structure.
    let bytes = material.bytes(BYTES).or_else(|| material.find(KEY)?.bytes(BYTES));
    Some(bytes.map_or(Object::Other, Object::Key))
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    impl fmt::Debug for Object<'_> {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str(match self {
                Self::Password(_) => "Password",
                Self::Key(_) => "Key",
                Self::Wrapped => "Wrapped",
                Self::Other => "Other",
            })
        }
    }

    const RESPONSE_HEADER: Tag = 0x42007A;

    pub(in crate::kmip) fn answer(fill: impl FnOnce(&mut Writer)) -> Vec<u8> {
        let mut writer = Writer::default();
        writer.structure(RESPONSE_MESSAGE, |message| {
            message.structure(RESPONSE_HEADER, |header| header.integer(BATCH_COUNT, 1));
            message.structure(BATCH_ITEM, fill);
        });
        writer.finish()
    }

    fn got(kind: u32, id: &str, fill: impl FnOnce(&mut Writer)) -> Vec<u8> {
        answer(|item| {
            item.enumeration(OPERATION, GET);
            item.enumeration(RESULT_STATUS, SUCCESS);
            item.structure(RESPONSE_PAYLOAD, |payload| {
                payload.enumeration(OBJECT_TYPE, kind);
                payload.text(UNIQUE_IDENTIFIER, id);
                fill(payload);
            });
        })
    }

    fn block(writer: &mut Writer, material: impl FnOnce(&mut Writer), wrapped: bool) {
        writer.structure(KEY_BLOCK, |block| {
            block.structure(KEY_VALUE, material);
            if wrapped {
                block.structure(KEY_WRAPPING_DATA, |_| {});
            }
        });
    }

    fn raw(bytes: &'static [u8]) -> impl FnOnce(&mut Writer) {
        move |value| value.bytes(KEY_MATERIAL, bytes)
    }

    #[test]
    fn every_kind_of_object_with_plain_bytes_is_understood() {
        let symmetric = got(TYPE_SYMMETRIC_KEY, "1", |payload| {
            payload.structure(SYMMETRIC_KEY, |key| block(key, raw(b"k"), false));
        });
        assert_eq!(object(&symmetric, "1"), Some(Outcome::Done(Object::Key(b"k"))));
        let transparent = got(TYPE_SYMMETRIC_KEY, "1", |payload| {
            payload.structure(SYMMETRIC_KEY, |key| {
                block(key, |value| value.structure(KEY_MATERIAL, |m| m.bytes(KEY, b"t")), false);
            });
        });
        assert_eq!(object(&transparent, "1"), Some(Outcome::Done(Object::Key(b"t"))));
        for (kind, expected) in [(PASSWORD, Object::Password(b"p")), (2, Object::Key(b"p"))] {
            let secret = got(TYPE_SECRET_DATA, "1", |payload| {
                payload.structure(SECRET_DATA, |data| {
                    data.enumeration(SECRET_DATA_TYPE, kind);
                    block(data, raw(b"p"), false);
                });
            });
            assert_eq!(object(&secret, "1"), Some(Outcome::Done(expected)));
        }
        let opaque = got(TYPE_OPAQUE_OBJECT, "1", |payload| {
            payload.structure(OPAQUE_OBJECT, |object| object.bytes(OPAQUE_DATA_VALUE, b"o"));
        });
        assert_eq!(object(&opaque, "1"), Some(Outcome::Done(Object::Key(b"o"))));
    }

    #[test]
    fn what_has_no_plain_bytes_is_told_apart() {
        let wrapped = got(TYPE_SYMMETRIC_KEY, "1", |payload| {
            payload.structure(SYMMETRIC_KEY, |key| block(key, raw(b"k"), true));
        });
        assert_eq!(object(&wrapped, "1"), Some(Outcome::Done(Object::Wrapped)));
        let certificate = got(1, "1", |_| {});
        assert_eq!(object(&certificate, "1"), Some(Outcome::Done(Object::Other)));
        let numbers = got(TYPE_SYMMETRIC_KEY, "1", |payload| {
            payload.structure(SYMMETRIC_KEY, |key| {
                block(key, |value| value.integer(KEY_MATERIAL, 1), false);
            });
        });
        assert_eq!(object(&numbers, "1"), Some(Outcome::Done(Object::Other)));
    }

    #[test]
    fn another_object_than_the_one_asked_for_is_nonsense() {
        let other = got(TYPE_SYMMETRIC_KEY, "2", |payload| {
            payload.structure(SYMMETRIC_KEY, |key| block(key, raw(b"k"), false));
        });
        assert_eq!(object(&other, "1"), None);
        assert!(object(&other, "2").is_some());
        // Any byte cut off, or behind it.
        for end in 0..other.len() {
            assert_eq!(object(&other[..end], "2"), None);
        }
        assert_eq!(object(&[&other[..], &[0; 8]].concat(), "2"), None);
    }

    #[test]
    fn a_refusal_has_its_reason() {
        let refused = answer(|item| {
            item.enumeration(OPERATION, GET);
            item.enumeration(RESULT_STATUS, 1);
            item.enumeration(RESULT_REASON, 0x0C);
        });
        assert_eq!(object(&refused, "1"), Some(Outcome::Refused(Reason(0x0C))));
        assert_eq!(versions(&refused), Some(Outcome::Refused(Reason(0x0C))));
        // Without a reason, or with two answers, it is none.
        assert_eq!(object(&answer(|item| item.enumeration(RESULT_STATUS, 1)), "1"), None);
        let mut twice = Writer::default();
        twice.structure(RESPONSE_MESSAGE, |message| {
            for _ in 0..2 {
                message.structure(BATCH_ITEM, |item| {
                    item.enumeration(RESULT_STATUS, 1);
                    item.enumeration(RESULT_REASON, 1);
                });
            }
        });
        assert_eq!(object(&twice.finish(), "1"), None);
    }

    #[test]
    fn the_newest_common_version_is_chosen() {
        let told = |list: &[(u32, u32)]| {
            answer(|item| {
                item.enumeration(RESULT_STATUS, SUCCESS);
                item.structure(RESPONSE_PAYLOAD, |payload| {
                    for (major, minor) in list {
                        payload.structure(PROTOCOL_VERSION, |version| {
                            version.integer(PROTOCOL_VERSION_MAJOR, *major);
                            version.integer(PROTOCOL_VERSION_MINOR, *minor);
                        });
                    }
                });
            })
        };
        for (list, expected) in [
            (&[(1, 0), (2, 0), (1, 4)][..], Some("2.0")),
            (&[(3, 0), (1, 1)], Some("1.1")),
            (&[(3, 0)], None),
            (&[], None),
        ] {
            let Some(Outcome::Done(versions)) = versions(&told(list)) else { panic!("{list:?}") };
            let newest = Version::newest(&versions).map(|version| version.to_string());
            assert_eq!(newest.as_deref(), expected);
        }
        for text in ["1.0", "1.4", "2.1"] {
            assert_eq!(Version::parse(text).unwrap().to_string(), text);
        }
        for text in ["", "1", "1.5", "3.0", "1.2 "] {
            assert_eq!(Version::parse(text), None);
        }
    }
}
