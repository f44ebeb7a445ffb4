//! Sources: samples in files of one format.

use std::ops::Range;
use std::path::{Path, PathBuf};

use super::annotations::{self, Item, Texts, caption};
use super::archive::{Archives, Media};
use super::cache::Cache;
use super::chain::Chain;
use super::config::{Format, SourceConfig};
use super::files;
use super::media::{MediaReader, Part};
use super::records::{Problem, Records};
use super::sample::{Medium, Reason, Sample, Samples, Skip, Text};
use super::table::{self, Table};
use super::worlds::Made;
use crate::{Clip, ClipReader, Error, Result};

/// Endings of the files that a folder of videos is searched for.
const MEDIA: [&str; 16] = [
    ".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".ts", ".gif", ".webp",
    ".png", ".jpg", ".jpeg", ".bmp", ".ogv",
];

/// The samples of files of one format; the [module](super) has the formats.
///
/// Opening finds the samples, of which only their places are kept in memory. Reading one opens its files and
/// closes them again.
#[derive(Debug)]
pub struct Source {
    config: SourceConfig,
    reader: MediaReader,
    passed_over: Vec<Skip>,
    content: Content,
}

#[derive(Debug)]
enum Content {
    Files(Vec<PathBuf>),
    Archives(Archives),
    Annotations(Annotations),
    Cache(Cache),
    Made(Made),
}

/// Files that say what is in other files.
#[derive(Debug)]
enum Annotations {
    Lines(Chain<Records>),
    Tables(Chain<Table>),
    /// Those of MSR-VTT's JSON file.
    Sentences(PathBuf, Vec<(Box<str>, Box<str>)>),
}

/// What an annotation says, with the sample's key and the file that it stands in.
type Annotation<'a> = (String, &'a Path, Result<Item, Problem>);

impl Annotations {
    fn len(&self) -> usize {
        match self {
            Self::Lines(chain) => chain.len,
            Self::Tables(chain) => chain.len,
            Self::Sentences(_, sentences) => sentences.len(),
        }
    }

    fn read(
        &self,
        config: &SourceConfig,
        index: usize,
        uniform: &mut dyn FnMut() -> f64,
    ) -> Annotation<'_> {
        match self {
            Self::Lines(chain) => {
                let (records, index) = chain.at(index);
                let key = format!("{}:{}", records.path.display(), records.line(index));
                let line = records.read(index);
                let item = line
                    .and_then(|line| annotations::line(config.format, config.text, &line, uniform));
                (key, &records.path, item)
            }
            Self::Tables(chain) => {
                let (table, index) = chain.at(index);
                let item = table.read(index, config.text);
                (table.key(index), &table.records.path, item)
            }
            Self::Sentences(path, sentences) => {
                let (video, text) = &sentences[index];
                let key = format!("{}: sentence {index}", path.display());
                (key, path, table::sentence(video, text, config.text))
            }
        }
    }
}

impl Source {
    /// Finds the samples of a source. They are read later, with clips as `reader` cuts them.
    ///
    /// # Errors
    /// A path that cannot be read, settings that make no sense, and [`Error::NoSamples`] if nothing is found,
    /// or nothing of what is found can be understood.
    pub fn open(config: &SourceConfig, reader: &ClipReader) -> Result<Self> {
        config.check()?;
        let mut passed_over = Vec::new();
        let content = match Made::new(config, reader)? {
            Some(made) => Content::Made(made),
            None => content(config, &mut passed_over)?,
        };
        let source = Self {
            reader: MediaReader::new(config, reader),
            config: config.clone(),
            passed_over,
            content,
        };
        match source.is_empty() {
            true => Err(source.nothing()),
            false => source.understood(),
        }
    }

    /// The files that samples were found in: videos and images, archives, or lists of others.
    pub fn files(&self) -> Vec<&Path> {
        fn paths<T>(files: &[T], path: impl Fn(&T) -> &PathBuf) -> Vec<&Path> {
            files.iter().map(|file| path(file).as_path()).collect()
        }
        match &self.content {
            Content::Files(files) => paths(files, |path| path),
            Content::Archives(archives) => archives.paths().collect(),
            Content::Annotations(Annotations::Lines(chain)) => {
                paths(&chain.files, |records| &records.path)
            }
            Content::Annotations(Annotations::Tables(chain)) => {
                paths(&chain.files, |table| &table.records.path)
            }
            Content::Annotations(Annotations::Sentences(path, _)) => vec![path],
            Content::Cache(_) | Content::Made(_) => Vec::new(),
        }
    }

