//! Parameters of a model by their paths: which are trained, their values, and moving averages of them.

use std::collections::BTreeMap;
use std::path::Path;

use burn::module::{Flag, Module, ModuleMapper, ModuleVisitor, Param};
use burn::optim::GradientsParams;
use burn::tensor::{DType, Tensor, TensorData};
use divot::weights::{
    ParamPath, SafetensorsWriter, Source, SourceTensor, TensorSpec, WeightsError,
};

use crate::error::{Error, Result};

/// Number of parameters below each of the paths `parts`: all, and those that are trained.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Count {
    /// Path of the part.
    pub part: String,
    /// All of its parameters.
    pub all: usize,
    /// Those that are trained.
    pub trained: usize,
}

/// Whether `path` is `prefix` or lies below it.
pub(crate) fn is_below(path: &str, prefix: &str) -> bool {
    path.strip_prefix(prefix)
        .is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
}

/// Counts parameters by the first two names of their paths. Initialises none.
pub fn count<M: Module>(model: &M) -> Vec<Count> {
    #[derive(Default)]
    struct Counting {
        path: ParamPath,
        counts: BTreeMap<String, [usize; 2]>,
    }
    impl ModuleVisitor for Counting {
        fn enter_module(&mut self, name: &str, container: &str) {
            self.path.enter(name, container);
        }

        fn exit_module(&mut self, _name: &str, _container: &str) {
            self.path.exit();
        }

        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            let path = self.path.path();
            let part: Vec<&str> = path.splitn(3, '.').take(2).collect();
            // Another value takes over what the parameter will do with its own.
            let other = Tensor::<D>::zeros([1; D], &param.lazy_device());
            let trained = param.clone().transform_for_load(other, param.id);
            let numbers = param.lazy_shape().num_elements();
            let [all, learned] = self.counts.entry(part.join(".")).or_default();
            *all += numbers;
            *learned += usize::from(trained.val().is_require_grad()) * numbers;
        }
    }
    let mut counting = Counting::default();
    model.visit(&mut counting);
    let counts = counting.counts.into_iter();
    counts
        .map(|(part, [all, trained])| Count { part, all, trained })
        .collect()
}

/// A float parameter that is written to a file.
pub(crate) type Named = (String, Vec<usize>);

/// Path and shape of the parameters that are `wanted`, in the order of the fields. `wanted` gets the path, and
/// whether the parameter is trained.
pub(crate) fn named<M: Module>(model: &M, wanted: impl Fn(&str, bool) -> bool) -> Vec<Named> {
    let mut found = Vec::new();
    visit(model, |path, shape, trained| {
        if wanted(path, trained) {
            found.push((path.to_owned(), shape.to_vec()));
        }
    });
    found
}

/// Lets the device draw the random weights now, in the order of the fields, and not where they are first used.
pub(crate) fn draw<M: Module>(model: &M) {
    visit(model, |_, _, _| {});
}

/// Paths of all float parameters, which are not initialised by it.
pub(crate) fn paths<M: Module>(model: &M) -> Vec<String> {
    let layout = divot::weights::module_layout(model);
    layout.into_iter().map(|param| param.path).collect()
}

/// Calls `each` with the path and shape of every float parameter, and whether it is trained. Initialises the
/// parameters.
fn visit<M: Module>(model: &M, each: impl FnMut(&str, &[usize], bool)) {
    struct Visitor<F> {
        path: ParamPath,
        each: F,
    }
    impl<F: FnMut(&str, &[usize], bool)> ModuleVisitor for Visitor<F> {
        fn enter_module(&mut self, name: &str, container: &str) {
            self.path.enter(name, container);
        }

        fn exit_module(&mut self, _name: &str, _container: &str) {
            self.path.exit();
        }

        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            let value = param.val();
            let trained = value.is_require_grad();
            (self.each)(&self.path.path(), &value.dims(), trained);
        }
    }
    model.visit(&mut Visitor {
        path: ParamPath::default(),
        each,
    });
}

