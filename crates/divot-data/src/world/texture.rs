//! Clips of textures, which teach an autoencoder what sprites do not have: dead leaves and 1/f noise, in layers that move
//! over each other.
//!
//! Dead leaves are discs and boxes that lie over each other, with a density of sizes that falls as r⁻³, which gives the
//! statistics of natural images (Lee, Mumford and Huang 2001).

use std::f32::consts::TAU;

use serde::{Deserialize, Serialize};

use super::draw::Draw;
use super::picture::{Picture, Rgb, coverage, mix, noise};
use super::scene::named;
use crate::Frame;

/// Marks the random numbers of layers.
const PURPOSE: u64 = 3;

named! {
    /// What a layer is made of.
    Material {
        /// Dead leaves: flat discs and boxes over each other.
        Leaves = "leaves",
        /// 1/f noise.
        Clouds = "clouds",
    }
}

/// What is in a clip of textures.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Texture {
    /// Two or three layers, the farthest first.
    pub layers: Vec<Layer>,
}

/// A texture that moves. All but the farthest are patches, with holes between them.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Layer {
    /// What it is made of.
    pub material: Material,
    /// How far it slides, right and down, in sides of the frame.
    pub slide: [f32; 2],
    /// How much larger it is in the end than in the beginning.
    pub zoom: f32,
    /// How far it turns, in turns, clockwise.
    pub turn: f32,
    /// Seed of its details.
    pub seed: u32,
}

/// Textures at random.
pub(super) fn texture(draw: &mut Draw) -> Texture {
    let layers = (0..2 + draw.below(2)).map(|_| {
        let mut layer = Layer {
            material: draw.one(&Material::ALL),
            slide: [0.0; 2],
            zoom: 1.0,
            turn: 0.0,
            seed: draw.bits() as u32,
        };
        match draw.below(3) {
            0 => {
                let (sin, cos) = draw.within(0.0, TAU).sin_cos();
                let length = draw.within(0.1, 0.5);
                layer.slide = [length * cos, length * sin];
            }
            1 => layer.zoom = draw.within(1.2, 1.7).powf(draw.one(&[-1.0, 1.0])),
            _ => layer.turn = draw.within(0.05, 0.2) * draw.one(&[-1.0, 1.0]),
        }
        layer
    });
    Texture {
        layers: layers.collect(),
    }
}

impl Texture {
    /// Draws `count` frames of `side` by `side` pixels, spread over the clip from its beginning to its end.
    pub fn frames(&self, side: usize, count: usize) -> Vec<Frame> {
        let sheets: Vec<_> = self.layers.iter().map(|layer| layer.sheet(side)).collect();
        let mut noiseless = Draw::new([0; 4]);
        let frames = (0..count).map(|number| {
            let time = number as f32 / (count.max(2) - 1) as f32 - 0.5;
            let views = self.layers.iter().map(|layer| layer.view(side, time));
            let views: Vec<_> = views.zip(&sheets).collect();
            let picture = Picture::new(side, |x, y| {
                let mut colour = [0.0; 3];
                for (number, (view, sheet)) in views.iter().enumerate() {
                    let [x, y] = view(x as f32, y as f32);
                    let mask = match number {
                        0 => 1.0,
                        _ => sheet.mask.at(x, y)[0].clamp(0.0, 1.0),
                    };
                    if mask > 0.0 {
                        colour = mix(colour, sheet.colours.at(x, y), mask);
                    }
                }
                colour
            });
            picture.frame(0.0, &mut noiseless)
        });
        frames.collect()
    }
}

/// A layer before it moves.
struct Sheet {
    colours: Picture,
    /// Where it is, from 0 to 1 and beyond.
    mask: Picture,
}

impl Layer {
    fn sheet(&self, side: usize) -> Sheet {
        let mut draw = Draw::new([self.seed.into(), PURPOSE, 0, 0]);
        // Larger than a frame, so that it does not repeat itself in sight.
        let wide = side + side / 2;
        let colours = match self.material {
            Material::Leaves => leaves(wide, &mut draw),
            Material::Clouds => clouds(wide, &mut draw),
        };
        let height = noise(wide, &[3, 6, 12], &mut draw);
        let sharpness = wide as f32 / 24.0;
        Sheet {
            colours,
            mask: Picture::new(wide, |x, y| [height[y * wide + x] * sharpness + 0.5; 3]),
        }
    }

    /// Where on the sheet a pixel is, at a time from -0.5 to 0.5.
    fn view(&self, side: usize, time: f32) -> impl Fn(f32, f32) -> [f32; 2] {
        let half = side as f32 / 2.0;
        let slide = self.slide.map(|slide| slide * time * side as f32);
        let (sin, cos) = (-TAU * self.turn * time).sin_cos();
        let scale = self.zoom.powf(-time);
        move |x, y| {
            let [x, y] = [x - half - slide[0], y - half - slide[1]].map(|at| at * scale);
            [x * cos - y * sin + half, x * sin + y * cos + half]
        }
    }
}

/// A colour as pictures have them: rather grey than bright.
fn tone(draw: &mut Draw) -> Rgb {
    let [light, warm] = draw.normals();
    let [green, _] = draw.normals();
    let light = 125.0 + 55.0 * light;
    [
        light + 25.0 * warm - 12.0 * green,
        light + 15.0 * green,
        light - 25.0 * warm - 12.0 * green,
    ]
}

fn clouds(side: usize, draw: &mut Draw) -> Picture {
    let cells = [2, 4, 8, 16, 32, 64].map(|cells: usize| cells.min(side));
    let light = noise(side, &cells, draw);
    let hue = noise(side, &cells[..3], draw);
    let [middle, bright, tinted] = [tone(draw), tone(draw), tone(draw)];
    Picture::new(side, |x, y| {
        let at = y * side + x;
        let colour = mix(middle, bright, 0.6 * light[at]);
        mix(colour, tinted, (0.25 + 0.25 * hue[at]).clamp(0.0, 0.7))
    })
}

fn leaves(side: usize, draw: &mut Draw) -> Picture {
    let mut picture = Picture {
        side,
        pixels: vec![tone(draw); side * side],
    };
    let length = side as f32;
    let (smallest, largest) = (0.015 * length, 0.22 * length);
    // The farthest first, until most of the sheet was covered several times.
    for _ in 0..600 {
        // Inverse of the distribution of r⁻³ between the limits.
        let share = draw.unit();
        let inverse = smallest.powi(-2) * (1.0 - share) + largest.powi(-2) * share;
        let radius = inverse.powf(-0.5);
        let centre = [draw.within(0.0, length), draw.within(0.0, length)];
        let (sin, cos) = draw.within(0.0, TAU).sin_cos();
        let (colour, round, flat) = (tone(draw), draw.chance(0.6), draw.within(0.4, 1.0));
        let reach = (radius * 1.5).ceil() as i32;
        let [left, top] = centre.map(|at| at as i32 - reach);
        for row in top..=top + 2 * reach {
            for column in left..=left + 2 * reach {
                let (right, down) = (column as f32 - centre[0], row as f32 - centre[1]);
                let (x, y) = (right * cos + down * sin, down * cos - right * sin);
                let distance = match round {
                    true => x.hypot(y) - radius,
                    false => (x.abs() - radius).max(y.abs() - radius * flat),
                };
                let covered = coverage(distance);
                if covered > 0.0 {
                    let [row, column] = [row, column].map(|at| at.rem_euclid(side as i32) as usize);
                    let pixel = &mut picture.pixels[row * side + column];
                    *pixel = mix(*pixel, colour, covered);
                }
            }
        }
    }
    picture
}
