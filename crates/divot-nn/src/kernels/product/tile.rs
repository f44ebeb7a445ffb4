//! The inner loop: a tile of the result that stays in registers.

use pulp::{Simd, WithSimd};

use super::words::Words;

/// Number of rows of a tile.
pub(crate) const ROWS: usize = 6;
/// Number of floats in the widest row of a tile: four AVX-512 vectors.
pub(super) const MAX_WIDTH: usize = 64;

/// Returns the number of floats in a row of a tile on this processor.
pub(crate) struct TileWidth;

impl WithSimd for TileWidth {
    type Output = usize;

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) -> usize {
        vectors::<S>() * S::F32_LANES
    }
}

/// Returns the number of vectors in a row of a tile. With [`ROWS`] rows, the tile and the operands fill the
/// registers.
#[inline(always)]
pub(crate) const fn vectors<S: Simd>() -> usize {
    if S::REGISTER_COUNT >= 32 { 4 } else { 2 }
}

/// Computes `acc[r][v] + Σₖ left[r][k·stride] · panel[k][v]`.
///
/// # Safety
/// Each `left` is readable at `k·stride` for k below `depth`, and the panel for `depth·V` vectors. The processor has
/// the instructions for these words.
#[inline(always)]
unsafe fn tile<S: Simd, W: Words, const V: usize>(
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
                    acc[r][v] = W::multiply(simd, left, right[v], acc[r][v]);
                }
            }
        }
    }
    acc
}

/// The rectangle of the result that a tile covers: rows of `columns` floats, `stride` apart.
pub(crate) struct Target {
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
            // SAFETY: as the caller promises. A line that ends within a vector uses `padded`.
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
            // SAFETY: as the caller promises. A line that ends within a vector uses `padded`.
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

/// The values that a tile adds to.
#[derive(Clone, Copy)]
pub(crate) enum Start {
    /// The same line for each row, as long as a row of the tile, rounded up to whole vectors.
    Line(*const f32),
    /// The values that are already in the result.
    There,
}

/// Computes a tile of the result. For each tap, it multiplies rows of the left operand with the tap's
/// part of a panel. The lines of the panel are as long as a row of the tile, rounded up to whole vectors.
///
/// # Safety
/// Those of [`tile`] for each tap. The target is writable, and readable with [`Start::There`], and no other
/// thread accesses it. A [`Start::Line`] is readable for a row of the tile, rounded up to whole vectors.
#[inline(always)]
pub(crate) unsafe fn block<S: Simd, W: Words>(
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
            1 => block_of::<S, W, 1>(simd, left, stride, panel, depth, target, start),
            2 => block_of::<S, W, 2>(simd, left, stride, panel, depth, target, start),
            3 if vectors::<S>() > 2 => {
                block_of::<S, W, 3>(simd, left, stride, panel, depth, target, start);
            }
            _ if vectors::<S>() > 2 => {
                block_of::<S, W, 4>(simd, left, stride, panel, depth, target, start);
            }
            _ => unreachable!("a panel is at most {} vectors wide", vectors::<S>()),
        }
    }
}

/// Computes [`block`] for a tile of `V` vectors.
///
/// # Safety
/// Those of [`block`]. The columns of the target fill `V` vectors, the last one possibly only in part.
#[inline(always)]
unsafe fn block_of<S: Simd, W: Words, const V: usize>(
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
            acc = tile::<S, W, V>(simd, *left, stride, panel, depth, acc);
        }
        target.store::<S, V>(&acc);
    }
}
