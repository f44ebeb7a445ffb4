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

/// Returns the root mean square difference.
fn distance(a: &[f64], b: &[f64]) -> f64 {
    assert_eq!(a.len(), b.len());
    let sum: f64 = a.iter().zip(b).map(|(a, b)| (a - b).powi(2)).sum();
    (sum / a.len() as f64).sqrt()
}

/// Returns the orders of convergence. Each error is that of twice as many steps as the one before.
fn falls(errors: &[f64]) -> Vec<f64> {
    let order = |pair: &[f64]| (pair[0] / pair[1]).log2();
    errors.windows(2).map(order).collect()
}

/// Returns deterministic noise: approximate quantiles of a normal distribution.
fn quantiles(count: usize) -> Vec<f64> {
    (0..count)
        .map(|i| (i as f64 + 0.5) / count as f64)
        .map(|share| (share / (1.0 - share)).ln() / 1.702)
        .collect()
}

/// A mixture of normal distributions with equal shares, these means and one deviation. The clean estimate
/// of a perfect network has a closed form.
#[derive(Clone, Copy)]
struct Mixture<'a> {
    means: &'a [f64],
    deviation: f64,
}

impl Mixture<'_> {
    /// Returns E[z₀ | z_t].
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

    /// Returns the prediction of a perfect network.
    fn predict(&self, z: Tensor<5>, alpha: f64, prediction: Prediction) -> Tensor<5> {
        let (signal, sigma) = (alpha.sqrt(), (1.0 - alpha).sqrt());
        let clean = self.clean(z.clone(), alpha);
        let noise = |z: Tensor<5>| (z - clean.clone() * signal) / sigma;
        match prediction {
            Prediction::Epsilon => noise(z),
            Prediction::V => noise(z) * signal - clean.clone() * sigma,
        }
    }

    /// Samples from this noise.
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

    /// Returns the exact solution of the differential equation from ᾱ `from` to `to`, for a single mean.
    /// Each number keeps its quantile.
    fn exact(&self, noise: &[f64], from: f64, to: f64) -> Vec<f64> {
        let &[mean] = self.means else {
            panic!("only a single mean has a closed solution");
        };
        let place = |alpha: f64| mean * alpha.sqrt();
        let spread = |alpha: f64| (self.deviation.powi(2) * alpha + 1.0 - alpha).sqrt();
        noise
            .iter()
            .map(|z| place(to) + (z - place(from)) / spread(from) * spread(to))
            .collect()
    }
}

/// The expected numbers come from a NumPy implementation in float64, written from the papers' equations for
/// x₀ ~ N(0.5, 0.8²) and the noise below. It uses np.polyfit for the interpolation in λ and Gauss-Legendre
/// quadrature of ∫ e^λ · x₀(λ) dλ instead of the closed forms.
#[test]
fn results_match_an_independent_implementation() {
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

/// Returns the orders of convergence to the exact solution, from 10 steps to 20, 40 and 80. The steps go
/// from ᾱ `from` to 0.9, evenly along the circle of α and σ, so that no timestep is rounded.
///
/// `change` may change the steps of each sampler.
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

/// Makes all steps those of DDIM without fresh noise, but with unrounded ᾱ.
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
        // The error of the last step, which is of first order, outweighs all others.
        for order in orders(true, from, as_it_is) {
            assert!((1.85..2.15).contains(&order), "UniPC: {order}");
        }
    }
    // The order of the corrector itself, 3 in the limit, is visible without steps of first order at the
    // ends.
    let orders = orders(true, 0.05, last_of_second_order);
    assert!(orders.is_sorted() && orders[2] > 2.7, "UniC: {orders:?}");
}

/// DDIM on timesteps. With more steps, the rounding of its table would be visible.
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
fn all_samplers_converge_to_the_same_clip() {
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
        // DDIM has not converged yet, and its table is rounded.
        let (far, near) = (distance(&two_m, &ddim), distance(&two_m, &unipc));
        assert!(far < 1e-2, "{spacing:?}, {prediction:?}: {far}");
        assert!(near < 1e-3, "{spacing:?}, {prediction:?}: {near}");
    }
}

#[test]
fn fifteen_steps_are_closer_than_fifty_of_ddim() {
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
fn any_number_of_steps_gives_finite_results() {
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

/// One step from pure noise gives the clean estimate with the noise of timestep 0.
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
fn moments_match_their_series() {
    let [below, above] = [0.999_999e-3, 1e-3].map(moments);
    for (below, above) in below.iter().zip(above) {
        assert!((below - above).abs() < 1e-7);
    }
    assert_eq!(moments(f64::INFINITY), [1.0, 1.0]);
}

#[test]
fn invalid_configurations_are_errors() {
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
fn a_step_can_stop_sampling() {
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
    assert!(out.is_err());
    assert_eq!(calls, 2);
}
