//! Computing a cache.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::mpsc::sync_channel;
use std::thread;
use std::time::Instant;

use burn::tensor::{DType, Device, Tensor};
use divot::data::Clip;
use divot::data::dataset::{
    Array, CacheWriter, ElementType, EpochReader, Format, Manifest, Sample, Samples, Skip, Source,
    Stored,
};

use super::fingerprint::{fingerprint, of_files};
use super::{FRAME_SIZE, Output, outputs, sources};
use crate::error::{Error, Result};
use crate::lock::Lock;
use crate::model::Model;
use crate::objective::{LOGVAR, MEAN, PATCHES, TOKENS, stack};
use crate::recipe::Recipe;
use crate::record::text::{count, duration, number};
use crate::trainer::Trainer;

/// Samples that each thread reads ahead.
const AHEAD: usize = 1;

/// How a cache is made.
#[derive(Debug, Clone)]
pub struct CacheOptions {
    /// How often each sample is stored, each time with other random clips.
    pub clips_per_sample: usize,
    /// The element type that numbers are stored in.
    pub element: ElementType,
    /// About how many bytes a shard has, all of which are in memory before it is written.
    pub shard_bytes: usize,
    /// Threads that read samples.
    pub workers: usize,
}

impl Default for CacheOptions {
    fn default() -> Self {
        Self {
            clips_per_sample: 1,
            element: ElementType::F32,
            shard_bytes: 256 << 20,
            workers: 2,
        }
    }
}

/// How far a source of a cache is.
///
/// It is shown as a line: `data.0: 120/3,000 samples, 2.1 samples/s, 22 min 51 s left`.
#[derive(Debug, Clone)]
pub struct CacheStatus {
    /// The source's key in the recipe.
    pub source: String,
    /// Samples that are done, those of an interrupted call included.
    pub done: usize,
    /// All samples, as often as each is stored.
    pub total: usize,
    /// Samples of this call that could not be used.
    pub left_out: usize,
    /// Samples that were done in a second of this call; 0 if nothing is known.
    pub samples_per_second: f64,
}

impl fmt::Display for CacheStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            source,
            samples_per_second: speed,
            ..
        } = self;
        let [done, total] = [self.done, self.total].map(count);
        write!(f, "{source}: {done}/{total} samples")?;
        if self.left_out > 0 {
            write!(f, ", {} left out", count(self.left_out))?;
        }
        if *speed > 0.0 {
            let left = (self.total - self.done) as f64 / speed;
            let [speed, left] = [number(*speed, 3), duration(left)];
            write!(f, ", {speed} samples/s, {left} left")?;
        }
        Ok(())
    }
}

/// A source that was cached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cached {
    /// The source's key in the recipe: `data.0` or `validation.data.0`.
    pub key: String,
    /// The folder that takes its place.
    pub folder: PathBuf,
    /// How many clips are stored.
    pub clips: usize,
}

