//! Properties of all heads, and tests of the two alternatives to the mixture.

use burn::config::{Config, config_to_json};
use burn::optim::{AdamConfig, GradientsParams};
use burn::tensor::{DType, Device, Tensor};
use divot_gmm::{
    DenoisingMlpConfig, Draw, GmmConfig, HeadConfig, Noise, Prediction, RegressionConfig,
    SampleOptions, Schedule, TokenHead,
};
use divot_nn::CheckSizes;

fn small_denoiser() -> DenoisingMlpConfig {
    DenoisingMlpConfig::new()
        .with_dim(3)
        .with_cond_dim(5)
        .with_width(32)
        .with_depth(2)
        .with_sampling_steps(10)
}

fn small_heads() -> [HeadConfig; 3] {
    [
        HeadConfig::Gmm(GmmConfig::new().with_num_components(2).with_dim(3)),
        HeadConfig::Regression(RegressionConfig::new().with_dim(3)),
        HeadConfig::Denoising(small_denoiser()),
    ]
}

#[test]
fn configs_come_back_from_json() {
    for config in small_heads() {
        let json = config_to_json(&config);
        assert_eq!(HeadConfig::load_binary(json.as_bytes()).unwrap(), config);
    }
    // The form in checkpoints.
    let json = r#"{"Denoising": {"dim": 8, "cond_dim": 4, "width": 16, "depth": 1,
        "prediction": "V", "schedule": "Linear", "train_steps": 20, "sampling_steps": 5,
        "timesteps_per_token": 2}}"#;
    let config = DenoisingMlpConfig::new()
        .with_dim(8)
        .with_cond_dim(4)
        .with_width(16)
        .with_depth(1)
        .with_prediction(Prediction::V)
        .with_schedule(Schedule::Linear)
        .with_train_steps(20)
        .with_sampling_steps(5)
        .with_timesteps_per_token(2);
    let loaded = HeadConfig::load_binary(json.as_bytes()).unwrap();
    assert_eq!(loaded, HeadConfig::Denoising(config));
}

#[test]
fn sizes_that_cannot_be_are_refused() {
    for config in small_heads() {
        config.check_sizes().unwrap();
    }
    for config in [
        HeadConfig::Gmm(GmmConfig::new().with_num_components(0)),
        HeadConfig::Gmm(GmmConfig::new().with_dim(0)),
        HeadConfig::Regression(RegressionConfig::new().with_dim(0)),
        HeadConfig::Denoising(small_denoiser().with_width(0)),
        HeadConfig::Denoising(small_denoiser().with_sampling_steps(0)),
        HeadConfig::Denoising(small_denoiser().with_sampling_steps(1001)),
        HeadConfig::Denoising(small_denoiser().with_timesteps_per_token(0)),
        HeadConfig::Denoising(small_denoiser().with_depth(100_000)),
        HeadConfig::Denoising(small_denoiser().with_timestep_width(3)),
    ] {
        assert!(config.check_sizes().is_err(), "{config:?}");
    }
}

#[test]
fn the_released_mixture_has_8208_parameters() {
    let head = HeadConfig::Gmm(GmmConfig::new()).init(&Device::flex());
    assert_eq!((head.params_dim(), head.dim()), (8208, 256));
}

#[test]
fn shapes_and_dtypes() {
    let device = Device::flex();
    for config in small_heads() {
        let head = config.init(&device);
        assert_eq!(head.dim(), 3);
        let params = Noise::new(1)
            .normal([2, 4, head.params_dim()], &device)
            .cast(DType::BF16);
        let mut noise = Noise::new(2);
        let sample = head.sample(params.clone(), &SampleOptions::new(), &mut noise);
        assert_eq!(sample.dims(), [2, 4, 3]);
        let loss = head
            .loss(params, sample.clone().cast(DType::BF16), &mut noise)
            .mean();
        assert_eq!((sample.dtype(), loss.dtype()), (DType::F32, DType::F32));
        assert!(loss.into_scalar::<f32>().is_finite());
    }
}

