use std::f64::consts::FRAC_PI_2;

use burn::config::Config;
use burn::tensor::{DType, Device, Tensor, TensorData};
use divot_nn::{Noise, Prediction};

/// How noise is added to a token over time.
#[derive(Config, Debug, Copy, PartialEq, Eq)]
pub enum Schedule {
    /// ᾱ falls as a squared cosine ("Improved Denoising Diffusion Probabilistic Models", section 3.2), as
    /// in the paper of the denoising MLP.
    Cosine,
    /// Betas rise linearly, from 0.0001 to 0.02 with 1000 steps.
    Linear,
}

/// Diffusion of tokens, `[rows, dim]`, without the network that denoises.
#[derive(Debug, Clone)]
pub(crate) struct Diffusion {
    /// ᾱ of each timestep: the remaining share of the signal's variance.
    alphas_cumprod: Vec<f64>,
    prediction: Prediction,
}

impl Schedule {
    /// Returns ᾱ of each of `steps` timesteps.
    fn alphas_cumprod(self, steps: usize) -> Vec<f64> {
        let cosine = |t: f64| {
            ((t / steps as f64 + 0.008) / 1.008 * FRAC_PI_2)
                .cos()
                .powi(2)
        };
        let beta = |t: usize| {
            let t = t as f64;
            let beta = match self {
                Self::Cosine => 1.0 - cosine(t + 1.0) / cosine(t),
                Self::Linear => {
                    let (first, last) = (0.1 / steps as f64, 20.0 / steps as f64);
                    first + (last - first) * t / (steps.max(2) - 1) as f64
                }
            };
            // Every step must keep some of the signal.
            beta.min(0.999)
        };
        (0..steps)
            .scan(1.0, |product, t| {
                *product *= 1.0 - beta(t);
                Some(*product)
            })
            .collect()
    }
}

impl Diffusion {
    pub(crate) fn new(schedule: Schedule, steps: usize, prediction: Prediction) -> Self {
        Self {
            alphas_cumprod: schedule.alphas_cumprod(steps),
            prediction,
        }
    }

    /// Computes the mean squared error of the prediction at a random timestep for each row of `x0`.
    ///
    /// `predict`: from noisy rows and the timestep of each, `[rows]`.
    pub(crate) fn loss(
        &self,
        x0: Tensor<2>,
        noise: &mut Noise,
        predict: impl FnOnce(Tensor<2>, Tensor<1>) -> Tensor<2>,
    ) -> Tensor<1> {
        let [rows, dim] = x0.dims();
        let device = x0.device();
        let timesteps: Vec<usize> = (0..rows)
            .map(|_| (noise.uniform() * self.alphas_cumprod.len() as f64) as usize)
            .collect();
        let epsilon = noise.normal([rows, dim], &device);

        let per_row = |value: &dyn Fn(usize) -> f64| {
            let values: Vec<f32> = timesteps.iter().map(|&t| value(t) as f32).collect();
            Tensor::<1>::from_data(TensorData::new(values, [rows]), (&device, DType::F32))
        };
        let signal = per_row(&|t| self.alphas_cumprod[t].sqrt()).unsqueeze_dim::<2>(1);
        let sigma = per_row(&|t| (1.0 - self.alphas_cumprod[t]).sqrt()).unsqueeze_dim::<2>(1);
        let noisy = x0.clone() * signal.clone() + epsilon.clone() * sigma.clone();
        let target = self.prediction.target(x0, epsilon, signal, sigma);
        let prediction = predict(noisy, per_row(&|t| t as f64));
        (prediction - target).square().mean()
    }

