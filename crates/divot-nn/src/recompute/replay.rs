//! A block on a graph of its own.

use std::cell::Cell;

use burn::backend::DispatchTensor;
use burn::module::{Module, ModuleMapper, ModuleVisitor, Param, ParamId};
use burn::tensor::{Bool, Device, Distribution, Gradients, Int, Tensor};

use super::{Inputs, TensorMapper};

/// What the backward pass needs to compute a block with a result of rank `D` again.
pub(super) struct Replay<M, I, F, const D: usize> {
    block: M,
    inputs: I,
    forward: F,
    /// Which inputs have a gradient, in order.
    tracked: Vec<bool>,
    /// The parameters that are trained.
    trained: Vec<ParamId>,
    /// What the device's generator was seeded with, if the block draws dropout.
    seed: Option<u64>,
}

/// Gradients that a block found.
pub(super) struct Found {
    /// Of the inputs that have one, in order.
    pub inputs: Vec<DispatchTensor>,
    /// Of the trained parameters, in the order of the block's fields.
    pub parameters: Vec<(ParamId, DispatchTensor)>,
}

/// A [`Replay`] of any block.
pub(super) trait Backward: Send {
    /// Computes the block again and returns the gradients, from the gradient of its result.
    fn backward(self: Box<Self>, grad: DispatchTensor) -> Found;
}

impl<M, I, F, const D: usize> Replay<M, I, F, D>
where
    M: Module,
    I: Inputs,
    F: Fn(&M, I) -> Tensor<D>,
{
    /// Computes a block without a graph. Returns the result too.
    pub fn new(
        block: &M,
        inputs: I,
        tracked: Vec<bool>,
        trained: Vec<ParamId>,
        forward: F,
    ) -> (Self, Tensor<D>) {
        let block = block.clone().map(&mut Leaves { trained: &[] });
        let inputs = inputs.map(&mut Detached);
        let drawing = Scope::enter(Drawing::First);
        let output = forward(&block, inputs.clone()).inner();
        let replay = Self {
            block,
            inputs,
            forward,
            tracked,
            trained,
            seed: drawing.seed(),
        };
        (replay, output)
    }
}

impl<M, I, F, const D: usize> Backward for Replay<M, I, F, D>
where
    M: Module,
    I: Inputs,
    F: Fn(&M, I) -> Tensor<D> + Send,
{
    fn backward(self: Box<Self>, grad: DispatchTensor) -> Found {
        let block = self.block.map(&mut Leaves {
            trained: &self.trained,
        });
        let mut required = Required {
            tracked: self.tracked.into_iter(),
        };
        let inputs = self.inputs.map(&mut required);
        let output = {
            let _drawing = Scope::enter(match self.seed {
                Some(seed) => Drawing::Again(seed),
                None => Drawing::Outside,
            });
            (self.forward)(&block, inputs.clone())
        };
        if let Some(seed) = self.seed {
            // Otherwise what is drawn next would be what was drawn after the first pass.
            output.device().seed(!seed);
        }
        // The gradient of this sum is `grad`, whatever the sum.
        let grad = Tensor::<D>::from_dispatch(grad).autodiff();
        let depends = output.is_tracked();
        let mut gradients = depends.then(|| (output * grad).sum().backward());

        let mut of_inputs = OfInputs {
            gradients: gradients.as_mut(),
            found: Vec::new(),
        };
        inputs.map(&mut of_inputs);
        let inputs = of_inputs.found;
        let mut of_parameters = OfParameters {
            gradients: gradients.as_mut(),
            found: Vec::new(),
        };
        block.visit(&mut of_parameters);
        Found {
            inputs,
            parameters: of_parameters.found,
        }
    }
}

/// Makes parameters the leaves of a new graph, without gradient checkpointing. Those of `trained` have a gradient.
struct Leaves<'a> {
    trained: &'a [ParamId],
}

