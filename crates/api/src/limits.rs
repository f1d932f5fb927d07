//! What a guest may do per second: the words of Nova's front-end `qos_specs`, which are libvirt's
//! `iotune` and mean what QEMU makes of them.
//!
//! Contract: numbers, all optional, 0 is none. [`Limits::check`] refuses what libvirt or QEMU
//! refuse, and names the field. Unknown fields are errors, for a limit that is misspelt must not be
//! silently without effect; what `status` shows is a map of the fields that are set, so that
//! readers take what a newer daemon knows.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Largest number, as in QEMU (`THROTTLE_VALUE_MAX`): a petabyte per second.
const MAX: u64 = 1_000_000_000_000_000;

/// Limits of one disk.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Limits {
    /// Bytes per second, reads and writes together.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub total_bytes_sec: Option<u64>,
    /// The rate in a burst.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub total_bytes_sec_max: Option<u64>,
    /// Seconds of burst.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub total_bytes_sec_max_length: Option<u64>,
    /// Bytes read per second.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub read_bytes_sec: Option<u64>,
    /// The rate in a burst.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub read_bytes_sec_max: Option<u64>,
    /// Seconds of burst.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub read_bytes_sec_max_length: Option<u64>,
    /// Bytes written per second.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub write_bytes_sec: Option<u64>,
    /// The rate in a burst.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub write_bytes_sec_max: Option<u64>,
    /// Seconds of burst.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub write_bytes_sec_max_length: Option<u64>,
    /// Requests per second, of all kinds but flushes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub total_iops_sec: Option<u64>,
    /// The rate in a burst.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub total_iops_sec_max: Option<u64>,
    /// Seconds of burst.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub total_iops_sec_max_length: Option<u64>,
    /// Read requests per second.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub read_iops_sec: Option<u64>,
    /// The rate in a burst.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub read_iops_sec_max: Option<u64>,
    /// Seconds of burst.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub read_iops_sec_max_length: Option<u64>,
    /// Write, write-zeroes and discard requests per second.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub write_iops_sec: Option<u64>,
    /// The rate in a burst.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub write_iops_sec_max: Option<u64>,
    /// Seconds of burst.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub write_iops_sec_max_length: Option<u64>,
    /// A request of more bytes counts as several of so many.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub size_iops_sec: Option<u64>,
}

/// One rate and its burst; 0 where there is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RateLimit {
    /// The field; those of the burst have `_max` and `_max_length` appended.
    pub name: &'static str,
    /// Per second.
    pub per_second: u64,
    /// Per second in a burst.
    pub burst: u64,
    /// Seconds of burst.
    pub burst_seconds: u64,
}

/// A limit that can't be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LimitsError {
    /// The field.
    pub field: String,
    /// What is wrong with it.
    pub what: String,
}

impl std::fmt::Display for LimitsError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "`{}` {}", self.field, self.what)
    }
}

impl std::error::Error for LimitsError {}

impl Limits {
    /// The six rates: bytes, then requests; of each those of both directions, reads, and writes.
    pub fn rates(&self) -> [RateLimit; 6] {
        macro_rules! rate {
            ($name:ident, $max:ident, $length:ident) => {
                RateLimit {
                    name: stringify!($name),
                    per_second: self.$name.unwrap_or(0),
                    burst: self.$max.unwrap_or(0),
                    burst_seconds: self.$length.unwrap_or(0),
                }
            };
        }
        [
            rate!(total_bytes_sec, total_bytes_sec_max, total_bytes_sec_max_length),
            rate!(read_bytes_sec, read_bytes_sec_max, read_bytes_sec_max_length),
            rate!(write_bytes_sec, write_bytes_sec_max, write_bytes_sec_max_length),
            rate!(total_iops_sec, total_iops_sec_max, total_iops_sec_max_length),
            rate!(read_iops_sec, read_iops_sec_max, read_iops_sec_max_length),
            rate!(write_iops_sec, write_iops_sec_max, write_iops_sec_max_length),
        ]
    }

    /// Whether the numbers make sense together.
    ///
    /// # Errors
    /// Which of them doesn't, and why.
    pub fn check(&self) -> Result<(), LimitsError> {
        let rates = self.rates();
        for rate in &rates {
            rate.check()?;
        }
        for [total, read, write] in [[0, 1, 2], [3, 4, 5]].map(|of| of.map(|n| rates[n])) {
            if let Some(other) = [read, write].iter().find(|other| other.per_second > 0)
                && total.per_second > 0
            {
                return Err(refuse(total.name, format!("and `{}` exclude each other", other.name)));
            }
        }
        let size = self.size_iops_sec.unwrap_or(0);
        if size > MAX {
            return Err(too_large("size_iops_sec", size));
        }
        if size > 0 && rates[3..].iter().all(|rate| rate.per_second == 0) {
            let what = "is the size of a request for `total_iops_sec`, `read_iops_sec` or \
                        `write_iops_sec`, and none of them is set";
            return Err(refuse("size_iops_sec", what.to_owned()));
        }
        Ok(())
    }

    /// Whether nothing is limited.
    pub fn is_empty(&self) -> bool {
        self.rates().iter().all(|rate| rate.per_second == 0)
    }

    /// The fields that are set, as `status` shows them.
    pub fn shown(&self) -> BTreeMap<String, u64> {
        let size = (self.size_iops_sec.unwrap_or(0), "size_iops_sec".to_owned());
        let fields = self.rates().into_iter().flat_map(|rate| {
            [
                (rate.per_second, rate.name.to_owned()),
                (rate.burst, rate.max()),
                (rate.burst_seconds, rate.max_length()),
            ]
        });
        let set = fields.chain([size]).filter(|(value, _)| *value > 0);
        set.map(|(value, name)| (name, value)).collect()
    }
}

