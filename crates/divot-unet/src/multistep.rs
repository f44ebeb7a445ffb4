use std::ops::ControlFlow;

use burn::tensor::Tensor;

use crate::{NoiseSchedule, Prediction, SamplerStep};

/// DPM-Solver++(2M) or UniPC: a deterministic sampler that also uses what earlier steps estimated.
///
/// Latents on their way from noise to a clip follow an ordinary differential equation. Between two
/// timesteps s and t, with α = sqrt(ᾱ), σ = sqrt(1 − ᾱ) and λ = log(α / σ), its solution is
///
/// x_t = σ_t / σ_s · x_s + σ_t · ∫ e^λ · x₀(λ) dλ from λ_s to λ_t,
///
/// where only the network knows the clean estimate x₀(λ). A constant one makes a step of DDIM; a line
/// through the last two estimates makes the second order. Once the network ran at t, its estimate
/// there mends the step that led to t: UniPC's corrector.
///
/// **Pure noise**, where λ = −∞, is no obstacle: ∫ e^λ dλ = α_t / σ_t − α_s / σ_s needs no logarithm,
/// and with v-prediction x₀ = −v. Nothing can be extrapolated over an infinite stretch of λ, so the
/// first two steps from there are of first order. The last step is too, being the longest. ("Common
/// Diffusion Noise Schedules and Sample Steps are Flawed", arXiv:2305.08891, is why sampling should
/// start at pure noise.)
///
/// It ends where DDIM does, at ᾱ of timestep 0, and uses unrounded ᾱ. All weights are computed in
/// float64 beforehand.
#[derive(Debug, Clone)]
pub struct Multistep {
    /// In the order in which they are made.
    steps: Vec<Step>,
    prediction: Prediction,
}

#[derive(Debug, Clone)]
struct Step {
    timestep: usize,
    here: Node,
    /// How the latents that the last step led to are mended, from those it began with; the newest
    /// clean estimate is the one just made.
    correct: Option<Update>,
    /// How the latents get to the next timestep.
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
    latents: f64,
    /// Of the estimates, the newest first.
    clean: Vec<f64>,
}

impl Multistep {
    /// DPM-Solver++(2M): algorithm 2 of "DPM-Solver++: Fast Solver for Guided Sampling of Diffusion
    /// Probabilistic Models" (Lu et al. 2022, arXiv:2211.01095). `timesteps` increase.
    pub(crate) fn dpm_solver_plus_plus(timesteps: Vec<usize>, schedule: &NoiseSchedule) -> Self {
        Self::of_schedule(timesteps, schedule, false)
    }

    /// Multistep UniPC-2 for clean estimates with B₂(h) = e^h − 1: "UniPC: A Unified
    /// Predictor-Corrector Framework for Fast Sampling of Diffusion Models" (Zhao et al. 2023,
    /// arXiv:2302.04867). `timesteps` increase.
    ///
    /// With the paper's a₁ = ½, UniP-2 is DPM-Solver++(2M); UniC-2 is what it adds.
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

    /// Number of steps that will be taken.
    pub fn steps(&self) -> usize {
        self.steps.len()
    }

    /// Denoises latents; as [`Sampler::sample`](crate::Sampler::sample), without fresh noise.
    pub fn sample(
        &self,
        mut latents: Tensor<5>,
        predict: impl Fn(Tensor<5>, usize) -> Tensor<5>,
        mut on_step: impl FnMut(SamplerStep) -> ControlFlow<()>,
    ) -> Option<Tensor<5>> {
        // Latents that the last step began with, and the last clean estimates, newest first.
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
                return None;
            }
        }
        Some(latents)
    }
}

