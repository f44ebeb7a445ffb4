//! Frames and their orientation.

use crate::{Error, Result};

/// A frame: 8-bit RGB, row by row, `rgb.len() == width * height * 3`.
#[derive(Clone, PartialEq, Eq)]
pub struct Frame {
    /// Width in pixels, at least 1.
    pub width: usize,
    /// Height in pixels, at least 1.
    pub height: usize,
    /// Red, green and blue of every pixel, `[height, width, 3]`.
    pub rgb: Vec<u8>,
}

impl Frame {
    /// Creates a frame from its pixels, `[height, width, 3]`.
    ///
    /// # Errors
    /// [`Error::Argument`] when a side is 0 or the number of bytes is not `width * height * 3`.
    pub fn new(width: usize, height: usize, rgb: Vec<u8>) -> Result<Self> {
        let bytes = width.checked_mul(height).and_then(|n| n.checked_mul(3));
        if width == 0 || height == 0 || bytes != Some(rgb.len()) {
            return Err(Error::Argument(format!(
                "a frame of {width}x{height} cannot be made of {} bytes; give width x height x 3 bytes, none of them 0",
                rgb.len()
            )));
        }
        Ok(Self { width, height, rgb })
    }

    /// Creates a frame of one colour.
    ///
    /// # Errors
    /// [`Error::Argument`] when a side is 0 or over 65535.
    pub fn filled(width: usize, height: usize, colour: [u8; 3]) -> Result<Self> {
        if width.max(height) > 65535 {
            return Err(Error::Argument(format!(
                "a frame of {width}x{height} is too large; give sides of at most 65535"
            )));
        }
        Self::new(width, height, colour.repeat(width * height))
    }

    /// Returns red, green and blue at column `x` of row `y`.
    ///
    /// # Panics
    /// When the pixel is outside the frame.
    pub fn pixel(&self, x: usize, y: usize) -> [u8; 3] {
        let at = (y * self.width + x) * 3;
        [self.rgb[at], self.rgb[at + 1], self.rgb[at + 2]]
    }

    /// Returns the mean red, green and blue, each in 0..=255.
    pub fn mean_rgb(&self) -> [f64; 3] {
        let mut sum = [0u64; 3];
        for pixel in self.rgb.chunks_exact(3) {
            for (sum, &value) in sum.iter_mut().zip(pixel) {
                *sum += u64::from(value);
            }
        }
        sum.map(|sum| sum as f64 / (self.width * self.height) as f64)
    }

    /// Rotates the frame clockwise by a number of quarter turns.
    #[must_use]
    pub fn rotated(&self, quarter_turns: u8) -> Self {
        let (w, h) = (self.width, self.height);
        let turns = quarter_turns % 4;
        let (width, height) = if turns % 2 == 1 { (h, w) } else { (w, h) };
        let mut rgb = Vec::with_capacity(self.rgb.len());
        for y in 0..height {
            for x in 0..width {
                let (from_x, from_y) = match turns {
                    0 => (x, y),
                    1 => (y, h - 1 - x),
                    2 => (w - 1 - x, h - 1 - y),
                    _ => (w - 1 - y, x),
                };
                rgb.extend(self.pixel(from_x, from_y));
            }
        }
        Self { width, height, rgb }
    }
}

/// How a stored picture is made upright: mirrored left to right first, then rotated.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Orientation {
    pub mirrored: bool,
    /// Clockwise quarter turns, 0 to 3.
    pub quarter_turns: u8,
}

impl Orientation {
    /// Returns the orientation of a display matrix `[a, b, c, d]`, which maps the pixel `(x, y)` to
    /// `(a x + c y, b x + d y)`.
    ///
    /// Scaling is ignored. A matrix with a column of zeros does not rotate. Returns `None` for an angle
    /// more than one degree away from a quarter turn.
    pub fn of_matrix([a, b, c, d]: [i64; 4]) -> Option<Self> {
        if (a, c) == (0, 0) || (b, d) == (0, 0) {
            return Some(Self::default());
        }
        // The sign of a value, or 0 if it is very small compared to the other value of its column.
        let sign = |value: i64, other: i64| {
            if value.unsigned_abs() * 57 < other.unsigned_abs() {
                0
            } else {
                value.signum()
            }
        };
        let signs = (sign(a, b), sign(b, a), sign(c, d), sign(d, c));
        let (mirrored, quarter_turns) = match signs {
            (1, 0, 0, 1) => (false, 0),
            (0, 1, -1, 0) => (false, 1),
            (-1, 0, 0, -1) => (false, 2),
            (0, -1, 1, 0) => (false, 3),
            (-1, 0, 0, 1) => (true, 0),
            (0, -1, -1, 0) => (true, 1),
            (1, 0, 0, -1) => (true, 2),
            (0, 1, 1, 0) => (true, 3),
            _ => return None,
        };
        Some(Self {
            mirrored,
            quarter_turns,
        })
    }

