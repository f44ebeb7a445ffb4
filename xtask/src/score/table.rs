//! Tables: Markdown for readers, JSON for programs.

use serde_json::{Map, Value, json};

use super::tally::Mean;

/// A table of scores.
#[derive(Debug, Clone)]
pub struct Table {
    /// Its heading.
    pub title: &'static str,
    /// By which rule the scores are computed.
    pub note: String,
    /// Names of the columns.
    pub columns: Vec<&'static str>,
    /// A cell for each column.
    pub rows: Vec<Vec<Cell>>,
}

/// A cell.
#[derive(Debug, Clone)]
pub enum Cell {
    /// Words, or a count.
    Text(String),
    /// A score for each seed, or one that does not depend on it, with so many digits after the point.
    Score(Vec<f64>, usize),
}

impl From<&str> for Cell {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}

impl From<usize> for Cell {
    fn from(count: usize) -> Self {
        Self::Text(count.to_string())
    }
}

impl Cell {
    /// A score of each seed.
    pub fn seeds<T>(seeds: &[T], value: impl Fn(&T) -> f64, digits: usize) -> Self {
        Self::Score(seeds.iter().map(value).collect(), digits)
    }

    /// A share of each seed, in percent.
    pub fn percent<T>(seeds: &[T], of: impl Fn(&T) -> Mean) -> Self {
        Self::seeds(seeds, |seed| of(seed).percent(), 1)
    }

    /// A cell without a score.
    pub fn none() -> Self {
        Self::Score(Vec::new(), 0)
    }

    fn markdown(&self) -> String {
        let (values, digits) = match self {
            Self::Text(text) => return text.clone(),
            Self::Score(values, digits) => (values, *digits),
        };
        let mean = mean(values);
        match deviation(values) {
            _ if mean.is_nan() || mean == f64::NEG_INFINITY => "–".to_owned(),
            _ if mean.is_infinite() => "∞".to_owned(),
            Some(deviation) => format!("{mean:.digits$} ± {deviation:.digits$}"),
            None => format!("{mean:.digits$}"),
        }
    }

    /// What is not finite is `null`.
    fn json(&self) -> Value {
        match self {
            Self::Text(text) => {
                let number = serde_json::from_str(text).ok();
                number
                    .filter(Value::is_number)
                    .unwrap_or_else(|| json!(text))
            }
            Self::Score(values, _) => json!({
                "mean": mean(values),
                "deviation": deviation(values),
                "values": values,
            }),
        }
    }
}

impl Table {
    /// The table under its heading.
    pub fn markdown(&self) -> String {
        let line = |cells: Vec<String>| format!("| {} |\n", cells.join(" | "));
        let names = self.columns.iter().map(|name| (*name).to_owned());
        // Scores stand to the right, so that their points are below each other.
        let rule = (0..self.columns.len()).map(|column| {
            let score = |row: &Vec<Cell>| matches!(row[column], Cell::Score(..));
            match self.rows.iter().any(score) {
                true => "---:".to_owned(),
                false => "---".to_owned(),
            }
        });
        let rows = self.rows.iter().map(|row| row.iter().map(Cell::markdown));
        let mut text = format!("## {}\n\n{}\n\n", self.title, self.note);
        text += &line(names.collect());
        text += &line(rule.collect());
        text.extend(rows.map(|row| line(row.collect())));
        text.truncate(text.trim_end().len());
        text
    }

    /// The same with the score of each seed.
    pub fn json(&self) -> Value {
        let rows = self.rows.iter().map(|row| {
            let cells = self.columns.iter().zip(row);
            let cells = cells.map(|(name, cell)| ((*name).to_owned(), cell.json()));
            Value::Object(cells.collect::<Map<_, _>>())
        });
        json!({
            "title": self.title,
            "note": self.note,
            "rows": rows.collect::<Vec<_>>(),
        })
    }
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

/// The standard deviation between seeds (unbiased). `None` of a single one.
fn deviation(values: &[f64]) -> Option<f64> {
    let mean = mean(values);
    let squares = values.iter().map(|value| (value - mean).powi(2));
    let variance = squares.sum::<f64>() / values.len().checked_sub(1).filter(|&n| n > 0)? as f64;
    Some(variance.sqrt())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scores_of_seeds_are_summed_up() {
        let table = Table {
            title: "Title",
            note: "Note.".to_owned(),
            columns: vec!["what", "clips", "share", "more"],
            rows: vec![
                vec![
                    "a".into(),
                    12.into(),
                    Cell::Score(vec![1.0, 2.0, 3.0], 1),
                    Cell::none(),
                ],
                vec![
                    "b".into(),
                    3.into(),
                    Cell::Score(vec![0.25], 2),
                    Cell::Score(vec![f64::INFINITY], 2),
                ],
                vec![
                    "c".into(),
                    1.into(),
                    Cell::Score(vec![f64::NEG_INFINITY], 1),
                    Cell::Score(vec![f64::NAN], 2),
                ],
            ],
        };
        let text = "## Title\n\nNote.\n\n| what | clips | share | more |\n| --- | --- | ---: | ---: |\n\
                    | a | 12 | 2.0 ± 1.0 | – |\n| b | 3 | 0.25 | ∞ |\n| c | 1 | – | – |";
        assert_eq!(table.markdown(), text);
        let json = table.json();
        assert_eq!(json["rows"][0]["clips"], 12);
        assert_eq!(json["rows"][0]["share"]["values"], json!([1.0, 2.0, 3.0]));
        assert_eq!(json["rows"][0]["share"]["deviation"], 1.0);
        assert_eq!(json["rows"][1]["share"]["deviation"], Value::Null);
        assert_eq!(json["rows"][1]["more"]["mean"], Value::Null);
    }
}
