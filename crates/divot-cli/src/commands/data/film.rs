//! Films, and the clips that they are cut into.

use std::collections::BTreeSet;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use burn::tensor::Device;
use clap::{Args, ValueEnum};
use divot::data::shots::{
    self, Adaptive, Content, Method, MinLength, Shot, cut, detect, split, stitch,
};
use divot::data::{DEFAULT_FPS, Error as DataError, Video, atomically};
use divot::pipeline::Event;
use divot::{Pipeline, Tokenizer, TransNet};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::Pace;
use crate::files::not_written;
use crate::interrupt;
use crate::output::{Output, plural};

/// The file beside a film's clips that says where they come from.
const INDEX: &str = "film.json";

/// How films are cut.
#[derive(Args)]
#[command(next_help_heading = "Clips")]
pub struct Cutting {
    /// What finds the cuts: content compares frames with a threshold, adaptive with their neighbours too
    #[arg(long, value_enum, default_value = "content")]
    detector: Detector,
    /// Find the cuts with the network TransNetV2 instead, which sees dissolves and fades too: its weights for PyTorch, or
    /// in safetensors with the same names
    #[arg(long, value_name = "FILE", conflicts_with_all = ["detector", "min_score", "min_shot"])]
    transnet: Option<PathBuf>,
    /// Lowest score of a cut for content [default: 27]; its lowest ratio to its neighbours for adaptive [default: 3];
    /// the probability above which a frame is a transition for TransNetV2 [default: 0.5]
    #[arg(long, value_name = "NUMBER", allow_negative_numbers = true)]
    threshold: Option<f64>,
    /// Lowest score of a cut for adaptive [default: 15]
    #[arg(long, value_name = "NUMBER", allow_negative_numbers = true)]
    min_score: Option<f64>,
    /// Shortest shot in seconds [default: 15 frames]
    #[arg(long, value_name = "SECONDS", allow_negative_numbers = true)]
    min_shot: Option<f64>,
    /// Lowest cosine of CLIP's features at which neighbouring shots are joined, if there is a model; 1 joins none
    #[arg(
        long,
        value_name = "COSINE",
        default_value_t = 0.82,
        allow_negative_numbers = true
    )]
    similarity: f64,
    /// Shortest clip in seconds; others are left out
    #[arg(
        long,
        value_name = "SECONDS",
        default_value_t = 2.0,
        allow_negative_numbers = true
    )]
    min_clip: f64,
    /// Longest clip in seconds; longer shots are split
    #[arg(
        long,
        value_name = "SECONDS",
        default_value_t = 20.0,
        allow_negative_numbers = true
    )]
    max_clip: f64,
    /// Shorter side of the clips in pixels, if the film's is longer
    #[arg(long, value_name = "PIXELS", default_value_t = 256, value_parser = clap::value_parser!(u16).range(16..))]
    size: u16,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Detector {
    Content,
    Adaptive,
}

/// What finds the cuts, with its settings.
enum Finder {
    Scores(Method),
    Network {
        network: Box<TransNet>,
        threshold: f64,
    },
}

/// A film that was cut.
#[derive(Serialize, Deserialize)]
pub struct Film {
    /// Its path.
    pub video: String,
    /// Length of the file; none for a folder of images.
    bytes: Option<u64>,
    /// How it was cut.
    settings: Map<String, Value>,
    /// How many shots were found.
    pub shots: usize,
    /// Its clips, in order.
    pub clips: Vec<Clip>,
}

/// A clip of a film.
#[derive(Serialize, Deserialize)]
pub struct Clip {
    /// Its path in the folder of all.
    pub video: String,
    /// Its first frame in the film.
    first: usize,
    /// The frame after its last.
    end: usize,
    /// Its time in the film, in seconds.
    start: f64,
    /// When it ends.
    stop: f64,
}

impl Clip {
    fn shot(&self) -> Shot {
        Shot {
            frames: self.first..self.end,
            seconds: self.start..self.stop,
        }
    }

    /// How long it lasts, in seconds.
    pub fn seconds(&self) -> f64 {
        self.stop - self.start
    }
}

