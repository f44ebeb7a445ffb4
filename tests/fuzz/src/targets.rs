//! The kinds of files: good examples of each, and how each is opened.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use burn::nn::LinearConfig;
use burn::tensor::{Device, Tensor};
use clap::ValueEnum;
use divot::data::dataset::{
    CaptionList, Filter, Format, Samples, Source as SampleSource, SourceConfig,
};
use divot::data::{
    ClipReader, Frame, OpenOptions, Video, read_image, write_gif, write_mp4, write_png,
};
use divot::language::TextTokenizer;
use divot::tokens::VideoTokens;
use divot::weights::{Saver, Source, StoredType, Weights};
use flate2::Compression;
use flate2::write::GzEncoder;

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
    /// Samples: captions in JSONL, CSV and MSR-VTT's JSON
    Annotations,
    /// Samples: questions and stories in JSONL
    Questions,
    /// Samples: tar archives, also compressed ones
    Archives,
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
                let linear = LinearConfig::new(64, 32).init(&Device::default());
                Saver::new(&made, StoredType::Q8).add("", linear).finish()?;
                seeds.push(("input.safetensors".into(), fs::read(&made)?));
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
            Self::Annotations => {
                for (name, content) in ANNOTATIONS {
                    seeds.push((name.into(), content.as_bytes().to_vec()));
                }
            }
            Self::Questions => {
                for (name, content) in [("questions.jsonl", QUESTIONS), ("story.jsonl", STORIES)] {
                    seeds.push((name.into(), content.as_bytes().to_vec()));
                }
            }
            Self::Archives => {
                write_png(&made, &frames()?[0])?;
                let archive = archive(&fs::read(&made)?)?;
                let mut packed = GzEncoder::new(Vec::new(), Compression::fast());
                packed.write_all(&archive)?;
                seeds.push(("input.tar".into(), archive));
                seeds.push(("input.tar.gz".into(), packed.finish()?));
            }
        }
        ensure!(!seeds.is_empty(), "there is no good file to start from");
        Ok(seeds)
    }

    /// Puts intact files where a damaged one has neighbours.
    pub fn prepare(self, folder: &Path) -> Result<()> {
        match self {
            Self::Sentencepiece => {
                for name in tokenizer_files()? {
                    fs::copy(project().join(TOKENIZER).join(&name), folder.join(&name))?;
                }
            }
            Self::Annotations | Self::Questions if !folder.join("v.mp4").exists() => {
                write_mp4(folder.join("v.mp4"), &frames()?, 2.0)?;
                write_png(folder.join("p.png"), &frames()?[0])?;
            }
            _ => {}
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
            Self::Annotations | Self::Questions | Self::Archives => samples(path),
        }
    }
}

/// Captions in each format: the names of the files tell which.
const ANNOTATIONS: [(&str, &str); 4] = [
    (
        "captions.jsonl",
        r#"{"video": "v.mp4", "caption": "a square moves"}
{"image": "p.png", "caption": ["a picture", "a square"]}
"#,
    ),
    (
        "webvid.csv",
        "videoid,contentUrl,duration,page_dir,name\nv,u,PT0H,.,\"A square, and\na \"\"box\"\".\"\nv,u,PT0H,.,Flat.\n",
    ),
    (
        "panda.csv",
        "videoID,url,timestamp,caption\nv,u,\"[['0:00:00.000', '0:00:02.000'], ['0:00:01.5', '0:00:03']]\",\"['A box.', \
         'It\\'s moved.']\"\nv,u,\"[['0:00:01', '0:00:02']]\",\"['Again.']\"\n",
    ),
    (
        "msrvtt.json",
        r#"{"sentences": [{"video_id": "v", "caption": "a box", "sen_id": 0}, {"video_id": "w", "caption": "b"}]}"#,
    ),
];

const QUESTIONS: &str = r#"{"video": "v.mp4", "question": "<video>\nWhat is it?", "answer": "A box."}
{"video": "v.mp4", "questions": ["What is it?", "Where?"], "answers": ["A box.", "Here."]}
{"image": "p.png", "data": ["What is it?", "A box.", "Is it red?", "No."]}
"#;

const STORIES: &str = r#"{"instruction": "Tell.", "scenes": [{"video": "v.mp4", "start": 0.5, "text": "A box."}, {"video": "v.mp4", "text": "It moves."}], "ending": "End."}
{"scenes": [{"video": "v.mp4", "start": 0.0, "end": 1.5, "text": "A box."}]}
"#;

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

/// Reads three frames with each decoder, without the program `ffmpeg`, which is not what is tested.
fn video(path: &Path) -> Result<()> {
    let one = three_frames(path, false);
    three_frames(path, true).and(one)
}

fn three_frames(path: &Path, parallel: bool) -> Result<()> {
    let options = OpenOptions {
        parallel,
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

/// An archive of a few samples, one of them with a long name.
fn archive(picture: &[u8]) -> Result<Vec<u8>> {
    let mut archive = tar::Builder::new(Vec::new());
    let long = "folder/".repeat(20);
    let long = ["png", "txt"].map(|extension| format!("{long}c.{extension}"));
    let files: [(&str, &[u8]); 6] = [
        ("a.png", picture),
        ("a.txt", b"a picture"),
        ("b.json", br#"{"caption": ["a picture", "a square"]}"#),
        ("b.png", picture),
        (&long[0], picture),
        (&long[1], b"a long name"),
    ];
    for (name, content) in files {
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        archive.append_data(&mut header, name, content)?;
    }
    Ok(archive.into_inner()?)
}

/// Reads the samples of a file, one of which at least is to be sound. At most so many are read, as a small file
/// may name one large video many times.
fn samples(path: &Path) -> Result<()> {
    const MAX_SAMPLES: usize = 32;
    let name = path.file_name().context("a file has a name")?;
    let format = match name.to_string_lossy().as_ref() {
        "captions.jsonl" => Format::Captions,
        "questions.jsonl" => Format::Questions,
        "story.jsonl" => Format::Story,
        name if name.contains(".tar") => Format::Webdataset,
        _ => Format::Csv,
    };
    let config = SourceConfig {
        filter: Filter {
            min_side: Some(1),
            max_pixels: 1 << 24,
            ..Filter::default()
        },
        ..SourceConfig::new(format, path)
    };
    let source = SampleSource::open(&config, &ClipReader::of_size(16))?;
    let mut sound = 0;
    for index in 0..source.len().min(MAX_SAMPLES) {
        match source.read(index, &mut || 0.7) {
            Ok(_) => sound += 1,
            Err(skip) => ensure!(!skip.message.contains('\n')),
        }
    }
    ensure!(sound > 0, "no sample is sound");
    match format {
        Format::Captions | Format::Csv => rows(path),
        _ => Ok(()),
    }
}

/// Reads the rows of a list of captions, as they are copied.
fn rows(path: &Path) -> Result<()> {
    if path.extension().is_some_and(|ending| ending == "json") {
        return Ok(());
    }
    let list = CaptionList::open(path, None)?;
    let mut length = list.header()?.len();
    for row in list.rows()? {
        let row = row?;
        length += row.bytes.len();
        if let Err(skip) = row.captions {
            ensure!(!skip.message.contains('\n'));
        }
    }
    ensure!(
        length as u64 <= path.metadata()?.len(),
        "more rows than the file has"
    );
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
