//! Sums over clips of how what was made agrees with the truth.

use anyhow::Result;
use divot_data::world::{Oracle, Scene, Size, Verdict};
use divot_data::{Frame, metrics};

use super::table::Cell;

/// How one clip compares with the truth.
#[derive(Debug, Clone)]
pub struct Measured {
    /// Peak signal-to-noise ratio in decibels, as the mean of the frames.
    pub psnr: f64,
    /// Structural similarity. `None` for frames that are too small for it.
    pub ssim: Option<f64>,
    /// What the oracle sees of the truth.
    pub verdict: Verdict,
    /// The true size of each object.
    pub sizes: Vec<Size>,
}

impl Measured {
    /// Compares a clip with the one that it should be, and with what is in that.
    ///
    /// # Errors
    /// If they differ in size.
    pub fn of(oracle: &Oracle, scene: &Scene, real: &[Frame], made: &[Frame]) -> Result<Self> {
        Ok(Self {
            psnr: metrics::mean(real, made, metrics::psnr)?,
            ssim: metrics::mean(real, made, metrics::ssim).ok(),
            verdict: oracle.read(made).verdict(scene),
            sizes: scene.objects.iter().map(|object| object.size).collect(),
        })
    }

    /// What orders clips from the worst: first by what the oracle sees, then by decibels.
    pub fn quality(&self) -> f64 {
        quality(&self.verdict) + (self.psnr / 1e4).min(0.01)
    }
}

/// Share of the truth that is seen: the count, and shape, colour, size and motion of each object.
pub fn quality(verdict: &Verdict) -> f64 {
    let mut seen = vec![verdict.count];
    for it in &verdict.objects {
        seen.extend([it.shape, it.colour, it.size, it.motion]);
    }
    let right = seen.iter().filter(|seen| **seen).count();
    right as f64 / seen.len() as f64
}

/// A mean that grows.
#[derive(Debug, Clone, Copy, Default)]
pub struct Mean {
    sum: f64,
    count: f64,
}

impl Mean {
    /// Adds a value.
    pub fn add(&mut self, value: f64) {
        self.sum += value;
        self.count += 1.0;
    }

    /// Adds whether something is so.
    pub fn note(&mut self, is_so: bool) {
        self.add(f64::from(u8::from(is_so)));
    }

    /// The mean, which is not a number if there are no values.
    pub fn value(self) -> f64 {
        self.sum / self.count
    }

    /// The mean in percent.
    pub fn percent(self) -> f64 {
        100.0 * self.value()
    }
}

/// Sums over clips.
#[derive(Debug, Clone, Default)]
pub struct Tally {
    /// Decibels.
    pub psnr: Mean,
    /// Structural similarity.
    pub ssim: Mean,
    /// Of clips: as many objects are seen as there are.
    pub count: Mean,
    /// Of objects: the colour is the true one.
    pub colour: Mean,
    /// Of objects: the shape.
    pub shape: Mean,
    /// Of the objects of each size: the shape.
    pub shape_by_size: [Mean; Size::ALL.len()],
    /// Of objects: the size.
    pub size: Mean,
    /// Of objects: what it does.
    pub motion: Mean,
    /// Of clips: all of these.
    pub all: Mean,
    /// Of clips: all but the sizes, of which captions mostly say nothing.
    pub all_but_size: Mean,
}

impl Tally {
    /// Adds a clip that is compared with another.
    pub fn add(&mut self, measured: &Measured) {
        self.psnr.add(measured.psnr);
        if let Some(ssim) = measured.ssim {
            self.ssim.add(ssim);
        }
        for (it, size) in measured.verdict.objects.iter().zip(&measured.sizes) {
            self.shape_by_size[*size as usize].note(it.shape);
        }
        self.add_verdict(&measured.verdict);
    }

    /// Adds a clip of which only its contents are known.
    pub fn add_verdict(&mut self, verdict: &Verdict) {
        self.count.note(verdict.count);
        self.all.note(verdict.is_right());
        let mut objects = verdict.objects.iter();
        let right = objects.all(|it| it.colour && it.shape && it.motion);
        self.all_but_size.note(verdict.count && right);
        for it in &verdict.objects {
            self.colour.note(it.colour);
            self.shape.note(it.shape);
            self.size.note(it.size);
            self.motion.note(it.motion);
        }
    }
}

/// Columns of fidelity.
pub const FIDELITY: [&str; 2] = ["PSNR dB", "SSIM"];
/// Columns of what the oracle sees.
pub const AGREEMENT: [&str; 6] = ["count", "colour", "shape", "size", "motion", "all"];

/// The cells of [`FIDELITY`], of a tally for each seed.
pub fn fidelity(tallies: &[Tally]) -> [Cell; 2] {
    [
        Cell::seeds(tallies, |tally| tally.psnr.value(), 2),
        Cell::seeds(tallies, |tally| tally.ssim.value(), 3),
    ]
}

/// The cells of [`AGREEMENT`].
pub fn agreement(tallies: &[Tally]) -> [Cell; 6] {
    let percent = |of: fn(&Tally) -> Mean| Cell::percent(tallies, of);
    [
        percent(|tally| tally.count),
        percent(|tally| tally.colour),
        percent(|tally| tally.shape),
        percent(|tally| tally.size),
        percent(|tally| tally.motion),
        percent(|tally| tally.all),
    ]
}
