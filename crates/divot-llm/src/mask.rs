use burn::tensor::{DType, Device, Int, Tensor, TensorData};
use divot_nn::{Inputs, TensorMapper};

use crate::layout::Place;

/// Added to the scores of hidden keys. It is finite, so that rows that see nothing do not become NaN. Only
/// padding is such a row.
const HIDDEN: f32 = -1e30;

/// Which keys the queries of an attention layer see.
#[derive(Debug, Clone)]
pub(crate) struct Mask {
    /// Added to the scores, 0 for visible keys: `[batch or 1, 1, tokens, positions]`.
    pub added: Option<Tensor<4>>,
    /// Whether each token sees itself and everything before it, and nothing else.
    pub causal: bool,
}

impl Inputs for Mask {
    fn map<M: TensorMapper>(self, mapper: &mut M) -> Self {
        Self {
            added: self.added.map(|added| mapper.map(added)),
            causal: self.causal,
        }
    }
}

/// Computes the mask of the tokens from index `past` on. `places` are those of all tokens, cached ones
/// first.
///
/// `window` is the number of positions back that a token sees, including itself.
pub(crate) fn attention_mask(
    places: &[Vec<Place>],
    past: usize,
    window: Option<usize>,
    device: &Device,
) -> Mask {
    let none = |causal| Mask {
        added: None,
        causal,
    };
    let keys = places.first().map_or(0, Vec::len);
    if past == keys {
        return none(false);
    }
    // Whether the largest difference of positions is within the window.
    let near = |row: &[Place]| {
        let position = |place: &Place| place.position;
        let first = row.iter().map(position).min().unwrap_or(0);
        let last = row[past..].iter().map(position).max().unwrap_or(0);
        window.is_none_or(|window| last.saturating_sub(first) < window)
    };
    let lasting = |row: &[Place]| row.iter().all(|place| place.until >= keys);
    let open = places.iter().all(|row| near(row) && lasting(row));
    let mut queries = places
        .iter()
        .flat_map(|row| row.iter().enumerate().skip(past));
    if open && past == 0 && queries.clone().all(|(index, place)| place.ahead == index) {
        return none(true);
    }
    if open && queries.all(|(_, place)| place.ahead + 1 >= keys) {
        return none(false);
    }

    // Equal rows share a mask.
    let alike = places.windows(2).all(|rows| rows[0] == rows[1]);
    let rows = &places[..if alike { 1 } else { places.len() }];
    let shape = [rows.len(), keys - past, keys];
    let integers = |values: Vec<usize>, shape: [usize; 3]| {
        let values = values
            .into_iter()
            .map(|x| i32::try_from(x).unwrap_or(i32::MAX));
        Tensor::<3, Int>::from_data(TensorData::new(values.collect(), shape), device)
    };
    let of_queries = |value: fn(&Place) -> usize| {
        let values = rows.iter().flat_map(|row| row[past..].iter().map(value));
        integers(values.collect(), [rows.len(), keys - past, 1]).expand(shape)
    };
    let of_keys = |value: fn(&Place) -> usize| {
        let values = rows.iter().flat_map(|row| row.iter().map(value));
        integers(values.collect(), [rows.len(), 1, keys]).expand(shape)
    };
    let query = integers((past..keys).collect(), [1, keys - past, 1]).expand(shape);
    let key = integers((0..keys).collect(), [1, 1, keys]).expand(shape);
    let mut sees = key
        .lower_equal(of_queries(|place| place.ahead))
        .bool_and(query.lower(of_keys(|place| place.until)));
    if let Some(window) = window {
        let oldest = of_queries(|place| place.position).sub_scalar(window.min(1 << 30) as i32);
        sees = sees.bool_and(of_keys(|place| place.position).greater(oldest));
    }
    let added = Tensor::<3>::zeros(shape, (device, DType::F32)).mask_fill(sees.bool_not(), HIDDEN);
    Mask {
        added: Some(added.unsqueeze_dim(1)),
        causal: false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout::{Layout, Role};

    const C: Role = Role::Causal;
    const P: Role = Role::Padding;

    fn q(block: usize) -> Role {
        Role::Query { block }
    }

    fn h(block: usize) -> Role {
        Role::HiddenQuery { block }
    }

    /// Returns what each token from `past` on sees, row by row.
    fn seen(layout: &Layout, past: usize, window: Option<usize>) -> Vec<String> {
        let [batch, keys] = layout.dims();
        let tokens = keys - past;
        let mask = attention_mask(&layout.places(0), past, window, &Device::default());
        let one = match mask.added {
            None if mask.causal => {
                let row = |i: usize| "x".repeat(i + 1) + &".".repeat(keys - i - 1);
                (past..keys).map(row).collect()
            }
            None => vec!["x".repeat(keys); tokens],
            Some(mask) => {
                let [rows, ..] = mask.dims();
                assert_eq!(mask.dims(), [rows, 1, tokens, keys]);
                let values = mask.into_data().try_to_vec::<f32>().unwrap();
                let mark = |&v: &f32| if v == 0.0 { 'x' } else { '.' };
                let all: Vec<String> = values
                    .chunks(keys)
                    .map(|row| row.iter().map(mark).collect())
                    .collect();
                match rows == batch {
                    true => return all,
                    false => all,
                }
            }
        };
        vec![one; batch].concat()
    }

    fn rows(roles: Vec<Role>, past: usize, window: Option<usize>) -> Vec<String> {
        seen(&Layout::new(vec![roles]), past, window)
    }

    #[test]
    fn blocks_see_themselves_and_what_is_before() {
        let roles = vec![C, q(0), q(0), C, q(1), q(1)];
        assert_eq!(
            rows(roles.clone(), 0, None),
            ["x.....", "xxx...", "xxx...", "xxxx..", "xxxxxx", "xxxxxx"]
        );
        assert_eq!(rows(roles.clone(), 3, None), ["xxxx..", "xxxxxx", "xxxxxx"]);
        let causal = Layout::new(vec![roles]).with_causal_queries(true);
        assert_eq!(
            seen(&causal, 0, None),
            ["x.....", "xx....", "xxx...", "xxxx..", "xxxxx.", "xxxxxx"]
        );
    }

    #[test]
    fn hidden_queries_are_seen_by_their_block_only() {
        let roles = vec![C, h(0), h(0), C, h(1), h(1), C];
        assert_eq!(
            rows(roles.clone(), 0, None),
            [
                "x......", "xxx....", "xxx....", "x..x...", "x..xxx.", "x..xxx.", "x..x..x"
            ]
        );
        assert_eq!(rows(roles.clone(), 6, None), ["x..x..x"]);
        let causal = Layout::new(vec![roles]).with_causal_queries(true);
        assert_eq!(
            seen(&causal, 0, None),
            [
                "x......", "xx.....", "xxx....", "x..x...", "x..xx..", "x..xxx.", "x..x..x"
            ]
        );
    }

    #[test]
    fn a_plain_prompt_needs_no_mask() {
        let plain = Layout::causal(2, 3).places(0);
        let mask = attention_mask(&plain, 0, Some(3), &Device::default());
        assert!(mask.causal && mask.added.is_none());
        assert_eq!(rows(vec![C; 3], 0, None), ["x..", "xx.", "xxx"]);
        // A single new token sees all cached tokens.
        let mask = attention_mask(&plain, 2, None, &Device::default());
        assert!(!mask.causal && mask.added.is_none());
        assert_eq!(rows(vec![C; 3], 1, None), ["xx.", "xxx"]);
    }

    #[test]
    fn padding_is_seen_by_none() {
        assert_eq!(
            rows(vec![P, C, C, P], 0, None),
            ["....", ".x..", ".xx.", ".xx."]
        );
        let batch = Layout::new(vec![vec![C, C, P], vec![C, C, C]]);
        assert_eq!(
            seen(&batch, 0, None),
            ["x..", "xx.", "xx.", "x..", "xx.", "xxx"]
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
    fn the_window_counts_positions() {
        let layout = Layout::new(vec![vec![C, h(0), C, C]]);
        let layout = layout.with_positions(vec![vec![0, 1, 1, 2]]);
        assert_eq!(seen(&layout, 0, Some(2)), ["x...", "xx..", "x.x.", "..xx"]);
    }
}
