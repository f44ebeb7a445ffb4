//! The kinds of files: good examples of each, and how each is opened.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use burn::tensor::{Device, Tensor};
use clap::ValueEnum;
use divot::data::{Frame, OpenOptions, Video, read_image, write_gif, write_mp4, write_png};
use divot::language::TextTokenizer;
use divot::tokens::VideoTokens;
use divot::weights::{Source, Weights};

/// A kind of file.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Target {
    /// MP4 and MOV: the index and H.264
    Mp4,
    /// PNG, BMP, GIF and WebP
    Images,
    /// PyTorch checkpoints
    Pickle,
    /// Weights in safetensors
    Safetensors,
    /// Text tokenizers: tokenizer.json
    TokenizerJson,
    /// Text tokenizers: SentencePiece with its JSON files
    Sentencepiece,
    /// Files of video tokens
    Tokens,
}

/// Good files: the name under which a damaged copy is opened, and the content.
pub type Seeds = Vec<(String, Vec<u8>)>;

const CASES: &str = "crates/divot-data/tests/data/cases";
const CHECKPOINTS: &str = "crates/divot/tests/checkpoints";
const PRETRAINED: &str = "tests/fixture/pretrained";
const TOKENIZER: &str = "tests/fixture/pretrained/cvlm_mistral_instruct_tokenizer";
/// Good files are smaller than this, in bytes, so that many inputs are tried.
const MAX_SEED: usize = 256 << 10;

impl Target {
    pub fn name(self) -> String {
        let value = self.to_possible_value();
        value.map_or_else(String::new, |value| value.get_name().to_owned())
    }

    /// Good files to start from.
    pub fn seeds(self) -> Result<Seeds> {
        let folder = tempfile::tempdir()?;
        let made = folder.path().join("made");
        let mut seeds = Seeds::new();
        match self {
            Self::Mp4 => {
                add_all(&mut seeds, CASES, &["mp4", "mov"])?;
                write_mp4(&made, &frames()?, 8.0)?;
                seeds.push(("input.mp4".into(), fs::read(&made)?));
            }
            Self::Images => {
                add_all(&mut seeds, CASES, &["gif", "webp"])?;
                let frames = frames()?;
                write_gif(&made, &frames, 8.0)?;
                seeds.push(("input.gif".into(), fs::read(&made)?));
                write_png(&made, &frames[0])?;
                seeds.push(("input.png".into(), fs::read(&made)?));
                seeds.push(("input.bmp".into(), bmp(&frames[0])));
            }
            Self::Pickle => {
                add_all(&mut seeds, CHECKPOINTS, &["pt"])?;
                let agent = format!("{PRETRAINED}/Divot_sft_gen/agent");
                add_all(&mut seeds, &agent, &["bin"])?;
            }
            Self::Safetensors => {
                add_all(&mut seeds, CHECKPOINTS, &["safetensors"])?;
                let llm = format!("{PRETRAINED}/Divot_sft_gen/llm");
                add_all(&mut seeds, &llm, &["safetensors"])?;
            }
            Self::TokenizerJson => {
                TextTokenizer::open(&project().join(TOKENIZER))?.save(&made)?;
                seeds.push(("tokenizer.json".into(), fs::read(&made)?));
            }
            Self::Sentencepiece => {
                for name in tokenizer_files()? {
                    let content = fs::read(project().join(TOKENIZER).join(&name))?;
                    seeds.push((name, content));
                }
            }
            Self::Tokens => {
                let device = Device::default();
                for unconditional in [None, Some(Tensor::zeros([1, 64, 256], &device))] {
                    let tokens = Tensor::ones([1, 64, 256], &device);
                    let tokens = VideoTokens {
                        tokens,
                        unconditional,
                    };
                    tokens.save(&made)?;
                    seeds.push(("input.safetensors".into(), fs::read(&made)?));
                }
            }
        }
        ensure!(!seeds.is_empty(), "there is no good file to start from");
        Ok(seeds)
    }

