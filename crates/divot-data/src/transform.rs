//! Conversion between frames and the inputs of networks.

use std::borrow::Cow;
use std::ops::Range;

use pulp::{Arch, NullaryFnOnce};

use crate::{Error, Frame, Result};

/// Maximum number of pixels after resizing. It limits the memory that a very narrow image can take.
const MAX_PIXELS: usize = 1 << 27;

/// The released system's image transform: resize, centre crop, scale to [-1, 1].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Transform {
    /// Side of the square result in pixels.
    pub size: usize,
    /// Whether to keep the aspect ratio. If `true`, the shorter side becomes `size` and the centre is
    /// cropped. If `false`, both sides become `size`.
    pub keep_aspect: bool,
}

impl Default for Transform {
    /// 256 pixels, keeping the aspect ratio.
    fn default() -> Self {
        Self {
            size: 256,
            keep_aspect: true,
        }
    }
}

impl Transform {
    /// Resizes and crops a frame to `size` x `size`, without scaling its values.
    ///
    /// # Errors
    /// [`Error::Argument`] for a size of 0, or a frame so narrow that resizing it would need too many
    /// pixels.
    pub fn frame(&self, frame: &Frame) -> Result<Frame> {
        let size = self.size;
        if !self.keep_aspect {
            return resize(frame, size, size);
        }
        let (short, long) = (frame.width.min(frame.height), frame.width.max(frame.height));
        // torchvision's rule: integer arithmetic, rounded down.
        let long = size.saturating_mul(long) / short;
        let (width, height) = match frame.width <= frame.height {
            true => (size, long),
            false => (long, size),
        };
        check_resize(frame, width, height)?;
        let part = |side: usize| {
            let first = crop_offset(side, size);
            first..first + size
        };
        resize_part(frame, (width, height), part(width), part(height))
    }

    /// Applies the transform to a frame. Returns values in [-1, 1] of shape `[3, size, size]`.
    ///
    /// # Errors
    /// Those of [`Transform::frame`].
    pub fn apply(&self, frame: &Frame) -> Result<Vec<f32>> {
        Ok(frame_to_chw(&self.frame(frame)?))
    }

    /// Applies the transform to a clip. Returns values in [-1, 1] and their shape
    /// `[frames, 3, size, size]`.
    ///
    /// # Errors
    /// Those of [`Transform::frame`].
    pub fn clip(&self, frames: &[Frame]) -> Result<(Vec<f32>, [usize; 4])> {
        let mut values = Vec::new();
        for frame in frames {
            values.extend(self.apply(frame)?);
        }
        Ok((values, [frames.len(), 3, self.size, self.size]))
    }
}

/// Resizes a frame with an antialiased bilinear filter. The result equals Pillow's to the byte.
///
/// # Errors
/// [`Error::Argument`] when a side is 0, or when the result or the image between the two passes has more
/// than 2^27 pixels.
pub fn resize(frame: &Frame, width: usize, height: usize) -> Result<Frame> {
    check_resize(frame, width, height)?;
    resize_part(frame, (width, height), 0..width, 0..height)
}

fn check_resize(frame: &Frame, width: usize, height: usize) -> Result<()> {
    // The first pass keeps the source's height.
    let larger = width.saturating_mul(height.max(frame.height));
    if width == 0 || height == 0 || larger > MAX_PIXELS {
        return Err(Error::Argument(format!(
            "a frame of {}x{} cannot be resized to {width}x{height}; give sides of at least 1 and at most {MAX_PIXELS} pixels in all",
            frame.width, frame.height
        )));
    }
    Ok(())
}

