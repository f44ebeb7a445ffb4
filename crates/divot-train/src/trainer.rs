//! What learns: the model, its optimiser and its moving average, and one step of them.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;

use burn::module::Module;
use burn::optim::{GradientsAccumulator, GradientsParams};
use burn::tensor::{Device, Tensor};
use divot::Noise;
use divot::data::dataset::{Sample, Skip};
use divot::device::is_cpu;
use rayon::{ThreadPool, ThreadPoolBuilder};

use crate::buckets::Buckets;
use crate::cache;
use crate::checkpoint::{self, Checkpoint, Contents, Start, State};
use crate::error::{Error, Result};
use crate::losses::Losses;
use crate::model::{Model, Network};
use crate::objective::{Draws, Objective, Prepared, Shown, Term};
use crate::optimizer::{Optimizer, gradient_norm};
use crate::parameters::{self, Average, Named, is_below};
use crate::ranks::Ranks;
use crate::recipe::Recipe;
use crate::start::{Filled, fill};

/// The model of a run with everything that changes it.
pub struct Trainer {
    recipe: Recipe,
    objective: Box<dyn Objective>,
    terms: Vec<Term>,
    device: Device,
    model: Model,
    optimizer: Optimizer,
    average: Option<Average<Model>>,
    /// What checkpoints hold: all but what is frozen and comes from another folder.
    saved: Vec<Named>,
    /// The runs that parameters were read from which checkpoints do not hold, and the steps where they stand.
    read: BTreeMap<PathBuf, usize>,
    /// Threads of each of the micro-batches that are computed at once.
    pools: Vec<ThreadPool>,
    ranks: Ranks,
    /// What each rank owns, if there are several.
    buckets: Option<Buckets>,
}

/// What a step did.
#[derive(Debug, Clone, PartialEq)]
pub struct StepReport {
    /// The loss of the batch, and its terms.
    pub losses: Losses,
    /// Norm of the gradients before they were clipped.
    pub gradient_norm: f64,
    /// The learning rate.
    pub rate: f64,
    /// How many samples did not fit the objective and were left out; beside diffusion, those whose text was.
    pub left_out: usize,
    /// Those of them that this rank had, and why.
    pub misfits: Vec<Skip>,
    /// Whether the parameters were changed: only if loss and gradients are finite.
    pub learned: bool,
}

impl Trainer {
    /// Builds the model of a recipe on a device, with its first weights.
    ///
    /// # Errors
    /// If a folder that weights start from does not fit or has low-rank adaptation that would be lost, a frozen path is
    /// none of the model or starts from nothing, nothing is trained, or a cache among the sources was made by other
    /// networks.
    pub fn new(recipe: &Recipe, device: &Device) -> Result<Self> {
        let (trainer, lost) = Self::build(recipe, device)?;
        let paths = parameters::paths(&trainer.model);
        let starts = |path: &String| recipe.start.iter().any(|start| is_below(path, &start.part));
        let mut held = paths.iter().filter(|path| recipe.settings.freezes(path));
        if let Some(path) = held.find(|path| !starts(path)) {
            let problem = format!(
                "`{path}` is frozen and has no weights to start from; name their folder in [model.start], or `random`"
            );
            return Err(recipe.refuse("frozen", problem));
        }
        if let Some((layer, folder)) = lost.first_key_value() {
            return Err(Error::run(
                folder,
                format!("has low-rank adaptation of `{layer}`, and this recipe's model has none"),
                "export it and start from the export, or give [model.llm.lora] as it was",
            ));
        }
        cache::check(recipe, &trainer.model)?;
        Ok(trainer)
    }

    /// The same, for a checkpoint that is read afterwards. Caches are not looked at, nor is what only a new run is refused
    /// for: it may be in the checkpoint.
    pub(crate) fn again(recipe: &Recipe, device: &Device) -> Result<Self> {
        Ok(Self::build(recipe, device)?.0)
    }

