//! Element types of weights on disk, and the tensors that a parameter becomes there.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use burn::tensor::{DType, FloatDType, TensorData};
use divot_nn::Quantization;

use super::layout::cast;
use super::{TensorSpec, WeightsError, eight_bits, packed};
use crate::error::Error;

/// Element type of weights on disk.
///
/// With `Q8` and `Q4`, the linear layers of a language model's decoder are packed
/// ([`PackedLinear`](divot_nn::PackedLinear)), so that they load at once on the CPU. They take 8.5 or 4.5 bits with their scales. Other large parameters of two or
/// more dimensions are rounded to 8 bits ([`Rounded`](divot_nn::Rounded)), and all others are f16.
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
    /// 4 bits for the decoder, with a scale for 32 values, and 8 bits for everything else.
    Q4,
}

impl StoredType {
    /// The names that [`FromStr`] accepts, in the order of the variants.
    pub const NAMES: [&str; 5] = ["f32", "f16", "bf16", eight_bits::NAME, "q4"];

    /// The float type to compute parameters in before they are stored.
    pub(crate) fn before_storing(self) -> DType {
        match self {
            Self::F32 | Self::Q8 | Self::Q4 => DType::F32,
            Self::F16 => DType::F16,
            Self::Bf16 => DType::BF16,
        }
    }

    /// The float type of parameters that are not rounded to 8 bits.
    fn float(self) -> DType {
        match self {
            Self::Q8 | Self::Q4 => DType::F16,
            float => float.before_storing(),
        }
    }

    /// Returns how a parameter is stored.
    fn form(self, name: &str, shape: &[usize]) -> Form {
        let bits = match self {
            Self::F32 | Self::F16 | Self::Bf16 => return Form::Float,
            Self::Q8 => Quantization::Q8,
            Self::Q4 => Quantization::Q4,
        };
        match shape {
            &[input, output] if packed::applies(name, shape) => Form::Packed(bits, [input, output]),
            _ if eight_bits::worthwhile(shape) => Form::Rounded,
            _ => Form::Float,
        }
    }

    /// Adds what a reader has to know about the encoding of these parameters to the metadata of their file.
    pub(super) fn describe(
        self,
        params: &[(String, Vec<usize>)],
        metadata: &mut BTreeMap<String, String>,
    ) {
        if matches!(self, Self::F32 | Self::F16 | Self::Bf16) {
            return;
        }
        let mut matrices = params
            .iter()
            .filter_map(|(name, shape)| match self.form(name, shape) {
                Form::Packed(_, [_, output]) => Some((name.clone(), output)),
                Form::Float | Form::Rounded => None,
            });
        let packs = matrices.clone().next().is_some();
        let encoding = if packs {
            packed::NAME
        } else {
            eight_bits::NAME
        };
        metadata.insert(eight_bits::ENCODING.to_owned(), encoding.to_owned());
        if let Some(outputs) = packed::outputs(&mut matrices) {
            metadata.insert(packed::OUTPUTS.to_owned(), outputs);
        }
    }

    /// Returns the tensors that a parameter becomes in a file.
    pub(super) fn specs(self, name: &str, shape: &[usize]) -> Vec<TensorSpec> {
        let spec = |name: String, shape: Vec<usize>, dtype| TensorSpec { name, shape, dtype };
        let own = |shape, dtype| spec(name.to_owned(), shape, dtype);
        match self.form(name, shape) {
            Form::Float => vec![own(shape.to_vec(), self.float())],
            Form::Packed(bits, shape) => vec![own(packed::stored_shape(shape, bits), DType::U8)],
            Form::Rounded => vec![
                own(shape.to_vec(), DType::I8),
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
        let form = self.form(name, &shape);
        let to = match form {
            Form::Float => self.float(),
            Form::Rounded | Form::Packed(..) => DType::F32,
        };
        let bytes = cast(bytes, from, to).map_err(|problem| problem.into_error(name))?;
        let data = TensorData::from_bytes(bytes, shape, to);
        match form {
            Form::Float => Ok(vec![data]),
            Form::Rounded => eight_bits::round(name, &data),
            Form::Packed(bits, _) => Ok(vec![packed::pack(name, &data, bits)?]),
        }
    }
}

/// How a parameter is stored.
enum Form {
    Float,
    Rounded,
    /// A matrix of this shape.
    Packed(Quantization, [usize; 2]),
}

impl fmt::Display for StoredType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(Self::NAMES[*self as usize])
    }
}

impl FromStr for StoredType {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self, Error> {
        [Self::F32, Self::F16, Self::Bf16, Self::Q8, Self::Q4]
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
