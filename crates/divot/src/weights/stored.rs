//! Element types of weights on disk, and the tensors that a parameter becomes there.

use std::fmt;
use std::str::FromStr;

use burn::tensor::{DType, FloatDType, TensorData};

use super::layout::cast;
use super::{TensorSpec, WeightsError, eight_bits};
use crate::error::Error;

/// Element type of weights on disk.
///
/// With `Q8`, large parameters of two or more dimensions are rounded to 8 bits ([`Rounded`](divot_nn::Rounded)),
/// and take 8.5 bits with their scales. All other parameters are f16.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum StoredType {
    /// 32 bits.
    #[default]
    F32,
    /// IEEE half precision.
    F16,
    /// The upper half of an f32.
    Bf16,
    /// 8 bits, with a scale for 32 values.
    Q8,
}

impl StoredType {
    /// The names that [`FromStr`] accepts, in the order of the variants.
    pub const NAMES: [&str; 4] = ["f32", "f16", "bf16", eight_bits::NAME];

    /// The float type to compute parameters in before they are stored.
    pub(crate) fn before_storing(self) -> DType {
        match self {
            Self::F32 | Self::Q8 => DType::F32,
            Self::F16 => DType::F16,
            Self::Bf16 => DType::BF16,
        }
    }

    /// The float type of parameters that are not rounded to 8 bits.
    fn float(self) -> DType {
        match self {
            Self::Q8 => DType::F16,
            float => float.before_storing(),
        }
    }

    fn rounds(self, shape: &[usize]) -> bool {
        self == Self::Q8 && eight_bits::worthwhile(shape)
    }

    /// Returns the tensors that a parameter becomes in a file.
    pub(super) fn specs(self, name: &str, shape: &[usize]) -> Vec<TensorSpec> {
        let spec = |name: String, shape: Vec<usize>, dtype| TensorSpec { name, shape, dtype };
        match self.rounds(shape) {
            false => vec![spec(name.to_owned(), shape.to_vec(), self.float())],
            true => vec![
                spec(name.to_owned(), shape.to_vec(), DType::I8),
                spec(
                    eight_bits::scales_name(name),
                    eight_bits::scales_shape(shape),
                    DType::F16,
                ),
            ],
        }
    }

    /// Returns the data of these tensors, from a parameter in any float type.
    pub(super) fn encode(
        self,
        name: &str,
        data: TensorData,
    ) -> Result<Vec<TensorData>, WeightsError> {
        let (bytes, shape, from) = data.into_parts();
        let rounds = self.rounds(&shape);
        let to = match rounds {
            true => DType::F32,
            false => self.float(),
        };
        let bytes = cast(bytes, from, to).map_err(|problem| problem.into_error(name))?;
        let data = TensorData::from_bytes(bytes, shape, to);
        match rounds {
            true => eight_bits::round(name, &data),
            false => Ok(vec![data]),
        }
    }
}

impl fmt::Display for StoredType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(Self::NAMES[*self as usize])
    }
}

impl FromStr for StoredType {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self, Error> {
        [Self::F32, Self::F16, Self::Bf16, Self::Q8]
            .into_iter()
            .find(|stored| stored.to_string() == name)
            .ok_or_else(|| Error::StoredType(name.to_owned()))
    }
}

impl From<FloatDType> for StoredType {
    /// Types that weights are not stored in become f32.
    fn from(dtype: FloatDType) -> Self {
        match dtype {
            FloatDType::F16 => Self::F16,
            FloatDType::BF16 => Self::Bf16,
            _ => Self::F32,
        }
    }
}