    /// Builds the model. Also returns layers whose low-rank adaptation it has no place for, with the folders that have it.
    fn build(recipe: &Recipe, device: &Device) -> Result<(Self, BTreeMap<String, PathBuf>)> {
        let settings = &recipe.settings;
        let mut device = device.clone().autodiff();
        if settings.gradient_checkpointing {
            device = device.gradient_checkpointing();
        }
        let objective = recipe.objective()?;
        let _generator = generator();
        let _precision = settings.precision.products(&device);
        let dtype = settings.precision.activations(&device)?;
        device.seed(settings.seed);
        let model = recipe.model.init(&objective.networks(), &device);
        let model = model.computing_in(dtype);
        let paths = parameters::paths(&model);
        let has = |paths: &[String], part: &str| paths.iter().any(|path| is_below(path, part));
        let refuse = |key: &str, part: &str| {
            let problem = format!("`{part}` is no part of this recipe's model");
            recipe.refuse(key, problem)
        };
        if let Some(part) = settings.frozen.iter().find(|part| !has(&paths, part)) {
            return Err(refuse("frozen", part));
        }
        for Start { part, folder } in &recipe.start {
            // What starts anew may be a part of a network that this objective leaves out.
            let all = || parameters::paths(&recipe.model.init(&Network::ALL, &device));
            if !has(&paths, part) && (folder.is_some() || !has(&all(), part)) {
                return Err(refuse(&format!("model.start.{part}"), part));
            }
        }
        let frozen = settings.precision.frozen(&device);
        let model = parameters::freeze(model, &settings.frozen);
        let Filled {
            mut model,
            read,
            lost,
        } = fill(&recipe.start, model, frozen)?;
        let is_new = |path: &str| {
            let starts = recipe.start.iter();
            let starts = starts.filter(|start| is_below(path, &start.part));
            let last = starts.max_by_key(|start| start.part.len());
            last.is_none_or(|start| start.folder.is_none())
        };
        parameters::draw(&model);
        if is_new("detokenizer.resampler") {
            model = model.with_queries_at_tokens();
        }
        let model = parameters::cast_frozen(model, frozen);
        let saved = parameters::named(&model, |path, trained| trained || is_new(path));
        if parameters::named(&model, |_, trained| trained).is_empty() {
            let problem = "`frozen` covers the whole model, and nothing is left to train";
            return Err(recipe.refuse("frozen", problem.to_owned()));
        }
        let at_once = settings.at_once;
        if at_once > 1 && recipe.model.has_dropout(&objective.networks()) {
            let problem = "`at_once` is to be 1 for networks with dropout, which is drawn in order"
                .to_owned();
            return Err(recipe.refuse("at_once", problem));
        }
        let average = settings.average;
        let is_saved = |path: &String| saved.iter().any(|(name, _)| name == path);
        let read = read.into_iter().filter(|(path, _)| !is_saved(path));
        let trainer = Self {
            read: read.filter_map(|(_, run)| run).collect(),
            average: average.map(|decay| Average::new(&model, decay)),
            optimizer: Optimizer::new(&settings.optimizer),
            terms: objective.terms(),
            objective,
            recipe: recipe.clone(),
            saved,
            pools: match at_once > 1 && is_cpu(&device) {
                true => pools(at_once)?,
                false => Vec::new(),
            },
            ranks: Ranks::default(),
            buckets: None,
            device,
            model,
        };
        Ok((trainer, lost))
    }

    /// The runs that parameters were read from which a checkpoint does not hold, and the steps where they stand.
    pub(crate) fn read(&self) -> &BTreeMap<PathBuf, usize> {
        &self.read
    }

    /// Numbers in the moments that this rank's optimiser keeps.
    pub fn optimizer_size(&self) -> usize {
        let states = self.optimizer.states.values();
        let moments = states.flat_map(checkpoint::moments);
        moments.map(|moment| moment.shape().num_elements()).sum()
    }

    /// Trains together with other processes.
    ///
    /// # Errors
    /// If a batch cannot be divided among them.
    pub fn with_ranks(mut self, ranks: &Ranks) -> Result<Self> {
        self.recipe.check_ranks(ranks.count())?;
        let settings = self.recipe.settings.ranks;
        self.buckets = (ranks.count() > 1).then(|| Buckets::new(&self.model, ranks, settings));
        self.ranks = ranks.clone();
        Ok(self)
    }

    /// The model that learns.
    pub fn model(&self) -> &Model {
        &self.model
    }

    /// Goes on from a checkpoint.
    ///
    /// # Errors
    /// If the checkpoint is damaged, or of another model.
    pub fn resume(mut self, checkpoint: &Checkpoint) -> Result<Self> {
        let names = &self.saved;
        self.model = checkpoint.load(&checkpoint.weights(), self.model, names)?;
        if let Some(average) = self.average {
            // A run that had no average yet starts one where it is.
            let mut average = Average::new(&self.model, average.decay());
            if let Some(path) = checkpoint.average() {
                average.model = checkpoint.load(&path, average.model, names)?;
            }
            self.average = Some(average);
        }
        let device = self.device.clone().inner();
        checkpoint.load_optimizer(&mut self.optimizer, names, &device)?;
        if let Some(buckets) = &self.buckets {
            buckets.scatter(&mut self.optimizer);
        }
        Ok(self)
    }

