//! Sources: samples in files of one format.

use std::fs;
use std::ops::Range;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use super::archive::{Archives, MAX_TEXT};
use super::config::{Format, SourceConfig};
use super::lines::{Lines, MAX_LINE};
use super::media::{self, Part};
use super::sample::{Medium, Reason, Sample, Samples, Skip, Text, Turn};
use super::table::Table;
use crate::{ClipReader, Error, Result};

/// The longest caption, question or answer that is taken, in bytes.
const MAX_CAPTION: usize = 64 << 10;
/// Extensions of the files that a folder of videos is searched for.
const MEDIA: [&str; 14] = [
    "mp4", "mov", "m4v", "mkv", "webm", "avi", "ts", "gif", "webp", "png", "jpg", "jpeg", "bmp",
    "ogv",
];

/// A source of samples.
#[derive(Debug)]
pub struct Source {
    config: SourceConfig,
    reader: ClipReader,
    content: Content,
}

#[derive(Debug)]
enum Content {
    Files(Vec<PathBuf>),
    /// Files, and the number of each one's first sample.
    Lines(Vec<Lines>),
    Tables(Vec<Table>),
    Archives(Archives),
}

impl Source {
    /// Finds the samples of a source. They are read later, with clips as `reader` cuts them.
    ///
    /// # Errors
    /// If a path cannot be read, or no sample is found.
    pub fn open(config: &SourceConfig, reader: &ClipReader) -> Result<Self> {
        if config.max_clips == 0 {
            return Err(Error::Argument(format!(
                "{}: 0 clips are asked for; ask for at least 1",
                config.path.display()
            )));
        }
        let content = match config.format {
            Format::Videos => Content::Files(files(&config.path, &MEDIA)?),
            Format::Captions | Format::Questions | Format::Story => {
                let files = files(&config.path, &["jsonl", "json"])?;
                let index = |path: &PathBuf| Lines::index(path).map_err(|e| Error::read(path, e));
                Content::Lines(files.iter().map(index).collect::<Result<_>>()?)
            }
            Format::Csv => {
                let files = files(&config.path, &["csv"])?;
                let tables = files.iter().map(|path| Table::index(path));
                Content::Tables(tables.collect::<Result<_>>()?)
            }
            Format::Webdataset => Content::Archives(Archives::index(shards(&config.path)?)),
        };
        let source = Self {
            config: config.clone(),
            reader: reader.clone(),
            content,
        };
        match source.is_empty() {
            false => Ok(source),
            true => Err(source.nothing()),
        }
    }

    /// Archives that are damaged or end too early, and how. What comes before the damage is used.
    pub fn damaged(&self) -> &[(PathBuf, String)] {
        match &self.content {
            Content::Archives(archives) => &archives.damaged,
            _ => &[],
        }
    }

    /// Why there are no samples.
    fn nothing(&self) -> Error {
        let wanted = match self.config.format {
            Format::Videos => "videos or images",
            Format::Captions | Format::Questions | Format::Story => "lines in `.jsonl` files",
            Format::Csv => "records in `.csv` files",
            Format::Webdataset => "samples in `.tar` archives",
        };
        let damage = match self.damaged() {
            [] => String::new(),
            [(path, what), ..] => format!(" ({}: {what})", path.display()),
        };
        Error::Argument(format!(
            "{}: holds no {wanted}{damage}; name the file or folder that does",
            self.config.path.display()
        ))
    }

    /// A file that a line or record names. Without a folder for media it is beside the text file.
    fn media(&self, text: &Path, name: &str) -> PathBuf {
        let folder = self.config.media.as_deref();
        let beside = || text.parent().unwrap_or(Path::new("."));
        folder.unwrap_or_else(beside).join(name)
    }

