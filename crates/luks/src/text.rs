//! NUL-padded text fields of binary headers, and how foreign text is shown.

/// The bytes before the first NUL; `None` when there is no NUL.
pub(crate) fn until_nul(field: &[u8]) -> Option<&[u8]> {
    field.iter().position(|byte| *byte == 0).map(|end| &field[..end])
}

/// A field as text for people: what is no printable text is replaced, so that a hostile header
/// cannot send control sequences to the operator's terminal.
pub(crate) fn shown(field: &[u8]) -> String {
    let bytes = until_nul(field).unwrap_or(field);
    printable(&String::from_utf8_lossy(bytes))
}

/// Text without control characters.
pub(crate) fn printable(text: &str) -> String {
    text.chars()
        .map(|char| if char.is_control() { char::REPLACEMENT_CHARACTER } else { char })
        .collect()
}

/// `text` as a field of `N` bytes with at least one NUL at its end.
pub(crate) fn field<const N: usize>(text: &str) -> Option<[u8; N]> {
    let mut field = [0; N];
    if text.len() >= N || text.bytes().any(|byte| byte == 0) {
        return None;
    }
    field[..text.len()].copy_from_slice(text.as_bytes());
    Some(field)
}
