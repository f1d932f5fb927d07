//! Sizes as people write and read them: binary units.

/// Units from the largest, in bytes.
const UNITS: [(char, u64); 4] = [('T', 1 << 40), ('G', 1 << 30), ('M', 1 << 20), ('K', 1 << 10)];

/// Reads `10G`, `512MiB` or a number of bytes. K, M, G and T are powers of 1024.
///
/// # Errors
/// What is possible instead, for clap.
pub(crate) fn parse(text: &str) -> Result<u64, String> {
    let unknown = || format!("{text:?} is no size; write e.g. 10G, 512M or a number of bytes");
    let digits = text.trim_end_matches(|c: char| !c.is_ascii_digit());
    let number: u64 = digits.parse().map_err(|_| unknown())?;
    let suffix = text.strip_prefix(digits).unwrap_or_default();
    let factor = match suffix.strip_suffix("iB").unwrap_or(suffix).to_ascii_uppercase().as_str() {
        "" if suffix.is_empty() => 1,
        unit => UNITS
            .iter()
            .find(|(letter, _)| unit.len() == 1 && unit.starts_with(*letter))
            .map(|&(_, factor)| factor)
            .ok_or_else(unknown)?,
    };
    number
        .checked_mul(factor)
        .filter(|&bytes| bytes > 0)
        .ok_or_else(|| format!("{text:?} is out of range: a size is above 0 and below 16 EiB"))
}

/// A size for a person: `10 GiB`, `1.5 GiB`; exact where two digits after the point are.
pub(crate) fn human(bytes: u64) -> String {
    for (letter, factor) in UNITS {
        if bytes >= factor {
            // Rounded down: a size must never look larger than it is.
            let hundredths = u128::from(bytes) * 100 / u128::from(factor);
            let (whole, rest) = (hundredths / 100, hundredths % 100);
            let fraction = match rest {
                0 => String::new(),
                rest if rest % 10 == 0 => format!(".{}", rest / 10),
                rest => format!(".{rest:02}"),
            };
            return format!("{whole}{fraction} {letter}iB");
        }
    }
    format!("{bytes} B")
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
            assert_eq!(parse(text), Ok(bytes), "{text}");
        }
    }

    #[test]
    fn what_is_no_size_is_refused() {
        for text in
            ["", "G", "-1", "1.5G", "10GB", "10X", "10 G", "1GG", "iB", "0", "1iB", "20000000T"]
        {
            assert!(parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn sizes_are_shown_in_the_largest_unit_and_never_rounded_up() {
        for (bytes, text) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1 KiB"),
            (1536, "1.5 KiB"),
            ((10 << 30) - 1, "9.99 GiB"),
            (10 << 30, "10 GiB"),
            ((1 << 30) + (1 << 30) / 50, "1.01 GiB"),
            (u64::MAX, "16777215.99 TiB"),
        ] {
            assert_eq!(human(bytes), text);
        }
    }
}
