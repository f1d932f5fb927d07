//! Sizes and times as operators write them.

use std::time::Duration;

/// Size units, in bytes.
const SIZES: [(&str, u64); 4] = [("K", 1 << 10), ("M", 1 << 20), ("G", 1 << 30), ("T", 1 << 40)];

/// Time units, in microseconds.
const TIMES: [(&str, u64); 7] = [
    ("us", 1),
    ("ms", 1_000),
    ("s", 1_000_000),
    ("min", 60_000_000),
    ("h", 3_600_000_000),
    ("d", 86_400_000_000),
    ("w", 604_800_000_000),
];

/// Reads `10G`, `512MiB` or a number of bytes. K, M, G and T are powers of 1024.
///
/// # Errors
/// What is possible instead.
pub fn parse_size(text: &str) -> Result<u64, String> {
    let unknown = || format!("{text:?} is no size; write e.g. 10G, 512M or a number of bytes");
    let (number, suffix) = split(text).ok_or_else(unknown)?;
    let factor = match suffix.strip_suffix("iB").unwrap_or(suffix).to_ascii_uppercase().as_str() {
        "" if suffix.is_empty() => 1,
        unit => factor(&SIZES, unit).ok_or_else(unknown)?,
    };
    number
        .checked_mul(factor)
        .filter(|&bytes| bytes > 0)
        .ok_or_else(|| format!("{text:?} is out of range: a size is above 0 and below 16 EiB"))
}

/// Reads `365d`, `5ms`, `36 h`: a number and one of us, ms, s, min, h, d, w.
///
/// # Errors
/// What is possible instead.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let unknown = || {
        format!("{text:?} is no time; write a number and one of us, ms, s, min, h, d, w, e.g. 365d")
    };
    let (number, suffix) = split(text).ok_or_else(unknown)?;
    let factor = factor(&TIMES, suffix.trim_start()).ok_or_else(unknown)?;
    let micros = number.checked_mul(factor).ok_or_else(|| format!("{text:?} is out of range"))?;
    Ok(Duration::from_micros(micros))
}

/// Digits, and what comes after them.
fn split(text: &str) -> Option<(u64, &str)> {
    let digits = text.trim_end_matches(|c: char| !c.is_ascii_digit());
    let only_digits = digits.bytes().all(|byte| byte.is_ascii_digit());
    let number = only_digits.then(|| digits.parse().ok()).flatten()?;
    Some((number, text.strip_prefix(digits)?))
}

fn factor(units: &[(&str, u64)], name: &str) -> Option<u64> {
    units.iter().find(|(unit, _)| *unit == name).map(|(_, factor)| *factor)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_binary_units() {
        for (text, bytes) in [
            ("1", 1),
            ("4096", 4096),
            ("3K", 3 << 10),
            ("512M", 512 << 20),
            ("10G", 10 << 30),
            ("10g", 10 << 30),
            ("10GiB", 10 << 30),
            ("2T", 2 << 40),
        ] {
            assert_eq!(parse_size(text), Ok(bytes), "{text}");
        }
    }

    #[test]
    fn what_is_no_size_is_refused() {
        for text in [
            "",
            "G",
            "-1",
            "+1",
            "1.5G",
            "10GB",
            "10X",
            "10 G",
            "1GG",
            "iB",
            "0",
            "1iB",
            "20000000T",
        ] {
            assert!(parse_size(text).is_err(), "{text}");
        }
    }

    #[test]
    fn times_have_a_unit() {
        for (text, seconds, micros) in [
            ("365d", 365 * 86_400, 0),
            ("2w", 14 * 86_400, 0),
            ("36 h", 36 * 3600, 0),
            ("90min", 5400, 0),
            ("1s", 1, 0),
            ("5ms", 0, 5000),
            ("250us", 0, 250),
        ] {
            let expected = Duration::from_secs(seconds) + Duration::from_micros(micros);
            assert_eq!(parse_duration(text), Ok(expected), "{text}");
        }
        for text in
            ["", "5", "d", "5m", "-1d", "+1d", "1.5d", "1y", "1d1h", "1D", "99999999999999w"]
        {
            assert!(parse_duration(text).is_err(), "{text}");
        }
    }
}