/// Cuts films into clips below one folder.
pub struct Cutter<'a> {
    cutting: &'a Cutting,
    folder: &'a Path,
    finder: Finder,
    /// The model whose CLIP features say which shots are alike.
    model: Option<&'a Pipeline>,
    /// Its tokenizer, once it was needed.
    tokenizer: Option<Tokenizer>,
}

impl<'a> Cutter<'a> {
    /// Checks the options.
    ///
    /// # Errors
    /// For the first that makes no sense.
    pub fn new(
        cutting: &'a Cutting,
        folder: &'a Path,
        model: Option<&'a Pipeline>,
        device: &Device,
    ) -> Result<Self> {
        let Cutting {
            min_clip,
            max_clip,
            similarity,
            ..
        } = *cutting;
        if !(min_clip >= 0.0 && max_clip > 0.0 && min_clip <= max_clip && max_clip.is_finite()) {
            bail!(
                "no clip lasts from {min_clip} to {max_clip} s; give --min-clip from 0 and a larger --max-clip"
            );
        }
        if !(-1.0..=1.0).contains(&similarity) {
            bail!("{similarity} is no cosine; give --similarity from -1 to 1");
        }
        Ok(Self {
            finder: cutting.finder(device)?,
            cutting,
            folder,
            model: model.filter(|_| similarity < 1.0),
            tokenizer: None,
        })
    }

    /// Cuts a film, or goes on with one. Says in one line what was found.
    ///
    /// # Errors
    /// Why the film cannot be read is the inner error, after which others can be cut. Everything else ends the work.
    pub fn film(
        &mut self,
        path: &Path,
        name: &str,
        output: &mut Output,
    ) -> Result<Result<Film, DataError>> {
        match self.cut(path, name, output) {
            Ok(film) => Ok(Ok(film)),
            Err(error) => match error.downcast::<DataError>() {
                Ok(error @ DataError::Write { .. }) => Err(error.into()),
                Ok(error) => Ok(Err(error)),
                Err(error) => Err(match error.downcast::<divot::Error>() {
                    Ok(divot::Error::Data(error)) => return Ok(Err(error)),
                    Ok(error) => error.into(),
                    Err(error) => error,
                }),
            },
        }
    }

    fn cut(&mut self, path: &Path, name: &str, output: &mut Output) -> Result<Film> {
        let folder = self.folder.join("clips").join(name);
        let film = match self.known(path, &folder)? {
            Some(film) => film,
            None => {
                let film = self.find(path, name, output)?;
                fs::create_dir_all(&folder).with_context(|| not_written(&folder))?;
                let text = serde_json::to_string_pretty(&film)? + "\n";
                atomically(&folder.join(INDEX), |file| file.write_all(text.as_bytes()))?;
                film
            }
        };
        remove_unfinished(&folder)?;
        let missing: Vec<(Shot, PathBuf)> = film
            .clips
            .iter()
            .map(|clip| (clip.shot(), self.folder.join(&clip.video)))
            .filter(|(_, path)| !path.exists())
            .collect();
        if !missing.is_empty() {
            let video = Video::open(path)?;
            let side = self.cutting.size.into();
            let mut pace = Pace::new();
            let flow = cut(&video, &missing, side, |written| {
                pace.show(|| format!("{name}: {written}/{} clips", missing.len()));
                interrupt::flow()
            });
            pace.finish();
            if flow?.is_break() {
                return Err(divot::Error::Stopped.into());
            }
        }
        Ok(film)
    }

