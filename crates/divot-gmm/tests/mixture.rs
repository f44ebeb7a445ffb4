//! Compares the mixture with closed forms and with statistics in f64.

use burn::tensor::{DType, Device, Tensor, TensorData};
use divot_gmm::{Draw, Gmm, GmmConfig, Noise, SampleOptions, TokenHead};

const K: usize = 4;
const D: usize = 3;

fn head() -> Gmm {
    GmmConfig::new().with_num_components(K).with_dim(D).init()
}

fn values<const R: usize>(x: &Tensor<R>) -> Vec<f64> {
    x.to_data().iter::<f64>().collect()
}

/// The parameters of a token: `[component][dim]`, and one logit per component.
#[derive(Clone)]
struct Params {
    means: [[f32; D]; K],
    raw_variances: [[f32; D]; K],
    logits: [f32; K],
}

impl Params {
    fn random(seed: u64) -> Self {
        let mut noise = Noise::new(seed);
        let mut draw = || {
            let x = noise.normal([K * D], &Device::flex());
            let x: Vec<f32> = x.to_data().iter::<f32>().collect();
            x
        };
        let matrix = |x: Vec<f32>| std::array::from_fn(|k| std::array::from_fn(|d| x[k * D + d]));
        let (means, raw_variances) = (matrix(draw()), matrix(draw()));
        let logits = draw();
        Self {
            means,
            raw_variances,
            logits: std::array::from_fn(|k| logits[k]),
        }
    }

    /// Changes the first coordinate so that it identifies the component.
    fn separated(mut self) -> Self {
        for k in 0..K {
            self.means[k][0] = 10.0 * k as f32;
            self.raw_variances[k][0] = -8.0;
        }
        self
    }

    fn tensor(&self, device: &Device) -> Tensor<3> {
        let mut all = self.means.concat();
        all.extend(self.raw_variances.concat());
        all.extend(self.logits);
        Tensor::from_data(TensorData::new(all, [1, 1, (2 * D + 1) * K]), device)
    }

    fn probabilities(&self) -> [f64; K] {
        let largest = self.logits.iter().copied().fold(f32::MIN, f32::max);
        let terms = self.logits.map(|x| f64::from(x - largest).exp());
        terms.map(|term| term / terms.iter().sum::<f64>())
    }

    fn variance(&self, k: usize, d: usize) -> f64 {
        softplus(self.raw_variances[k][d]).max(1e-5)
    }

    /// Returns log p(target).
    fn log_likelihood(&self, target: &[f64]) -> f64 {
        let joint = self.joint(target);
        let largest = joint.iter().copied().fold(f64::MIN, f64::max);
        largest + joint.iter().map(|x| (x - largest).exp()).sum::<f64>().ln()
    }

    /// Returns the logarithm of probability times density, for each component.
    fn joint(&self, target: &[f64]) -> [f64; K] {
        let largest = f64::from(self.logits.iter().copied().fold(f32::MIN, f32::max));
        let total: f64 = self
            .logits
            .iter()
            .map(|&x| (f64::from(x) - largest).exp())
            .sum();
        std::array::from_fn(|k| {
            let log_density: f64 = (0..D)
                .map(|d| {
                    let variance = self.variance(k, d);
                    let offset = target[d] - f64::from(self.means[k][d]);
                    -0.5 * (offset * offset / variance + (std::f64::consts::TAU * variance).ln())
                })
                .sum();
            f64::from(self.logits[k]) - largest - total.ln() + log_density
        })
    }

    /// Returns the gradient of −log p(target), in the order of the parameters.
    fn gradient(&self, target: &[f64]) -> Vec<f64> {
        let log_likelihood = self.log_likelihood(target);
        let responsibilities = self.joint(target).map(|x| (x - log_likelihood).exp());
        let mut of_means = Vec::new();
        let mut of_raw_variances = Vec::new();
        for (k, responsibility) in responsibilities.into_iter().enumerate() {
            for (d, target) in target.iter().enumerate() {
                let variance = self.variance(k, d);
                let offset = target - f64::from(self.means[k][d]);
                of_means.push(responsibility * -offset / variance);
                let raw = self.raw_variances[k][d];
                let slope = if softplus(raw) < 1e-5 {
                    0.0
                } else {
                    1.0 / (1.0 + f64::from(-raw).exp())
                };
                let of_variance = 0.5 * (1.0 - offset * offset / variance) / variance;
                of_raw_variances.push(responsibility * of_variance * slope);
            }
        }
        let mut gradient = [of_means, of_raw_variances].concat();
        let probabilities = self.probabilities();
        gradient.extend((0..K).map(|k| probabilities[k] - responsibilities[k]));
        gradient
    }
}

