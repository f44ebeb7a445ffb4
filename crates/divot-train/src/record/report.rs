//! `report.html`: the page about a run.

use std::fmt::Write;
use std::fs;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use base64::prelude::{BASE64_STANDARD, Engine};
use html_escape::encode_double_quoted_attribute as attribute;
use html_escape::encode_text;
use time::OffsetDateTime;

use super::chart::{Chart, Line, Look, Unit};
use super::history::{History, Series};
use super::progress::Status;
use super::text::{count, duration, number};
use super::{Ending, RunInfo, SKIPPED, Sheet, Text, VALIDATION, names};

const STYLE: &str = include_str!("report.css");
const SCRIPT: &str = include_str!("report.js");
/// Charts beside that of the loss.
const MAX_CHARTS: usize = 30;
/// Sheets that are in the page, and their bytes in all.
pub(super) const MAX_SHEETS: usize = 5;
const MAX_SHEET_BYTES: u64 = 12 << 20;
/// Links to older sheets.
const MAX_LINKS: usize = 40;
/// Texts, settings and reasons.
const MAX_ROWS: usize = 100;
/// Characters of one of them.
const MAX_CHARACTERS: usize = 2000;

/// What the page shows.
pub(super) struct Report<'a> {
    pub(super) folder: &'a Path,
    pub(super) run: &'a RunInfo,
    /// `None` while the run goes on.
    pub(super) ending: Option<&'a Ending>,
    pub(super) status: &'a Status,
    pub(super) history: &'a History,
    /// Oldest first.
    pub(super) sheets: &'a [Sheet],
    /// Those of the last evaluation.
    pub(super) texts: &'a [Text],
}

