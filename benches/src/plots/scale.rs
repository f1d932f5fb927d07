//! From values to pixels: axes with round ticks.

/// An axis from 0 (linear) or a power of ten (logarithmic) to a round end.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Scale {
    low: f64,
    high: f64,
    log: bool,
    /// Values to mark.
    pub(crate) ticks: Vec<f64>,
}

impl Scale {
    /// From 0 to at least `most`, with about five ticks.
    pub(crate) fn linear(most: f64) -> Self {
        let most = if most.is_finite() && most > 0.0 { most } else { 1.0 };
        let rough = most / 5.0;
        let power = 10f64.powf(rough.log10().floor());
        let step = [1.0, 2.0, 2.5, 5.0, 10.0].map(|n| n * power);
        let step = step.into_iter().find(|step| *step >= rough * 0.999).unwrap_or(10.0 * power);
        let count = (most / step * 0.9999).ceil().max(1.0) as usize;
        let ticks: Vec<f64> = (0..=count).map(|n| n as f64 * step).collect();
        Self { low: 0.0, high: count as f64 * step, log: false, ticks }
    }

    /// Powers of ten around `least` and `most`, both positive.
    pub(crate) fn log(least: f64, most: f64) -> Self {
        let positive = |value: f64| if value.is_finite() && value > 0.0 { value } else { 1.0 };
        let (least, most) = (positive(least), positive(most));
        let first = least.log10().floor() as i32;
        let last = (most.log10().ceil() as i32).max(first + 1);
        let ticks = (first..=last).map(|power| 10f64.powi(power)).collect();
        Self { low: 10f64.powi(first), high: 10f64.powi(last), log: true, ticks }
    }

    /// Where a value lies, 0 to 1; what is outside is put to the edge.
    pub(crate) fn at(&self, value: f64) -> f64 {
        let part = if self.log {
            (value.max(self.low).log10() - self.low.log10())
                / (self.high.log10() - self.low.log10())
        } else {
            (value - self.low) / (self.high - self.low)
        };
        if part.is_nan() { 0.0 } else { part.clamp(0.0, 1.0) }
    }
}
