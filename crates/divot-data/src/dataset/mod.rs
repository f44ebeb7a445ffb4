//! Training samples: where they are, in which order they are seen, and threads that read them ahead.
//!
//! A [`Loader`] mixes sources and makes batches. A [`Source`] finds the samples of files in one [`Format`] and
//! reads them one by one: the clips of a video or image, and its text. What cannot be used is left out with a
//! [`Reason`]. A source is described by a [`SourceConfig`]:
//!
//! ```toml
//! format = "captions"
//! path = "data/captions.jsonl"
//! media = "data/videos"
//! filter = { min_side = 128, max_seconds = 60.0 }
//! ```
//!
//! # Formats
//!
//! Paths in the files are relative to `media`, or else to the file's own folder, and must not leave it.
//! Folders are searched with everything below them, for the endings given here.
//!
//! **`captions`**, `.jsonl`. `image` may stand for `video`. Of several captions, one is taken at random.
//! ```json
//! {"video": "dogs/1.mp4", "caption": "a dog runs"}
//! {"image": "cat.jpg", "caption": ["a cat", "a cat asleep"]}
//! ```
//!
//! **`csv`**, `.csv` with a header. Columns are found by their names in any case: `video`, `image`, `path` or
//! `file` with a path; `videoid` or `video_id` with a name, to which `.mp4`, `.mkv` or `.webm` is added; and
//! `caption`, `name`, `sentence`, `text` or `title`. `columns` names others. WebVid's videos are in the folder
//! `page_dir`, or in `media` itself. MSR-VTT's `.json` file is read too.
//! ```text
//! videoid,contentUrl,duration,page_dir,name
//! 1066674784,https://example.org/1.mp4,PT00H00M10S,000001_000050,A dog runs.
//! ```
//! Panda-70M's lists of parts and captions give a sample each (`panda` is another name of `csv`):
//! ```text
//! videoID,url,timestamp,caption
//! aB3,https://example.org/aB3,"[['0:00:02.169', '0:00:06.006']]","['A dog runs.']"
//! ```
//!
//! **`webdataset`**, `.tar`, `.tar.gz` or `.tgz`. Consecutive files of one name up to its first dot are a
//! sample: a `.jpg`, `.jpeg`, `.png`, `.webp`, `.gif` or `.mp4`, and a `.txt` with the caption or a `.json` with
//! the field `caption`. Paths may be patterns: `shards/{0000..0127}.tar`, `{train,extra}.tar`.
//! ```text
//! 000000001.jpg
//! 000000001.txt
//! ```
//!
//! **`questions`**, `.jsonl`, in any of these forms, each with `video` or `image`. `<video>` with a line break
//! behind it is struck from questions. A GIF counts as 24 frames per second.
//! ```json
//! {"video": "1.mp4", "question": "<video>\nWhat runs?", "answer": "A dog."}
//! {"video": "1.mp4", "questions": ["What runs?", "Where?"], "answers": ["A dog.", "On a beach."]}
//! {"image": "1.jpg", "data": ["What is it?", "A cat.", "Is it awake?", "No."]}
//! ```
//!
//! **`videos`**: videos and images without text, in the order of their names.
//!
//! **`story`**, `.jsonl`. A scene is one clip: that of `start`, in seconds, or one at random, between `start` and
//! `end` if both are given.
//! ```json
//! {"instruction": "Tell a story.", "scenes": [{"video": "1.mp4", "start": 2.5, "text": "A dog wakes."}], "ending": "The end."}
//! ```
//!
//! **`texts`**, `.jsonl`: texts without clips.
//! ```json
//! {"text": "A dog runs. Then it sleeps."}
//! ```
//!
//! **`cache`**: a folder that a [`CacheWriter`] wrote, with what frozen networks made of the clips of another source
//! ([`Stored`]), and their text.
//!
//! # The world
//!
//! With `world` instead of `path`, samples are made as they are needed ([`world`](crate::world)). The format, one of
//! `videos`, `captions`, `questions`, `story` and `texts`, says what they are:
//! ```toml
//! format = "captions"
//! world = { split = "train", textures = 0.2 }
//! ```
//!
//! # Clips
//!
//! Clips start at random ([`sampling::train_indices`](crate::sampling::train_indices)). Those for questions are
//! spread over the whole video ([`sampling::spread_indices`](crate::sampling::spread_indices)). An image is one
//! clip of equal frames.
//!
//! # Batches
//!
//! The samples of a step are a function of the seed and the step alone ([`Loader`], [`Order`]). A broken sample
//! is replaced by another of its source, counted, and named in the log of [`LoaderConfig`], once in a run:
//! ```json
//! {"source": "captions.jsonl", "index": 7, "key": "captions.jsonl:8", "reason": "missing", "message": "…"}
//! ```
//! A source of which nothing can be used is an error.
//!
//! # Limits
//!
//! A line, a record and the text of a sample have at most 1 MiB. An index takes 12 bytes a line, 20 a sample of an
//! archive. Archives that are compressed are unpacked into temporary files, two at a time. A damaged archive is
//! used up to the damage ([`Samples::passed_over`]).

mod annotations;
mod archive;
mod cache;
mod chain;
mod config;
mod files;
mod loader;
mod media;
mod order;
mod ordered;
mod python;
mod records;
mod rows;
mod sample;
mod skipped;
mod source;
mod table;
mod worlds;

pub use cache::{CacheWriter, ElementType, Manifest};
pub use config::{Columns, Filter, Format, SourceConfig, WorldConfig};
pub use loader::{Batch, Loader, LoaderConfig};
pub use order::Order;
pub(crate) use order::generator;
pub use ordered::{EpochReader, MixedSource};
pub use rows::{CaptionList, CaptionRow, CaptionRows};
pub use sample::{Array, Medium, Reason, Sample, Samples, Skip, Stored, Text, Turn};
pub use source::Source;