impl Report<'_> {
    /// The page. It needs nothing but itself; links to older sheets and to the sheets' files lead to the
    /// run's folder.
    pub(super) fn html(&self) -> String {
        let name = shown(&self.run.name);
        let done = self.share_done();
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        let now = now.unwrap_or_default().as_secs();
        let running = match self.ending {
            None => " data-running",
            Some(_) => "",
        };
        // The policy holds the page to what it is: nothing is loaded, whatever a name or text says.
        let mut page = format!(
            "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
            <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
            <meta name=\"color-scheme\" content=\"light dark\">\n\
            <meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'\">\n\
            <title>{:.0} % {name}</title>\n<style>\n{STYLE}</style>\n</head>\n\
            <body data-written=\"{now}\"{running}>\n",
            (100.0 * done).floor()
        );
        page += &self.head(&name, done, now);
        page += &self.charts();
        page += &self.sheets();
        page += &self.texts();
        page += &self.skipped();
        page += &self.settings();
        let _ = write!(page, "<script>\n{SCRIPT}</script>\n</body>\n</html>\n");
        page
    }

    fn share_done(&self) -> f64 {
        let Status { step, steps, .. } = *self.status;
        (step as f64 / steps.max(1) as f64).min(1.0)
    }

    fn head(&self, name: &str, done: f64, now: u64) -> String {
        let Status { step, steps, .. } = *self.status;
        let (class, state) = match self.ending {
            None => ("running", "running".to_owned()),
            Some(Ending::Finished) => ("finished", "finished".to_owned()),
            Some(Ending::Stopped) => ("stopped", "stopped".to_owned()),
            Some(Ending::Failed(why)) => ("failed", format!("failed: {}", shown(why))),
        };
        let mut head = format!(
            "<header>\n<h1>{name}</h1>\n<p class=\"state {class}\">{state}</p>\n\
            <p class=\"written\">written <time datetime=\"{now}\">{}</time><span></span></p>\n</header>\n\
            <div class=\"bar {class}\" role=\"progressbar\" aria-label=\"steps done\" aria-valuenow=\"{step}\" aria-valuemin=\"0\" aria-valuemax=\"{steps}\"><i style=\"width:{:.2}%\"></i></div>\n<dl class=\"tiles\">\n",
            date(now),
            100.0 * done
        );
        let mut tile = |title: &str, value: &str, note: &str| {
            let note = match note {
                "" => String::new(),
                note => format!("<small>{note}</small>"),
            };
            let _ = writeln!(head, "<div><dt>{title}</dt><dd>{value}{note}</dd></div>");
        };
        tile("Step", &count(step), &format!("of {}", count(steps)));
        tile("Elapsed", &duration(self.status.seconds), "");
        if let (None, Some(seconds)) = (self.ending, self.status.seconds_left) {
            tile("Time left", &duration(seconds), "");
        }
        if let Some(speed) = self.status.samples_per_second {
            tile("Throughput", &number(speed, 3), "samples/s");
        }
        if let Some(share) = self.status.data_wait {
            tile("Data wait", &format!("{:.0} %", 100.0 * share), "");
        }
        if let Some(series) = self.history.get(names::LOSS) {
            let smoothed = series.smoothed();
            let loss = smoothed
                .last()
                .map_or("NaN".into(), |loss| number(*loss, 4));
            tile("Loss", &loss, "smoothed");
        }
        if let Some(series) = self.history.get(names::VALIDATION_LOSS) {
            let lowest = series.lowest.map(|(loss, step)| {
                let loss = number(loss, 4);
                format!("lowest {loss} at step {}", count(step))
            });
            let note = lowest.unwrap_or_default();
            tile("Validation loss", &number(series.last, 4), &note);
        }
        if let Some(series) = self.history.get(names::MEMORY) {
            tile("Memory", &Unit::Gibibytes.text(series.last, 3), "");
        }
        head + "</dl>\n"
    }

    fn charts(&self) -> String {
        let mut page = String::from("<section>\n<h2>Curves</h2>\n<div class=\"charts\">\n");
        let loss = self.history.get(names::LOSS);
        let validation = self.history.get(names::VALIDATION_LOSS);
        let mut lines = Vec::new();
        lines.extend(loss.map(|series| Line {
            label: "training",
            series,
            look: Look::Smoothed,
        }));
        lines.extend(validation.map(|series| Line {
            label: "validation",
            series,
            look: Look::Dots,
        }));
        if lines.is_empty() {
            page += "<p class=\"none\">Nothing has been measured yet.</p>\n";
        } else {
            let chart = Chart {
                title: "Loss",
                unit: Unit::None,
                wide: true,
                last_step: self.status.step,
                log: true,
                lines,
            };
            page += &chart.html();
        }
        let others = || {
            let shown = [names::LOSS, names::VALIDATION_LOSS];
            self.history.iter().filter(move |(name, _)| {
                !name.starts_with(SKIPPED) && !shown.contains(&name.as_str())
            })
        };
        // What is learned first, then what it is worth, then what it costs.
        let group = |name: &str| match name.split_once('/') {
            Some(("train", _)) => 0,
            Some(("validation", _)) => 1,
            _ => 2,
        };
        let mut ordered: Vec<_> = others().collect();
        ordered.sort_by_key(|(name, _)| group(name));
        for (name, series) in ordered.iter().take(MAX_CHARTS) {
            page += &chart(name, series, self.status.step);
        }
        page += "</div>\n";
        if ordered.len() > MAX_CHARTS {
            let more = ordered.len() - MAX_CHARTS;
            let _ = writeln!(page, "<p class=\"none\">{more} more in metrics.jsonl.</p>");
        }
        page + "</section>\n"
    }

    fn sheets(&self) -> String {
        if self.sheets.is_empty() {
            return String::new();
        }
        let mut page = String::from("<section>\n<h2>Samples</h2>\n<div class=\"sheets\">\n");
        let mut left = MAX_SHEET_BYTES;
        let mut links = Vec::new();
        let mut embedded = 0;
        for sheet in self.sheets.iter().rev() {
            let title = format!("Step {}", count(sheet.step));
            let name = shown(&sheet.name);
            let link = format!("{}/{}", Sheet::FOLDER, sheet.file());
            let path = self.folder.join(&link);
            let link = attribute(&link).into_owned();
            let bytes = fs::metadata(&path).map_or(u64::MAX, |file| file.len());
            let png = match embedded < MAX_SHEETS && bytes <= left {
                true => fs::read(&path).ok(),
                false => None,
            };
            let size = png.as_deref().and_then(super::png_size);
            if let (Some(png), Some([width, height])) = (png, size) {
                left -= bytes;
                embedded += 1;
                let _ = write!(
                    page,
                    "<figure class=\"sheet\"><figcaption><b>{title}</b> {name}</figcaption><a href=\"{link}\"><img alt=\"{}\" width=\"{width}\" height=\"{height}\" src=\"data:image/png;base64,",
                    attribute(&format!("{title}: {}", sheet.name))
                );
                BASE64_STANDARD.encode_string(&png, &mut page);
                page += "\"></a></figure>\n";
            } else if bytes < u64::MAX {
                links.push(format!("<a href=\"{link}\">{title} {name}</a>"));
            }
        }
        page += "</div>\n";
        if !links.is_empty() {
            let more = match links.len().saturating_sub(MAX_LINKS) {
                0 => String::new(),
                more => format!(" and {more} more in {}/", Sheet::FOLDER),
            };
            links.truncate(MAX_LINKS);
            let links = links.join(" ");
            let _ = writeln!(page, "<p class=\"links\">Others: {links}{more}</p>");
        }
        page + "</section>\n"
    }

    fn texts(&self) -> String {
        let Some(first) = self.texts.first() else {
            return String::new();
        };
        let mut page = format!(
            "<section>\n<h2>Texts <small>of step {}</small></h2>\n<div class=\"texts\">\n",
            count(first.step)
        );
        for text in self.texts.iter().take(MAX_ROWS) {
            let _ = writeln!(
                page,
                "<article><h3 dir=\"auto\">{}</h3><p dir=\"auto\">{}</p></article>",
                shown(&text.name),
                shown(&text.text)
            );
        }
        page + "</div>\n</section>\n"
    }

    fn skipped(&self) -> String {
        let mut reasons: Vec<(&str, f64)> = self
            .history
            .iter()
            .filter_map(|(name, series)| Some((name.strip_prefix(SKIPPED)?, series.last)))
            .filter(|(_, count)| *count > 0.0)
            .collect();
        if reasons.is_empty() {
            return String::new();
        }
        reasons.sort_by(|a, b| b.1.total_cmp(&a.1));
        let rows: Vec<_> = reasons
            .iter()
            .map(|(reason, number)| (shown(reason), count(*number as usize)))
            .collect();
        format!(
            "<section>\n<h2>Skipped</h2>\n{}</section>\n",
            table("counts", &rows)
        )
    }

    fn settings(&self) -> String {
        let settings = &self.run.settings;
        if settings.is_empty() {
            return String::new();
        }
        let rows: Vec<_> = settings
            .iter()
            .map(|(key, value)| (shown(key), shown(value)))
            .collect();
        format!(
            "<section>\n<h2>Settings</h2>\n{}</section>\n",
            table("settings", &rows)
        )
    }
}