/// The steps through `timesteps` in the order of visit; ᾱ at each of them, and where the last leads.
fn steps(timesteps: &[usize], alphas: &[f64], corrected: bool) -> Vec<Step> {
    let nodes: Vec<Node> = alphas.iter().map(|&alpha| Node::new(alpha)).collect();
    let strides: Vec<f64> = nodes
        .windows(2)
        .map(|pair| pair[1].log_snr() - pair[0].log_snr())
        .collect();
    // Length in λ of the step before, where it is long enough to tell a slope, and not infinite.
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

    /// λ; −∞ at pure noise.
    fn log_snr(self) -> f64 {
        (self.signal / self.sigma).ln()
    }

    /// What latents here and a constant clean estimate are multiplied by on the way to another node:
    /// the estimate's is σ_t · ∫ e^λ dλ, which the papers write as −α_t · (e^(−h) − 1).
    fn toward(self, next: Self) -> (f64, f64) {
        let ratio = next.sigma / self.sigma;
        (ratio, next.signal - self.signal * ratio)
    }
}

impl Update {
    /// UniP-2, which is DPM-Solver++(2M): a step of length `h` in λ after one of length `before`, or
    /// of first order without.
    fn predict(from: Node, to: Node, h: f64, before: Option<f64>) -> Self {
        let (latents, gain) = from.toward(to);
        let clean = match before {
            // Half a step ahead on the line through the last two estimates.
            Some(before) => {
                let ahead = h / (2.0 * before);
                vec![gain * (1.0 + ahead), -gain * ahead]
            }
            None => vec![gain],
        };
        Self { latents, clean }
    }

    /// UniC-2: the step again, with the estimate where it led to; UniC-1 without a step before.
    fn correct(from: Node, to: Node, h: f64, before: Option<f64>) -> Self {
        let (latents, gain) = from.toward(to);
        let clean = match before {
            // The parabola through three estimates: where the step is u from 0 to 1, the oldest was
            // made at u = r.
            Some(before) => {
                let r = -before / h;
                let [mean, mean_square] = moments(h);
                let curved = (mean_square - mean) / (r - 1.0);
                let (newest, oldest) = (mean - curved, curved / r);
                let middle = 1.0 - newest - oldest;
                vec![gain * newest, gain * middle, gain * oldest]
            }
            // The mean of both ends: exact to second order in α/σ too, so from pure noise as well.
            None => vec![gain / 2.0, gain / 2.0],
        };
        Self { latents, clean }
    }

    /// `latents` and `estimates`: `[batch, channels, frames, height, width]`.
    fn apply(&self, latents: Tensor<5>, estimates: &[Tensor<5>]) -> Tensor<5> {
        self.clean
            .iter()
            .zip(estimates)
            .fold(latents * self.latents, |sum, (&weight, estimate)| {
                sum + estimate.clone() * weight
            })
    }
}

/// Means of u and u² from 0 to 1 with weight e^(h·u), which is e^λ along a step of length `h`.
///
/// UniPC's b₁ and b₂: k! · h · φ_(k+1)(h) / B(h), in its terms.
fn moments(h: f64) -> [f64; 2] {
    // The differences below lose what they are made of; this is their series.
    if h < 1e-3 {
        return [1.0 / 2.0 + h / 12.0, 1.0 / 3.0 + h / 12.0];
    }
    let share = -(-h).exp_m1();
    let mean = 1.0 / share - 1.0 / h;
    [mean, 1.0 / share - 2.0 * mean / h]
}

#[cfg(test)]
mod tests {
    use burn::tensor::Device;

    use super::*;
    use crate::{NoiseScheduleConfig, Sampler, SamplerConfig, Solver, Spacing};

    const SOLVERS: [Solver; 3] = [
        Solver::Ddim { eta: 0.0 },
        Solver::DpmSolverPlusPlus,
        Solver::UniPc,
    ];
    const SPACINGS: [Spacing; 3] = [
        Spacing::Uniform,
        Spacing::UniformTrailing,
        Spacing::QuadraticTrailing,
    ];

    fn schedule(prediction: Prediction) -> NoiseSchedule {
        NoiseSchedule::new(&NoiseScheduleConfig::new().with_prediction(prediction))
    }

