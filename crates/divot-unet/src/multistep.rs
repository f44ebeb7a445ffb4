use std::ops::ControlFlow;

use burn::tensor::Tensor;
use divot_nn::Stopped;

use crate::{NoiseSchedule, Prediction, SamplerStep};

/// A deterministic multistep sampler, DPM-Solver++(2M) or UniPC. Each step also uses the clean estimates of
/// earlier steps.
///
/// Sampling solves an ordinary differential equation from noise to a clip. Between two timesteps s and t,
/// with α = sqrt(ᾱ), σ = sqrt(1 − ᾱ) and λ = log(α / σ), its exact solution is
///
/// x_t = σ_t / σ_s · x_s + σ_t · ∫ e^λ · x₀(λ) dλ from λ_s to λ_t,
///
/// where x₀(λ) is the network's clean estimate. A constant estimate gives a step of DDIM, of first order. A
/// line through the last two estimates gives second order. UniPC adds a corrector: once the network has run
/// at t, the step that led to t is computed again with the estimate at t.
///
/// At **pure noise**, λ is −∞. The integral ∫ e^λ dλ = α_t / σ_t − α_s / σ_s still needs no logarithm, and
/// with v-prediction x₀ = −v. Nothing can be extrapolated over an infinite range of λ, so the first two steps
/// from pure noise are of first order. The last step is of first order too, because it is the longest.
/// "Common Diffusion Noise Schedules and Sample Steps are Flawed" (arXiv:2305.08891) explains why sampling
/// should start at pure noise.
///
/// The last step ends at timestep 0, as with [`Ddim`](crate::Ddim), but ᾱ is never rounded to float16. All
/// coefficients are computed in float64 in advance.
#[derive(Debug, Clone)]
pub struct Multistep {
    /// The steps in the order of sampling.
    steps: Vec<Step>,
    prediction: Prediction,
}

/// A step: one run of the network and its updates.
#[derive(Debug, Clone)]
struct Step {
    timestep: usize,
    /// The node of this timestep.
    here: Node,
    /// Corrects the latents at this timestep, from the latents at the timestep before and the clean estimates
    /// up to this one.
    correct: Option<Update>,
    /// Takes the latents to the next timestep.
    predict: Update,
}

/// A point of the noise schedule.
#[derive(Debug, Clone, Copy)]
struct Node {
    /// α.
    signal: f64,
    /// σ.
    sigma: f64,
}

/// A linear combination of latents and clean estimates.
#[derive(Debug, Clone)]
struct Update {
    /// Coefficient of the latents.
    latents: f64,
    /// Coefficients of the clean estimates, the newest first.
    clean: Vec<f64>,
}

impl Multistep {
    /// DPM-Solver++(2M): algorithm 2 of "DPM-Solver++: Fast Solver for Guided Sampling of Diffusion
    /// Probabilistic Models" (Lu et al. 2022, arXiv:2211.01095). `timesteps` must increase.
    pub(crate) fn dpm_solver_plus_plus(timesteps: Vec<usize>, schedule: &NoiseSchedule) -> Self {
        Self::of_schedule(timesteps, schedule, false)
    }

    /// Multistep UniPC-2 for clean estimates with B₂(h) = e^h − 1: "UniPC: A Unified
    /// Predictor-Corrector Framework for Fast Sampling of Diffusion Models" (Zhao et al. 2023,
    /// arXiv:2302.04867). `timesteps` must increase.
    ///
    /// With the paper's a₁ = ½, its predictor UniP-2 is DPM-Solver++(2M). UniPC adds the corrector UniC-2.
    pub(crate) fn unipc(timesteps: Vec<usize>, schedule: &NoiseSchedule) -> Self {
        Self::of_schedule(timesteps, schedule, true)
    }

    fn of_schedule(mut timesteps: Vec<usize>, schedule: &NoiseSchedule, corrected: bool) -> Self {
        timesteps.reverse();
        let alpha = |&t: &usize| schedule.alphas_cumprod[t];
        let alphas: Vec<f64> = timesteps.iter().chain([&0]).map(alpha).collect();
        Self {
            steps: steps(&timesteps, &alphas, corrected),
            prediction: schedule.prediction,
        }
    }

    /// Returns the number of sampling steps.
    pub fn steps(&self) -> usize {
        self.steps.len()
    }

    /// Denoises latents like [`Sampler::sample`](crate::Sampler::sample) without fresh noise.
    ///
    /// # Errors
    /// If `on_step` stops it.
    pub fn sample(
        &self,
        mut latents: Tensor<5>,
        predict: impl Fn(Tensor<5>, usize) -> Tensor<5>,
        mut on_step: impl FnMut(SamplerStep) -> ControlFlow<()>,
    ) -> Result<Tensor<5>, Stopped> {
        // The latents at the timestep before, and the last clean estimates, the newest first.
        let mut start = latents.clone();
        let mut estimates: Vec<Tensor<5>> = Vec::new();
        for (index, step) in self.steps.iter().enumerate() {
            let prediction = predict(latents.clone(), step.timestep);
            let Node { signal, sigma } = step.here;
            let (signal, sigma) = (signal as f32, sigma as f32);
            let clean = self
                .prediction
                .clean(latents.clone(), prediction, signal, sigma);
            estimates.insert(0, clean.clone());
            if let Some(correct) = &step.correct {
                latents = correct.apply(start, &estimates);
            }
            start = latents.clone();
            latents = step.predict.apply(latents, &estimates);
            estimates.truncate(2);
            let step = SamplerStep {
                done: index + 1,
                total: self.steps.len(),
                timestep: step.timestep,
                pred_x0: clean,
            };
            if on_step(step).is_break() {
                return Err(Stopped);
            }
        }
        Ok(latents)
    }
}