/// The chart of one name.
fn chart(name: &str, series: &Series, last_step: usize) -> String {
    let (unit, short) = Unit::of(name);
    let short = match short.strip_prefix(VALIDATION) {
        Some(_) => short,
        None => short.rsplit('/').next().unwrap_or(short),
    };
    let title = sentence(short);
    let look = match name {
        _ if name.starts_with(VALIDATION) => Look::Dots,
        names::RATE | names::MEMORY => Look::Exact,
        _ => Look::Smoothed,
    };
    let chart = Chart {
        title: &title,
        unit,
        wide: false,
        last_step,
        log: name != names::RATE && unit == Unit::None,
        lines: vec![Line {
            label: "",
            series,
            look,
        }],
    };
    chart.html()
}

/// A name as words: `train/gradient_norm` becomes `Train gradient norm`.
fn sentence(name: &str) -> String {
    let words = cut(name).replace(['_', '/'], " ");
    let mut characters = words.chars();
    match characters.next() {
        Some(first) => first.to_uppercase().chain(characters).collect(),
        None => words,
    }
}

fn table(class: &str, rows: &[(String, String)]) -> String {
    let mut page = format!("<table class=\"{class}\">\n");
    for (key, value) in rows.iter().take(MAX_ROWS) {
        let _ = writeln!(page, "<tr><th>{key}</th><td>{value}</td></tr>");
    }
    if rows.len() > MAX_ROWS {
        let more = rows.len() - MAX_ROWS;
        let _ = writeln!(page, "<tr><th>and {more} more</th><td></td></tr>");
    }
    page + "</table>\n"
}

/// A text as HTML, cut if it is very long.
fn shown(text: &str) -> String {
    encode_text(&cut(text)).into_owned()
}

fn cut(text: &str) -> String {
    match text.char_indices().nth(MAX_CHARACTERS) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

/// A time in seconds since 1970: `2026-11-26 14:05 UTC`.
fn date(seconds: u64) -> String {
    let time = i64::try_from(seconds)
        .ok()
        .and_then(|seconds| OffsetDateTime::from_unix_timestamp(seconds).ok())
        .unwrap_or(OffsetDateTime::UNIX_EPOCH);
    format!(
        "{}-{:02}-{:02} {:02}:{:02} UTC",
        time.year(),
        u8::from(time.month()),
        time.day(),
        time.hour(),
        time.minute()
    )
}
