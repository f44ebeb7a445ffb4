//! `divot info`

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Result, bail};
use clap::Args;
use divot::checkpoint::{CONFIG, Part, WEIGHTS};
use divot::data::Video;
use divot::data::sampling::{MAX_CLIPS, comprehend_indices};
use divot::weights::{Source, SourceTensor};
use serde_json::{Value, json};

use crate::options;
use crate::output::{self, Output, count, size};

/// Describe a model, a video or a file of tokens
///
/// No weights are loaded. For a model, only the headers of its files are read, and for a video, only
/// its description.
#[derive(Args)]
#[command(
    verbatim_doc_comment,
    after_help = "\
Examples:
  divot info --model models/divot
  divot info clip.mp4
  divot info tokens.safetensors"
)]
pub struct Arguments {
    /// Video, image, folder of images, or .safetensors file
    file: Option<PathBuf>,
    /// Folder of a model [default: models/divot if it is there, or divot-tiny, which the program contains]
    #[arg(long, value_name = "DIR", conflicts_with = "file")]
    model: Option<PathBuf>,
}

impl Arguments {
    /// Runs the command.
    pub fn run(&self, output: &mut Output) -> Result<()> {
        match &self.file {
            None => {
                let pipeline = options::open(self.model.as_deref(), "cpu", output)?;
                model(&pipeline.name(), pipeline.folder(), output)
            }
            Some(file) if has_parts(file) => model(&file.to_string_lossy(), file, output),
            Some(file) if file.extension().is_some_and(|name| name == "safetensors") => {
                tensors(file, output)
            }
            Some(file) => video(file, output),
        }
    }
}

fn has_parts(folder: &Path) -> bool {
    parts(folder).next().is_some()
}

/// Lists the parts of a model: their names and folders.
fn parts(folder: &Path) -> impl Iterator<Item = (&'static str, PathBuf)> {
    Part::ALL
        .into_iter()
        .map(|part| (part.name(), part.folder(folder)))
        .filter(|(_, folder)| folder.join(WEIGHTS).is_file())
}

fn model(name: &str, folder: &Path, output: &mut Output) -> Result<()> {
    if !has_parts(folder) {
        bail!(
            "{name}: there is no model; get one with `divot download --to {name}`, or name the folder of one with --model"
        );
    }
    let mut found = Vec::new();
    output.line(name)?;
    for (name, folder) in parts(folder) {
        let path = folder.join(WEIGHTS);
        let weights = Weights::read(&path)?;
        let text = fs::read(folder.join(CONFIG)).unwrap_or_default();
        let config: Value = serde_json::from_slice(&text).unwrap_or_default();
        output.line(format!(
            "  {name:<20} {:>9} parameters  {:>10}  {:<4}  {}",
            count(weights.parameters),
            size(weights.bytes),
            weights.dtypes.join(", "),
            sizes(&config)
        ))?;
        found.push(json!({
            "part": name,
            "parameters": weights.parameters,
            "tensors": weights.tensors,
            "bytes": weights.bytes,
            "dtypes": weights.dtypes,
            "config": config,
        }));
    }
    output.set("model", name);
    output.set("parts", found);
    Ok(())
}

/// Summary of a file of weights.
struct Weights {
    parameters: usize,
    tensors: usize,
    bytes: u64,
    dtypes: Vec<&'static str>,
}

impl Weights {
    fn read(path: &Path) -> Result<Self> {
        let source = Source::open(path)?;
        let mut dtypes: Vec<_> = source.tensors().map(SourceTensor::stored_type).collect();
        dtypes.sort_unstable();
        dtypes.dedup();
        Ok(Self {
            parameters: source
                .tensors()
                .map(|tensor| tensor.shape.iter().product::<usize>())
                .sum(),
            tensors: source.tensors().len(),
            bytes: fs::metadata(path).map_or(0, |meta| meta.len()),
            dtypes,
        })
    }
}

/// Formats the sizes by which models differ.
fn sizes(config: &Value) -> String {
    let number = |path: &str| config.pointer(path).and_then(Value::as_u64);
    let known = [
        ("frames of {} px", "/frame_size"),
        ("{} tokens", "/resampler/tokens"),
        ("of {}", "/resampler/token_dim"),
        ("tokens of {}", "/resampler/input_dim"),
        ("{} channels", "/unet/model_channels"),
        ("latents {}", "/latent_size/0"),
        ("x{}", "/latent_size/1"),
        ("{} layers", "/llm/num_hidden_layers"),
        ("of {}", "/llm/hidden_size"),
        ("vocabulary {}", "/llm/vocab_size"),
        ("window {}", "/llm/max_position_embeddings"),
        ("clips of {} tokens", "/num_queries"),
        ("LoRA of rank {}", "/lora/rank"),
        ("context of {}", "/context_length"),
        ("width {}", "/width"),
    ];
    let tokenizer = config.pointer("/vision").is_some();
    let mut text = String::new();
    for (words, path) in known {
        // In the tokenizer's resampler, the input size is the width of the vision tower.
        if tokenizer && path == "/resampler/input_dim" {
            continue;
        }
        if let Some(number) = number(path) {
            let words = words.replace("{}", &number.to_string());
            let gap = match () {
                () if text.is_empty() || words.starts_with('x') => "",
                () if words.starts_with("of ") => " ",
                () => ", ",
            };
            text += &format!("{gap}{words}");
        }
    }
    text
}

fn tensors(file: &Path, output: &mut Output) -> Result<()> {
    let source = Source::open(file)?;
    let weights = Weights::read(file)?;
    output.line(format!(
        "{}: {}, {} numbers, {}, {}",
        file.display(),
        output::plural(weights.tensors, "tensor"),
        count(weights.parameters),
        size(weights.bytes),
        weights.dtypes.join(", ")
    ))?;
    let mut list = Vec::new();
    for tensor in source.tensors() {
        output.line(format!(
            "  {} {:?} {}",
            tensor.name,
            tensor.shape,
            tensor.stored_type()
        ))?;
        list.push(json!({
            "name": tensor.name,
            "shape": tensor.shape,
            "dtype": tensor.stored_type(),
        }));
    }
    output.set("file", file.to_string_lossy());
    output.set("bytes", weights.bytes);
    output.set("tensors", list);
    Ok(())
}

fn video(file: &Path, output: &mut Output) -> Result<()> {
    let video = Video::open(file)?;
    let info = video.info();
    let clips = comprehend_indices(info.frames, info.fps, MAX_CLIPS)?.len();
    output.set("file", file.to_string_lossy());
    output.set("frames", info.frames);
    output.set("fps", info.fps);
    output.set("duration", info.duration());
    output.set("width", info.width);
    output.set("height", info.height);
    output.set("codec", &info.codec);
    output.set("clips", clips);
    output.line(format!(
        "{}: {} at {:.3} fps ({:.2} s), {}x{}, {}, {} of two seconds for `describe` and `tokenize`",
        file.display(),
        output::plural(info.frames, "frame"),
        info.fps,
        info.duration(),
        info.width,
        info.height,
        info.codec,
        output::plural(clips, "clip")
    ))
}
