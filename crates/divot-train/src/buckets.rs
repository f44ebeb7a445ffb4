//! How ranks share gradients, parameters and the optimiser's state.

use std::collections::HashMap;

use burn::module::{Module, ModuleMapper, ModuleVisitor, Param, ParamId};
use burn::optim::{DynState, GradientsParams};
use burn::tensor::{DType, Device, Tensor, TensorData};
use divot::weights::ParamPath;
use serde::Deserialize;

use crate::checkpoint;
use crate::optimizer::{Optimizer, trained};
use crate::ranks::Ranks;

/// How ranks work together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RankSettings {
    /// Each rank keeps only its part of the optimiser's moments (ZeRO-1). It changes no number.
    pub shard_optimizer: bool,
    /// Gradients are sent in bf16, in half the bytes. They are added in f32.
    pub bf16_gradients: bool,
}

/// Bytes of gradients that are sent at a time.
const BUCKET: usize = 25 << 20;

/// The trained parameters, divided among ranks.
pub(crate) struct Buckets {
    ranks: Ranks,
    settings: RankSettings,
    buckets: Vec<Bucket>,
}

/// Parameters that one rank owns.
struct Bucket {
    owner: usize,
    parameters: Vec<Parameter>,
}

struct Parameter {
    id: ParamId,
    path: String,
    shape: Vec<usize>,
    size: usize,
}

impl Buckets {
    /// Divides the trained parameters of a model. Each rank owns about as many numbers.
    pub fn new<M: Module>(model: &M, ranks: &Ranks, settings: RankSettings) -> Self {
        let mut all = Trained::default();
        model.visit(&mut all);
        let bytes: usize = all.found.iter().map(|parameter| 4 * parameter.size).sum();
        let most = BUCKET.min(bytes.div_ceil(ranks.count()));
        let mut buckets: Vec<Bucket> = Vec::new();
        let mut owned = vec![0; ranks.count()];
        let mut filled = usize::MAX;
        for parameter in all.found {
            if filled >= most {
                let owner = (0..owned.len()).min_by_key(|&rank| owned[rank]);
                buckets.push(Bucket {
                    owner: owner.unwrap_or(0),
                    parameters: Vec::new(),
                });
                filled = 0;
            }
            let Some(bucket) = buckets.last_mut() else {
                continue;
            };
            filled += 4 * parameter.size;
            owned[bucket.owner] += parameter.size;
            bucket.parameters.push(parameter);
        }
        Self {
            ranks: ranks.clone(),
            settings,
            buckets,
        }
    }

    /// Whether this rank keeps the optimiser's state of a parameter.
    pub fn keeps(&self, path: &str) -> bool {
        !self.settings.shard_optimizer
            || self.buckets.iter().any(|bucket| {
                bucket.owner == self.ranks.rank()
                    && bucket
                        .parameters
                        .iter()
                        .any(|parameter| parameter.path == path)
            })
    }

    /// Adds the gradients of all ranks. Returns those that this rank's optimiser needs, and the norm of all of them.
    pub fn sum<M: Module>(&self, model: &M, gradients: GradientsParams) -> (GradientsParams, f64) {
        let mut flat = Flat {
            gradients,
            found: Vec::new(),
        };
        model.visit(&mut flat);
        let there = flat
            .found
            .iter()
            .map(|found| f64::from(u8::from(found.is_some())));
        let mut there: Vec<f64> = there.collect();
        self.ranks.sum(&mut there);
        let mut found = flat.found.into_iter().zip(there);

        let mut squares = [0.0];
        let mut shaped = Shaped {
            values: HashMap::new(),
            gradients: GradientsParams::new(),
        };
        for bucket in &self.buckets {
            let mut values: Vec<f32> = Vec::new();
            let mut parts = Vec::new();
            for (parameter, (gradient, there)) in bucket.parameters.iter().zip(found.by_ref()) {
                if there == 0.0 {
                    continue;
                }
                let start = values.len();
                match gradient {
                    Some(gradient) => values.extend(gradient.into_data().iter::<f32>()),
                    None => values.resize(start + parameter.size, 0.0),
                }
                parts.push((parameter.id, start..values.len()));
            }
            let rounded = self.settings.bf16_gradients;
            self.ranks.sum_at(bucket.owner, &mut values, rounded);
            let is_owner = bucket.owner == self.ranks.rank();
            if is_owner {
                let all = values.iter().map(|&value| f64::from(value));
                squares[0] += all.map(|value| value * value).sum::<f64>();
            }
            if !self.settings.shard_optimizer {
                self.ranks.share(bucket.owner, &mut values);
            }
            if is_owner || !self.settings.shard_optimizer {
                let parts = parts.into_iter();
                shaped
                    .values
                    .extend(parts.map(|(id, part)| (id, values[part].to_vec())));
            }
        }
        self.ranks.sum(&mut squares);
        model.visit(&mut shaped);
        (shaped.gradients, squares[0].sqrt())
    }

