//! TTLV: tag, type, length, value (KMIP 1.4 section 9.1, KMIP 2.1 section 9.1).
//!
//! Contract: the reader takes any bytes and never reads beyond them; it looks at one level at a
//! time, so nothing nests deeper than its caller asks, and it allocates nothing. The writer's items
//! are well-formed by construction.

/// What an item is: three bytes.
pub(super) type Tag = u32;

pub(super) const STRUCTURE: u8 = 1;
pub(super) const INTEGER: u8 = 2;
pub(super) const ENUMERATION: u8 = 5;
pub(super) const TEXT: u8 = 7;
pub(super) const BYTES: u8 = 8;

/// Bytes before a value.
pub(super) const HEAD: usize = 8;
/// Values are padded to a multiple of this.
const UNIT: usize = 8;

/// One item, and where its value is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Item<'a> {
    pub(super) tag: Tag,
    pub(super) kind: u8,
    pub(super) value: &'a [u8],
}

impl<'a> Item<'a> {
    /// The first item of `bytes`, and what comes after it.
    pub(super) fn first(bytes: &'a [u8]) -> Option<(Self, &'a [u8])> {
        let (head, rest) = bytes.split_first_chunk::<HEAD>()?;
        let [tag @ .., kind, _, _, _, _] = *head;
        let [_, _, _, _, length @ ..] = *head;
        let tag = u32::from_be_bytes([0, tag[0], tag[1], tag[2]]);
        let length = usize::try_from(u32::from_be_bytes(length)).ok()?;
        let (value, _) = rest.split_at_checked(length)?;
        let padded = length.checked_next_multiple_of(UNIT)?;
        let (_, rest) = rest.split_at_checked(padded)?;
        Some((Self { tag, kind, value }, rest))
    }

    /// The items of a structure.
    pub(super) fn items(&self) -> Option<Items<'a>> {
        (self.kind == STRUCTURE).then_some(Items(self.value))
    }

    /// The first item of a structure with this tag. None also if what comes before is malformed.
    pub(super) fn find(&self, tag: Tag) -> Option<Item<'a>> {
        for item in self.items()? {
            let item = item?;
            if item.tag == tag {
                return Some(item);
            }
        }
        None
    }

    /// An integer's or an enumeration's value.
    pub(super) fn number(&self, kind: u8) -> Option<u32> {
        let value = <[u8; 4]>::try_from(self.value).ok()?;
        (self.kind == kind).then_some(u32::from_be_bytes(value))
    }

    /// A text's or a byte string's content.
    pub(super) fn bytes(&self, kind: u8) -> Option<&'a [u8]> {
        (self.kind == kind).then_some(self.value)
    }
}

/// Items one after the other; ends after the first that is malformed, which is `None`.
#[derive(Debug, Clone)]
pub(super) struct Items<'a>(&'a [u8]);

impl<'a> Iterator for Items<'a> {
    type Item = Option<Item<'a>>;

    fn next(&mut self) -> Option<Option<Item<'a>>> {
        if self.0.is_empty() {
            return None;
        }
        let first = Item::first(self.0);
        self.0 = first.map_or(&[], |(_, rest)| rest);
        Some(first.map(|(item, _)| item))
    }
}

/// Items being written. Nothing secret is written here.
#[derive(Debug, Default)]
pub(super) struct Writer(Vec<u8>);

impl Writer {
    pub(super) fn finish(self) -> Vec<u8> {
        self.0
    }

    fn item(&mut self, tag: Tag, kind: u8, value: &[u8]) {
        let [_, tag @ ..] = tag.to_be_bytes();
        self.0.extend(tag);
        self.0.push(kind);
        // Requests are some hundred bytes.
        self.0.extend((value.len() as u32).to_be_bytes());
        self.0.extend(value);
        self.0.resize(self.0.len().next_multiple_of(UNIT), 0);
    }

    pub(super) fn integer(&mut self, tag: Tag, value: u32) {
        self.item(tag, INTEGER, &value.to_be_bytes());
    }

    pub(super) fn enumeration(&mut self, tag: Tag, value: u32) {
        self.item(tag, ENUMERATION, &value.to_be_bytes());
    }

    pub(super) fn text(&mut self, tag: Tag, value: &str) {
        self.item(tag, TEXT, value.as_bytes());
    }

    #[cfg(test)]
    pub(super) fn bytes(&mut self, tag: Tag, value: &[u8]) {
        self.item(tag, BYTES, value);
    }

    pub(super) fn structure(&mut self, tag: Tag, fill: impl FnOnce(&mut Self)) {
        let mut inner = Self::default();
        fill(&mut inner);
        self.item(tag, STRUCTURE, &inner.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_examples_of_the_standard_are_read_and_written() {
        // KMIP 1.4 section 9.1.2: integer 8, enumeration 255, "Hello World", 01 02 03.
        let mut writer = Writer::default();
        writer.integer(0x420020, 8);
        writer.enumeration(0x420020, 255);
        writer.text(0x420020, "Hello World");
        writer.bytes(0x420020, &[1, 2, 3]);
        let expected = [
            "42002002000000040000000800000000",
            "4200200500000004000000FF00000000",
            "420020070000000B48656C6C6F20576F726C640000000000",
            "42002008000000030102030000000000",
        ];
        let bytes = writer.finish();
        let hex: String = bytes.iter().map(|byte| format!("{byte:02X}")).collect();
        assert_eq!(hex, expected.concat());
        let items: Vec<_> = Items(&bytes).map(Option::unwrap).collect();
        assert!(items.iter().all(|item| item.tag == 0x420020));
        assert_eq!(items[0].number(INTEGER), Some(8));
        assert_eq!(items[0].number(ENUMERATION), None);
        assert_eq!(items[1].number(ENUMERATION), Some(255));
        assert_eq!(items[2].bytes(TEXT), Some(&b"Hello World"[..]));
        assert_eq!(items[3].bytes(BYTES), Some(&[1, 2, 3][..]));
    }

    #[test]
    fn a_structure_is_searched_one_level_deep() {
        let mut writer = Writer::default();
        writer.structure(1, |outer| {
            outer.structure(2, |inner| inner.integer(3, 7));
            outer.integer(4, 8);
        });
        let bytes = writer.finish();
        let (outer, rest) = Item::first(&bytes).unwrap();
        assert!(rest.is_empty());
        assert_eq!(outer.find(3), None);
        assert_eq!(outer.find(2).unwrap().find(3).unwrap().number(INTEGER), Some(7));
        assert_eq!(outer.find(4).unwrap().number(INTEGER), Some(8));
        assert_eq!(outer.find(4).unwrap().find(3), None);
    }

    #[test]
    fn bytes_that_end_too_early_are_none() {
        let mut writer = Writer::default();
        writer.structure(1, |outer| outer.bytes(2, b"12345"));
        let bytes = writer.finish();
        for end in 0..bytes.len() {
            assert_eq!(Item::first(&bytes[..end]), None, "{end}");
        }
        // The inner length says more than there is.
        for length in [6u32, 9, 1 << 16, u32::MAX] {
            let mut longer = bytes.clone();
            longer[12..16].copy_from_slice(&length.to_be_bytes());
            let (outer, _) = Item::first(&longer).unwrap();
            let fits = length <= 8;
            assert_eq!(outer.find(2).is_some(), fits, "{length}");
            assert_eq!(outer.items().unwrap().count(), 1);
        }
    }
}
