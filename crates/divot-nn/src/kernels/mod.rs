//! Fused operations for Burn's CPU backend, `flex`.
//!
//! A [`Kernel`] is a forward and a backward pass on f32 tensors. [`run`] runs one and records it in the
//! autodiff graph. The functions of `ops` call kernels if [`apply`] allows it, and Burn's own operations
//! otherwise. The tests compare the two.
//!
//! Kernels do not depend on `ops`. A module here uses only the modules below it.

#![allow(unsafe_code)]

pub(crate) mod activation;
pub(crate) mod attention;
pub(crate) mod conv;
pub(crate) mod dropout;
pub(crate) mod linear;
pub(crate) mod norm;
#[cfg(feature = "optim")]
pub(crate) mod optim;
mod product;
mod simd;
mod winograd;

use std::fmt::Debug;
use std::sync::Arc;

use burn::backend::autodiff::NodeId;
use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::checkpoint::retro_forward::RetroForward;
use burn::backend::autodiff::checkpoint::state::BackwardStates;
use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::backend::flex::{FlexTensor, Layout};
use burn::backend::ops::FloatTensorOps;
use burn::backend::tensor::FloatTensor;
use burn::backend::{
    Autodiff, Backend, Dispatch, DispatchDevice, DispatchTensor, ExtensionType, Flex,
    backend_extension,
};
use burn::tensor::{Bytes, DType, Device, Shape, Tensor};

use crate::profile::{self, Pass};
use crate::switch::kernels_enabled;

/// A fused operation on f32 tensors.
pub trait Kernel: Debug + Send + Sync + 'static {
    /// Returns the name in a [`profile`].
    fn name(&self) -> &'static str;

    /// Returns the multiplications in the matrix products that define the forward pass, even if the kernel
    /// needs fewer.
    fn multiplications(&self, _inputs: &[FlexTensor]) -> f64 {
        0.0
    }

    /// Computes the result.
    fn forward(&self, inputs: &[FlexTensor]) -> FlexTensor;

    /// Computes the gradients of the inputs marked in `wanted`, from the gradient of the result. Returns
    /// one entry for each input.
    fn backward(
        &self,
        inputs: &[FlexTensor],
        grad: FlexTensor,
        wanted: &[bool],
    ) -> Vec<Option<FlexTensor>>;
}

/// Runs a kernel's forward pass and adds it to the [`profile`].
fn forward(kernel: &dyn Kernel, inputs: &[FlexTensor]) -> FlexTensor {
    let multiplications = || kernel.multiplications(inputs);
    profile::timed(kernel.name(), Pass::Forward, multiplications, || {
        kernel.forward(inputs)
    })
}

/// Cost of running a kernel again in the backward pass.
#[derive(Debug, Clone, Copy)]
pub enum Cost {
    /// Bound by memory. With gradient checkpointing, the result is recomputed in the backward pass instead
    /// of being kept.
    Low,
    /// Bound by compute. The result is always kept.
    High,
}

/// The inputs of a kernel.
#[derive(ExtensionType)]
pub enum Inputs<B: Backend> {
    One(FloatTensor<B>),
    Two(FloatTensor<B>, FloatTensor<B>),
    Three(FloatTensor<B>, FloatTensor<B>, FloatTensor<B>),
    Four(
        FloatTensor<B>,
        FloatTensor<B>,
        FloatTensor<B>,
        FloatTensor<B>,
    ),
}

impl<B: Backend> Inputs<B> {
    fn into_vec(self) -> Vec<FloatTensor<B>> {
        match self {
            Self::One(a) => vec![a],
            Self::Two(a, b) => vec![a, b],
            Self::Three(a, b, c) => vec![a, b, c],
            Self::Four(a, b, c, d) => vec![a, b, c, d],
        }
    }
}

#[backend_extension(Flex, Autodiff)]
pub trait KernelOps: Backend {
    fn run_kernel(
        #[extension_type] inputs: Inputs<Self>,
        kernel: Arc<dyn Kernel>,
        cost: Cost,
    ) -> FloatTensor<Self>;
}

impl KernelOps for Flex {
    fn run_kernel(inputs: Inputs<Self>, kernel: Arc<dyn Kernel>, _: Cost) -> FlexTensor {
        forward(&*kernel, &inputs.into_vec())
    }
}

