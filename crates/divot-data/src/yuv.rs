//! Conversion between RGB and YUV.

use pulp::{Arch, NullaryFnOnce};

use crate::Frame;

/// The colour encoding of a video.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Colour {
    /// Number of the matrix coefficients in ITU-T H.273.
    pub matrix: u16,
    /// Whether luma is in 0..=255 instead of 16..=235.
    pub full_range: bool,
}

impl Colour {
    /// BT.601 in the narrow range: the default for videos without a label.
    ///
    /// FFmpeg's scaler, and so the reference system, assumes it for them at any size.
    pub const BT601: Self = Self {
        matrix: 6,
        full_range: false,
    };

    /// Returns the weights of red and blue in luma.
    fn weights(self) -> (f64, f64) {
        match self.matrix {
            1 => (0.2126, 0.0722),
            4 => (0.30, 0.11),
            7 => (0.212, 0.087),
            9 | 10 => (0.2627, 0.0593),
            _ => (0.299, 0.114),
        }
    }
}

/// The planes of one decoded picture.
pub(crate) struct Planes<'a> {
    pub width: usize,
    pub height: usize,
    pub y: &'a [u8],
    pub u: &'a [u8],
    pub v: &'a [u8],
    pub chroma_width: usize,
    pub chroma_height: usize,
    /// Bits per sample. With more than 8, a sample is two bytes, little-endian.
    pub bit_depth: u8,
}

impl Planes<'_> {
    /// Converts to RGB. Returns `None` when the planes are too short for their size.
    ///
    /// Chroma is repeated, not interpolated, and every product is truncated on its own. This is what
    /// FFmpeg's converter does, which the reference system uses. For 4:2:0 in 8 bits the result is equal
    /// to the byte.
    pub fn to_rgb(&self, colour: Colour) -> Option<Frame> {
        let bytes = if self.bit_depth > 8 { 2 } else { 1 };
        let fits =
            |plane: &[u8], w: usize, h: usize| w > 0 && h > 0 && plane.len() >= w * h * bytes;
        if !fits(self.y, self.width, self.height)
            || !fits(self.u, self.chroma_width, self.chroma_height)
            || !fits(self.v, self.chroma_width, self.chroma_height)
        {
            return None;
        }
        let rgb = Arch::new().dispatch(ToRgb(self, colour));
        Frame::new(self.width, self.height, rgb).ok()
    }

    /// Converts rows of 16-bit numbers, in the vectors of the caller.
    #[inline(always)]
    fn rows_to_rgb(&self, colour: Colour) -> Vec<u8> {
        let (kr, kb) = colour.weights();
        let kg = 1.0 - kr - kb;
        let (offset, luma, chroma) = if colour.full_range {
            (0, 1.0, 1.0)
        } else {
            (16, 255.0 / 219.0, 255.0 / 224.0)
        };
        let fixed = |v: f64| (v * 8192.0).round() as i16;
        let y_scale = fixed(luma);
        let r_v = fixed(chroma * 2.0 * (1.0 - kr));
        let b_u = fixed(chroma * 2.0 * (1.0 - kb));
        let g_u = fixed(-chroma * 2.0 * (1.0 - kb) * kb / kg);
        let g_v = fixed(-chroma * 2.0 * (1.0 - kr) * kr / kg);

        let [mut bytes, mut v_bytes] = [(); 2].map(|()| Vec::new());
        let mut luma = vec![0i16; self.width];
        let mut half = vec![0i16; self.chroma_width];
        let mut chroma = [(); 3].map(|()| vec![0i16; self.width]);
        let mut levels = [(); 3].map(|()| vec![0u8; self.width]);
        let mut rgb = vec![0; self.width * self.height * 3];
        let mut known = None;
        for (row, line) in rgb.chunks_exact_mut(self.width * 3).enumerate() {
            let chroma_row = row * self.chroma_height / self.height;
            if known != Some(chroma_row) {
                known = Some(chroma_row);
                let u = self.row(self.u, chroma_row, self.chroma_width, &mut bytes);
                let v = self.row(self.v, chroma_row, self.chroma_width, &mut v_bytes);
                for (half, &v) in half.iter_mut().zip(v) {
                    *half = product(i16::from(v) - 128, r_v);
                }
                double(&half, &mut chroma[0]);
                for ((half, &u), &v) in half.iter_mut().zip(u).zip(v) {
                    *half = product(i16::from(u) - 128, g_u) + product(i16::from(v) - 128, g_v);
                }
                double(&half, &mut chroma[1]);
                for (half, &u) in half.iter_mut().zip(u) {
                    *half = product(i16::from(u) - 128, b_u);
                }
                double(&half, &mut chroma[2]);
            }
            let y = self.row(self.y, row, self.width, &mut bytes);
            for (luma, &y) in luma.iter_mut().zip(y) {
                *luma = product(i16::from(y) - offset, y_scale);
            }
            for (levels, chroma) in levels.iter_mut().zip(&chroma) {
                for ((level, chroma), luma) in levels.iter_mut().zip(chroma).zip(&luma) {
                    *level = (luma + chroma).clamp(0, 255) as u8;
                }
            }
            let [r, g, b] = &levels;
            for (pixel, ((&r, &g), &b)) in line.chunks_exact_mut(3).zip(r.iter().zip(g).zip(b)) {
                pixel.copy_from_slice(&[r, g, b]);
            }
        }
        rgb
    }

    /// Returns a row of a plane in 8 bits. `buffer` holds it if it is not stored so.
    fn row<'a>(
        &'a self,
        plane: &'a [u8],
        row: usize,
        width: usize,
        buffer: &'a mut Vec<u8>,
    ) -> &'a [u8] {
        if self.bit_depth == 8 {
            return &plane[row * width..][..width];
        }
        let shift = self.bit_depth - 8;
        let samples = plane[row * width * 2..][..width * 2].chunks_exact(2);
        buffer.clear();
        buffer.extend(
            samples.map(|sample| (u16::from_le_bytes([sample[0], sample[1]]) >> shift) as u8),
        );
        buffer
    }
}

