//! Operations of Divot's networks.
//!
//! With the feature `flex`, each runs as one fused kernel on Burn's CPU backend in f32. Everywhere else
//! it is a few operations of Burn. Convolutions and group norm take channels last.
//!
//! Each operation returns the element type of its input. Weights may have another type.

use burn::module::{Module, ModuleMapper, Param};
use burn::nn::conv::{Conv2d, Conv3d};
use burn::nn::{Dropout, GroupNorm, Linear, PaddingConfig2d, RmsNorm};
#[cfg(feature = "flex")]
use burn::tensor::Distribution;
use burn::tensor::{DType, Tensor, activation};

#[cfg(feature = "flex")]
use crate::kernels::{self, Cost};
use crate::windows::{Moves, product_of_windows, unless_too_large};

pub use crate::switch::{
    TrainingPrecision, bf16_products, enable_bf16_products, enable_kernels, kernels_enabled,
    training_in_bf16,
};

/// SiLU, x·σ(x).
pub fn silu<const D: usize>(x: Tensor<D>) -> Tensor<D> {
    #[cfg(feature = "flex")]
    if kernels::apply(&x) {
        return kernels::run(
            kernels::activation::Elementwise::Silu,
            Cost::Low,
            [x.into_dispatch()],
        );
    }
    activation::silu(x)
}

/// GELU, x·Φ(x), with the exact distribution function.
pub fn gelu<const D: usize>(x: Tensor<D>) -> Tensor<D> {
    #[cfg(feature = "flex")]
    if kernels::apply(&x) {
        return kernels::run(
            kernels::activation::Elementwise::Gelu,
            Cost::Low,
            [x.into_dispatch()],
        );
    }
    activation::gelu(x)
}

/// QuickGELU, x·σ(1.702x): OpenAI CLIP's approximation of GELU, which Divot's temporal transformer uses.
pub fn quick_gelu<const D: usize>(x: Tensor<D>) -> Tensor<D> {
    #[cfg(feature = "flex")]
    if kernels::apply(&x) {
        let kernel = kernels::activation::Elementwise::QuickGelu;
        return kernels::run(kernel, Cost::Low, [x.into_dispatch()]);
    }
    activation::sigmoid(x.clone() * 1.702) * x
}

/// Gated GELU: the last axis holds value and gate side by side, `[..., 2·width]` →
/// `[..., width]`.
///
/// # Panics
/// If the last axis is odd.
pub fn geglu<const D: usize>(x: Tensor<D>) -> Tensor<D> {
    let width = x.dims()[D - 1];
    assert!(
        width.is_multiple_of(2),
        "GEGLU needs an even width, not {width}"
    );
    #[cfg(feature = "flex")]
    if kernels::apply(&x) {
        return kernels::run(kernels::activation::Geglu, Cost::Low, [x.into_dispatch()]);
    }
    let value = x.clone().narrow(D - 1, 0, width / 2);
    let gate = x.narrow(D - 1, width / 2, width / 2);
    value * gelu(gate)
}

/// Dropout, in training only: each element is set to zero with the layer's probability, and those that are kept are
/// scaled up. What is random comes from the device's generator.
pub fn dropout<const D: usize>(layer: &Dropout, x: Tensor<D>) -> Tensor<D> {
    if layer.prob == 0.0 || !layer.training.is_enabled() || !x.device().is_autodiff() {
        return x;
    }
    #[cfg(any(feature = "flex", feature = "wgpu", feature = "cuda"))]
    crate::recompute::before_drawing(&x.device());
    #[cfg(feature = "flex")]
    if kernels::apply(&x) {
        // A float holds 24 random bits.
        let drawn = Tensor::<1>::random([4], Distribution::Default, &x.device().inner());
        let drawn: Vec<f32> = drawn.into_data().iter().collect();
        let bits = |i: usize| (drawn[i] * 65536.0) as u32;
        let kernel = kernels::dropout::Dropout {
            rate: layer.prob,
            key: [bits(0) << 16 | bits(1), bits(2) << 16 | bits(3)],
        };
        return kernels::run(kernel, Cost::Low, [x.into_dispatch()]);
    }
    layer.forward(x)
}