impl<C: CheckpointStrategy> KernelOps for Autodiff<Flex, C> {
    fn run_kernel(inputs: Inputs<Self>, kernel: Arc<dyn Kernel>, cost: Cost) -> FloatTensor<Self> {
        match inputs {
            Inputs::One(a) => record::<C, 1>([a], kernel, cost),
            Inputs::Two(a, b) => record::<C, 2>([a, b], kernel, cost),
            Inputs::Three(a, b, c) => record::<C, 3>([a, b, c], kernel, cost),
            Inputs::Four(a, b, c, d) => record::<C, 4>([a, b, c, d], kernel, cost),
        }
    }
}

/// Runs a kernel and records its backward pass in the graph.
fn record<C: CheckpointStrategy, const N: usize>(
    inputs: [FloatTensor<Autodiff<Flex, C>>; N],
    kernel: Arc<dyn Kernel>,
    cost: Cost,
) -> FloatTensor<Autodiff<Flex, C>> {
    let primitives = inputs.each_ref().map(|input| input.primitive().clone());
    let output = forward(&*kernel, &primitives);
    let sources = inputs.each_ref().map(|input| match input.is_tracked() {
        true => Source::Node(input.id()),
        false => Source::Tensor(input.primitive().clone()),
    });
    let tracked = || inputs.iter().filter(|input| input.is_tracked());
    let prep = Recorded(kernel.clone()).prepare::<C>(inputs.each_ref().map(|input| input.node()));
    // Without a tracked input there is no backward pass, so nothing would run the kernel again.
    let prep = match cost {
        Cost::Low if tracked().next().is_some() => prep
            .memory_bound()
            .retro_forward(Again(kernel, sources.clone()))
            .parents(tracked()),
        _ => prep.compute_bound(),
    };
    match prep.stateful() {
        OpsKind::Tracked(mut prep) => {
            for input in tracked() {
                prep.checkpoint(input);
            }
            prep.finish(sources, output)
        }
        OpsKind::UnTracked(prep) => prep.finish(output),
    }
}

/// Where the backward pass finds an input. The graph keeps tracked inputs or recomputes them. Other inputs
/// are stored here.
#[derive(Debug, Clone)]
enum Source {
    Node(NodeId),
    Tensor(FlexTensor),
}

impl Source {
    fn get(self, node: impl FnOnce(NodeId) -> FlexTensor) -> FlexTensor {
        match self {
            Self::Node(id) => node(id),
            Self::Tensor(tensor) => tensor,
        }
    }
}

/// Runs a kernel's forward pass again, for gradient checkpointing.
#[derive(Debug)]
struct Again<const N: usize>(Arc<dyn Kernel>, [Source; N]);

impl<const N: usize> RetroForward for Again<N> {
    fn forward(&self, states: &mut BackwardStates, node: NodeId) {
        let sources = self.1.clone();
        let inputs = sources.map(|source| source.get(|id| states.get_state(&id)));
        states.save(node, forward(&*self.0, &inputs));
    }
}

/// A kernel's backward pass, as the graph records it.
#[derive(Debug)]
struct Recorded(Arc<dyn Kernel>);

impl<const N: usize> Backward<Flex, N> for Recorded {
    type State = [Source; N];

    fn backward(self, ops: Ops<Self::State, N>, grads: &mut Gradients, states: &mut Checkpointer) {
        let grad = grads.consume::<Flex>(&ops.node);
        let wanted = ops.parents.each_ref().map(Option::is_some);
        let sources = ops.state;
        let inputs = sources.map(|source| source.get(|id| states.retrieve_node_output(id)));
        // The gradient of each of the two operands takes one product.
        let products = wanted.iter().take(2).filter(|wanted| **wanted).count() as f64;
        let multiplications = || products * self.0.multiplications(&inputs);
        let found = profile::timed(self.0.name(), Pass::Backward, multiplications, || {
            self.0.backward(&inputs, grad, &wanted)
        });
        for (parent, grad) in ops.parents.into_iter().zip(found) {
            if let (Some(parent), Some(grad)) = (parent, grad) {
                grads.register::<Flex>(parent.id, grad);
            }
        }
    }
}

/// Returns whether kernels may run on a tensor: it is f32 and on `flex`, and kernels are switched on.
pub(crate) fn apply<const D: usize>(x: &Tensor<D>) -> bool {
    kernels_enabled() && x.dtype() == DType::F32 && on_flex(&x.device())
}

/// Returns whether a device is `flex`, with or without gradients.
pub(crate) fn on_flex(device: &Device) -> bool {
    matches!(
        device.clone().inner().as_dispatch(),
        DispatchDevice::Flex(_)
    )
}