    /// Sends the parameters that each rank has updated to all, if each updates its own.
    pub fn share<M: Module>(&self, model: M) -> M {
        if !self.settings.shard_optimizer {
            return model;
        }
        let mut all = Values::default();
        model.visit(&mut all);
        let mut all = all.0.into_iter();
        let mut shared = Update::default();
        for bucket in &self.buckets {
            let mut values: Vec<f32> = Vec::new();
            let parameters = bucket.parameters.iter().zip(all.by_ref());
            for (_, value) in parameters {
                values.extend(value.into_data().iter::<f32>());
            }
            self.ranks.share(bucket.owner, &mut values);
            let mut rest = &values[..];
            for parameter in &bucket.parameters {
                let (own, others) = rest.split_at(parameter.size);
                shared.0.insert(parameter.id, own.to_vec());
                rest = others;
            }
        }
        model.map(&mut shared)
    }

    /// Gives the first rank the whole state of the optimiser, which is needed for a checkpoint.
    pub fn gather(&self, optimizer: &mut Optimizer, device: &Device) {
        if !self.settings.shard_optimizer {
            return;
        }
        for bucket in &self.buckets {
            for parameter in &bucket.parameters {
                let mut state = flat(optimizer.states.get(&parameter.path), parameter.size);
                self.ranks.share(bucket.owner, &mut state);
                if self.ranks.is_first() && state[0] > 0.0 {
                    let moments = state[1..].chunks_exact(parameter.size);
                    let mut moments = moments
                        .map(|moment| TensorData::new(moment.to_vec(), parameter.shape.clone()));
                    let both = [(); 2].map(|()| moments.next().expect("two moments"));
                    let created = checkpoint::create(state[0] as usize, both, device);
                    let created = created.expect("parameters have one to five axes");
                    optimizer.states.insert(parameter.path.clone(), created);
                }
            }
        }
    }

    /// Drops the state of parameters that other ranks own.
    pub fn scatter(&self, optimizer: &mut Optimizer) {
        optimizer.states.retain(|path, _| self.keeps(path));
    }
}

/// The steps that a parameter took and its moments, as a vector. Zeros if it took none.
fn flat(state: Option<&DynState>, size: usize) -> Vec<f32> {
    let Some(state) = state else {
        return vec![0.0; 1 + 2 * size];
    };
    let mut flat = vec![checkpoint::time(state) as f32];
    for moment in checkpoint::moments(state) {
        flat.extend(moment.iter::<f32>());
    }
    flat
}

/// The trained parameters, in the order of the fields.
#[derive(Default)]
struct Trained {
    path: ParamPath,
    found: Vec<Parameter>,
}

impl ModuleVisitor for Trained {
    fn enter_module(&mut self, name: &str, container: &str) {
        self.path.enter(name, container);
    }

    fn exit_module(&mut self, _name: &str, _container: &str) {
        self.path.exit();
    }

    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        let value = param.val();
        if value.is_require_grad() {
            self.found.push(Parameter {
                id: param.id,
                path: self.path.path(),
                shape: value.dims().to_vec(),
                size: value.shape().num_elements(),
            });
        }
    }
}

/// The gradients of trained parameters, as vectors.
struct Flat {
    gradients: GradientsParams,
    found: Vec<Option<Tensor<1>>>,
}

impl ModuleVisitor for Flat {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        if param.val().is_require_grad() {
            let gradient = self.gradients.remove::<D>(param.id);
            self.found
                .push(gradient.map(|gradient| gradient.cast(DType::F32).flatten(0, D - 1)));
        }
    }
}

/// Gradients in the parameters' shapes.
struct Shaped {
    values: HashMap<ParamId, Vec<f32>>,
    gradients: GradientsParams,
}

impl ModuleVisitor for Shaped {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        if let Some(values) = self.values.remove(&param.id) {
            let value = param.val();
            let data = TensorData::new(values, value.dims());
            let gradient = Tensor::<D>::from_data(data, &value.device().inner());
            self.gradients.register(param.id, gradient);
        }
    }
}

/// The values of trained parameters, as vectors.
#[derive(Default)]
struct Values(Vec<Tensor<1>>);

impl ModuleVisitor for Values {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        let value = param.val();
        if value.is_require_grad() {
            self.0.push(value.inner().flatten(0, D - 1));
        }
    }
}

/// Replaces the values of parameters.
#[derive(Default)]
struct Update(HashMap<ParamId, Vec<f32>>);

impl ModuleMapper for Update {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        match self.0.remove(&param.id) {
            None => param,
            Some(values) => param.map(|value| {
                let data = TensorData::new(values, value.dims());
                let strategy = value.gradient_checkpointing_strategy();
                let value = Tensor::<D>::from_data(data, &value.device().inner());
                trained(value, strategy)
            }),
        }
    }
}
