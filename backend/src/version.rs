//! What `--version` says.

use std::fmt::Write;

use sealblk_volume::{Driver, drivers};

/// The version; verbose: also the drivers, and whether this host has what they need.
pub(crate) fn text(program: &str, verbose: bool) -> String {
    let mut text = format!("{program} {}\n", env!("CARGO_PKG_VERSION"));
    if verbose {
        text.push_str("volumes:\n");
        for driver in drivers() {
            // Writing to a String can't fail.
            let _ = writeln!(text, "  {:<13} {}", driver.scheme, describe(&driver));
        }
        let fips = if cfg!(feature = "fips") { "AWS-LC, FIPS module" } else { "AWS-LC" };
        let _ = writeln!(text, "cipher: {fips}; VAES kernel of our own where the processor has it");
    }
    text
}

fn describe(driver: &Driver) -> String {
    match (driver.built, &driver.library) {
        (false, _) => "left out of this build".to_owned(),
        (true, None) => "built in".to_owned(),
        (true, Some(library)) => match &library.found {
            Ok(version) => format!("built in, {version}"),
            Err(reason) => format!("built in, but {reason}: install {}", library.package),
        },
    }
}

#[cfg(test)]
mod tests {
    use sealblk_volume::Library;

    use super::*;

    #[test]
    fn a_library_that_is_missing_is_named_with_its_package() {
        let library =
            Library { found: Err("librbd.so.1: no such file".into()), package: "librbd1" };
        let driver = Driver { scheme: "rbd:", built: true, library: Some(library) };
        assert_eq!(describe(&driver), "built in, but librbd.so.1: no such file: install librbd1");
        let driver = Driver { built: false, ..driver };
        assert_eq!(describe(&driver), "left out of this build");
    }

    #[test]
    fn the_short_version_is_one_line() {
        assert_eq!(text("sealblkd", false).lines().count(), 1);
        assert!(text("sealblkd", true).contains("rbd:"));
    }
}
