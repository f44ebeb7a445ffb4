//! The right operand of a product, and its packing into panels.

use std::ops::Range;

use burn::backend::flex::FlexTensor;
use burn::tensor::{DType, bf16, f16};
use half::slice::HalfFloatSliceExt;
use pulp::Simd;

use super::{DEPTH, LINE, ZEROS};

/// Weights in their stored type. They are converted to f32 when they are packed.
#[derive(Clone, Copy)]
pub(crate) enum Values<'a> {
    F32(&'a [f32]),
    F16(&'a [f16]),
    Bf16(&'a [bf16]),
}

impl<'a> Values<'a> {
    /// Returns the values of a contiguous tensor.
    pub fn of(tensor: &'a FlexTensor) -> Self {
        let contiguous = "made contiguous";
        match tensor.dtype() {
            DType::F16 => Self::F16(tensor.as_slice().expect(contiguous)),
            DType::BF16 => Self::Bf16(tensor.as_slice().expect(contiguous)),
            _ => Self::F32(tensor.as_slice().expect(contiguous)),
        }
    }

    /// Copies consecutive values, from `first` on, until `to` is full.
    #[inline(always)]
    pub fn copy(self, first: usize, to: &mut [f32]) {
        match self {
            Self::F32(values) => to.copy_from_slice(&values[first..first + to.len()]),
            Self::F16(values) => values[first..first + to.len()].convert_to_f32_slice(to),
            Self::Bf16(values) => {
                for (to, value) in to.iter_mut().zip(&values[first..]) {
                    *to = value.to_f32();
                }
            }
        }
    }

    /// Copies every `stride`-th value, from `first` on, until `to` is full.
    #[inline(always)]
    pub fn gather(self, first: usize, stride: usize, to: &mut [f32]) {
        match self {
            Self::F32(values) => {
                let values = &values[first..];
                for (n, to) in to.iter_mut().enumerate() {
                    *to = values[n * stride];
                }
            }
            Self::F16(values) => {
                for (n, to) in to.iter_mut().enumerate() {
                    *to = values[first + n * stride].to_f32();
                }
            }
            Self::Bf16(values) => {
                for (n, to) in to.iter_mut().enumerate() {
                    *to = values[first + n * stride].to_f32();
                }
            }
        }
    }
}

/// The right operand, `[taps, channels, outputs]`. `tap`, `channel` and `output` are the strides.
#[derive(Clone, Copy)]
pub(crate) struct Weights<'a> {
    pub data: Values<'a>,
    pub outputs: usize,
    pub tap: usize,
    pub channel: usize,
    pub output: usize,
}

impl Weights<'_> {
    /// Packs `[taps, channels, columns]` into panels of `widest` columns: panel after panel, tap after
    /// tap, line after line. The last panel is padded with zeros to whole vectors.
    #[inline(always)]
    pub fn pack<S: Simd>(
        &self,
        taps: usize,
        channels: Range<usize>,
        columns: Range<usize>,
        widest: usize,
        panels: &mut [f32],
    ) {
        let depth = channels.len();
        let parts = columns.clone().step_by(widest).map(|first| {
            let part = first..(first + widest).min(columns.end);
            let width = part.len().next_multiple_of(S::F32_LANES);
            ((first - columns.start) * taps * depth, part, width)
        });
        if self.output != 1 {
            for (start, part, width) in parts {
                self.turn(taps, channels.clone(), part, width, &mut panels[start..]);
            }
            return;
        }
        for (start, part, width) in parts {
            let lines = channels.clone().enumerate();
            let lines = lines.flat_map(|(c, channel)| (0..taps).map(move |tap| (c, channel, tap)));
            for (c, channel, tap) in lines {
                let line = start + (tap * depth + c) * width;
                let (line, padding) = panels[line..line + width].split_at_mut(part.len());
                let first = tap * self.tap + channel * self.channel + part.start;
                self.data.copy(first, line);
                padding.fill(0.0);
            }
        }
    }

    /// Packs a panel of `width` columns from weights in which a line of the panel is not contiguous.
    #[inline(always)]
    fn turn(
        &self,
        taps: usize,
        channels: Range<usize>,
        columns: Range<usize>,
        width: usize,
        panel: &mut [f32],
    ) {
        let (first, depth) = (channels.start, channels.len());
        let lines = channels
            .enumerate()
            .flat_map(|(c, channel)| (0..taps).map(move |tap| (tap * depth + c, tap, channel)));
        if let (Values::F32(values), 1, 1) = (self.data, self.channel, taps)
            && depth <= DEPTH
            && width.is_multiple_of(4)
        {
            // Four columns at a time.
            for at in (0..width).step_by(4) {
                let column = |i: usize| match at + i < columns.len() {
                    true => &values[(columns.start + at + i) * self.output + first..][..depth],
                    false => &ZEROS[..depth],
                };
                let [a, b, c, d] = [column(0), column(1), column(2), column(3)];
                let lines = panel.chunks_exact_mut(width);
                for ((((line, a), b), c), d) in lines.zip(a).zip(b).zip(c).zip(d) {
                    line[at..at + 4].copy_from_slice(&[*a, *b, *c, *d]);
                }
            }
            return;
        }
        // One cache line of the panel at a time, so that only `LINE` outputs are read side by side.
        for at in (0..width).step_by(LINE) {
            let filled = LINE.min(columns.len().saturating_sub(at));
            for (line, tap, channel) in lines.clone() {
                let first =
                    tap * self.tap + channel * self.channel + (columns.start + at) * self.output;
                let line = &mut panel[line * width + at..][..LINE.min(width - at)];
                let (line, padding) = line.split_at_mut(filled);
                self.data.gather(first, self.output, line);
                padding.fill(0.0);
            }
        }
    }
}