/// Computes what the frozen networks of a recipe make of all of its samples, into a folder of `folder` for each
/// source.
///
/// Clips start where a run of the recipe would have them in its first epoch, and with `clips_per_sample` in as many
/// epochs. Samples that cannot be used keep their places, with the reason, so that a run has the same samples in the
/// same order. A cache that was interrupted goes on after its last whole shard.
///
/// `watch` is told after each sample how far a source is. When it breaks, what was computed is written, and the call
/// ends in [`Error::Stopped`].
///
/// # Errors
/// If nothing can be computed before training, the folder holds a cache of something else, no sample of a source can
/// be used, or a file cannot be read or written.
pub fn cache(
    recipe: &Recipe,
    folder: &Path,
    device: &Device,
    options: &CacheOptions,
    watch: &mut dyn FnMut(&CacheStatus) -> ControlFlow<()>,
) -> Result<Vec<Cached>> {
    if options.clips_per_sample == 0 || options.workers == 0 {
        return Err(Error::Setting {
            setting: "0".to_owned(),
            problem: "is too few clips of each sample, or threads; ask for at least 1".to_owned(),
        });
    }
    let outputs = outputs(recipe)?;
    let clips = recipe.model.tokenizer.clip_reader();
    let mut opened = Vec::new();
    for (key, data) in sources(recipe) {
        if data.source.format == Format::Cache {
            return Err(Error::Setting {
                setting: format!("{key}.source"),
                problem: "is a cache already; name the source that it was made of".to_owned(),
            });
        }
        if data.source.format == Format::Texts {
            return Err(Error::Setting {
                setting: format!("{key}.source"),
                problem: "has no clips; train from it directly".to_owned(),
            });
        }
        opened.push((key, Source::open(&data.source, &clips)?));
    }
    let _lock = Lock::new(folder)?;
    let _precision = recipe.settings.precision.products(device);
    // Frozen networks that start at random are those that a run has, and all are held as it has them.
    let model = Trainer::new(recipe, device)?.learned();
    let mut made_of = BTreeMap::new();
    for part in outputs.iter().map(|output| output.part()) {
        made_of.insert(part.to_owned(), fingerprint(recipe, &model, part));
    }
    made_of.insert("seed".to_owned(), recipe.settings.seed.to_string());
    let size = recipe.model.tokenizer.frame_size;
    made_of.insert(FRAME_SIZE.to_owned(), size.to_string());

    let mut done = Vec::new();
    for (key, source) in opened {
        let mut made_of = made_of.clone();
        let prefix = format!("{key}.source.");
        for (name, value) in recipe.values() {
            if let Some(name) = name.strip_prefix(&prefix) {
                made_of.insert(format!("source.{name}"), value);
            }
        }
        made_of.insert("source's files".to_owned(), of_files(&source.files()));
        let names = outputs.iter().flat_map(|output| output.arrays());
        let names = names.map(|&name| name.to_owned()).collect();
        let groups = source.groups();
        let manifest = Manifest {
            draws: options.clips_per_sample,
            groups: groups
                .iter()
                .map(std::iter::ExactSizeIterator::len)
                .collect(),
            element: options.element,
            made_of,
            ..Manifest::new(source.len(), names)
        };
        let folder = folder.join(key.replace('.', "-"));
        let mut making = Making {
            model: &model,
            outputs: &outputs,
            batch: recipe.settings.micro_batch(),
            writer: CacheWriter::open(&folder, manifest, options.shard_bytes)?,
        };
        let place = key.rsplit('.').next().and_then(|place| place.parse().ok());
        let reader = EpochReader::new(Box::new(source), place.unwrap_or(0), recipe.settings.seed);
        making.run(&key, &reader, options.workers, watch)?;
        let clips = making.writer.clips();
        if clips == 0 {
            let problem = "holds no clip: none of its samples can be used";
            let remedy = "look at its lines, which name the reasons, and mend the source";
            return Err(Error::run(&folder, problem, remedy));
        }
        done.push(Cached { key, folder, clips });
    }
    Ok(done)
}

/// A source that is being cached.
struct Making<'a> {
    model: &'a Model,
    outputs: &'a [Output],
    /// Clips that are computed together.
    batch: usize,
    writer: CacheWriter,
}

