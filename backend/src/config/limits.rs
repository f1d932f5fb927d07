//! `[volume.limits]`: what a guest may do per second, checked and in the engine's words.

use sealblk_api::{Limits, RateLimit};
use sealblk_engine::{Burst, Rate};

/// Checks a volume's section.
///
/// # Errors
/// Which field is wrong, and how.
pub(super) fn checked(section: Option<Limits>) -> Result<Limits, String> {
    let limits = section.unwrap_or_default();
    limits.check().map_err(|what| format!("[volume.limits]: {what}"))?;
    Ok(limits)
}

/// The same for a disk's queues.
pub(crate) fn for_engine(limits: &Limits) -> sealblk_engine::Limits {
    let [total_bytes, read_bytes, write_bytes, total_requests, read_requests, write_requests] =
        limits.rates().map(rate);
    sealblk_engine::Limits {
        total_bytes,
        read_bytes,
        write_bytes,
        total_requests,
        read_requests,
        write_requests,
        request_bytes: limits.size_iops_sec.unwrap_or(0),
    }
}

fn rate(limit: RateLimit) -> Option<Rate> {
    let burst = Burst { per_second: limit.burst, seconds: limit.burst_seconds.max(1) };
    (limit.per_second > 0)
        .then_some(Rate { per_second: limit.per_second, burst: (limit.burst > 0).then_some(burst) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_limit_reaches_the_engine_as_what_it_is() {
        let limits = Limits {
            total_bytes_sec: Some(1),
            read_bytes_sec: Some(2),
            write_bytes_sec: Some(3),
            write_bytes_sec_max: Some(30),
            total_iops_sec: Some(4),
            total_iops_sec_max: Some(40),
            total_iops_sec_max_length: Some(400),
            read_iops_sec: Some(0),
            write_iops_sec: Some(6),
            size_iops_sec: Some(512),
            ..Limits::default()
        };
        let rate = |per_second, burst: Option<(u64, u64)>| {
            let burst = burst.map(|(per_second, seconds)| Burst { per_second, seconds });
            Some(Rate { per_second, burst })
        };
        let expected = sealblk_engine::Limits {
            total_bytes: rate(1, None),
            read_bytes: rate(2, None),
            write_bytes: rate(3, Some((30, 1))),
            total_requests: rate(4, Some((40, 400))),
            read_requests: None,
            write_requests: rate(6, None),
            request_bytes: 512,
        };
        assert_eq!(for_engine(&limits), expected);
        assert_eq!(for_engine(&Limits::default()), sealblk_engine::Limits::default());
    }

    #[test]
    fn what_is_wrong_names_section_and_field() {
        let wrong = Limits { total_iops_sec: Some(1), read_iops_sec: Some(1), ..Limits::default() };
        let error = checked(Some(wrong)).unwrap_err();
        assert!(error.starts_with("[volume.limits]: `total_iops_sec` "), "{error}");
        assert_eq!(checked(None), Ok(Limits::default()));
    }
}