    fn error(&self, what: String, remedy: &str) -> Error {
        Error::NoSamples {
            path: self.config.path.first().cloned().unwrap_or_default(),
            what,
            remedy: remedy.into(),
        }
    }

    /// Why there are no samples.
    fn nothing(&self) -> Error {
        let found = match &self.content {
            Content::Files(_) => "no video or image files",
            Content::Archives(_) => "no `.tar`, `.tar.gz` or `.tgz` archives with videos or images",
            Content::Annotations(Annotations::Lines(chain)) if chain.files.is_empty() => {
                "no `.jsonl` files"
            }
            Content::Annotations(Annotations::Tables(chain)) if chain.files.is_empty() => {
                "no `.csv` files"
            }
            Content::Annotations(_) => "only empty files",
            Content::Cache(_) => "an empty cache",
            Content::Made(_) => "a world without samples",
        };
        let what = match self.passed_over.first() {
            None => found.into(),
            Some(first) => format!("{found}; {}: {}", first.key, first.message),
        };
        self.error(what, "name a file or folder with some")
    }

    /// Checks that one annotation at least can be understood.
    fn understood(self) -> Result<Self> {
        let Content::Annotations(annotations) = &self.content else {
            return Ok(self);
        };
        let mut first = None;
        for index in 0..annotations.len() {
            match annotations.read(&self.config, index, &mut || 0.0) {
                (_, _, Ok(_)) => return Ok(self),
                (key, _, Err(problem)) => {
                    first.get_or_insert_with(|| format!("{key}: {}", problem.message));
                }
            }
        }
        let what = format!(
            "none of its {} lines can be used; the first is {}",
            annotations.len(),
            first.unwrap_or_default()
        );
        Err(self.error(what, "compare it with the example of the format"))
    }

    /// Reads the files that an annotation names.
    fn annotated(
        &self,
        annotation: &Path,
        item: Item,
        uniform: &mut dyn FnMut() -> f64,
    ) -> Result<Found, Problem> {
        let (count, limit) = (item.files.len(), self.config.max_clips());
        if count > 1 && count > limit {
            let message = format!("{count} scenes, more than the limit of {limit} (`max_clips`)");
            return Err(Problem::new(Reason::TooLong, message));
        }
        let beside = || annotation.parent().unwrap_or(Path::new(""));
        let folder = self.config.media.as_deref().unwrap_or_else(beside);
        let mut medium = Medium::Video;
        let mut clips = Vec::new();
        for file in &item.files {
            let path = locate(folder, &file.names)?;
            let (kind, read) = self.reader.file(&path, file.image, file.part, uniform)?;
            clips.extend(read);
            medium = kind;
        }
        if self.config.format == Format::Story {
            medium = Medium::Video;
        }
        Ok((medium, clips, item.text))
    }

    /// Reads a sample of an archive.
    fn archived(
        &self,
        archives: &Archives,
        index: usize,
        uniform: &mut dyn FnMut() -> f64,
    ) -> Result<Sample, Skip> {
        let path = archives.path(index).display();
        let opened = archives.open(index);
        let (name, file) =
            opened.map_err(|problem| problem.skip(format!("{path}: sample {index}")))?;
        let key = format!("{path}: {name}");
        let mut read = || -> Result<Found, Problem> {
            let text = match archives.text(index, &file, self.config.text)? {
                None => Text::None,
                Some((text, true)) => annotations::described(&text, uniform)?,
                Some((text, false)) => {
                    let text = String::from_utf8(text)
                        .map_err(|_| Problem::malformed("its text is not UTF-8"))?;
                    caption(Some(Texts::One(text.trim().to_owned())), uniform)?
                }
            };
            let name = Path::new(&key);
            let (medium, clips) = match archives.media(index, &file)? {
                Media::Bytes(bytes) => self.reader.bytes(name, &bytes, uniform)?,
                Media::File(file) => self.reader.temporary(name, file.path(), uniform)?,
            };
            Ok((medium, clips, text))
        };
        finish(read(), key)
    }
}

