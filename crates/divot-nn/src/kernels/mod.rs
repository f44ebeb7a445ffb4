//! Fused operations for Burn's CPU backend, `flex`.
//!
//! A [`Kernel`] is a forward and a backward pass on f32 tensors; [`run`] puts one into the graph.
//! The functions of [`ops`](crate::ops) do so where kernels apply, and are a few operations of
//! Burn everywhere else: these are also what the tests hold the kernels against.

#![allow(unsafe_code)]

pub(crate) mod activation;
pub(crate) mod attention;
pub(crate) mod conv;
pub(crate) mod linear;
pub(crate) mod norm;
mod product;
mod simd;

use std::fmt::Debug;
use std::sync::Arc;

use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, NodeGuard, Ops, OpsKind};
use burn::backend::flex::{FlexTensor, Layout};
use burn::backend::ops::FloatTensorOps;
use burn::backend::tensor::FloatTensor;
use burn::backend::{
    Autodiff, Backend, Dispatch, DispatchDevice, DispatchTensor, ExtensionType, Flex,
    backend_extension,
};
use burn::tensor::{Bytes, DType, Shape, Tensor};

/// A fused operation on f32 tensors.
pub trait Kernel: Debug + Send + Sync + 'static {
    /// The result.
    fn forward(&self, inputs: &[FlexTensor]) -> FlexTensor;

    /// The gradients of the inputs that are `wanted`, from that of the result.
    fn backward(
        &self,
        inputs: &[FlexTensor],
        grad: FlexTensor,
        wanted: &[bool],
    ) -> Vec<Option<FlexTensor>>;
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
    ) -> FloatTensor<Self>;
}

impl KernelOps for Flex {
    fn run_kernel(inputs: Inputs<Self>, kernel: Arc<dyn Kernel>) -> FlexTensor {
        kernel.forward(&inputs.into_vec())
    }
}

impl<C: CheckpointStrategy> KernelOps for Autodiff<Flex, C> {
    fn run_kernel(inputs: Inputs<Self>, kernel: Arc<dyn Kernel>) -> FloatTensor<Self> {
        match inputs {
            Inputs::One(a) => record::<C, 1>([a], kernel),
            Inputs::Two(a, b) => record::<C, 2>([a, b], kernel),
            Inputs::Three(a, b, c) => record::<C, 3>([a, b, c], kernel),
            Inputs::Four(a, b, c, d) => record::<C, 4>([a, b, c, d], kernel),
        }
    }
}

/// Runs the kernel and puts its backward pass into the graph.
fn record<C: CheckpointStrategy, const N: usize>(
    inputs: [FloatTensor<Autodiff<Flex, C>>; N],
    kernel: Arc<dyn Kernel>,
) -> FloatTensor<Autodiff<Flex, C>> {
    let (inputs, nodes): (Vec<FlexTensor>, Vec<NodeGuard>) =
        inputs.into_iter().map(|input| input.into_parts()).unzip();
    let Ok(nodes): Result<[NodeGuard; N], _> = nodes.try_into() else {
        unreachable!("called with N inputs");
    };
    let output = kernel.forward(&inputs);
    match Recorded(kernel)
        .prepare::<C>(nodes)
        .compute_bound()
        .stateful()
    {
        OpsKind::Tracked(prep) => prep.finish(inputs, output),
        OpsKind::UnTracked(prep) => prep.finish(output),
    }
}

#[derive(Debug)]
struct Recorded(Arc<dyn Kernel>);

impl<const N: usize> Backward<Flex, N> for Recorded {
    type State = Vec<FlexTensor>;

    fn backward(self, ops: Ops<Self::State, N>, grads: &mut Gradients, _: &mut Checkpointer) {
        let grad = grads.consume::<Flex>(&ops.node);
        let wanted = ops.parents.each_ref().map(Option::is_some);
        let found = self.0.backward(&ops.state, grad, &wanted);
        for (parent, grad) in ops.parents.into_iter().zip(found) {
            if let (Some(parent), Some(grad)) = (parent, grad) {
                grads.register::<Flex>(parent.id, grad);
            }
        }
    }
}

/// Whether kernels may run on a tensor: it is f32, on `flex`, and they are not switched off.
pub(crate) fn apply<const D: usize>(x: &Tensor<D>) -> bool {
    crate::ops::kernels_enabled()
        && x.dtype() == DType::F32
        && matches!(x.device().inner().as_dispatch(), DispatchDevice::Flex(_))
}

/// Runs a kernel on one to four tensors.
pub(crate) fn run<const D: usize, const N: usize>(
    kernel: impl Kernel,
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
    Tensor::from_dispatch(Dispatch::run_kernel(inputs, Arc::new(kernel)))
}

/// The floats of a tensor in order, which are copied if they lie otherwise.
fn contiguous(tensor: &FlexTensor) -> FlexTensor {
    assert_eq!(tensor.dtype(), DType::F32, "kernels compute in f32");
    in_order(tensor)
}

/// The same of a tensor of any type.
fn in_order(tensor: &FlexTensor) -> FlexTensor {
    match tensor.is_contiguous() {
        true => tensor.clone(),
        false => tensor.to_contiguous(),
    }
}

/// A gradient in the type of what it is the gradient of.
fn as_type_of(like: &FlexTensor, grad: FlexTensor) -> FlexTensor {
    match like.dtype() {
        DType::F32 => grad,
        dtype => Flex::float_cast(grad, dtype.into()),
    }
}

/// The floats of a [`contiguous`] tensor.
fn floats(tensor: &FlexTensor) -> &[f32] {
    tensor.as_slice().expect("made contiguous")
}

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

/// Rows and width of a tensor seen as a matrix of its last axis.
fn matrix(tensor: &FlexTensor) -> (usize, usize) {
    let shape = tensor.layout().shape();
    let width = shape[shape.num_dims() - 1];
    (shape.num_elements() / width.max(1), width)
}