fn softplus(x: f32) -> f64 {
    let x = f64::from(x);
    x.max(0.0) + (-x.abs()).exp().ln_1p()
}

/// Compares the loss and its gradient with the closed forms, for a batch of two tokens.
fn check_loss(params: [Params; 2], targets: [[f32; D]; 2]) {
    let device = Device::flex().autodiff();
    let input = Tensor::cat(params.iter().map(|p| p.tensor(&device)).collect(), 1).require_grad();
    let target = Tensor::<3>::from_data([targets], &device);
    let loss = head()
        .loss(input.clone(), target, &mut Noise::new(0))
        .mean();
    let gradient = input.grad(&loss.backward()).unwrap();

    let targets = targets.map(|target| target.map(f64::from));
    let scale = 1.0 / (targets.len() * D) as f64;
    let tokens = || params.iter().zip(&targets);
    let expected: f64 = tokens().map(|(p, t)| -p.log_likelihood(t) * scale).sum();
    let loss: f64 = loss.into_scalar();
    assert!(
        (loss - expected).abs() <= 1e-5 * expected.abs().max(1.0),
        "{loss}, not {expected}"
    );

    let expected: Vec<f64> = tokens().flat_map(|(p, t)| p.gradient(t)).collect();
    for (i, (found, expected)) in values(&gradient).iter().zip(expected).enumerate() {
        let expected = expected * scale;
        assert!(
            (found - expected).abs() <= 1e-4 * expected.abs() + 1e-6,
            "gradient {i}: {found}, not {expected}"
        );
    }
}

#[test]
fn loss_and_gradient() {
    check_loss(
        [Params::random(1), Params::random(2)],
        [[0.3, -0.7, 1.1], [2.0, 0.0, -1.0]],
    );
}

#[test]
fn loss_and_gradient_far_from_every_mean() {
    check_loss(
        [Params::random(3), Params::random(4)],
        [[1e4, -1e4, 1e4], [0.0, 300.0, 0.0]],
    );
}

#[test]
fn loss_and_gradient_of_extreme_logits() {
    let mut params = [Params::random(5), Params::random(6)];
    params[0].logits = [1e4, -1e4, 0.0, 1e4];
    params[1].logits = [-1e4, -1e4, 20.0, 0.0];
    check_loss(params, [[0.3, -0.7, 1.1], [0.5, 0.0, -1.0]]);
}

#[test]
fn loss_and_gradient_of_extreme_variances() {
    let mut params = [Params::random(7), Params::random(8)];
    params[0].raw_variances = [[1e4; D], [-1e4; D], [-12.0, 21.0, 19.0], [-11.0, 1e4, -1e4]];
    // All components have the smallest possible variance.
    params[1].raw_variances = [[-1e4; D], [-1e4; D], [-100.0; D], [-20.0; D]];
    check_loss(params, [[0.3, -0.7, 1.1], [1e3, 0.0, -1.0]]);
}

#[test]
fn half_precision_parameters_are_computed_in_f32() {
    let device = Device::flex().autodiff();
    let mut params = Params::random(9);
    params.raw_variances[0] = [1e4, -1e4, 20.0];
    params.logits[1] = 1e4;
    let target = Tensor::<3>::from_data([[[0.3, -0.7, 1.1]]], &device);
    let run = |params: Tensor<3>| {
        let params = params.require_grad();
        let loss = head()
            .loss(params.clone(), target.clone(), &mut Noise::new(0))
            .mean();
        let gradient = params.grad(&loss.backward()).unwrap();
        let sample = head().sample(params, &SampleOptions::new(), &mut Noise::new(0));
        assert_eq!((loss.dtype(), sample.dtype()), (DType::F32, DType::F32));
        (
            loss.into_scalar::<f32>(),
            values(&sample),
            values(&gradient),
        )
    };
    for (dtype, precision) in [(DType::BF16, 1.0 / 256.0), (DType::F16, 1.0 / 2048.0)] {
        let half = params.tensor(&device).cast(dtype);
        let full = half.clone().cast(DType::F32);
        let (half, full) = (run(half), run(full));
        assert_eq!((half.0, half.1), (full.0, full.1));
        // The gradient is rounded to the parameters' dtype only at the end.
        for (half, full) in half.2.iter().zip(full.2) {
            assert!(
                (half - full).abs() <= precision * full.abs() + 1e-6,
                "{half} {full}"
            );
        }
    }
}