impl ModuleMapper for Leaves<'_> {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let leaf = param.val().inner().autodiff();
        let trained = self.trained.contains(&param.id);
        Param::initialized(param.id, leaf.set_require_grad(trained))
    }

    fn map_int<const D: usize>(&mut self, param: Param<Tensor<D, Int>>) -> Param<Tensor<D, Int>> {
        Param::initialized(param.id, param.val().inner().autodiff())
    }

    fn map_bool<const D: usize>(
        &mut self,
        param: Param<Tensor<D, Bool>>,
    ) -> Param<Tensor<D, Bool>> {
        Param::initialized(param.id, param.val().inner().autodiff())
    }
}

/// Takes tensors out of their graph.
struct Detached;

impl TensorMapper for Detached {
    fn map<const D: usize>(&mut self, tensor: Tensor<D>) -> Tensor<D> {
        tensor.inner().autodiff()
    }
}

/// Gives those inputs a gradient that had one.
struct Required {
    tracked: std::vec::IntoIter<bool>,
}

impl TensorMapper for Required {
    fn map<const D: usize>(&mut self, tensor: Tensor<D>) -> Tensor<D> {
        tensor.set_require_grad(self.tracked.next().unwrap_or_default())
    }
}

struct OfInputs<'a> {
    gradients: Option<&'a mut Gradients>,
    found: Vec<DispatchTensor>,
}

impl TensorMapper for OfInputs<'_> {
    fn map<const D: usize>(&mut self, tensor: Tensor<D>) -> Tensor<D> {
        if tensor.is_require_grad() {
            let gradients = self.gradients.as_deref_mut();
            let grad = gradients.and_then(|gradients| tensor.grad_remove(gradients));
            // An input that the result does not depend on.
            let grad = grad.unwrap_or_else(|| tensor.clone().inner().zeros_like());
            self.found.push(grad.into_dispatch());
        }
        tensor
    }
}

struct OfParameters<'a> {
    gradients: Option<&'a mut Gradients>,
    found: Vec<(ParamId, DispatchTensor)>,
}

impl ModuleVisitor for OfParameters<'_> {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        let gradients = self.gradients.as_deref_mut();
        if let Some(grad) = gradients.and_then(|gradients| param.val().grad_remove(gradients)) {
            self.found.push((param.id, grad.into_dispatch()));
        }
    }
}

/// How the block that this thread computes draws dropout.
#[derive(Debug, Clone, Copy)]
enum Drawing {
    /// No block is recomputed: from the device's generator as it is.
    Outside,
    /// A block is computed for the first time, and nothing was drawn yet.
    First,
    /// The generator was seeded at the block's first dropout.
    Seeded(u64),
    /// The block is computed again, and the generator will be seeded at its first dropout.
    Again(u64),
}

thread_local! {
    static DRAWING: Cell<Drawing> = const { Cell::new(Drawing::Outside) };
}

/// While a block is computed. Dropping it returns to what was before.
struct Scope {
    before: Drawing,
}

impl Scope {
    fn enter(drawing: Drawing) -> Self {
        Self {
            before: DRAWING.replace(drawing),
        }
    }

    /// What the generator was seeded with, if something was drawn.
    fn seed(&self) -> Option<u64> {
        match DRAWING.get() {
            Drawing::Seeded(seed) => Some(seed),
            _ => None,
        }
    }
}

impl Drop for Scope {
    fn drop(&mut self) {
        DRAWING.set(self.before);
    }
}

/// Prepares a device's generator for dropout, so that a block that is computed again draws the same numbers. The seed is
/// read back from the device, once for each block.
pub(crate) fn before_drawing(device: &Device) {
    match DRAWING.get() {
        Drawing::Outside | Drawing::Seeded(_) => {}
        Drawing::First => {
            let drawn = Tensor::<1>::random([2], Distribution::Default, &device.clone().inner());
            let drawn: Vec<f32> = drawn.into_data().iter().collect();
            let seed = u64::from(drawn[0].to_bits()) << 32 | u64::from(drawn[1].to_bits());
            device.seed(seed);
            DRAWING.set(Drawing::Seeded(seed));
        }
        Drawing::Again(seed) => {
            device.seed(seed);
            DRAWING.set(Drawing::Outside);
        }
    }
}
