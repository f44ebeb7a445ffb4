//! The layout of a module's parameters, and the conversion of released tensors to it.

use super::WeightsError;
use burn::module::{Module, ModuleVisitor, Param};
use burn::tensor::{Bytes, DType, Tensor, TensorData, bf16, f16};
use half::slice::HalfFloatSliceExt;

/// One float parameter of a module.
#[derive(Debug, Clone, PartialEq)]
pub struct ParamSpec {
    /// Field names and indices from the module's root, joined by dots: `blocks.0.attn.qkv.weight`.
    /// `Vec`, array and tuple fields add the index of the element. `Option` and the variants of an enum add
    /// nothing.
    pub path: String,
    /// The type that directly holds the parameter: `Struct:Linear`, `Struct:Embedding`, `Vec`, ...
    pub container: String,
    /// Extents, outermost first, in Burn's order.
    pub shape: Vec<usize>,
}

impl ParamSpec {
    /// Returns whether this is the weight of a `Linear`, which Burn stores as `[input, output]` and PyTorch
    /// as `[output, input]`.
    pub fn is_linear_weight(&self) -> bool {
        self.container == "Struct:Linear" && self.shape.len() == 2
    }

    /// Returns the extents in PyTorch's order, which differ for the weight of a `Linear`.
    pub(crate) fn pytorch_shape(&self) -> Vec<usize> {
        let mut shape = self.shape.clone();
        if self.is_linear_weight() {
            shape.reverse();
        }
        shape
    }
}

/// Lists the float parameters of a module in the order of its fields.
///
/// Parameters that are not initialised stay so, so that listing a network with billions of parameters costs
/// nothing. Integer and boolean parameters are not weights and are not listed. `Linear`s must be in Burn's
/// default layout, `LinearLayout::Row`.
pub fn module_layout<M: Module>(module: &M) -> Vec<ParamSpec> {
    let mut layout = Layout::default();
    module.visit(&mut layout);
    layout.params
}

#[derive(Default)]
struct Layout {
    place: ParamPath,
    params: Vec<ParamSpec>,
}

impl ModuleVisitor for Layout {
    fn enter_module(&mut self, name: &str, container: &str) {
        self.place.enter(name, container);
    }

    fn exit_module(&mut self, _name: &str, _container: &str) {
        self.place.exit();
    }

    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        self.params.push(ParamSpec {
            path: self.place.path(),
            container: self.place.container().to_string(),
            shape: param.lazy_shape().as_slice().to_vec(),
        });
    }
}

/// The path of the current parameter in a visitor or mapper of a module.
///
/// The visitor forwards `enter_module` and `exit_module` to it. Paths are those of [`ParamSpec::path`].
#[derive(Debug, Default)]
pub struct ParamPath(Vec<(String, String)>);

impl ParamPath {
    /// Enters a module or field.
    pub fn enter(&mut self, name: &str, container: &str) {
        self.0.push((name.to_string(), container.to_string()));
    }

    /// Leaves the last one entered.
    pub fn exit(&mut self) {
        self.0.pop();
    }

    /// The path from the module's root.
    pub fn path(&self) -> String {
        let names = self
            .0
            .iter()
            .filter(|(_, container)| !container.starts_with("Enum:"))
            .map(|(name, _)| name.as_str());
        names.collect::<Vec<_>>().join(".")
    }

    /// What directly holds the parameter: see [`ParamSpec::container`].
    pub fn container(&self) -> &str {
        self.0.last().map_or("", |(_, container)| container)
    }
}

/// Converts a tensor of a PyTorch checkpoint to the parameter `spec`, with elements of type `dtype` (f32,
/// f16 or bf16).
///
/// The weight of a `Linear` is transposed from `[output, input]` to `[input, output]`. Axes of length one
/// may be missing or additional. A 1x1 convolution stored as `[output, input, 1, 1]` is therefore a
/// `Linear` too.
///
/// # Errors
///
/// If the shape is another one, the type is not floating point, or a value is NaN, infinite, or not
/// representable in `dtype`.
pub fn convert_tensor(
    data: TensorData,
    spec: &ParamSpec,
    dtype: DType,
) -> Result<TensorData, WeightsError> {
    let (bytes, shape, from) = data.into_parts();
    let found = shape.as_slice();

    let expected = check_shape(spec, found)?;

    let bytes = if spec.is_linear_weight() {
        let [rows, columns] = [expected[0], expected[1]];
        Bytes::from_bytes_vec(transpose(&bytes, rows, columns, from.size()))
    } else {
        bytes
    };
    let bytes = cast(bytes, from, dtype).map_err(|problem| problem.into_error(&spec.path))?;
    Ok(TensorData::from_bytes(bytes, spec.shape.clone(), dtype))
}

