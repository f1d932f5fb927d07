//! The part of a name behind `?`, and characters written as `%XX`.

/// What stands before the `?`, and each key with its value.
type Split<'a> = (&'a str, Vec<(&'a str, String)>);

/// Splits `PLACE[?KEY=VALUE[&KEY=VALUE]…]`, with the values decoded.
pub(super) fn split(text: &str) -> Result<Split<'_>, String> {
    let Some((place, options)) = text.split_once('?') else { return Ok((text, Vec::new())) };
    let mut all: Vec<(&str, String)> = Vec::new();
    for option in options.split('&') {
        let Some((key, value)) = option.split_once('=').filter(|(_, value)| !value.is_empty())
        else {
            return Err(format!("the option `{option}` has no value: KEY=VALUE"));
        };
        if all.iter().any(|(other, _)| *other == key) {
            return Err(format!("the option `{key}` is there twice"));
        }
        all.push((key, decode(value)?));
    }
    Ok((place, all))
}

/// Replaces each `%XX` by its byte (RFC 3986 section 2.1).
pub(super) fn decode(text: &str) -> Result<String, String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, tail @ ..] = rest {
        rest = tail;
        if *first != b'%' {
            bytes.push(*first);
            continue;
        }
        let (digits, tail) = rest.split_at_checked(2).ok_or("a `%` without its two digits")?;
        let value = str::from_utf8(digits).ok().and_then(|d| u8::from_str_radix(d, 16).ok());
        bytes.push(value.ok_or("a `%` that no two hexadecimal digits follow")?);
        rest = tail;
    }
    let text = String::from_utf8(bytes).map_err(|_| "it is no UTF-8")?;
    if text.chars().any(char::is_control) {
        return Err("there are control characters in it".to_owned());
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_read_once_each() {
        let (place, options) = split("a/b?conf=/etc/c%20d&user=x").unwrap();
        assert_eq!(place, "a/b");
        assert_eq!(options, [("conf", "/etc/c d".to_owned()), ("user", "x".to_owned())]);
        for bad in ["a?x", "a?x=", "a?x=1&x=2", "a?x=%4", "a?x=%zz", "a?x=%ff", "a?x=%0a", "a?"] {
            assert!(split(bad).is_err(), "{bad}");
        }
    }
}
