use burn::module::Module;
use burn::tensor::{DType, Device, Int, Tensor, TensorData};
use divot_nn::{Inputs, TensorMapper};

/// Rotary positions. The two halves of a head are rotated against each other. The angle increases with the
/// position and decreases with the index within the half.
#[derive(Module, Debug)]
pub(crate) struct Rotary {
    head_dim: usize,
    theta: f64,
}

impl Rotary {
    pub fn new(head_dim: usize, theta: f64) -> Self {
        Self { head_dim, theta }
    }

    /// Computes the angles at `positions`, `[batch, tokens]`, on the host in f32, as the released model
    /// does.
    pub fn angles(&self, positions: &[Vec<usize>], device: &Device) -> Angles {
        let Some(first) = positions.first() else {
            return self.table(&[], device);
        };
        if positions.iter().all(|row| row == first) {
            return self.table(first, device);
        }
        let last = positions.iter().flatten().max().copied().unwrap_or(0);
        let table = self.table(&(0..=last).collect::<Vec<_>>(), device);
        let rows: Vec<i32> = positions.iter().flatten().map(|&p| p as i32).collect();
        let rows = Tensor::<1, Int>::from_data(rows.as_slice(), device);
        let shape = [positions.len(), 1, first.len(), self.head_dim / 2];
        let select = |x: Tensor<4>| x.select(2, rows.clone()).reshape(shape);
        Angles {
            cos: select(table.cos),
            sin: select(table.sin),
        }
    }

    /// Computes the angles as `[1, 1, positions, head_dim / 2]`.
    fn table(&self, positions: &[usize], device: &Device) -> Angles {
        let half = self.head_dim / 2;
        let frequencies: Vec<f32> = (0..half)
            .map(|i| 1.0 / (self.theta as f32).powf(2.0 * i as f32 / self.head_dim as f32))
            .collect();
        let angles: Vec<f32> = positions
            .iter()
            .flat_map(|&position| frequencies.iter().map(move |f| position as f32 * f))
            .collect();
        let tensor = |function: fn(f32) -> f32| {
            let values: Vec<f32> = angles.iter().copied().map(function).collect();
            let data = TensorData::new(values, [1, 1, positions.len(), half]);
            Tensor::from_data(data, (device, DType::F32))
        };
        Angles {
            cos: tensor(f32::cos),
            sin: tensor(f32::sin),
        }
    }
}

/// Cosines and sines of the angles, `[batch or 1, 1, tokens, head_dim / 2]`, in f32.
#[derive(Debug, Clone)]
pub(crate) struct Angles {
    cos: Tensor<4>,
    sin: Tensor<4>,
}

impl Inputs for Angles {
    fn map<M: TensorMapper>(self, mapper: &mut M) -> Self {
        Self {
            cos: mapper.map(self.cos),
            sin: mapper.map(self.sin),
        }
    }
}

impl Angles {
    /// Rotates `[batch, heads, tokens, head_dim]`. It computes in f32 and returns the type of `x`.
    pub fn rotate(&self, x: Tensor<4>) -> Tensor<4> {
        let dtype = x.dtype();
        let half = x.dims()[3] / 2;
        let x = x.cast(DType::F32);
        let (a, b) = (x.clone().narrow(3, 0, half), x.narrow(3, half, half));
        let (cos, sin) = (&self.cos, &self.sin);
        let turned_a = a.clone() * cos.clone() - b.clone() * sin.clone();
        let turned_b = b * cos.clone() + a * sin.clone();
        Tensor::cat(vec![turned_a, turned_b], 3).cast(dtype)
    }
}