/// Computes the `columns` and `rows` of a frame that is resized to `width` and `height`.
fn resize_part(
    frame: &Frame,
    (width, height): (usize, usize),
    columns: Range<usize>,
    rows: Range<usize>,
) -> Result<Frame> {
    // Pillow rounds to bytes between the two passes, so their order matters. The first pass computes only the
    // rows that the second one reads.
    let row = columns.len() * 3;
    let vertical =
        (height != frame.height).then(|| bilinear_taps(frame.height, height, rows.clone()));
    let read = match &vertical {
        None => rows.clone(),
        Some(taps) => match (taps.first(), taps.last()) {
            (Some(first), Some(last)) => first.first..last.first + last.weights.len(),
            _ => 0..0,
        },
    };
    let lines = frame.rgb.chunks_exact(frame.width * 3);
    let lines = lines.skip(read.start).take(read.len());
    let size = (columns.len(), rows.len());
    let rgb = match width == frame.width {
        true if columns.len() == frame.width => {
            Cow::Borrowed(&frame.rgb[read.start * row..][..read.len() * row])
        }
        true => Cow::Owned(
            lines
                .flat_map(|line| &line[columns.start * 3..][..row])
                .copied()
                .collect(),
        ),
        false => {
            let taps = &bilinear_taps(frame.width, width, columns);
            Cow::Owned(Arch::new().dispatch(ResizeRows { lines, taps }))
        }
    };
    let rgb = match vertical {
        None => rgb.into_owned(),
        Some(taps) => Arch::new().dispatch(ResizeColumns {
            rgb: &rgb,
            row,
            start: read.start,
            taps: &taps,
        }),
    };
    Frame::new(size.0, size.1, rgb)
}

/// The inputs of one output value: the index of the first one, and the weights from there on.
struct Taps {
    first: usize,
    weights: Vec<i32>,
}

/// Fractional bits of a weight. Values take 8 of the 32 bits, and sums need 2 more.
const PRECISION: u32 = 32 - 8 - 2;

/// One half, for rounding.
const HALF: i32 = 1 << (PRECISION - 1);

/// Computes the weights of the triangle filter in Pillow's fixed point, for a part of the outputs. The filter
/// is wider when the image becomes smaller.
fn bilinear_taps(from: usize, to: usize, part: Range<usize>) -> Vec<Taps> {
    let scale = from as f64 / to as f64;
    let support = scale.max(1.0);
    part.map(|i| {
        let centre = (i as f64 + 0.5) * scale;
        let first = (centre - support + 0.5).max(0.0) as usize;
        let end = ((centre + support + 0.5) as usize).min(from);
        let weights: Vec<f64> = (first..end)
            .map(|x| (1.0 - ((x as f64 - centre + 0.5) / support).abs()).max(0.0))
            .collect();
        let sum: f64 = weights.iter().sum();
        let fixed = |w: &f64| (w / sum * f64::from(1 << PRECISION) + 0.5) as i32;
        Taps {
            first,
            weights: weights.iter().map(fixed).collect(),
        }
    })
    .collect()
}

#[inline(always)]
fn level(sum: i32) -> u8 {
    (sum >> PRECISION).clamp(0, 255) as u8
}

/// Resizes lines of `[width, 3]` along the width. It is compiled for each kind of vectors.
struct ResizeRows<'a, L> {
    lines: L,
    taps: &'a [Taps],
}

impl<'a, L: ExactSizeIterator<Item = &'a [u8]>> NullaryFnOnce for ResizeRows<'a, L> {
    type Output = Vec<u8>;

    #[inline(always)]
    fn call(self) -> Vec<u8> {
        let mut out = Vec::with_capacity(self.lines.len() * self.taps.len() * 3);
        let mut pixels = Vec::new();
        for line in self.lines {
            // Four numbers a pixel are a vector.
            pixels.clear();
            pixels.extend(
                line.chunks_exact(3)
                    .map(|pixel| [pixel[0], pixel[1], pixel[2], 0].map(i32::from)),
            );
            for Taps { first, weights } in self.taps {
                let mut sums = [HALF; 4];
                for (pixel, weight) in pixels[*first..].iter().zip(weights) {
                    for (sum, value) in sums.iter_mut().zip(pixel) {
                        *sum += value * weight;
                    }
                }
                out.extend_from_slice(&sums.map(level)[..3]);
            }
        }
        out
    }
}

/// Resizes `[height, row]` along the height. It is compiled for each kind of vectors.
struct ResizeColumns<'a> {
    /// From line `start` of the source.
    rgb: &'a [u8],
    row: usize,
    start: usize,
    taps: &'a [Taps],
}

