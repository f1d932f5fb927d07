//! Which code computes AES-XTS: the choice, and what this build on this machine has to choose from.
//!
//! Contract: [`Implementation::Auto`] is the fastest that the build, the CPU and our own kernels'
//! self-test allow; whoever names an implementation gets that one or an error that says why not.
//! With feature `fips`, `auto` means the validated module wherever it knows the algorithm.

use std::fmt;
use std::str::FromStr;

use sealblk_secret::SecretBytes;

use crate::{Algorithm, CipherError, SectorCipher, portable};

#[cfg(any(feature = "aws-lc", feature = "fips"))]
use crate::aws_lc::AwsLc;
#[cfg(target_arch = "x86_64")]
use crate::vaes::{self, Width};

/// Which code does it. Parses from and prints as a word; the configuration offers `auto`, `vaes`,
/// `aws-lc` and `portable`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Implementation {
    /// `auto`: the first of [`implementations`].
    #[default]
    Auto,
    /// `vaes`: our own kernel, as wide as the CPU allows, or nothing.
    Vaes,
    /// `vaes-512`: the same with AVX-512. For benchmarks and tests.
    Vaes512,
    /// `vaes-256`: the same with AVX2. For benchmarks and tests.
    Vaes256,
    /// `aws-lc`: AWS-LC or nothing.
    AwsLc,
    /// `portable`: the `aes` and `xts-mode` crates.
    Portable,
}

impl Implementation {
    const ALL: [Self; 6] =
        [Self::Auto, Self::Vaes, Self::Vaes512, Self::Vaes256, Self::AwsLc, Self::Portable];
}

impl fmt::Display for Implementation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Auto => "auto",
            Self::Vaes => "vaes",
            Self::Vaes512 => "vaes-512",
            Self::Vaes256 => "vaes-256",
            Self::AwsLc => "aws-lc",
            Self::Portable => "portable",
        })
    }
}

/// The word names no [`Implementation`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("no cipher implementation is called {0:?}: use auto, vaes, aws-lc or portable")]
pub struct UnknownImplementation(String);

impl FromStr for Implementation {
    type Err = UnknownImplementation;

    fn from_str(word: &str) -> Result<Self, Self::Err> {
        Self::ALL
            .into_iter()
            .find(|which| which.to_string() == word)
            .ok_or_else(|| UnknownImplementation(word.to_owned()))
    }
}

/// The implementations that can be used for `algorithm` here, in the order in which
/// [`Implementation::Auto`] prefers them; each VAES width is one of its own. Never empty.
pub fn implementations(algorithm: Algorithm) -> Vec<Implementation> {
    use Implementation::{AwsLc, Portable, Vaes256, Vaes512};
    let order = if cfg!(feature = "fips") {
        [AwsLc, Vaes512, Vaes256, Portable]
    } else {
        [Vaes512, Vaes256, AwsLc, Portable]
    };
    order.into_iter().filter(|&which| obstacle(which, algorithm).is_none()).collect()
}

/// What somebody should know who expects our own kernels to be used: widths that the CPU has and
/// that failed their self-test. For the log.
pub fn warnings() -> Vec<String> {
    #[cfg(target_arch = "x86_64")]
    return vaes::failures();
    #[cfg(not(target_arch = "x86_64"))]
    Vec::new()
}

/// Why `which`, one of [`implementations`], can't compute `algorithm` here.
fn obstacle(which: Implementation, algorithm: Algorithm) -> Option<&'static str> {
    match which {
        #[cfg(target_arch = "x86_64")]
        Implementation::Vaes512 => vaes::usable(Width::Bits512).err(),
        #[cfg(target_arch = "x86_64")]
        Implementation::Vaes256 => vaes::usable(Width::Bits256).err(),
        #[cfg(not(target_arch = "x86_64"))]
        Implementation::Vaes512 | Implementation::Vaes256 => Some("this is no x86-64 CPU"),
        Implementation::AwsLc if !cfg!(any(feature = "aws-lc", feature = "fips")) => {
            Some("this program was built without it")
        }
        Implementation::AwsLc if algorithm == Algorithm::Aes128XtsPlain64 => {
            Some("AWS-LC has no AES-128-XTS")
        }
        _ => None,
    }
}