    /// Saves a checkpoint, which the first rank writes.
    ///
    /// # Errors
    /// If it cannot be written. Older checkpoints are as they were then.
    pub(crate) fn save(&mut self, folder: &Path, state: &State) -> Result<()> {
        if let Some(buckets) = &self.buckets {
            let device = self.device.clone().inner();
            buckets.gather(&mut self.optimizer, &device);
        }
        if self.ranks.is_first() {
            let keep = self.recipe.settings.checkpoints.keep;
            checkpoint::save(folder, &self.contents(state), keep)?;
        }
        if let Some(buckets) = &self.buckets {
            buckets.scatter(&mut self.optimizer);
        }
        Ok(())
    }

    /// What a checkpoint is made of.
    fn contents<'a>(&'a self, state: &'a State) -> Contents<'a, Model> {
        Contents {
            state,
            model: &self.model,
            names: &self.saved,
            average: self.average.as_ref(),
            optimizer: &self.optimizer,
        }
    }

    /// Learns from a batch of one source.
    ///
    /// # Errors
    /// If the samples do not fit the objective.
    pub fn step(&mut self, step: usize, source: usize, samples: &[Sample]) -> Result<StepReport> {
        let settings = &self.recipe.settings;
        let rate = settings.rate.at(step, settings.steps);
        // Dropout is drawn by the device.
        let _generator = generator();
        let _precision = settings.precision.products(&self.device);
        let rank = self.ranks.rank() as u64;
        let dropout = Noise::keyed([settings.seed, step as u64, u64::MAX, rank]).uniform();
        self.device.seed(dropout.to_bits());

        let prepared = self.prepare(&self.model, step as u64, source, samples)?;
        let counts = self.counts(&prepared);
        let weights = self.terms.iter().zip(&counts);
        let weights = weights.map(|(term, count)| term.weight / count.max(1.0));
        let weights: Vec<f64> = weights.collect();
        let misfits = prepared.iter().flat_map(|micro| &micro.left_out);
        let misfits: Vec<Skip> = misfits.cloned().collect();
        let mut sums = vec![0.0; self.terms.len()];
        let mut gradients = GradientsAccumulator::new();
        let mut rest = prepared.into_iter().filter(Prepared::has_terms);
        loop {
            let group: Vec<_> = rest.by_ref().take(self.pools.len().max(1)).collect();
            if group.is_empty() {
                break;
            }
            for (found_sums, found) in self.backward(group, &weights) {
                add(&mut sums, &found_sums);
                gradients.accumulate(&self.model, found);
            }
        }
        let gradients = gradients.grads();
        let (gradients, gradient_norm) = match &self.buckets {
            None => {
                let norm = gradient_norm(&self.model, &gradients);
                (gradients, norm)
            }
            Some(buckets) => buckets.sum(&self.model, gradients),
        };
        let mut left_out = [misfits.len() as f64];
        self.ranks.sum(&mut left_out);
        self.ranks.sum(&mut sums);
        let losses = Losses::new(&self.terms, &sums, &counts);
        let learned = losses.loss().is_finite() && gradient_norm.is_finite();
        if learned {
            // Not a clone: parameters that nothing else holds are changed in place.
            let model = std::mem::take(&mut self.model);
            self.model = self.optimizer.step(rate, model, gradients, gradient_norm);
            if let Some(buckets) = &self.buckets {
                let model = std::mem::take(&mut self.model);
                self.model = buckets.share(model);
            }
            let average = self.average.take();
            self.average = average.map(|average| average.update(&self.model, step));
        }
        if step + 1 == settings.steps
            && let Some(change) = self
                .objective
                .finish(&self.model, &self.evaluated(), samples)?
        {
            self.model = change(std::mem::take(&mut self.model));
            if let Some(average) = &mut self.average {
                average.model = change(std::mem::take(&mut average.model));
            }
        }
        Ok(StepReport {
            losses,
            gradient_norm,
            rate,
            left_out: left_out[0] as usize,
            misfits,
            learned,
        })
    }

