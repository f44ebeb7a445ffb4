//! Plans for making our parameters from released tensors.

use burn::tensor::{DType, TensorData};
use divot_nn::Noise;

use crate::weights::{ParamSpec, SourceTensor, WeightsError, check_shape, convert_tensor};

/// One of our parameters and its origin.
pub(super) struct TensorPlan<'a> {
    /// Its name in our file.
    pub name: String,
    /// Its container and shape. The path is the released name, for messages.
    pub spec: ParamSpec,
    /// Its origin.
    pub origin: Origin<'a>,
}

/// The origin of a parameter.
pub(super) enum Origin<'a> {
    /// A released tensor.
    Copy(&'a SourceTensor),
    /// A released tensor. Its second axis is cut to the parameter's length.
    Narrow(&'a SourceTensor),
    /// Zeros, which have no effect, because nothing was released.
    Zeros,
    /// Initial values of a new layer, uniform within the bound, because nothing was released.
    Fresh { bound: f64, seed: u64 },
    /// A matrix with the product of LoRA merged: W + scale · B A.
    Merged {
        base: &'a SourceTensor,
        a: &'a SourceTensor,
        b: &'a SourceTensor,
        scale: f64,
    },
    /// A table with new rows, which are the mean of its own rows times a factor.
    Grown {
        table: &'a SourceTensor,
        rows: usize,
        factor: f64,
    },
}

impl<'a> Origin<'a> {
    /// Returns the released tensors that it is made from.
    pub fn sources(&self) -> Vec<&'a SourceTensor> {
        match *self {
            Self::Copy(source) | Self::Narrow(source) | Self::Grown { table: source, .. } => {
                vec![source]
            }
            Self::Merged { base, a, b, .. } => vec![base, a, b],
            Self::Zeros | Self::Fresh { .. } => Vec::new(),
        }
    }
}

impl TensorPlan<'_> {
    /// Computes the parameter, in elements of `dtype`.
    pub fn read(&self, dtype: DType) -> Result<TensorData, WeightsError> {
        let shape = &self.spec.shape;
        let data = match &self.origin {
            Origin::Copy(source) => {
                // Check before memory is allocated for it.
                check_shape(&self.spec, &source.shape)
                    .map_err(|error| error.in_file(&source.file))?;
                source.read()?
            }
            Origin::Narrow(source) => narrow_second_axis(source.read()?, shape[1]),
            // New parameters are already in our layout.
            Origin::Zeros => {
                let zeros = vec![0f32; shape.iter().product()];
                return self.cast(TensorData::new(zeros, shape.clone()), dtype);
            }
            Origin::Fresh { bound, seed } => {
                let mut noise = Noise::new(*seed);
                let values: Vec<f32> = (0..shape.iter().product::<usize>())
                    .map(|_| ((2.0 * noise.uniform() - 1.0) * bound) as f32)
                    .collect();
                return self.cast(TensorData::new(values, shape.clone()), dtype);
            }
            Origin::Merged { base, a, b, scale } => merge(base, a, b, *scale)?,
            Origin::Grown {
                table,
                rows,
                factor,
            } => grow(table.read()?, *rows, *factor),
        };
        convert_tensor(data, &self.spec, dtype).map_err(|error| match self.origin.sources()[..] {
            [source, ..] => error.in_file(&source.file),
            [] => error,
        })
    }

    /// Casts values that are already in our layout.
    fn cast(&self, data: TensorData, dtype: DType) -> Result<TensorData, WeightsError> {
        let spec = ParamSpec {
            container: String::new(),
            ..self.spec.clone()
        };
        convert_tensor(data, &spec, dtype)
    }
}

/// Keeps the first `keep` entries of the second axis.
fn narrow_second_axis(data: TensorData, keep: usize) -> TensorData {
    let (bytes, shape, dtype) = data.into_parts();
    let mut dims: Vec<usize> = shape.iter().copied().collect();
    let inner: usize = dims[2..].iter().product::<usize>() * dtype.size();
    let bytes: Vec<u8> = bytes
        .chunks_exact(dims[1] * inner)
        .flat_map(|row| &row[..keep * inner])
        .copied()
        .collect();
    dims[1] = keep;
    TensorData::from_bytes_vec(bytes, dims, dtype)
}

/// Computes W + scale · B A in f32, from `[output, input]`, `[output, rank]` and `[rank, input]`.
pub(super) fn merge(
    base: &SourceTensor,
    a: &SourceTensor,
    b: &SourceTensor,
    scale: f64,
) -> Result<TensorData, WeightsError> {
    let floats = |tensor: &SourceTensor| -> Result<Vec<f32>, WeightsError> {
        Ok(tensor.read()?.iter::<f32>().collect())
    };
    let mut weights = floats(base)?;
    let (a, factors) = (floats(a)?, floats(b)?);
    let (input, rank) = (base.shape[1], b.shape[1]);
    for (row, factors) in weights
        .chunks_exact_mut(input)
        .zip(factors.chunks_exact(rank))
    {
        for (factor, a) in factors.iter().zip(a.chunks_exact(input)) {
            let factor = (f64::from(*factor) * scale) as f32;
            for (weight, a) in row.iter_mut().zip(a) {
                *weight += factor * a;
            }
        }
    }
    Ok(TensorData::new(weights, base.shape.clone()))
}

/// Adds rows to a table, in its own element type.
fn grow(table: TensorData, rows: usize, factor: f64) -> TensorData {
    let dims: Vec<usize> = table.shape().iter().copied().collect();
    let (old, width) = (dims[0], dims[1]);
    let mut mean = vec![0f64; width];
    for (i, value) in table.iter::<f64>().enumerate() {
        mean[i % width] += value;
    }
    let mean: Vec<f32> = mean
        .iter()
        .map(|sum| (sum / old as f64 * factor) as f32)
        .collect();
    let dtype = table.dtype();
    let row = TensorData::new(mean, [width]).convert_dtype(dtype);
    let mut bytes = Vec::with_capacity(rows * width * dtype.size());
    bytes.extend_from_slice(table.as_bytes());
    drop(table);
    for _ in old..rows {
        bytes.extend_from_slice(row.as_bytes());
    }
    TensorData::from_bytes_vec(bytes, [rows, width], dtype)
}
