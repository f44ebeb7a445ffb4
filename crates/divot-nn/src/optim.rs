//! AdamW with a fused step on the CPU.

use burn::config::Config;
use burn::optim::{AdamWState, LearningRate, ModuleOptimizer, Optimizer};
use burn::tensor::{Device, Tensor};

/// Settings of [`AdamW`]. The defaults are those of PyTorch.
#[derive(Config, Debug)]
pub struct AdamWConfig {
    /// Decay rate of the first moment, from 0 to 1.
    #[config(default = 0.9)]
    pub beta_1: f32,
    /// Decay rate of the second moment, from 0 to 1.
    #[config(default = 0.999)]
    pub beta_2: f32,
    /// Added to the denominator, so that it is never 0.
    #[config(default = 1e-8)]
    pub epsilon: f32,
    /// Weight decay of a step, as a share of the parameter. It is multiplied by the learning rate.
    #[config(default = 0.01)]
    pub weight_decay: f32,
}

impl AdamWConfig {
    /// Creates an optimiser for whole modules.
    pub fn init(&self) -> ModuleOptimizer {
        ModuleOptimizer::from(self.build())
    }

    /// Creates an optimiser for a group of parameters, for [`ModuleOptimizer::with_group`].
    pub fn build(&self) -> AdamW {
        AdamW(self.clone())
    }

    fn burn(&self) -> burn::optim::AdamW {
        burn::optim::AdamWConfig::new()
            .with_beta_1(self.beta_1)
            .with_beta_2(self.beta_2)
            .with_epsilon(self.epsilon)
            .with_weight_decay(self.weight_decay)
            .build()
    }
}

/// AdamW ("Decoupled Weight Decay Regularization", arXiv:1711.05101), with the state of Burn's.
///
/// On Burn's CPU backend, in f32 and with the feature `flex`, a step takes three passes over a parameter
/// and its moments instead of a dozen. Elsewhere it is Burn's step.
#[derive(Debug, Clone)]
pub struct AdamW(AdamWConfig);

impl Optimizer for AdamW {
    type State<const D: usize> = AdamWState<D>;

    fn step<const D: usize>(
        &self,
        lr: LearningRate,
        tensor: Tensor<D>,
        grad: Tensor<D>,
        state: Option<Self::State<D>>,
    ) -> (Tensor<D>, Option<Self::State<D>>) {
        // The first step is Burn's, which creates the state.
        let Some(mut state) = state else {
            return self.0.burn().step(lr, tensor, grad, None);
        };
        #[cfg(feature = "flex")]
        if crate::kernels::apply(&tensor) && crate::kernels::apply(&grad) {
            use crate::kernels::optim::{moment, update};
            let AdamWConfig {
                beta_1,
                beta_2,
                epsilon,
                weight_decay,
            } = self.0;
            let momentum = &mut state.momentum;
            momentum.time += 1;
            momentum.moment_1 = moment(momentum.moment_1.clone(), grad.clone(), beta_1, false);
            momentum.moment_2 = moment(momentum.moment_2.clone(), grad, beta_2, true);
            let settled = |beta: f32| 1.0 - beta.powi(momentum.time as i32);
            let tensor = update(
                [tensor, momentum.moment_1.clone(), momentum.moment_2.clone()],
                [settled(beta_1), settled(beta_2)],
                epsilon,
                lr as f32,
                (1.0 - lr * f64::from(weight_decay)) as f32,
            );
            return (tensor, Some(state));
        }
        let _ = &mut state;
        self.0.burn().step(lr, tensor, grad, Some(state))
    }

    fn to_device<const D: usize>(state: Self::State<D>, device: &Device) -> Self::State<D> {
        burn::optim::AdamW::to_device(state, device)
    }
}
