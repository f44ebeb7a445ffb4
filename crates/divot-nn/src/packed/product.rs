//! Products of rounded inputs with packed weights.
//!
//! A tile of the result, a few rows by two vectors of outputs, stays in registers. Its weights are read in the
//! order in which they are packed. Sums within a block are integers, and therefore exact.

use std::ops::Range;
use std::sync::OnceLock;

use rayon::prelude::*;

use super::Quantization;
use super::inputs::Inputs;
#[cfg(target_arch = "x86_64")]
use super::lanes;
use super::lanes::{Lanes, Plain};
use super::matrix::{FOUR, GROUP_BYTES, Matrix, PANEL, SCALE_BYTES};
use crate::rounding::BLOCK;
use crate::shared::{Shared, uninit};
#[cfg(target_arch = "x86_64")]
use crate::vectorised::arch;

/// Number of panels that are multiplied with a tile's rows, one after the other, while these rows are in the
/// first-level cache. The panels stay in the second-level cache.
const PANELS: usize = 4;

/// Number of vectors of a tile. They divide a panel.
const V: usize = 2;

/// Minimum number of rows of a task. Fewer would read the weights too often.
const MIN_ROWS: usize = 48;

/// A product with fewer multiplications than this runs on one thread.
const SERIAL: usize = 1 << 16;

/// The instructions of a product.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Instructions {
    Plain,
    #[cfg(target_arch = "x86_64")]
    Avx2,
    #[cfg(target_arch = "x86_64")]
    AvxVnni,
    #[cfg(target_arch = "x86_64")]
    Avx512Vnni,
}

impl Instructions {
    /// Returns the best instructions of this processor, within `DIVOT_VECTORS`.
    pub fn best() -> Self {
        static BEST: OnceLock<Instructions> = OnceLock::new();
        *BEST.get_or_init(|| {
            let mut found = Self::all().into_iter().rev();
            found.find(|one| one.fit()).unwrap_or(Self::Plain)
        })
    }

    /// Returns whether `DIVOT_VECTORS` allows these instructions.
    fn fit(self) -> bool {
        match self {
            Self::Plain => true,
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 | Self::AvxVnni => {
                matches!(arch(), pulp::Arch::V3(_) | pulp::Arch::V4(_))
            }
            #[cfg(target_arch = "x86_64")]
            Self::Avx512Vnni => matches!(arch(), pulp::Arch::V4(_)),
        }
    }

    /// Returns all instructions of this processor that a product may use, the best last.
    pub fn all() -> Vec<Self> {
        #[allow(unused_mut, reason = "there are no others on other processors")]
        let mut all = vec![Self::Plain];
        #[cfg(target_arch = "x86_64")]
        {
            let avx2 = is_x86_feature_detected!("avx2")
                && is_x86_feature_detected!("fma")
                && is_x86_feature_detected!("f16c");
            if avx2 {
                all.push(Self::Avx2);
            }
            if avx2 && is_x86_feature_detected!("avxvnni") {
                all.push(Self::AvxVnni);
            }
            if is_x86_feature_detected!("avx512f")
                && is_x86_feature_detected!("avx512bw")
                && is_x86_feature_detected!("avx512vnni")
            {
                all.push(Self::Avx512Vnni);
            }
        }
        all
    }
}

/// Multiplies inputs with a matrix: `[rows, input]` → `[rows, output]`.
pub(super) fn product(inputs: &Inputs, matrix: &Matrix, instructions: Instructions) -> Vec<f32> {
    assert_eq!(
        inputs.width, matrix.input,
        "widths of inputs and of weights"
    );
    if inputs.steps.is_empty() || matrix.output == 0 {
        return Vec::new();
    }
    let (rows, threads) = (inputs.rows(), rayon::current_num_threads());
    uninit(rows * matrix.output, |out| {
        let out = Shared(out);
        let bytes = &*matrix.bytes;
        let panels = matrix.panels();
        let shape = [matrix.input, matrix.output];
        assert_eq!(bytes.len(), matrix.quantization.packed_bytes(shape));
        let serial = rows * matrix.input * matrix.output < SERIAL || threads == 1;
        // A thread reads a long run of panels for one row, and a few of them for many rows.
        let run = match rows < MIN_ROWS {
            true => panels.div_ceil(4 * threads),
            false => PANELS,
        };
        let groups = panels.div_ceil(run);
        let chunks = (4 * threads).div_ceil(groups).min(rows / MIN_ROWS).max(1);
        let chunk = rows.div_ceil(chunks).next_multiple_of(6);
        let chunks = rows.div_ceil(chunk);
        let task = |i: usize| {
            let (first, group) = (i / groups * chunk, i % groups);
            let task = Task {
                inputs,
                matrix,
                bytes,
                rows: first..(first + chunk).min(rows),
                panels: group * run..(group * run + run).min(panels),
                out,
            };
            // SAFETY: the processor has these instructions, and no other task has this rectangle.
            unsafe { task.run_with(instructions) };
        };
        match serial {
            true => (0..groups * chunks).for_each(task),
            false => (0..groups * chunks).into_par_iter().for_each(task),
        }
    })
}