/// Converts the parameter `spec` to a tensor of a PyTorch checkpoint with elements of type `dtype`, the inverse
/// of [`convert_tensor`].
///
/// `shape` is that of the tensor. It differs from PyTorch's usual one at most in axes of length one.
///
/// # Errors
///
/// Those of [`convert_tensor`].
pub(crate) fn release_tensor(
    data: TensorData,
    spec: &ParamSpec,
    shape: &[usize],
    dtype: DType,
) -> Result<TensorData, WeightsError> {
    let (bytes, found, from) = data.into_parts();
    if found.as_slice() != spec.shape {
        return Err(wrong_shape(&spec.path, &spec.shape, found.as_slice()));
    }
    check_shape(spec, shape)?;
    let bytes = match spec.is_linear_weight() {
        true => {
            let bytes = transpose(&bytes, spec.shape[0], spec.shape[1], from.size());
            Bytes::from_bytes_vec(bytes)
        }
        false => bytes,
    };
    let bytes = cast(bytes, from, dtype).map_err(|problem| problem.into_error(&spec.path))?;
    Ok(TensorData::from_bytes(bytes, shape.to_vec(), dtype))
}

/// Returns the expected shape of a released tensor for `spec`, if a tensor of shape `found` can be
/// converted.
///
/// # Errors
///
/// If the shape is another one.
pub(crate) fn check_shape(spec: &ParamSpec, found: &[usize]) -> Result<Vec<usize>, WeightsError> {
    let expected = spec.pytorch_shape();
    let long_axes =
        |shape: &[usize]| -> Vec<usize> { shape.iter().copied().filter(|&len| len != 1).collect() };
    match found == expected || long_axes(found) == long_axes(&expected) {
        true => Ok(expected),
        false => Err(wrong_shape(&spec.path, &expected, found)),
    }
}

pub(super) fn wrong_shape(tensor: &str, expected: &[usize], found: &[usize]) -> WeightsError {
    WeightsError::tensor(
        tensor,
        format!("has shape {found:?} where {expected:?} is expected"),
        "the weights are for another configuration: use the configuration they were made with",
    )
}

/// Transposes a `rows` x `columns` matrix whose elements have `size` bytes.
pub(super) fn transpose(bytes: &[u8], rows: usize, columns: usize, size: usize) -> Vec<u8> {
    fn typed<const SIZE: usize>(bytes: &[u8], rows: usize, columns: usize) -> Vec<u8> {
        // Copy tiles through a buffer in the first-level cache. Going down a column of the matrix itself
        // would be slow: if rows have a power of two of elements, those of a column share a few cache
        // lines.
        const TILE: usize = 32;
        let mut tile = [[[0; SIZE]; TILE]; TILE];
        let (from, _) = bytes.as_chunks::<SIZE>();
        let mut out = vec![0; bytes.len()];
        let (to, _) = out.as_chunks_mut::<SIZE>();
        for top in (0..rows).step_by(TILE) {
            let height = TILE.min(rows - top);
            for left in (0..columns).step_by(TILE) {
                let width = TILE.min(columns - left);
                for (y, line) in tile[..height].iter_mut().enumerate() {
                    let start = (top + y) * columns + left;
                    line[..width].copy_from_slice(&from[start..start + width]);
                }
                for x in 0..width {
                    let start = (left + x) * rows + top;
                    for (to, line) in to[start..start + height].iter_mut().zip(&tile) {
                        *to = line[x];
                    }
                }
            }
        }
        out
    }
    match size {
        1 => typed::<1>(bytes, rows, columns),
        2 => typed::<2>(bytes, rows, columns),
        4 => typed::<4>(bytes, rows, columns),
        _ => typed::<8>(bytes, rows, columns),
    }
}