    fn line(
        &self,
        lines: &Lines,
        index: usize,
        uniform: &mut dyn FnMut() -> f64,
    ) -> Result<Sample, Skip> {
        let key = format!("{}:{}", lines.path.display(), lines.number(index));
        let skip = |reason, message: String| Skip {
            key: key.clone(),
            reason,
            message,
        };
        let text = match lines.read(index) {
            Ok(Some(text)) => text,
            Ok(None) => {
                let message = format!("a line of over {} MiB", MAX_LINE >> 20);
                return Err(skip(Reason::TooMuchText, message));
            }
            Err(error) => return Err(skip(reason(&error), error.to_string())),
        };
        let fields: Map<String, Value> = serde_json::from_str(&text)
            .map_err(|error| skip(Reason::Malformed, format!("no JSON object: {error}")))?;
        let malformed = |message: String| skip(Reason::Malformed, message);
        if self.config.format == Format::Story {
            return self.story(&lines.path, &key, &fields, uniform);
        }
        let named = ["video", "image"]
            .into_iter()
            .find_map(|name| fields.get(name));
        let named = named.ok_or_else(|| malformed("has neither `video` nor `image`".to_owned()))?;
        let named = named
            .as_str()
            .ok_or_else(|| malformed("`video` or `image` is no text".to_owned()))?;
        let text = match self.config.format {
            Format::Captions => caption(&fields, &key, uniform)?,
            _ => turns(&fields, &key)?,
        };
        self.sample(
            key,
            &self.media(&lines.path, named),
            text,
            Part::Random,
            uniform,
        )
    }

    fn story(
        &self,
        path: &Path,
        key: &str,
        fields: &Map<String, Value>,
        uniform: &mut dyn FnMut() -> f64,
    ) -> Result<Sample, Skip> {
        let malformed = |message: &str| Skip {
            key: key.to_owned(),
            reason: Reason::Malformed,
            message: message.to_owned(),
        };
        let optional = |name: &str| match fields.get(name) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::String(text)) => Ok(Some(text.clone())),
            Some(_) => Err(malformed(&format!("`{name}` is no text"))),
        };
        let scenes = fields.get("scenes").and_then(Value::as_array);
        let scenes = scenes.ok_or_else(|| malformed("has no list `scenes`"))?;
        if scenes.is_empty() {
            return Err(malformed("has no scenes"));
        }
        let mut clips = Vec::new();
        let mut texts = Vec::new();
        for scene in scenes {
            let text = |name: &str| scene.get(name).and_then(Value::as_str);
            let video = text("video").ok_or_else(|| malformed("a scene has no `video`"))?;
            let said = text("text").ok_or_else(|| malformed("a scene has no `text`"))?;
            let number = |name: &str| scene.get(name).and_then(Value::as_f64);
            let part = match (number("start"), number("end")) {
                (Some(start), Some(end)) if start < end => Part::Within(start, end),
                (Some(start), None) => Part::From(start),
                (None, None) => Part::Random,
                _ => {
                    return Err(malformed(
                        "a scene's `start` and `end` are no part of a video",
                    ));
                }
            };
            let path = self.media(path, video);
            let (_, scene) = media::read(&self.config, &self.reader, &path, key, part, uniform)?;
            clips.extend(scene.into_iter().take(1));
            texts.push(limited(said, key)?.to_owned());
        }
        Ok(Sample {
            key: key.to_owned(),
            medium: Medium::Video,
            clips,
            text: Text::Story {
                instruction: optional("instruction")?,
                scenes: texts,
                ending: optional("ending")?.unwrap_or_default(),
            },
        })
    }

    fn archived(
        &self,
        archives: &Archives,
        index: usize,
        uniform: &mut dyn FnMut() -> f64,
    ) -> Result<Sample, Skip> {
        let entry = &archives.entries[index];
        let key = format!("{}#{index}", archives.shard(entry).display());
        let skip = |reason, message: String| Skip {
            key: key.clone(),
            reason,
            message,
        };
        let (member, is_json) = entry
            .text
            .ok_or_else(|| skip(Reason::NoText, "has neither `.txt` nor `.json`".to_owned()))?;
        if member.size > MAX_TEXT {
            let message = format!("a text of {} bytes", member.size);
            return Err(skip(Reason::TooMuchText, message));
        }
        let unreadable = |error: std::io::Error| skip(reason(&error), error.to_string());
        let text = archives.text(entry, member).map_err(unreadable)?;
        let text = String::from_utf8(text)
            .map_err(|_| skip(Reason::Malformed, "the text is not UTF-8".to_owned()))?;
        let text = match is_json {
            false => Text::Caption(limited(text.trim(), &key)?.to_owned()),
            true => {
                let fields = serde_json::from_str(&text)
                    .map_err(|error| skip(Reason::Malformed, format!("no JSON object: {error}")))?;
                caption(&fields, &key, uniform)?
            }
        };
        let file = archives.media(entry).map_err(unreadable)?;
        self.sample(key, file.path(), text, Part::Random, uniform)
    }

    fn sample(
        &self,
        key: String,
        path: &Path,
        text: Text,
        part: Part,
        uniform: &mut dyn FnMut() -> f64,
    ) -> Result<Sample, Skip> {
        let (medium, clips) = media::read(&self.config, &self.reader, path, &key, part, uniform)?;
        Ok(Sample {
            key,
            medium,
            clips,
            text,
        })
    }
}