    /// Returns what is known of a film that was cut before.
    fn known(&self, path: &Path, folder: &Path) -> Result<Option<Film>> {
        let index = folder.join(INDEX);
        if !index.exists() {
            return Ok(None);
        }
        let remedy = format!("remove {}, or choose another --output", folder.display());
        let text =
            fs::read(&index).with_context(|| format!("{}: cannot be read", index.display()))?;
        let Ok(film) = serde_json::from_slice::<Film>(&text) else {
            bail!(
                "{}: does not say how a film was cut; {remedy}",
                index.display()
            );
        };
        let bytes = length(path);
        let is_same = match film.video == path.to_string_lossy() {
            // A film that is gone is no reason to lose what was made of it.
            true => !path.exists() || film.bytes == bytes,
            // A file may have moved. A folder of images has nothing to be known by.
            false => film.bytes.is_some() && film.bytes == bytes,
        };
        if !is_same {
            bail!(
                "{}: was cut from another file of that name; {remedy}",
                folder.display()
            );
        }
        let settings = self.settings();
        let differs = |key: &&String| film.settings.get(*key) != settings.get(*key);
        let names: BTreeSet<&String> = film.settings.keys().chain(settings.keys()).collect();
        if let Some(name) = names.iter().copied().find(differs) {
            let show = |value: Option<&Value>| value.map_or("nothing".to_owned(), Value::to_string);
            bail!(
                "{}: was cut with `{name}` {}, and not {}; {remedy}",
                folder.display(),
                show(film.settings.get(name)),
                show(settings.get(name))
            );
        }
        Ok(Some(film))
    }

    /// Finds the clips of a film.
    fn find(&mut self, path: &Path, name: &str, output: &mut Output) -> Result<Film> {
        let video = Video::open(path)?;
        let frames = video.info().frames;
        let mut pace = Pace::new();
        let each = |done| {
            pace.show(|| format!("{name}: {done}/{frames} frames"));
            interrupt::flow()
        };
        let found = match &self.finder {
            Finder::Scores(method) => {
                detect(&video, method.clone(), each).map_err(anyhow::Error::from)
            }
            Finder::Network { network, threshold } => network
                .shots(&video, *threshold, each)
                .map_err(anyhow::Error::from),
        };
        pace.finish();
        let Some(shots) = found?.continue_value() else {
            return Err(divot::Error::Stopped.into());
        };
        let parts = split(&video, &shots, self.cutting.max_clip);
        let mut clips = self.stitch(&video, parts, output)?;
        // A frame's time is rounded.
        clips.retain(|it| it.seconds.end - it.seconds.start > self.cutting.min_clip - 1e-6);
        let clip = |(index, shot): (usize, &Shot)| Clip {
            video: format!("clips/{name}/{:04}.mp4", index + 1),
            first: shot.frames.start,
            end: shot.frames.end,
            start: shot.seconds.start,
            stop: shot.seconds.end,
        };
        Ok(Film {
            video: path.to_string_lossy().into_owned(),
            bytes: length(path),
            settings: self.settings(),
            shots: shots.len(),
            clips: clips.iter().enumerate().map(clip).collect(),
        })
    }

    /// Joins neighbouring shots that are alike, if there is a model.
    fn stitch(
        &mut self,
        video: &Video,
        shots: Vec<Shot>,
        output: &mut Output,
    ) -> Result<Vec<Shot>> {
        let Some(model) = self.model else {
            return Ok(shots);
        };
        if self.tokenizer.is_none() {
            let loaded = output.timed("loading", |output| {
                let mut checkpoint = model
                    .checkpoint()
                    .with_progress(|progress| output.observe(Event::Progress(progress)));
                let (tokenizer, _) = Tokenizer::load(&mut checkpoint)?;
                Ok(tokenizer)
            });
            self.tokenizer = Some(loaded?);
        }
        let Some(tokenizer) = &self.tokenizer else {
            return Ok(shots);
        };
        let pairs = shots.len().saturating_sub(1);
        let mut pace = Pace::new();
        let similarities = output.timed("CLIP features", |_| {
            Ok(tokenizer.similarities(video, &shots, |done| {
                pace.show(|| format!("{done}/{pairs} pairs of shots compared"));
                interrupt::flow()
            })?)
        });
        pace.finish();
        let Cutting {
            similarity,
            max_clip,
            ..
        } = *self.cutting;
        Ok(stitch(&shots, &similarities?, similarity, max_clip))
    }