#[test]
#[should_panic(expected = "targets of a mixture")]
fn targets_that_would_broadcast_are_refused() {
    let device = Device::flex();
    let params = Params::random(1).tensor(&device).repeat_dim(1, 2);
    head().loss(
        params,
        Tensor::zeros([1, 1, D], &device),
        &mut Noise::new(0),
    );
}

/// Expected moments of 200,000 samples: of each coordinate, and of pairs of coordinates.
struct Moments {
    mean: [f64; D],
    variance: [f64; D],
    /// Fourth central moment.
    fourth: [f64; D],
    /// Covariance of coordinates 1 and 2.
    covariance: f64,
    /// Mean of the product of the squared deviations of coordinates 1 and 2.
    squares: f64,
}

impl Moments {
    /// Moments of the mixture.
    fn component(params: &Params, var_scale: f64) -> Self {
        let probabilities = params.probabilities();
        let sum = |f: &dyn Fn(usize) -> f64| (0..K).map(|k| probabilities[k] * f(k)).sum::<f64>();
        let mean: [f64; D] = std::array::from_fn(|d| sum(&|k| f64::from(params.means[k][d])));
        let offset = |k: usize, d: usize| f64::from(params.means[k][d]) - mean[d];
        let variance = |k, d| params.variance(k, d) * var_scale;
        let second = |k, d| variance(k, d) + offset(k, d).powi(2);
        let fourth = |k, d| {
            let (v, o) = (variance(k, d), offset(k, d).powi(2));
            3.0 * v * v + 6.0 * v * o + o * o
        };
        Self {
            mean,
            variance: std::array::from_fn(|d| sum(&|k| second(k, d))),
            fourth: std::array::from_fn(|d| sum(&|k| fourth(k, d))),
            covariance: sum(&|k| offset(k, 1) * offset(k, 2)),
            squares: sum(&|k| second(k, 1) * second(k, 2)),
        }
    }

    /// Moments of the weighted sum of one sample from each component, which is Gaussian.
    fn weighted(params: &Params, var_scale: f64) -> Self {
        let probabilities = params.probabilities();
        let sum = |f: &dyn Fn(usize) -> f64| (0..K).map(f).sum::<f64>();
        let variance = std::array::from_fn(|d| {
            sum(&|k| probabilities[k].powi(2) * params.variance(k, d) * var_scale)
        });
        Self {
            mean: std::array::from_fn(|d| {
                sum(&|k| probabilities[k] * f64::from(params.means[k][d]))
            }),
            variance,
            fourth: variance.map(|v| 3.0 * v * v),
            covariance: 0.0,
            squares: variance[1] * variance[2],
        }
    }
}

/// Draws 200,000 tokens and checks their moments and the independence of neighbouring tokens.
fn check_draws(params: &Params, draw: Draw, var_scale: f64, seed: u64) -> Vec<[f64; D]> {
    let n = 200_000;
    let device = Device::flex();
    let input = params.tensor(&device).repeat_dim(1, n);
    let options = SampleOptions::new()
        .with_var_scale(var_scale)
        .with_draw(draw);
    let samples = values(&head().sample(input, &options, &mut Noise::new(seed)));
    let samples: Vec<[f64; D]> = samples.chunks(D).map(|x| [x[0], x[1], x[2]]).collect();
    assert_eq!(samples.len(), n);

    let expected = match draw {
        Draw::Component => Moments::component(params, var_scale),
        _ => Moments::weighted(params, var_scale),
    };
    let check = |what: &str, found: f64, expected: f64, error: f64| {
        assert!(
            (found - expected).abs() < 4.0 * error,
            "{what}: {found}, not {expected}, standard error {error}"
        );
    };
    let count = n as f64;
    let mean = |f: &dyn Fn(&[f64; D]) -> f64| samples.iter().map(f).sum::<f64>() / count;
    for d in 0..D {
        let (variance, average) = (expected.variance[d], expected.mean[d]);
        check("mean", mean(&|x| x[d]), average, (variance / count).sqrt());
        // The known mean is used, so that the standard error is exact.
        let error = ((expected.fourth[d] - variance * variance) / count).sqrt();
        check(
            "variance",
            mean(&|x| (x[d] - average).powi(2)),
            variance,
            error,
        );

        let product = |pair: &[[f64; D]]| (pair[0][d] - average) * (pair[1][d] - average);
        let neighbours = samples.windows(2).map(product).sum::<f64>() / count;
        check("neighbours", neighbours, 0.0, variance / count.sqrt());
    }
    let offsets = |x: &[f64; D]| (x[1] - expected.mean[1]) * (x[2] - expected.mean[2]);
    let error = ((expected.squares - expected.covariance.powi(2)) / count).sqrt();
    check("covariance", mean(&offsets), expected.covariance, error);
    samples
}

