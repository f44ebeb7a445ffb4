//! Curves as SVG.
//!
//! The drawing is stretched to the page's width, and the words about it are HTML: they keep their size on
//! narrow pages.

use std::fmt::Write;

use html_escape::encode_double_quoted_attribute as attribute;
use html_escape::encode_text as escape;

use super::history::{Point, Series};
use super::text::{count, number};

/// Width and height of the drawing. Its coordinates are whole numbers.
const SIDE: f64 = 10_000.0;
/// Numbers are drawn as their logarithms if the highest is so many times the lowest.
const LOG_RATIO: f64 = 10.0;

/// What a curve is measured in.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Unit {
    None,
    /// A share from 0 to 1.
    Percent,
    /// Bytes.
    Gibibytes,
}

impl Unit {
    /// The unit that the end of a name says, and the name without it.
    pub(super) fn of(name: &str) -> (Self, &str) {
        if let Some(name) = name.strip_suffix("_share") {
            return (Self::Percent, name);
        }
        match name.strip_suffix("_bytes") {
            Some(name) => (Self::Gibibytes, name),
            None => (Self::None, name),
        }
    }

    fn factor(self) -> f64 {
        match self {
            Self::None => 1.0,
            Self::Percent => 100.0,
            Self::Gibibytes => 1.0 / (1u64 << 30) as f64,
        }
    }

    fn suffix(self) -> &'static str {
        match self {
            Self::None => "",
            Self::Percent => " %",
            Self::Gibibytes => " GiB",
        }
    }

    pub(super) fn text(self, value: f64, digits: usize) -> String {
        format!("{}{}", number(value * self.factor(), digits), self.suffix())
    }
}

/// A curve of a chart.
pub(super) struct Line<'a> {
    /// What the key calls it.
    pub(super) label: &'a str,
    pub(super) series: &'a Series,
    pub(super) look: Look,
}

/// How a curve is drawn.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Look {
    /// What was measured, lightly, and a smoothed line.
    Smoothed,
    /// A line through what was measured.
    Exact,
    /// A line and a dot for each measurement, in a second colour.
    Dots,
}

impl Look {
    /// The class of the style sheet that has its colour.
    fn class(self) -> &'static str {
        match self {
            Self::Smoothed | Self::Exact => "a",
            Self::Dots => "b",
        }
    }
}

/// A drawing of curves over steps.
pub(super) struct Chart<'a> {
    pub(super) title: &'a str,
    pub(super) unit: Unit,
    /// Takes the width of two.
    pub(super) wide: bool,
    /// The last step that is drawn.
    pub(super) last_step: usize,
    /// May be drawn with logarithms.
    pub(super) log: bool,
    pub(super) lines: Vec<Line<'a>>,
}

impl Chart<'_> {
    /// The chart as an HTML figure.
    pub(super) fn html(&self) -> String {
        let axes = self.axes();
        let mut page = String::new();
        let wide = if self.wide { " wide" } else { "" };
        let scale = if axes.log { " <small>log</small>" } else { "" };
        // Writing to a string does not fail.
        let _ = write!(
            page,
            "<figure class=\"chart{wide}\" data-x=\"{} {}\" data-y=\"{} {}\" data-log=\"{}\" data-unit=\"{}\">\n<figcaption><b>{}</b>{scale}",
            axes.x[0],
            axes.x[1],
            axes.y[0],
            axes.y[1],
            u8::from(axes.log),
            self.unit.suffix(),
            escape(self.title),
        );
        for line in &self.lines {
            page += &self.key(line);
        }
        page += "<output></output></figcaption>\n<div class=\"plot\">";
        page += &self.drawing(&axes);
        for (value, label) in &axes.y_ticks {
            let _ = write!(
                page,
                "<span class=\"y\" style=\"top:{:.2}%\">{label}</span>",
                axes.top(*value) / SIDE * 100.0
            );
        }
        for (value, label) in &axes.x_ticks {
            let _ = write!(
                page,
                "<span class=\"x\" style=\"left:{:.2}%\">{label}</span>",
                axes.left(*value) / SIDE * 100.0
            );
        }
        page += "</div>\n</figure>\n";
        page
    }

    /// What a curve is called, and where it stands.
    fn key(&self, line: &Line<'_>) -> String {
        let Series {
            last,
            not_finite_count,
            ..
        } = line.series;
        let class = line.look.class();
        let mut key = format!(
            "<span class=\"key {class}\">{} <b>{}</b>",
            escape(line.label),
            self.unit.text(*last, 3)
        );
        if *not_finite_count > 0 {
            let steps = count(*not_finite_count);
            key += &format!(", <span class=\"bad\">not finite {steps}×</span>");
        }
        key + "</span>"
    }

    fn drawing(&self, axes: &Axes) -> String {
        let mut svg = format!(
            "<svg viewBox=\"0 0 {SIDE} {SIDE}\" preserveAspectRatio=\"none\" role=\"img\" aria-label=\"{}\"><path class=\"grid\" d=\"",
            attribute(&format!("{} over steps", self.title))
        );
        for (value, _) in &axes.y_ticks {
            let _ = write!(svg, "M0 {:.0}H{SIDE}", axes.top(*value));
        }
        svg += "\"/>";
        for line in &self.lines {
            draw(&mut svg, line, self.unit.factor(), axes);
        }
        svg + "</svg>"
    }

    fn axes(&self) -> Axes {
        let factor = self.unit.factor();
        let mut values = Vec::new();
        for line in &self.lines {
            let points = line.series.points();
            let scaled = |value: f64| value * factor;
            values.extend(
                match line.look {
                    Look::Smoothed => {
                        within(points.iter().flat_map(|point| [point.low, point.high]))
                    }
                    Look::Exact | Look::Dots => points.iter().map(Point::mean).collect(),
                }
                .into_iter()
                .map(scaled),
            );
            if line.look == Look::Smoothed {
                values.extend(line.series.smoothed().into_iter().map(scaled));
            }
        }
        Axes::new(self.last_step, &values, self.log)
    }
}

