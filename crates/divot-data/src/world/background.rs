//! Backgrounds: nearly grey, so that objects stand out by their colour.

use std::f32::consts::{FRAC_PI_4, TAU};

use super::draw::Draw;
use super::picture::{Picture, coverage, noise};
use super::scene::{Background, Pattern};

/// Marks the random numbers of backgrounds.
const PURPOSE: u64 = 1;

impl Background {
    /// Draws it for frames of `side` pixels. It repeats itself, with a seam where the pattern does not fit.
    pub(super) fn picture(&self, side: usize) -> Picture {
        let mut draw = Draw::new([self.seed.into(), PURPOSE, 0, 0]);
        // Room for pans, on each side half of it.
        let wide = side + side / 4;
        let height = self.heights(side, wide, &mut draw);
        let (tilt, steepness) = (draw.within(0.0, TAU), draw.within(0.0, 12.0));
        let (sin, cos) = tilt.sin_cos();
        Picture::new(wide, |x, y| {
            let [right, down] = [x, y].map(|at| at as f32 / wide as f32 - 0.5);
            let light = self.brightness
                + self.contrast * height[y * wide + x]
                + steepness * (right * cos + down * sin);
            [light + self.warmth, light, light - self.warmth]
        })
    }

    /// The pattern, from -1 to 1 or so.
    fn heights(&self, side: usize, wide: usize, draw: &mut Draw) -> Vec<f32> {
        let side = side as f32;
        // Lengths are in pixels, so that edges are a pixel wide.
        let period = draw.within(0.14, 0.26) * side;
        let shift = [draw.within(0.0, period), draw.within(0.0, period)];
        let angle = draw.below(4) as f32 * FRAC_PI_4;
        let (sin, cos) = angle.sin_cos();
        let wave = draw.within(0.05, 0.12) * side;
        // A rectangular wave: 1 in the first half of each period, else -1.
        let bands = move |at: f32| {
            let place = at.rem_euclid(period);
            let edge = (place - period / 2.0).abs().min(place.min(period - place));
            let sign = if place < period / 2.0 { 1.0 } else { -1.0 };
            sign * (2.0 * edge).min(1.0)
        };
        let pattern: Box<dyn Fn(f32, f32) -> f32> = match self.pattern {
            Pattern::Plain => return vec![0.0; wide * wide],
            Pattern::Cloudy => return halved(noise(wide, &[3, 6, 12, 24, 48], draw)),
            Pattern::Sandy => return halved(noise(wide, &[wide / 2, wide], draw)),
            Pattern::Striped => Box::new(move |x, y| bands(x * cos + y * sin)),
            Pattern::Checked => Box::new(move |x, y| bands(x) * bands(y)),
            Pattern::Dotted => Box::new(move |x, y| {
                let [x, y] = [x, y].map(|at| at.rem_euclid(period) - period / 2.0);
                2.0 * coverage(x.hypot(y) - 0.28 * period) - 0.5
            }),
            Pattern::Brick => Box::new(move |x, y| {
                let row = (y / (0.6 * period)).floor();
                let down = y.rem_euclid(0.6 * period);
                let across = (x + row * 0.7 * period).rem_euclid(1.4 * period);
                let joint = across.min(1.4 * period - across);
                let joint = joint.min(down.min(0.6 * period - down));
                0.5 - 1.5 * coverage(joint - 0.5)
            }),
            Pattern::Wavy => Box::new(move |x, y| {
                let bend = wave * (TAU * x / (2.5 * period)).sin();
                (TAU * (y + bend) / (0.8 * period)).sin() * 0.8
            }),
        };
        let pixels = 0..wide * wide;
        pixels
            .map(|at| {
                let [x, y] = [at % wide, at / wide].map(|at| at as f32);
                pattern(x + shift[0], y + shift[1])
            })
            .collect()
    }
}

fn halved(mut values: Vec<f32>) -> Vec<f32> {
    values.iter_mut().for_each(|value| *value *= 0.5);
    values
}
