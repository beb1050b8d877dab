//! Statistics of pairs.

use std::fmt::{self, Display};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

/// The smallest, the middle and the largest of some numbers.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Spread {
    pub min: f64,
    pub median: f64,
    pub max: f64,
}

impl Spread {
    pub fn of(numbers: impl IntoIterator<Item = f64>) -> Result<Self> {
        let mut numbers: Vec<f64> = numbers.into_iter().collect();
        numbers.sort_by(f64::total_cmp);
        let (min, max) = (numbers.first(), numbers.last());
        let median = numbers.get(numbers.len() / 2);
        let (min, median, max) = (|| Some((*min?, *median?, *max?)))().context("nothing was measured")?;
        Ok(Self { min, median, max })
    }
}

impl Display for Spread {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let digits = formatter.precision().unwrap_or(3);
        let Self { min, median, max } = self;
        write!(formatter, "{min:>9.digits$} {median:>9.digits$} {max:>9.digits$}")
    }
}

/// Measurements, each without Snowfence and with it.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
pub struct Pairs(Vec<(f64, f64)>);

impl Pairs {
    /// Measures by turns, in an order that changes with each pair.
    pub fn measure(
        count: usize,
        mut without: impl FnMut() -> Result<f64>,
        mut with: impl FnMut() -> Result<f64>,
    ) -> Result<Self> {
        let mut pairs = Vec::with_capacity(count);
        for number in 0..count {
            pairs.push(if number % 2 == 0 {
                let first = without()?;
                (first, with()?)
            } else {
                let first = with()?;
                (without()?, first)
            });
        }
        Ok(Self(pairs))
    }

    pub fn without(&self) -> Result<Spread> {
        Spread::of(self.0.iter().map(|(without, _)| *without))
    }

    pub fn with(&self) -> Result<Spread> {
        Spread::of(self.0.iter().map(|(_, with)| *with))
    }

    /// How much more it is with it, pair by pair.
    pub fn difference(&self) -> Result<Spread> {
        Spread::of(self.0.iter().map(|(without, with)| with - without))
    }

    /// How many times as much it is with it, pair by pair.
    pub fn ratio(&self) -> Result<Spread> {
        Spread::of(self.0.iter().map(|(without, with)| with / without))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pairs_are_compared_one_by_one() {
        let (mut first, mut second) = ([1.0, 2.0, 4.0].into_iter(), [2.0, 3.0, 8.0].into_iter());
        let pairs = Pairs::measure(3, || Ok(first.next().unwrap()), || Ok(second.next().unwrap())).unwrap();
        assert_eq!(pairs.difference().unwrap(), Spread { min: 1.0, median: 1.0, max: 4.0 });
        assert_eq!(pairs.ratio().unwrap(), Spread { min: 1.5, median: 2.0, max: 2.0 });
        assert_eq!(pairs.without().unwrap(), Spread { min: 1.0, median: 2.0, max: 4.0 });
        assert!(Pairs::default().ratio().is_err());
    }
}
