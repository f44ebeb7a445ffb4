//! The left operand of a product: rows of the input, gathered by a table.

/// The rows of the input for each row of the result: one for each tap of a convolution, or none if the tap
/// is outside the input. The pattern repeats for each image or clip.
#[derive(Debug, Clone)]
pub(crate) struct Gather {
    /// Rows of the input, `[period, taps]`, counted from the first row of the image or clip.
    /// [`Gather::EDGE`] means none.
    pub table: Vec<u32>,
    /// Number of taps.
    pub taps: usize,
    /// Rows of the result for each image or clip.
    pub period: usize,
    /// Rows of the input for each image or clip.
    pub source: usize,
}

impl Gather {
    pub const EDGE: u32 = u32::MAX;

    /// Creates the gather of a plain matrix: each row of the result reads the row with the same index.
    pub fn identity() -> Self {
        Self {
            table: vec![0],
            taps: 1,
            period: 1,
            source: 1,
        }
    }

    /// Creates the gather of a convolution along one axis, from `from` positions to `to`, with `padding`
    /// before the first.
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

    /// Creates the gather of a convolution over several axes: those of `self`, then those of `inner`.
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

    pub fn is_identity(&self) -> bool {
        self.table == [0] && self.source == 1
    }

    /// Creates the gather of the input's gradient: the rows of the result to which a row of the input
    /// contributed.
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

    /// Returns the offset of row `m` of the result in the table, and the first row of its image or clip in
    /// the input.
    #[inline(always)]
    pub fn place(&self, m: usize) -> (usize, usize) {
        (m % self.period * self.taps, m / self.period * self.source)
    }
}

/// The left operand: gathered rows of `channels` floats.
#[derive(Clone, Copy)]
pub(crate) struct Rows<'a> {
    pub data: &'a [f32],
    pub channels: usize,
    pub gather: &'a Gather,
}