impl Samples for Source {
    fn len(&self) -> usize {
        match &self.content {
            Content::Files(files) => files.len(),
            Content::Lines(files) => files.iter().map(Lines::len).sum(),
            Content::Tables(tables) => tables.iter().map(Table::len).sum(),
            Content::Archives(archives) => archives.entries.len(),
        }
    }

    fn groups(&self) -> Vec<Range<usize>> {
        let counts = match &self.content {
            // Nothing is gained by reading them in order.
            Content::Files(_) | Content::Lines(_) | Content::Tables(_) => vec![self.len()],
            Content::Archives(archives) => archives.counts(),
        };
        let mut start = 0;
        let ranges = counts.into_iter().map(|count| {
            start += count;
            start - count..start
        });
        ranges.filter(|range| !range.is_empty()).collect()
    }

    fn read(&self, index: usize, uniform: &mut dyn FnMut() -> f64) -> Result<Sample, Skip> {
        match &self.content {
            Content::Files(files) => {
                let path = &files[index];
                let key = path.display().to_string();
                self.sample(key, path, Text::None, Part::Random, uniform)
            }
            Content::Lines(files) => {
                let (file, index) = within(files, Lines::len, index);
                self.line(file, index, uniform)
            }
            Content::Tables(tables) => {
                let (table, index) = within(tables, Table::len, index);
                let row = table.read(index)?;
                let path = self.media(&table.path, &row.media);
                let text = Text::Caption(limited(&row.caption, &row.key)?.to_owned());
                let part = match row.seconds {
                    Some([start, end]) => Part::Within(start, end),
                    None => Part::Random,
                };
                self.sample(row.key, &path, text, part, uniform)
            }
            Content::Archives(archives) => self.archived(archives, index, uniform),
        }
    }
}

/// The file that holds the `index`-th of all samples, and the sample's number in it.
fn within<T>(files: &[T], len: fn(&T) -> usize, mut index: usize) -> (&T, usize) {
    for file in files {
        if index < len(file) {
            return (file, index);
        }
        index -= len(file);
    }
    panic!("the index is below the number of samples")
}

/// Why a text file or archive could not be read.
fn reason(error: &std::io::Error) -> Reason {
    match error.kind() {
        std::io::ErrorKind::NotFound => Reason::Missing,
        std::io::ErrorKind::InvalidData => Reason::Malformed,
        _ => Reason::Undecodable,
    }
}

/// A text that is neither empty nor too long.
fn limited<'a>(text: &'a str, key: &str) -> Result<&'a str, Skip> {
    let skip = |reason, message: String| Skip {
        key: key.to_owned(),
        reason,
        message,
    };
    match text.len() {
        _ if text.trim().is_empty() => Err(skip(Reason::NoText, "a text is empty".to_owned())),
        length if length > MAX_CAPTION => Err(skip(
            Reason::TooMuchText,
            format!("a text of {length} bytes"),
        )),
        _ => Ok(text),
    }
}

/// The field `caption`: a text, or a list of which one is taken.
fn caption(
    fields: &Map<String, Value>,
    key: &str,
    uniform: &mut dyn FnMut() -> f64,
) -> Result<Text, Skip> {
    let malformed = |message: &str| Skip {
        key: key.to_owned(),
        reason: Reason::Malformed,
        message: message.to_owned(),
    };
    let text = match fields.get("caption") {
        None | Some(Value::Null) => {
            return Err(Skip {
                reason: Reason::NoText,
                ..malformed("has no `caption`")
            });
        }
        Some(Value::String(text)) => text,
        Some(Value::Array(texts)) if !texts.is_empty() => {
            let number = (uniform() * texts.len() as f64) as usize;
            let text = texts[number.min(texts.len() - 1)].as_str();
            return Ok(Text::Caption(
                limited(text.ok_or_else(|| malformed("a caption is no text"))?, key)?.to_owned(),
            ));
        }
        Some(_) => return Err(malformed("`caption` is neither a text nor a list of texts")),
    };
    Ok(Text::Caption(limited(text, key)?.to_owned()))
}

