//! Conversion between RGB and YUV.

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
        let shift = self.bit_depth - 8;
        let sample = |plane: &[u8], i: usize| -> i32 {
            if shift == 0 {
                plane[i].into()
            } else {
                i32::from(u16::from_le_bytes([plane[2 * i], plane[2 * i + 1]]) >> shift)
            }
        };

        let (kr, kb) = colour.weights();
        let kg = 1.0 - kr - kb;
        let (offset, luma, chroma) = if colour.full_range {
            (0, 1.0, 1.0)
        } else {
            (16, 255.0 / 219.0, 255.0 / 224.0)
        };
        let fixed = |v: f64| (v * 8192.0).round() as i32;
        let product = |value: i32, factor: i32| (value * 8 * factor) >> 16;
        let y_scale = fixed(luma);
        let r_v = fixed(chroma * 2.0 * (1.0 - kr));
        let b_u = fixed(chroma * 2.0 * (1.0 - kb));
        let g_u = fixed(-chroma * 2.0 * (1.0 - kb) * kb / kg);
        let g_v = fixed(-chroma * 2.0 * (1.0 - kr) * kr / kg);

        let mut rgb = Vec::with_capacity(self.width * self.height * 3);
        for row in 0..self.height {
            let chroma_row = (row * self.chroma_height / self.height) * self.chroma_width;
            for column in 0..self.width {
                let c = chroma_row + (column / 2).min(self.chroma_width - 1);
                let y = product(sample(self.y, row * self.width + column) - offset, y_scale);
                let (u, v) = (sample(self.u, c) - 128, sample(self.v, c) - 128);
                let pixel = [
                    y + product(v, r_v),
                    y + product(u, g_u) + product(v, g_v),
                    y + product(u, b_u),
                ];
                rgb.extend(pixel.map(|value| value.clamp(0, 255) as u8));
            }
        }
        Frame::new(self.width, self.height, rgb).ok()
    }
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
