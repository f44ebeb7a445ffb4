//! Which pixels belong to an object: those whose hue is its colour's.

use crate::Frame;
use crate::world::scene::Colour;

/// Least share of a colour's chroma that a pixel has to be counted as that colour.
const FAINTEST: f32 = 0.3;
/// Fewest pixels of an object, summed over a clip, in areas of a frame.
const FEWEST: f32 = 0.04;

/// Differences of colour channels, in which grey is 0: red from green, and both from blue.
type Point = [f32; 2];

fn chroma([red, green, blue]: [f32; 3]) -> Point {
    [red - green, (red + green) / 2.0 - blue]
}

/// The chroma of each pixel, less that of the background.
pub(super) struct Chroma {
    width: usize,
    height: usize,
    frames: Vec<Vec<Point>>,
}

/// How much of an object each pixel shows, from 0 to 1, frame by frame.
pub(super) struct Masks {
    pub width: usize,
    pub height: usize,
    pub frames: Vec<Vec<f32>>,
}

/// The palette in the plane of chroma.
fn palette() -> [Point; Colour::ALL.len()] {
    Colour::ALL.map(|colour| chroma(colour.rgb().map(f32::from)))
}

fn dot(a: Point, b: Point) -> f32 {
    a[0] * b[0] + a[1] * b[1]
}

/// The colour whose hue is the nearest.
fn hue(point: Point, palette: &[Point]) -> usize {
    let along = |colour: &Point| dot(point, *colour) / dot(*colour, *colour).sqrt();
    let likeness = palette.iter().map(along).enumerate();
    let nearest = likeness.max_by(|a, b| a.1.total_cmp(&b.1));
    nearest.map_or(0, |(number, _)| number)
}

impl Chroma {
    pub fn of(frames: &[Frame]) -> Self {
        let point = |rgb: &[u8]| chroma([rgb[0], rgb[1], rgb[2]].map(f32::from));
        let points = frames
            .iter()
            .map(|frame| frame.rgb.chunks_exact(3).map(point).collect());
        let mut frames_of_points: Vec<Vec<Point>> = points.collect();
        // Most pixels are of the background.
        let background: Point = std::array::from_fn(|axis| {
            let values = frames_of_points.iter().flatten().map(|point| point[axis]);
            median(values.collect())
        });
        for point in frames_of_points.iter_mut().flatten() {
            *point = [point[0] - background[0], point[1] - background[1]];
        }
        let first = frames.first();
        Self {
            width: first.map_or(0, |frame| frame.width),
            height: first.map_or(0, |frame| frame.height),
            frames: frames_of_points,
        }
    }

    /// The colours of at most two objects, which are not near each other.
    pub fn colours(&self) -> Vec<Colour> {
        let palette = palette();
        let mut pixels = [0f32; Colour::ALL.len()];
        for &point in self.frames.iter().flatten() {
            let number = hue(point, &palette);
            let colour = palette[number];
            let share = dot(point, colour) / dot(colour, colour);
            if share >= FAINTEST {
                pixels[number] += share.min(1.0);
            }
        }
        let fewest = FEWEST * (self.width * self.height) as f32;
        let mut found: Vec<Colour> = Colour::ALL.to_vec();
        found.sort_by(|&a, &b| pixels[b as usize].total_cmp(&pixels[a as usize]));
        found.retain(|&colour| pixels[colour as usize] >= fewest);
        let mut apart: Vec<Colour> = Vec::new();
        for colour in found {
            if apart.iter().all(|other| !other.is_near(colour)) {
                apart.push(colour);
            }
        }
        apart.truncate(2);
        apart
    }

    /// Where an object of a colour is. Pixels of the colours near it count too.
    pub fn masks(&self, colour: Colour) -> Masks {
        let palette = palette();
        let own = palette[colour as usize];
        let share = |&point: &Point| match Colour::ALL[hue(point, &palette)].is_near(colour) {
            true => (dot(point, own) / dot(own, own)).clamp(0.0, 1.0),
            false => 0.0,
        };
        Masks {
            width: self.width,
            height: self.height,
            frames: self
                .frames
                .iter()
                .map(|frame| frame.iter().map(share).collect())
                .collect(),
        }
    }
}

/// The median, or 0 of nothing.
pub(super) fn median(mut values: Vec<f32>) -> f32 {
    match values.len() {
        0 => 0.0,
        count => *values.select_nth_unstable_by(count / 2, f32::total_cmp).1,
    }
}