impl NullaryFnOnce for ResizeColumns<'_> {
    type Output = Vec<u8>;

    #[inline(always)]
    fn call(self) -> Vec<u8> {
        let mut out = Vec::with_capacity(self.row * self.taps.len());
        let mut sums = vec![0; self.row];
        for Taps { first, weights } in self.taps {
            sums.fill(HALF);
            let lines = self.rgb[(first - self.start) * self.row..].chunks_exact(self.row);
            for (line, weight) in lines.zip(weights) {
                for (sum, &value) in sums.iter_mut().zip(line) {
                    *sum += i32::from(value) * weight;
                }
            }
            out.extend(sums.iter().map(|&sum| level(sum)));
        }
        out
    }
}

/// Returns the start of torchvision's centre crop: half the overhang. Halves are rounded to even, as in
/// Python.
fn crop_offset(side: usize, size: usize) -> usize {
    let overhang = side - size;
    let half = overhang / 2;
    half + (overhang % 2) * (half % 2)
}

/// Converts a frame to values of shape `[3, height, width]`, scaled to [-1, 1] by
/// `(x / 255 - 0.5) / 0.5`.
pub fn frame_to_chw(frame: &Frame) -> Vec<f32> {
    let mut values = Vec::with_capacity(frame.rgb.len());
    for channel in 0..3 {
        values.extend(
            frame
                .rgb
                .iter()
                .skip(channel)
                .step_by(3)
                .map(|&v| (f32::from(v) / 255.0 - 0.5) / 0.5),
        );
    }
    values
}

/// Converts a clip without resizing it. Returns values in [-1, 1] and their shape
/// `[frames, 3, height, width]`.
///
/// # Errors
/// [`Error::Argument`] for no frames, or frames of different sizes.
pub fn clip_to_chw(frames: &[Frame]) -> Result<(Vec<f32>, [usize; 4])> {
    let (width, height) = crate::write::common_size(frames)?;
    let values = frames.iter().flat_map(frame_to_chw).collect();
    Ok((values, [frames.len(), 3, height, width]))
}

/// Converts values of shape `[3, height, width]` to a frame.
///
/// Values are clamped to [-1, 1], mapped to 0..=255 and truncated, as in the released system. NaN
/// becomes 0.
///
/// # Errors
/// [`Error::Argument`] when the number of values is not `3 * height * width` or a side is 0.
pub fn chw_to_frame(values: &[f32], width: usize, height: usize) -> Result<Frame> {
    let plane = width.saturating_mul(height);
    if plane == 0 || plane.checked_mul(3) != Some(values.len()) {
        return Err(Error::Argument(format!(
            "a frame of {width}x{height} cannot be made of {} values; give 3 x height x width of them",
            values.len()
        )));
    }
    let byte = |v: f32| ((v.clamp(-1.0, 1.0) + 1.0) / 2.0 * 255.0) as u8;
    let rgb = (0..plane)
        .flat_map(|i| [0, 1, 2].map(|channel| byte(values[channel * plane + i])))
        .collect();
    Frame::new(width, height, rgb)
}

