use burn::backend::flex::FlexTensor;

use super::activation::{silu, silu_slope};
use super::simd::{self, CHUNK, Shared, by_rows, row_sum, uninit};
use super::{Kernel, contiguous, floats, matrix, shape, tensor};
use crate::vectorised;

/// Number of rows that are summed in f32 before they are added to the total in f64.
const BLOCK: usize = 128;

/// Sums the rows of `[rows, width]`.
pub(super) fn column_sums(x: &[f32], width: usize) -> Vec<f32> {
    let rows = x.len() / width.max(1);
    let sums = sums(
        1,
        rows,
        width,
        #[inline(always)]
        |row, sum: &mut [f32]| {
            for (sum, x) in sum.iter_mut().zip(&x[row * width..]) {
                *sum += x;
            }
        },
    );
    sums.into_iter().map(|x| x as f32).collect()
}

/// Sums over the rows of each sample: `[samples, width]`. `add` adds the row with this index to a sum.
fn sums(
    samples: usize,
    rows: usize,
    width: usize,
    add: impl Fn(usize, &mut [f32]) + Copy + Send + Sync,
) -> Vec<f64> {
    let blocks = rows.div_ceil(BLOCK);
    let partial = uninit(samples * blocks * width, |out| {
        let out = Shared(out);
        simd::each(samples * blocks, samples * rows * width < CHUNK, |i| {
            let (sample, block) = (i / blocks, i % blocks);
            // SAFETY: each task has a row of the result to itself.
            let sum = unsafe { out.slice(i * width, width) };
            sum.fill(0.0);
            vectorised(
                #[inline(always)]
                || {
                    for row in block * BLOCK..(block * BLOCK + BLOCK).min(rows) {
                        add(sample * rows + row, sum);
                    }
                },
            );
        });
    });
    let mut total = vec![0.0; samples * width];
    for (i, partial) in partial.chunks(width.max(1)).enumerate() {
        let total = &mut total[i / blocks * width..][..width];
        for (total, x) in total.iter_mut().zip(partial) {
            *total += f64::from(*x);
        }
    }
    total
}

/// Layer norm over the last axis, or root-mean-square norm if `centred` is false. Inputs: x, gamma and, for
/// a layer norm, beta.
#[derive(Debug)]
pub(crate) struct RowNorm {
    pub centred: bool,
    pub epsilon: f32,
}

impl RowNorm {
    /// Computes mean and 1 / standard deviation of a row.
    #[inline(always)]
    fn statistics(&self, x: &[f32]) -> (f32, f32) {
        let n = x.len() as f32;
        let mean = if self.centred {
            row_sum(x, x, |x, _| x) / n
        } else {
            0.0
        };
        let variance = row_sum(x, x, |x, _| (x - mean) * (x - mean)) / n;
        (mean, 1.0 / (variance + self.epsilon).sqrt())
    }
}

impl Kernel for RowNorm {
    fn name(&self) -> &'static str {
        "norm"
    }

    fn forward(&self, inputs: &[FlexTensor]) -> FlexTensor {
        let x = contiguous(&inputs[0]);
        let gamma = contiguous(&inputs[1]);
        let beta = inputs.get(2).map(contiguous);
        let (rows, width) = matrix(&x);
        let (xs, gamma) = (floats(&x), floats(&gamma));
        let beta = match &beta {
            Some(beta) => floats(beta).to_vec(),
            None => vec![0.0; width],
        };
        let values = by_rows(
            rows,
            width,
            #[inline(always)]
            |row, out| {
                let x = &xs[row * width..(row + 1) * width];
                let (mean, scale) = self.statistics(x);
                for (((out, x), gamma), beta) in out.iter_mut().zip(x).zip(gamma).zip(&beta) {
                    *out = (x - mean) * scale * gamma + beta;
                }
            },
        );
        tensor(values, shape(&x))
    }

    fn backward(
        &self,
        inputs: &[FlexTensor],
        grad: FlexTensor,
        wanted: &[bool],
    ) -> Vec<Option<FlexTensor>> {
        let (x, gamma, grad) = (
            contiguous(&inputs[0]),
            contiguous(&inputs[1]),
            contiguous(&grad),
        );
        let (rows, width) = matrix(&x);
        let (xs, gs, gammas) = (floats(&x), floats(&grad), floats(&gamma));
        let to_x = wanted[0].then(|| {
            let values = by_rows(
                rows,
                width,
                #[inline(always)]
                |row, out| {
                    let x = &xs[row * width..(row + 1) * width];
                    let grad = &gs[row * width..(row + 1) * width];
                    let (mean, scale) = self.statistics(x);
                    for ((out, grad), gamma) in out.iter_mut().zip(grad).zip(gammas) {
                        *out = grad * gamma;
                    }
                    let n = width as f32;
                    let shift = if self.centred {
                        row_sum(out, x, |g, _| g) / n
                    } else {
                        0.0
                    };
                    let slope = row_sum(out, x, |g, x| g * (x - mean)) * scale * scale / n;
                    for (out, x) in out.iter_mut().zip(x) {
                        *out = (*out - shift - (x - mean) * slope) * scale;
                    }
                },
            );
            tensor(values, shape(&x))
        });
        let mut found = vec![to_x];
        if wanted[1..].contains(&true) {
            let sums = sums(
                1,
                rows,
                2 * width,
                #[inline(always)]
                |row, sum: &mut [f32]| {
                    let (to_gamma, to_beta) = sum.split_at_mut(width);
                    let x = &xs[row * width..(row + 1) * width];
                    let grad = &gs[row * width..];
                    let (mean, scale) = self.statistics(x);
                    for (((to_gamma, to_beta), x), grad) in
                        to_gamma.iter_mut().zip(to_beta).zip(x).zip(grad)
                    {
                        *to_gamma += grad * ((x - mean) * scale);
                        *to_beta += grad;
                    }
                },
            );
            let sums: Vec<f32> = sums.into_iter().map(|x| x as f32).collect();
            for (i, sums) in sums.chunks(width).enumerate().take(inputs.len() - 1) {
                found.push(wanted[1 + i].then(|| tensor(sums.to_vec(), shape(&gamma))));
            }
        } else {
            found.resize(inputs.len(), None);
        }
        found
    }
}