/// A linear layer, `[..., in]` → `[..., out]`. Float weights of another type are cast to that of `x`.
pub fn linear<const D: usize>(layer: &Linear, x: Tensor<D>) -> Tensor<D> {
    let dtype = x.dtype();
    let bias = layer.bias.as_ref().map(|bias| bias.val().cast(dtype));
    #[cfg(feature = "flex")]
    if kernels::apply(&x) && layer.weight.val().dtype().is_float() {
        let [x, weight] = [x.into_dispatch(), layer.weight.val().into_dispatch()];
        return match bias {
            Some(bias) => kernels::run(
                kernels::linear::Linear,
                Cost::High,
                [x, weight, bias.into_dispatch()],
            ),
            None => kernels::run(kernels::linear::Linear, Cost::High, [x, weight]),
        };
    }
    let weight = layer.weight.val();
    // Quantised weights are not cast.
    let weight = match weight.dtype().is_float() {
        true => weight.cast(dtype),
        false => weight,
    };
    burn::tensor::module::linear(x, weight, bias)
}

/// Layer norm over the last axis, with scale `gamma` and shift `beta`, each `[width]`.
///
/// Computes in f32, and returns the type of `x`.
pub fn layer_norm<const D: usize>(
    x: Tensor<D>,
    gamma: Tensor<1>,
    beta: Tensor<1>,
    epsilon: f64,
) -> Tensor<D> {
    #[cfg(feature = "flex")]
    if kernels::apply(&x) {
        let kernel = kernels::norm::RowNorm {
            centred: true,
            epsilon: epsilon as f32,
        };
        let inputs = [
            x.into_dispatch(),
            gamma.cast(DType::F32).into_dispatch(),
            beta.cast(DType::F32).into_dispatch(),
        ];
        return kernels::run(kernel, Cost::Low, inputs);
    }
    // Squares overflow in f16.
    let dtype = x.dtype();
    let [gamma, beta] = [gamma, beta].map(|x| x.cast(DType::F32));
    burn::tensor::module::layer_norm(x.cast(DType::F32), gamma, Some(beta), epsilon).cast(dtype)
}

/// Root-mean-square norm over the last axis.
///
/// Returns the type of `x`. If the scale has another type, it computes in f32.
pub fn rms_norm<const D: usize>(norm: &RmsNorm, x: Tensor<D>) -> Tensor<D> {
    #[cfg(feature = "flex")]
    if kernels::apply(&x) {
        let kernel = kernels::norm::RowNorm {
            centred: false,
            epsilon: norm.epsilon as f32,
        };
        let gamma = norm.gamma.val().cast(DType::F32);
        let inputs = [x.into_dispatch(), gamma.into_dispatch()];
        return kernels::run(kernel, Cost::Low, inputs);
    }
    let (dtype, gamma) = (x.dtype(), norm.gamma.val());
    if gamma.dtype() == dtype {
        return norm.forward(x);
    }
    let x = x.cast(DType::F32);
    let rms = (x.clone().square().mean_dim(D - 1) + norm.epsilon).sqrt();
    (x / rms * gamma.cast(DType::F32).unsqueeze()).cast(dtype)
}

/// Group norm of `[samples, ..., channels]`, followed by SiLU if `then_silu` is set.
///
/// Returns the type of `x`. If the parameters have another type, it computes in f32.
///
/// # Panics
/// If the norm has no scale and shift.
pub fn group_norm<const D: usize>(norm: &GroupNorm, x: Tensor<D>, then_silu: bool) -> Tensor<D> {
    let (Some(gamma), Some(beta)) = (&norm.gamma, &norm.beta) else {
        panic!("a group norm without scale and shift");
    };
    #[cfg(feature = "flex")]
    if kernels::apply(&x) {
        let kernel = kernels::norm::GroupNorm {
            groups: norm.num_groups,
            epsilon: norm.epsilon,
            silu: then_silu,
        };
        let inputs = [
            x.into_dispatch(),
            gamma.val().cast(DType::F32).into_dispatch(),
            beta.val().cast(DType::F32).into_dispatch(),
        ];
        return kernels::run(kernel, Cost::Low, inputs);
    }
    let dtype = x.dtype();
    let x = match gamma.val().dtype() == dtype && beta.val().dtype() == dtype {
        true => norm.forward(channels_first(x)),
        false => {
            let x = x.cast(DType::F32);
            in_type_of(&x, norm.clone()).forward(channels_first(x))
        }
    };
    channels_last(if then_silu { activation::silu(x) } else { x }).cast(dtype)
}

