use burn::tensor::{DType, Device, Tensor, TensorData};

/// What a position is to attention; the released attention mask says it by 0, 1 and −1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Not there: nothing sees it.
    Padding,
    /// Sees itself and what is before it.
    Causal,
    /// One of a block of queries, which see each other too.
    Query {
        /// Which block; blocks of one sequence have different numbers.
        block: usize,
    },
}

impl Role {
    /// Roles of a row of the released attention mask, in which each `block` positions of −1 are a
    /// block of queries. One that the sequence cuts short stays causal.
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
}

/// What is added to a score that must not count. Finite, so that a row that may see nothing, which
/// only padding is, gives numbers and not NaN.
const HIDDEN: f32 = -1e30;

/// What positions see.
pub(crate) struct Mask {
    /// What is added to their scores, 0 where one sees the other: `[batch, 1, tokens, positions]`.
    pub added: Option<Tensor<4>>,
    /// Each sees itself and what is before it.
    pub causal: bool,
}

/// What the positions from `past` on see. `roles` are all positions', the cached ones first.
pub(crate) fn attention_mask(
    roles: &[Vec<Role>],
    past: usize,
    window: Option<usize>,
    device: &Device,
) -> Mask {
    let positions = roles.first().map_or(0, Vec::len);
    let window = window.unwrap_or(usize::MAX);
    let all_causal = roles.iter().flatten().all(|role| *role == Role::Causal);
    if past == 0 && positions <= window && all_causal {
        return Mask {
            added: None,
            causal: true,
        };
    }
    let mut any = false;
    let mut values = Vec::with_capacity(roles.len() * (positions - past) * positions);
    for row in roles {
        for query in past..positions {
            values.extend((0..positions).map(|key| {
                let sees = sees(row, query, key, window);
                any |= !sees;
                if sees { 0.0 } else { HIDDEN }
            }));
        }
    }
    let added = any.then(|| {
        let shape = [roles.len(), 1, positions - past, positions];
        Tensor::from_data(TensorData::new(values, shape), (device, DType::F32))
    });
    Mask {
        added,
        causal: false,
    }
}

fn sees(roles: &[Role], query: usize, key: usize, window: usize) -> bool {
    let same_block = matches!(roles[query], Role::Query { .. }) && roles[query] == roles[key];
    roles[key] != Role::Padding
        && (key <= query || same_block)
        && query.saturating_sub(key) < window
}

#[cfg(test)]
mod tests {
    use super::*;

    const C: Role = Role::Causal;
    const P: Role = Role::Padding;

    fn rows(roles: Vec<Role>, past: usize, window: Option<usize>) -> Vec<String> {
        let (tokens, positions) = (roles.len() - past, roles.len());
        let mask = attention_mask(&[roles], past, window, &Device::default());
        match mask.added {
            None if mask.causal => {
                let row = |i: usize| "x".repeat(i + 1) + &".".repeat(positions - i - 1);
                (past..positions).map(row).collect()
            }
            None => vec!["x".repeat(positions); tokens],
            Some(mask) => {
                assert_eq!(mask.dims(), [1, 1, tokens, positions]);
                let values = mask.into_data().try_to_vec::<f32>().unwrap();
                values
                    .chunks(positions)
                    .map(|row| {
                        row.iter()
                            .map(|&v| if v == 0.0 { 'x' } else { '.' })
                            .collect()
                    })
                    .collect()
            }
        }
    }

    #[test]
    fn blocks_see_themselves_and_what_is_before() {
        let q = |block| Role::Query { block };
        let roles = vec![C, q(0), q(0), C, q(1), q(1)];
        assert_eq!(
            rows(roles.clone(), 0, None),
            ["x.....", "xxx...", "xxx...", "xxxx..", "xxxxxx", "xxxxxx"]
        );
        assert_eq!(rows(roles, 3, None), ["xxxx..", "xxxxxx", "xxxxxx"]);
    }

    #[test]
    fn a_plain_prompt_needs_no_mask() {
        let mask = attention_mask(&[vec![C; 3], vec![C; 3]], 0, Some(3), &Device::default());
        assert!(mask.causal && mask.added.is_none());
        assert_eq!(rows(vec![C; 3], 0, None), ["x..", "xx.", "xxx"]);
        // What is cached is before the first query, which sees it.
        assert_eq!(rows(vec![C; 3], 1, None), ["xx.", "xxx"]);
    }

    #[test]
    fn padding_is_seen_by_none() {
        assert_eq!(
            rows(vec![P, C, C, P], 0, None),
            ["....", ".x..", ".xx.", ".xx."]
        );
    }

    #[test]
    fn the_window_slides() {
        assert_eq!(
            rows(vec![C; 4], 0, Some(2)),
            ["x...", "xx..", ".xx.", "..xx"]
        );
        assert_eq!(rows(vec![C; 4], 3, Some(3)), [".xxx"]);
        assert_eq!(rows(vec![C; 3], 2, Some(3)), ["xxx"]);
    }

    #[test]
    fn roles_of_the_released_mask() {
        let q = |block| Role::Query { block };
        assert_eq!(
            Role::of_released(&[1, -1, -1, 1, -1, -1, 0], 2),
            [C, q(0), q(0), C, q(1), q(1), P]
        );
        assert_eq!(Role::of_released(&[1, -1, -1], 3), [C, C, C]);
    }
}