/// The values without the outermost hundredths, which may be far away.
fn within(values: impl Iterator<Item = f64>) -> Vec<f64> {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    let outside = values.len() / 100;
    values.truncate(values.len() - outside);
    values.split_off(outside)
}

fn draw(svg: &mut String, line: &Line<'_>, factor: f64, axes: &Axes) {
    let points = line.series.points();
    let class = line.look.class();
    let places = |values: &mut dyn Iterator<Item = f64>| -> Vec<String> {
        let places = points.iter().zip(values).map(|(point, value)| {
            let (left, top) = (axes.left(point.step()), axes.top(value * factor));
            format!("{left:.0},{top:.0}")
        });
        places.collect()
    };
    let means = places(&mut points.iter().map(Point::mean));
    let mut shown = &means;
    let smoothed;
    if line.look == Look::Smoothed {
        if points.iter().all(|point| point.steps[0] == point.steps[1]) {
            let means = means.join(" ");
            let _ = write!(svg, "<polyline class=\"raw {class}\" points=\"{means}\"/>");
        } else {
            let mut outline = places(&mut points.iter().map(|point| point.high));
            let lows = places(&mut points.iter().map(|point| point.low));
            outline.extend(lows.into_iter().rev());
            let outline = outline.join(" ");
            let _ = write!(
                svg,
                "<polygon class=\"band {class}\" points=\"{outline}\"/>"
            );
        }
        smoothed = places(&mut line.series.smoothed().into_iter());
        shown = &smoothed;
    }
    let _ = write!(
        svg,
        "<polyline class=\"line {class}\" data-label=\"{}\" points=\"{}\"/>",
        attribute(line.label),
        shown.join(" ")
    );
    // A line of no length with round ends is a dot, however the drawing is stretched.
    if line.look == Look::Dots || points.len() == 1 {
        let dots: String = means.iter().map(|place| format!("M{place}h0")).collect();
        let _ = write!(svg, "<path class=\"dots {class}\" d=\"{dots}\"/>");
    }
    if !line.series.not_finite.is_empty() {
        let _ = write!(svg, "<path class=\"bad\" d=\"");
        for step in &line.series.not_finite {
            let _ = write!(svg, "M{:.0} {SIDE}v-500", axes.left(*step as f64));
        }
        *svg += "\"/>";
    }
}

/// What a chart shows, and the ticks at its sides.
#[derive(Debug)]
struct Axes {
    x: [f64; 2],
    /// Logarithms to the base of 10, if `log`.
    y: [f64; 2],
    log: bool,
    x_ticks: Vec<(f64, String)>,
    y_ticks: Vec<(f64, String)>,
}

impl Axes {
    fn new(last_step: usize, values: &[f64], log: bool) -> Self {
        let low = values.iter().copied().reduce(f64::min).unwrap_or(0.0);
        let high = values.iter().copied().reduce(f64::max).unwrap_or(1.0);
        let log = log && low > 0.0 && high / low >= LOG_RATIO;
        let [mut low, mut high] = match log {
            true => [low.log10(), high.log10()],
            false => [low, high],
        };
        let mut margin = (high - low) * 0.05;
        // A constant is drawn in the middle. Rounding alone must not fill the chart either.
        let size = low.abs().max(high.abs());
        if margin <= size * 1e-7 {
            margin = if size > 0.0 { size * 0.5 } else { 1.0 };
        }
        let from_zero = !log && low >= 0.0 && low <= high / 3.0;
        low = if from_zero { 0.0 } else { low - margin };
        high += margin;
        let y_ticks = match log {
            true => log_ticks(low, high),
            false => linear_ticks(low, high, 4.0)
                .into_iter()
                .map(|value| (value, number(value, 6)))
                .collect(),
        };
        let x = [0.0, last_step.max(1) as f64];
        let x_ticks = linear_ticks(x[0], x[1], 5.0)
            .into_iter()
            .filter(|step| step.fract() == 0.0)
            .map(|step| (step, steps(step)))
            .collect();
        Self {
            x,
            y: [low, high],
            log,
            x_ticks,
            y_ticks,
        }
    }

