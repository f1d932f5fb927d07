//! Sizes as people write and read them: binary units.

pub(crate) use sealblk_rotation::parse_size as parse;

/// Units from the largest, in bytes.
const UNITS: [(char, u64); 4] = [('T', 1 << 40), ('G', 1 << 30), ('M', 1 << 20), ('K', 1 << 10)];

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
