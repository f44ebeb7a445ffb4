//! Convolutions on GPUs.
//!
//! Burn 0.22 chooses a kernel by trying several on one size, and takes it for every size that it counts to the same
//! range. Some of these sizes are too large for it, and Burn panics. Then the convolution is computed as one product.

use std::any::Any;
use std::collections::HashSet;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::{LazyLock, Mutex, PoisonError};

use burn::tensor::{DType, Tensor, s};

/// How a window moves along an axis.
#[derive(Clone, Copy)]
pub struct Moves {
    pub taps: usize,
    pub stride: usize,
    /// Zeros before and after the axis.
    pub padding: [usize; 2],
}

/// The convolution of `[n, height, width, in]` with weights `[out, in, taps, taps]`, as the product of all windows with
/// the weights.
pub fn product_of_windows(
    x: Tensor<4>,
    weight: Tensor<4>,
    bias: Option<Tensor<1>>,
    [rows, columns]: [Moves; 2],
) -> Tensor<4> {
    let [out, channels, ..] = weight.dims();
    let pairs = [rows, columns].map(|axis| (axis.padding[0], axis.padding[1]));
    let x = x.pad([(0, 0), pairs[0], pairs[1], (0, 0)], 0.0);
    let [n, height, width, _] = x.dims();
    let positions = |size: usize, axis: Moves| (size - axis.taps) / axis.stride + 1;
    let (height, width) = (positions(height, rows), positions(width, columns));
    let span = |tap: usize, count: usize, axis: Moves| tap..tap + (count - 1) * axis.stride + 1;
    let windows = (0..rows.taps).flat_map(|row| (0..columns.taps).map(move |column| (row, column)));
    let windows: Vec<_> = windows
        .map(|(row, column)| {
            let (down, right) = (span(row, height, rows), span(column, width, columns));
            x.clone()
                .slice(s![.., down;rows.stride, right;columns.stride, ..])
        })
        .collect();
    let windows =
        Tensor::cat(windows, 3).reshape([n * height * width, rows.taps * columns.taps * channels]);
    let weight = weight.permute([2, 3, 1, 0]).reshape([-1, out as i64]);
    let result = windows.matmul(weight).reshape([n, height, width, out]);
    match bias {
        Some(bias) => result + bias.unsqueeze(),
        None => result,
    }
}

/// Returns what `convolve` makes, or `product` if Burn's choice does not fit. Such sizes are not tried again.
pub fn unless_too_large<const D: usize>(
    sizes: [[usize; D]; 2],
    dtype: DType,
    convolve: impl FnOnce() -> Tensor<D>,
    product: impl FnOnce() -> Tensor<D>,
) -> Tensor<D> {
    type Sizes = (Vec<usize>, DType);
    static TOO_LARGE: LazyLock<Mutex<HashSet<Sizes>>> = LazyLock::new(Mutex::default);
    let too_large = || TOO_LARGE.lock().unwrap_or_else(PoisonError::into_inner);
    let sizes = (sizes.concat(), dtype);
    let known = too_large().contains(&sizes);
    if known {
        return product();
    }
    match catch_unwind(AssertUnwindSafe(convolve)) {
        Ok(result) => result,
        Err(panic) if is_of_the_tuner(&*panic) => {
            too_large().insert(sizes);
            product()
        }
        Err(panic) => resume_unwind(panic),
    }
}

/// Returns whether a chosen kernel could not be launched: the message is `Should run when selected by autotune.`
fn is_of_the_tuner(panic: &(dyn Any + Send)) -> bool {
    panic
        .downcast_ref::<String>()
        .is_some_and(|message| message.contains("selected by autotune"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::nn::PaddingConfig2d;
    use burn::nn::conv::Conv2dConfig;
    use burn::tensor::{Device, Distribution, Tolerance};

    /// Values and gradients, with strides and uneven padding.
    #[test]
    fn a_product_of_windows_is_a_convolution() {
        let device = Device::default().autodiff();
        for (kernel, stride, [top, left, bottom, right]) in [
            ([3, 3], [1, 1], [1, 1, 1, 1]),
            ([3, 3], [2, 2], [0, 0, 1, 1]),
            ([3, 1], [1, 1], [1, 0, 1, 0]),
        ] {
            let conv = Conv2dConfig::new([3, 5], kernel)
                .with_stride(stride)
                .with_padding(PaddingConfig2d::Explicit(top, left, bottom, right))
                .init(&device);
            let x =
                Tensor::<4>::random([2, 6, 8, 3], Distribution::Default, &device).require_grad();
            let axes = [
                Moves {
                    taps: kernel[0],
                    stride: stride[0],
                    padding: [top, bottom],
                },
                Moves {
                    taps: kernel[1],
                    stride: stride[1],
                    padding: [left, right],
                },
            ];
            let product = product_of_windows(
                x.clone(),
                conv.weight.val(),
                Some(conv.bias.as_ref().unwrap().val()),
                axes,
            );
            let expected = conv
                .forward(x.clone().permute([0, 3, 1, 2]))
                .permute([0, 2, 3, 1]);
            let tolerance = Tolerance::<f32>::absolute(1e-5);
            product
                .to_data()
                .assert_approx_eq(&expected.to_data(), tolerance);
            let gradient = |y: Tensor<4>| {
                x.grad(&y.powi_scalar(2).sum().backward())
                    .unwrap()
                    .to_data()
            };
            gradient(product)
                .assert_approx_eq(&gradient(expected), Tolerance::<f32>::absolute(1e-4));
        }
    }

    #[test]
    fn sizes_that_do_not_fit_are_not_tried_again() {
        let device = Device::default();
        let mut tried = 0;
        for _ in 0..2 {
            let result = unless_too_large(
                [[9, 9], [9, 9]],
                DType::F32,
                || {
                    tried += 1;
                    panic!("Should run when selected by autotune.: {tried}");
                },
                || Tensor::<2>::ones([1, 1], &device),
            );
            assert_eq!(result.into_scalar::<f32>(), 1.0);
        }
        assert_eq!(tried, 1);
    }

    #[test]
    #[should_panic(expected = "a mistake")]
    fn other_panics_go_on() {
        unless_too_large::<1>(
            [[8], [8]],
            DType::F32,
            || panic!("a mistake"),
            || panic!("not tried"),
        );
    }
}