/// Runs a kernel on one to four tensors.
pub(crate) fn run<const D: usize, const N: usize>(
    kernel: impl Kernel,
    cost: Cost,
    inputs: [DispatchTensor; N],
) -> Tensor<D> {
    let mut inputs = inputs.into_iter();
    let inputs = match [(); 4].map(|()| inputs.next()) {
        [Some(a), None, ..] => Inputs::One(a),
        [Some(a), Some(b), None, _] => Inputs::Two(a, b),
        [Some(a), Some(b), Some(c), None] => Inputs::Three(a, b, c),
        [Some(a), Some(b), Some(c), Some(d)] => Inputs::Four(a, b, c, d),
        _ => unreachable!("no kernel has {N} inputs"),
    };
    Tensor::from_dispatch(Dispatch::run_kernel(inputs, Arc::new(kernel), cost))
}

/// Returns a contiguous f32 tensor with the same values. Copies only if the tensor is not contiguous.
fn contiguous(tensor: &FlexTensor) -> FlexTensor {
    assert_eq!(tensor.dtype(), DType::F32, "kernels compute in f32");
    in_order(tensor)
}

/// Like [`contiguous`], for a tensor of any type.
fn in_order(tensor: &FlexTensor) -> FlexTensor {
    match tensor.is_contiguous() {
        true => tensor.clone(),
        false => tensor.to_contiguous(),
    }
}

/// Casts a gradient to the type of its input.
fn as_type_of(like: &FlexTensor, grad: FlexTensor) -> FlexTensor {
    match like.dtype() {
        DType::F32 => grad,
        dtype => Flex::float_cast(grad, dtype.into()),
    }
}

/// Returns the floats of a [`contiguous`] tensor.
fn floats(tensor: &FlexTensor) -> &[f32] {
    tensor.as_slice().expect("made contiguous")
}

/// Creates a tensor from its values in row-major order.
fn tensor(values: Vec<f32>, shape: Shape) -> FlexTensor {
    FlexTensor::new(
        Bytes::from_elems(values),
        Layout::contiguous(shape),
        DType::F32,
    )
}

fn shape(tensor: &FlexTensor) -> Shape {
    tensor.layout().shape().clone()
}

/// Returns the rows and the width of a tensor viewed as `[rows, last axis]`.
fn matrix(tensor: &FlexTensor) -> (usize, usize) {
    let shape = tensor.layout().shape();
    let width = shape[shape.num_dims() - 1];
    (shape.num_elements() / width.max(1), width)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    static RUNS: AtomicUsize = AtomicUsize::new(0);

    /// Doubles its input and counts the forward passes.
    #[derive(Debug)]
    struct Double;

    impl Kernel for Double {
        fn name(&self) -> &'static str {
            "double"
        }

        fn forward(&self, inputs: &[FlexTensor]) -> FlexTensor {
            RUNS.fetch_add(1, Ordering::Relaxed);
            let doubled = floats(&inputs[0]).iter().map(|x| 2.0 * x).collect();
            tensor(doubled, shape(&inputs[0]))
        }

        fn backward(
            &self,
            _: &[FlexTensor],
            grad: FlexTensor,
            _: &[bool],
        ) -> Vec<Option<FlexTensor>> {
            vec![Some(self.forward(&[grad]))]
        }
    }

    #[test]
    fn checkpointing_runs_cheap_kernels_again_and_no_others() {
        let plain = Device::default().autodiff();
        let checkpointing = plain.clone().gradient_checkpointing();
        for (device, cost, expected) in [
            (&plain, Cost::Low, 2),
            (&checkpointing, Cost::High, 2),
            (&checkpointing, Cost::Low, 3),
        ] {
            RUNS.store(0, Ordering::Relaxed);
            let x = Tensor::<1>::from_floats([1.0, 3.0], device).require_grad();
            let doubled: Tensor<1> = run(Double, cost, [x.clone().into_dispatch()]);
            // The gradient of a square needs the value that was squared.
            let grads = (doubled.clone() * doubled).sum().backward();
            let grad = x.grad(&grads).expect("it is tracked").into_data();
            assert_eq!(grad.try_to_vec::<f32>().expect("it is f32"), [8.0, 24.0]);
            assert_eq!(RUNS.load(Ordering::Relaxed), expected, "{cost:?}");
        }
    }
}
