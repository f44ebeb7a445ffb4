//! Matrix products whose left operand need not be a matrix: its rows may be gathered from
//! anywhere, so a convolution is a product that never builds its im2col matrix.
//!
//! A tile of [`ROWS`] × a few vectors of the result stays in registers while the left operand is
//! read in place, element by element, and the right one from a panel that was packed so that it
//! lies in the order in which it is used. A few panels together fill most of a second-level
//! cache of 1 MiB; the rows of a tile go by all of them while they are in the first-level one.
//!
//! Plain loops over the arrays of vectors are what keeps them in registers: closures that
//! `array::from_fn` or `map` call are not always compiled for the same processor as their caller.

#![allow(clippy::needless_range_loop)]

use std::cell::Cell;
use std::ops::Range;

use burn::backend::flex::FlexTensor;
use burn::tensor::{DType, bf16, f16};
use half::slice::HalfFloatSliceExt;
use pulp::{Simd, WithSimd};

use super::simd::{self, Shared, uninit};
use crate::vectorised::arch;

/// Rows of a tile.
pub(super) const ROWS: usize = 6;
/// Floats of a tile's widest row: four vectors of AVX-512.
const MAX_WIDTH: usize = 64;
/// Inner length of a packed panel when the left operand is read along its rows.
pub(super) const DEPTH: usize = 704;
/// The same when it is read along its columns, where each step touches another cache line.
const TRANSPOSED_DEPTH: usize = 128;
/// Panels that are packed together, or that tasks share.
pub(super) const GROUP: usize = 4;
/// Floats of a cache line.
pub(super) const LINE: usize = 16;
/// Multiplications below which threads do not pay.
pub(super) const SERIAL: usize = 1 << 19;
/// Floats of a line that a vector is multiplied with at once: their sums and four lines of weights
/// take turns in the first-level cache.
const MAX_LINE: usize = 4096;
/// Fewest rows for which another thread packs a panel again.
const MIN_CHUNK: usize = 768;
/// Floats of a weight gradient up to which several threads sum one, each its share of the rows.
pub(super) const MAX_PARTIAL: usize = 1 << 17;

pub(super) static ZEROS: [f32; DEPTH] = [0.0; DEPTH];

thread_local! {
    /// What a thread's panels were packed into last.
    static PANELS: Cell<Vec<f32>> = const { Cell::new(Vec::new()) };
}

/// At least `len` floats of `buffer`, which grows, from the beginning of a cache line on: a vector
/// that lies in two of them takes twice as long to load.
pub(super) fn lines(buffer: &mut Vec<f32>, len: usize) -> &mut [f32] {
    if buffer.len() < len + LINE {
        buffer.resize(len + LINE, 0.0);
    }
    let start = buffer.as_ptr().align_offset(LINE * size_of::<f32>());
    &mut buffer[start..]
}

/// Which rows of the input make a row of the result: for each tap of a convolution one, or none
/// where the kernel reaches over the edge. The pattern repeats every `period` rows of the result
/// (an image, a clip), each of which has `source` rows of its own in the input.
#[derive(Debug, Clone)]
pub(super) struct Gather {
    /// `[period, taps]`; [`Gather::EDGE`] where there is none.
    pub table: Vec<u32>,
    pub taps: usize,
    pub period: usize,
    pub source: usize,
}

impl Gather {
    pub const EDGE: u32 = u32::MAX;

    /// Each row from the row of the same number.
    pub fn identity() -> Self {
        Self {
            table: vec![0],
            taps: 1,
            period: 1,
            source: 1,
        }
    }

    /// The gather of a kernel of so many taps along one axis, `padding` before it.
    pub fn axis(from: usize, to: usize, taps: usize, stride: usize, padding: usize) -> Self {
        assert!(from < Self::EDGE as usize);
        let places = (0..to).flat_map(|at| (0..taps).map(move |tap| at * stride + tap));
        let within = |place: usize| match place.wrapping_sub(padding) {
            row if row < from => row as u32,
            _ => Self::EDGE,
        };
        Self {
            table: places.map(within).collect(),
            taps,
            period: to,
            source: from,
        }
    }

