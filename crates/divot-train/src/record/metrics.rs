//! Lines of `metrics.jsonl`.

use std::collections::BTreeMap;

use serde::ser::SerializeMap;
use serde::{Serialize, Serializer};
use serde_json::{Map, Value};

/// A line: what was measured after a step.
///
/// ```json
/// {"step":200,"seconds":61.2,"train/gradient_norm":"Infinity","train/loss":0.231}
/// ```
///
/// A step has several lines if its numbers were measured one after the other. JSON has no infinity. Numbers that are not finite are the strings `NaN`, `Infinity` and `-Infinity`, as
/// Protocol Buffers write them: `float` in Python and `Number` in JavaScript read both.
#[derive(Debug, Clone, PartialEq)]
pub struct Metrics {
    /// Steps that were done.
    pub step: usize,
    /// Seconds of training up to then, those of interrupted parts included.
    pub seconds: f64,
    /// The numbers by their names.
    pub values: BTreeMap<String, f64>,
}

impl Metrics {
    /// Reads a line. `None` if it is none of these.
    pub fn parse(line: &[u8]) -> Option<Self> {
        let mut object: Map<String, Value> = serde_json::from_slice(line).ok()?;
        let step = usize::try_from(object.remove("step")?.as_u64()?).ok()?;
        let seconds = number(&object.remove("seconds")?)?;
        let values = object
            .into_iter()
            .map(|(name, value)| Some((name, number(&value)?)))
            .collect::<Option<_>>()?;
        Some(Self {
            step,
            seconds,
            values,
        })
    }

    /// The line, with its end.
    pub(super) fn line(&self) -> Vec<u8> {
        let mut line = serde_json::to_vec(self).expect("names and numbers are JSON");
        line.push(b'\n');
        line
    }
}

impl Serialize for Metrics {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("step", &self.step)?;
        map.serialize_entry("seconds", &self.seconds)?;
        for (name, value) in &self.values {
            match unwritable(*value) {
                Some(text) => map.serialize_entry(name, text)?,
                None => map.serialize_entry(name, value)?,
            }
        }
        map.end()
    }
}

/// The text for a number that JSON does not have.
fn unwritable(value: f64) -> Option<&'static str> {
    match value {
        f64::INFINITY => Some("Infinity"),
        f64::NEG_INFINITY => Some("-Infinity"),
        _ if value.is_nan() => Some("NaN"),
        _ => None,
    }
}

fn number(value: &Value) -> Option<f64> {
    match value.as_str() {
        Some("NaN") => Some(f64::NAN),
        Some("Infinity") => Some(f64::INFINITY),
        Some("-Infinity") => Some(f64::NEG_INFINITY),
        _ => value.as_f64(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_number_comes_back() {
        let values = [
            0.1,
            -0.0,
            1e300,
            5e-324,
            1.0 / 3.0,
            f64::INFINITY,
            f64::NEG_INFINITY,
            f64::NAN,
        ];
        let values = (0..).map(|i| format!("train/{i}")).zip(values).collect();
        let metrics = Metrics {
            step: 12,
            seconds: 1.5,
            values,
        };
        let line = metrics.line();
        // Readers of JSON that keep to the standard read it.
        let _: Value = serde_json::from_slice(&line).unwrap();
        let back = Metrics::parse(&line).unwrap();
        assert_eq!((back.step, back.seconds), (12, 1.5));
        let bits = |metrics: &Metrics| -> Vec<(String, u64)> {
            let values = metrics.values.iter();
            values.map(|(k, v)| (k.clone(), v.to_bits())).collect()
        };
        assert_eq!(bits(&back), bits(&metrics));
    }

    #[test]
    fn a_line_is_flat_and_starts_with_the_step() {
        let metrics = Metrics {
            step: 200,
            seconds: 61.5,
            values: [("train/loss", 0.25), ("a \"name\"", f64::NAN)]
                .map(|(name, value)| (name.to_owned(), value))
                .into(),
        };
        assert_eq!(
            String::from_utf8(metrics.line()).unwrap(),
            "{\"step\":200,\"seconds\":61.5,\"a \\\"name\\\"\":\"NaN\",\"train/loss\":0.25}\n"
        );
    }

    #[test]
    fn other_lines_are_refused() {
        for line in [
            "",
            "[]",
            "{\"step\":1}",
            "{\"step\":-1,\"seconds\":0}",
            "{\"step\":1,\"seconds\":0,\"train/loss\":\"low\"}",
            "{\"step\":1,\"seconds\":0,\"train/loss\":0.",
        ] {
            assert_eq!(Metrics::parse(line.as_bytes()), None, "{line}");
        }
    }
}
