//! Where samples are, and which of them are taken.

use std::path::PathBuf;

use serde::Deserialize;

/// A source of samples, as a recipe names it.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SourceConfig {
    /// What the files look like.
    pub format: Format,
    /// A file, or a folder that is searched with everything below it. Archives may be named by a pattern with
    /// ranges in braces: `shards/{0000..0127}.tar`.
    pub path: PathBuf,
    /// The folder that paths in the files are relative to. The file's own folder if absent.
    pub media: Option<PathBuf>,
    /// How many clips are taken of a video at most.
    #[serde(default = "one")]
    pub max_clips: usize,
    /// Which samples are left out.
    #[serde(default)]
    pub filter: Filter,
}

fn one() -> usize {
    1
}

/// What the files of a source look like.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// Videos and images without text.
    Videos,
    /// JSONL with `{"video": "a.mp4", "caption": "a dog runs"}` on each line. `image` may stand for `video`,
    /// and the caption may be a list, of which one is taken at random.
    Captions,
    /// CSV with a header. WebVid: `videoid,contentUrl,duration,page_dir,name`; MSR-VTT: `video_id,caption`;
    /// any with `video` or `image`, and `caption`. Panda-70M: `videoID,url,timestamp,caption`, whose lists give
    /// a sample each.
    Csv,
    /// Archives with `key.jpg` and `key.txt` for each sample, or other images, `.mp4`, and `.json` with a
    /// `caption`; plain or compressed by gzip.
    Webdataset,
    /// JSONL with questions: `{"video": "a.mp4", "question": "what is it?", "answer": "a dog"}`, with
    /// `questions` and `answers` as lists, or `image` with `data`: question, answer, question, answer and so
    /// on.
    Questions,
    /// JSONL with `{"instruction": "tell a story", "scenes": [{"video": "a.mp4", "start": 0.0, "text": "a dog
    /// wakes"}], "ending": ""}` on each line.
    Story,
}

/// Which samples are left out (FACTS: "Training data").
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Filter {
    /// Fewest pixels of the shorter side. Released, and if absent: 100, and 200 for archives.
    pub min_side: Option<usize>,
    /// Lowest ratio of the shorter to the longer side. Released, and if absent: 0.3, and 0.333 for questions.
    pub min_aspect: Option<f64>,
    /// Fewest frames of a video.
    pub min_frames: usize,
    /// Shortest video, in seconds.
    pub min_seconds: f64,
    /// Longest video, in seconds.
    pub max_seconds: f64,
}

impl Default for Filter {
    fn default() -> Self {
        Self {
            min_side: None,
            min_aspect: None,
            min_frames: 1,
            min_seconds: 0.0,
            max_seconds: f64::INFINITY,
        }
    }
}

impl SourceConfig {
    pub(super) fn min_side(&self) -> usize {
        let released = match self.format {
            Format::Webdataset => 200,
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
}