    fn latents(values: &[f64]) -> Tensor<5> {
        let values: Vec<f32> = values.iter().map(|&value| value as f32).collect();
        Tensor::<1>::from_floats(values.as_slice(), &Device::default()).reshape([1, 1, 1, 1, -1])
    }

    fn numbers(latents: Tensor<5>) -> Vec<f64> {
        latents.into_data().iter::<f64>().collect()
    }

    /// Root of the mean square difference.
    fn distance(a: &[f64], b: &[f64]) -> f64 {
        assert_eq!(a.len(), b.len());
        let sum: f64 = a.iter().zip(b).map(|(a, b)| (a - b).powi(2)).sum();
        (sum / a.len() as f64).sqrt()
    }

    /// Orders with which errors fall, each of twice as many steps as the one before.
    fn falls(errors: &[f64]) -> Vec<f64> {
        let order = |pair: &[f64]| (pair[0] / pair[1]).log2();
        errors.windows(2).map(order).collect()
    }

    /// Noise: quantiles of a normal distribution, nearly.
    fn quantiles(count: usize) -> Vec<f64> {
        (0..count)
            .map(|i| (i as f64 + 0.5) / count as f64)
            .map(|share| (share / (1.0 - share)).ln() / 1.702)
            .collect()
    }

    /// Numbers drawn from equal shares of normal distributions with these means and one deviation: a
    /// clip whose every sampling question has a closed answer.
    #[derive(Clone, Copy)]
    struct Mixture<'a> {
        means: &'a [f64],
        deviation: f64,
    }

    impl Mixture<'_> {
        /// E[z₀ | z_t].
        fn clean(&self, z: Tensor<5>, alpha: f64) -> Tensor<5> {
            let signal = alpha.sqrt();
            let variance = self.deviation.powi(2) * alpha + 1.0 - alpha;
            let off = |mean: f64| z.clone() - mean * signal;
            let (mut weights, mut sum) = (z.zeros_like(), z.zeros_like());
            for &mean in self.means {
                let weight = (off(mean).square() / (-2.0 * variance)).exp();
                let shift = self.deviation.powi(2) * signal / variance;
                sum = sum + weight.clone() * (off(mean) * shift + mean);
                weights = weights + weight;
            }
            sum / weights
        }

        /// What a perfect network predicts.
        fn predict(&self, z: Tensor<5>, alpha: f64, prediction: Prediction) -> Tensor<5> {
            let (signal, sigma) = (alpha.sqrt(), (1.0 - alpha).sqrt());
            let clean = self.clean(z.clone(), alpha);
            let noise = |z: Tensor<5>| (z - clean.clone() * signal) / sigma;
            match prediction {
                Prediction::Epsilon => noise(z),
                Prediction::V => noise(z) * signal - clean.clone() * sigma,
            }
        }

        /// Where noise goes that a sampler of this schedule is given.
        fn sampled(&self, sampler: &Sampler, schedule: &NoiseSchedule, noise: &[f64]) -> Vec<f64> {
            let alpha = |t: usize| schedule.alphas_cumprod[t];
            let out = sampler.sample(
                latents(noise),
                |z, t| self.predict(z, alpha(t), schedule.prediction),
                |_| unreachable!("no fresh noise is needed"),
                |_| ControlFlow::Continue(()),
            );
            numbers(out.unwrap())
        }

        /// The solution of the differential equation from ᾱ `from` to `to`; of one mean only. Each
        /// number keeps its quantile.
        fn exact(&self, noise: &[f64], from: f64, to: f64) -> Vec<f64> {
            let &[mean] = self.means else {
                panic!("a mixture has no closed solution");
            };
            let place = |alpha: f64| mean * alpha.sqrt();
            let spread = |alpha: f64| (self.deviation.powi(2) * alpha + 1.0 - alpha).sqrt();
            noise
                .iter()
                .map(|z| place(to) + (z - place(from)) / spread(from) * spread(to))
                .collect()
        }
    }

    /// Expected numbers: numpy in float64, written from the papers' equations for x₀ ~ N(0.5, 0.8²)
    /// and x_T as below, with np.polyfit for the interpolations in λ and Gauss-Legendre quadrature of
    /// ∫ e^λ · x₀(λ) dλ in place of the closed forms used here.
    #[test]
    fn as_an_independent_implementation() {
        let data = Mixture {
            means: &[0.5],
            deviation: 0.8,
        };
        let (two_m, unipc) = (Solver::DpmSolverPlusPlus, Solver::UniPc);
        let [uniform, trailing, quadratic] = SPACINGS;
        for (spacing, solver, expected) in [
            (uniform, two_m, [-0.4740354, 0.7015088, 2.3472705]),
            (uniform, unipc, [-0.4561249, 0.6977987, 2.3132918]),
            (trailing, two_m, [-0.2131440, 0.6780203, 1.9256504]),
            (trailing, unipc, [-0.2262028, 0.6812850, 1.9517680]),
            (quadratic, two_m, [-0.2822526, 0.6952975, 2.0638676]),
            (quadratic, unipc, [-0.3081894, 0.7017817, 2.1157411]),
        ] {
            let schedule = schedule(Prediction::V);
            let config = SamplerConfig::new(8)
                .with_solver(solver)
                .with_spacing(Some(spacing));
            let sampler = config.init(&schedule).unwrap();
            let ours = data.sampled(&sampler, &schedule, &[-1.0, 0.25, 2.0]);
            let error = distance(&ours, &expected);
            assert!(error < 2e-6, "{solver:?} {spacing:?}: {ours:?}");
        }
    }

    /// Orders with which errors against the exact solution fall from 10 steps to 20, 40 and 80. ᾱ runs
    /// from `from` evenly along the circle of α and σ, where no timestep has to be rounded.
    ///
    /// `change` is given each sampler's steps with their nodes.
    fn orders(corrected: bool, from: f64, change: fn(&mut [Step], &[Node])) -> Vec<f64> {
        let to = 0.9;
        let data = Mixture {
            means: &[0.5],
            deviation: 0.5,
        };
        let noise = quantiles(32);
        let exact = data.exact(&noise, from, to);
        let errors: Vec<f64> = [10, 20, 40, 80]
            .iter()
            .map(|&count| {
                let (begin, end) = (from.sqrt().acos(), to.sqrt().acos());
                let angle = |i: usize| begin + (end - begin) * i as f64 / count as f64;
                let mut alphas: Vec<f64> = (0..=count).map(|i| angle(i).cos().powi(2)).collect();
                alphas[0] = from; // the cosine of a right angle is not quite 0
                let nodes: Vec<Node> = alphas.iter().map(|&alpha| Node::new(alpha)).collect();
                let timesteps: Vec<usize> = (0..count).collect();
                let mut steps = steps(&timesteps, &alphas, corrected);
                change(&mut steps, &nodes);
                let prediction = Prediction::V;
                let sampler = Multistep { steps, prediction };
                let out = sampler.sample(
                    latents(&noise),
                    |z, i| data.predict(z, alphas[i], prediction),
                    |_| ControlFlow::Continue(()),
                );
                distance(&numbers(out.unwrap()), &exact)
            })
            .collect();
        falls(&errors)
    }

    /// What DDIM without fresh noise is, save for its rounded table.
    fn all_of_first_order(steps: &mut [Step], nodes: &[Node]) {
        for (step, pair) in steps.iter_mut().zip(nodes.windows(2)) {
            let h = pair[1].log_snr() - pair[0].log_snr();
            step.predict = Update::predict(pair[0], pair[1], h, None);
        }
    }

    fn last_of_second_order(steps: &mut [Step], nodes: &[Node]) {
        let &[a, b, c] = nodes.last_chunk().unwrap();
        let strides = [b.log_snr() - a.log_snr(), c.log_snr() - b.log_snr()];
        steps.last_mut().unwrap().predict = Update::predict(b, c, strides[1], Some(strides[0]));
    }

    #[test]
    fn orders_of_convergence() {
        let as_it_is = |_: &mut [Step], _: &[Node]| {};
        for from in [0.0, 0.05] {
            for order in orders(false, from, all_of_first_order) {
                assert!((0.95..1.05).contains(&order), "DDIM: {order}");
            }
            for order in orders(false, from, as_it_is) {
                assert!((1.85..2.15).contains(&order), "DPM-Solver++: {order}");
            }
            // Beside the last step, of first order, nothing is left of the others' errors.
            for order in orders(true, from, as_it_is) {
                assert!((1.85..2.15).contains(&order), "UniPC: {order}");
            }
        }
        // The corrector's own order, 3 in the limit, shows where neither end hides it.
        let orders = orders(true, 0.05, last_of_second_order);
        assert!(orders.is_sorted() && orders[2] > 2.7, "UniC: {orders:?}");
    }

    /// DDIM itself, on timesteps; with more steps its table's rounding would show.
    #[test]
    fn ddim_is_of_first_order() {
        let data = Mixture {
            means: &[0.5],
            deviation: 1.0,
        };
        let schedule = schedule(Prediction::V);
        let noise = quantiles(32);
        let exact = data.exact(&noise, 0.0, schedule.alphas_cumprod[0]);
        let errors = [10, 20, 40].map(|steps| {
            let config = SamplerConfig::new(steps)
                .with_solver(Solver::Ddim { eta: 0.0 })
                .with_spacing(Some(Spacing::UniformTrailing));
            let sampler = config.init(&schedule).unwrap();
            distance(&data.sampled(&sampler, &schedule, &noise), &exact)
        });
        for order in falls(&errors) {
            assert!((0.9..1.1).contains(&order), "{order}");
        }
    }

    #[test]
    fn all_come_to_the_same() {
        let data = Mixture {
            means: &[-1.0, 1.0],
            deviation: 0.5,
        };
        let noise = quantiles(64);
        for (spacing, prediction) in [
            (Spacing::Uniform, Prediction::V),
            (Spacing::Uniform, Prediction::Epsilon),
            (Spacing::UniformTrailing, Prediction::V),
            (Spacing::QuadraticTrailing, Prediction::V),
        ] {
            let schedule = schedule(prediction);
            let [ddim, two_m, unipc] = SOLVERS.map(|solver| {
                let config = SamplerConfig::new(250)
                    .with_solver(solver)
                    .with_spacing(Some(spacing));
                data.sampled(&config.init(&schedule).unwrap(), &schedule, &noise)
            });
            // DDIM is still under way, and its table is rounded.
            let (far, near) = (distance(&two_m, &ddim), distance(&two_m, &unipc));
            assert!(far < 1e-2, "{spacing:?}, {prediction:?}: {far}");
            assert!(near < 1e-3, "{spacing:?}, {prediction:?}: {near}");
        }
    }

    #[test]
    fn fifteen_steps_are_nearer_than_fifty_of_ddim() {
        let schedule = schedule(Prediction::V);
        let noise = quantiles(64);
        for (mean, deviation) in [(1.0, 0.1), (1.0, 0.5), (1.5, 0.5), (0.5, 0.7), (1.0, 1.0)] {
            let means = [-mean, mean];
            let data = Mixture {
                means: &means,
                deviation,
            };
            let run = |solver: Solver, steps: usize, spacing: Option<Spacing>| {
                let config = SamplerConfig::new(steps)
                    .with_solver(solver)
                    .with_spacing(spacing);
                data.sampled(&config.init(&schedule).unwrap(), &schedule, &noise)
            };
            let trailing = Some(Spacing::UniformTrailing);
            let fine = run(Solver::UniPc, 1000, trailing);
            let ddim = [None, trailing]
                .map(|spacing| distance(&run(Solver::Ddim { eta: 0.0 }, 50, spacing), &fine));
            for solver in [Solver::DpmSolverPlusPlus, Solver::UniPc] {
                for steps in [15, 20] {
                    let error = distance(&run(solver, steps, None), &fine);
                    assert!(
                        error < ddim[0].min(ddim[1]),
                        "{solver:?}: {error}, {ddim:?}"
                    );
                }
            }
        }
    }

    #[test]
    fn any_number_of_steps_gives_numbers() {
        let schedule = schedule(Prediction::V);
        let data = Mixture {
            means: &[0.3],
            deviation: 0.5,
        };
        for spacing in SPACINGS {
            for steps in 1..=1000 {
                let timesteps = spacing.timesteps(steps, &schedule).unwrap();
                for multistep in [Multistep::dpm_solver_plus_plus, Multistep::unipc] {
                    let sampler = multistep(timesteps.clone(), &schedule);
                    for step in &sampler.steps {
                        let updates = step.correct.iter().chain([&step.predict]);
                        for weight in updates.flat_map(|u| u.clean.iter().chain([&u.latents])) {
                            assert!(weight.is_finite(), "{spacing:?} {steps}");
                        }
                    }
                    if steps <= 3 || steps == 1000 {
                        let noise = [-1.0, 0.5];
                        let out = data.sampled(&Sampler::Multistep(sampler), &schedule, &noise);
                        assert!(out.iter().all(|x| x.abs() < 2.0), "{spacing:?}: {out:?}");
                    }
                }
            }
        }
    }

    /// One step from pure noise: the clean estimate, under the noise of timestep 0.
    #[test]
    fn pure_noise_in_one_step() {
        let schedule = schedule(Prediction::V);
        let config = SamplerConfig::new(1).with_solver(Solver::UniPc);
        let v = latents(&[-0.5, 2.0]);
        let out = config.init(&schedule).unwrap().sample(
            latents(&[1.0, -1.0]),
            |_, timestep| {
                assert_eq!(timestep, 999);
                v.clone()
            },
            |_| unreachable!("no fresh noise is needed"),
            |step| {
                assert_eq!(numbers(step.pred_x0), [0.5, -2.0]);
                ControlFlow::Continue(())
            },
        );
        let alpha = schedule.alphas_cumprod[0];
        let (signal, sigma) = (alpha.sqrt(), (1.0 - alpha).sqrt());
        let by_hand = [0.5 * signal + sigma, -2.0 * signal - sigma];
        assert!(distance(&numbers(out.unwrap()), &by_hand) < 1e-6);
    }

    #[test]
    fn the_mean_of_powers_meets_its_series() {
        let [below, above] = [0.999_999e-3, 1e-3].map(moments);
        for (below, above) in below.iter().zip(above) {
            assert!((below - above).abs() < 1e-7);
        }
        assert_eq!(moments(f64::INFINITY), [1.0, 1.0]);
    }

    #[test]
    fn bad_configurations_are_refused() {
        for solver in [Solver::DpmSolverPlusPlus, Solver::UniPc] {
            for steps in [0, 1001] {
                let config = SamplerConfig::new(steps).with_solver(solver);
                assert!(config.init(&schedule(Prediction::V)).is_err());
            }
            let config = SamplerConfig::new(10).with_solver(solver);
            assert!(config.init(&schedule(Prediction::Epsilon)).is_err());
        }
    }

    #[test]
    fn a_step_can_stop_it() {
        let config = SamplerConfig::new(5).with_solver(Solver::UniPc);
        let sampler = config.init(&schedule(Prediction::V)).unwrap();
        let mut calls = 0;
        let out = sampler.sample(
            latents(&[0.0]),
            |z, _| z,
            |_| unreachable!("no fresh noise is needed"),
            |step| {
                calls += 1;
                assert_eq!((step.done, step.total), (calls, 5));
                match step.done {
                    2 => ControlFlow::Break(()),
                    _ => ControlFlow::Continue(()),
                }
            },
        );
        assert!(out.is_none());
        assert_eq!(calls, 2);
    }
}
