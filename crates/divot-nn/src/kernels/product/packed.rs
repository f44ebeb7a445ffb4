//! A right operand that is packed once for many small products.

use pulp::Simd;

use super::{LINE, ROWS, Start, Target, Values, Weights, Words, ZEROS, block, lines, vectors};

/// A packed matrix `[depth, columns]` of words.
#[derive(Default)]
pub(crate) struct Packed {
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
        // As few panels as possible, all of about the same width.
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

    /// Multiplies `rows` rows of the left operand: `out[r] = Σₖ left[r·step + k·stride] · packed[k]`, for
    /// k below the left operand's depth. Both are words `W`. With `add`, the products are added to the values in `out`.
    ///
    /// `out` is the start of the first row of the result, and the distance between rows.
    ///
    /// # Safety
    /// The rows of the result are writable, and readable with `add`. No other thread touches them. The processor has
    /// the instructions for these words.
    #[inline(always)]
    pub unsafe fn multiply<S: Simd, W: Words>(
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
                // SAFETY: the assertions above cover the operands, and the caller's promise covers the
                // result.
                unsafe {
                    let (stride, depth) = (left.stride, left.depth);
                    block::<S, W>(simd, &[from], stride, panel, depth, &target, start);
                }
            }
        }
    }
}

/// A left operand: rows `step` apart, of `depth` values `stride` apart.
#[derive(Clone, Copy)]
pub(crate) struct Strided<'a> {
    pub data: &'a [f32],
    pub step: usize,
    pub stride: usize,
    pub depth: usize,
}

impl<'a> Strided<'a> {
    /// Joins neighbours of a row to words, in a copy if these are not floats. The stride is 1.
    #[inline(always)]
    pub fn rows_in_words<'b, W: Words>(self, rows: usize, buffer: &'b mut Vec<f32>) -> Strided<'b>
    where
        'a: 'b,
    {
        if W::CHANNELS == 1 {
            return self;
        }
        let width = self.depth;
        self.copy(rows, buffer);
        W::join_rows(buffer, width, width);
        Strided {
            data: buffer,
            step: width,
            depth: width.div_ceil(W::CHANNELS),
            ..self
        }
    }

    /// Joins neighbouring rows to words, in a copy if these are not floats. The stride is 1.
    #[inline(always)]
    pub fn lines_in_words<'b, W: Words>(self, rows: usize, buffer: &'b mut Vec<f32>) -> Strided<'b>
    where
        'a: 'b,
    {
        if W::CHANNELS == 1 {
            return self;
        }
        let width = self.depth;
        self.copy(rows, buffer);
        W::join_panels(buffer, 1, rows, width, width);
        Strided {
            data: buffer,
            step: width,
            ..self
        }
    }

    #[inline(always)]
    fn copy(&self, rows: usize, buffer: &mut Vec<f32>) {
        buffer.resize(rows * self.depth, 0.0);
        for (row, to) in buffer.chunks_exact_mut(self.depth).enumerate() {
            to.copy_from_slice(&self.data[row * self.step..][..self.depth]);
        }
    }

    /// Returns the index of the last value of the last row.
    fn last(&self, rows: usize) -> usize {
        (rows - 1) * self.step + (self.depth - 1) * self.stride
    }
}