impl RateLimit {
    fn max(&self) -> String {
        format!("{}_max", self.name)
    }

    fn max_length(&self) -> String {
        format!("{}_max_length", self.name)
    }

    fn check(&self) -> Result<(), LimitsError> {
        let (max, length) = (self.max(), self.max_length());
        for (field, value) in [
            (self.name, self.per_second),
            (max.as_str(), self.burst),
            (length.as_str(), self.burst_seconds),
        ] {
            if value > MAX {
                return Err(too_large(field, value));
            }
        }
        if self.burst > 0 && self.per_second == 0 {
            return Err(refuse(&max, format!("needs `{}`", self.name)));
        }
        if self.burst > 0 && self.burst < self.per_second {
            let (burst, rate) = (self.burst, self.per_second);
            return Err(refuse(
                &max,
                format!("is {burst}, less than `{}`, which is {rate}", self.name),
            ));
        }
        if self.burst_seconds > 0 && self.burst == 0 {
            return Err(refuse(&length, format!("needs `{max}`")));
        }
        if self.burst_seconds > 1 && self.burst > MAX / self.burst_seconds {
            let what = format!("is {}: too long for bursts of {}", self.burst_seconds, self.burst);
            return Err(refuse(&length, format!("{what}; their product is at most {MAX}")));
        }
        Ok(())
    }
}

fn refuse(field: &str, what: String) -> LimitsError {
    LimitsError { field: field.to_owned(), what }
}

fn too_large(field: &str, value: u64) -> LimitsError {
    refuse(field, format!("is {value}; at most {MAX} is possible, and 0 is none"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits(json: &str) -> Limits {
        serde_json::from_str(json).unwrap()
    }

    #[test]
    fn numbers_that_make_sense_are_taken() {
        for json in [
            "{}",
            r#"{"total_iops_sec": 500}"#,
            r#"{"read_bytes_sec": 1, "write_bytes_sec": 1000000000000000, "total_iops_sec": 7}"#,
            r#"{"total_iops_sec": 100, "total_iops_sec_max": 100}"#,
            r#"{"total_iops_sec": 100, "total_iops_sec_max": 2000, "total_iops_sec_max_length": 60}"#,
            r#"{"total_bytes_sec": 0, "read_bytes_sec": 5, "write_iops_sec_max": 0}"#,
            r#"{"write_iops_sec": 100, "size_iops_sec": 4096}"#,
        ] {
            assert_eq!(limits(json).check(), Ok(()), "{json}");
        }
        assert!(limits(r#"{"total_bytes_sec": 0}"#).is_empty());
        assert!(!limits(r#"{"write_iops_sec": 1}"#).is_empty());
    }

    #[test]
    fn those_that_do_not_are_refused_by_name() {
        for (json, field, word) in [
            (
                r#"{"total_bytes_sec": 1, "write_bytes_sec": 1}"#,
                "total_bytes_sec",
                "`write_bytes_sec`",
            ),
            (r#"{"total_iops_sec": 1, "read_iops_sec": 1}"#, "total_iops_sec", "`read_iops_sec`"),
            (r#"{"read_bytes_sec": 1000000000000001}"#, "read_bytes_sec", "at most"),
            (r#"{"size_iops_sec": 1000000000000001}"#, "size_iops_sec", "at most"),
            (r#"{"size_iops_sec": 512, "total_bytes_sec": 1}"#, "size_iops_sec", "none of them"),
            (r#"{"write_iops_sec_max": 9}"#, "write_iops_sec_max", "`write_iops_sec`"),
            (r#"{"write_iops_sec": 10, "write_iops_sec_max": 9}"#, "write_iops_sec_max", "less"),
            (
                r#"{"total_iops_sec": 1, "total_iops_sec_max_length": 9}"#,
                "total_iops_sec_max_length",
                "`total_iops_sec_max`",
            ),
            (
                r#"{"total_iops_sec": 1, "total_iops_sec_max": 1000000000, "total_iops_sec_max_length": 1000001}"#,
                "total_iops_sec_max_length",
                "too long",
            ),
        ] {
            let error = limits(json).check().unwrap_err();
            assert_eq!(error.field, field, "{json}");
            assert!(error.to_string().starts_with(&format!("`{field}` ")), "{error}");
            assert!(error.to_string().contains(word), "{error}");
        }
    }

    #[test]
    fn what_is_no_limit_is_refused() {
        for json in [
            r#"{"total_iops": 1}"#,
            r#"{"total_iops_sec": "1"}"#,
            r#"{"total_iops_sec": -1}"#,
            r#"{"total_iops_sec": 1.5}"#,
        ] {
            assert!(serde_json::from_str::<Limits>(json).is_err(), "{json}");
        }
    }

    #[test]
    fn what_is_set_is_shown_and_nothing_else() {
        let json = r#"{"read_iops_sec":5,"read_iops_sec_max":9,"size_iops_sec":512}"#;
        assert_eq!(serde_json::to_string(&limits(json)).unwrap(), json);
        assert_eq!(serde_json::to_string(&limits(json).shown()).unwrap(), json);
        assert!(limits(r#"{"read_iops_sec": 0}"#).shown().is_empty());
        let all: String =
            limits("{}").rates().iter().map(|rate| format!("{} ", rate.name)).collect();
        assert_eq!(
            all,
            "total_bytes_sec read_bytes_sec write_bytes_sec total_iops_sec read_iops_sec \
             write_iops_sec "
        );
    }
}
