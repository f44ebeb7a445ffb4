//! Packed weights.

use std::ops::Range;
use std::sync::Arc;

use burn::tensor::f16;
use rayon::prelude::*;

use super::Quantization;
use crate::rounding::BLOCK;

/// Number of outputs of a panel of packed weights.
pub const PANEL: usize = 32;

/// Number of neighbouring inputs whose values are neighbours in a panel.
pub(super) const FOUR: usize = 4;

/// Bytes of a group of a panel: four for each output.
pub(super) const GROUP_BYTES: usize = FOUR * PANEL;

/// Bytes of the scales of a block of a panel, which is a cache line.
pub(super) const SCALE_BYTES: usize = 2 * PANEL;

/// Number of outputs that are packed at once. It limits the memory.
const SLAB: usize = 16 * PANEL;

/// Bytes of a cache line. A vector that crosses lines takes twice as long to load.
const LINE: usize = 64;

/// Bytes that several owners share: a part of a buffer or of a mapped file.
#[derive(Clone)]
pub struct SharedBytes {
    owner: Arc<dyn AsRef<[u8]> + Send + Sync>,
    range: Range<usize>,
}

impl SharedBytes {
    /// Takes a part of `owner`.
    ///
    /// # Panics
    /// If the range is not within it.
    pub fn new(owner: Arc<dyn AsRef<[u8]> + Send + Sync>, range: Range<usize>) -> Self {
        assert!(range.start <= range.end && range.end <= (*owner).as_ref().len());
        Self { owner, range }
    }

    /// Creates bytes that start at a cache line.
    fn aligned(len: usize, fill: impl FnOnce(&mut [u8])) -> Self {
        let mut buffer = vec![0; len + LINE];
        let start = buffer.as_ptr().align_offset(LINE);
        let range = start..start + len;
        fill(&mut buffer[range.clone()]);
        Self::new(Arc::new(buffer), range)
    }
}

impl std::ops::Deref for SharedBytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &(*self.owner).as_ref()[self.range.clone()]
    }
}

/// A quantised matrix `[output, input]`, in panels of 32 outputs. The last panel is padded.
///
/// A panel is a row of blocks of 32 inputs, so that a product with one row reads all bytes in order. A block starts
/// with the scale of each output, in f16. Then come groups of 128 bytes: four for each output. With 8 bits, a group
/// holds four neighbouring inputs, with 128 added. With 4 bits, it holds four inputs of the first half of the block
/// in the low bits and those 16 inputs further in the high bits, with 8 added.
pub(super) struct Matrix {
    pub quantization: Quantization,
    pub input: usize,
    pub output: usize,
    pub bytes: SharedBytes,
}

impl std::fmt::Debug for Matrix {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (bits, input, output) = (self.quantization, self.input, self.output);
        write!(f, "{bits:?} [{output}, {input}]")
    }
}

impl Matrix {
    /// Packs a matrix `[input, output]`. `quantise` returns the steps and the scale of each block of a range of
    /// outputs.
    pub fn pack(
        quantization: Quantization,
        [input, output]: [usize; 2],
        quantise: impl Fn(Range<usize>) -> Vec<([i8; BLOCK], f16)> + Sync,
    ) -> Self {
        let blocks = input / BLOCK;
        let block_bytes = quantization.block_bytes();
        let len = quantization.packed_bytes([input, output]);
        let bytes = SharedBytes::aligned(len, |bytes| {
            let slab_bytes = SLAB / PANEL * blocks * block_bytes;
            let slabs = bytes.par_chunks_mut(slab_bytes.max(1)).enumerate();
            slabs.for_each(|(slab, bytes)| {
                let outputs = slab * SLAB..(slab * SLAB + SLAB).min(output);
                for (i, (steps, scale)) in quantise(outputs).iter().enumerate() {
                    let (panel, lane) = (i / blocks / PANEL, i / blocks % PANEL);
                    let at = (panel * blocks + i % blocks) * block_bytes;
                    let (scales, values) = bytes[at..at + block_bytes].split_at_mut(SCALE_BYTES);
                    quantization.place(steps, values, lane);
                    scales[2 * lane..][..2].copy_from_slice(&scale.to_le_bytes());
                }
            });
        });
        Self {
            quantization,
            input,
            output,
            bytes,
        }
    }