/// Ordinary and extreme mixtures.
fn cases() -> Vec<(Params, f64)> {
    let ordinary = Params::random(11);
    let mut dominant = Params::random(12);
    dominant.logits = [0.0, 50.0, 0.0, -50.0];
    let mut equal = Params::random(13);
    equal.logits = [3.0; K];
    let mut uneven = Params::random(14);
    uneven.raw_variances[0] = [-50.0; D];
    uneven.raw_variances[1] = [1e4; D];
    vec![
        (ordinary.clone(), 1.0),
        (ordinary, 0.1),
        (dominant.clone(), 1.0),
        (dominant, 0.1),
        (equal.clone(), 1.0),
        (equal, 0.1),
        (uneven.clone(), 1.0),
        (uneven, 0.1),
    ]
}

#[test]
fn samples_follow_the_mixture() {
    for (seed, (params, var_scale)) in cases().into_iter().enumerate() {
        check_draws(&params, Draw::Component, var_scale, seed as u64);
    }
}

#[test]
fn components_are_as_frequent_as_probable() {
    for (seed, (params, var_scale)) in cases().into_iter().enumerate() {
        let params = params.separated();
        let samples = check_draws(&params, Draw::Component, var_scale, 100 + seed as u64);
        let n = samples.len() as f64;
        for (k, probability) in params.probabilities().into_iter().enumerate() {
            let of_component = samples.iter().filter(|x| (x[0] / 10.0).round() == k as f64);
            let share = of_component.count() as f64 / n;
            let error = (probability * (1.0 - probability) / n).sqrt();
            assert!(
                (share - probability).abs() <= 4.0 * error,
                "{share} of the samples, not {probability}"
            );
        }
    }
}

#[test]
fn weighted_samples_follow_their_gaussian() {
    for (seed, (params, var_scale)) in cases().into_iter().enumerate() {
        check_draws(&params, Draw::Weighted, var_scale, 200 + seed as u64);
    }
}

#[test]
fn the_expected_token_is_the_mean() {
    let params = Params::random(15);
    let options = SampleOptions::new().with_draw(Draw::Expected);
    let mean = head().sample(params.tensor(&Device::flex()), &options, &mut Noise::new(0));
    let expected = Moments::component(&params, 1.0).mean;
    for (found, expected) in values(&mean).iter().zip(expected) {
        assert!((found - expected).abs() < 1e-6);
    }
}

/// Each token has a different single component. Tokens must not mix up their parameters.
#[test]
fn each_token_has_its_own_mixture() {
    let device = Device::flex();
    let token = |value: f32| {
        let mut params = Params::random(16);
        params.means = [[value, value + 0.25, value + 0.5]; K];
        params.raw_variances = [[-100.0; D]; K];
        params.tensor(&device)
    };
    let row = |first: f32| Tensor::cat(vec![token(first), token(first + 1.0)], 1);
    let params = Tensor::cat(vec![row(0.0), row(2.0)], 0);
    for draw in [Draw::Component, Draw::Weighted, Draw::Expected] {
        let options = SampleOptions::new().with_draw(draw);
        let samples = values(&head().sample(params.clone(), &options, &mut Noise::new(0)));
        for (i, sample) in samples.iter().enumerate() {
            let expected = (i / D) as f64 + 0.25 * (i % D) as f64;
            assert!((sample - expected).abs() < 0.02, "{draw:?}: {samples:?}");
        }
    }
}