    /// What the clips of a film depend on.
    fn settings(&self) -> Map<String, Value> {
        let Cutting {
            min_shot,
            min_clip,
            max_clip,
            size,
            similarity,
            ..
        } = *self.cutting;
        let (detector, threshold, min_score) = match &self.finder {
            Finder::Scores(Method::Content(content)) => ("content", content.threshold, None),
            Finder::Scores(Method::Adaptive(adaptive)) => {
                ("adaptive", adaptive.ratio, Some(adaptive.min_score))
            }
            Finder::Network { threshold, .. } => ("transnet", *threshold, None),
        };
        let model = self.model.map(|model| model.folder().to_string_lossy());
        let mut settings = json!({
            "detector": detector,
            "threshold": threshold,
            "min_score": min_score,
            "min_shot": min_shot,
            "min_clip": min_clip,
            "max_clip": max_clip,
            "size": size,
            "model": model,
            "similarity": model.as_ref().map(|_| similarity),
        });
        if let Some(weights) = &self.cutting.transnet {
            settings["transnet"] = json!(weights.to_string_lossy());
        }
        // Read again, so that numbers are what they are after being written and read.
        serde_json::from_str(&settings.to_string()).unwrap_or_default()
    }
}

impl Cutting {
    /// Checks the settings, and loads the network, which computes on the device.
    fn finder(&self, device: &Device) -> Result<Finder> {
        let Some(weights) = &self.transnet else {
            let method = self.method()?;
            // It checks its settings.
            shots::Detector::new(method.clone(), DEFAULT_FPS)?;
            return Ok(Finder::Scores(method));
        };
        let threshold = self.threshold.unwrap_or(0.5);
        if !(threshold > 0.0 && threshold < 1.0) {
            bail!(
                "{threshold} is no threshold of TransNetV2; give --threshold between 0 and 1 (0.5 is usual)"
            );
        }
        Ok(Finder::Network {
            network: Box::new(TransNet::load(weights, device)?),
            threshold,
        })
    }

    fn method(&self) -> Result<Method> {
        let min_length = self
            .min_shot
            .map_or(MinLength::default(), MinLength::Seconds);
        Ok(match self.detector {
            Detector::Content if self.min_score.is_some() => {
                bail!("--min-score is for --detector adaptive; content has only --threshold")
            }
            Detector::Content => {
                let default = Content::default();
                Method::Content(Content {
                    threshold: self.threshold.unwrap_or(default.threshold),
                    min_length,
                    ..default
                })
            }
            Detector::Adaptive => {
                let default = Adaptive::default();
                Method::Adaptive(Adaptive {
                    ratio: self.threshold.unwrap_or(default.ratio),
                    min_score: self.min_score.unwrap_or(default.min_score),
                    min_length,
                    ..default
                })
            }
        })
    }
}

/// Returns what a film's clips are called: the film's name without its ending.
pub fn name(path: &Path) -> String {
    let name = path.file_stem().or(path.file_name()).unwrap_or_default();
    let plain = |c: char| match c.is_alphanumeric() || matches!(c, '-' | '_' | '.') {
        true => c,
        false => '-',
    };
    let name: String = name.to_string_lossy().chars().map(plain).collect();
    // A hidden folder would be passed over.
    match name.trim_start_matches('.') {
        "" => "film".to_owned(),
        name => name.to_owned(),
    }
}

/// Describes a film in one line.
pub fn line(film: &Film) -> String {
    format!(
        "{}: {}, {}",
        film.video,
        plural(film.shots, "shot"),
        plural(film.clips.len(), "clip")
    )
}

/// The length of a file.
fn length(path: &Path) -> Option<u64> {
    let metadata = path.metadata().ok().filter(fs::Metadata::is_file);
    metadata.map(|metadata| metadata.len())
}

/// Removes what a program that was killed left of a file.
fn remove_unfinished(folder: &Path) -> Result<()> {
    for entry in fs::read_dir(folder).with_context(|| not_written(folder))? {
        let entry = entry.with_context(|| not_written(folder))?;
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if name.starts_with(".divot-") && name.ends_with(".tmp") {
            fs::remove_file(entry.path()).with_context(|| not_written(folder))?;
        }
    }
    Ok(())
}