/// Group norm with channels last, `[samples, …positions, channels]`, followed by SiLU if `silu` is set.
/// Inputs: x, gamma and beta.
#[derive(Debug)]
pub(crate) struct GroupNorm {
    pub groups: usize,
    pub epsilon: f64,
    pub silu: bool,
}

/// The statistics of a group norm: x̂ = x · scale + shift, with a scale and a shift for each sample and
/// channel.
struct Normalised {
    samples: usize,
    positions: usize,
    channels: usize,
    scale: Vec<f32>,
    shift: Vec<f32>,
}

impl Normalised {
    /// Returns x̂ of a row.
    #[inline(always)]
    fn line<'a>(&'a self, x: &'a [f32], row: usize) -> impl Iterator<Item = f32> + 'a {
        let at = row / self.positions * self.channels;
        let scale = &self.scale[at..at + self.channels];
        let shift = &self.shift[at..at + self.channels];
        let x = &x[row * self.channels..(row + 1) * self.channels];
        let affine = scale.iter().zip(shift);
        x.iter().zip(affine).map(
            #[inline(always)]
            |(x, (scale, shift))| x * scale + shift,
        )
    }
}

impl GroupNorm {
    fn normalised(&self, x: &FlexTensor) -> Normalised {
        let samples = x.layout().shape()[0];
        let (rows, channels) = matrix(x);
        let positions = rows / samples.max(1);
        let xs = floats(x);
        let group = channels / self.groups;
        let count = (positions * group) as f64;
        let line = |row: usize| &xs[row * channels..(row + 1) * channels];
        // The mean of each group, repeated for each of its channels.
        let spread = |sums: Vec<f64>| -> Vec<f64> {
            let groups = sums.chunks(group.max(1));
            groups
                .flat_map(|sums| std::iter::repeat_n(sums.iter().sum::<f64>() / count, group))
                .collect()
        };
        let means = sums(
            samples,
            positions,
            channels,
            #[inline(always)]
            |row, sum: &mut [f32]| {
                for (sum, x) in sum.iter_mut().zip(line(row)) {
                    *sum += x;
                }
            },
        );
        let means: Vec<f32> = spread(means).into_iter().map(|x| x as f32).collect();
        let variances = sums(
            samples,
            positions,
            channels,
            #[inline(always)]
            |row, sum: &mut [f32]| {
                let means = &means[row / positions * channels..];
                for ((sum, x), mean) in sum.iter_mut().zip(line(row)).zip(means) {
                    *sum += (x - mean) * (x - mean);
                }
            },
        );
        let scale: Vec<f32> = spread(variances)
            .into_iter()
            .map(|variance| (1.0 / (variance + self.epsilon).sqrt()) as f32)
            .collect();
        let shift = means
            .iter()
            .zip(&scale)
            .map(|(mean, scale)| -mean * scale)
            .collect();
        Normalised {
            samples,
            positions,
            channels,
            scale,
            shift,
        }
    }
}

