//! Pictures that are drawn on: floating-point RGB, and noise to fill them with.

use super::draw::Draw;
use crate::Frame;

/// A colour, each part in 0..=255 and beyond.
pub(super) type Rgb = [f32; 3];

/// A square picture.
#[derive(Clone)]
pub(super) struct Picture {
    pub side: usize,
    /// Row by row.
    pub pixels: Vec<Rgb>,
}

impl Picture {
    /// Draws each pixel, given its column and row.
    pub fn new(side: usize, mut pixel: impl FnMut(usize, usize) -> Rgb) -> Self {
        let pixels = (0..side * side).map(|at| pixel(at % side, at / side));
        Self {
            side,
            pixels: pixels.collect(),
        }
    }

    /// The colour at a column and a row, between pixels too. The picture repeats itself without end.
    pub fn at(&self, x: f32, y: f32) -> Rgb {
        let side = self.side as i32;
        let place = |at: f32| {
            let low = at.floor();
            let first = (low as i32).rem_euclid(side);
            (first as usize, ((first + 1) % side) as usize, at - low)
        };
        let ((left, right, along), (top, bottom, down)) = (place(x), place(y));
        let row = |row: usize| {
            let row = &self.pixels[row * self.side..][..self.side];
            mix(row[left], row[right], along)
        };
        mix(row(top), row(bottom), down)
    }

    /// The frame, with noise of this standard deviation.
    pub fn frame(&self, noise: f32, draw: &mut Draw) -> Frame {
        let mut values = self.pixels.as_flattened().iter();
        let mut rgb = Vec::with_capacity(values.len() + 1);
        while rgb.len() < self.pixels.len() * 3 {
            for normal in draw.normals() {
                let value = values.next().copied().unwrap_or_default();
                // The conversion clamps.
                rgb.push((value + noise * normal).round() as u8);
            }
        }
        rgb.truncate(self.pixels.len() * 3);
        Frame {
            width: self.side,
            height: self.side,
            rgb,
        }
    }
}

/// What lies at this share of the way from one colour to the other.
pub(super) fn mix(from: Rgb, to: Rgb, share: f32) -> Rgb {
    std::array::from_fn(|i| from[i] + (to[i] - from[i]) * share)
}

/// How much of a pixel is covered whose centre is this many pixels outside an outline.
pub(super) fn coverage(distance: f32) -> f32 {
    (0.5 - distance).clamp(0.0, 1.0)
}

/// Noise of `side` by `side` values that repeats itself, with a mean of 0 and a variance of 1: layers with `cells` cells
/// a side, of which each is half as strong as the one of half as many cells, so that amplitudes fall as 1/f.
pub(super) fn noise(side: usize, cells: &[usize], draw: &mut Draw) -> Vec<f32> {
    let mut values = vec![0f32; side * side];
    let mut strength = 1.0;
    for &cells in cells {
        let knots: Vec<f32> = (0..cells * cells).map(|_| draw.normals()[0]).collect();
        // The knots beside each place, and how far it is from the first to the second.
        let places: Vec<(usize, usize, f32)> = (0..side)
            .map(|at| {
                let at = (at * cells) as f32 / side as f32;
                let (knot, along) = (at as usize, at.fract());
                (
                    knot,
                    (knot + 1) % cells,
                    along * along * (3.0 - 2.0 * along),
                )
            })
            .collect();
        for (row, &(top, bottom, down)) in values.chunks_exact_mut(side).zip(&places) {
            for (value, &(left, right, along)) in row.iter_mut().zip(&places) {
                let line = |knot: usize| {
                    let line = &knots[knot * cells..][..cells];
                    line[left] + (line[right] - line[left]) * along
                };
                *value += strength * (line(top) + (line(bottom) - line(top)) * down);
            }
        }
        strength /= 2.0;
    }
    let count = values.len() as f32;
    let mean = values.iter().sum::<f32>() / count;
    let variance = values.iter().map(|v| (v - mean).powi(2)).sum::<f32>() / count;
    let scale = 1.0 / variance.sqrt().max(1e-6);
    values.iter_mut().for_each(|v| *v = (*v - mean) * scale);
    values
}