/// Compiled for each kind of vectors.
struct ToRgb<'a>(&'a Planes<'a>, Colour);

impl NullaryFnOnce for ToRgb<'_> {
    type Output = Vec<u8>;

    #[inline(always)]
    fn call(self) -> Vec<u8> {
        self.0.rows_to_rgb(self.1)
    }
}

/// Multiplies with a number of 13 fractional bits, and truncates.
#[inline(always)]
fn product(value: i16, factor: i16) -> i16 {
    ((i32::from(value * 8) * i32::from(factor)) >> 16) as i16
}

/// Repeats each value twice, and the last one for the rest.
#[inline(always)]
fn double(values: &[i16], doubled: &mut [i16]) {
    let Some(&last) = values.last() else {
        return;
    };
    let (pairs, rest) = doubled.split_at_mut(doubled.len().min(2 * values.len()) / 2 * 2);
    for (pair, &value) in pairs.chunks_exact_mut(2).zip(values) {
        pair.copy_from_slice(&[value; 2]);
    }
    rest.fill(last);
}

/// Converts a frame to BT.601 luma and 4:2:0 chroma. Returns the width, the height and the planes.
///
/// The sides become even. An odd last row or column is left out. A single row or column is doubled.
pub(crate) fn from_rgb(frame: &Frame) -> (usize, usize, [Vec<u8>; 3]) {
    let even = |side: usize| (side & !1).max(2);
    let (width, height) = (even(frame.width), even(frame.height));
    let pixel = |x: usize, y: usize| frame.pixel(x.min(frame.width - 1), y.min(frame.height - 1));

    let mut y_plane = Vec::with_capacity(width * height);
    for y in 0..height {
        for x in 0..width {
            let [r, g, b] = pixel(x, y).map(f32::from);
            let luma = 16.0 + (65.481 * r + 128.553 * g + 24.966 * b) / 255.0;
            y_plane.push(luma.round() as u8);
        }
    }
    let mut u_plane = Vec::with_capacity(width * height / 4);
    let mut v_plane = Vec::with_capacity(width * height / 4);
    for y in (0..height).step_by(2) {
        for x in (0..width).step_by(2) {
            let mut sum = [0.0f32; 3];
            for (dx, dy) in [(0, 0), (1, 0), (0, 1), (1, 1)] {
                for (sum, value) in sum.iter_mut().zip(pixel(x + dx, y + dy)) {
                    *sum += f32::from(value) / 4.0;
                }
            }
            let [r, g, b] = sum;
            let u = 128.0 + (-37.797 * r - 74.203 * g + 112.0 * b) / 255.0;
            let v = 128.0 + (112.0 * r - 93.786 * g - 18.214 * b) / 255.0;
            u_plane.push(u.round() as u8);
            v_plane.push(v.round() as u8);
        }
    }
    (width, height, [y_plane, u_plane, v_plane])
}

#[cfg(test)]
mod tests {
    use super::*;

    /// FFmpeg's formula for BT.601 in the narrow range, one pixel at a time.
    fn pixel(y: u8, u: u8, v: u8) -> [u8; 3] {
        let product = |value: i32, factor: i32| (value * 8 * factor) >> 16;
        let [y, u, v] = [i32::from(y) - 16, i32::from(u) - 128, i32::from(v) - 128];
        let y = product(y, 9539);
        let green = product(u, -3209) + product(v, -6660);
        [y + product(v, 13075), y + green, y + product(u, 16525)]
            .map(|value| value.clamp(0, 255) as u8)
    }

    #[test]
    fn every_pixel_is_converted_by_itself() {
        for (width, height, chroma_height, bit_depth) in [
            (256, 256, 128, 8),
            (7, 5, 2, 8),
            (7, 5, 5, 8),
            (1, 1, 1, 8),
            (6, 4, 2, 10),
            (7, 3, 3, 10),
        ] {
            let chroma_width = (width / 2_usize).max(1);
            let plane = |count: usize, step: usize| -> Vec<u8> {
                (0..count)
                    .map(|i| (i * step + i / 256 * 31) as u8)
                    .collect()
            };
            let y = plane(width * height, 1);
            let [u, v] = [7, 11].map(|step| plane(chroma_width * chroma_height, step));
            // The low bits of the deeper samples make no difference.
            let stored = |plane: &[u8]| match bit_depth {
                8 => plane.to_vec(),
                _ => plane
                    .iter()
                    .flat_map(|&value| (u16::from(value) << 2 | 3).to_le_bytes())
                    .collect(),
            };
            let planes = Planes {
                width,
                height,
                y: &stored(&y),
                u: &stored(&u),
                v: &stored(&v),
                chroma_width,
                chroma_height,
                bit_depth,
            };
            let frame = planes.to_rgb(Colour::BT601).unwrap();
            for row in 0..height {
                for column in 0..width {
                    let chroma = row * chroma_height / height * chroma_width
                        + (column / 2).min(chroma_width - 1);
                    let expected = pixel(y[row * width + column], u[chroma], v[chroma]);
                    assert_eq!(
                        frame.pixel(column, row),
                        expected,
                        "{width}x{height}: {column}, {row}"
                    );
                }
            }
        }
    }
}
