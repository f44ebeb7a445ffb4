//! The numbers of a run so far, in bounded memory.

use std::collections::BTreeMap;

/// A curve has at most so many points, and at least half of it once it has been thinned.
pub(super) const MAX_POINTS: usize = 1000;

/// Numbers beyond cannot be drawn and count as not finite.
pub(super) const MAX_VALUE: f64 = 1e100;

/// Curves by their names.
pub(super) type History = BTreeMap<String, Series>;

/// Neighbouring values of a curve, joined to one point.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Point {
    /// First and last step.
    pub(super) steps: [usize; 2],
    sum: f64,
    count: usize,
    pub(super) low: f64,
    pub(super) high: f64,
}

impl Point {
    pub(super) fn mean(&self) -> f64 {
        (self.sum / self.count as f64).clamp(self.low, self.high)
    }

    /// The middle of its steps.
    pub(super) fn step(&self) -> f64 {
        self.steps[0].midpoint(self.steps[1]) as f64
    }

    fn join(&mut self, other: Self) {
        self.steps[1] = other.steps[1];
        self.sum += other.sum;
        self.count += other.count;
        self.low = self.low.min(other.low);
        self.high = self.high.max(other.high);
    }
}

/// A curve.
///
/// When it has [`MAX_POINTS`] points, each two neighbours become one. What is kept depends on the values
/// alone, so a run that goes on shows what it would have shown.
#[derive(Debug, Clone, Default)]
pub(super) struct Series {
    points: Vec<Point>,
    /// Values that are joined to a point, less one.
    joined: usize,
    /// The last value, finite or not.
    pub(super) last: f64,
    /// The lowest value and its step.
    pub(super) lowest: Option<(f64, usize)>,
    /// Steps whose value was not finite, one of each two neighbours where there are too many.
    pub(super) not_finite: Vec<usize>,
    /// How many there were in all.
    pub(super) not_finite_count: usize,
}

impl Series {
    pub(super) fn points(&self) -> &[Point] {
        &self.points
    }

    pub(super) fn push(&mut self, step: usize, value: f64) {
        self.last = value;
        if value.is_nan() || value.abs() > MAX_VALUE {
            if self.not_finite.len() == MAX_POINTS {
                let mut keep = false;
                self.not_finite.retain(|_| {
                    keep = !keep;
                    keep
                });
            }
            self.not_finite.push(step);
            self.not_finite_count += 1;
            return;
        }
        if self.lowest.is_none_or(|(lowest, _)| value < lowest) {
            self.lowest = Some((value, step));
        }
        let point = Point {
            steps: [step; 2],
            sum: value,
            count: 1,
            low: value,
            high: value,
        };
        match self.points.last_mut() {
            Some(last) if last.count <= self.joined => last.join(point),
            _ => {
                if self.points.len() == MAX_POINTS {
                    self.halve();
                }
                self.points.push(point);
            }
        }
    }

    fn halve(&mut self) {
        let pairs = self.points.chunks(2).map(|pair| {
            let mut point = pair[0];
            pair[1..].iter().for_each(|other| point.join(*other));
            point
        });
        self.points = pairs.collect();
        self.joined = 2 * self.joined + 1;
    }

    /// The curve without its noise: a moving average over about a fiftieth of the curve, forwards and then
    /// backwards, so that it does not lag behind.
    pub(super) fn smoothed(&self) -> Vec<f64> {
        let mut values: Vec<f64> = self.points.iter().map(Point::mean).collect();
        let weight = 1.0 / (values.len() as f64 / 100.0).max(1.0);
        average(values.iter_mut(), weight);
        average(values.iter_mut().rev(), weight);
        values
    }
}

/// Puts in each value's place the average of it and those before, where older ones count less.
fn average<'a>(values: impl Iterator<Item = &'a mut f64>, weight: f64) {
    let (mut sum, mut weights) = (0.0, 0.0);
    for value in values {
        sum += weight * (*value - sum);
        // The first values would otherwise be drawn towards zero.
        weights += weight * (1.0 - weights);
        *value = sum / weights;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_curve_is_thinned_and_loses_no_extreme() {
        let mut series = Series::default();
        for step in 0..100_000 {
            series.push(
                step,
                if step == 77_777 {
                    -50.0
                } else {
                    (step % 7) as f64
                },
            );
            if step == 555 {
                assert_eq!(series.points().len(), 556);
            }
        }
        let points = series.points();
        assert!((MAX_POINTS / 2..=MAX_POINTS).contains(&points.len()));
        assert_eq!(series.lowest, Some((-50.0, 77_777)));
        assert_eq!(
            points.iter().map(|point| point.count).sum::<usize>(),
            100_000
        );
        let dip = points.iter().find(|point| point.low < 0.0).unwrap();
        assert!((dip.steps[0]..=dip.steps[1]).contains(&77_777) && dip.high == 6.0);
        assert!(points.is_sorted_by(|a, b| a.steps[1] + 1 == b.steps[0]));
        let usual = points[0];
        assert!((usual.mean() - 3.0).abs() < 0.1);
    }

    #[test]
    fn smoothing_keeps_a_constant_and_follows_a_step() {
        let mut series = Series::default();
        (0..500).for_each(|step| series.push(step, 4.0));
        assert!(
            series
                .smoothed()
                .iter()
                .all(|value| (value - 4.0).abs() < 1e-9)
        );
        (500..1000).for_each(|step| series.push(step, 8.0));
        let smoothed = series.smoothed();
        assert!(smoothed.is_sorted_by(|a, b| *a <= b + 1e-9));
        assert!((smoothed[smoothed.len() - 1] - 8.0).abs() < 1e-3);
    }

    #[test]
    fn numbers_that_are_not_finite_are_counted_apart() {
        let mut series = Series::default();
        series.push(1, 1.0);
        (2..5000).for_each(|step| series.push(step, f64::NAN));
        assert!(series.last.is_nan());
        assert_eq!(series.points().len(), 1);
        assert_eq!(series.not_finite_count, 4998);
        assert!(series.not_finite.len() <= MAX_POINTS);
    }
}
