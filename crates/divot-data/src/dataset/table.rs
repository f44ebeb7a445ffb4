//! Samples that are records of CSV files.

use std::path::Path;

use super::annotations::{Item, MediaFile, Texts, caption, texts};
use super::config::Columns;
use super::media::Part;
use super::python::{self, Value};
use super::records::{Problem, Records, csv_fields};
use super::sample::{Reason, Text};
use crate::{Error, Result};

/// Columns with a path, by what they are called.
const PATHS: [&str; 4] = ["video", "image", "path", "file"];
/// Columns with the name of a video without its extension.
const NAMES: [&str; 2] = ["videoid", "video_id"];
/// Columns with a caption. WebVid's is `name`.
const CAPTIONS: [&str; 5] = ["caption", "name", "sentence", "text", "title"];
/// Extensions that downloaded videos have.
const EXTENSIONS: [&str; 3] = ["mp4", "mkv", "webm"];

/// A CSV file whose records were found.
#[derive(Debug)]
pub(super) struct Table {
    pub records: Records,
    places: Places,
    /// The number of each record's first sample, where a record has several.
    firsts: Vec<u32>,
    samples: usize,
}

/// Where the fields are.
#[derive(Debug, Clone, Copy)]
struct Places {
    video: usize,
    /// The field has a path, and not just a name.
    is_path: bool,
    is_image: bool,
    /// WebVid's folder of the video.
    folder: Option<usize>,
    caption: usize,
    /// Panda-70M's parts of the video. Then the caption is a list too.
    parts: Option<usize>,
}

impl Table {
    /// Finds the records of a file.
    pub fn index(path: &Path, columns: Option<&Columns>) -> Result<Self> {
        let mut places = None;
        let (mut firsts, mut samples) = (Vec::new(), 0_usize);
        let records = Records::csv(path, |fields| {
            let Some(known) = &places else {
                places = Some(Places::of(path, fields.unwrap_or_default(), columns));
                return false;
            };
            let count = match known {
                Ok(Places {
                    parts: Some(parts), ..
                }) => {
                    let list =
                        fields.and_then(|fields| std::str::from_utf8(fields.get(*parts)?).ok());
                    firsts.push(u32::try_from(samples).unwrap_or(u32::MAX));
                    // What cannot be read is one sample, which is counted when it is.
                    list.and_then(python::list).map_or(1, |list| list.len())
                }
                _ => 1,
            };
            samples += count;
            true
        });
        let records = records.map_err(|error| Error::read(path, error))?;
        let places = places.unwrap_or_else(|| Places::of(path, &[], columns))?;
        firsts.shrink_to_fit();
        Ok(Self {
            records,
            places,
            firsts,
            samples,
        })
    }

    /// How many samples there are.
    pub fn len(&self) -> usize {
        self.samples
    }

    /// The record of a sample, and the sample's number in it.
    fn record(&self, index: usize) -> (usize, usize) {
        match self.firsts.is_empty() {
            true => (index, 0),
            false => {
                let record = self
                    .firsts
                    .partition_point(|&first| first as usize <= index)
                    - 1;
                (record, index - self.firsts[record] as usize)
            }
        }
    }

    /// What a sample is called.
    pub fn key(&self, index: usize) -> String {
        let (record, number) = self.record(index);
        let key = format!(
            "{}:{}",
            self.records.path.display(),
            self.records.line(record)
        );
        match self.firsts.is_empty() {
            true => key,
            false => format!("{key}[{number}]"),
        }
    }

    /// The captions of a record: one, or those of Panda-70M's parts.
    pub fn captions(&self, record: &[u8]) -> Result<Vec<String>, Problem> {
        let fields = csv_fields(record)?;
        let field = |place: usize| {
            let field = fields.get(place).map(|field| field.trim());
            field.ok_or_else(|| Problem::malformed(format!("has only {} fields", fields.len())))
        };
        if field(self.places.video)?.is_empty() {
            return Err(Problem::malformed("names no video"));
        }
        let caption = field(self.places.caption)?;
        let found = match self.places.parts {
            None => vec![caption.to_owned()],
            Some(_) => python::list(caption)
                .and_then(|list| list.into_iter().map(Value::text).collect())
                .ok_or_else(|| Problem::malformed("its captions are no list of texts"))?,
        };
        texts(Some(Texts::Many(found)))
    }

    /// Reads a sample.
    pub fn read(&self, index: usize, wants_text: bool) -> Result<Item, Problem> {
        let (record, number) = self.record(index);
        let fields = csv_fields(&self.records.read(record)?)?;
        let places = &self.places;
        let field = |place: usize| {
            let field = fields.get(place).map(|field| field.trim());
            field.ok_or_else(|| Problem::malformed(format!("has only {} fields", fields.len())))
        };
        let video = field(places.video)?;
        if video.is_empty() {
            return Err(Problem::malformed("names no video"));
        }
        let mut names = Vec::new();
        if let Some(folder) = places.folder {
            names.push(format!("{}/{video}.mp4", field(folder)?));
        }
        if places.is_path {
            names.push(video.to_owned());
        }
        names.extend(EXTENSIONS.map(|extension| format!("{video}.{extension}")));
        let (part, text) = match places.parts {
            None => (Part::Random, field(places.caption)?.to_owned()),
            Some(parts) => {
                let wrong =
                    |what: &str| Problem::malformed(format!("{what} {number} is no {what}"));
                let list = |place: usize| {
                    let list = python::list(field(place)?);
                    list.ok_or_else(|| Problem::malformed("a field is no list"))
                };
                let (times, texts) = (list(parts)?, list(places.caption)?);
                if times.len() != texts.len() {
                    return Err(Problem::malformed(format!(
                        "has {} time stamps and {} captions",
                        times.len(),
                        texts.len()
                    )));
                }
                let time = times.into_iter().nth(number).and_then(seconds);
                let [start, end] = time.ok_or_else(|| wrong("time stamp"))?;
                let text = texts.into_iter().nth(number).and_then(Value::text);
                (
                    Part::Within(start, end),
                    text.ok_or_else(|| wrong("caption"))?,
                )
            }
        };
        let text = match wants_text {
            true => caption(Some(Texts::One(text)), &mut || 0.0)?,
            false => Text::None,
        };
        let files = vec![MediaFile {
            names,
            image: places.is_image,
            part,
        }];
        Ok(Item { files, text })
    }
}

