use std::ops::ControlFlow;

use burn::config::Config;
use burn::tensor::Tensor;
use divot_nn::Stopped;

use crate::{Ddim, DdimConfig, Multistep, NoiseSchedule, Prediction};

/// Spacing of the timesteps that a sampler visits.
#[derive(Config, Debug, Copy, PartialEq, Eq)]
pub enum Spacing {
    /// Every (timesteps / steps)-th, plus one: the released default. It never visits pure noise.
    Uniform,
    /// Equal steps back from the last timestep, which is pure noise.
    UniformTrailing,
    /// Also from the last timestep, with smaller steps where there is less noise: timesteps grow with the
    /// square of the index of the step ("Denoising Diffusion Implicit Models", arXiv:2010.02502, appendix
    /// D.2).
    ///
    /// With evenly spaced timesteps, most of the change of the log-SNR is in the last few steps, where a
    /// solver of second order extrapolates badly.
    QuadraticTrailing,
}

/// How each sampling step is computed.
#[derive(Config, Debug, Copy, PartialEq)]
pub enum Solver {
    /// "Denoising Diffusion Implicit Models", arXiv:2010.02502: of first order, as released.
    Ddim {
        /// Share of fresh noise in each step. 0 is deterministic, 1 is the released value.
        eta: f64,
    },
    /// DPM-Solver++(2M) of "DPM-Solver++", arXiv:2211.01095: deterministic, of second order.
    DpmSolverPlusPlus,
    /// UniPC of order 2 with B₂(h) of "UniPC", arXiv:2302.04867: deterministic. It adds a corrector that
    /// needs no further run of the network.
    UniPc,
}

/// Options of sampling.
///
/// In the limit of many steps, all solvers convert the same noise to the same clip, if DDIM's eta is 0.
#[derive(Config, Debug)]
pub struct SamplerConfig {
    /// Number of steps.
    pub steps: usize,
    /// How each step is computed.
    #[config(default = "Solver::Ddim { eta: 1.0 }")]
    pub solver: Solver,
    /// Spacing of the timesteps. `None` means the solver's default ([`Solver::spacing`]).
    #[config(default = "None")]
    pub spacing: Option<Spacing>,
}

/// Why a sampler's configuration is invalid.
#[derive(Debug, thiserror::Error, PartialEq)]
pub enum SamplerError {
    /// The number of steps is not between one and the schedule's timesteps.
    #[error("{steps} sampling steps were asked for; use 1 to {timesteps}")]
    Steps {
        /// The configured number of steps.
        steps: usize,
        /// The schedule's number of timesteps.
        timesteps: usize,
    },
    /// Eta is not between 0 and 1.
    #[error("eta is {0}; use a number from 0 to 1")]
    Eta(f64),
    /// ε-prediction does not determine the clip at pure noise.
    #[error(
        "ε-prediction cannot start at pure noise; use uniform spacing or a schedule without zero terminal SNR"
    )]
    EpsilonAtPureNoise,
}

/// A sampler with its tables.
#[derive(Debug, Clone)]
pub enum Sampler {
    /// DDIM.
    Ddim(Ddim),
    /// DPM-Solver++(2M) or UniPC.
    Multistep(Multistep),
}

/// The progress of a sampler after a step.
#[derive(Debug)]
pub struct SamplerStep {
    /// Number of finished steps.
    pub done: usize,
    /// Total number of steps.
    pub total: usize,
    /// The timestep of this step.
    pub timestep: usize,
    /// Estimate of the clean latents, `[batch, channels, frames, height, width]`.
    pub pred_x0: Tensor<5>,
}

