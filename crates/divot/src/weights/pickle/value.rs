//! The objects of a pickle, including PyTorch's tensors.

use std::collections::HashMap;
use std::rc::Rc;

use super::super::callable::display_name;

/// An object.
#[derive(Debug, Clone)]
pub(in crate::weights) enum Value {
    None,
    Bool,
    Int(i64),
    Str(Rc<str>),
    Tuple(Rc<Tuple>),
    /// Index into [`Pickle::lists`].
    List(usize),
    /// Index into [`Pickle::dicts`].
    Dict(usize),
    /// A class or a function.
    Global(Rc<Global>),
    Storage(Rc<Storage>),
    Tensor(Rc<TensorInfo>),
    /// Any other object, with the name of its class or of the function that makes it.
    Other(Rc<str>),
}

#[derive(Debug)]
pub(in crate::weights) struct Tuple {
    pub items: Vec<Value>,
    /// Nesting depth of tuples in it, including itself.
    pub depth: usize,
}

/// A class or a function with its full name.
#[derive(Debug)]
pub(in crate::weights) struct Global {
    pub module: String,
    pub name: String,
}

/// The elements of one or several tensors, contiguous.
#[derive(Debug)]
pub(in crate::weights) struct Storage {
    /// Its name in the file.
    pub key: Rc<str>,
    /// Its class: `FloatStorage`, `UntypedStorage`, …
    pub class: String,
    /// Start of a view in it, in elements.
    pub start: usize,
    /// Its length, in elements.
    pub elements: usize,
}

/// A tensor's position in a storage.
#[derive(Debug)]
pub(in crate::weights) struct TensorInfo {
    pub storage: Rc<Storage>,
    /// The element type if the storage's class does not determine it: `torch.uint16`.
    pub dtype: Option<String>,
    /// Offset in elements from the beginning of the storage.
    pub offset: usize,
    pub shape: Vec<usize>,
    /// Stride of each axis, in elements.
    pub strides: Vec<usize>,
}

/// The contents of a pickle.
#[derive(Debug)]
pub(in crate::weights) struct Pickle {
    pub root: Value,
    pub lists: Vec<Vec<Value>>,
    /// Keys and values in order. If a key occurs twice, the last one counts.
    pub dicts: Vec<Vec<(Value, Value)>>,
    /// All storages that the pickle refers to.
    pub storages: HashMap<Rc<str>, Rc<Storage>>,
}

impl Value {
    /// Describes the object, for messages.
    pub fn describe(&self) -> String {
        match self {
            Self::None => "None".to_owned(),
            Self::Bool | Self::Int(_) => "a number".to_owned(),
            Self::Str(_) => "a string".to_owned(),
            Self::Tuple(_) => "a tuple".to_owned(),
            Self::List(_) => "a list".to_owned(),
            Self::Dict(_) => "a dictionary".to_owned(),
            Self::Global(global) => format!("a Python name ({})", global.full_name()),
            Self::Storage(_) => "a storage without a tensor".to_owned(),
            Self::Tensor(_) => "a tensor".to_owned(),
            Self::Other(name) => format!("a Python object ({name})"),
        }
    }
}

impl Global {
    pub fn full_name(&self) -> String {
        display_name(&self.module, &self.name)
    }
}

/// Returns the tensor for a call of a function of `torch._utils`, if the function makes plain tensors.
pub(super) fn rebuilt(function: &str, arguments: &[Value]) -> Option<Value> {
    let (storage, offset, shape, strides, dtype) = match (function, arguments) {
        ("_rebuild_tensor" | "_rebuild_tensor_v2", [storage, offset, shape, strides, ..]) => {
            (storage, offset, shape, strides, None)
        }
        // The storage is in bytes. The element type is after the hooks.
        ("_rebuild_tensor_v3", [storage, offset, shape, strides, _, _, dtype, ..]) => {
            let Value::Global(dtype) = dtype else {
                return None;
            };
            (storage, offset, shape, strides, Some(dtype.full_name()))
        }
        ("_rebuild_parameter" | "_rebuild_parameter_with_state", [data, ..]) => {
            return matches!(data, Value::Tensor(_)).then(|| data.clone());
        }
        _ => return None,
    };
    let (Value::Storage(storage), &Value::Int(offset)) = (storage, offset) else {
        return None;
    };
    let lengths = |value: &Value| -> Option<Vec<usize>> {
        let Value::Tuple(tuple) = value else {
            return None;
        };
        let lengths = tuple.items.iter().map(|item| match item {
            Value::Int(length) => usize::try_from(*length).ok(),
            _ => None,
        });
        lengths.collect()
    };
    let (shape, strides) = (lengths(shape)?, lengths(strides)?);
    (shape.len() == strides.len()).then_some(())?;
    Some(Value::Tensor(Rc::new(TensorInfo {
        offset: storage.start.checked_add(usize::try_from(offset).ok()?)?,
        storage: storage.clone(),
        dtype,
        shape,
        strides,
    })))
}