/// Converts values of shape `[frames, 3, height, width]` to a clip, like [`chw_to_frame`].
///
/// # Errors
/// [`Error::Argument`] when the shape does not match the number of values, or has no three channels.
pub fn chw_to_clip(values: &[f32], shape: [usize; 4]) -> Result<Vec<Frame>> {
    let [frames, channels, height, width] = shape;
    let total = shape
        .iter()
        .try_fold(1usize, |n, &side| n.checked_mul(side));
    if channels != 3 || total != Some(values.len()) || values.is_empty() {
        return Err(Error::Argument(format!(
            "{} values are no clip of shape {shape:?}; give [frames, 3, height, width]",
            values.len()
        )));
    }
    values
        .chunks_exact(values.len() / frames)
        .map(|frame| chw_to_frame(frame, width, height))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn crops_round_half_to_even() {
        // Python: round(0.5) = 0, round(1.5) = 2, round(2.5) = 2, round(3.5) = 4.
        let offsets: Vec<_> = (0..8)
            .map(|overhang| crop_offset(10 + overhang, 10))
            .collect();
        assert_eq!(offsets, [0, 0, 1, 2, 2, 2, 3, 4]);
    }

    #[test]
    fn bytes_survive_the_way_there() {
        let frame = Frame::new(16, 16, (0..768).map(|i| (i / 3) as u8).collect()).unwrap();
        let back = chw_to_frame(&frame_to_chw(&frame), 16, 16).unwrap();
        // Truncation may lose one level to rounding, never more.
        assert!(frame.rgb.iter().zip(&back.rgb).all(|(a, b)| a - b <= 1));
    }

    #[test]
    fn values_are_clamped_and_truncated() {
        let frame = chw_to_frame(&[-3.0, 0.0, f32::NAN], 1, 1).unwrap();
        assert_eq!(frame.rgb, [0, 127, 0]);
        assert!(chw_to_frame(&[0.0; 4], 1, 1).is_err());
        assert!(chw_to_clip(&[0.0; 12], [2, 3, 1, 2]).is_ok());
        assert!(chw_to_clip(&[0.0; 12], [0, 3, 1, 2]).is_err());
    }

    /// The frame that the expected values below were computed from, by Pillow 13.
    fn pattern(width: usize, height: usize) -> Frame {
        let value = |y, x, c| ((x * 7 + y * 13 + c * 29 + x * y) % 256) as u8;
        let rgb = (0..height * width * 3)
            .map(|i| value(i / 3 / width, i / 3 % width, i % 3))
            .collect();
        Frame::new(width, height, rgb).unwrap()
    }

    #[test]
    fn resizing_is_pillows() {
        let smaller = resize(&pattern(32, 24), 5, 7).unwrap();
        assert_eq!(
            smaller.rgb,
            [
                48, 77, 106, 98, 127, 155, 151, 168, 174, 164, 154, 134, 138, 108, 94, 99, 128,
                156, 159, 172, 170, 140, 114, 98, 99, 102, 118, 126, 141, 146, 153, 170, 176, 145,
                116, 99, 98, 113, 137, 149, 147, 146, 129, 111, 105, 170, 144, 128, 101, 101, 120,
                150, 149, 143, 114, 106, 119, 130, 141, 152, 128, 105, 93, 132, 141, 142, 125, 115,
                109, 137, 141, 140, 118, 115, 124, 100, 103, 120, 148, 132, 117, 128, 127, 136,
                127, 121, 121, 134, 136, 138, 114, 131, 143, 124, 122, 120, 132, 127, 122, 128,
                132, 135, 118, 120, 123
            ]
        );
        let larger = resize(&pattern(4, 6), 6, 9).unwrap();
        assert_eq!(
            larger.rgb[..36],
            [
                0, 29, 58, 4, 33, 62, 8, 37, 66, 13, 42, 71, 18, 47, 76, 21, 50, 79, 7, 36, 65, 11,
                40, 69, 15, 44, 73, 21, 50, 79, 26, 55, 84, 29, 58, 87
            ]
        );
        assert_eq!(resize(&pattern(4, 6), 4, 6).unwrap(), pattern(4, 6));
    }

    #[test]
    fn a_cut_is_the_centre_of_the_whole() {
        for (width, height, size) in [
            (32, 24, 7),
            (24, 32, 7),
            (33, 8, 8),
            (9, 16, 9),
            (5, 4, 12),
            (6, 6, 6),
        ] {
            let frame = pattern(width, height);
            let short = width.min(height);
            let whole = resize(&frame, size * width / short, size * height / short).unwrap();
            let cut = Transform {
                size,
                keep_aspect: true,
            }
            .frame(&frame)
            .unwrap();
            let (left, top) = (
                crop_offset(whole.width, size),
                crop_offset(whole.height, size),
            );
            for (x, y) in (0..size * size).map(|i| (i % size, i / size)) {
                assert_eq!(
                    cut.pixel(x, y),
                    whole.pixel(left + x, top + y),
                    "{width}x{height}"
                );
            }
        }
    }

    #[test]
    fn shapes_follow_the_settings() {
        let wide = Frame::filled(40, 20, [9, 8, 7]).unwrap();
        let square = Transform {
            size: 16,
            keep_aspect: true,
        };
        let (values, shape) = square.clip(&[wide.clone(), wide.clone()]).unwrap();
        assert_eq!(shape, [2, 3, 16, 16]);
        assert_eq!(values.len(), 2 * 3 * 16 * 16);
        assert!(
            Transform {
                size: 0,
                keep_aspect: false
            }
            .frame(&wide)
            .is_err()
        );
        let sliver = Frame::filled(60_000, 1, [0; 3]).unwrap();
        assert!(
            Transform {
                size: 4096,
                keep_aspect: true
            }
            .frame(&sliver)
            .is_err()
        );
    }
}