    /// The gather along the axes of `self` and, within each of their positions, along those of
    /// `inner`.
    pub fn within(&self, inner: &Self) -> Self {
        assert!(self.source * inner.source < Self::EDGE as usize);
        let size = self.table.len() * inner.table.len();
        let mut table = Vec::with_capacity(size);
        for outer in self.table.chunks(self.taps) {
            for inner_taps in inner.table.chunks(inner.taps) {
                for &row in outer {
                    table.extend(inner_taps.iter().map(|&column| match row.max(column) {
                        Self::EDGE => Self::EDGE,
                        _ => row * inner.source as u32 + column,
                    }));
                }
            }
        }
        Self {
            table,
            taps: self.taps * inner.taps,
            period: self.period * inner.period,
            source: self.source * inner.source,
        }
    }

    fn is_identity(&self) -> bool {
        self.table == [0] && self.source == 1
    }

    /// The gather of the gradient: which rows of the result a row of the input went into.
    pub fn inverse(&self) -> Self {
        let mut table = vec![Self::EDGE; self.source * self.taps];
        for (to, taps) in self.table.chunks(self.taps).enumerate() {
            for (tap, &from) in taps.iter().enumerate() {
                if from != Self::EDGE {
                    table[from as usize * self.taps + tap] = to as u32;
                }
            }
        }
        Self {
            table,
            taps: self.taps,
            period: self.source,
            source: self.period,
        }
    }

    /// Where row `m` of the result is in the table, and where its period begins in the input.
    #[inline(always)]
    pub fn place(&self, m: usize) -> (usize, usize) {
        (m % self.period * self.taps, m / self.period * self.source)
    }
}

/// The left operand: rows of `channels` floats.
#[derive(Clone, Copy)]
pub(super) struct Rows<'a> {
    pub data: &'a [f32],
    pub channels: usize,
    pub gather: &'a Gather,
}