/// Questions with their answers, in each of the forms that the released data has.
fn turns(fields: &Map<String, Value>, key: &str) -> Result<Text, Skip> {
    let malformed = |message: &str| Skip {
        key: key.to_owned(),
        reason: Reason::Malformed,
        message: message.to_owned(),
    };
    let list = |value: &Value| -> Result<Vec<String>, Skip> {
        let texts = match value {
            Value::String(text) => vec![text.clone()],
            Value::Array(values) => {
                let texts = values.iter().map(|value| value.as_str().map(str::to_owned));
                let texts = texts.collect::<Option<Vec<_>>>();
                texts.ok_or_else(|| malformed("a question or answer is no text"))?
            }
            _ => {
                return Err(malformed(
                    "questions and answers are neither texts nor lists",
                ));
            }
        };
        Ok(texts)
    };
    let pairs = [("question", "answer"), ("questions", "answers")];
    let pair = pairs
        .into_iter()
        .find_map(|(question, answer)| Some((fields.get(question)?, fields.get(answer)?)));
    let (questions, answers) = match (pair, fields.get("data")) {
        (Some((questions, answers)), _) => (list(questions)?, list(answers)?),
        (None, Some(data)) => {
            let data = list(data)?;
            let every = |first: usize| data.iter().skip(first).step_by(2).cloned().collect();
            (every(0), every(1))
        }
        (None, None) => return Err(malformed("has no questions with answers")),
    };
    if questions.len() != answers.len() || questions.is_empty() {
        let message = format!(
            "{} questions and {} answers",
            questions.len(),
            answers.len()
        );
        return Err(malformed(&message));
    }
    let turns = questions.into_iter().zip(answers);
    let turns = turns.map(|(question, answer)| {
        limited(&question, key)?;
        limited(&answer, key)?;
        Ok(Turn { question, answer })
    });
    Ok(Text::Turns(turns.collect::<Result<_, Skip>>()?))
}

/// The file `path`, or the files below it that have one of the extensions, sorted.
fn files(path: &Path, extensions: &[&str]) -> Result<Vec<PathBuf>> {
    let info = fs::metadata(path).map_err(|error| Error::read(path, error))?;
    if !info.is_dir() {
        return Ok(vec![path.to_path_buf()]);
    }
    let mut found = Vec::new();
    let mut folders = vec![path.to_path_buf()];
    while let Some(folder) = folders.pop() {
        let failed = |error| Error::read(&folder, error);
        for entry in fs::read_dir(&folder).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let path = entry.path();
            // A link to a folder is not followed: it may lead back.
            if entry.file_type().map_err(failed)?.is_dir() {
                folders.push(path);
                continue;
            }
            let extension = path.extension().and_then(|extension| extension.to_str());
            let extension = extension.map(str::to_lowercase);
            if extension.is_some_and(|extension| extensions.contains(&&*extension)) {
                found.push(path);
            }
        }
    }
    found.sort();
    Ok(found)
}

/// Archives: a file, those below a folder, or those of a pattern.
fn shards(path: &Path) -> Result<Vec<PathBuf>> {
    let text = path.to_string_lossy();
    if let Some((before, rest)) = text.split_once('{')
        && let Some((range, after)) = rest.split_once('}')
        && let Some((first, last)) = range.split_once("..")
    {
        let wrong = || {
            Error::Argument(format!(
                "{text}: `{{{range}}}` is no range; write it as `{{0000..0127}}`"
            ))
        };
        let [start, end] = [first, last].map(|number| number.parse::<u32>());
        let (Ok(start), Ok(end)) = (start, end) else {
            return Err(wrong());
        };
        if end < start || end - start > 1_000_000 {
            return Err(wrong());
        }
        let width = first.len();
        let names = (start..=end).map(|number| format!("{before}{number:0width$}{after}").into());
        return Ok(names.collect());
    }
    files(path, &["tar", "gz", "tgz"])
}
