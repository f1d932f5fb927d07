//! Samples by what they measure, taken in rounds.

use crate::results::{LayerFigure, Spread};

/// The figures of a layer in the order in which they first came.
#[derive(Debug, Default)]
pub(crate) struct Samples {
    series: Vec<Series>,
}

#[derive(Debug)]
struct Series {
    name: String,
    parameters: Vec<(String, String)>,
    unit: &'static str,
    values: Vec<f64>,
}

impl Samples {
    /// Adds a round's value to its series.
    pub(crate) fn add(
        &mut self,
        name: &str,
        parameters: &[(&str, &str)],
        unit: &'static str,
        value: f64,
    ) {
        let is_it = |series: &&mut Series| {
            series.name == name
                && series.unit == unit
                && series
                    .parameters
                    .iter()
                    .map(|(a, b)| (a.as_str(), b.as_str()))
                    .eq(parameters.iter().copied())
        };
        if let Some(series) = self.series.iter_mut().find(is_it) {
            series.values.push(value);
        } else {
            let parameters = parameters.iter().map(|&(a, b)| (a.to_owned(), b.to_owned()));
            self.series.push(Series {
                name: name.to_owned(),
                parameters: parameters.collect(),
                unit,
                values: vec![value],
            });
        }
    }

    /// Median and extremes of each series.
    pub(crate) fn figures(self) -> Vec<LayerFigure> {
        let figure = |series: Series| {
            Some(LayerFigure {
                value: Spread::of(&series.values)?,
                name: series.name,
                parameters: series.parameters,
                unit: series.unit.to_owned(),
            })
        };
        self.series.into_iter().filter_map(figure).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounds_of_the_same_thing_are_one_figure() {
        let mut samples = Samples::default();
        for (read, write) in [(1.0, 10.0), (3.0, 30.0), (2.0, 20.0)] {
            samples.add("plain", &[("work", "read")], "GB/s", read);
            samples.add("plain", &[("work", "write")], "GB/s", write);
        }
        samples.add("plain", &[("work", "read")], "ns", 5.0);
        let figures = samples.figures();
        let medians: Vec<f64> = figures.iter().map(|figure| figure.value.median).collect();
        assert_eq!(medians, [2.0, 20.0, 5.0]);
        assert_eq!(figures[1].parameters, [("work".to_owned(), "write".to_owned())]);
    }
}