/// The concrete implementation behind a choice.
fn resolve(which: Implementation, algorithm: Algorithm) -> Result<Implementation, CipherError> {
    let refuse = |why| Err(CipherError::Unavailable { which, why });
    match which {
        Implementation::Auto => {
            Ok(implementations(algorithm).first().copied().unwrap_or(Implementation::Portable))
        }
        Implementation::Vaes => match obstacle(Implementation::Vaes512, algorithm) {
            None => Ok(Implementation::Vaes512),
            Some(_) => match obstacle(Implementation::Vaes256, algorithm) {
                None => Ok(Implementation::Vaes256),
                Some(why) => refuse(why),
            },
        },
        _ => match obstacle(which, algorithm) {
            None => Ok(which),
            Some(why) => refuse(why),
        },
    }
}

/// A cipher of the implementation chosen. `key` fits the algorithm; `sector_bytes` is a valid size.
pub(crate) fn make(
    which: Implementation,
    algorithm: Algorithm,
    key: &SecretBytes,
    sector_bytes: usize,
) -> Result<Box<dyn SectorCipher>, CipherError> {
    match resolve(which, algorithm)? {
        #[cfg(target_arch = "x86_64")]
        Implementation::Vaes512 => vaes::new(Width::Bits512, algorithm, key, sector_bytes),
        #[cfg(target_arch = "x86_64")]
        Implementation::Vaes256 => vaes::new(Width::Bits256, algorithm, key, sector_bytes),
        #[cfg(any(feature = "aws-lc", feature = "fips"))]
        Implementation::AwsLc => Ok(Box::new(AwsLc::new(key, sector_bytes)?)),
        _ => portable::new(algorithm, key, sector_bytes),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Algorithm::{Aes128XtsPlain64, Aes256XtsPlain64};
    use crate::sector_cipher;

    fn name_of(which: Implementation, algorithm: Algorithm) -> Result<&'static str, CipherError> {
        let bytes: Vec<u8> = (0..algorithm.key_bytes()).map(|i| i as u8).collect();
        let key = SecretBytes::copy_from(&bytes).unwrap();
        Ok(sector_cipher(algorithm, &key, 512, which)?.implementation())
    }

    #[test]
    fn implementations_are_called_what_they_parse_from() {
        for which in Implementation::ALL {
            assert_eq!(which.to_string().parse(), Ok(which));
        }
        let unknown = "openssl".parse::<Implementation>().unwrap_err().to_string();
        for word in ["auto", "vaes", "aws-lc", "portable"] {
            assert!(unknown.contains(word), "{unknown}");
        }
    }

    #[test]
    fn auto_is_the_first_of_those_that_can() {
        for algorithm in [Aes128XtsPlain64, Aes256XtsPlain64] {
            let all = implementations(algorithm);
            assert_eq!(all.last(), Some(&Implementation::Portable));
            let auto = name_of(Implementation::Auto, algorithm).unwrap();
            assert_eq!(auto, name_of(all[0], algorithm).unwrap());
        }
    }

    #[cfg(feature = "fips")]
    #[test]
    fn with_fips_auto_is_the_validated_module() {
        assert_eq!(name_of(Implementation::Auto, Aes256XtsPlain64).unwrap(), "AWS-LC FIPS");
    }

    #[test]
    fn each_does_its_own_work_and_what_cannot_says_why() {
        for algorithm in [Aes128XtsPlain64, Aes256XtsPlain64] {
            for (which, name) in [
                (Implementation::Vaes512, "VAES-512 (sealblk)"),
                (Implementation::Vaes256, "VAES-256 (sealblk)"),
                (Implementation::Vaes, "VAES-"),
                (Implementation::AwsLc, "AWS-LC"),
                (Implementation::Portable, "portable"),
            ] {
                match name_of(which, algorithm) {
                    Ok(got) => assert!(got.starts_with(name), "{which} is {got}"),
                    Err(error) => {
                        assert!(!implementations(algorithm).contains(&which));
                        let text = error.to_string();
                        assert!(text.contains(&format!("implementation {which} ")), "{text}");
                        assert!(text.ends_with("configure auto or portable"), "{text}");
                    }
                }
            }
        }
        assert!(name_of(Implementation::AwsLc, Aes128XtsPlain64).is_err());
    }
}