impl Making<'_> {
    /// Computes the samples that are left.
    fn run(
        &mut self,
        key: &str,
        reader: &EpochReader,
        workers: usize,
        watch: &mut dyn FnMut(&CacheStatus) -> ControlFlow<()>,
    ) -> Result<()> {
        let (first, total) = (self.writer.done(), self.writer.total());
        let samples = reader.samples().len();
        let mut status = CacheStatus {
            source: key.to_owned(),
            done: first,
            total,
            left_out: 0,
            samples_per_second: 0.0,
        };
        let started = Instant::now();
        let mut flow = watch(&status);
        thread::scope(|scope| {
            // Each thread reads every so-manieth sample, so that they come in order.
            let mut readers = Vec::new();
            for worker in 0..workers {
                let (send, receive) = sync_channel(AHEAD);
                let numbers = (first + worker..total).step_by(workers);
                scope.spawn(move || {
                    for number in numbers {
                        let epoch = (number / samples) as u64;
                        let sample = reader.read(number % samples, epoch);
                        // Nobody waits for more after an error or a stop.
                        if send.send(sample).is_err() {
                            return;
                        }
                    }
                });
                readers.push(receive);
            }
            let mut waiting = Vec::new();
            for number in first..total {
                if flow.is_break() {
                    break;
                }
                let read = readers[(number - first) % workers].recv();
                waiting.push(read.expect("a thread reads until nobody waits"));
                let clips = waiting.iter().flatten().map(|sample| sample.clips.len());
                if clips.sum::<usize>() < self.batch
                    && waiting.len() < self.batch
                    && number + 1 < total
                {
                    continue;
                }
                for sample in self.compute(std::mem::take(&mut waiting))? {
                    status.left_out += usize::from(sample.is_err());
                    self.writer.push(&sample)?;
                }
                status.done = number + 1;
                let seconds = started.elapsed().as_secs_f64();
                status.samples_per_second = (status.done - first) as f64 / seconds.max(1e-9);
                flow = watch(&status);
            }
            Ok::<(), Error>(())
        })?;
        self.writer.flush()?;
        match flow {
            ControlFlow::Break(()) => Err(Error::Stopped),
            ControlFlow::Continue(()) => Ok(()),
        }
    }

    /// Puts what the networks make of samples in place of their frames.
    fn compute(&self, samples: Vec<Result<Sample, Skip>>) -> Result<Vec<Result<Sample, Skip>>> {
        let mut clips: Vec<(&str, &Clip)> = Vec::new();
        for sample in samples.iter().flatten() {
            clips.extend(sample.clips.iter().map(|clip| (&*sample.key, clip)));
        }
        let mut rows = Rows::new();
        for clips in clips.chunks(self.batch) {
            for output in self.outputs {
                for (name, clip) in self.arrays(*output, clips)? {
                    rows.entry(name).or_default().extend(clip);
                }
            }
        }
        let mut rows: BTreeMap<_, _> = rows
            .into_iter()
            .map(|(name, rows)| (name, rows.into_iter()))
            .collect();
        let store = |sample: Sample| {
            let clips = sample.clips.len();
            let arrays = rows.iter_mut().map(|(name, rows)| {
                let rows: Vec<Array> = rows.by_ref().take(clips).collect();
                let mut shape = vec![rows.len()];
                shape.extend(rows.iter().take(1).flat_map(|row| &row.shape));
                let values = rows.into_iter().flat_map(|row| row.values).collect();
                ((*name).to_owned(), Array { shape, values })
            });
            let arrays = arrays.collect();
            Sample {
                clips: Vec::new(),
                stored: Some(Stored { clips, arrays }),
                ..sample
            }
        };
        let mut store = store;
        Ok(samples
            .into_iter()
            .map(|sample| sample.map(&mut store))
            .collect())
    }

    /// The arrays of an output, a row for each clip.
    fn arrays(
        &self,
        output: Output,
        clips: &[(&str, &Clip)],
    ) -> Result<Vec<(&'static str, Vec<Array>)>> {
        Ok(match output {
            Output::Patches | Output::Tokens => {
                let tokenizer = self.model.tokenizer();
                let device = tokenizer.vision.class_embedding.device();
                let frames = clips.iter().map(|(key, clip)| (*key, Some(clip.sparse())));
                let frames = stack(frames, &device)?;
                vec![match output {
                    Output::Patches => (PATCHES, split(tokenizer.patch_tokens(frames))),
                    _ => (TOKENS, split(tokenizer.tokenize(frames))),
                }]
            }
            Output::Moments => {
                let detokenizer = self.model.detokenizer();
                let device = detokenizer.unet.conv_in.weight.device();
                let frames = clips.iter().map(|(key, clip)| (*key, Some(clip.dense())));
                let clip = stack(frames, &device)?.swap_dims(1, 2);
                let moments = detokenizer.vae.clip_moments(clip.cast(detokenizer.dtype));
                let [mean, logvar] = moments.map(split);
                vec![(MEAN, mean), (LOGVAR, logvar)]
            }
        })
    }
}

/// Arrays of clips by name, a row for each.
type Rows = BTreeMap<&'static str, Vec<Array>>;

/// The rows of a tensor, in f32.
fn split<const D: usize>(tensor: Tensor<D>) -> Vec<Array> {
    let shape = tensor.dims();
    let values = tensor.cast(DType::F32).into_data();
    let values: Vec<f32> = values.iter::<f32>().collect();
    let row = shape[1..].iter().product::<usize>().max(1);
    let rows = values.chunks_exact(row).map(|values| Array {
        shape: shape[1..].to_vec(),
        values: values.to_vec(),
    });
    rows.collect()
}
