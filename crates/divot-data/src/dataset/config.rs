//! Where samples are, and which of them are taken.

use std::path::PathBuf;

use serde::{Deserialize, Deserializer};

use crate::sampling::MAX_CLIPS;
use crate::world::Split;
use crate::{DEFAULT_MAX_PIXELS, Error, Result};

/// A source of samples, as a recipe names it.
///
/// Only `format` and `path`, or `world`, are needed; everything else has the released system's values.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SourceConfig {
    /// What the files look like.
    pub format: Format,
    /// Files, or folders that are searched with everything below them; one or a list. The numbers of
    /// archives may be given as a range in braces: `shards/{0000..0127}.tar`.
    #[serde(default, deserialize_with = "one_or_many")]
    pub path: Vec<PathBuf>,
    /// The [world](crate::world) that samples are made of instead of read from files.
    #[serde(default)]
    pub world: Option<WorldConfig>,
    /// The folder that paths in the files are relative to, and that they must not leave. If absent, each
    /// file's own folder.
    #[serde(default)]
    pub media: Option<PathBuf>,
    /// Whether the text is read. If not, samples need none.
    #[serde(default = "yes")]
    pub text: bool,
    /// Most clips of a video, and most scenes of a story. If absent: 20 for questions and stories, 1 for the
    /// others.
    #[serde(default)]
    pub max_clips: Option<usize>,
    /// Whether frames keep their aspect ratio and are cropped, or are squeezed into the square. If absent,
    /// as the reader of clips does.
    #[serde(default)]
    pub keep_aspect: Option<bool>,
    /// Names of a CSV file's columns. If absent, they are guessed.
    #[serde(default)]
    pub columns: Option<Columns>,
    /// Which samples are left out.
    #[serde(default)]
    pub filter: Filter,
}

fn yes() -> bool {
    true
}

fn one_or_many<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<PathBuf>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged, expecting = "a path or a list of paths")]
    enum Paths {
        One(PathBuf),
        Many(Vec<PathBuf>),
    }
    Ok(match Paths::deserialize(deserializer)? {
        Paths::One(path) => vec![path],
        Paths::Many(paths) => paths,
    })
}

/// Which samples of the [world](crate::world) a source has. Their clips are as large as the networks read them.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct WorldConfig {
    /// Seed of everything.
    pub seed: u64,
    /// Which samples these are.
    pub split: Split,
    /// Share of clips that are textures, from 0 to 1, of videos and captions.
    pub textures: f64,
    /// Share of scenes, from 0 to 1, whose background is made plain, except those of stories.
    pub plain: f64,
    /// Samples of an epoch.
    pub count: usize,
}

impl Default for WorldConfig {
    /// A million samples for training, without textures.
    fn default() -> Self {
        Self {
            seed: 0,
            split: Split::Train,
            textures: 0.0,
            plain: 0.0,
            count: 1_000_000,
        }
    }
}

/// What the files of a source look like; the [module](super) has an example of each.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// Videos and images without text.
    Videos,
    /// JSONL with a video or an image and its caption on each line.
    Captions,
    /// CSV with a video or an image and its caption in each record: WebVid, MSR-VTT, Panda-70M and others.
    #[serde(alias = "panda")]
    Csv,
    /// Tar archives with a video or an image and its caption in files of one name.
    Webdataset,
    /// JSONL with a video or an image and questions with answers on each line.
    Questions,
    /// JSONL with a story on each line.
    Story,
    /// JSONL with a text on each line, and no clips.
    Texts,
    /// What frozen networks made of the samples of another source, in a folder that a
    /// [`CacheWriter`](super::CacheWriter) wrote.
    Cache,
}

/// Names of the columns of a CSV file.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Columns {
    /// The path of a video or image, or its name without the extension.
    pub video: String,
    /// The caption.
    pub caption: String,
}

/// Which samples are left out.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Filter {
    /// Fewest pixels of the shorter side. If absent: 100, and 200 for images in archives.
    pub min_side: Option<usize>,
    /// Lowest ratio of the shorter to the longer side. If absent: 0.3, and 0.333 for questions.
    pub min_aspect: Option<f64>,
    /// Fewest frames of a video.
    pub min_frames: usize,
    /// Shortest video, in seconds. Of a part of a video, the part counts.
    pub min_seconds: f64,
    /// Longest video, in seconds. Of a part of a video, the part counts.
    pub max_seconds: f64,
    /// Most pixels of a picture. More are refused before memory is taken.
    pub max_pixels: u64,
}

impl Default for Filter {
    fn default() -> Self {
        Self {
            min_side: None,
            min_aspect: None,
            min_frames: 1,
            min_seconds: 0.0,
            max_seconds: f64::INFINITY,
            max_pixels: DEFAULT_MAX_PIXELS,
        }
    }
}

