use burn::config::Config;
use burn::tensor::Tensor;
use divot_nn::{CheckSizes, Prediction, SizeError, check_widths};

/// Options of a noise schedule.
#[derive(Config, Debug)]
pub struct NoiseScheduleConfig {
    /// Number of timesteps.
    #[config(default = 1000)]
    pub timesteps: usize,
    /// First beta.
    #[config(default = 0.00085)]
    pub beta_start: f64,
    /// Last beta, before the rescaling.
    #[config(default = 0.012)]
    pub beta_end: f64,
    /// Whether the schedule is rescaled so that the last step is pure noise.
    #[config(default = true)]
    pub zero_terminal_snr: bool,
    /// What the network predicts.
    #[config(default = "Prediction::V")]
    pub prediction: Prediction,
}

/// Betas and ᾱ of every timestep, computed in float64.
///
/// betas = linspace(sqrt(beta_start), sqrt(beta_end))², then rescaled to zero terminal SNR.
#[derive(Debug, Clone)]
pub struct NoiseSchedule {
    /// Beta of each timestep.
    pub betas: Vec<f64>,
    /// ᾱ, the cumulative product of 1 − beta: the remaining share of the signal's variance.
    pub alphas_cumprod: Vec<f64>,
    /// What the network predicts.
    pub prediction: Prediction,
}

impl CheckSizes for NoiseScheduleConfig {
    fn check_sizes(&self) -> Result<(), SizeError> {
        check_widths(&[("timesteps", self.timesteps)])?;
        let inside = |beta: f64| beta > 0.0 && beta < 1.0;
        if !(inside(self.beta_start) && inside(self.beta_end)) {
            return Err(SizeError::new(format!(
                "betas go from {} to {}, not between 0 and 1",
                self.beta_start, self.beta_end
            )));
        }
        Ok(())
    }
}

impl NoiseSchedule {
    /// Computes the tables.
    pub fn new(config: &NoiseScheduleConfig) -> Self {
        let (start, end) = (config.beta_start.sqrt(), config.beta_end.sqrt());
        let step = (end - start) / (config.timesteps.max(2) - 1) as f64;
        let mut betas: Vec<f64> = (0..config.timesteps)
            .map(|i| (start + step * i as f64).powi(2))
            .collect();
        if config.zero_terminal_snr {
            betas = rescale_to_zero_terminal_snr(&betas);
        }
        Self {
            alphas_cumprod: cumulative_alphas(&betas),
            betas,
            prediction: config.prediction,
        }
    }

    /// Adds noise: z_t = sqrt(ᾱ)·z₀ + sqrt(1 − ᾱ)·ε.
    ///
    /// `z0`, `noise`: `[batch, channels, frames, height, width]`, with one timestep per clip.
    pub fn add_noise(&self, z0: Tensor<5>, noise: Tensor<5>, timesteps: &[usize]) -> Tensor<5> {
        let (signal, sigma) = self.coefficients(timesteps, &z0);
        z0 * signal + noise * sigma
    }

    /// Returns the target of the network for clips with this noise: v or ε.
    ///
    /// The shapes are those of [`add_noise`](Self::add_noise).
    pub fn target(&self, z0: Tensor<5>, noise: Tensor<5>, timesteps: &[usize]) -> Tensor<5> {
        let (signal, sigma) = self.coefficients(timesteps, &z0);
        self.prediction.target(z0, noise, signal, sigma)
    }

    /// Returns sqrt(ᾱ) and sqrt(1 − ᾱ) of each clip's timestep, `[batch, 1, 1, 1, 1]`, with the dtype and
    /// the device of `like`.
    fn coefficients(&self, timesteps: &[usize], like: &Tensor<5>) -> (Tensor<5>, Tensor<5>) {
        let column = |f: fn(f64) -> f64| {
            let values: Vec<f32> = timesteps
                .iter()
                .map(|&t| f(self.alphas_cumprod[t]) as f32)
                .collect();
            Tensor::<1>::from_floats(values.as_slice(), &like.device())
                .reshape([timesteps.len(), 1, 1, 1, 1])
                .cast(like.dtype())
        };
        (column(f64::sqrt), column(|alpha| (1.0 - alpha).sqrt()))
    }
}

fn cumulative_alphas(betas: &[f64]) -> Vec<f64> {
    betas
        .iter()
        .scan(1.0, |product, beta| {
            *product *= 1.0 - beta;
            Some(*product)
        })
        .collect()
}

/// Shifts and scales sqrt(ᾱ) so that its last value is 0 and its first value stays ("Common diffusion noise
/// schedules and sample steps are flawed", section 3.1).
fn rescale_to_zero_terminal_snr(betas: &[f64]) -> Vec<f64> {
    let roots: Vec<f64> = cumulative_alphas(betas).iter().map(|a| a.sqrt()).collect();
    let (Some(&first), Some(&last)) = (roots.first(), roots.last()) else {
        return Vec::new();
    };
    let alphas_cumprod: Vec<f64> = roots
        .iter()
        .map(|root| ((root - last) * (first / (first - last))).powi(2))
        .collect();
    let mut previous = 1.0;
    alphas_cumprod
        .iter()
        .map(|&alpha| {
            let beta = 1.0 - alpha / previous;
            previous = alpha;
            beta
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use burn::tensor::Device;

    use super::*;

    #[test]
    fn ends_in_pure_noise() {
        let schedule = NoiseSchedule::new(&NoiseScheduleConfig::new());
        assert_eq!(schedule.alphas_cumprod.len(), 1000);
        assert_eq!(schedule.alphas_cumprod[999], 0.0);
        // The first step keeps its beta.
        assert!((schedule.betas[0] - 0.00085).abs() < 1e-9);
    }

    #[test]
    fn clip_and_noise_come_back_from_v() {
        let device = Device::default();
        let schedule = NoiseSchedule::new(&NoiseScheduleConfig::new());
        let random = || {
            Tensor::<5>::random(
                [2, 1, 2, 2, 2],
                burn::tensor::Distribution::Normal(0.0, 1.0),
                &device,
            )
        };
        let (z0, noise, t) = (random(), random(), [400, 999]);
        let zt = schedule.add_noise(z0.clone(), noise.clone(), &t);
        let v = schedule.target(z0.clone(), noise, &t);
        let (signal, sigma) = schedule.coefficients(&t, &z0);
        let back = zt * signal - v * sigma;
        assert!((back - z0).abs().max().into_scalar::<f32>() < 1e-5);
    }
}