/// Returns the steps through `timesteps`, in the order of sampling. `alphas` are ᾱ of each timestep and of
/// the end of the last step.
fn steps(timesteps: &[usize], alphas: &[f64], corrected: bool) -> Vec<Step> {
    let nodes: Vec<Node> = alphas.iter().map(|&alpha| Node::new(alpha)).collect();
    let strides: Vec<f64> = nodes
        .windows(2)
        .map(|pair| pair[1].log_snr() - pair[0].log_snr())
        .collect();
    // The length in λ of the step before. `None` if it is zero or infinite, because it then gives no slope.
    let before = |index: usize| {
        let stride = *strides.get(index.checked_sub(1)?)?;
        (stride > 0.0 && stride.is_finite()).then_some(stride)
    };
    timesteps
        .iter()
        .enumerate()
        .map(|(i, &timestep)| Step {
            timestep,
            here: nodes[i],
            correct: (corrected && i > 0)
                .then(|| Update::correct(nodes[i - 1], nodes[i], strides[i - 1], before(i - 1))),
            predict: Update::predict(
                nodes[i],
                nodes[i + 1],
                strides[i],
                before(i).filter(|_| i + 1 < timesteps.len()),
            ),
        })
        .collect()
}

impl Node {
    fn new(alpha_cumprod: f64) -> Self {
        Self {
            signal: alpha_cumprod.sqrt(),
            sigma: (1.0 - alpha_cumprod).sqrt(),
        }
    }

    /// Returns λ, which is −∞ at pure noise.
    fn log_snr(self) -> f64 {
        (self.signal / self.sigma).ln()
    }

    /// Returns the coefficients of the latents and of a constant clean estimate for a step to another node.
    /// The second is σ_t · ∫ e^λ dλ, which the papers write as −α_t · (e^(−h) − 1).
    fn toward(self, next: Self) -> (f64, f64) {
        let ratio = next.sigma / self.sigma;
        (ratio, next.signal - self.signal * ratio)
    }
}

impl Update {
    /// UniP-2, which is DPM-Solver++(2M): a step of length `h` in λ, after a step of length `before`. Without
    /// `before`, the step is of first order.
    fn predict(from: Node, to: Node, h: f64, before: Option<f64>) -> Self {
        let (latents, gain) = from.toward(to);
        let clean = match before {
            // The line through the last two estimates, half a step ahead.
            Some(before) => {
                let ahead = h / (2.0 * before);
                vec![gain * (1.0 + ahead), -gain * ahead]
            }
            None => vec![gain],
        };
        Self { latents, clean }
    }

    /// UniC-2: the same step, computed again with the estimate at its end. Without `before`, UniC-1.
    fn correct(from: Node, to: Node, h: f64, before: Option<f64>) -> Self {
        let (latents, gain) = from.toward(to);
        let clean = match before {
            // The parabola through three estimates. Along the step, u goes from 0 to 1; the oldest
            // estimate is at u = r.
            Some(before) => {
                let r = -before / h;
                let [mean, mean_square] = moments(h);
                let curved = (mean_square - mean) / (r - 1.0);
                let (newest, oldest) = (mean - curved, curved / r);
                let middle = 1.0 - newest - oldest;
                vec![gain * newest, gain * middle, gain * oldest]
            }
            // The mean of both ends. It is of second order in α/σ too, so it also holds from pure noise.
            None => vec![gain / 2.0, gain / 2.0],
        };
        Self { latents, clean }
    }

    /// Applies the update. `latents` and `estimates` are `[batch, channels, frames, height, width]`.
    fn apply(&self, latents: Tensor<5>, estimates: &[Tensor<5>]) -> Tensor<5> {
        self.clean
            .iter()
            .zip(estimates)
            .fold(latents * self.latents, |sum, (&weight, estimate)| {
                sum + estimate.clone() * weight
            })
    }
}

/// The means of u and u² from 0 to 1, weighted with e^(h·u), which is proportional to e^λ along a step of
/// length `h`. UniPC calls them b₁ and b₂: k! · h · φ_(k+1)(h) / B(h).
fn moments(h: f64) -> [f64; 2] {
    // Below, the differences cancel for a small `h`. This is their series.
    if h < 1e-3 {
        return [1.0 / 2.0 + h / 12.0, 1.0 / 3.0 + h / 12.0];
    }
    let share = -(-h).exp_m1();
    let mean = 1.0 / share - 1.0 / h;
    [mean, 1.0 / share - 2.0 * mean / h]
}

#[cfg(test)]
mod tests;