    /// Computes micro-batches at once.
    fn backward(&self, group: Vec<Prepared>, weights: &[f64]) -> Vec<(Vec<f64>, GradientsParams)> {
        if self.pools.is_empty() {
            let group = group.into_iter();
            return group
                .map(|micro| backward(&self.model, micro, weights))
                .collect();
        }
        thread::scope(|scope| {
            let threads: Vec<_> = group
                .into_iter()
                .zip(&self.pools)
                .map(|(micro, pool)| {
                    // Backward passes of one graph wait for each other.
                    let model = parameters::own_graph(self.model.clone());
                    scope.spawn(move || pool.install(|| backward(&model, micro, weights)))
                })
                .collect();
            let results = threads.into_iter().map(|thread| thread.join());
            results
                .map(|result| result.unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
                .collect()
        })
    }

    /// The loss on batches that are not learned from, and its terms. What is random is the same each time.
    ///
    /// # Errors
    /// If the samples do not fit the objective.
    pub fn validate(&self, batches: &[(usize, Vec<Sample>)]) -> Result<Losses> {
        let _generator = generator();
        let _precision = self.recipe.settings.precision.products(&self.device);
        let model = self.evaluated();
        let mut sums = vec![0.0; self.terms.len()];
        let mut counts = sums.clone();
        for (index, (source, samples)) in batches.iter().enumerate() {
            // No step of training has such a number.
            let prepared = self.prepare(&model, u64::MAX - index as u64, *source, samples)?;
            add(&mut counts, &self.counts(&prepared));
            for micro in prepared.into_iter().filter(Prepared::has_terms) {
                add(&mut sums, &values(&(micro.losses)(&model)));
            }
        }
        self.ranks.sum(&mut sums);
        Ok(Losses::new(&self.terms, &sums, &counts))
    }

    /// What the model makes of the first samples of a source, as many as the recipe shows.
    ///
    /// # Errors
    /// If the samples do not fit the objective.
    pub fn show(&self, source: usize, samples: &[Sample]) -> Result<Shown> {
        let settings = &self.recipe.settings;
        let _generator = generator();
        let _precision = settings.precision.products(&self.device);
        let count = settings.validation.shown.min(samples.len());
        if count == 0 {
            return Ok(Shown::default());
        }
        self.objective
            .show(&self.evaluated(), source, &samples[..count])
    }

    /// The model that is measured and exported: the moving average if there is one.
    pub fn evaluated(&self) -> Model {
        match &self.average {
            Some(average) => average.model.clone(),
            None => self.learned(),
        }
    }

    /// The model as it was trained last, without its gradients.
    pub fn learned(&self) -> Model {
        self.model.valid()
    }

    /// Divides a batch into micro-batches.
    fn prepare(
        &self,
        model: &Model,
        step: u64,
        source: usize,
        samples: &[Sample],
    ) -> Result<Vec<Prepared>> {
        let settings = &self.recipe.settings;
        let size = settings.micro_batch();
        let before = self.ranks.rank() * samples.len();
        let micro = samples.chunks(size).enumerate();
        micro
            .map(|(index, samples)| {
                let draws = Draws {
                    seed: settings.seed,
                    step,
                    first: (before + index * size) as u64,
                };
                self.objective.prepare(model, source, samples, &draws)
            })
            .collect()
    }

    /// How many numbers each term sums over in the micro-batches of all ranks.
    fn counts(&self, prepared: &[Prepared]) -> Vec<f64> {
        let term = |term| {
            let counts = prepared.iter().map(|micro: &Prepared| micro.counts[term]);
            counts.sum::<usize>() as f64
        };
        let mut counts: Vec<f64> = (0..self.terms.len()).map(term).collect();
        self.ranks.sum(&mut counts);
        counts
    }
}

/// The sums of a micro-batch's terms, and the gradients of the weighted terms.
fn backward(model: &Model, micro: Prepared, weights: &[f64]) -> (Vec<f64>, GradientsParams) {
    let terms = (micro.losses)(model);
    let sums = values(&terms);
    let parts = terms.into_iter().zip(weights);
    let loss = parts
        .map(|(sum, weight)| sum * *weight)
        .reduce(|loss, part| loss + part);
    let gradients = match loss {
        Some(loss) => GradientsParams::from_grads(loss.backward(), model),
        None => GradientsParams::new(),
    };
    (sums, gradients)
}

fn add(sums: &mut [f64], more: &[f64]) {
    for (sum, more) in sums.iter_mut().zip(more) {
        *sum += more;
    }
}

fn values(sums: &[Tensor<1>]) -> Vec<f64> {
    let values = sums.iter().map(|sum| sum.clone().into_scalar::<f64>());
    values.collect()
}

/// Divides the threads that compute into groups.
fn pools(count: usize) -> Result<Vec<ThreadPool>> {
    let threads = (rayon::current_num_threads() / count).max(1);
    let pool = || ThreadPoolBuilder::new().num_threads(threads).build();
    let pools: std::result::Result<_, _> = (0..count).map(|_| pool()).collect();
    pools.map_err(|error| Error::Setting {
        setting: "at_once".to_owned(),
        problem: format!("asks for more threads than can be started ({error})"),
    })
}

/// The device's random generator, which the whole process shares: whoever seeds it holds this until all is drawn.
fn generator() -> MutexGuard<'static, ()> {
    static GENERATOR: Mutex<()> = Mutex::new(());
    GENERATOR.lock().unwrap_or_else(PoisonError::into_inner)
}
