//! A block in the autodiff graph of a backend.

use std::fmt;

#[cfg(any(feature = "wgpu", feature = "cuda"))]
use burn::backend::Cube;
#[cfg(feature = "flex")]
use burn::backend::Flex;
use burn::backend::autodiff::NodeId;
use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::checkpoint::strategy::BalancedCheckpointing;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops};
use burn::backend::tensor::FloatTensor;
use burn::backend::{
    Autodiff, Backend, BackendTensor, DispatchDevice, DispatchKindConversion, DispatchTensor,
    TensorMetadata,
};
use burn::module::{Module, ModuleVisitor, Param, ParamId};
use burn::tensor::{GradientCheckpointingStrategy, Tensor};

use super::replay::{self, Found, Replay};
use super::{Inputs, TensorMapper};

/// A backend with the gradient checkpointing of Burn.
type Graph<B> = Autodiff<B, BalancedCheckpointing>;

/// Returns whether a block with these inputs is computed again in the backward pass.
pub(super) fn applies<I: Inputs>(inputs: &I) -> bool {
    struct Applies(bool);
    impl TensorMapper for Applies {
        fn map<const D: usize>(&mut self, tensor: Tensor<D>) -> Tensor<D> {
            self.0 |= tensor.is_tracked()
                && tensor.gradient_checkpointing_strategy()
                    == Some(GradientCheckpointingStrategy::Balanced)
                && is_supported(&tensor);
            tensor
        }
    }
    let mut applies = Applies(false);
    inputs.clone().map(&mut applies);
    applies.0
}

fn is_supported<const D: usize>(tensor: &Tensor<D>) -> bool {
    match tensor.device().inner().as_dispatch() {
        #[cfg(feature = "flex")]
        DispatchDevice::Flex(_) => true,
        #[cfg(any(feature = "wgpu", feature = "cuda"))]
        DispatchDevice::Cube(_) => true,
        #[allow(unreachable_patterns)]
        _ => false,
    }
}

/// Computes a block without a graph, and records it as one operation.
pub(super) fn run<M, I, F, const D: usize>(block: &M, inputs: I, forward: F) -> Tensor<D>
where
    M: Module + 'static,
    I: Inputs,
    F: Fn(&M, I) -> Tensor<D> + Send + 'static,
{
    let mut sources = Sources::default();
    let inputs = inputs.map(&mut sources);
    let Sources { tracked, parents } = sources;
    let mut trained = Trained::default();
    block.visit(&mut trained);
    let Trained(trained) = trained;
    let ids = trained.iter().map(|(id, _)| *id).collect();
    let (replay, output) = Replay::new(block, inputs, tracked, ids, forward);
    let replay = Box::new(replay);
    let output = output.into_dispatch();
    let recorded = match output.device() {
        #[cfg(feature = "flex")]
        DispatchDevice::Flex(_) => record::<Flex>(output, parents, trained, replay),
        #[cfg(any(feature = "wgpu", feature = "cuda"))]
        DispatchDevice::Cube(_) => record::<Cube>(output, parents, trained, replay),
        #[allow(unreachable_patterns)]
        _ => unreachable!("`applies` knows the devices"),
    };
    Tensor::from_dispatch(recorded)
}

/// The inputs that have a gradient.
#[derive(Default)]
struct Sources {
    tracked: Vec<bool>,
    parents: Vec<DispatchTensor>,
}

impl TensorMapper for Sources {
    fn map<const D: usize>(&mut self, tensor: Tensor<D>) -> Tensor<D> {
        let tracked = tensor.is_tracked();
        self.tracked.push(tracked);
        if tracked {
            self.parents.push(tensor.clone().into_dispatch());
        }
        tensor
    }
}

/// The parameters that have a gradient.
#[derive(Default)]
struct Trained(Vec<(ParamId, DispatchTensor)>);

impl ModuleVisitor for Trained {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        let value = param.val();
        let is_leaf = value.is_require_grad();
        assert!(
            is_leaf || !value.is_tracked(),
            "the parameters of a recomputed block are the leaves of a graph"
        );
        if is_leaf {
            self.0.push((param.id, value.into_dispatch()));
        }
    }
}

fn record<B: Backend>(
    output: DispatchTensor,
    parents: Vec<DispatchTensor>,
    trained: Vec<(ParamId, DispatchTensor)>,
    replay: Box<dyn replay::Backward>,
) -> DispatchTensor
where
    DispatchTensor: DispatchKindConversion<B> + DispatchKindConversion<Graph<B>>,
{
    let tracked = |tensor| primitive::<Graph<B>>(tensor);
    let parents: Vec<_> = parents.into_iter().map(tracked).collect();
    let trained = trained.into_iter();
    let block = Recorded {
        trained: trained
            .map(|(id, value)| (id, tracked(value).id()))
            .collect(),
        replay,
    };
    let output = primitive::<B>(output);
    let recorded = match parents.len() {
        1 => block.record::<B, 1>(parents, output),
        2 => block.record::<B, 2>(parents, output),
        3 => block.record::<B, 3>(parents, output),
        4 => block.record::<B, 4>(parents, output),
        count => panic!("{count} inputs of a recomputed block have a gradient"),
    };
    from_primitive::<Graph<B>>(recorded)
}

/// A block whose backward pass computes it again.
struct Recorded {
    /// The leaves of the graph that are the block's parameters. They are no parents of the operation, of which there are
    /// few; their gradients are registered all the same.
    trained: Vec<(ParamId, NodeId)>,
    replay: Box<dyn replay::Backward>,
}

impl Recorded {
    fn record<B: Backend, const N: usize>(
        self,
        parents: Vec<FloatTensor<Graph<B>>>,
        output: FloatTensor<B>,
    ) -> FloatTensor<Graph<B>>
    where
        DispatchTensor: DispatchKindConversion<B>,
    {
        let parents: [_; N] = parents.try_into().expect("as many as were counted");
        let nodes = parents.each_ref().map(|parent| parent.node());
        let prepared = Backward::<B, N>::prepare::<BalancedCheckpointing>(self, nodes);
        prepared.compute_bound().stateless(output)
    }
}

impl fmt::Debug for Recorded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Recorded").finish_non_exhaustive()
    }
}

impl<B: Backend, const N: usize> Backward<B, N> for Recorded
where
    DispatchTensor: DispatchKindConversion<B>,
{
    type State = ();

    fn backward(self, ops: Ops<(), N>, grads: &mut Gradients, _: &mut Checkpointer) {
        let grad = from_primitive::<B>(grads.consume::<B>(&ops.node));
        let Found { inputs, parameters } = self.replay.backward(grad);
        for (parent, grad) in ops.parents.into_iter().zip(inputs) {
            if let Some(parent) = parent {
                grads.register::<B>(parent.id, primitive::<B>(grad));
            }
        }
        for (id, grad) in parameters {
            let leaf = self.trained.iter().find(|(trained, _)| *trained == id);
            let (_, node) = leaf.expect("only trained parameters have a gradient");
            grads.register::<B>(*node, primitive::<B>(grad));
        }
    }
}

fn primitive<B: Backend>(tensor: DispatchTensor) -> FloatTensor<B>
where
    DispatchTensor: DispatchKindConversion<B>,
{
    let tensor = <DispatchTensor as DispatchKindConversion<B>>::try_into_backend(tensor);
    tensor.expect("a block is on one device").float()
}

fn from_primitive<B: Backend>(tensor: FloatTensor<B>) -> DispatchTensor
where
    DispatchTensor: DispatchKindConversion<B>,
{
    <DispatchTensor as DispatchKindConversion<B>>::from_backend(BackendTensor::Float(tensor))
}