impl Places {
    /// Finds the columns by the header.
    fn of(path: &Path, header: &[&[u8]], columns: Option<&Columns>) -> Result<Self> {
        let header: Vec<String> = header
            .iter()
            .map(|name| String::from_utf8_lossy(name).trim().to_owned())
            .collect();
        let missing = |what: &str, names: &[&str]| Error::NoSamples {
            path: path.to_path_buf(),
            what: format!("no column `{}` for the {what}", names.join("`, `")),
            remedy: format!(
                "set `columns` to names in its header, which are {:?}",
                header.join(",")
            ),
        };
        let named = |what: &str, name: &str| {
            let found = column(&header, &[name]).map(|(place, _)| place);
            found.ok_or_else(|| missing(what, &[name]))
        };
        let (video, is_path, is_image, caption) = match columns {
            Some(columns) => (
                named("video", &columns.video)?,
                !NAMES
                    .iter()
                    .any(|name| columns.video.eq_ignore_ascii_case(name)),
                columns.video.eq_ignore_ascii_case("image"),
                named("caption", &columns.caption)?,
            ),
            None => {
                let names = [&PATHS[..], &NAMES[..]].concat();
                let (video, name) =
                    column(&header, &names).ok_or_else(|| missing("video", &names))?;
                let caption =
                    column(&header, &CAPTIONS).ok_or_else(|| missing("caption", &CAPTIONS))?;
                (video, PATHS.contains(&name), name == "image", caption.0)
            }
        };
        Ok(Self {
            video,
            is_path,
            is_image,
            folder: column(&header, &["page_dir"]).map(|(place, _)| place),
            caption,
            parts: column(&header, &["timestamp"]).map(|(place, _)| place),
        })
    }
}

/// The place of the first of `names` that is a column, and that name.
fn column<'a>(header: &[String], names: &[&'a str]) -> Option<(usize, &'a str)> {
    names.iter().find_map(|&name| {
        let mut columns = header.iter();
        let place = columns.position(|column| column.eq_ignore_ascii_case(name));
        place.map(|place| (place, name))
    })
}

/// Start and end of `['0:00:02.169', '0:00:06.006']`, in seconds.
fn seconds(value: Value) -> Option<[f64; 2]> {
    let Value::List(values) = value else {
        return None;
    };
    let [start, end] = values.try_into().ok()?;
    let seconds = |value: Value| {
        let text = value.text()?;
        text.split(':').try_fold(0.0, |total, part| {
            let part: f64 = part.parse().ok()?;
            (part >= 0.0 && part.is_finite()).then_some(60.0 * total + part)
        })
    };
    let times = [seconds(start)?, seconds(end)?];
    (times[0] < times[1]).then_some(times)
}

/// The sentences of MSR-VTT's JSON file: names of videos, and captions.
pub(super) fn sentences(path: &Path) -> Result<Vec<(Box<str>, Box<str>)>> {
    /// The file of all of MSR-VTT has 31 MB.
    const MAX_FILE: u64 = 1 << 28;
    #[derive(serde::Deserialize)]
    struct Sentence {
        video_id: Box<str>,
        caption: Box<str>,
    }
    #[derive(serde::Deserialize)]
    struct Sentences {
        sentences: Vec<Sentence>,
    }
    let read = || {
        let file = std::fs::File::open(path)?;
        match file.metadata()?.len() {
            0..=MAX_FILE => std::io::read_to_string(file),
            _ => Err(std::io::Error::other("over 256 MiB; write it as JSONL")),
        }
    };
    let text = read().map_err(|error| Error::read(path, error))?;
    let found: Sentences = serde_json::from_str(&text).map_err(|error| Error::NoSamples {
        path: path.to_path_buf(),
        what: format!("its JSON has no `sentences` with `video_id` and `caption`: {error}"),
        remedy: "give MSR-VTT's JSON file, or a CSV file".into(),
    })?;
    let sentences = found.sentences.into_iter();
    Ok(sentences
        .map(|found| (found.video_id, found.caption))
        .collect())
}

/// The sample of a sentence.
pub(super) fn sentence(video: &str, text: &str, wants_text: bool) -> Result<Item, Problem> {
    let names = EXTENSIONS.map(|extension| format!("{video}.{extension}"));
    let text = match (wants_text, text.trim().is_empty()) {
        (false, _) => Text::None,
        (true, false) => Text::Caption(text.to_owned()),
        (true, true) => return Err(Problem::new(Reason::NoText, "has no caption")),
    };
    let files = vec![MediaFile {
        names: names.to_vec(),
        image: false,
        part: Part::Random,
    }];
    Ok(Item { files, text })
}
