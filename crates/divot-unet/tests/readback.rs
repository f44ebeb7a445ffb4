//! Sampling never waits for a value. It runs on Burn's capture device, which records operations instead of
//! computing them, so that only uploaded tensors can be read.
//!
//! The test detects every read of a computed tensor (`into_data`, `into_scalar`, comparing, printing). It
//! does not detect a bare `Device::sync`, which does nothing on that device.

use std::ops::ControlFlow;
use std::panic::{AssertUnwindSafe, catch_unwind};

use burn::tensor::{Device, Tensor};
use divot_nn::Noise;
use divot_unet::{
    Denoiser, NoiseSchedule, NoiseScheduleConfig, SamplerConfig, SamplerStep, Solver, Spacing,
    UnetConfig,
};

const SOLVERS: [Solver; 4] = [
    Solver::Ddim { eta: 0.0 },
    Solver::Ddim { eta: 1.0 },
    Solver::DpmSolverPlusPlus,
    Solver::UniPc,
];

/// Samples a clip with a small network on the capture device. Returns the number of operations, or the error
/// of reading a tensor.
fn record(
    solver: Solver,
    guided: bool,
    steps: usize,
    mut on_step: impl FnMut(SamplerStep) -> ControlFlow<()>,
) -> Result<usize, String> {
    let schedule = NoiseSchedule::new(&NoiseScheduleConfig::new());
    let sampler = SamplerConfig::new(steps)
        .with_solver(solver)
        .with_spacing(Some(Spacing::UniformTrailing))
        .init(&schedule)
        .unwrap();
    let config = UnetConfig::new(32, vec![1, 2], 8)
        .with_num_res_blocks(1)
        .with_attention_resolutions(vec![1])
        .with_head_dim(16);
    let device = Device::capture();
    let recorded = catch_unwind(AssertUnwindSafe(|| {
        device
            .capture_scope(|scope| {
                let unet = config.init(&device);
                let mut noise = Noise::new(1);
                let shape = [1, 4, 2, 8, 8];
                let context = || Tensor::<3>::ones([1, 125, 8], &device) * 0.5;
                let mut denoiser = Denoiser::new(&unet, context(), 3.0);
                if guided {
                    denoiser = denoiser.with_guidance(context(), 7.5, 0.7);
                }
                // Multiplied, so that it is a computed tensor. An uploaded one could be read.
                let start = noise.normal::<5>(shape, &device) * 1.5;
                let clip = sampler.sample(
                    start,
                    |latents, timestep| denoiser.predict(latents, timestep),
                    |_| noise.normal(shape, &device) * 1.5,
                    &mut on_step,
                );
                assert_eq!(clip.unwrap().dims(), shape);
                scope.complete([], [])
            })
            .unwrap()
    }));
    match recorded {
        Ok(recorded) => Ok(recorded.graph.operations.len()),
        Err(panic) => Err(panic
            .downcast_ref::<String>()
            .map_or_else(|| format!("{panic:?}"), String::clone)),
    }
}

#[test]
fn nothing_is_read_back_while_sampling() {
    for solver in SOLVERS {
        for guided in [false, true] {
            let count = |steps: usize| {
                record(solver, guided, steps, |_| ControlFlow::Continue(()))
                    .unwrap_or_else(|read| panic!("{solver:?}, guided {guided}: {read}"))
            };
            // Each step was recorded, including the network.
            let (two, four) = (count(2), count(4));
            assert!(four > two + 2 * 50, "{solver:?}: {two}, {four}");
        }
    }
}

/// Checks that the test above fails if the loop reads a tensor.
#[test]
fn a_read_is_noticed() {
    for solver in SOLVERS {
        let read = record(solver, true, 4, |step| {
            drop(step.pred_x0.into_data());
            ControlFlow::Continue(())
        });
        let message = read.unwrap_err();
        assert!(message.contains("no concrete value"), "{message}");
    }
}