impl Format {
    fn name(self) -> &'static str {
        match self {
            Self::Videos => "videos",
            Self::Captions => "captions",
            Self::Csv => "csv",
            Self::Webdataset => "webdataset",
            Self::Questions => "questions",
            Self::Story => "stories",
            Self::Texts => "texts",
            Self::Cache => "cache",
        }
    }
}

impl SourceConfig {
    /// A source with the released system's settings.
    pub fn new(format: Format, path: impl Into<PathBuf>) -> Self {
        Self {
            format,
            path: vec![path.into()],
            world: None,
            media: None,
            text: true,
            max_clips: None,
            keep_aspect: None,
            columns: None,
            filter: Filter::default(),
        }
    }

    /// A source of samples that are made, not read.
    pub fn of_world(format: Format, world: WorldConfig) -> Self {
        Self {
            path: Vec::new(),
            world: Some(world),
            ..Self::new(format, "")
        }
    }

    /// Its paths, for messages.
    pub fn name(&self) -> String {
        if let Some(world) = &self.world {
            return format!(
                "the world's {} ({})",
                self.format.name(),
                world.split.name()
            );
        }
        let paths = self.path.iter().map(|path| path.display().to_string());
        paths.collect::<Vec<_>>().join(", ")
    }

    /// Most clips of a sample.
    pub fn max_clips(&self) -> usize {
        self.max_clips.unwrap_or(match self.format {
            Format::Questions | Format::Story => MAX_CLIPS,
            _ => 1,
        })
    }

    pub(super) fn min_side(&self, image: bool) -> usize {
        let released = match self.format {
            Format::Webdataset if image => 200,
            _ => 100,
        };
        self.filter.min_side.unwrap_or(released)
    }

    pub(super) fn min_aspect(&self) -> f64 {
        let released = match self.format {
            Format::Questions => 0.333,
            _ => 0.3,
        };
        self.filter.min_aspect.unwrap_or(released)
    }

    /// Refuses values that make no sense or contradict each other.
    ///
    /// # Errors
    /// [`Error::Argument`] if there are any.
    pub fn check(&self) -> Result<()> {
        let Filter {
            min_aspect,
            min_seconds,
            max_seconds,
            ..
        } = self.filter;
        let wrong = |what: &str| Err(Error::Argument(format!("{}: {what}", self.name())));
        if let Some(world) = &self.world {
            let made = Self {
                text: self.text,
                ..Self::of_world(self.format, world.clone())
            };
            if *self != made {
                return wrong(
                    "samples that are made have no files; leave out all but `format`, `world` and `text`",
                );
            }
            return self.check_world(world);
        }
        if self.path.is_empty() {
            let message = "a source has neither `path` nor `world`; name a file or folder, or write `world = {}`";
            return Err(Error::Argument(message.into()));
        }
        if self.max_clips() == 0 {
            return wrong("`max_clips` is 0; ask for at least 1");
        }
        if min_aspect.is_some_and(|aspect| !(0.0..=1.0).contains(&aspect)) {
            return wrong("`min_aspect` is the shorter over the longer side; give 0 to 1");
        }
        if min_seconds.is_nan() || max_seconds.is_nan() || max_seconds < min_seconds {
            return wrong("no length is from `min_seconds` to `max_seconds`; raise the latter");
        }
        let fixed = Self {
            path: self.path.clone(),
            text: self.text,
            ..Self::new(Format::Cache, "")
        };
        if self.format == Format::Cache && (*self != fixed || self.path.len() > 1) {
            return wrong(
                "a cache is one folder, whose clips were chosen when it was made; leave out all but `path` and `text`",
            );
        }
        if self.columns.is_some() && self.format != Format::Csv {
            return wrong("only the format `csv` has `columns`; remove them");
        }
        Ok(())
    }

    fn check_world(&self, world: &WorldConfig) -> Result<()> {
        let wrong = |what: &str| Err(Error::Argument(format!("{}: {what}", self.name())));
        if matches!(
            self.format,
            Format::Csv | Format::Webdataset | Format::Cache
        ) {
            return wrong(
                "a world has the formats `videos`, `captions`, `questions`, `story` and `texts`; choose one",
            );
        }
        if !(0.0..=1.0).contains(&world.textures) {
            return wrong("`textures` is a share of clips; give 0 to 1");
        }
        if !(0.0..=1.0).contains(&world.plain) {
            return wrong("`plain` is a share of scenes; give 0 to 1");
        }
        if world.plain > 0.0 && self.format == Format::Story {
            return wrong("scenes of stories keep their backgrounds; leave `plain` out");
        }
        let has_textures = matches!(self.format, Format::Videos | Format::Captions);
        if world.textures > 0.0 && !has_textures {
            return wrong("only videos and captions can be textures; leave `textures` out");
        }
        if world.count == 0 {
            return wrong("`count` is 0; ask for at least 1 sample");
        }
        Ok(())
    }
}