    /// Ancestral sampling: converts noise of `shape` to tokens.
    ///
    /// It visits `steps` timesteps. `temperature` multiplies the noise added in each step, but not the
    /// noise at the start. `predict`: from noisy rows, all at one timestep.
    pub(crate) fn sample(
        &self,
        shape: [usize; 2],
        device: &Device,
        steps: usize,
        temperature: f64,
        noise: &mut Noise,
        predict: impl Fn(Tensor<2>, usize) -> Tensor<2>,
    ) -> Tensor<2> {
        let timesteps = self.visited(steps);
        let mut x = noise.normal(shape, device);
        for (index, &t) in timesteps.iter().enumerate() {
            let alpha = self.alphas_cumprod[t];
            let next = timesteps.get(index + 1);
            let alpha_next = next.map_or(1.0, |&t| self.alphas_cumprod[t]);
            let (signal, sigma) = (alpha.sqrt(), (1.0 - alpha).sqrt());

            let prediction = predict(x.clone(), t);
            let (signal, sigma) = (signal as f32, sigma as f32);
            let x0 = self
                .prediction
                .clean(x.clone(), prediction.clone(), signal, sigma);
            let epsilon = self.prediction.noise(x, prediction, signal, sigma);
            // The variance of x at the next timestep, given x at this one and x₀.
            let variance = (1.0 - alpha_next) / (1.0 - alpha) * (1.0 - alpha / alpha_next);
            x = x0 * alpha_next.sqrt() + epsilon * (1.0 - alpha_next - variance).max(0.0).sqrt();
            if next.is_some() {
                x = x + noise.normal(shape, device) * (variance.sqrt() * temperature);
            }
        }
        x
    }

