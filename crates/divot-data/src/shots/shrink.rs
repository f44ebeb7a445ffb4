//! Resizing to fewer pixels, as OpenCV's `INTER_LINEAR` does of bytes.

use crate::Frame;

/// Longer side in pixels of the frames that are compared.
const LONGER_SIDE: usize = 256;

/// Fractional bits of a weight.
const BITS: i32 = 11;

/// Two neighbouring samples of a row or a column, and their weights.
#[derive(Debug)]
pub(super) struct Pair {
    places: [usize; 2],
    weights: [i32; 2],
}

/// How frames of one size are resized.
#[derive(Debug)]
pub(super) enum Shrink {
    /// Not at all.
    Keep,
    /// To the mean of squares of 2x2 pixels.
    Halve,
    /// By interpolation.
    Interpolate { columns: Vec<Pair>, rows: Vec<Pair> },
}

impl Shrink {
    /// Prepares for frames of a size in pixels.
    pub fn new(width: usize, height: usize) -> Self {
        let longer = width.max(height);
        if longer <= LONGER_SIDE {
            return Self::Keep;
        }
        let factor = longer as f64 / LONGER_SIDE as f64;
        let target = |side: usize| ((side as f64 / factor).round_ties_even() as usize).max(1);
        let (columns, rows) = (target(width), target(height));
        if (width, height) == (2 * columns, 2 * rows) {
            return Self::Halve;
        }
        Self::Interpolate {
            columns: pairs(width, columns),
            rows: pairs(height, rows),
        }
    }

    /// Calls `each` with every pixel of the resized frame, row by row.
    pub fn pixels(&self, frame: &Frame, mut each: impl FnMut([u8; 3])) {
        let stride = frame.width * 3;
        match self {
            Self::Keep => frame
                .rgb
                .chunks_exact(3)
                .for_each(|p| each([p[0], p[1], p[2]])),
            Self::Halve => {
                for rows in frame.rgb.chunks_exact(2 * stride) {
                    let (upper, lower) = rows.split_at(stride);
                    for (a, b) in upper.chunks_exact(6).zip(lower.chunks_exact(6)) {
                        each(std::array::from_fn(|c| {
                            let sum: u32 =
                                [a[c], a[c + 3], b[c], b[c + 3]].map(u32::from).iter().sum();
                            ((sum + 2) / 4) as u8
                        }));
                    }
                }
            }
            Self::Interpolate { columns, rows } => {
                let across = |row: usize| {
                    let row = &frame.rgb[row * stride..][..stride];
                    columns.iter().map(move |pair| -> [i32; 3] {
                        std::array::from_fn(|c| {
                            let [a, b] = pair.places.map(|place| i32::from(row[place * 3 + c]));
                            a * pair.weights[0] + b * pair.weights[1]
                        })
                    })
                };
                for pair in rows {
                    let [upper, lower] = pair.places.map(across);
                    for (a, b) in upper.zip(lower) {
                        // Both products are truncated on their own.
                        let product = |value: i32, weight: i32| ((value >> 4) * weight) >> 16;
                        each(std::array::from_fn(|c| {
                            let [a, b] = [(a[c], 0), (b[c], 1)]
                                .map(|(value, i)| product(value, pair.weights[i]));
                            ((a + b + 2) >> 2) as u8
                        }));
                    }
                }
            }
        }
    }
}

/// Returns the neighbours of each of `count` samples among `from`, which are at least as many.
fn pairs(from: usize, count: usize) -> Vec<Pair> {
    let scale = 1.0 / (count as f64 / from as f64);
    (0..count)
        .map(|i| {
            let place = ((i as f64 + 0.5) * scale - 0.5) as f32;
            let fraction = place - place.floor();
            let first = place.floor() as i64;
            let weight = |part: f32| (part * (1 << BITS) as f32).round_ties_even() as i32;
            Pair {
                places: [first, first + 1].map(|at| at.clamp(0, from as i64 - 1) as usize),
                weights: [weight(1.0 - fraction), weight(fraction)],
            }
        })
        .collect()
}
