use burn::backend::flex::FlexTensor;

use super::simd::{by_chunks, by_rows, erf, exp, sigmoid};
use super::{Kernel, contiguous, floats, matrix, shape, tensor};

/// The factor of QuickGELU.
const QUICK: f32 = 1.702;

/// An activation of each element.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Elementwise {
    Silu,
    Gelu,
    QuickGelu,
}

#[inline(always)]
pub(super) fn silu(x: f32) -> f32 {
    x * sigmoid(x)
}

#[inline(always)]
pub(super) fn silu_slope(x: f32) -> f32 {
    let s = sigmoid(x);
    s + x * s * (1.0 - s)
}

#[inline(always)]
fn gelu(x: f32) -> f32 {
    x * normal_cdf(x)
}

#[inline(always)]
fn gelu_slope(x: f32) -> f32 {
    normal_cdf(x) + x * normal_pdf(x)
}

#[inline(always)]
fn normal_pdf(x: f32) -> f32 {
    const INV_SQRT_2PI: f32 = 0.398_942_3;
    INV_SQRT_2PI * exp(-0.5 * x * x)
}

#[inline(always)]
fn normal_cdf(x: f32) -> f32 {
    0.5 + 0.5 * erf(x * std::f32::consts::FRAC_1_SQRT_2)
}

#[inline(always)]
fn quick_gelu(x: f32) -> f32 {
    x * sigmoid(QUICK * x)
}

#[inline(always)]
fn quick_gelu_slope(x: f32) -> f32 {
    let s = sigmoid(QUICK * x);
    s + QUICK * x * s * (1.0 - s)
}

/// Applies `f` to each element.
#[inline(always)]
fn map(x: &[f32], f: impl Fn(f32) -> f32 + Copy + Send + Sync) -> Vec<f32> {
    zip(
        x,
        x,
        #[inline(always)]
        move |x, _| f(x),
    )
}

/// Applies `f` to each pair of elements.
#[inline(always)]
fn zip(x: &[f32], y: &[f32], f: impl Fn(f32, f32) -> f32 + Copy + Send + Sync) -> Vec<f32> {
    assert_eq!(x.len(), y.len());
    by_chunks(
        x.len(),
        #[inline(always)]
        |range, out| {
            for ((out, x), y) in out.iter_mut().zip(&x[range.clone()]).zip(&y[range]) {
                *out = f(*x, *y);
            }
        },
    )
}

impl Kernel for Elementwise {
    fn name(&self) -> &'static str {
        "activation"
    }

    fn forward(&self, inputs: &[FlexTensor]) -> FlexTensor {
        let x = contiguous(&inputs[0]);
        let values = match self {
            Self::Silu => map(floats(&x), silu),
            Self::Gelu => map(floats(&x), gelu),
            Self::QuickGelu => map(floats(&x), quick_gelu),
        };
        tensor(values, shape(&x))
    }

    fn backward(
        &self,
        inputs: &[FlexTensor],
        grad: FlexTensor,
        _: &[bool],
    ) -> Vec<Option<FlexTensor>> {
        let (x, grad) = (contiguous(&inputs[0]), contiguous(&grad));
        let (xs, gs) = (floats(&x), floats(&grad));
        let values = match self {
            Self::Silu => zip(xs, gs, |x, g| g * silu_slope(x)),
            Self::Gelu => zip(xs, gs, |x, g| g * gelu_slope(x)),
            Self::QuickGelu => zip(xs, gs, |x, g| g * quick_gelu_slope(x)),
        };
        vec![Some(tensor(values, shape(&x)))]
    }
}

/// Gated GELU, value · GELU(gate). Value and gate are the two halves of a row.
#[derive(Debug)]
pub(crate) struct Geglu;

impl Kernel for Geglu {
    fn name(&self) -> &'static str {
        "activation"
    }

    fn forward(&self, inputs: &[FlexTensor]) -> FlexTensor {
        let x = contiguous(&inputs[0]);
        let (rows, width) = matrix(&x);
        let (xs, half) = (floats(&x), width / 2);
        let values = by_rows(
            rows,
            half,
            #[inline(always)]
            |row, out| {
                let (value, gate) = xs[row * width..(row + 1) * width].split_at(half);
                for ((out, value), gate) in out.iter_mut().zip(value).zip(gate) {
                    *out = value * gelu(*gate);
                }
            },
        );
        let mut shape = shape(&x);
        let last = shape.num_dims() - 1;
        shape[last] = half;
        tensor(values, shape)
    }

    fn backward(
        &self,
        inputs: &[FlexTensor],
        grad: FlexTensor,
        _: &[bool],
    ) -> Vec<Option<FlexTensor>> {
        let (x, grad) = (contiguous(&inputs[0]), contiguous(&grad));
        let (rows, width) = matrix(&x);
        let (xs, gs, half) = (floats(&x), floats(&grad), width / 2);
        let values = by_rows(
            rows,
            width,
            #[inline(always)]
            |row, out| {
                let (value, gate) = xs[row * width..(row + 1) * width].split_at(half);
                let grad = &gs[row * half..(row + 1) * half];
                let (to_value, to_gate) = out.split_at_mut(half);
                let outputs = to_value.iter_mut().zip(to_gate);
                for ((((to_value, to_gate), value), gate), grad) in
                    outputs.zip(value).zip(gate).zip(grad)
                {
                    let cdf = normal_cdf(*gate);
                    *to_value = grad * gate * cdf;
                    *to_gate = grad * value * (cdf + gate * normal_pdf(*gate));
                }
            },
        );
        vec![Some(tensor(values, shape(&x)))]
    }
}
