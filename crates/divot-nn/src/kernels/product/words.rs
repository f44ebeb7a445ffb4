//! What a product multiplies: floats, or pairs of bf16.
//!
//! The operands of a product are words of 32 bits. A word is a float, or two bf16 of neighbouring channels.

use std::ops::Range;

use pulp::{Simd, WithSimd};

use super::Weights;
use crate::vectorised::arch;

/// The words of a product.
pub(crate) trait Words {
    /// Number of channels of a word.
    const CHANNELS: usize;

    /// Runs a task with the widest vectors that have these words.
    fn run(task: impl WithSimd<Output = ()>);

    /// Returns `acc` plus the products of the words of both operands.
    ///
    /// # Safety
    /// The processor has the instructions for these words.
    unsafe fn multiply<S: Simd>(simd: S, left: S::f32s, right: S::f32s, acc: S::f32s) -> S::f32s;

    /// Packs words of some of the `channels` like [`Weights::pack`].
    fn pack<S: Simd>(
        weights: &Weights<'_>,
        channels: usize,
        taps: usize,
        words: Range<usize>,
        columns: Range<usize>,
        widest: usize,
        panels: &mut [f32],
    );

    /// Makes words of two lines, in place of the first one. Words of one channel stay as they are.
    fn join(line: &mut [f32], next: &[f32]);

    /// Makes words of rows of `channels` floats, `stride` apart, in place.
    fn join_rows(rows: &mut [f32], channels: usize, stride: usize);

    /// Makes words of the lines of panels in place: panel after panel of up to `widest` columns, each with `places`
    /// times `channels` lines. The panels stay where they are.
    fn join_panels(
        panels: &mut [f32],
        places: usize,
        channels: usize,
        columns: usize,
        widest: usize,
    );
}

/// Floats.
pub(crate) struct Floats;

impl Words for Floats {
    const CHANNELS: usize = 1;

    fn run(task: impl WithSimd<Output = ()>) {
        arch().dispatch(task);
    }

    #[inline(always)]
    unsafe fn multiply<S: Simd>(simd: S, left: S::f32s, right: S::f32s, acc: S::f32s) -> S::f32s {
        simd.mul_add_e_f32s(left, right, acc)
    }

    #[inline(always)]
    fn pack<S: Simd>(
        weights: &Weights<'_>,
        _: usize,
        taps: usize,
        words: Range<usize>,
        columns: Range<usize>,
        widest: usize,
        panels: &mut [f32],
    ) {
        weights.pack::<S>(taps, words, columns, widest, panels);
    }

    #[inline(always)]
    fn join(_: &mut [f32], _: &[f32]) {}

    #[inline(always)]
    fn join_rows(_: &mut [f32], _: usize, _: usize) {}

    fn join_panels(_: &mut [f32], _: usize, _: usize, _: usize, _: usize) {}
}