    fn left(&self, step: f64) -> f64 {
        (step - self.x[0]) / (self.x[1] - self.x[0]) * SIDE
    }

    /// Distance from the upper side. What lies far outside is drawn just outside.
    fn top(&self, value: f64) -> f64 {
        let value = if self.log { value.log10() } else { value };
        let [low, high] = self.y;
        ((high - value) / (high - low) * SIDE).clamp(-SIDE, 2.0 * SIDE)
    }
}

/// Round numbers between two others, about so many.
fn linear_ticks(low: f64, high: f64, about: f64) -> Vec<f64> {
    let rough = (high - low) / about;
    let power = 10f64.powf(rough.log10().floor());
    let step = [1.0, 2.0, 5.0, 10.0]
        .into_iter()
        .map(|factor| factor * power)
        .find(|step| *step >= rough * 0.65)
        .unwrap_or(rough);
    let first = (low / step).ceil();
    (0..20)
        .map(|i| (first + i as f64) * step)
        .take_while(|tick| *tick <= high)
        // -0 and the noise of products.
        .map(|tick| if tick.abs() < step * 1e-6 { 0.0 } else { tick })
        .collect()
}

/// Ticks between two powers of 10: whole powers, and numbers between them if those are few.
fn log_ticks(low: f64, high: f64) -> Vec<(f64, String)> {
    let decades = high - low;
    let factors: &[f64] = match decades {
        ..2.0 => &[1.0, 2.0, 5.0],
        ..3.0 => &[1.0, 3.0],
        _ => &[1.0],
    };
    let stride = (decades / 6.0).ceil() as i32;
    let mut ticks = Vec::new();
    let mut power = low.floor() as i32;
    power -= power.rem_euclid(stride);
    while f64::from(power) <= high {
        for factor in factors {
            let value = factor * 10f64.powi(power);
            if (low..=high).contains(&value.log10()) {
                ticks.push((value, number(value, 3)));
            }
        }
        power += stride;
    }
    ticks
}

/// A step on an axis: `500`, `2k`, `1.5M`.
fn steps(step: f64) -> String {
    match step {
        1e6.. => format!("{}M", number(step / 1e6, 4)),
        1e3.. => format!("{}k", number(step / 1e3, 4)),
        _ => number(step, 4),
    }
}

#[cfg(test)]
mod tests {
    use super::super::history::MAX_VALUE;
    use super::*;

    #[test]
    fn ticks_are_round_and_few() {
        assert_eq!(
            linear_ticks(0.0, 5000.0, 5.0),
            [0.0, 1000.0, 2000.0, 3000.0, 4000.0, 5000.0]
        );
        assert_eq!(linear_ticks(-0.3, 0.9, 4.0).len(), 6);
        assert_eq!(linear_ticks(0.13, 0.14, 4.0).len(), 6);
        let labels = |low: f64, high: f64| -> Vec<String> {
            let ticks = log_ticks(low.log10(), high.log10());
            ticks.into_iter().map(|(_, label)| label).collect()
        };
        assert_eq!(
            labels(0.02, 1.5),
            ["0.02", "0.05", "0.1", "0.2", "0.5", "1"]
        );
        assert_eq!(
            labels(1e-4, 20.0),
            ["1e-4", "0.001", "0.01", "0.1", "1", "10"]
        );
        assert_eq!(labels(1e-12, 1e12).len(), 7);
        assert_eq!(steps(1500.0), "1.5k");
    }

    #[test]
    fn axes_hold_whatever_is_finite() {
        for values in [
            vec![],
            vec![0.0],
            vec![3.0; 4],
            vec![-MAX_VALUE, MAX_VALUE],
            vec![5e-324, MAX_VALUE],
            vec![1e30, 1e30 + 1e15],
        ] {
            for log in [false, true] {
                let axes = Axes::new(1000, &values, log);
                assert!(axes.y[0] < axes.y[1], "{axes:?}");
                assert!(axes.y_ticks.len() < 20, "{axes:?}");
                for value in &values {
                    let top = axes.top(*value);
                    assert!((0.0..=SIDE).contains(&top), "{value} at {top}: {axes:?}");
                }
            }
        }
    }

    #[test]
    fn a_wide_range_is_drawn_with_logarithms() {
        let wide = [0.1, 0.2, 30.0];
        assert!(Axes::new(10, &wide, true).log);
        assert!(!Axes::new(10, &wide, false).log);
        assert!(!Axes::new(10, &[0.0, 30.0], true).log);
        let axes = Axes::new(10, &wide, true);
        assert!((axes.top(0.1) - axes.top(1.0)) - (axes.top(1.0) - axes.top(10.0)) < 1e-6);
    }
}
