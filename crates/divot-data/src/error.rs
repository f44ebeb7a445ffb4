//! The error type of the crate.

use std::io;
use std::path::{Path, PathBuf};

/// A result with this crate's [`enum@Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// An error about a file or an argument.
///
/// Every message is a single line with the file, what is wrong with it, and how to fix it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The path does not exist.
    #[error("{}: no such file or folder; check the path", path.display())]
    NotFound {
        /// The given path.
        path: PathBuf,
    },
    /// The operating system refused to open or read the file.
    #[error("{}: cannot be read ({source}); check the file and its permissions", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The error of the operating system.
        source: io::Error,
    },
    /// A URL was given instead of a path.
    #[error("{}: a URL, and only files are read; download it first and give the file", path.display())]
    Url {
        /// The URL.
        path: PathBuf,
    },
    /// The path is a pipe, a device or a socket.
    #[error("{}: {what}, and videos are read from files, in which one can go back; save it to a file first", path.display())]
    NotAFile {
        /// The given path.
        path: PathBuf,
        /// The kind of file.
        what: &'static str,
    },
    /// A picture has more pixels than the limit. No memory was allocated for it.
    #[error("{}: {width}x{height} pixels, more than the limit of {limit}; resize it, or raise the limit if you trust the file (`OpenOptions::max_pixels`)", path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// Width in pixels, as stated in the file.
        width: u64,
        /// Height in pixels, as stated in the file.
        height: u64,
        /// Maximum number of pixels of a picture.
        limit: u64,
    },
    /// The file is music with a cover picture.
    #[error("{}: sound with a cover picture, and no video; give a file with a video track", path.display())]
    CoverOnly {
        /// The file.
        path: PathBuf,
    },
    /// The file is a HEIC or AVIF picture that cannot be read here.
    #[error("{}: a {format} picture, {reason}; convert it to PNG or JPEG", path.display())]
    Still {
        /// The file.
        path: PathBuf,
        /// `HEIC` or `AVIF`.
        format: &'static str,
        /// Why it cannot be read.
        reason: String,
    },
    /// The folder contains no images.
    #[error("{}: a folder without images; put PNG, JPEG, BMP, WebP or GIF files into it", path.display())]
    NoImages {
        /// The folder.
        path: PathBuf,
    },
    /// The content is not in a known video or image format.
    #[error("{}: neither a video nor an image ({what}); give an MP4, MOV, GIF, WebP, PNG, JPEG or BMP file, or a folder of images", path.display())]
    UnknownFormat {
        /// The file.
        path: PathBuf,
        /// A description of the content.
        what: String,
    },
    /// Decoding needs an external program, which is missing.
    #[error("{}: codec {codec} needs the `ffmpeg` program (with its `ffprobe`), which is not on the PATH; install it (e.g. `apt install ffmpeg`) or convert the video to H.264 (8-bit 4:2:0) in MP4", path.display())]
    NeedsFfmpeg {
        /// The file.
        path: PathBuf,
        /// Name of the codec, or of the container if the codec is unknown.
        codec: String,
    },
    /// The external program failed.
    #[error("{}: `{program}` failed on codec {codec} ({message}); check that the file plays, or convert it to H.264 (8-bit 4:2:0) in MP4", path.display())]
    Ffmpeg {
        /// The file.
        path: PathBuf,
        /// Name of the codec or container.
        codec: String,
        /// The program that failed.
        program: String,
        /// The last line that it printed.
        message: String,
    },
    /// The file is truncated or contradicts itself.
    #[error("{}: {what}; the file is damaged or cut short: copy or download it again", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What was found.
        what: String,
    },
    /// The file is valid but contains no frames.
    #[error("{}: holds no video frames; give a file with a video track", path.display())]
    Empty {
        /// The file.
        path: PathBuf,
    },
    /// The requested frame is past the end of the video.
    #[error("{}: frame {index} was asked for, but {}; ask for fewer", path.display(), frame_range(*frames))]
    OutOfRange {
        /// The file.
        path: PathBuf,
        /// The requested index.
        index: usize,
        /// Number of frames in the video.
        frames: usize,
    },
    /// An existing file would be replaced.
    #[error("{}: exists and is not a contact sheet; move it away, or choose another name for the clip", path.display())]
    Exists {
        /// The file.
        path: PathBuf,
    },
    /// The file could not be written. No temporary file is left.
    #[error("{}: cannot be written ({source}); check the folder, its permissions and the free space", path.display())]
    Write {
        /// The target.
        path: PathBuf,
        /// The error of the operating system.
        source: io::Error,
    },
    /// No training sample was found in a source.
    #[error("{}: holds no training sample ({what}); {remedy}", path.display())]
    NoSamples {
        /// The first path of the source.
        path: PathBuf,
        /// What was found instead.
        what: String,
        /// What to do.
        remedy: String,
    },
    /// A cache of training samples cannot be used or written as it is.
    #[error("{}: {problem}; {remedy}", path.display())]
    Cache {
        /// Its folder, or a file in it.
        path: PathBuf,
        /// What is wrong.
        problem: String,
        /// What to do.
        remedy: String,
    },
    /// An argument is invalid. The text names it and the valid values.
    #[error("{0}")]
    Argument(String),
}

impl Error {
    pub(crate) fn read(path: &Path, source: io::Error) -> Self {
        let path = path.to_path_buf();
        if source.kind() == io::ErrorKind::NotFound {
            Self::NotFound { path }
        } else {
            Self::Read { path, source }
        }
    }

    pub(crate) fn write(path: &Path, source: io::Error) -> Self {
        Self::Write {
            path: path.to_path_buf(),
            source,
        }
    }

    pub(crate) fn cache(
        path: &Path,
        problem: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        // Messages of parsers may have several lines. Ours have one.
        let problem = problem.into().lines().collect::<Vec<_>>().join(" ");
        Self::Cache {
            path: path.to_path_buf(),
            problem,
            remedy: remedy.into(),
        }
    }

    /// Returns an error for a picture of more than `limit` pixels.
    pub(crate) fn check_size(path: &Path, width: u64, height: u64, limit: u64) -> Result<()> {
        if width.saturating_mul(height) <= limit {
            return Ok(());
        }
        Err(Self::TooLarge {
            path: path.to_path_buf(),
            width,
            height,
            limit,
        })
    }

    pub(crate) fn damaged(path: &Path, what: impl Into<String>) -> Self {
        // Messages of decoders may have several lines. Ours have one.
        let what = what.into().lines().collect::<Vec<_>>().join(" ");
        Self::Damaged {
            path: path.to_path_buf(),
            what,
        }
    }
}

fn frame_range(frames: usize) -> String {
    match frames {
        1 => "there is 1 frame, number 0".into(),
        n => format!("there are {n} frames (0 to {})", n.saturating_sub(1)),
    }
}
