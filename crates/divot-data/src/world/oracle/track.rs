//! Where an object is over time, and which motion that is.

use std::f32::consts::{FRAC_PI_4, TAU};

use super::segment::{Masks, median};
use crate::world::scene::Motion;

/// Least share of a clip that an object is missing from its beginning or its end if it appears or vanishes.
const ABSENCE: f32 = 0.15;
/// Least change of the logarithm of the radius if it grows or shrinks.
const GROWTH: f32 = 0.35;
/// Least lengths in sides of the frame: of a straight path, of each half of a path, of a circle's radius, of a jump.
const STRAIGHT: f32 = 0.14;
const HALF: f32 = 0.1;
const RADIUS: f32 = 0.06;
const JUMP: f32 = 0.08;
/// What each number that a model of a path has must gain, in squared sides of the frame.
const PENALTY: f32 = 0.006 * 0.006;

/// An object in one frame.
#[derive(Debug, Clone, Copy)]
pub(super) struct Spot {
    /// Number of the frame.
    pub frame: usize,
    /// From 0 to 1.
    pub time: f32,
    /// Centre of mass, in pixels.
    pub centre: [f32; 2],
    /// Radius of the disc of the same filled area, in pixels.
    pub radius: f32,
}

/// An object over time.
pub(super) struct Track {
    /// The frames in which it is seen.
    pub spots: Vec<Spot>,
    /// How much of it its pixels show where they show it best.
    pub brightest: f32,
    side: f32,
}

impl Track {
    /// Follows an object. `None` if it is nowhere.
    pub fn of(masks: &Masks) -> Option<Self> {
        let mut shares: Vec<f32> = masks.frames.iter().flatten().copied().collect();
        shares.retain(|&share| share > 0.3);
        let upper = shares.len() * 3 / 4;
        if shares.is_empty() {
            return None;
        }
        let brightest = *shares.select_nth_unstable_by(upper, f32::total_cmp).1;
        let last = (masks.frames.len().max(2) - 1) as f32;
        let spots = masks.frames.iter().enumerate().map(|(frame, mask)| {
            let (centre, radius) = spot(mask, masks.width, brightest);
            Spot {
                frame,
                time: frame as f32 / last,
                centre,
                radius,
            }
        });
        let mut spots: Vec<Spot> = spots.collect();
        let side = masks.width.min(masks.height) as f32;
        let largest = spots.iter().map(|spot| spot.radius).fold(0.0, f32::max);
        spots.retain(|spot| spot.radius > (0.35 * largest).max(0.03 * side));
        (!spots.is_empty()).then_some(Self {
            spots,
            brightest,
            side,
        })
    }

    /// Radius of the disc of the same filled area halfway, in sides of the frame.
    pub fn radius(&self) -> f32 {
        median(self.spots.iter().map(|spot| spot.radius).collect()) / self.side
    }

    /// What the object does, and what then.
    pub fn motion(&self) -> (Motion, Option<Motion>) {
        let [first, .., last] = &self.spots[..] else {
            return (Motion::Still, None);
        };
        if first.time >= ABSENCE && last.time > 1.0 - ABSENCE {
            return (Motion::Appear, None);
        }
        if last.time <= 1.0 - ABSENCE && first.time < ABSENCE {
            return (Motion::Vanish, None);
        }
        let radii = self.spots.iter().map(|spot| spot.radius.ln()).collect();
        let growth = self.fit(radii, &[|_| 1.0, |time| time]).weights[1];
        match growth {
            growth if growth > GROWTH => (Motion::Grow, None),
            growth if growth < -GROWTH => (Motion::Shrink, None),
            _ => self.path(),
        }
    }

    /// The motion whose path is the nearest.
    fn path(&self) -> (Motion, Option<Motion>) {
        let constant = |_| 1.0;
        let linear = |time| time;
        let early = |time: f32| time.min(0.5);
        let late = |time: f32| (time - 0.5).max(0.0);
        let across = |time: f32| (TAU * time).cos();
        let along = |time: f32| (TAU * time).sin();
        let jumps = |time: f32| (TAU * time).sin().abs();

        let straight = self.fits([&[constant, linear], &[constant, linear]]);
        let halves = self.fits([&[constant, early, late], &[constant, early, late]]);
        let turning: &[Basis] = &[constant, linear, across, along];
        let round = self.fits([turning, turning]);
        let jumping = self.fits([&[constant, linear], &[constant, linear, jumps]]);

        let part = |fits: &[Fit; 2], number: usize| fits.each_ref().map(|fit| fit.weights[number]);
        let mut best = (f32::MAX, (Motion::Still, None));
        let mut offer = |fits: &[Fit; 2], motion, then| {
            let error = fits.iter().map(Fit::cost).sum::<f32>();
            if error < best.0 {
                best = (error, (motion, then));
            }
        };
        let path = part(&straight, 1);
        match length(path) {
            far if far >= STRAIGHT => offer(&straight, octant(path), None),
            _ => offer(&straight, Motion::Still, None),
        }
        let [first, then] = [part(&halves, 1), part(&halves, 2)].map(|pace| pace.map(|v| v / 2.0));
        if length(first) >= HALF && length(then) >= HALF && quadrant(first) != quadrant(then) {
            offer(&halves, quadrant(first), Some(quadrant(then)));
        }
        let radius = (length(part(&round, 2)) * length(part(&round, 3))).sqrt();
        if radius >= RADIUS {
            offer(&round, Motion::Circle, None);
        }
        if jumping[1].weights[2] <= -JUMP {
            offer(&jumping, Motion::Bounce, None);
        }
        best.1
    }

