use std::ops::ControlFlow;

use burn::config::Config;
use burn::tensor::Tensor;
use divot_nn::Stopped;

use crate::{NoiseSchedule, Prediction, SamplerError, SamplerStep, Spacing};

/// Options of DDIM sampling.
#[derive(Config, Debug)]
pub struct DdimConfig {
    /// Number of steps.
    pub steps: usize,
    /// Spacing of the timesteps.
    #[config(default = "Spacing::Uniform")]
    pub spacing: Spacing,
    /// Share of fresh noise in each step. 0 is deterministic, 1 is the released value.
    #[config(default = 1.0)]
    pub eta: f64,
}

/// The tables of a DDIM sampler, in increasing order of timestep.
#[derive(Debug, Clone)]
pub struct Ddim {
    /// The visited timesteps.
    pub timesteps: Vec<usize>,
    /// ᾱ of each, rounded through float16 as released.
    pub alphas: Vec<f32>,
    /// ᾱ of the visited timestep before each. For the first one, ᾱ of timestep 0.
    pub alphas_prev: Vec<f32>,
    /// Standard deviation of the fresh noise.
    pub sigmas: Vec<f32>,
    /// ᾱ of each visited timestep, unrounded. ε and z₀ are computed from v with it.
    alphas_cumprod: Vec<f32>,
    prediction: Prediction,
}

impl DdimConfig {
    /// Computes the tables.
    ///
    /// # Errors
    /// If the number of steps or eta is out of range, or ε-prediction would start at pure noise.
    pub fn init(&self, schedule: &NoiseSchedule) -> Result<Ddim, SamplerError> {
        let timesteps = self.spacing.timesteps(self.steps, schedule)?;
        if !(0.0..=1.0).contains(&self.eta) {
            return Err(SamplerError::Eta(self.eta));
        }

        let alpha = |t: usize| half::f16::from_f32(schedule.alphas_cumprod[t] as f32).to_f32();
        let alphas: Vec<f32> = timesteps.iter().map(|&t| alpha(t)).collect();
        let mut alphas_prev = vec![alpha(0)];
        alphas_prev.extend(&alphas[..alphas.len() - 1]);
        let sigmas = alphas
            .iter()
            .zip(&alphas_prev)
            .map(|(&alpha, &prev)| (self.eta * sigma(alpha, prev)) as f32)
            .collect();
        Ok(Ddim {
            alphas_cumprod: timesteps
                .iter()
                .map(|&t| schedule.alphas_cumprod[t] as f32)
                .collect(),
            timesteps,
            alphas,
            alphas_prev,
            sigmas,
            prediction: schedule.prediction,
        })
    }
}

/// Standard deviation of a step's fresh noise at eta 1, from ᾱ of its timestep and of the one before.
///
/// The released system divides by 1 − ᾱ in float16: both 1 − ᾱ and its reciprocal are rounded.
fn sigma(alpha: f32, prev: f32) -> f64 {
    let (alpha, prev) = (f64::from(alpha), f64::from(prev));
    let round = |x: f64| half::f16::from_f64(x).to_f64();
    let reciprocal = round(1.0 / round(1.0 - alpha));
    ((1.0 - prev) * reciprocal * (1.0 - alpha / prev)).sqrt()
}