/// Takes the parameters at and below the paths `frozen` out of training. Their layers drop nothing out.
pub(crate) fn freeze<M: Module>(model: M, frozen: &[String]) -> M {
    struct Freeze<'a> {
        path: ParamPath,
        frozen: &'a [String],
    }
    impl ModuleMapper for Freeze<'_> {
        fn enter_module(&mut self, name: &str, container: &str) {
            self.path.enter(name, container);
        }

        fn exit_module(&mut self, _name: &str, _container: &str) {
            self.path.exit();
        }

        fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
            let path = self.path.path();
            match self.frozen.iter().any(|prefix| is_below(&path, prefix)) {
                true => param.set_require_grad(false),
                false => param,
            }
        }

        fn map_flag(&mut self, flag: Param<Flag>) -> Param<Flag> {
            let path = self.path.path();
            match self.frozen.iter().any(|prefix| is_below(&path, prefix)) {
                true => flag.with_value(false),
                false => flag,
            }
        }
    }
    model.map(&mut Freeze {
        path: ParamPath::default(),
        frozen,
    })
}

/// The same parameters as the leaves of another graph.
pub(crate) fn own_graph<M: Module>(model: M) -> M {
    struct Detach;
    impl ModuleMapper for Detach {
        fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
            let value = param.val();
            let trained = value.is_require_grad();
            Param::initialized(param.id, value.detach().set_require_grad(trained))
        }
    }
    model.map(&mut Detach)
}

/// Writes the parameters `names` of a model, which are in the order of its fields, in f32.
pub(crate) fn save<M: Module>(path: &Path, model: &M, names: &[Named]) -> Result<()> {
    struct Writing {
        path: ParamPath,
        writer: SafetensorsWriter,
        names: std::vec::IntoIter<String>,
        next: Option<String>,
        error: Option<WeightsError>,
    }
    impl ModuleVisitor for Writing {
        fn enter_module(&mut self, name: &str, container: &str) {
            self.path.enter(name, container);
        }

        fn exit_module(&mut self, _name: &str, _container: &str) {
            self.path.exit();
        }

        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            if self.error.is_none() && self.next.as_ref() == Some(&self.path.path()) {
                let data = param.val().inner().cast(DType::F32).into_data();
                self.error = self.writer.write(&data).err();
                self.next = self.names.next();
            }
        }
    }
    let specs: Vec<TensorSpec> = names
        .iter()
        .map(|(name, shape)| spec(name, shape, DType::F32))
        .collect();
    let names: Vec<String> = names.iter().map(|(name, _)| name.clone()).collect();
    let mut names = names.into_iter();
    let mut writing = Writing {
        path: ParamPath::default(),
        writer: SafetensorsWriter::create(path, &specs, &BTreeMap::new())?,
        next: names.next(),
        names,
        error: None,
    };
    model.visit(&mut writing);
    match writing.error {
        Some(error) => Err(error.into()),
        None => Ok(writing.writer.finish()?),
    }
}

pub(crate) fn spec(name: &str, shape: &[usize], dtype: DType) -> TensorSpec {
    TensorSpec {
        name: name.to_owned(),
        shape: shape.to_vec(),
        dtype,
    }
}

/// Casts the parameters that are not trained. Random ones are drawn, in the order of the fields.
pub(crate) fn cast_frozen<M: Module>(model: M, dtype: DType) -> M {
    struct Cast(DType);
    impl ModuleMapper for Cast {
        fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
            frozen_as(param, self.0)
        }
    }
    model.map(&mut Cast(dtype))
}

/// A parameter in `dtype`, unless it is trained.
fn frozen_as<const D: usize>(param: Param<Tensor<D>>, dtype: DType) -> Param<Tensor<D>> {
    let value = param.val();
    match value.is_require_grad() || value.dtype() == dtype {
        true => param,
        false => param.map(|value| value.cast(dtype)),
    }
}

/// The path that the weights of a layer with low-rank adaptation have without it.
fn without_adaptation(path: &str) -> Option<String> {
    let (layer, name) = path.rsplit_once('.')?;
    Some(format!("{}.{name}", layer.strip_suffix(".base")?))
}

