//! Hue, saturation and value, as OpenCV computes them of bytes.

/// Fractional bits of the quotients.
const BITS: u32 = 12;

/// Converts pixels.
#[derive(Debug)]
pub(super) struct Hsv {
    /// `255 / i`, for saturation.
    saturation: [i32; 256],
    /// `30 / i`, for hue, of which a whole turn is 180.
    hue: [i32; 256],
}

impl Hsv {
    pub fn new() -> Self {
        let quotients = |numerator: i32| {
            std::array::from_fn(|i| match i {
                0 => 0,
                _ => (f64::from(numerator << BITS) / i as f64).round_ties_even() as i32,
            })
        };
        Self {
            saturation: quotients(255),
            hue: quotients(30),
        }
    }

    /// Converts a pixel to hue (0 to 179), saturation and value.
    pub fn convert(&self, rgb: [u8; 3]) -> [u8; 3] {
        let [r, g, b] = rgb.map(i32::from);
        let value = r.max(g).max(b);
        let span = value - r.min(g).min(b);
        let turn = if value == r {
            g - b
        } else if value == g {
            b - r + 2 * span
        } else {
            r - g + 4 * span
        };
        let product = |a: i32, quotient: i32| (a * quotient + (1 << (BITS - 1))) >> BITS;
        let saturation = product(span, self.saturation[value as usize]);
        let hue = product(turn, self.hue[span as usize]);
        let hue = if hue < 0 { hue + 180 } else { hue };
        [hue as u8, saturation as u8, value as u8]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The sum over all colours, with weights by which a swap or a shift shows, is that of OpenCV 5.0.
    #[test]
    fn every_colour_is_that_of_opencv() {
        let hsv = Hsv::new();
        let mut sums = [0u64; 3];
        for colour in 0..1u32 << 24 {
            let [r, g, b, _] = colour.to_le_bytes();
            for (sum, value) in sums.iter_mut().zip(hsv.convert([r, g, b])) {
                *sum += u64::from(value) * u64::from(colour % 65_521 + 1);
            }
        }
        assert_eq!(
            sums,
            [42_293_584_769_519, 88_248_726_236_065, 110_790_811_768_233]
        );
    }
}
