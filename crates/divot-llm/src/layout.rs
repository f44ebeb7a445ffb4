/// What a token is to attention. The released attention mask writes it as 0, 1 or −1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// No token: nothing sees it.
    Padding,
    /// Sees itself and everything before it.
    Causal,
    /// One of a block of learned queries. Queries of a block also see those of the block after them,
    /// unless queries are [causal](Layout::with_causal_queries).
    Query {
        /// Number of the block; neighbouring blocks have different numbers.
        block: usize,
    },
    /// As [`Query`](Self::Query), but seen by its own block only, not by anything after it. The
    /// sequence continues as if the block was never read, which is what generation does: it draws a
    /// clip from the queries, forgets them, and reads the clip in their place.
    HiddenQuery {
        /// Number of the block; neighbouring blocks have different numbers.
        block: usize,
    },
}

impl Role {
    /// Roles of a row of the released attention mask: 0 is padding, 1 a token, and each run of
    /// `block` times −1 a block of queries. A block that the row cuts short is causal.
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

    /// The value in the released attention mask.
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
    /// Consecutive, behind those in the cache, if not given.
    positions: Option<Vec<Vec<usize>>>,
    causal_queries: bool,
}

/// What attention has to know of a token. Indices count the tokens of a row, cached ones included.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Place {
    /// Rotary position.
    pub position: usize,
    /// The last index that it sees.
    pub ahead: usize,
    /// The first index that does not see it any more.
    pub until: usize,
}

impl Layout {
    /// Tokens with these roles, `[batch, tokens]`, at consecutive positions.
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

    /// Plain causal tokens, `[batch, tokens]`.
    pub fn causal(batch: usize, tokens: usize) -> Self {
        Self::new(vec![vec![Role::Causal; tokens]; batch])
    }

    /// Sets the rotary positions, `[batch, tokens]`. The sliding window counts in positions as well.
    ///
    /// # Panics
    /// If there is not one for each role.
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

    /// Whether a query does not see the queries of its block after it.
    pub fn with_causal_queries(mut self, causal: bool) -> Self {
        self.causal_queries = causal;
        self
    }

    /// `[batch, tokens]`.
    pub fn dims(&self) -> [usize; 2] {
        [self.roles.len(), self.roles.first().map_or(0, Vec::len)]
    }

    /// The places of the tokens behind `past` cached ones.
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