/// A part of a product: a range of rows by a few panels.
struct Task<'a> {
    inputs: &'a Inputs,
    matrix: &'a Matrix,
    bytes: &'a [u8],
    rows: Range<usize>,
    panels: Range<usize>,
    out: Shared,
}

impl Task<'_> {
    /// # Safety
    /// The processor has the instructions. The rectangle of the result is writable, and no other thread has it.
    unsafe fn run_with(&self, instructions: Instructions) {
        // SAFETY: as the caller promises.
        unsafe {
            match instructions {
                Instructions::Plain => self.run::<Plain>(),
                #[cfg(target_arch = "x86_64")]
                Instructions::Avx2 => self.run_avx2(),
                #[cfg(target_arch = "x86_64")]
                Instructions::AvxVnni => self.run_avx_vnni(),
                #[cfg(target_arch = "x86_64")]
                Instructions::Avx512Vnni => self.run_avx512_vnni(),
            }
        }
    }

    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn run_avx2(&self) {
        // SAFETY: as the caller promises.
        unsafe { self.run::<lanes::x86::Avx2>() };
    }

    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx2,fma,f16c,avxvnni")]
    unsafe fn run_avx_vnni(&self) {
        // SAFETY: as the caller promises.
        unsafe { self.run::<lanes::x86::AvxVnni>() };
    }

    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
    unsafe fn run_avx512_vnni(&self) {
        // SAFETY: as the caller promises.
        unsafe { self.run::<lanes::x86::Avx512Vnni>() };
    }

    /// # Safety
    /// Those of [`run_with`](Self::run_with).
    #[inline(always)]
    unsafe fn run<L: Lanes>(&self) {
        // SAFETY: as the caller promises.
        unsafe {
            match self.matrix.quantization {
                Quantization::Q8 => self.run_bits::<L, true>(),
                Quantization::Q4 => self.run_bits::<L, false>(),
            }
        }
    }

    /// # Safety
    /// Those of [`run_with`](Self::run_with).
    #[inline(always)]
    unsafe fn run_bits<L: Lanes, const EIGHT: bool>(&self) {
        for first in self.panels.clone().step_by(PANELS) {
            let panels = first..(first + PANELS).min(self.panels.end);
            let mut row = self.rows.start;
            while row < self.rows.end {
                let rest = (self.rows.end - row).min(L::ROWS);
                let outputs = panels.start * PANEL..panels.end * PANEL;
                // SAFETY: as the caller promises.
                unsafe {
                    match rest {
                        1 => self.tiles::<L, EIGHT, 1>(row, outputs),
                        2 => self.tiles::<L, EIGHT, 2>(row, outputs),
                        3 | 4 => self.tiles::<L, EIGHT, 4>(row, outputs),
                        _ => self.tiles::<L, EIGHT, 6>(row, outputs),
                    }
                }
                row += rest;
            }
        }
    }

    /// Computes `R` rows from `row` on for a range of outputs. Rows beyond the last one repeat it.
    ///
    /// # Safety
    /// Those of [`run_with`](Self::run_with).
    #[inline(always)]
    unsafe fn tiles<L: Lanes, const EIGHT: bool, const R: usize>(
        &self,
        row: usize,
        outputs: Range<usize>,
    ) {
        for output in outputs.step_by(V * L::LANES) {
            // SAFETY: as the caller promises.
            unsafe { self.tile::<L, EIGHT, R>(row, output) };
        }
    }

    /// Computes a tile of `R` rows by two vectors.
    ///
    /// # Safety
    /// Those of [`run_with`](Self::run_with). The outputs, with padding, are within the matrix.
    #[inline(always)]
    #[allow(
        clippy::needless_range_loop,
        reason = "closures may be compiled for another processor"
    )]
    unsafe fn tile<L: Lanes, const EIGHT: bool, const R: usize>(&self, row: usize, output: usize) {
        let (matrix, inputs) = (self.matrix, self.inputs);
        let blocks = matrix.blocks();
        let groups = if EIGHT {
            BLOCK / FOUR
        } else {
            BLOCK / FOUR / 2
        };
        let block_bytes = matrix.quantization.block_bytes();
        let mut lanes = [0; V];
        for v in 0..V {
            lanes[v] = (output + v * L::LANES) % PANEL;
        }
        let panel = &self.bytes[output / PANEL * blocks * block_bytes..][..blocks * block_bytes];
        let mut steps = [std::ptr::null::<i8>(); R];
        let mut input_scales = [&[0f32; 0][..]; R];
        let mut input_sums = [&[0i32; 0][..]; R];
        for r in 0..R {
            let row = (row + r).min(self.rows.end - 1);
            steps[r] = inputs.steps[row * inputs.width..][..inputs.width].as_ptr();
            input_scales[r] = &inputs.scales[row * blocks..][..blocks];
            input_sums[r] = &inputs.sums[row * blocks..][..blocks];
        }
        let mut totals = [[L::floats(0.0); V]; R];
        for block in 0..blocks {
            let mut sums = [[L::ints(0); V]; R];
            for r in 0..R {
                // What the offset of the stored weights adds to the products.
                let excess = match EIGHT {
                    true => L::excess(input_sums[r][block]),
                    false => 8 * input_sums[r][block],
                };
                sums[r] = [L::ints(-excess); V];
            }
            let packed = panel[block * block_bytes..][..block_bytes].as_ptr();
            for group in 0..groups {
                let at = SCALE_BYTES + group * GROUP_BYTES;
                let mut bytes = [L::ints(0); V];
                for v in 0..V {
                    // SAFETY: the block has these bytes.
                    bytes[v] = unsafe { L::load(packed.add(at + FOUR * lanes[v])) };
                }
                if EIGHT {
                    for r in 0..R {
                        // SAFETY: a row has a whole number of blocks.
                        let x = unsafe { four::<L>(steps[r], block * BLOCK + FOUR * group) };
                        for v in 0..V {
                            sums[r][v] = L::dot8(sums[r][v], bytes[v], x);
                        }
                    }
                    continue;
                }
                let mut half = [L::ints(0); V];
                for v in 0..V {
                    half[v] = L::low(bytes[v]);
                }
                for r in 0..R {
                    // SAFETY: a row has a whole number of blocks.
                    let x = unsafe { four::<L>(steps[r], block * BLOCK + FOUR * group) };
                    for v in 0..V {
                        sums[r][v] = L::dot4(sums[r][v], half[v], x);
                    }
                }
                for v in 0..V {
                    half[v] = L::high(bytes[v]);
                }
                for r in 0..R {
                    // SAFETY: a row has a whole number of blocks.
                    let x =
                        unsafe { four::<L>(steps[r], block * BLOCK + BLOCK / 2 + FOUR * group) };
                    for v in 0..V {
                        sums[r][v] = L::dot4(sums[r][v], half[v], x);
                    }
                }
            }
            for v in 0..V {
                // SAFETY: the block starts with a scale for each output.
                let scales = unsafe { L::halves(packed.add(2 * lanes[v]).cast()) };
                for r in 0..R {
                    let scale = L::floats(input_scales[r][block]);
                    totals[r][v] = L::add_scaled(totals[r][v], sums[r][v], scales, scale);
                }
            }
        }
        let end = matrix.output;
        for r in 0..R {
            let row = (row + r).min(self.rows.end - 1);
            for v in 0..V {
                let output = output + v * L::LANES;
                let mut padded = [0f32; PANEL];
                // SAFETY: the caller promises that this part of the result is ours. What is beyond its end is
                // not written.
                unsafe {
                    let to = self.out.0.wrapping_add(row * end + output);
                    if output + L::LANES <= end {
                        L::store(to, totals[r][v]);
                    } else if output < end {
                        L::store(padded.as_mut_ptr(), totals[r][v]);
                        padded.as_ptr().copy_to_nonoverlapping(to, end - output);
                    }
                }
            }
        }
    }
}

/// Returns four steps of a row in each lane.
///
/// # Safety
/// They are readable.
#[inline(always)]
unsafe fn four<L: Lanes>(steps: *const i8, at: usize) -> L::Ints {
    // SAFETY: as the caller promises.
    L::ints(unsafe { steps.add(at).cast::<i32>().read_unaligned() })
}
