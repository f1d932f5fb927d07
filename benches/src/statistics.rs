//! Medians, spreads, percentiles, and ratios of samples that were taken in the same round.

use crate::results::Spread;

impl Spread {
    /// Of no samples there is none. The median of an even number is the mean of the two in the
    /// middle.
    pub(crate) fn of(samples: &[f64]) -> Option<Self> {
        let mut sorted = samples.to_vec();
        sorted.sort_by(f64::total_cmp);
        let (&min, &max) = (sorted.first()?, sorted.last()?);
        let (low, high) = (sorted.get((sorted.len() - 1) / 2)?, sorted.get(sorted.len() / 2)?);
        Some(Self { median: f64::midpoint(*low, *high), min, max })
    }
}

/// A figure of two servers from each round, made into one.
pub(crate) fn per_round(one: &[f64], other: &[f64], make: impl Fn(f64, f64) -> f64) -> Vec<f64> {
    one.iter().zip(other).map(|(&one, &other)| make(one, other)).collect()
}

/// The value that `permille` of the samples do not exceed; sorts a part of them.
pub(crate) fn percentile(samples: &mut [u32], permille: usize) -> Option<u64> {
    let rank = (samples.len() * permille).div_ceil(1000).checked_sub(1)?;
    Some((*samples.select_nth_unstable(rank).1).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_in_the_middle() {
        let spread = Spread::of(&[3.0, 1.0, 2.0]).unwrap();
        assert_eq!(spread, Spread { median: 2.0, min: 1.0, max: 3.0 });
        assert_eq!(Spread::of(&[1.0, 2.0]).unwrap().median, 1.5);
        let one = Spread { median: 7.0, min: 7.0, max: 7.0 };
        assert_eq!(Spread::of(&[7.0]).unwrap(), one);
        assert_eq!(Spread::of(&[]), None);
    }

    #[test]
    fn a_ratio_compares_within_its_round() {
        // Medians of the columns would give 90 / 100.
        let ratios = per_round(&[90.0, 45.0, 200.0], &[100.0, 90.0, 400.0], |a, b| a / b);
        assert_eq!(Spread::of(&ratios).unwrap().median, 0.5);
        assert_eq!(per_round(&[1.0, 5.0], &[2.0, 4.0], f64::max), [2.0, 5.0]);
    }

    #[test]
    fn a_percentile_is_one_of_the_samples() {
        let mut samples: Vec<u32> = (1..=1000).rev().collect();
        assert_eq!(percentile(&mut samples, 500), Some(500));
        assert_eq!(percentile(&mut samples, 990), Some(990));
        assert_eq!(percentile(&mut samples, 999), Some(999));
        assert_eq!(percentile(&mut [7], 999), Some(7));
        assert_eq!(percentile(&mut [], 500), None);
    }
}