/// A convolution over height and width: `[n, height, width, in]` → `[n, height, width, out]`, with a
/// smaller height and width if its stride is above 1.
///
/// # Panics
/// If the padding is [`PaddingConfig2d::Same`], or the convolution has groups or dilation.
pub fn conv2d_last(conv: &Conv2d, x: Tensor<4>) -> Tensor<4> {
    let [top, left, bottom, right] = match conv.padding {
        PaddingConfig2d::Valid => [0; 4],
        PaddingConfig2d::Explicit(top, left, bottom, right) => [top, left, bottom, right],
        PaddingConfig2d::Same => panic!("the padding must be given in numbers"),
    };
    assert!(
        conv.groups == 1 && conv.dilation == [1, 1],
        "groups or dilation"
    );
    #[cfg(feature = "flex")]
    if kernels::apply(&x) {
        let [_, height, width, _] = x.dims();
        let kernel = kernels::conv::Conv::spatial(
            [height, width],
            conv.kernel_size,
            conv.stride,
            [[top, bottom], [left, right]],
        );
        return convolve(kernel, x, conv.weight.val(), conv.bias.as_ref());
    }
    let conv = in_type_of(&x, conv.clone());
    let padding = [[top, bottom], [left, right]];
    let axes = [0, 1].map(|axis| Moves {
        taps: conv.kernel_size[axis],
        stride: conv.stride[axis],
        padding: padding[axis],
    });
    let (weight, bias) = (conv.weight.val(), conv.bias.as_ref().map(Param::val));
    unless_too_large(
        [x.dims(), weight.dims()],
        x.dtype(),
        || channels_last(conv.forward(channels_first(x.clone()))),
        || product_of_windows(x.clone(), weight, bias, axes),
    )
}

#[cfg(feature = "flex")]
fn convolve<const D: usize>(
    kernel: kernels::conv::Conv,
    x: Tensor<D>,
    weight: Tensor<D>,
    bias: Option<&Param<Tensor<1>>>,
) -> Tensor<D> {
    let [x, weight] = [x, weight].map(Tensor::into_dispatch);
    match bias {
        Some(bias) => kernels::run(
            kernel,
            Cost::High,
            [x, weight, bias.val().cast(DType::F32).into_dispatch()],
        ),
        None => kernels::run(kernel, Cost::High, [x, weight]),
    }
}

/// A convolution over time: `[n, frames, height, width, in]` → `[n, frames, height, width, out]`.
///
/// Its kernel is `[taps, 1, 1]`, and its padding keeps the number of frames.
pub fn temporal_conv(conv: &Conv3d, x: Tensor<5>) -> Tensor<5> {
    #[cfg(feature = "flex")]
    if kernels::apply(&x) {
        let [_, frames, height, width, _] = x.dims();
        let taps = conv.kernel_size[0];
        let kernel = kernels::conv::Conv::temporal(frames, &[height, width], taps);
        return convolve(kernel, x, conv.weight.val(), conv.bias.as_ref());
    }
    let conv = in_type_of(&x, conv.clone());
    let (weight, bias) = (conv.weight.val(), conv.bias.as_ref().map(Param::val));
    let sizes = [x.dims(), weight.dims()];
    let product = || {
        let [[n, frames, height, width, channels], [out, _, taps, ..]] = sizes;
        let over_time = Moves {
            taps,
            stride: 1,
            padding: [taps / 2; 2],
        };
        let across = Moves {
            taps: 1,
            stride: 1,
            padding: [0; 2],
        };
        let x = x.clone().reshape([n, frames, height * width, channels]);
        let weight = weight.reshape([out, channels, taps, 1]);
        product_of_windows(x, weight, bias, [over_time, across])
            .reshape([n, frames, height, width, out])
    };
    unless_too_large(
        sizes,
        x.dtype(),
        || channels_last(conv.forward(channels_first(x.clone()))),
        product,
    )
}

/// Returns a layer with its weights in the type of `x`.
fn in_type_of<M: Module, const D: usize>(x: &Tensor<D>, layer: M) -> M {
    struct Cast(DType);

    impl ModuleMapper for Cast {
        fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
            match param.val().dtype() == self.0 {
                true => param,
                false => param.map(|tensor| tensor.cast(self.0)),
            }
        }
    }

    layer.map(&mut Cast(x.dtype()))
}

/// Moves the channels to the front: `[n, ..., channels]` → `[n, channels, ...]`.
pub fn channels_first<const D: usize>(x: Tensor<D>) -> Tensor<D> {
    (2..D).rev().fold(x, |x, axis| x.swap_dims(axis - 1, axis))
}

/// Moves the channels to the end: `[n, channels, ...]` → `[n, ..., channels]`.
pub fn channels_last<const D: usize>(x: Tensor<D>) -> Tensor<D> {
    (2..D).fold(x, |x, axis| x.swap_dims(axis - 1, axis))
}