impl Spacing {
    /// Returns the visited timesteps in increasing order, each once.
    ///
    /// With [`Uniform`](Self::Uniform), a number of steps that does not divide the schedule's timesteps
    /// gives a few more steps, as released.
    ///
    /// # Errors
    /// If there are no steps, or more steps than timesteps, or ε-prediction would start at pure noise.
    pub fn timesteps(
        self,
        steps: usize,
        schedule: &NoiseSchedule,
    ) -> Result<Vec<usize>, SamplerError> {
        let total = schedule.alphas_cumprod.len();
        if steps == 0 || steps > total {
            return Err(SamplerError::Steps {
                steps,
                timesteps: total,
            });
        }
        let timesteps: Vec<usize> = match self {
            // The last multiple may be the last timestep itself. Plus one, it would be out of range.
            Self::Uniform => (0..total)
                .step_by(total / steps)
                .map(|t| t + 1)
                .filter(|&t| t < total)
                .collect(),
            Self::UniformTrailing => {
                let stride = total as f64 / steps as f64;
                (0..steps)
                    .rev()
                    .map(|i| (total as f64 - i as f64 * stride).round_ties_even() as usize - 1)
                    .collect()
            }
            // With many steps, the first squares are closer together than timesteps. There, take every
            // timestep.
            Self::QuadraticTrailing => (1..=steps)
                .map(|i| {
                    let share = i as f64 / steps as f64;
                    let square = (total as f64 * share * share).round_ties_even() as usize;
                    square.max(i) - 1
                })
                .collect(),
        };
        let pure_noise = |&t: &usize| schedule.alphas_cumprod[t] == 0.0;
        if schedule.prediction == Prediction::Epsilon && timesteps.iter().any(pure_noise) {
            return Err(SamplerError::EpsilonAtPureNoise);
        }
        Ok(timesteps)
    }
}

impl Solver {
    /// Returns the default spacing: uniform for DDIM, as released, and quadratic for solvers of second
    /// order.
    pub fn spacing(self) -> Spacing {
        match self {
            Self::Ddim { .. } => Spacing::Uniform,
            Self::DpmSolverPlusPlus | Self::UniPc => Spacing::QuadraticTrailing,
        }
    }
}

impl SamplerConfig {
    /// Computes the tables.
    ///
    /// # Errors
    /// If the number of steps or eta is out of range, or ε-prediction would start at pure noise.
    pub fn init(&self, schedule: &NoiseSchedule) -> Result<Sampler, SamplerError> {
        let spacing = self.spacing.unwrap_or_else(|| self.solver.spacing());
        let multistep = |init: fn(Vec<usize>, &NoiseSchedule) -> Multistep| {
            let timesteps = spacing.timesteps(self.steps, schedule)?;
            Ok(Sampler::Multistep(init(timesteps, schedule)))
        };
        match self.solver {
            Solver::Ddim { eta } => DdimConfig::new(self.steps)
                .with_spacing(spacing)
                .with_eta(eta)
                .init(schedule)
                .map(Sampler::Ddim),
            Solver::DpmSolverPlusPlus => multistep(Multistep::dpm_solver_plus_plus),
            Solver::UniPc => multistep(Multistep::unipc),
        }
    }
}

impl Sampler {
    /// Returns the number of steps that will be taken.
    pub fn steps(&self) -> usize {
        match self {
            Self::Ddim(ddim) => ddim.timesteps.len(),
            Self::Multistep(multistep) => multistep.steps(),
        }
    }

    /// Denoises latents.
    ///
    /// # Arguments
    /// - `latents`: noise, `[batch, channels, frames, height, width]`.
    /// - `predict`: the network's prediction for noisy latents at a timestep, for instance
    ///   [`Denoiser::predict`](crate::Denoiser::predict). It runs once in each step.
    /// - `noise`: fresh noise of the latents' shape for a step, counted from 0. Only DDIM with an eta
    ///   above 0 calls it.
    /// - `on_step`: called after each step. It may stop the sampling.
    ///
    /// Returns the latents of the last step.
    ///
    /// # Errors
    /// If `on_step` stops it.
    pub fn sample(
        &self,
        latents: Tensor<5>,
        predict: impl Fn(Tensor<5>, usize) -> Tensor<5>,
        noise: impl FnMut(usize) -> Tensor<5>,
        on_step: impl FnMut(SamplerStep) -> ControlFlow<()>,
    ) -> Result<Tensor<5>, Stopped> {
        match self {
            Self::Ddim(ddim) => ddim.sample(latents, predict, noise, on_step),
            Self::Multistep(multistep) => multistep.sample(latents, predict, on_step),
        }
    }
}