impl Samples for Source {
    fn len(&self) -> usize {
        match &self.content {
            Content::Files(paths) => paths.len(),
            Content::Archives(archives) => archives.len(),
            Content::Annotations(annotations) => annotations.len(),
            Content::Cache(cache) => cache.len(),
            Content::Made(made) => made.len(),
        }
    }

    fn groups(&self) -> Vec<Range<usize>> {
        match &self.content {
            Content::Archives(archives) => archives.groups(),
            Content::Cache(cache) => cache.groups(),
            // Any order is as cheap as another.
            _ => std::iter::once(0..self.len()).collect(),
        }
    }

    fn passed_over(&self) -> &[Skip] {
        &self.passed_over
    }

    fn read(&self, index: usize, uniform: &mut dyn FnMut() -> f64) -> Result<Sample, Skip> {
        match &self.content {
            Content::Files(paths) => {
                let path = &paths[index];
                let read = self.reader.file(path, false, Part::Random, uniform);
                let read = read.map(|(medium, clips)| (medium, clips, Text::None));
                finish(read, path.display().to_string())
            }
            Content::Archives(archives) => self.archived(archives, index, uniform),
            Content::Cache(cache) => cache.read(index, uniform),
            Content::Made(made) => made.read(index, uniform),
            Content::Annotations(annotations) => {
                let (key, path, item) = annotations.read(&self.config, index, uniform);
                let read = item.and_then(|item| self.annotated(path, item, uniform));
                finish(read, key)
            }
        }
    }
}

/// What is read of a sample.
type Found = (Medium, Vec<Clip>, Text);

fn finish(read: Result<Found, Problem>, key: String) -> Result<Sample, Skip> {
    match read {
        Ok((medium, clips, text)) => Ok(Sample {
            key,
            medium,
            clips,
            text,
            stored: None,
        }),
        Err(problem) => Err(problem.skip(key)),
    }
}

/// The first of the paths below `folder` that exists; the first of all if none does.
fn locate(folder: &Path, names: &[String]) -> Result<PathBuf, Problem> {
    let mut first = None;
    for name in names {
        let path = files::inside(folder, name).ok_or_else(|| {
            Problem::malformed(format!(
                "{name:?} is not inside {}; set `media` to the folder of all videos",
                folder.display()
            ))
        })?;
        if names.len() == 1 || path.exists() {
            return Ok(path);
        }
        first.get_or_insert(path);
    }
    first.ok_or_else(|| Problem::malformed("names no file"))
}

/// Finds the samples.
fn content(config: &SourceConfig, passed_over: &mut Vec<Skip>) -> Result<Content> {
    let paths = &config.path;
    let annotations = match config.format {
        Format::Cache => return Ok(Content::Cache(Cache::open(config)?)),
        Format::Videos => return Ok(Content::Files(files::find(paths, &MEDIA, passed_over)?)),
        Format::Webdataset => {
            let paths = files::expand(paths, passed_over)?;
            let shards = files::find(&paths, &[".tar", ".tar.gz", ".tgz"], passed_over)?;
            return Ok(Content::Archives(Archives::index(shards, passed_over)));
        }
        Format::Csv => match &paths[..] {
            [path]
                if path
                    .extension()
                    .is_some_and(|extension| extension == "json") =>
            {
                Annotations::Sentences(path.clone(), table::sentences(path)?)
            }
            _ => {
                let files = files::find(paths, &[".csv"], passed_over)?;
                let tables = files
                    .iter()
                    .map(|path| Table::index(path, config.columns.as_ref()));
                Annotations::Tables(Chain::new(tables.collect::<Result<_>>()?, Table::len))
            }
        },
        Format::Captions | Format::Questions | Format::Story | Format::Texts => {
            let files = files::find(paths, &[".jsonl"], passed_over)?;
            let lines = files
                .iter()
                .map(|path| Records::lines(path).map_err(|error| Error::read(path, error)));
            Annotations::Lines(Chain::new(lines.collect::<Result<_>>()?, Records::len))
        }
    };
    Ok(Content::Annotations(annotations))
}
