use burn::tensor::{DType, Int, Tensor};

use crate::layout::Place;

/// The capacity of a cache is a multiple of this number of positions.
const ROOM: usize = 256;

/// Keys and values of the positions that a [`Mistral`](crate::Mistral) has read.
///
/// The cache grows by doubling. New keys and values are written in place without moving others, except when
/// a beam search reorders its beams, see [`select`](Self::select).
#[derive(Debug)]
pub struct KvCache {
    layers: Vec<LayerCache>,
    places: Vec<Vec<Place>>,
}

impl KvCache {
    /// Creates an empty cache for a decoder with this number of layers and room for `positions`.
    pub fn new(layers: usize, positions: usize) -> Self {
        let room = positions.max(1);
        Self {
            layers: (0..layers).map(|_| LayerCache::new(room)).collect(),
            places: Vec::new(),
        }
    }

    /// Stores keys and values in this type, such as f16, which takes half of the memory of f32. By default, they
    /// have the type that the decoder computes in. On the CPU, types other than f32 and f16 are slow.
    ///
    /// # Panics
    /// If something was read already.
    pub fn with_dtype(mut self, dtype: DType) -> Self {
        assert!(
            self.is_empty(),
            "the cache has keys and values of its own type"
        );
        for layer in &mut self.layers {
            layer.dtype = Some(dtype);
        }
        self
    }

    /// Returns the number of positions.
    pub fn len(&self) -> usize {
        self.places.first().map_or(0, Vec::len)
    }

    /// Returns whether no position was read yet.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Returns the number of positions that fit before the cache grows.
    pub fn capacity(&self) -> usize {
        self.layers.first().map_or(0, LayerCache::capacity)
    }

    /// Removes all positions except the first `len`.
    pub fn truncate(&mut self, len: usize) {
        for row in &mut self.places {
            row.truncate(len);
        }
        for layer in &mut self.layers {
            layer.len = layer.len.min(len);
        }
    }

    /// Keeps the given rows of the batch, in this order. Rows may repeat. Beam search uses this.
    ///
    /// # Panics
    /// If a row does not exist.
    pub fn select(&mut self, rows: &[usize]) {
        if rows.iter().copied().eq(0..self.places.len()) || self.places.is_empty() {
            return;
        }
        self.places = rows.iter().map(|&row| self.places[row].clone()).collect();
        for layer in &mut self.layers {
            layer.select(rows);
        }
    }

    pub(crate) fn places(&self) -> &[Vec<Place>] {
        &self.places
    }

    pub(crate) fn push_places(&mut self, places: Vec<Vec<Place>>) {
        if self.places.is_empty() {
            self.places = places;
            return;
        }
        assert_eq!(
            self.places.len(),
            places.len(),
            "the cache has another batch size"
        );
        for (all, new) in self.places.iter_mut().zip(places) {
            all.extend(new);
        }
    }

    pub(crate) fn layers_mut(&mut self) -> &mut [LayerCache] {
        &mut self.layers
    }
}

/// One layer's keys and values, `[batch, key_value_heads, capacity, head_dim]` each.
#[derive(Debug, Default)]
pub(crate) struct LayerCache {
    store: Option<(Tensor<4>, Tensor<4>)>,
    /// The type of both, if it is not that of what is added.
    dtype: Option<DType>,
    len: usize,
    /// Initial number of positions to make room for. With 0, nothing is kept.
    room: usize,
}

impl LayerCache {
    fn new(room: usize) -> Self {
        Self {
            room,
            ..Self::default()
        }
    }

    fn capacity(&self) -> usize {
        self.store.as_ref().map_or(0, |(keys, _)| keys.dims()[2])
    }

    /// Adds keys and values, `[batch, key_value_heads, tokens, head_dim]`, and returns all of them.
    pub fn push(&mut self, keys: Tensor<4>, values: Tensor<4>) -> (Tensor<4>, Tensor<4>) {
        if self.room == 0 {
            return (keys, values);
        }
        let (keys, values) = match self.dtype {
            Some(dtype) => (keys.cast(dtype), values.cast(dtype)),
            None => (keys, values),
        };
        let tokens = keys.dims()[2];
        let (start, end) = (self.len, self.len + tokens);
        let capacity = self.capacity();
        let (stored_keys, stored_values) = match self.store.take() {
            Some(store) if end <= capacity => store,
            old => {
                let capacity = end.max(2 * capacity).max(self.room).next_multiple_of(ROOM);
                let grow = |new: &Tensor<4>, old: Option<Tensor<4>>| {
                    let [batch, heads, _, head_dim] = new.dims();
                    let shape = [batch, heads, capacity, head_dim];
                    let store = Tensor::zeros(shape, (&new.device(), new.dtype()));
                    match old {
                        Some(old) => write(store, 0, old.narrow(2, 0, start)),
                        None => store,
                    }
                };
                let (old_keys, old_values) = old.unzip();
                (grow(&keys, old_keys), grow(&values, old_values))
            }
        };
        let stored_keys = write(stored_keys, start, keys);
        let stored_values = write(stored_values, start, values);
        self.len = end;
        let seen = (
            stored_keys.clone().narrow(2, 0, end),
            stored_values.clone().narrow(2, 0, end),
        );
        self.store = Some((stored_keys, stored_values));
        seen
    }

    fn select(&mut self, rows: &[usize]) {
        self.store = self.store.take().map(|(keys, values)| {
            let indices: Vec<i32> = rows.iter().map(|&row| row as i32).collect();
            let indices = Tensor::<1, Int>::from_data(indices.as_slice(), &keys.device());
            (keys.select(0, indices.clone()), values.select(0, indices))
        });
    }
}

/// Writes `new` at position `start`, in place if `store` is not shared.
fn write(store: Tensor<4>, start: usize, new: Tensor<4>) -> Tensor<4> {
    let [batch, heads, tokens, head_dim] = new.dims();
    store.slice_assign(
        [0..batch, 0..heads, start..start + tokens, 0..head_dim],
        new,
    )
}