impl Ddim {
    /// Denoises latents.
    ///
    /// # Arguments
    /// - `latents`: noise, `[batch, channels, frames, height, width]`.
    /// - `predict`: the network's prediction for noisy latents at a timestep, for instance
    ///   [`Denoiser::predict`](crate::Denoiser::predict).
    /// - `noise`: fresh noise of the latents' shape for a step, counted from 0. Not called if eta is 0.
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
        mut noise: impl FnMut(usize) -> Tensor<5>,
        mut on_step: impl FnMut(SamplerStep) -> ControlFlow<()>,
    ) -> Result<Tensor<5>, Stopped> {
        let total = self.timesteps.len();
        let mut latents = latents;
        for (done, index) in (0..total).rev().enumerate() {
            let timestep = self.timesteps[index];
            let prediction = predict(latents.clone(), timestep);
            let (pred_x0, epsilon) = self.clean_and_noise(latents, prediction, index);
            let (prev, sigma) = (self.alphas_prev[index], self.sigmas[index]);
            let direction = (1.0 - prev - sigma * sigma).max(0.0).sqrt();
            latents = pred_x0.clone() * prev.sqrt() + epsilon * direction;
            if sigma > 0.0 {
                latents = latents + noise(done) * sigma;
            }
            let step = SamplerStep {
                done: done + 1,
                total,
                timestep,
                pred_x0,
            };
            if on_step(step).is_break() {
                return Err(Stopped);
            }
        }
        Ok(latents)
    }

    /// Computes estimates of z₀ and ε from noisy latents and the network's prediction.
    fn clean_and_noise(
        &self,
        latents: Tensor<5>,
        prediction: Tensor<5>,
        index: usize,
    ) -> (Tensor<5>, Tensor<5>) {
        let alpha = self.alphas_cumprod[index];
        let (signal, sigma) = (alpha.sqrt(), (1.0 - alpha).sqrt());
        let clean = self
            .prediction
            .clean(latents.clone(), prediction.clone(), signal, sigma);
        let noise = self.prediction.noise(latents, prediction, signal, sigma);
        (clean, noise)
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::{Device, Distribution};

    use super::*;
    use crate::NoiseScheduleConfig;

    fn schedule(prediction: Prediction) -> NoiseSchedule {
        NoiseSchedule::new(&NoiseScheduleConfig::new().with_prediction(prediction))
    }

    #[test]
    fn steps_and_eta_out_of_range() {
        let schedule = schedule(Prediction::V);
        for steps in [0, 1001, 2000] {
            let error = DdimConfig::new(steps).init(&schedule).unwrap_err();
            assert_eq!(
                error,
                SamplerError::Steps {
                    steps,
                    timesteps: 1000
                }
            );
        }
        for eta in [-0.1, 1.5, f64::NAN] {
            assert!(DdimConfig::new(5).with_eta(eta).init(&schedule).is_err());
        }
    }

    #[test]
    fn every_number_of_steps_stays_in_the_schedule() {
        let schedule = schedule(Prediction::V);
        for spacing in [
            Spacing::Uniform,
            Spacing::UniformTrailing,
            Spacing::QuadraticTrailing,
        ] {
            for steps in 1..=1000 {
                let config = DdimConfig::new(steps).with_spacing(spacing);
                let ddim = config.init(&schedule).unwrap();
                assert!(ddim.timesteps.windows(2).all(|pair| pair[0] < pair[1]));
                assert!(ddim.timesteps.iter().all(|&t| t < 1000));
                assert!(ddim.sigmas.iter().all(|s| s.is_finite()), "{steps}");
            }
        }
    }

    #[test]
    fn epsilon_at_pure_noise_is_refused() {
        let config = DdimConfig::new(5).with_spacing(Spacing::UniformTrailing);
        let error = config.init(&schedule(Prediction::Epsilon)).unwrap_err();
        assert_eq!(error, SamplerError::EpsilonAtPureNoise);
    }

    /// A network that knows the clip leads every sampler to it, with every kind of prediction.
    #[test]
    fn an_oracle_is_followed() {
        let device = Device::default();
        let shape = [2, 4, 3, 2, 2];
        let normal = Distribution::Normal(0.0, 1.0);
        let z0 = Tensor::<5>::random(shape, normal, &device);
        for prediction in [Prediction::V, Prediction::Epsilon] {
            let schedule = schedule(prediction);
            let ddim = DdimConfig::new(20).init(&schedule).unwrap();
            let oracle = |z: Tensor<5>, t: usize| {
                let alpha = schedule.alphas_cumprod[t];
                let noise = (z - z0.clone() * alpha.sqrt()) / (1.0 - alpha).sqrt();
                schedule.target(z0.clone(), noise, &[t, t])
            };
            let mut steps = 0;
            let out = ddim
                .sample(
                    Tensor::random(shape, normal, &device),
                    oracle,
                    |_| Tensor::random(shape, normal, &device),
                    |step| {
                        steps += 1;
                        assert_eq!((step.done, step.total), (steps, 20));
                        ControlFlow::Continue(())
                    },
                )
                .unwrap();
            let error: f32 = (out - z0.clone()).abs().max().into_scalar();
            // The remaining error is the noise of timestep 0.
            assert!(error < 0.2, "{prediction:?}: {error}");
        }
    }

    #[test]
    fn a_step_can_stop_it() {
        let device = Device::default();
        let ddim = DdimConfig::new(5).init(&schedule(Prediction::V)).unwrap();
        let zeros = Tensor::<5>::zeros([1, 1, 1, 1, 1], &device);
        let mut calls = 0;
        let out = ddim.sample(
            zeros.clone(),
            |z, _| z,
            |_| zeros.clone(),
            |step| {
                calls += 1;
                if step.done == 2 {
                    ControlFlow::Break(())
                } else {
                    ControlFlow::Continue(())
                }
            },
        );
        assert!(out.is_err());
        assert_eq!(calls, 2);
    }
}