    /// Puts intact files where a damaged one has neighbours.
    pub fn prepare(self, folder: &Path) -> Result<()> {
        if self == Self::Sentencepiece {
            for name in tokenizer_files()? {
                fs::copy(project().join(TOKENIZER).join(&name), folder.join(&name))?;
            }
        }
        Ok(())
    }

    /// Opens a file and reads its contents, as the program does.
    pub fn open(self, path: &Path) -> Result<()> {
        match self {
            Self::Mp4 => video(path),
            Self::Images => {
                let image = read_image(path);
                video(path)?;
                image?;
                Ok(())
            }
            Self::Pickle => source(path),
            Self::Safetensors => {
                let weights = Weights::open(path);
                source(path)?;
                weights?;
                Ok(())
            }
            Self::TokenizerJson => text(path),
            Self::Sentencepiece => text(path.parent().context("a file lies in a folder")?),
            Self::Tokens => {
                VideoTokens::open(path, &Device::default())?;
                Ok(())
            }
        }
    }
}

/// The folder of the project.
fn project() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn names(folder: &Path) -> Result<Vec<String>> {
    let entries = fs::read_dir(folder).with_context(|| folder.display().to_string())?;
    let mut names = entries
        .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
        .collect::<Result<Vec<_>>>()?;
    names.sort();
    Ok(names)
}

fn tokenizer_files() -> Result<Vec<String>> {
    names(&project().join(TOKENIZER))
}

fn add_all(seeds: &mut Seeds, folder: &str, extensions: &[&str]) -> Result<()> {
    let folder = project().join(folder);
    for name in names(&folder)? {
        let Some((_, extension)) = name.rsplit_once('.') else {
            continue;
        };
        if extensions.contains(&extension) {
            let content = fs::read(folder.join(&name))?;
            if content.len() <= MAX_SEED {
                seeds.push((format!("input.{extension}"), content));
            }
        }
    }
    Ok(())
}

fn frames() -> Result<Vec<Frame>> {
    (0..6)
        .map(|t| {
            let rgb = (0..48 * 32 * 3).map(|i| (i * 7 + t * 31) as u8).collect();
            Ok(Frame::new(48, 32, rgb)?)
        })
        .collect()
}

/// A BMP file of 24 bits.
fn bmp(frame: &Frame) -> Vec<u8> {
    let mut bytes = b"BM".to_vec();
    bytes.extend((54 + frame.rgb.len() as u32).to_le_bytes());
    bytes.extend([0; 4]);
    for number in [54, 40, frame.width as u32, frame.height as u32] {
        bytes.extend(number.to_le_bytes());
    }
    bytes.extend([1, 0, 24, 0]);
    bytes.extend([0; 24]);
    bytes.extend(&frame.rgb);
    bytes
}

/// Reads three frames without the program `ffmpeg`, which is not what is tested.
fn video(path: &Path) -> Result<()> {
    let options = OpenOptions {
        ffmpeg: "/nowhere/ffmpeg".into(),
        ffprobe: "/nowhere/ffprobe".into(),
        // A picture just below the default limit rightly takes seconds.
        max_pixels: 1 << 24,
        ..OpenOptions::default()
    };
    let video = Video::open_with(path, &options)?;
    let last = video.info().frames.saturating_sub(1);
    video.visit(&[0, last / 2, last], |_, _| Ok(()))?;
    Ok(())
}

fn source(path: &Path) -> Result<()> {
    for tensor in Source::open(path)?.tensors() {
        tensor.read()?;
    }
    Ok(())
}

fn text(path: &Path) -> Result<()> {
    let tokenizer = TextTokenizer::open(path)?;
    let ids = tokenizer.encode_with_special("A red <vid>circle</vid>, née 圆 🙂, moves.\n")?;
    tokenizer.decode(&ids, true)?;
    Ok(())
}
