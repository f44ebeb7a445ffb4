//! Which shape an object has: its mean over the frames is compared with pictures of all shapes.

use std::f32::consts::TAU;

use super::segment::Masks;
use super::track::Track;
use crate::world::picture::coverage;
use crate::world::scene::Shape;

/// Points of a picture along each axis.
const SIDE: usize = 33;
/// How far pictures reach from the centre, in radii of the disc of the same filled area.
const REACH: f32 = 2.0;
/// Standard deviations of blur, in the same radii.
const BLURS: [f32; 5] = [0.05, 0.15, 0.25, 0.35, 0.45];
/// Turns during a clip that are tried.
const TURNS: [f32; 8] = [-1.0, -0.75, -0.5, -0.3, 0.3, 0.5, 0.75, 1.0];
/// How much more a spinning object must look like a shape than an upright one.
const MARGIN: f32 = 0.008;

/// Radius in pixels at which shapes are drawn: that of the disc of the same filled area.
const RADIUS: f32 = 12.0;

/// Values at the points of a picture.
type Picture = Vec<f32>;

/// Pictures of all shapes.
#[derive(Debug, Clone)]
pub(super) struct Templates(Vec<Template>);

#[derive(Debug, Clone)]
struct Template {
    shape: Shape,
    picture: Picture,
    /// The size's radius over that of the disc of the filled area, as it is measured.
    scale: f32,
}

/// What something looks most like.
#[derive(Debug, Clone, Copy)]
pub(super) struct Match {
    pub shape: Shape,
    /// How much it does, at most 1.
    pub likeness: f32,
    /// By what its measured radius is multiplied to be that of its size.
    pub scale: f32,
}

impl Default for Templates {
    /// Shapes of all blurs, each followed and cut out as objects of clips are.
    fn default() -> Self {
        let all = Shape::ALL.into_iter().flat_map(|shape| {
            BLURS.into_iter().filter_map(move |blur| {
                let outlined = RADIUS / shape.filled().sqrt();
                let masks = drawn(shape, outlined, blur);
                let track = Track::of(&masks)?;
                Some(Template {
                    shape,
                    picture: mean(&masks, &track, 0.0),
                    scale: outlined / track.spots[0].radius,
                })
            })
        });
        Self(all.collect())
    }
}

/// A shape in the middle of a single frame.
fn drawn(shape: Shape, outlined: f32, blur: f32) -> Masks {
    const WIDTH: usize = 96;
    let middle = WIDTH as f32 / 2.0;
    let pixels = (0..WIDTH * WIDTH).map(|at| {
        let point = [at % WIDTH, at / WIDTH].map(|at| (at as f32 + 0.5 - middle) / outlined);
        coverage(shape.distance(point) * outlined)
    });
    let mut mask: Vec<f32> = pixels.collect();
    for step in [1, WIDTH] {
        mask = blurred(&mask, step, blur * RADIUS);
    }
    Masks {
        width: WIDTH,
        height: WIDTH,
        frames: vec![mask],
    }
}

/// Blurs along the axis whose neighbours are `step` values apart. There is nothing near the border.
fn blurred(mask: &[f32], step: usize, deviation: f32) -> Vec<f32> {
    let reach = (3.0 * deviation).ceil() as usize;
    let weights: Vec<f32> = (0..=reach)
        .map(|at| (-0.5 * (at as f32 / deviation).powi(2)).exp())
        .collect();
    let total = 2.0 * weights.iter().sum::<f32>() - weights[0];
    let value = |at: usize| {
        let near = weights.iter().enumerate().map(|(distance, weight)| {
            let offset = distance * step;
            let before = at.checked_sub(offset).map_or(0.0, |at| mask[at]);
            let behind = mask.get(at + offset).copied().unwrap_or(0.0);
            match distance {
                0 => weight * before,
                _ => weight * (before + behind),
            }
        });
        near.sum::<f32>() / total
    };
    (0..mask.len()).map(value).collect()
}

impl Templates {
    /// The shape that a picture looks most like, of those that can spin only if that is wanted.
    pub fn best(&self, picture: &Picture, spinning: bool) -> Match {
        let mut best = Match {
            shape: Shape::Circle,
            likeness: -1.0,
            scale: 1.0,
        };
        let templates = self.0.iter();
        for template in templates.filter(|template| template.shape.can_spin() || !spinning) {
            let pairs = picture.iter().zip(&template.picture);
            let likeness = pairs.map(|(a, b)| a * b).sum();
            if likeness > best.likeness {
                best = Match {
                    shape: template.shape,
                    likeness,
                    scale: template.scale,
                };
            }
        }
        best
    }

    /// What an object that spins looks like, if that explains its frames better than an upright one does.
    pub fn spinning(&self, masks: &Masks, track: &Track, upright: f32) -> Option<Match> {
        let turns = TURNS.map(|turns| self.best(&mean(masks, track, turns), true));
        let best = turns
            .into_iter()
            .max_by(|a, b| a.likeness.total_cmp(&b.likeness))?;
        (best.likeness > upright + MARGIN).then_some(best)
    }
}

/// The mean of an object over its frames, all of one size, turned back by what it turned if it makes so many turns.
///
/// Each frame is [normalised], the mean is not: its product with a shape's picture is the mean correlation of a frame
/// with the shape, which is low where frames that differ have a mean that looks like some shape.
pub(super) fn mean(masks: &Masks, track: &Track, turns: f32) -> Picture {
    let mut mean = vec![0f32; SIDE * SIDE];
    for spot in &track.spots {
        let mask = &masks.frames[spot.frame];
        let (sin, cos) = (TAU * turns * spot.time).sin_cos();
        let values = points().map(|[x, y]| {
            let column = spot.centre[0] + spot.radius * (x * cos - y * sin) - 0.5;
            let row = spot.centre[1] + spot.radius * (x * sin + y * cos) - 0.5;
            at(mask, masks.width, masks.height, column, row).min(track.brightest)
        });
        for (mean, value) in mean.iter_mut().zip(normalised(values.collect())) {
            *mean += value / track.spots.len() as f32;
        }
    }
    mean
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
    let length = picture
        .iter()
        .map(|value| value * value)
        .sum::<f32>()
        .sqrt();
    picture
        .iter_mut()
        .for_each(|value| *value /= length.max(1e-6));
    picture
}

/// The value of a mask between its pixels; 0 outside.
fn at(mask: &[f32], width: usize, height: usize, x: f32, y: f32) -> f32 {
    let (left, top) = (x.floor(), y.floor());
    let (along, down) = (x - left, y - top);
    let value = |column: f32, row: f32| {
        let inside = column >= 0.0 && row >= 0.0 && column < width as f32 && row < height as f32;
        if inside {
            mask[row as usize * width + column as usize]
        } else {
            0.0
        }
    };
    let row = |row: f32| value(left, row) * (1.0 - along) + value(left + 1.0, row) * along;
    row(top) * (1.0 - down) + row(top + 1.0) * down
}
