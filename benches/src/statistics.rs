//! Medians, spreads, percentiles, and ratios of samples that were taken in the same round.

/// Median and extremes of some samples.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Spread {
    /// The middle one; of an even number the mean of the two in the middle.
    pub(crate) median: f64,
    pub(crate) min: f64,
    pub(crate) max: f64,
}

impl Spread {
    /// Of no samples there is none.
    pub(crate) fn of(samples: &[f64]) -> Option<Self> {
        let mut sorted = samples.to_vec();
        sorted.sort_by(f64::total_cmp);
        let (&min, &max) = (sorted.first()?, sorted.last()?);
        let (low, high) = (sorted.get((sorted.len() - 1) / 2)?, sorted.get(sorted.len() / 2)?);
        Some(Self { median: f64::midpoint(*low, *high), min, max })
    }
}

/// Each sample over the other of its round.
pub(crate) fn ratios(samples: &[f64], others: &[f64]) -> Vec<f64> {
    samples.iter().zip(others).map(|(one, other)| one / other).collect()
}

/// The better one of each round.
pub(crate) fn best(samples: &[f64], others: &[f64]) -> Vec<f64> {
    samples.iter().zip(others).map(|(one, other)| one.max(*other)).collect()
}

/// The value that `percent` of the samples do not exceed; sorts a part of them.
pub(crate) fn percentile(samples: &mut [u32], percent: usize) -> Option<u32> {
    let rank = (samples.len() * percent).div_ceil(100).checked_sub(1)?;
    Some(*samples.select_nth_unstable(rank).1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_in_the_middle() {
        let spread = Spread::of(&[3.0, 1.0, 2.0]).unwrap();
        assert_eq!(spread, Spread { median: 2.0, min: 1.0, max: 3.0 });
        assert_eq!(Spread::of(&[1.0, 2.0]).unwrap().median, 1.5);
        assert_eq!(Spread::of(&[]), None);
    }

    #[test]
    fn a_ratio_compares_within_its_round() {
        // Medians of the columns would give 90 / 100.
        let ratios = ratios(&[90.0, 45.0, 200.0], &[100.0, 90.0, 400.0]);
        assert_eq!(Spread::of(&ratios).unwrap().median, 0.5);
        assert_eq!(best(&[1.0, 5.0], &[2.0, 4.0]), [2.0, 5.0]);
    }

    #[test]
    fn a_percentile_is_one_of_the_samples() {
        let mut samples: Vec<u32> = (1..=100).rev().collect();
        assert_eq!(percentile(&mut samples, 50), Some(50));
        assert_eq!(percentile(&mut samples, 99), Some(99));
        assert_eq!(percentile(&mut [7], 99), Some(7));
        assert_eq!(percentile(&mut [], 50), None);
    }
}
