//! Blocks that are computed again in the backward pass.

#[cfg(any(feature = "flex", feature = "wgpu", feature = "cuda"))]
mod recorded;
#[cfg(any(feature = "flex", feature = "wgpu", feature = "cuda"))]
mod replay;

use burn::module::Module;
use burn::tensor::Tensor;

#[cfg(any(feature = "flex", feature = "wgpu", feature = "cuda"))]
pub(crate) use replay::before_drawing;

/// The tensors that enter a block.
pub trait Inputs: Clone + Send + 'static {
    /// Maps each tensor.
    fn map<M: TensorMapper>(self, mapper: &mut M) -> Self;
}

/// Maps tensors of any rank.
pub trait TensorMapper {
    /// Maps a tensor.
    fn map<const D: usize>(&mut self, tensor: Tensor<D>) -> Tensor<D>;
}

impl<const D: usize> Inputs for Tensor<D> {
    fn map<M: TensorMapper>(self, mapper: &mut M) -> Self {
        mapper.map(self)
    }
}

impl<A: Inputs> Inputs for Option<A> {
    fn map<M: TensorMapper>(self, mapper: &mut M) -> Self {
        self.map(|inputs| inputs.map(mapper))
    }
}

impl<A: Inputs, B: Inputs> Inputs for (A, B) {
    fn map<M: TensorMapper>(self, mapper: &mut M) -> Self {
        (self.0.map(mapper), self.1.map(mapper))
    }
}

impl<A: Inputs, B: Inputs, C: Inputs> Inputs for (A, B, C) {
    fn map<M: TensorMapper>(self, mapper: &mut M) -> Self {
        (self.0.map(mapper), self.1.map(mapper), self.2.map(mapper))
    }
}

/// Computes `forward(block, inputs)`.
///
/// On a device with [gradient checkpointing](burn::tensor::Device::gradient_checkpointing), nothing within the block is
/// kept for the backward pass except its inputs. The block is computed again there (Chen et al., "Training Deep Nets with
/// Sublinear Memory Cost"). [`ops::dropout`](crate::ops::dropout) draws the same numbers both times. A block whose inputs
/// have no gradient is computed as usual, and so is every block without the features `flex`, `wgpu` or `cuda`.
///
/// What `forward` computes must depend on nothing that has a gradient, except `block` and `inputs`. Tensors of `block` are
/// parameters.
///
/// # Panics
/// If more than four of the inputs have a gradient, or a parameter was computed from others.
pub fn recompute<M, I, const D: usize>(
    block: &M,
    inputs: I,
    forward: impl Fn(&M, I) -> Tensor<D> + Send + 'static,
) -> Tensor<D>
where
    M: Module + 'static,
    I: Inputs,
{
    #[cfg(any(feature = "flex", feature = "wgpu", feature = "cuda"))]
    if recorded::applies(&inputs) {
        return recorded::run(block, inputs, forward);
    }
    forward(block, inputs)
}