/// Why elements could not be cast. The index is that of the first invalid element.
#[derive(Debug, PartialEq)]
pub(super) enum CastProblem {
    NotFloat(DType),
    NotFinite {
        index: usize,
        value: f64,
    },
    TooLarge {
        index: usize,
        value: f64,
        to: &'static str,
    },
    Unsupported(DType),
}

impl CastProblem {
    /// Adds `count` to the element's index.
    pub fn after(mut self, count: usize) -> Self {
        match &mut self {
            Self::NotFinite { index, .. } | Self::TooLarge { index, .. } => *index += count,
            Self::NotFloat(_) | Self::Unsupported(_) => {}
        }
        self
    }

    pub fn into_error(self, tensor: &str) -> WeightsError {
        let (problem, remedy) = match self {
            Self::NotFloat(from) => (
                format!(
                    "has elements of type {} where floats are expected",
                    from.name()
                ),
                "the file is not a checkpoint of this model: get the right one",
            ),
            Self::NotFinite { index, value } => (
                format!("holds {value} (element {index})"),
                "the checkpoint is broken: get it again or use an earlier one",
            ),
            Self::TooLarge { index, value, to } => (
                format!("holds {value} (element {index}), which {to} cannot"),
                "use bf16 or f32 instead",
            ),
            Self::Unsupported(to) => (
                format!("cannot be converted to {}", to.name()),
                "use f32, f16 or bf16",
            ),
        };
        WeightsError::tensor(tensor, problem, remedy)
    }
}

/// Number of elements that are cast at a time. Their f32 values fit into the first-level cache.
const BLOCK: usize = 4096;

/// Casts float elements, and checks that every one is finite before and after. Elements that already have
/// the type are only checked.
pub(super) fn cast(bytes: Bytes, from: DType, to: DType) -> Result<Bytes, CastProblem> {
    if from == to {
        check_finite(&bytes, from)?;
        return Ok(bytes);
    }
    cast_slice(&bytes, from, to)
}

/// Like [`cast`], from borrowed bytes.
pub(super) fn cast_slice(bytes: &[u8], from: DType, to: DType) -> Result<Bytes, CastProblem> {
    if from == to {
        check_finite(bytes, from)?;
        return Ok(Bytes::from_bytes_vec(bytes.to_vec()));
    }
    if !from.is_float() {
        return Err(CastProblem::NotFloat(from));
    }
    let elements = bytes.len() / from.size();
    match to {
        DType::F32 => {
            let mut out: Vec<f32> = Vec::with_capacity(elements);
            blocks(bytes, from, to, |block| out.extend_from_slice(block))?;
            Ok(Bytes::from_elems(out))
        }
        DType::F16 => {
            let mut out: Vec<f16> = vec![f16::ZERO; elements];
            let mut rest = &mut out[..];
            blocks(bytes, from, to, |block| {
                let (head, tail) = std::mem::take(&mut rest).split_at_mut(block.len());
                head.convert_from_f32_slice(block);
                rest = tail;
            })?;
            Ok(Bytes::from_elems(out))
        }
        DType::BF16 => {
            let mut out: Vec<bf16> = vec![bf16::ZERO; elements];
            let mut rest = &mut out[..];
            blocks(bytes, from, to, |block| {
                let (head, tail) = std::mem::take(&mut rest).split_at_mut(block.len());
                head.convert_from_f32_slice(block);
                rest = tail;
            })?;
            Ok(Bytes::from_elems(out))
        }
        _ => Err(CastProblem::Unsupported(to)),
    }
}