impl Kernel for GroupNorm {
    fn name(&self) -> &'static str {
        "norm"
    }

    fn forward(&self, inputs: &[FlexTensor]) -> FlexTensor {
        let [x, gamma, beta] = [0, 1, 2].map(|i| contiguous(&inputs[i]));
        let mut norm = self.normalised(&x);
        let channels = norm.channels;
        for (i, (scale, shift)) in norm.scale.iter_mut().zip(&mut norm.shift).enumerate() {
            let (gamma, beta) = (floats(&gamma)[i % channels], floats(&beta)[i % channels]);
            *scale *= gamma;
            *shift = *shift * gamma + beta;
        }
        let xs = floats(&x);
        let rows = norm.samples * norm.positions;
        let values = by_rows(
            rows,
            channels,
            #[inline(always)]
            |row, out| {
                for (out, z) in out.iter_mut().zip(norm.line(xs, row)) {
                    *out = z;
                }
                if self.silu {
                    for z in out {
                        *z = silu(*z);
                    }
                }
            },
        );
        tensor(values, shape(&x))
    }

    fn backward(
        &self,
        inputs: &[FlexTensor],
        grad: FlexTensor,
        wanted: &[bool],
    ) -> Vec<Option<FlexTensor>> {
        let [x, gamma, beta] = [0, 1, 2].map(|i| contiguous(&inputs[i]));
        let mut grad = contiguous(&grad);
        let norm = self.normalised(&x);
        let (channels, positions) = (norm.channels, norm.positions);
        let rows = norm.samples * positions;
        let (xs, gammas, betas) = (floats(&x), floats(&gamma), floats(&beta));
        if self.silu {
            let gs = floats(&grad);
            let values = by_rows(
                rows,
                channels,
                #[inline(always)]
                |row, out| {
                    let affine = gammas.iter().zip(betas);
                    for ((out, x), (gamma, beta)) in
                        out.iter_mut().zip(norm.line(xs, row)).zip(affine)
                    {
                        *out = x * gamma + beta;
                    }
                    let grad = &gs[row * channels..(row + 1) * channels];
                    for (out, grad) in out.iter_mut().zip(grad) {
                        *out = grad * silu_slope(*out);
                    }
                },
            );
            grad = tensor(values, shape(&x));
        }
        let gs = floats(&grad);
        // For each sample: Σ grad · x̂ of each channel, then Σ grad of each channel.
        let sums = sums(
            norm.samples,
            positions,
            2 * channels,
            #[inline(always)]
            |row, sum: &mut [f32]| {
                let (by_x, plain) = sum.split_at_mut(channels);
                let grad = &gs[row * channels..(row + 1) * channels];
                for (((by_x, plain), x), grad) in
                    by_x.iter_mut().zip(plain).zip(norm.line(xs, row)).zip(grad)
                {
                    *by_x += grad * x;
                    *plain += grad;
                }
            },
        );
        let to_x = wanted[0].then(|| {
            // In the same order: the means of gamma · grad · x̂ and of gamma · grad over each group.
            let group = channels / self.groups;
            let count = (positions * group) as f64;
            let mut means = vec![0.0f32; sums.len()];
            for (means, sums) in means.chunks_mut(channels).zip(sums.chunks(channels)) {
                for first in (0..channels).step_by(group.max(1)) {
                    let sum: f64 = (first..first + group)
                        .map(|c| sums[c] * f64::from(gammas[c]))
                        .sum();
                    means[first..first + group].fill((sum / count) as f32);
                }
            }
            let values = by_rows(
                rows,
                channels,
                #[inline(always)]
                |row, out| {
                    let at = row / positions * channels;
                    let (by_x, plain) = means[2 * at..2 * at + 2 * channels].split_at(channels);
                    let grad = gs[row * channels..(row + 1) * channels].iter().zip(gammas);
                    let scale = norm.scale[at..at + channels].iter();
                    for ((((out, x), (grad, gamma)), scale), (by_x, plain)) in out
                        .iter_mut()
                        .zip(norm.line(xs, row))
                        .zip(grad)
                        .zip(scale)
                        .zip(by_x.iter().zip(plain))
                    {
                        *out = scale * (grad * gamma - plain - x * by_x);
                    }
                },
            );
            tensor(values, shape(&x))
        });
        let parameter = |at: usize| {
            let total = |c: usize| -> f64 {
                (0..norm.samples)
                    .map(|s| sums[(2 * s + at) * channels + c])
                    .sum()
            };
            tensor(
                (0..channels).map(|c| total(c) as f32).collect(),
                shape(&gamma),
            )
        };
        let to_gamma = wanted[1].then(|| parameter(0));
        let to_beta = wanted[2].then(|| parameter(1));
        vec![to_x, to_gamma, to_beta]
    }
}
