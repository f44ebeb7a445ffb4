//! Matrix products. The rows of the left operand may be gathered from anywhere in the input, so a
//! convolution is a product that never builds its im2col matrix.
//!
//! A tile of the result, [`ROWS`] rows by a few vectors, stays in registers. The left operand is read
//! in place, element by element. The right operand is packed into panels first, in the order in which
//! the inner loop reads it. A few panels together fill most of a second-level cache of 1 MiB. The rows
//! of a tile stay in the first-level cache while they are multiplied with all these panels.
//!
//! Arrays of vectors are read and written in plain loops: `array::from_fn` and `map` call closures that
//! are not always compiled for the same processor as their caller.

#![allow(clippy::needless_range_loop)]

mod forward;
mod gather;
mod gradient;
mod packed;
#[cfg(target_arch = "x86_64")]
pub(super) mod pairs;
mod tile;
mod vector;
mod weights;
mod words;

use std::cell::Cell;

pub(super) use forward::product;
pub(super) use gather::{Gather, Rows};
pub(super) use gradient::weight_gradient;
pub(super) use packed::{Packed, Strided};
#[cfg(target_arch = "x86_64")]
pub(super) use pairs::Pairs;
pub(super) use tile::{ROWS, Start, Target, TileWidth, block, vectors};
pub(super) use weights::{Values, Weights};
pub(super) use words::{Floats, Words};

/// Maximum inner dimension of a packed panel.
pub(super) const DEPTH: usize = 704;

/// Number of panels that a task packs together.
pub(super) const GROUP: usize = 4;
/// Number of floats in a cache line.
pub(super) const LINE: usize = 16;
/// A product with fewer multiplications than this runs on one thread.
pub(super) const SERIAL: usize = 1 << 19;

/// Minimum number of rows for which packing a panel again on another thread pays off.
const MIN_CHUNK: usize = 768;
/// Maximum number of floats of a weight gradient that several threads compute, each of which sums a part of
/// the rows.
pub(super) const MAX_PARTIAL: usize = 1 << 17;

/// The row for taps outside the input.
pub(super) static ZEROS: [f32; DEPTH] = [0.0; DEPTH];

thread_local! {
    /// This thread's buffer for packed panels.
    static PANELS: Cell<Vec<f32>> = const { Cell::new(Vec::new()) };
}

/// Returns at least `len` floats of a buffer, which grows if needed. They start at a cache line, because a
/// vector that crosses cache lines takes twice as long to load.
pub(super) fn lines(buffer: &mut Vec<f32>, len: usize) -> &mut [f32] {
    if buffer.len() < len + LINE {
        buffer.resize(len + LINE, 0.0);
    }
    let start = buffer.as_ptr().align_offset(LINE * size_of::<f32>());
    &mut buffer[start..]
}

/// Sums parts of `size` floats into the first one, and drops the others.
pub(super) fn add_parts(sums: &mut Vec<f32>, size: usize) {
    let (total, others) = sums.split_at_mut(size);
    for other in others.chunks(size) {
        for (total, x) in total.iter_mut().zip(other) {
            *total += x;
        }
    }
    sums.truncate(size);
}
