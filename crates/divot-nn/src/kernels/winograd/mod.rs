//! Convolutions of three taps along each axis by minimal filtering, F(2, 3) ("Arithmetic Complexity of
//! Computations", Winograd 1980; "Fast Algorithms for Convolutional Neural Networks", Lavin and Gray,
//! arXiv:1509.09308).
//!
//! Along one axis, a tile of four inputs gives two neighbouring results with four multiplications instead
//! of six. Along two axes, 4x4 inputs give 2x2 results with 16 multiplications instead of 36.
//!
//! Inputs, weights and results are transformed along each axis. In between, there is one matrix product
//! for each of the 4 or 16 places of a tile. Larger tiles would need fewer multiplications, but lose
//! precision. If an input is infinite, all results of its tile may be NaN.

#![allow(clippy::needless_range_loop)]

mod forward;
mod gradient;
mod transform;

use std::cell::Cell;

pub(super) use forward::product;
pub(super) use gradient::weight_gradient;

use super::product::{Gather, ROWS};

/// Maximum number of tiles of a task. Each thread keeps them transformed, with 16 floats for each channel.
const TILES: usize = 12 * ROWS;
/// Minimum number of outputs for which transforming the input again in another task pays off.
const FEWEST_OUTPUTS: usize = 64;
/// Number of places of a tile with two axes.
const PLACES: usize = 16;

thread_local! {
    /// This thread's buffers for transformed inputs, and for their products or gradients.
    static TRANSFORMED: Cell<[Vec<f32>; 2]> = const { Cell::new([Vec::new(), Vec::new()]) };
}

/// The rows of the input that a tile reads, and the rows of the result that it writes.
#[derive(Debug)]
pub(super) struct Tiles {
    /// The 4 or 4x4 rows that each tile reads.
    pub from: Gather,
    /// The 2 or 2x2 rows that each tile writes. Each row of the result belongs to one tile.
    pub to: Gather,
}

/// The left operand: images or clips, as rows of `channels` floats.
#[derive(Clone, Copy)]
pub(super) struct Images<'a> {
    pub data: &'a [f32],
    pub channels: usize,
    pub tiles: &'a Tiles,
}

impl Images<'_> {
    /// Returns the number of images.
    fn images(&self) -> usize {
        let size = self.tiles.from.source * self.channels;
        let images = self.data.len() / size;
        assert!(self.data.len() == images * size);
        images
    }

    /// Returns the number of tiles of all images.
    fn count(&self) -> usize {
        let Tiles { from, to } = self.tiles;
        assert!(matches!((from.taps, to.taps), (4, 2) | (16, 4)) && from.period == to.period);
        self.images() * from.period
    }
}
