//! Which shape an object has: its mean over the frames is compared with pictures of all shapes.

use std::f32::consts::TAU;

use super::segment::Masks;
use super::track::Track;
use crate::world::scene::Shape;

/// Points of a picture along each axis.
const SIDE: usize = 33;
/// How far pictures reach from the centre, in radii of the disc of the same filled area.
const REACH: f32 = 2.0;
/// Widths of the outlines, in the same radii: sharp to blurred.
const WIDTHS: [f32; 3] = [0.2, 0.5, 0.9];
/// Turns during a clip that are tried.
const TURNS: [f32; 8] = [-1.25, -1.0, -0.75, -0.5, 0.5, 0.75, 1.0, 1.25];
/// How much more a spinning object must look like a shape than an upright one.
const MARGIN: f32 = 0.008;

/// Values at the points of a picture.
type Picture = Vec<f32>;

/// Pictures of all shapes.
#[derive(Debug, Clone)]
pub(super) struct Templates(Vec<(Shape, Picture)>);

/// The shape that something looks most like, and how much, at most 1.
#[derive(Debug, Clone, Copy)]
pub(super) struct Match {
    pub shape: Shape,
    pub likeness: f32,
}

impl Default for Templates {
    fn default() -> Self {
        let all = Shape::ALL.into_iter().flat_map(|shape| {
            let scale = shape.filled().sqrt();
            WIDTHS.map(|width| {
                let picture = points().map(|point| {
                    let distance = shape.distance(point.map(|at| at * scale)) / scale;
                    (0.5 - distance / width).clamp(0.0, 1.0)
                });
                (shape, normalised(picture.collect()))
            })
        });
        Self(all.collect())
    }
}

impl Templates {
    /// The shape that a picture looks most like, of those that can spin only if that is wanted.
    pub fn best(&self, picture: &Picture, spinning: bool) -> Match {
        let mut best = Match {
            shape: Shape::Circle,
            likeness: -1.0,
        };
        for (shape, template) in &self.0 {
            let likeness = picture.iter().zip(template).map(|(a, b)| a * b).sum();
            if likeness > best.likeness && (shape.can_spin() || !spinning) {
                (best.shape, best.likeness) = (*shape, likeness);
            }
        }
        best
    }

    /// The shape of an object that spins, if that explains its frames better than an upright one does.
    pub fn spinning(&self, masks: &Masks, track: &Track, upright: f32) -> Option<Shape> {
        let turns = TURNS.map(|turns| self.best(&mean(masks, track, turns), true));
        let best = turns.into_iter().max_by(|a, b| a.likeness.total_cmp(&b.likeness))?;
        (best.likeness > upright + MARGIN).then_some(best.shape)
    }
}

/// The mean of an object over its frames, all of one size, turned back by what it turned if it makes so many turns.
pub(super) fn mean(masks: &Masks, track: &Track, turns: f32) -> Picture {
    let mut sum = vec![0f32; SIDE * SIDE];
    for spot in &track.spots {
        let mask = &masks.frames[spot.frame];
        let (sin, cos) = (TAU * turns * spot.time).sin_cos();
        for (sum, [x, y]) in sum.iter_mut().zip(points()) {
            let x_turned = spot.centre[0] + spot.radius * (x * cos - y * sin);
            let y_turned = spot.centre[1] + spot.radius * (x * sin + y * cos);
            *sum += at(mask, masks.width, masks.height, x_turned - 0.5, y_turned - 0.5).min(track.brightest);
        }
    }
    normalised(sum)
}

/// The points of a picture, row by row.
fn points() -> impl Iterator<Item = [f32; 2]> {
    (0..SIDE * SIDE).map(|at| {
        [at % SIDE, at / SIDE].map(|at| (at as f32 / (SIDE - 1) as f32 * 2.0 - 1.0) * REACH)
    })
}

/// With a mean of 0 and a length of 1, so that the product of two is their correlation.
fn normalised(mut picture: Picture) -> Picture {
    let mean = picture.iter().sum::<f32>() / picture.len() as f32;
    picture.iter_mut().for_each(|value| *value -= mean);
    let length = picture.iter().map(|value| value * value).sum::<f32>().sqrt();
    picture.iter_mut().for_each(|value| *value /= length.max(1e-6));
    picture
}

/// The value of a mask between its pixels; 0 outside.
fn at(mask: &[f32], width: usize, height: usize, x: f32, y: f32) -> f32 {
    let (left, top) = (x.floor(), y.floor());
    let (along, down) = (x - left, y - top);
    let value = |column: f32, row: f32| {
        let inside = column >= 0.0 && row >= 0.0 && column < width as f32 && row < height as f32;
        if inside { mask[row as usize * width + column as usize] } else { 0.0 }
    };
    let row = |row: f32| value(left, row) * (1.0 - along) + value(left + 1.0, row) * along;
    row(top) * (1.0 - down) + row(top + 1.0) * down
}