/// Fills the parameters that a file holds. `own` turns a name of the file into a path of the model, or
/// leaves it out. A layer with low-rank adaptation is also filled from one without. Parameters keep their types; those that had none yet get f32, or `frozen` if they are not trained.
/// Returns the model and the paths that were filled.
pub(crate) fn load<M: Module>(
    source: &Source,
    model: M,
    own: impl Fn(&str) -> Option<String>,
    frozen: DType,
) -> Result<(M, Vec<String>)> {
    struct Filling {
        path: ParamPath,
        frozen: DType,
        tensors: BTreeMap<String, SourceTensor>,
        filled: Vec<String>,
        error: Option<Error>,
    }
    impl ModuleMapper for Filling {
        fn enter_module(&mut self, name: &str, container: &str) {
            self.path.enter(name, container);
        }

        fn exit_module(&mut self, _name: &str, _container: &str) {
            self.path.exit();
        }

        fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
            let path = self.path.path();
            if self.error.is_some() {
                return param;
            }
            let names = [Some(path.clone()), without_adaptation(&path)];
            let mut found = names.iter().flatten();
            let Some(tensor) = found.find_map(|name| self.tensors.remove(name)) else {
                return param;
            };
            let expected = param.lazy_shape();
            if tensor.shape != expected.as_slice() {
                self.error = Some(Error::run(
                    &tensor.file,
                    format!(
                        "`{path}` has shape {:?} where the model has {:?}",
                        tensor.shape,
                        expected.as_slice()
                    ),
                    "use the sizes that it was trained with",
                ));
                return param;
            }
            let data: TensorData = match tensor.read() {
                Ok(data) => data,
                Err(error) => {
                    self.error = Some(error.into());
                    return param;
                }
            };
            self.filled.push(path);
            let (device, id) = (param.lazy_device(), param.id);
            let known = param.is_initialized().then(|| param.val().dtype());
            let value = Tensor::from_data(data, (&device, known.unwrap_or(DType::F32)));
            let loaded = param.transform_for_load(value, id);
            match known {
                Some(_) => loaded,
                None => frozen_as(loaded, self.frozen),
            }
        }
    }
    let tensors = source
        .tensors()
        .filter_map(|tensor| Some((own(&tensor.name)?, tensor.clone())))
        .collect();
    let mut filling = Filling {
        path: ParamPath::default(),
        frozen,
        tensors,
        filled: Vec::new(),
        error: None,
    };
    let model = model.map(&mut filling);
    match filling.error {
        Some(error) => Err(error),
        None => Ok((model, filling.filled)),
    }
}

/// An exponential moving average of a model's trained parameters.
///
/// Its decay rises to what is asked for, so that an average of few steps is not that of the first weights.
#[derive(Debug)]
pub(crate) struct Average<M> {
    /// The model with averaged parameters, which is not trained itself.
    pub model: M,
    decay: f64,
}

impl<M: Module> Average<M> {
    /// Starts at the model's own values.
    pub fn new(model: &M, decay: f64) -> Self {
        Self {
            model: model.valid(),
            decay,
        }
    }

    /// What it keeps of itself in an update.
    pub fn decay(&self) -> f64 {
        self.decay
    }

    /// Moves a little towards the model's values, after `step` steps.
    pub fn update(self, model: &M, step: usize) -> Self {
        struct Collecting(GradientsParams);
        impl ModuleVisitor for Collecting {
            fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
                let value = param.val();
                if value.is_require_grad() {
                    self.0.register(param.id, value.inner());
                }
            }
        }
        struct Moving(GradientsParams, f64);
        impl ModuleMapper for Moving {
            fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
                let Some(value) = self.0.remove::<D>(param.id) else {
                    return param;
                };
                let decay = self.1;
                param.map(|average| average * decay + value * (1.0 - decay))
            }
        }
        let step = step as f64;
        let decay = self.decay.min((1.0 + step) / (10.0 + step));
        let mut collecting = Collecting(GradientsParams::new());
        model.visit(&mut collecting);
        Self {
            model: self.model.map(&mut Moving(collecting.0, decay)),
            decay: self.decay,
        }
    }
}