    /// Returns the middle of each of `steps` equal parts of the schedule, starting with the last.
    ///
    /// The very last timesteps are left out unless all are visited. An error of a predicted ε is divided by
    /// the remaining signal there, which is almost zero.
    fn visited(&self, steps: usize) -> Vec<usize> {
        let total = self.alphas_cumprod.len();
        (0..steps)
            .rev()
            .map(|i| (2 * i + 1) * total / (2 * steps))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::activation::sigmoid;

    use super::*;

    const PREDICTIONS: [Prediction; 2] = [Prediction::Epsilon, Prediction::V];

    /// Returns the prediction of a network with this estimate of the clean rows.
    fn prediction_of(diffusion: &Diffusion, x: Tensor<2>, t: &[usize], x0: Tensor<2>) -> Tensor<2> {
        let column = |f: fn(f64) -> f64| {
            let values: Vec<f64> = t.iter().map(|&t| f(diffusion.alphas_cumprod[t])).collect();
            Tensor::<1>::from_floats(values.as_slice(), &x.device()).unsqueeze_dim::<2>(1)
        };
        let (signal, sigma) = (column(f64::sqrt), column(|alpha| (1.0 - alpha).sqrt()));
        let epsilon = (x - x0.clone() * signal.clone()) / sigma.clone();
        match diffusion.prediction {
            Prediction::Epsilon => epsilon,
            Prediction::V => epsilon * signal - x0 * sigma,
        }
    }

    fn integers(timesteps: &Tensor<1>) -> Vec<usize> {
        let timesteps = timesteps.to_data();
        timesteps.iter::<f32>().map(|t| t as usize).collect()
    }

    /// Returns mean and variance, without Bessel's correction.
    fn moments(values: &[f64]) -> (f64, f64) {
        let n = values.len() as f64;
        let mean = values.iter().sum::<f64>() / n;
        let variance = values.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / n;
        (mean, variance)
    }

    #[test]
    fn schedules_are_the_published_ones() {
        let linear = Schedule::Linear.alphas_cumprod(1000);
        assert!((linear[0] - 0.9999).abs() < 1e-12);
        // The product over the betas of "Denoising Diffusion Probabilistic Models".
        assert!((linear[999] / 4.0358e-5 - 1.0).abs() < 1e-3);

        let cosine = Schedule::Cosine.alphas_cumprod(1000);
        let published = |t: f64| ((t + 0.008) / 1.008 * FRAC_PI_2).cos().powi(2);
        for t in [0, 250, 500, 990] {
            let expected = published((t + 1) as f64 / 1000.0) / published(0.0);
            assert!((cosine[t] / expected - 1.0).abs() < 1e-9, "{t}");
        }
        for alphas in [linear, cosine] {
            assert!(alphas.is_sorted_by(|a, b| a > b));
            assert!(alphas[999] > 0.0);
        }
    }

    #[test]
    fn every_number_of_steps_spans_the_schedule() {
        let diffusion = Diffusion::new(Schedule::Cosine, 1000, Prediction::V);
        assert_eq!(diffusion.visited(1), [500]);
        assert_eq!(diffusion.visited(4), [875, 625, 375, 125]);
        for steps in 1..=1000 {
            let timesteps = diffusion.visited(steps);
            assert_eq!(timesteps.len(), steps);
            assert!(timesteps.is_sorted_by(|a, b| a > b));
            assert!(timesteps[0] < 1000);
        }
        assert!(diffusion.visited(1000).into_iter().eq((0..1000).rev()));
    }

    #[test]
    fn an_exact_denoiser_has_no_loss() {
        let device = Device::flex();
        let x0 = Noise::new(1).normal([500, 3], &device);
        for prediction in PREDICTIONS {
            let diffusion = Diffusion::new(Schedule::Cosine, 1000, prediction);
            let loss = diffusion.loss(x0.clone(), &mut Noise::new(2), |x, t| {
                prediction_of(&diffusion, x, &integers(&t), x0.clone())
            });
            assert!(loss.into_scalar::<f32>() < 1e-8, "{prediction:?}");
        }
    }

    /// For a fixed estimate of the clean rows, the losses have the weights 1 / (1 − ᾱ) for v and
    /// ᾱ / (1 − ᾱ) for ε. They differ by the estimate's squared error.
    #[test]
    fn losses_of_epsilon_and_v_differ_by_that_of_the_clean_rows() {
        let device = Device::flex();
        let x0 = Noise::new(1).normal([500, 3], &device);
        let [epsilon, v] = PREDICTIONS.map(|prediction| {
            let diffusion = Diffusion::new(Schedule::Cosine, 1000, prediction);
            let loss = diffusion.loss(x0.clone(), &mut Noise::new(2), |x, t| {
                prediction_of(&diffusion, x, &integers(&t), x0.zeros_like())
            });
            loss.into_scalar::<f32>()
        });
        let error: f32 = x0.square().mean().into_scalar();
        assert!(((v - epsilon) / error - 1.0).abs() < 1e-3, "{v} {epsilon}");
    }

    #[test]
    fn every_timestep_is_as_likely() {
        let device = Device::flex();
        let (rows, steps) = (100_000, 7);
        let diffusion = Diffusion::new(Schedule::Linear, steps, Prediction::V);
        let mut counts = vec![0; steps];
        diffusion.loss(
            Tensor::zeros([rows, 1], &device),
            &mut Noise::new(3),
            |x, t| {
                integers(&t).iter().for_each(|&t| counts[t] += 1);
                x
            },
        );
        let share = 1.0 / steps as f64;
        let error = (share * (1.0 - share) / rows as f64).sqrt();
        for count in counts {
            let found = f64::from(count) / rows as f64;
            assert!((found - share).abs() < 4.0 * error, "{found}");
        }
    }

    /// The exact denoiser of a Gaussian is linear. The sampler therefore returns a Gaussian whose moments
    /// follow from the posterior of the forward process.
    #[test]
    fn sampling_follows_the_posterior() {
        let device = Device::flex();
        let (mean0, variance0) = (1.5, 0.25);
        let rows = 100_000;
        for (seed, schedule, prediction, steps, temperature) in [
            (1, Schedule::Cosine, Prediction::Epsilon, 1, 1.0),
            (2, Schedule::Cosine, Prediction::Epsilon, 10, 1.0),
            (3, Schedule::Cosine, Prediction::V, 25, 0.7),
            (4, Schedule::Linear, Prediction::Epsilon, 50, 0.0),
            (5, Schedule::Linear, Prediction::V, 50, 1.0),
        ] {
            let diffusion = Diffusion::new(schedule, 50, prediction);
            // The estimate of the clean row is slope·x + offset.
            let estimate = |t: usize| {
                let alpha = diffusion.alphas_cumprod[t];
                let slope = alpha.sqrt() * variance0 / (alpha * variance0 + 1.0 - alpha);
                (slope, mean0 * (1.0 - slope * alpha.sqrt()))
            };
            let samples = diffusion.sample(
                [rows, 1],
                &device,
                steps,
                temperature,
                &mut Noise::new(seed),
                |x, t| {
                    let (slope, offset) = estimate(t);
                    prediction_of(&diffusion, x.clone(), &[t], x * slope + offset)
                },
            );

            let (mut mean, mut variance) = (0.0, 1.0);
            let timesteps = diffusion.visited(steps);
            for (i, &t) in timesteps.iter().enumerate() {
                let alpha = diffusion.alphas_cumprod[t];
                let next = timesteps
                    .get(i + 1)
                    .map_or(1.0, |&t| diffusion.alphas_cumprod[t]);
                let beta = 1.0 - alpha / next;
                let of_x0 = next.sqrt() * beta / (1.0 - alpha);
                let of_x = (alpha / next).sqrt() * (1.0 - next) / (1.0 - alpha);
                let fresh = beta * (1.0 - next) / (1.0 - alpha);
                let (slope, offset) = estimate(t);
                let gain = of_x0 * slope + of_x;
                mean = gain * mean + of_x0 * offset;
                variance = gain * gain * variance + fresh * temperature * temperature;
            }

            let samples: Vec<f64> = samples.to_data().iter::<f64>().collect();
            let found = moments(&samples);
            let case = format!("{seed}: {found:?}, not {mean} and {variance}");
            let n = rows as f64;
            assert!(
                (found.0 - mean).abs() < 4.0 * (variance / n).sqrt() + 1e-5,
                "{case}"
            );
            assert!(
                (found.1 / variance - 1.0).abs() < 4.0 * (2.0 / n).sqrt() + 1e-3,
                "{case}"
            );
        }
    }

    #[test]
    fn an_exact_denoiser_recovers_two_clusters() {
        let device = Device::flex();
        let clusters = [(0.3, -2.0, 0.09), (0.7, 1.5, 0.36)]; // probability, mean, variance
        let rows = 20_000;
        for prediction in PREDICTIONS {
            let diffusion = Diffusion::new(Schedule::Cosine, 1000, prediction);
            let denoise = |x: Tensor<2>, t: usize| {
                let alpha = diffusion.alphas_cumprod[t];
                // Each cluster's log-density of x, and its mean of the clean row given x.
                let [(log0, mean0), (log1, mean1)] =
                    clusters.map(|(probability, mean, variance)| {
                        let total = alpha * variance + 1.0 - alpha;
                        let offset = x.clone() - mean * alpha.sqrt();
                        let log = offset.clone().square() / (-2.0 * total)
                            + (f64::ln(probability) - 0.5 * total.ln());
                        (log, offset * (alpha.sqrt() * variance / total) + mean)
                    });
                let second = sigmoid(log1 - log0);
                let x0 = mean0.clone() + (mean1 - mean0) * second;
                prediction_of(&diffusion, x, &[t], x0)
            };
            let noise = &mut Noise::new(6);
            let samples = diffusion.sample([rows, 1], &device, 1000, 1.0, noise, denoise);
            let samples: Vec<f64> = samples.to_data().iter::<f64>().collect();
            // The clusters touch at −0.8, four standard deviations from one, 3.8 from the other.
            let (first, second) = samples.iter().partition::<Vec<f64>, _>(|&&x| x < -0.8);
            for (found, (probability, mean, variance)) in [first, second].iter().zip(clusters) {
                let n = found.len() as f64;
                let share_error = (probability * (1.0 - probability) / rows as f64).sqrt();
                let (found_mean, found_variance) = moments(found);
                // The sampling error, and the error of a thousand finite steps.
                let case = format!("{prediction:?} {n} {found_mean} {found_variance}");
                let share = n / rows as f64;
                assert!((share - probability).abs() < 4.0 * share_error, "{case}");
                let mean_error = 4.0 * (variance / n).sqrt() + 0.005;
                assert!((found_mean - mean).abs() < mean_error, "{case}");
                let variance_error = 4.0 * (2.0 / n).sqrt() + 0.01;
                assert!(
                    (found_variance / variance - 1.0).abs() < variance_error,
                    "{case}"
                );
            }
        }
    }
}
