/// How attention treats a token. The released attention mask has the values 0, 1 and −1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Padding, which no token sees.
    Padding,
    /// Sees itself and everything before it.
    Causal,
    /// One of a block of learned queries. A query also sees the later queries of its block, unless queries
    /// are [causal](Layout::with_causal_queries).
    Query {
        /// Number of the block. Neighbouring blocks have different numbers.
        block: usize,
    },
    /// Like [`Query`](Self::Query), but visible only within its block. The sequence continues as if the
    /// block had not been read. Generation does the same: it samples a clip from the queries, removes
    /// them, and reads the clip in their place.
    HiddenQuery {
        /// Number of the block. Neighbouring blocks have different numbers.
        block: usize,
    },
}

impl Role {
    /// Returns the roles for a row of the released attention mask. 0 is padding, 1 is a token, and each run
    /// of `block` values of −1 is a block of queries. A block that the row cuts short is causal.
    pub fn of_released(mask: &[i64], block: usize) -> Vec<Self> {
        let queries: Vec<usize> = (0..mask.len()).filter(|&i| mask[i] == -1).collect();
        let mut roles: Vec<Self> = mask
            .iter()
            .map(|&m| if m == 0 { Self::Padding } else { Self::Causal })
            .collect();
        for (number, chunk) in queries.chunks(block).enumerate() {
            let whole = chunk.len() == block && chunk[0] + block <= mask.len();
            if whole {
                roles[chunk[0]..chunk[0] + block].fill(Self::Query { block: number });
            }
        }
        roles
    }

    /// Returns the value in the released attention mask.
    pub fn released(self) -> i64 {
        match self {
            Self::Padding => 0,
            Self::Causal => 1,
            Self::Query { .. } | Self::HiddenQuery { .. } => -1,
        }
    }
}

/// Roles and rotary positions of a batch of tokens.
#[derive(Debug, Clone)]
pub struct Layout {
    roles: Vec<Vec<Role>>,
    /// By default, consecutive positions after those in the cache.
    positions: Option<Vec<Vec<usize>>>,
    causal_queries: bool,
}

/// What attention needs to know about a token. Indices count the tokens of a row, including cached ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Place {
    /// Rotary position.
    pub position: usize,
    /// The last index that it sees.
    pub ahead: usize,
    /// Tokens from this index on do not see it.
    pub until: usize,
}

impl Layout {
    /// Creates the layout of tokens with these roles, `[batch, tokens]`, at consecutive positions.
    ///
    /// # Panics
    /// If the rows differ in length.
    pub fn new(roles: Vec<Vec<Role>>) -> Self {
        assert!(
            roles.windows(2).all(|rows| rows[0].len() == rows[1].len()),
            "rows of a batch have the same length"
        );
        Self {
            roles,
            positions: None,
            causal_queries: false,
        }
    }

    /// Creates the layout of plain causal tokens, `[batch, tokens]`.
    pub fn causal(batch: usize, tokens: usize) -> Self {
        Self::new(vec![vec![Role::Causal; tokens]; batch])
    }

    /// Sets the rotary positions, `[batch, tokens]`. The sliding window is measured in them too.
    ///
    /// # Panics
    /// If the number of positions differs from that of the roles.
    pub fn with_positions(mut self, positions: Vec<Vec<usize>>) -> Self {
        let lengths = |rows: &mut dyn Iterator<Item = usize>| rows.collect::<Vec<_>>();
        assert_eq!(
            lengths(&mut positions.iter().map(Vec::len)),
            lengths(&mut self.roles.iter().map(Vec::len)),
            "one position for each role"
        );
        self.positions = Some(positions);
        self
    }

    /// Sets whether a query does not see the later queries of its block.
    pub fn with_causal_queries(mut self, causal: bool) -> Self {
        self.causal_queries = causal;
        self
    }

    /// Returns `[batch, tokens]`.
    pub fn dims(&self) -> [usize; 2] {
        [self.roles.len(), self.roles.first().map_or(0, Vec::len)]
    }

    /// Returns the places of the tokens after `past` cached ones.
    pub(crate) fn places(&self, past: usize) -> Vec<Vec<Place>> {
        let rows = self.roles.iter().enumerate();
        rows.map(|(row, roles)| {
            let mut places = Vec::with_capacity(roles.len());
            for block in roles.chunk_by(|a, b| a == b) {
                let last = past + places.len() + block.len() - 1;
                for role in block {
                    let index = past + places.len();
                    let of_block = if self.causal_queries { index } else { last };
                    let (ahead, until) = match role {
                        Role::Padding => (index, 0),
                        Role::Causal => (index, usize::MAX),
                        Role::Query { .. } => (of_block, usize::MAX),
                        Role::HiddenQuery { .. } => (of_block, last + 1),
                    };
                    let given = self.positions.as_ref();
                    places.push(Place {
                        position: given.map_or(index, |rows| rows[row][places.len()]),
                        ahead,
                        until,
                    });
                }
            }
            places
        })
        .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn roles_of_the_released_mask() {
        let (c, p) = (Role::Causal, Role::Padding);
        let q = |block| Role::Query { block };
        let mask = [1, -1, -1, 1, -1, -1, 0];
        let roles = Role::of_released(&mask, 2);
        assert_eq!(roles, [c, q(0), q(0), c, q(1), q(1), p]);
        assert_eq!(roles.iter().map(|r| r.released()).collect::<Vec<_>>(), mask);
        assert_eq!(Role::of_released(&[1, -1, -1], 3), [c, c, c]);
    }
}
