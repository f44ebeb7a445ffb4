//! One error type for the whole crate.

use std::io;
use std::path::{Path, PathBuf};

/// A result with this crate's [`enum@Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What can go wrong with a file or an argument.
///
/// Every message is a single line which names the file, what was wrong with it and what to do.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// There is nothing at the path.
    #[error("{}: no such file or folder; check the path", path.display())]
    NotFound {
        /// The path as it was given.
        path: PathBuf,
    },
    /// The operating system refused to open or read the file.
    #[error("{}: cannot be read ({source}); check the file and its permissions", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
    /// A URL was given instead of a path.
    #[error("{}: a URL, and only files are read; download it first and give the file", path.display())]
    Url {
        /// The URL.
        path: PathBuf,
    },
    /// There is a pipe, a device or a socket at the path.
    #[error("{}: {what}, and videos are read from files, in which one can go back; save it to a file first", path.display())]
    NotAFile {
        /// The path as it was given.
        path: PathBuf,
        /// What it is.
        what: &'static str,
    },
    /// A picture has more pixels than the limit. Found before memory was taken for it.
    #[error("{}: {width}x{height} pixels, more than the limit of {limit}; resize it, or raise the limit if you trust the file (`OpenOptions::max_pixels`)", path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// Width in pixels that the file claims.
        width: u64,
        /// Height in pixels that the file claims.
        height: u64,
        /// Pixels that a picture may have.
        limit: u64,
    },
    /// The file holds music and the picture of its cover.
    #[error("{}: sound with a cover picture, and no video; give a file with a video track", path.display())]
    CoverOnly {
        /// The file.
        path: PathBuf,
    },
    /// A HEIC or AVIF picture that cannot be read here.
    #[error("{}: a {format} picture, {reason}; convert it to PNG or JPEG", path.display())]
    Still {
        /// The file.
        path: PathBuf,
        /// `HEIC` or `AVIF`.
        format: &'static str,
        /// Why it cannot be read.
        reason: String,
    },
    /// A folder was given in which no image was found.
    #[error("{}: a folder without images; put PNG, JPEG, BMP, WebP or GIF files into it", path.display())]
    NoImages {
        /// The folder.
        path: PathBuf,
    },
    /// The content is of no known video or image format.
    #[error("{}: neither a video nor an image ({what}); give an MP4, MOV, GIF, WebP, PNG, JPEG or BMP file, or a folder of images", path.display())]
    UnknownFormat {
        /// The file.
        path: PathBuf,
        /// What its content looks like.
        what: String,
    },
    /// Decoding needs an external program, which is missing.
    #[error("{}: codec {codec} needs the `ffmpeg` program (with its `ffprobe`), which is not on the PATH; install it (e.g. `apt install ffmpeg`) or convert the video to H.264 (8-bit 4:2:0) in MP4", path.display())]
    NeedsFfmpeg {
        /// The file.
        path: PathBuf,
        /// Name of the codec (or of the container, where the codec cannot be told).
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
    /// The file breaks off or contradicts itself.
    #[error("{}: {what}; the file is damaged or cut short: copy or download it again", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What was found.
        what: String,
    },
    /// The file is sound but holds no frame.
    #[error("{}: holds no video frames; give a file with a video track", path.display())]
    Empty {
        /// The file.
        path: PathBuf,
    },
    /// A frame was asked for that the video does not have.
    #[error("{}: frame {index} was asked for, but {}; ask for fewer", path.display(), frame_range(*frames))]
    OutOfRange {
        /// The file.
        path: PathBuf,
        /// The index asked for.
        index: usize,
        /// Number of frames in the video.
        frames: usize,
    },
    /// A file is in the way of another one that is to be written.
    #[error("{}: exists and is not a contact sheet; move it away, or choose another name for the clip", path.display())]
    Exists {
        /// The file.
        path: PathBuf,
    },
    /// The file could not be written. Nothing was left behind.
    #[error("{}: cannot be written ({source}); check the folder, its permissions and the free space", path.display())]
    Write {
        /// The target.
        path: PathBuf,
        /// What the operating system said.
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
    /// An argument makes no sense; the text says which and what would.
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

    /// Refuses a picture of more than `limit` pixels.
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
        // Messages of decoders may span lines; ours are one line each.
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