/// Weights in the type that they are kept in; they are computed with in f32.
#[derive(Clone, Copy)]
pub(super) enum Values<'a> {
    F32(&'a [f32]),
    F16(&'a [f16]),
    Bf16(&'a [bf16]),
}

impl<'a> Values<'a> {
    /// Those of a contiguous tensor.
    pub fn of(tensor: &'a FlexTensor) -> Self {
        let contiguous = "made contiguous";
        match tensor.dtype() {
            DType::F16 => Self::F16(tensor.as_slice().expect(contiguous)),
            DType::BF16 => Self::Bf16(tensor.as_slice().expect(contiguous)),
            _ => Self::F32(tensor.as_slice().expect(contiguous)),
        }
    }

    /// As many as `to` has, from `first` on.
    #[inline(always)]
    fn copy(self, first: usize, to: &mut [f32]) {
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

    /// As many as `to` has, `stride` apart.
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

/// The right operand, `[taps, channels, outputs]` with any strides.
#[derive(Clone, Copy)]
pub(super) struct Weights<'a> {
    pub data: Values<'a>,
    pub outputs: usize,
    pub tap: usize,
    pub channel: usize,
    pub output: usize,
}

/// Σ over taps and channels of rows · weights, plus the bias: `[m, outputs]`.
pub(super) fn product(
    rows: Rows<'_>,
    weights: Weights<'_>,
    bias: Option<&[f32]>,
    m: usize,
) -> Vec<f32> {
    let n = weights.outputs;
    let (channels, taps) = (rows.channels, rows.gather.taps);
    assert!(rows.data.len() >= m / rows.gather.period * rows.gather.source * channels);
    assert!(bias.is_none_or(|bias| bias.len() == n));
    if m * n * channels == 0 {
        return vec![0.0; m * n];
    }
    if m <= 2 && rows.gather.is_identity() && weights.output == 1 {
        return vector_product(rows, weights, bias, m);
    }
    uninit(m * n, |out| {
        let out = Shared(out);
        let arch = arch();
        let width = arch.dispatch(TileWidth);
        let serial = m * n * channels * taps < SERIAL;
        let panels = n.div_ceil(width);
        let (chunk, groups) = shares(m, panels, serial);
        let border = |group: usize| (group * panels / groups * width).min(n);
        let task = |i: usize| {
            let (first, group) = (i / groups * chunk, i % groups);
            let mut panels = PANELS.take();
            arch.dispatch(Forward {
                rows,
                weights,
                bias,
                m: first..(first + chunk).min(m),
                columns: border(group)..border(group + 1),
                out,
                panels: &mut panels,
            });
            PANELS.set(panels);
        };
        simd::each(groups * m.div_ceil(chunk), serial, task);
    })
}

/// How many rows make a task, and into how many groups panels go: enough for all threads, each of
/// which gets as many, and so few that a panel is packed for many rows.
fn shares(rows: usize, panels: usize, serial: bool) -> (usize, usize) {
    let least = panels.div_ceil(GROUP);
    if serial {
        return (rows, least);
    }
    let (tasks, threads) = (simd::tasks(1), rayon::current_num_threads());
    let most = (rows / MIN_CHUNK).clamp(1, tasks);
    let groups = tasks.div_ceil(most).max(least);
    let chunks = tasks.div_ceil(groups);
    // As many shares of the rows for each thread, or where rows are few, of the panels.
    let (chunks, groups) = match most / threads {
        0 => (chunks.min(most), groups.next_multiple_of(threads)),
        times => (
            chunks.next_multiple_of(threads).min(times * threads),
            groups,
        ),
    };
    let chunk = rows.div_ceil(chunks).next_multiple_of(ROWS);
    (chunk, groups.min(panels))
}

/// One or two rows, where reading the weights is all the work: each thread reads its part of them
/// once and in order.
fn vector_product(
    rows: Rows<'_>,
    weights: Weights<'_>,
    bias: Option<&[f32]>,
    m: usize,
) -> Vec<f32> {
    let (n, channels) = (weights.outputs, rows.channels);
    // Whole lines of weights, where their sums stay in the first-level cache.
    let width = n.min(MAX_LINE);
    let blocks = n.div_ceil(width);
    let depth = channels
        .div_ceil(simd::tasks(blocks))
        .next_multiple_of(4)
        .max(64);
    let parts = channels.div_ceil(depth);
    let mut sums = uninit(parts * m * n, |out| {
        let out = Shared(out);
        let task = |i: usize| {
            let (part, first) = (i / blocks, i % blocks * width);
            let columns = first..(first + width).min(n);
            let block = part * depth..(part * depth + depth).min(channels);
            crate::vectorised(
                #[inline(always)]
                || {
                    let mut converted = vec![0.0; 4 * columns.len()];
                    for row in 0..m {
                        let start = (part * m + row) * n + columns.start;
                        // SAFETY: each task has a part of its rows to itself.
                        let out = unsafe { out.slice(start, columns.len()) };
                        match bias {
                            Some(bias) if part == 0 => out.copy_from_slice(&bias[columns.clone()]),
                            _ => out.fill(0.0),
                        }
                        let x = &rows.data[row * channels..(row + 1) * channels][block.clone()];
                        for (c, x) in x.chunks(4).enumerate() {
                            let first = (block.start + 4 * c) * weights.channel + columns.start;
                            let line = |i: usize| first + i * weights.channel;
                            match (weights.data, x) {
                                (Values::F32(values), &[a, b, c, d]) => {
                                    let line = |i| &values[line(i)..][..columns.len()];
                                    add_lines(out, [a, b, c, d], [0, 1, 2, 3].map(line));
                                }
                                (values, x) => {
                                    let mut factors = [0.0; 4];
                                    factors[..x.len()].copy_from_slice(x);
                                    let lines = converted.chunks_exact_mut(columns.len());
                                    for (i, to) in lines.take(x.len()).enumerate() {
                                        values.copy(line(i), to);
                                    }
                                    let line = |i| &converted[i * columns.len()..][..columns.len()];
                                    add_lines(out, factors, [0, 1, 2, 3].map(line));
                                }
                            }
                        }
                    }
                },
            );
        };
        simd::each(parts * blocks, m * n * channels < SERIAL, task);
    });
    add_parts(&mut sums, m * n);
    sums
}

/// `out += Σ factor · line`.
#[inline(always)]
pub(super) fn add_lines(out: &mut [f32], factors: [f32; 4], [a, b, c, d]: [&[f32]; 4]) {
    for ((((out, a), b), c), d) in out.iter_mut().zip(a).zip(b).zip(c).zip(d) {
        *out += (factors[0] * a + factors[1] * b) + (factors[2] * c + factors[3] * d);
    }
}

/// Adds all parts of `size` floats to the first and forgets them.
pub(super) fn add_parts(sums: &mut Vec<f32>, size: usize) {
    let (total, others) = sums.split_at_mut(size);
    for other in others.chunks(size) {
        for (total, x) in total.iter_mut().zip(other) {
            *total += x;
        }
    }
    sums.truncate(size);
}

/// The gradient of the weights of [`product`]: Σ over rows of gradᵀ · rows, `[taps, outputs,
/// channels]`; `grad` is `[m, outputs]`.
pub(super) fn weight_gradient(rows: Rows<'_>, grad: &[f32], m: usize, outputs: usize) -> Vec<f32> {
    let (channels, taps) = (rows.channels, rows.gather.taps);
    assert!(grad.len() == m * outputs);
    assert!(rows.data.len() >= m / rows.gather.period * rows.gather.source * channels);
    if m * outputs * channels == 0 {
        return vec![0.0; taps * outputs * channels];
    }
    let size = taps * outputs * channels;
    let serial = m * size < SERIAL;
    // Where there is little to share out but rows, tasks take some of these, and sums of their own.
    let parts = match size <= MAX_PARTIAL {
        true => (m / (4 * MIN_CHUNK / 3)).clamp(1, 8),
        false => 1,
    };
    let part = m.div_ceil(parts);
    let parts = m.div_ceil(part);
    let mut sums = uninit(parts * size, |out| {
        let out = Shared(out);
        let arch = arch();
        let width = arch.dispatch(TileWidth);
        let panels = taps * channels.div_ceil(width);
        let groups = panels.div_ceil(GROUP);
        let group = panels.div_ceil(groups);
        let threads = rayon::current_num_threads();
        let splits = match (serial, groups * parts % threads) {
            (true, _) => 1,
            (_, 0) => simd::tasks(groups * parts),
            _ => simd::tasks(groups * parts).next_multiple_of(threads),
        };
        let chunk = outputs.div_ceil(splits).next_multiple_of(ROWS);
        let chunks = outputs.div_ceil(chunk);
        let task = |i: usize| {
            let (part_index, i) = (i / (groups * chunks), i % (groups * chunks));
            let (first, i) = (i / groups * chunk, i % groups * group);
            let rows_from = part_index * part;
            let mut packed = PANELS.take();
            arch.dispatch(Transposed {
                rows,
                grad,
                m: rows_from..(rows_from + part).min(m),
                panels: i..(i + group).min(panels),
                outputs: first..(first + chunk).min(outputs),
                stride: outputs,
                out: out.after(part_index * size),
                packed: &mut packed,
            });
            PANELS.set(packed);
        };
        simd::each(parts * groups * chunks, serial, task);
    });
    add_parts(&mut sums, size);
    sums
}

/// Floats of a tile's row on this processor.
pub(super) struct TileWidth;

impl WithSimd for TileWidth {
    type Output = usize;

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) -> usize {
        vectors::<S>() * S::F32_LANES
    }
}

/// Vectors of a tile's row: with [`ROWS`] rows they and the operands fill the registers.
#[inline(always)]
pub(super) const fn vectors<S: Simd>() -> usize {
    if S::REGISTER_COUNT >= 32 { 4 } else { 2 }
}

/// `acc[r][v] + Σₖ left[r][k·stride] · panel[k][v]`.
///
/// # Safety
/// Each `left` is readable at `k·stride` for k below `depth`, the panel for `depth·V` vectors.
#[inline(always)]
unsafe fn tile<S: Simd, const V: usize>(
    simd: S,
    left: [*const f32; ROWS],
    stride: usize,
    panel: *const f32,
    depth: usize,
    mut acc: [[S::f32s; V]; ROWS],
) -> [[S::f32s; V]; ROWS] {
    for k in 0..depth {
        // SAFETY: as the caller promises.
        unsafe {
            let line = panel.add(k * V * S::F32_LANES).cast::<S::f32s>();
            let mut right = [simd.splat_f32s(0.0); V];
            for v in 0..V {
                right[v] = line.add(v).read_unaligned();
            }
            for r in 0..ROWS {
                let left = simd.splat_f32s(*left[r].add(k * stride));
                for v in 0..V {
                    acc[r][v] = simd.mul_add_e_f32s(left, right[v], acc[r][v]);
                }
            }
        }
    }
    acc
}

/// The rectangle of the result that a tile covers.
pub(super) struct Target {
    pub first: *mut f32,
    pub stride: usize,
    pub rows: usize,
    pub columns: usize,
}

impl Target {
    /// # Safety
    /// The rectangle is readable and no other thread touches it.
    #[inline(always)]
    unsafe fn load<S: Simd, const V: usize>(&self, simd: S) -> [[S::f32s; V]; ROWS] {
        let mut acc = [[simd.splat_f32s(0.0); V]; ROWS];
        let mut padded = [0.0f32; MAX_WIDTH];
        for r in 0..self.rows {
            // SAFETY: as the caller promises; a line that fills no vectors goes by `padded`.
            unsafe {
                let mut line = self.first.add(r * self.stride).cast_const();
                if self.columns < V * S::F32_LANES {
                    line.copy_to_nonoverlapping(padded.as_mut_ptr(), self.columns);
                    line = padded.as_ptr();
                }
                for v in 0..V {
                    acc[r][v] = line.cast::<S::f32s>().add(v).read_unaligned();
                }
            }
        }
        acc
    }

    /// # Safety
    /// The rectangle is writable and no other thread touches it.
    #[inline(always)]
    unsafe fn store<S: Simd, const V: usize>(&self, acc: &[[S::f32s; V]; ROWS]) {
        let mut padded = [0.0f32; MAX_WIDTH];
        for r in 0..self.rows {
            // SAFETY: as the caller promises; a line that fills no vectors goes by `padded`.
            unsafe {
                let line = self.first.add(r * self.stride);
                let whole = self.columns == V * S::F32_LANES;
                let to = if whole { line } else { padded.as_mut_ptr() };
                for v in 0..V {
                    to.cast::<S::f32s>().add(v).write_unaligned(acc[r][v]);
                }
                if !whole {
                    padded.as_ptr().copy_to_nonoverlapping(line, self.columns);
                }
            }
        }
    }
}

/// How a tile of the result begins.
#[derive(Clone, Copy)]
pub(super) enum Start {
    /// Each of its rows with the floats here, as many as the tile is wide.
    Line(*const f32),
    /// With what is there.
    There,
}

/// A tile of the result: for each tap its rows of the left operand by its part of a panel, whose lines
/// are as long as the tile is wide, rounded up to whole vectors.
///
/// # Safety
/// As [`tile`] for each tap, the target is this thread's, and the line as long as the tile is wide.
#[inline(always)]
pub(super) unsafe fn block<S: Simd>(
    simd: S,
    left: &[[*const f32; ROWS]],
    stride: usize,
    panel: *const f32,
    depth: usize,
    target: &Target,
    start: Start,
) {
    // SAFETY: as the caller promises.
    unsafe {
        match target.columns.div_ceil(S::F32_LANES) {
            1 => block_of::<S, 1>(simd, left, stride, panel, depth, target, start),
            2 => block_of::<S, 2>(simd, left, stride, panel, depth, target, start),
            3 if vectors::<S>() > 2 => {
                block_of::<S, 3>(simd, left, stride, panel, depth, target, start);
            }
            _ if vectors::<S>() > 2 => {
                block_of::<S, 4>(simd, left, stride, panel, depth, target, start);
            }
            _ => unreachable!("a panel is at most {} vectors wide", vectors::<S>()),
        }
    }
}

/// # Safety
/// As [`block`], whose columns make `V` vectors.
#[inline(always)]
unsafe fn block_of<S: Simd, const V: usize>(
    simd: S,
    left: &[[*const f32; ROWS]],
    stride: usize,
    panel: *const f32,
    depth: usize,
    target: &Target,
    start: Start,
) {
    // SAFETY: as the caller promises.
    unsafe {
        let mut acc = match start {
            Start::There => target.load::<S, V>(simd),
            Start::Line(line) => {
                let mut row = [simd.splat_f32s(0.0); V];
                for v in 0..V {
                    row[v] = line.cast::<S::f32s>().add(v).read_unaligned();
                }
                [row; ROWS]
            }
        };
        for (tap, left) in left.iter().enumerate() {
            let panel = panel.add(tap * depth * V * S::F32_LANES);
            acc = tile::<S, V>(simd, *left, stride, panel, depth, acc);
        }
        target.store::<S, V>(&acc);
    }
}

/// A part of [`product`]: some rows by a few panels.
struct Forward<'a> {
    rows: Rows<'a>,
    weights: Weights<'a>,
    bias: Option<&'a [f32]>,
    m: Range<usize>,
    columns: Range<usize>,
    out: Shared,
    panels: &'a mut Vec<f32>,
}

impl WithSimd for Forward<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let widest = vectors::<S>() * S::F32_LANES;
        let n = self.weights.outputs;
        let columns = self.columns;
        let Rows {
            data,
            channels,
            gather,
        } = self.rows;
        let taps = gather.taps;
        // As few blocks as there can be, all of about the same depth; a kernel may have more taps than
        // that.
        let blocks = channels.div_ceil((DEPTH / taps).next_multiple_of(LINE).max(LINE));
        let depth = channels
            .div_ceil(blocks)
            .next_multiple_of(LINE)
            .min(channels);
        let padded = columns.len().next_multiple_of(S::F32_LANES);
        let panels = lines(self.panels, padded * taps * depth);
        let mut bias = vec![0.0; padded];
        if let Some(values) = self.bias {
            bias[..columns.len()].copy_from_slice(&values[columns.clone()]);
        }
        let mut left = vec![[ZEROS.as_ptr(); ROWS]; taps];
        for first in (0..channels).step_by(depth) {
            let depth = depth.min(channels - first);
            self.weights
                .pack::<S>(taps, first..first + depth, columns.clone(), widest, panels);
            for m in self.m.clone().step_by(ROWS) {
                for r in 0..ROWS {
                    let (at, base) = gather.place((m + r).min(self.m.end - 1));
                    for tap in 0..taps {
                        left[tap][r] = match gather.table[at + tap] {
                            Gather::EDGE => ZEROS.as_ptr(),
                            row => {
                                let row = (base + row as usize) * channels + first;
                                data[row..][..depth].as_ptr()
                            }
                        };
                    }
                }
                for column in columns.clone().step_by(widest) {
                    let target = Target {
                        // SAFETY: the row begins within the result.
                        first: unsafe { self.out.0.add(m * n + column) },
                        stride: n,
                        rows: ROWS.min(self.m.end - m),
                        columns: (columns.end - column).min(widest),
                    };
                    let at = column - columns.start;
                    let start = match first {
                        0 => Start::Line(bias[at..].as_ptr()),
                        _ => Start::There,
                    };
                    let panel = panels[at * taps * depth..].as_ptr();
                    // SAFETY: the slices above are `depth` long, the panel holds that many lines
                    // of each tap; the rectangle is this task's, and was written for `first == 0`.
                    unsafe { block(simd, &left, 1, panel, depth, &target, start) };
                }
            }
        }
    }
}

