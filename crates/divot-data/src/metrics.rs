//! Metrics of the similarity of two frames.

use crate::{Error, Frame, Result};

/// Computes the peak signal-to-noise ratio in decibels, over all three channels.
///
/// The ratio of equal frames is infinite.
///
/// # Errors
/// [`Error::Argument`] when the sizes differ.
pub fn psnr(a: &Frame, b: &Frame) -> Result<f64> {
    same_size(a, b)?;
    let squares: u64 = a
        .rgb
        .iter()
        .zip(&b.rgb)
        .map(|(&a, &b)| u64::from(a.abs_diff(b)).pow(2))
        .sum();
    let mse = squares as f64 / a.rgb.len() as f64;
    Ok(10.0 * (255.0 * 255.0 / mse).log10())
}

/// Averages a metric over the frames of two clips, pair by pair.
///
/// # Errors
/// [`Error::Argument`] when the clips are empty or differ in length. Those of `metric`.
pub fn mean(
    a: &[Frame],
    b: &[Frame],
    metric: impl Fn(&Frame, &Frame) -> Result<f64>,
) -> Result<f64> {
    if a.len() != b.len() || a.is_empty() {
        return Err(Error::Argument(format!(
            "clips of {} and {} frames cannot be compared; give two of the same length",
            a.len(),
            b.len()
        )));
    }
    let values = a.iter().zip(b).map(|(a, b)| metric(a, b));
    Ok(values.sum::<Result<f64>>()? / a.len() as f64)
}

/// Taps of the Gaussian window on each side of its centre. The window has 11 taps.
const RADIUS: usize = 5;
const SIGMA: f64 = 1.5;

/// Computes the structural similarity (Wang et al. 2004), which is at most 1.
///
/// The window is Gaussian, 11x11 with sigma 1.5. K1 is 0.01 and K2 is 0.03. The result is the mean over
/// the three channels and over all positions where the whole window fits.
///
/// The values equal those of scikit-image's `structural_similarity(a, b, gaussian_weights=True, sigma=1.5,
/// use_sample_covariance=False, data_range=255, channel_axis=2)`.
///
/// # Errors
/// [`Error::Argument`] when the sizes differ or a side is under 11 pixels.
pub fn ssim(a: &Frame, b: &Frame) -> Result<f64> {
    same_size(a, b)?;
    let window = 2 * RADIUS + 1;
    if a.width < window || a.height < window {
        return Err(Error::Argument(format!(
            "SSIM needs frames of at least {window}x{window}, not {}x{}; use larger ones or PSNR",
            a.width, a.height
        )));
    }
    let (w, h) = (a.width, a.height);
    let (c1, c2) = ((0.01f64 * 255.0).powi(2), (0.03f64 * 255.0).powi(2));
    let mut total = 0.0;
    for channel in 0..3 {
        let plane = |f: &Frame| -> Vec<f64> {
            f.rgb
                .iter()
                .skip(channel)
                .step_by(3)
                .map(|&v| f64::from(v))
                .collect()
        };
        let (x, y) = (plane(a), plane(b));
        let product =
            |a: &[f64], b: &[f64]| -> Vec<f64> { a.iter().zip(b).map(|(a, b)| a * b).collect() };
        let xx = blur(&product(&x, &x), w, h);
        let yy = blur(&product(&y, &y), w, h);
        let xy = blur(&product(&x, &y), w, h);
        let (x, y) = (blur(&x, w, h), blur(&y, w, h));
        let sum: f64 = (0..x.len())
            .map(|i| {
                let (mx, my) = (x[i], y[i]);
                let (vx, vy, cov) = (xx[i] - mx * mx, yy[i] - my * my, xy[i] - mx * my);
                ((2.0 * mx * my + c1) * (2.0 * cov + c2))
                    / ((mx * mx + my * my + c1) * (vx + vy + c2))
            })
            .sum();
        total += sum / x.len() as f64;
    }
    Ok(total / 3.0)
}

/// Applies the Gaussian window at every position where it fits: `[h - 10, w - 10]`.
fn blur(plane: &[f64], w: usize, h: usize) -> Vec<f64> {
    let mut kernel: Vec<f64> = (0..=2 * RADIUS)
        .map(|i| (-0.5 * ((i as f64 - RADIUS as f64) / SIGMA).powi(2)).exp())
        .collect();
    let norm: f64 = kernel.iter().sum();
    kernel.iter_mut().for_each(|k| *k /= norm);

    let out_w = w - 2 * RADIUS;
    let rows: Vec<f64> = plane
        .chunks_exact(w)
        .flat_map(|row| row.windows(kernel.len()))
        .map(|window| window.iter().zip(&kernel).map(|(v, k)| v * k).sum())
        .collect();
    let mut out = vec![0.0; out_w * (h - 2 * RADIUS)];
    for (y, out) in out.chunks_exact_mut(out_w).enumerate() {
        for (k, row) in kernel.iter().zip(rows[y * out_w..].chunks_exact(out_w)) {
            out.iter_mut().zip(row).for_each(|(o, v)| *o += k * v);
        }
    }
    out
}

fn same_size(a: &Frame, b: &Frame) -> Result<()> {
    if (a.width, a.height) == (b.width, b.height) {
        return Ok(());
    }
    Err(Error::Argument(format!(
        "frames of {}x{} and {}x{} cannot be compared; resize one of them",
        a.width, a.height, b.width, b.height
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(value: impl Fn(usize, usize, usize) -> usize) -> Frame {
        let (w, h) = (32, 24);
        let rgb = (0..h * w * 3)
            .map(|i| value(i / 3 % w, i / 3 / w, i % 3) as u8)
            .collect();
        Frame::new(w, h, rgb).unwrap()
    }

    /// scikit-image 0.26 gave the expected values.
    #[test]
    fn values_are_those_of_scikit_image() {
        let pattern = |x: usize, y: usize, c: usize| x * 7 + y * 13 + c * 29 + x * y;
        let a = frame(|x, y, c| pattern(x, y, c) % 256);
        let noisy = frame(|x, y, c| (pattern(x, y, c) + (x * 3 + y * 5) % 17) % 256);
        let faint = frame(|x, y, c| pattern(x, y, c) % 256 / 2 + 40);
        for (b, expected_ssim, expected_psnr) in [
            (&noisy, 0.789_216_048_384_830_8, 14.853_379_512_995_563),
            (&faint, 0.784_501_023_099_984_2, 15.263_277_008_105_442),
        ] {
            assert!((ssim(&a, b).unwrap() - expected_ssim).abs() < 1e-9);
            assert!((psnr(&a, b).unwrap() - expected_psnr).abs() < 1e-9);
        }
        assert!((ssim(&a, &a).unwrap() - 1.0).abs() < 1e-12);
        assert_eq!(psnr(&a, &a).unwrap(), f64::INFINITY);
    }

    #[test]
    fn frames_that_do_not_compare() {
        let small = Frame::filled(10, 20, [0; 3]).unwrap();
        let other = Frame::filled(20, 10, [0; 3]).unwrap();
        assert!(psnr(&small, &other).is_err());
        assert!(ssim(&small, &small).is_err());
    }
}
