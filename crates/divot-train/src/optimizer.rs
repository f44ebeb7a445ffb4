//! AdamW over a whole model: parameter groups, gradient clipping, and a state that can be saved.

use std::collections::BTreeMap;

use burn::module::{Module, ModuleMapper, ModuleVisitor, Param};
use burn::optim::{AdamWState, DynState, GradientsParams, Optimizer as _};
use burn::tensor::{DType, GradientCheckpointingStrategy, Tensor};
use divot::weights::ParamPath;
use divot_nn::optim::{AdamW, AdamWConfig};
use serde::Deserialize;

/// Settings of the optimiser. The defaults are those of the released training (FACTS: "LLM").
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct OptimizerConfig {
    /// Decay rates of the two moments.
    pub betas: [f32; 2],
    /// Added to the denominator.
    pub epsilon: f32,
    /// Weight decay of matrices and convolutions. Norms, biases, embeddings and learned queries have none.
    pub weight_decay: f32,
    /// Gradients are scaled down so that their global norm is at most this; 0 leaves them as they are.
    pub max_gradient_norm: f64,
}

impl Default for OptimizerConfig {
    fn default() -> Self {
        Self {
            betas: [0.9, 0.98],
            epsilon: 1e-6,
            weight_decay: 0.05,
            max_gradient_norm: 1.0,
        }
    }
}

/// AdamW with two groups of parameters. Its state is kept by the parameters' paths.
pub struct Optimizer {
    config: OptimizerConfig,
    decayed: AdamW,
    plain: AdamW,
    pub(crate) states: BTreeMap<String, DynState>,
}

impl Optimizer {
    /// An optimiser without a state.
    pub fn new(config: &OptimizerConfig) -> Self {
        let [beta_1, beta_2] = config.betas;
        let adamw = AdamWConfig::new()
            .with_beta_1(beta_1)
            .with_beta_2(beta_2)
            .with_epsilon(config.epsilon)
            .with_weight_decay(config.weight_decay);
        Self {
            config: config.clone(),
            decayed: adamw.build(),
            plain: adamw.with_weight_decay(0.0).build(),
            states: BTreeMap::new(),
        }
    }

    /// One step with the learning rate `rate`. `norm` is the gradients' [`gradient_norm`].
    ///
    /// Parameters without a gradient stay as they are, and so does their state.
    pub fn step<M: Module>(
        &mut self,
        rate: f64,
        model: M,
        gradients: GradientsParams,
        norm: f64,
    ) -> M {
        let max = self.config.max_gradient_norm;
        // As `torch.nn.utils.clip_grad_norm_` does it.
        let scale = match max > 0.0 {
            true => (max / (norm + 1e-6)).min(1.0),
            false => 1.0,
        };
        model.map(&mut Step {
            optimizer: self,
            gradients,
            rate,
            scale,
            path: ParamPath::default(),
        })
    }
}

struct Step<'a> {
    optimizer: &'a mut Optimizer,
    gradients: GradientsParams,
    rate: f64,
    scale: f64,
    path: ParamPath,
}

impl ModuleMapper for Step<'_> {
    fn enter_module(&mut self, name: &str, container: &str) {
        self.path.enter(name, container);
    }

    fn exit_module(&mut self, _name: &str, _container: &str) {
        self.path.exit();
    }

    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let Some(mut gradient) = self.gradients.remove::<D>(param.id) else {
            return param;
        };
        if self.scale < 1.0 {
            gradient = gradient * self.scale;
        }
        let path = self.path.path();
        let Optimizer {
            decayed,
            plain,
            states,
            ..
        } = &mut *self.optimizer;
        let adamw = if decays(self.path.container(), D) {
            decayed
        } else {
            plain
        };
        let state = states.remove(&path);
        let state = state.map(|state| state.downcast::<AdamWState<D>>());
        param.map(|tensor| {
            let strategy = tensor.gradient_checkpointing_strategy();
            let (tensor, state) = adamw.step(self.rate, tensor.inner(), gradient, state);
            if let Some(state) = state {
                states.insert(path, DynState::create(state, D));
            }
            trained(tensor, strategy)
        })
    }
}

/// A new value of a trained parameter, whose old value had this strategy of gradient checkpointing.
pub(crate) fn trained<const D: usize>(
    value: Tensor<D>,
    strategy: Option<GradientCheckpointingStrategy>,
) -> Tensor<D> {
    let value = value.autodiff();
    let value = match strategy {
        Some(strategy) => value.with_gradient_checkpointing_strategy(strategy),
        None => value,
    };
    value.require_grad()
}

/// Whether weight decay applies to a parameter: to the weights of linear layers (low-rank ones too) and
/// convolutions. It does not apply to norms, biases, scales, embeddings, positions and learned queries.
fn decays(container: &str, rank: usize) -> bool {
    let layers = ["Struct:Linear", "Struct:Conv"];
    rank > 1 && layers.iter().any(|layer| container.starts_with(layer))
}

/// The norm of all gradients together, as one vector.
pub fn gradient_norm<M: Module>(model: &M, gradients: &GradientsParams) -> f64 {
    struct Squares<'a> {
        gradients: &'a GradientsParams,
        sums: Vec<Tensor<1>>,
    }
    impl ModuleVisitor for Squares<'_> {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            if let Some(gradient) = self.gradients.get::<D>(param.id) {
                self.sums.push(gradient.cast(DType::F32).square().sum());
            }
        }
    }
    let mut squares = Squares {
        gradients,
        sums: Vec::new(),
    };
    model.visit(&mut squares);
    if squares.sums.is_empty() {
        return 0.0;
    }
    let sums = Tensor::cat(squares.sums, 0).into_data();
    sums.iter::<f64>().sum::<f64>().sqrt()
}