#[test]
fn a_seed_gives_the_same_tokens() {
    let device = Device::flex();
    let [gmm, _, denoising] = small_heads();
    for (config, draw) in [
        (&gmm, Draw::Component),
        (&gmm, Draw::Weighted),
        (&denoising, Draw::Component),
    ] {
        let head = config.init(&device);
        let params = Noise::new(1).normal([1, 4, head.params_dim()], &device);
        let sample = |seed| {
            let options = SampleOptions::new().with_draw(draw);
            let sample = head.sample(params.clone(), &options, &mut Noise::new(seed));
            sample.into_data()
        };
        assert_eq!(sample(7), sample(7));
        assert_ne!(sample(7), sample(8));
    }
}

#[test]
fn regression_is_the_mean_squared_error() {
    let device = Device::flex();
    let head = RegressionConfig::new().with_dim(2).init();
    let params = Tensor::<3>::from_floats([[[1.0, -2.0], [0.5, 4.0]]], &device);
    let targets = Tensor::<3>::from_floats([[[0.0, -2.0], [2.5, 1.0]]], &device);
    let mut noise = Noise::new(0);
    let loss = head.loss(params.clone(), targets, &mut noise).mean();
    assert_eq!(loss.into_scalar::<f32>(), (1.0 + 4.0 + 9.0) / 4.0);
    let sample = head.sample(params.clone(), &SampleOptions::new(), &mut noise);
    assert_eq!(sample.into_data(), params.into_data());
}

/// The first prediction is zero, so the first loss of ε is its mean square.
#[test]
fn an_untrained_denoiser_predicts_nothing() {
    let device = Device::flex();
    let head = small_denoiser().init(&device);
    let loss = head.loss(
        Tensor::ones([50, 40, 5], &device),
        Tensor::ones([50, 40, 3], &device),
        &mut Noise::new(3),
    );
    let loss = loss.mean();
    // Four timesteps for each of 2000 tokens of three numbers.
    let error = (2.0 / (4.0 * 2000.0 * 3.0f32)).sqrt();
    assert!((loss.into_scalar::<f32>() - 1.0).abs() < 4.0 * error);
}

/// Tokens lie around 1.5 or −1.5, depending on the condition.
#[test]
fn a_denoiser_learns_where_its_condition_says() {
    let device = Device::flex().autodiff();
    for prediction in [Prediction::Epsilon, Prediction::V] {
        device.seed(4);
        let mut noise = Noise::new(5);
        let mut head = DenoisingMlpConfig::new()
            .with_dim(1)
            .with_cond_dim(1)
            .with_width(32)
            .with_depth(2)
            .with_prediction(prediction)
            .with_sampling_steps(50)
            .init(&device);
        let condition = Tensor::<3>::from_floats([[[-1.0]], [[1.0]]], &device);
        let condition = condition.repeat_dim(1, 64);
        let mut optimizer = AdamConfig::new().init();
        for _ in 0..500 {
            let targets = condition.clone() * 1.5 + noise.normal([2, 64, 1], &device) * 0.4;
            let loss = head.loss(condition.clone(), targets, &mut noise).mean();
            let gradients = GradientsParams::from_grads(loss.backward(), &head);
            head = optimizer.step(3e-3, head, gradients);
        }

        let sample = |temperature: f64, noise: &mut Noise| {
            let options = SampleOptions::new().with_temperature(temperature);
            let condition = condition.clone().repeat_dim(1, 20);
            let samples = head.sample(condition.clone(), &options, noise);
            let centred = samples - condition.clone() * 1.5;
            let (variance, mean) = centred.var_mean(1);
            let numbers = |x: Tensor<3>| x.to_data().iter::<f64>().collect::<Vec<_>>();
            (numbers(mean), numbers(variance))
        };
        let (means, variances) = sample(1.0, &mut noise);
        let (_, cold) = sample(0.5, &mut noise);
        for side in 0..2 {
            let case = format!("{prediction:?}: {means:?} {variances:?} {cold:?}");
            assert!(means[side].abs() < 0.2, "{case}");
            assert!((variances[side].sqrt() - 0.4).abs() < 0.12, "{case}");
            assert!(cold[side] < 0.7 * variances[side], "{case}");
        }

        // This gradient trains the language model.
        let condition = condition.clone().require_grad();
        let loss = head
            .loss(condition.clone(), condition.clone() * 1.5, &mut noise)
            .mean();
        let gradient = condition.grad(&loss.backward()).unwrap();
        assert!(gradient.abs().max().into_scalar::<f32>() > 1e-6);
    }
}