/// Passes the elements to `each` as f32, block by block. Each block is first checked to be finite and
/// within the range of `to`.
fn blocks(
    bytes: &[u8],
    from: DType,
    to: DType,
    mut each: impl FnMut(&[f32]),
) -> Result<(), CastProblem> {
    // The largest magnitude that is not rounded to infinity: half a step above the largest number.
    let limit = match to {
        DType::F16 => 65520f32.next_down(),
        DType::BF16 => f32::from_bits(0x7f7f_7fff),
        _ => f32::MAX,
    };
    let mut block = [0f32; BLOCK];
    for (number, raw) in bytes.chunks(BLOCK * from.size()).enumerate() {
        let block = &mut block[..raw.len() / from.size()];
        decode(raw, from, block);
        // The comparison is false for NaN, so NaN is found too.
        if !all(block, |x| x.abs() <= limit) {
            check_finite_block(raw, from, number * BLOCK)?;
            let at = block.iter().position(|x| x.abs() > limit).unwrap_or(0);
            return Err(CastProblem::TooLarge {
                index: number * BLOCK + at,
                value: element(raw, from, at),
                to: to.name(),
            });
        }
        each(block);
    }
    Ok(())
}

/// Like `Iterator::all` without the early exit, which would prevent vectorisation.
fn all(block: &[f32], test: impl Fn(f32) -> bool) -> bool {
    block.iter().fold(true, |good, &x| good & test(x))
}

fn decode(raw: &[u8], from: DType, block: &mut [f32]) {
    let mut half = [0u16; BLOCK];
    let half = &mut half[..block.len()];
    match from {
        DType::F64 => {
            for (x, raw) in block.iter_mut().zip(raw.as_chunks().0) {
                *x = f64::from_le_bytes(*raw) as f32;
            }
        }
        DType::F16 | DType::BF16 => {
            use half::slice::HalfBitsSliceExt;
            for (x, raw) in half.iter_mut().zip(raw.as_chunks().0) {
                *x = u16::from_le_bytes(*raw);
            }
            if from == DType::F16 {
                half.reinterpret_cast::<f16>().convert_to_f32_slice(block);
            } else {
                half.reinterpret_cast::<bf16>().convert_to_f32_slice(block);
            }
        }
        _ => {
            for (x, raw) in block.iter_mut().zip(raw.as_chunks().0) {
                *x = f32::from_le_bytes(*raw);
            }
        }
    }
}

fn check_finite(bytes: &[u8], dtype: DType) -> Result<(), CastProblem> {
    if !dtype.is_float() {
        return Err(CastProblem::NotFloat(dtype));
    }
    for (number, raw) in bytes.chunks(BLOCK * dtype.size()).enumerate() {
        check_finite_block(raw, dtype, number * BLOCK)?;
    }
    Ok(())
}

/// Finds elements that are not finite: exactly those whose exponent bits are all set.
fn check_finite_block(raw: &[u8], dtype: DType, first: usize) -> Result<(), CastProblem> {
    let finite = match dtype {
        DType::F64 => fold(raw, |x| {
            u64::from_le_bytes(x) & 0x7ff0 << 48 != 0x7ff0 << 48
        }),
        DType::F16 => fold(raw, |x| u16::from_le_bytes(x) & 0x7c00 != 0x7c00),
        DType::BF16 => fold(raw, |x| u16::from_le_bytes(x) & 0x7f80 != 0x7f80),
        _ => fold(raw, |x| {
            u32::from_le_bytes(x) & 0x7f80 << 16 != 0x7f80 << 16
        }),
    };
    if finite {
        return Ok(());
    }
    let values = (0..raw.len() / dtype.size()).map(|at| element(raw, dtype, at));
    for (at, value) in values.enumerate() {
        if !value.is_finite() {
            let index = first + at;
            return Err(CastProblem::NotFinite { index, value });
        }
    }
    Ok(())
}

fn fold<const N: usize>(raw: &[u8], test: impl Fn([u8; N]) -> bool) -> bool {
    let (elements, _) = raw.as_chunks();
    elements.iter().fold(true, |good, &x| good & test(x))
}

fn element(raw: &[u8], dtype: DType, at: usize) -> f64 {
    let raw = &raw[at * dtype.size()..];
    match dtype {
        DType::F64 => f64::from_le_bytes(std::array::from_fn(|i| raw[i])),
        DType::F16 => f16::from_le_bytes([raw[0], raw[1]]).to_f64(),
        DType::BF16 => bf16::from_le_bytes([raw[0], raw[1]]).to_f64(),
        _ => f32::from_le_bytes(std::array::from_fn(|i| raw[i])).into(),
    }
}