    /// Returns the weights, `[input, output]`.
    pub fn restore(&self) -> Vec<f32> {
        let mut weights = vec![0.0; self.input * self.output];
        if weights.is_empty() {
            return weights;
        }
        let block_bytes = self.quantization.block_bytes();
        weights
            .par_chunks_mut(BLOCK * self.output)
            .enumerate()
            .for_each(|(block, weights)| {
                for output in 0..self.output {
                    let (at, lane) = (output / PANEL * self.blocks() + block, output % PANEL);
                    let block = &self.bytes[at * block_bytes..][..block_bytes];
                    let (scales, values) = block.split_at(SCALE_BYTES);
                    let scale =
                        f16::from_le_bytes([scales[2 * lane], scales[2 * lane + 1]]).to_f32();
                    let steps = self.quantization.steps(values, lane);
                    for (weight, step) in
                        weights[output..].iter_mut().step_by(self.output).zip(steps)
                    {
                        *weight = f32::from(step) * scale;
                    }
                }
            });
        weights
    }

    pub fn scales_are_finite(&self) -> bool {
        let blocks = self.bytes.par_chunks_exact(self.quantization.block_bytes());
        blocks.all(|block| {
            let scales = block[..SCALE_BYTES].as_chunks().0.iter();
            scales.fold(true, |finite, raw| {
                finite & f16::from_le_bytes(*raw).is_finite()
            })
        })
    }

    pub fn blocks(&self) -> usize {
        self.input / BLOCK
    }

    pub fn panels(&self) -> usize {
        self.output.div_ceil(PANEL)
    }
}

impl Quantization {
    /// Returns the bytes of a block of a panel.
    pub(super) const fn block_bytes(self) -> usize {
        let groups = match self {
            Self::Q8 => BLOCK / FOUR,
            Self::Q4 => BLOCK / FOUR / 2,
        };
        SCALE_BYTES + groups * GROUP_BYTES
    }

    /// Returns the size of a packed matrix `[input, output]`, in bytes.
    pub fn packed_bytes(self, [input, output]: [usize; 2]) -> usize {
        output.div_ceil(PANEL) * (input / BLOCK) * self.block_bytes()
    }

    /// Stores the steps of a block of one output.
    #[inline(always)]
    fn place(self, steps: &[i8; BLOCK], values: &mut [u8], lane: usize) {
        for (group, values) in values.chunks_exact_mut(GROUP_BYTES).enumerate() {
            let values = &mut values[FOUR * lane..][..FOUR];
            for (i, value) in values.iter_mut().enumerate() {
                let step = |at: usize| steps[FOUR * group + i + at];
                *value = match self {
                    Self::Q8 => step(0) as u8 ^ 128,
                    Self::Q4 => (step(0) + 8) as u8 | ((step(BLOCK / 2) + 8) as u8) << 4,
                };
            }
        }
    }

    /// Returns the steps of a block of one output.
    fn steps(self, values: &[u8], lane: usize) -> [i8; BLOCK] {
        let mut steps = [0; BLOCK];
        for (group, values) in values.chunks_exact(GROUP_BYTES).enumerate() {
            for (i, value) in values[FOUR * lane..][..FOUR].iter().enumerate() {
                let at = FOUR * group + i;
                match self {
                    Self::Q8 => steps[at] = (value ^ 128) as i8,
                    Self::Q4 => {
                        steps[at] = (value & 15) as i8 - 8;
                        steps[at + BLOCK / 2] = (value >> 4) as i8 - 8;
                    }
                }
            }
        }
        steps
    }
}
