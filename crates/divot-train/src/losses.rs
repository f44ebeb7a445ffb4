//! Sums of the loss's terms.

use serde::{Deserialize, Serialize};

use crate::objective::Term;

/// The terms of a loss, over one or more batches.
///
/// Sums and counts add up, and are divided last, so that every number weighs the same.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Losses(Vec<Sum>);

/// The sum of a term.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Sum {
    name: String,
    #[serde(with = "bits")]
    weight: f64,
    #[serde(with = "bits")]
    sum: f64,
    /// How many numbers it is of.
    count: f64,
}

/// A number to the bit, which decimal digits of JSON may miss.
mod bits {
    use serde::{Deserialize, Deserializer, Serializer};

    pub fn serialize<S: Serializer>(number: &f64, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_u64(number.to_bits())
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<f64, D::Error> {
        u64::deserialize(deserializer).map(f64::from_bits)
    }
}

impl Sum {
    fn mean(&self) -> Option<f64> {
        (self.count > 0.0).then(|| self.sum / self.count)
    }
}

impl Losses {
    pub(crate) fn new(terms: &[Term], sums: &[f64], counts: &[f64]) -> Self {
        let sums = sums.iter().zip(counts);
        let sums = terms.iter().zip(sums).map(|(term, (&sum, &count))| Sum {
            name: term.name.to_owned(),
            weight: term.weight,
            sum,
            count,
        });
        Self(sums.collect())
    }

    /// Adds the losses of more batches. Those of other terms are forgotten.
    pub(crate) fn add(&mut self, more: &Self) {
        let named = |sum: &Sum| (sum.name.clone(), sum.weight);
        if !self.0.iter().map(named).eq(more.0.iter().map(named)) {
            self.clone_from(more);
            return;
        }
        for (sum, more) in self.0.iter_mut().zip(&more.0) {
            sum.sum += more.sum;
            sum.count += more.count;
        }
    }

    /// The loss: the weighted sum of its terms' means. A term without numbers adds nothing.
    pub fn loss(&self) -> f64 {
        let weighted = |sum: &Sum| Some(sum.weight * sum.mean()?);
        self.0.iter().filter_map(weighted).sum()
    }

    /// The mean of each term that has numbers, by name.
    pub fn terms(&self) -> impl Iterator<Item = (&str, f64)> {
        let terms = self.0.iter();
        terms.filter_map(|sum| Some((sum.name.as_str(), sum.mean()?)))
    }

    /// The mean of the term of this name, if it has numbers.
    pub fn term(&self, name: &str) -> Option<f64> {
        let found = self.terms().find(|(term, _)| *term == name);
        found.map(|(_, mean)| mean)
    }

    /// Whether no term has numbers.
    pub fn is_empty(&self) -> bool {
        self.terms().next().is_none()
    }

    /// Whether the loss has several terms, with numbers or without.
    pub(crate) fn has_several(&self) -> bool {
        self.0.len() > 1
    }
}