impl Weights<'_> {
    /// Packs `[taps, channels, columns]` into panels of `widest` columns, the last of which is padded with
    /// zeros to whole vectors: panel after panel, tap after tap, line after line.
    #[inline(always)]
    fn pack<S: Simd>(
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

    /// Packs a panel of `width` whose lines are columns here.
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
        // A cache line of the panel at a time: as many streams are read side by side.
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

/// A part of [`weight_gradient`]: some outputs by a few panels, each of which is a tap and some of
/// its channels, summed over some rows.
struct Transposed<'a> {
    rows: Rows<'a>,
    grad: &'a [f32],
    m: Range<usize>,
    panels: Range<usize>,
    outputs: Range<usize>,
    stride: usize,
    out: Shared,
    packed: &'a mut Vec<f32>,
}

impl WithSimd for Transposed<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let widest = vectors::<S>() * S::F32_LANES;
        let Rows {
            data,
            channels,
            gather,
        } = self.rows;
        let panels = channels.div_ceil(widest);
        let area = TRANSPOSED_DEPTH * widest;
        let packed = lines(self.packed, self.panels.len() * area);
        // The tap of a panel, its first channel and how many.
        let place = |panel: usize| {
            let column = panel % panels * widest;
            (panel / panels, column, (channels - column).min(widest))
        };
        for first in self.m.clone().step_by(TRANSPOSED_DEPTH) {
            let depth = TRANSPOSED_DEPTH.min(self.m.end - first);
            for (panel, packed) in self.panels.clone().zip(packed.chunks_exact_mut(area)) {
                let (tap, column, columns) = place(panel);
                let width = columns.next_multiple_of(S::F32_LANES);
                for (m, line) in (first..).zip(packed.chunks_exact_mut(width).take(depth)) {
                    let (at, base) = gather.place(m);
                    let (line, padding) = line.split_at_mut(columns);
                    match gather.table[at + tap] {
                        Gather::EDGE => line.fill(0.0),
                        row => {
                            let row = (base + row as usize) * channels + column;
                            line.copy_from_slice(&data[row..row + columns]);
                        }
                    }
                    padding.fill(0.0);
                }
            }
            let start = match first == self.m.start {
                true => Start::Line(ZEROS.as_ptr()),
                false => Start::There,
            };
            let grad = &self.grad[first * self.stride..(first + depth) * self.stride];
            for output in self.outputs.clone().step_by(ROWS) {
                let mut left = [grad.as_ptr(); ROWS];
                for r in 0..ROWS {
                    left[r] = grad[(output + r).min(self.outputs.end - 1)..].as_ptr();
                }
                for (panel, packed) in self.panels.clone().zip(packed.chunks_exact(area)) {
                    let (tap, column, columns) = place(panel);
                    let target = Target {
                        // SAFETY: the row begins within the result.
                        first: unsafe {
                            let row = tap * self.stride + output;
                            self.out.0.add(row * channels + column)
                        },
                        stride: channels,
                        rows: ROWS.min(self.outputs.end - output),
                        columns,
                    };
                    // SAFETY: `left` begins in the first of `depth` rows of `stride` floats; the
                    // rectangle is this task's, and was written for the first rows.
                    unsafe {
                        let (stride, panel) = (self.stride, packed.as_ptr());
                        block(simd, &[left], stride, panel, depth, &target, start);
                    }
                }
            }
        }
    }
}