    /// Returns the width and height of the upright picture.
    pub fn size(self, (width, height): (usize, usize)) -> (usize, usize) {
        if self.quarter_turns % 2 == 1 {
            (height, width)
        } else {
            (width, height)
        }
    }

    /// Makes a stored picture upright.
    pub fn apply(self, mut frame: Frame) -> Frame {
        if self.mirrored {
            let row = frame.width * 3;
            for line in frame.rgb.chunks_exact_mut(row) {
                line.as_chunks_mut::<3>().0.reverse();
            }
        }
        if self.quarter_turns == 0 {
            frame
        } else {
            frame.rotated(self.quarter_turns)
        }
    }
}

impl std::fmt::Debug for Frame {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Frame({}x{})", self.width, self.height)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_checked() {
        assert!(Frame::new(2, 2, vec![0; 12]).is_ok());
        assert!(Frame::new(2, 2, vec![0; 11]).is_err());
        assert!(Frame::new(0, 2, vec![]).is_err());
        assert!(Frame::filled(usize::MAX, 2, [0; 3]).is_err());
    }

    #[test]
    fn quarter_turns_are_clockwise() {
        // A B
        // C D
        // E F
        let frame = Frame::new(2, 3, (0..18).map(|i| i / 3).collect()).unwrap();
        let letters = |f: &Frame| f.rgb.iter().step_by(3).copied().collect::<Vec<_>>();
        assert_eq!(letters(&frame.rotated(1)), [4, 2, 0, 5, 3, 1]);
        assert_eq!(letters(&frame.rotated(2)), [5, 4, 3, 2, 1, 0]);
        assert_eq!(letters(&frame.rotated(3)), [1, 3, 5, 0, 2, 4]);
        assert_eq!(frame.rotated(1).rotated(3), frame);
        assert_eq!(frame.rotated(1).width, 3);
    }

    #[test]
    fn matrices_bring_pixels_where_they_say() {
        // A B
        // C D
        // E F
        let letters = |f: &Frame| f.rgb.iter().step_by(3).copied().collect::<Vec<_>>();
        let one = 0x1_0000;
        for (matrix, expected) in [
            ([one, 0, 0, one], [0, 1, 2, 3, 4, 5]),
            ([-one, 0, 0, one], [1, 0, 3, 2, 5, 4]),
            ([one, 0, 0, -one], [4, 5, 2, 3, 0, 1]),
            ([-one, 0, 0, -one], [5, 4, 3, 2, 1, 0]),
            ([0, one, one, 0], [0, 2, 4, 1, 3, 5]),
            ([0, one, -one, 0], [4, 2, 0, 5, 3, 1]),
            ([0, -one, one, 0], [1, 3, 5, 0, 2, 4]),
            ([0, -one, -one, 0], [5, 3, 1, 4, 2, 0]),
            ([2 * one, 10, -10, 2 * one], [0, 1, 2, 3, 4, 5]),
            ([0; 4], [0, 1, 2, 3, 4, 5]),
        ] {
            let frame = Frame::new(2, 3, (0..18).map(|i| i / 3).collect()).unwrap();
            let orientation = Orientation::of_matrix(matrix).unwrap();
            let size = orientation.size((2, 3));
            let upright = orientation.apply(frame);
            assert_eq!((upright.width, upright.height), size);
            assert_eq!(letters(&upright), expected, "{matrix:?}");
        }
        assert_eq!(Orientation::of_matrix([one, one, -one, one]), None);
        // Earlier versions of this crate wrote this matrix, off by two bytes.
        assert_eq!(
            Orientation::of_matrix([0, 0, 1, 0]),
            Some(Orientation::default())
        );
    }
}