    fn fits(&self, bases: [&[Basis]; 2]) -> [Fit; 2] {
        std::array::from_fn(|axis| {
            let places = self.spots.iter().map(|spot| spot.centre[axis] / self.side);
            self.fit(places.collect(), bases[axis])
        })
    }

    /// The sum of functions of time that is the nearest to values.
    fn fit(&self, values: Vec<f32>, basis: &[Basis]) -> Fit {
        let rows: Vec<Vec<f32>> = self
            .spots
            .iter()
            .map(|spot| basis.iter().map(|function| function(spot.time)).collect())
            .collect();
        let count = basis.len();
        // The normal equations, with the right side in the last column.
        let mut system = vec![vec![0f64; count + 1]; count];
        for (row, value) in rows.iter().zip(&values) {
            for (i, line) in system.iter_mut().enumerate() {
                for j in 0..count {
                    line[j] += f64::from(row[i]) * f64::from(row[j]);
                }
                line[count] += f64::from(row[i]) * f64::from(*value);
            }
        }
        let weights = solve(system);
        let errors = rows.iter().zip(&values).map(|(row, value)| {
            let fitted = row
                .iter()
                .zip(&weights)
                .map(|(row, weight)| row * weight)
                .sum::<f32>();
            (fitted - value).powi(2)
        });
        let error = errors.sum::<f32>() / values.len().max(1) as f32;
        Fit { weights, error }
    }
}

/// A function of time.
type Basis = fn(f32) -> f32;

struct Fit {
    weights: Vec<f32>,
    /// Mean squared error.
    error: f32,
}

impl Fit {
    fn cost(&self) -> f32 {
        self.error + PENALTY * self.weights.len() as f32
    }
}

/// Solves a system of linear equations by Gauss and Jordan. A number that is not determined is 0.
fn solve(mut system: Vec<Vec<f64>>) -> Vec<f32> {
    let count = system.len();
    for column in 0..count {
        let pivot = (column..count)
            .max_by(|&a, &b| system[a][column].abs().total_cmp(&system[b][column].abs()))
            .unwrap_or(column);
        system.swap(column, pivot);
        let lead = system[column][column];
        if lead.abs() < 1e-9 {
            system[column].fill(0.0);
            continue;
        }
        system[column].iter_mut().for_each(|value| *value /= lead);
        let row = system[column].clone();
        for (number, other) in system.iter_mut().enumerate() {
            if number != column {
                let factor = other[column];
                other
                    .iter_mut()
                    .zip(&row)
                    .for_each(|(value, row)| *value -= factor * row);
            }
        }
    }
    system.iter().map(|row| row[count] as f32).collect()
}

/// Centre and radius of what a mask shows. What lies far from the most of it does not count.
fn spot(mask: &[f32], width: usize, brightest: f32) -> ([f32; 2], f32) {
    // Sharper than the mask, so that blur does not change the area.
    let sharp = |share: f32| (3.0 * (share / brightest - 0.5) + 0.5).clamp(0.0, 1.0);
    let pixels = mask.iter().enumerate().filter_map(|(at, &share)| {
        let share = sharp(share);
        let place = [at % width, at / width].map(|at| at as f32 + 0.5);
        (share > 0.0).then_some((place, share))
    });
    let pixels: Vec<([f32; 2], f32)> = pixels.collect();
    let middle = |axis: usize| median(pixels.iter().map(|(place, _)| place[axis]).collect());
    let mut centre = [middle(0), middle(1)];
    let mut radius = f32::INFINITY;
    for _ in 0..4 {
        let near = |place: &[f32; 2]| {
            length([place[0] - centre[0], place[1] - centre[1]]) < 2.0 * radius + 2.0
        };
        let (mut area, mut sum) = (0.0, [0.0; 2]);
        for (place, share) in pixels.iter().filter(|(place, _)| near(place)) {
            area += share;
            sum = [sum[0] + share * place[0], sum[1] + share * place[1]];
        }
        if area == 0.0 {
            return (centre, 0.0);
        }
        centre = sum.map(|sum| sum / area);
        radius = (area * 2.0 / TAU).sqrt();
    }
    (centre, radius)
}

fn length([x, y]: [f32; 2]) -> f32 {
    x.hypot(y)
}

/// The nearest of eight directions.
fn octant([x, y]: [f32; 2]) -> Motion {
    use Motion::{Down, DownLeft, DownRight, Left, Right, Up, UpLeft, UpRight};
    let turns = (y.atan2(x) / FRAC_PI_4).round() as i32;
    [Right, DownRight, Down, DownLeft, Left, UpLeft, Up, UpRight][turns.rem_euclid(8) as usize]
}

/// The nearest of four directions.
fn quadrant([x, y]: [f32; 2]) -> Motion {
    match x.abs() > y.abs() {
        true if x > 0.0 => Motion::Right,
        true => Motion::Left,
        false if y > 0.0 => Motion::Down,
        false => Motion::Up,
    }
}