/// The right operand of many small products, packed once: `[depth, columns]`.
#[derive(Default)]
pub(super) struct Packed {
    panels: Vec<f32>,
    depth: usize,
    columns: usize,
    widest: usize,
}

impl Packed {
    /// Packs `[depth, columns]` with any strides.
    #[inline(always)]
    pub fn fill<S: Simd>(
        &mut self,
        data: &[f32],
        [depth, columns]: [usize; 2],
        [row, column]: [usize; 2],
    ) {
        // As few panels as there can be, all of about the same width.
        let count = columns.div_ceil(S::F32_LANES);
        let panels = count.div_ceil(vectors::<S>()).max(1);
        self.widest = count.div_ceil(panels).max(1) * S::F32_LANES;
        let weights = Weights {
            data: Values::F32(data),
            outputs: columns,
            tap: 0,
            channel: row,
            output: column,
        };
        let panels = lines(
            &mut self.panels,
            depth * columns.next_multiple_of(S::F32_LANES),
        );
        (self.depth, self.columns) = (depth, columns);
        weights.pack::<S>(1, 0..depth, 0..columns, self.widest, panels);
    }

    /// `out[r] = Σₖ left[r·step + k·stride] · packed[k]` for `rows` of the left operand and as many k
    /// as it is deep, or added to what is there. `out`: where the first row begins, and how far the
    /// next one is from it.
    ///
    /// # Safety
    /// The rows are writable, and readable if added to, and no other thread touches them.
    #[inline(always)]
    pub unsafe fn multiply<S: Simd>(
        &self,
        simd: S,
        left: Strided<'_>,
        rows: usize,
        out: (*mut f32, usize),
        add: bool,
    ) {
        let widest = self.widest;
        let (out, out_stride) = out;
        assert!(left.depth <= self.depth);
        assert!(rows * left.depth == 0 || left.last(rows) < left.data.len());
        let panels = self.panels.as_ptr();
        let panels = panels.wrapping_add(panels.align_offset(LINE * size_of::<f32>()));
        let start = match add {
            true => Start::There,
            false => Start::Line(ZEROS.as_ptr()),
        };
        for first_column in (0..self.columns).step_by(widest) {
            let panel = panels.wrapping_add(first_column * self.depth);
            for first in (0..rows).step_by(ROWS) {
                let target = Target {
                    first: out.wrapping_add(first * out_stride + first_column),
                    stride: out_stride,
                    rows: ROWS.min(rows - first),
                    columns: (self.columns - first_column).min(widest),
                };
                let mut from = [left.data.as_ptr(); ROWS];
                for r in 0..ROWS {
                    from[r] = left.data[(first + r).min(rows - 1) * left.step..].as_ptr();
                }
                // SAFETY: the operands were measured above, the result by the caller.
                unsafe {
                    let (stride, depth) = (left.stride, left.depth);
                    block(simd, &[from], stride, panel, depth, &target, start);
                }
            }
        }
    }
}

/// A left operand whose rows are `step` apart and whose `depth` columns `stride`.
#[derive(Clone, Copy)]
pub(super) struct Strided<'a> {
    pub data: &'a [f32],
    pub step: usize,
    pub stride: usize,
    pub depth: usize,
}

impl Strided<'_> {
    fn last(&self, rows: usize) -> usize {
        (rows - 1) * self.step + (self.depth - 1) * self.stride
    }
}
