//! Opens videos of any format and reads their frames.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{BufReader, Read};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::time::Duration;

use image::ImageFormat;

use crate::animation::Animation;
use crate::ffmpeg::{self, Probe, Programs, Still};
use crate::h264::{self, Decoding, Stop};
use crate::images::DEFAULT_MAX_PIXELS;
use crate::mp4;
use crate::timeline::Timeline;
use crate::{DEFAULT_FPS, Error, Frame, Result, gif, images, webp};

/// How long a program may give no output. It sends a frame for every 100 that it decodes.
const SILENCE: Duration = Duration::from_secs(120);

/// How often a file is read at most to see all frames in order. Once is enough but for edit lists that go back.
const PASSES: usize = 16;

/// Description of a video.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct VideoInfo {
    /// Number of frames, at least 1.
    pub frames: usize,
    /// Frame rate in frames per second. For a variable rate it is the average, for a still image
    /// [`DEFAULT_FPS`].
    pub fps: f64,
    /// Width in pixels, upright.
    pub width: usize,
    /// Height in pixels, upright.
    pub height: usize,
    /// Name of the codec, for example `h264`, `gif` or `png`.
    pub codec: String,
}

impl VideoInfo {
    /// Returns the length in seconds.
    pub fn duration(&self) -> f64 {
        self.frames as f64 / self.fps
    }
}

/// Options for opening a video.
#[derive(Debug, Clone)]
pub struct OpenOptions {
    /// Frame rate of a folder of images, in frames per second.
    pub folder_fps: f64,
    /// The `ffmpeg` program, for codecs that are not decoded in Rust. A plain name is searched on the
    /// PATH.
    pub ffmpeg: PathBuf,
    /// The `ffprobe` program, which comes with `ffmpeg`.
    pub ffprobe: PathBuf,
    /// Maximum number of pixels of a picture. The size in a file is checked before memory is allocated.
    pub max_pixels: u64,
    /// How long `ffmpeg` may take for 100 frames before it is stopped.
    pub silence: Duration,
    /// Whether several pictures of H.264 are decoded at the same time, by threads of their own. Large pictures
    /// are sooner decoded so, but it takes up to twice the processor time in all: not worth it in a program
    /// that reads as many videos at a time as there are processors. Without it, most videos are decoded by a
    /// faster decoder. Its frames are the same, except around macroblocks that are stored without compression
    /// (`I_PCM`), which it smooths too much.
    pub parallel: bool,
}

impl Default for OpenOptions {
    /// Eight frames per second for folders, the programs on the PATH, [`DEFAULT_MAX_PIXELS`], two minutes,
    /// several pictures at the same time.
    fn default() -> Self {
        Self {
            folder_fps: DEFAULT_FPS,
            ffmpeg: "ffmpeg".into(),
            ffprobe: "ffprobe".into(),
            max_pixels: DEFAULT_MAX_PIXELS,
            silence: SILENCE,
            parallel: true,
        }
    }
}

/// A video file, an image, or a folder of images.
///
/// Only the description is kept in memory. Frames are decoded on request.
#[derive(Debug)]
pub struct Video {
    path: PathBuf,
    info: VideoInfo,
    timeline: Timeline,
    source: Source,
    programs: Programs,
    parallel: bool,
}

#[derive(Debug)]
enum Source {
    H264(Box<h264::Stream>),
    Animation(Animation),
    Images(Vec<PathBuf>),
    Ffmpeg(Probe),
}

/// An opened file.
struct Opened {
    info: VideoInfo,
    /// Times of the frames in seconds from the first, if known.
    times: Option<Vec<f64>>,
    source: Source,
}

impl Video {
    /// Opens a video. The format is detected by the content, not by the name:
    ///
    /// - MP4 and MOV with H.264, decoded in Rust and rotated upright;
    /// - GIF and WebP animations;
    /// - a PNG, JPEG, BMP or WebP image, which is one frame;
    /// - a folder of such images, in natural order of their names;
    /// - anything else, with the `ffmpeg` program. If the video changes its size or pixel format midway,
    ///   all frames have the size of the first.
    ///
    /// # Errors
    /// Any error except those of writing. Each is one line with the file and the remedy.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        Self::open_with(path, &OpenOptions::default())
    }

    /// Like [`Video::open`], with options.
    ///
    /// # Errors
    /// Those of [`Video::open`].
    pub fn open_with(path: impl AsRef<Path>, options: &OpenOptions) -> Result<Self> {
        let path = path.as_ref();
        let programs = Programs {
            ffmpeg: options.ffmpeg.clone(),
            ffprobe: options.ffprobe.clone(),
            silence: options.silence,
            max_pixels: options.max_pixels,
        };
        let opened = if is_folder(path)? {
            folder(path, options)?
        } else {
            file(path, &programs)?
        };
        Ok(Self {
            path: path.to_path_buf(),
            timeline: Timeline::new(opened.info.fps, opened.times),
            info: opened.info,
            source: opened.source,
            programs,
            parallel: options.parallel,
        })
    }

    /// Returns the description of the video.
    pub fn info(&self) -> &VideoInfo {
        &self.info
    }

    /// Returns the path that was opened.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns whether the frame rate varies. Then `info().fps` is an average, and each frame has its own
    /// time.
    pub fn is_variable(&self) -> bool {
        matches!(self.timeline, Timeline::Variable(_))
    }

    /// Returns the time of a frame, in seconds from the first frame.
    pub fn time(&self, index: usize) -> f64 {
        self.timeline.time(index)
    }

    /// Returns the frame shown at `seconds` from the first frame. After the end, it is the last frame.
    pub fn frame_at(&self, seconds: f64) -> usize {
        self.timeline.frame_at(seconds, self.info.frames)
    }

    /// Reads frames by their index in display order, from 0. Indices may be in any order and may repeat.
    ///
    /// All frames are in memory at their full size. [`Video::visit`] needs memory for one at a time.
    ///
    /// # Errors
    /// [`Error::OutOfRange`] for an index past the end, or an error of decoding.
    pub fn frames(&self, indices: &[usize]) -> Result<Vec<Frame>> {
        let mut frames = vec![None; indices.len()];
        self.visit(indices, |position, frame| {
            frames[position] = Some(frame.clone());
            Ok(())
        })?;
        frames
            .into_iter()
            .collect::<Option<_>>()
            .ok_or_else(|| Error::damaged(&self.path, "frames are missing"))
    }

    /// Decodes frames like [`Video::frames`] and calls `each` with the position in `indices` and the frame.
    ///
    /// The calls are in the order in which the frames come out of the decoder, and one frame is in memory
    /// at a time. The file is read once, from the nearest frame before the wanted ones at which decoding
    /// can start.
    ///
    /// # Errors
    /// Those of [`Video::frames`], and the first error of `each`, which stops the decoding.
    pub fn visit(
        &self,
        indices: &[usize],
        mut each: impl FnMut(usize, &Frame) -> Result<()>,
    ) -> Result<()> {
        let flow = self.visit_until(indices, |position, frame| {
            each(position, frame).map(ControlFlow::Continue)
        });
        flow.map(|_| ())
    }

    /// Like [`Video::visit`], but `each` may stop it. The result states whether it did. Positions of the
    /// same frame follow one another.
    ///
    /// # Errors
    /// Those of [`Video::visit`].
    pub fn visit_until(
        &self,
        indices: &[usize],
        each: impl FnMut(usize, &Frame) -> Result<ControlFlow<()>>,
    ) -> Result<ControlFlow<()>> {
        let decoding = match self.parallel {
            true => Decoding::Parallel,
            false => Decoding::Fast,
        };
        self.visit_by(decoding, indices, each)
    }

    fn visit_by(
        &self,
        decoding: Decoding,
        indices: &[usize],
        mut each: impl FnMut(usize, &Frame) -> Result<ControlFlow<()>>,
    ) -> Result<ControlFlow<()>> {
        let frames = self.info.frames;
        if let Some(&index) = indices.iter().find(|&&index| index >= frames) {
            return Err(Error::OutOfRange {
                path: self.path.clone(),
                index,
                frames,
            });
        }
        // A film has hundreds of thousands of frames, for which maps are large.
        let mut positions: Vec<(usize, usize)> = indices.iter().copied().zip(0..).collect();
        positions.sort_unstable();
        let wanted: BTreeSet<usize> = positions.iter().map(|&(index, _)| index).collect();
        if wanted.is_empty() {
            return Ok(ControlFlow::Continue(()));
        }
        let mut stopped = false;
        let outcome = self.decode(decoding, &wanted, &mut |index, frame| {
            let first = positions.partition_point(|&(wanted, _)| wanted < index);
            let same = positions[first..]
                .iter()
                .take_while(|&&(wanted, _)| wanted == index);
            for &(_, position) in same {
                if each(position, &frame)?.is_break() {
                    stopped = true;
                    // This error only stops the decoding and is not returned.
                    return Err(Error::Argument(String::new()));
                }
            }
            Ok(())
        });
        if stopped {
            return Ok(ControlFlow::Break(()));
        }
        outcome.map(ControlFlow::Continue)
    }

    /// Decodes all frames in display order, and calls `each` with the index and the frame. `each` may stop it. The
    /// result states whether it did.
    ///
    /// One frame is in memory at a time, and some 300 bytes for each frame of the video.
    ///
    /// # Errors
    /// Those of [`Video::visit_until`]. [`Error::Argument`] when an edit list goes back and forth too often.
    pub fn visit_all(
        &self,
        mut each: impl FnMut(usize, &Frame) -> Result<ControlFlow<()>>,
    ) -> Result<ControlFlow<()>> {
        let decoding = match self.parallel {
            true => Decoding::Parallel,
            false => Decoding::Single,
        };
        let mut next = 0;
        for _ in 0..PASSES {
            let first = next;
            let indices: Vec<usize> = (first..self.info.frames).collect();
            let flow = self.visit_by(decoding, &indices, |position, frame| {
                // A frame that comes too early comes again in the next pass.
                if first + position != next {
                    return Ok(ControlFlow::Continue(()));
                }
                next += 1;
                each(next - 1, frame)
            })?;
            if flow.is_break() || next == self.info.frames {
                return Ok(flow);
            }
        }
        Err(Error::Argument(format!(
            "{}: its edit list goes back and forth too often to read all frames in order; convert the video to H.264 in MP4",
            self.path.display()
        )))
    }

    fn decode(
        &self,
        decoding: Decoding,
        wanted: &BTreeSet<usize>,
        each: &mut dyn FnMut(usize, Frame) -> Result<()>,
    ) -> Result<()> {
        let path = &self.path;
        match &self.source {
            Source::H264(stream) => {
                let mut file = File::open(path).map_err(|e| Error::read(path, e))?;
                let mut missing = wanted.clone();
                match stream.decode(path, &mut file, decoding, &mut missing, each) {
                    Ok(()) => Ok(()),
                    Err(Stop::Failed(error)) => Err(error),
                    // The header does not show this, so it is found only now.
                    Err(Stop::Unsupported) => {
                        let probe = self.programs.probe(path, &self.info.codec)?;
                        self.programs.decode(path, &probe, &missing, each)
                    }
                }
            }
            Source::Animation(animation) => animation.decode(path, wanted, each),
            Source::Images(paths) => wanted.iter().try_for_each(|&index| {
                let frame = images::read_limited(&paths[index], self.programs.max_pixels)?;
                let size = (frame.width, frame.height);
                check_same_size(&paths[index], size, (self.info.width, self.info.height))?;
                each(index, frame)
            }),
            Source::Ffmpeg(probe) => self.programs.decode(path, probe, wanted, each),
        }
    }
}

/// Returns whether the path is a folder.
///
/// # Errors
/// If the path does not exist, is a URL, or is neither a folder nor a file.
fn is_folder(path: &Path) -> Result<bool> {
    let kind = match path.metadata() {
        Ok(metadata) => metadata.file_type(),
        Err(_) if path.to_string_lossy().contains("://") => {
            let path = path.to_path_buf();
            return Err(Error::Url { path });
        }
        Err(_) if path == Path::new("-") => {
            return Err(Error::NotAFile {
                path: path.to_path_buf(),
                what: "standard input",
            });
        }
        Err(e) => return Err(Error::read(path, e)),
    };
    if kind.is_dir() || kind.is_file() {
        return Ok(kind.is_dir());
    }
    #[cfg(unix)]
    let what = {
        use std::os::unix::fs::FileTypeExt;
        if kind.is_fifo() {
            "a pipe"
        } else if kind.is_socket() {
            "a socket"
        } else {
            "a device"
        }
    };
    #[cfg(not(unix))]
    let what = "a device or a pipe";
    Err(Error::NotAFile {
        path: path.to_path_buf(),
        what,
    })
}

fn check_same_size(
    path: &Path,
    (width, height): (usize, usize),
    expected: (usize, usize),
) -> Result<()> {
    if (width, height) == expected {
        return Ok(());
    }
    Err(Error::Argument(format!(
        "{}: is {width}x{height} among images of {}x{}; resize it or take it out of the folder",
        path.display(),
        expected.0,
        expected.1
    )))
}

fn folder(path: &Path, options: &OpenOptions) -> Result<Opened> {
    let fps = options.folder_fps;
    if !(fps.is_finite() && fps > 0.0) {
        return Err(Error::Argument(format!(
            "{}: {fps} is no frame rate for a folder of images; give a positive number",
            path.display()
        )));
    }
    let images = images::in_folder(path)?;
    // Only headers are read, so that one different image among thousands is found early.
    let (width, height) = images::size(&images[0], options.max_pixels)?;
    for image in &images[1..] {
        let size = images::size(image, options.max_pixels)?;
        check_same_size(image, size, (width, height))?;
    }
    Ok(Opened {
        info: VideoInfo {
            frames: images.len(),
            fps,
            width,
            height,
            codec: "images".into(),
        },
        times: None,
        source: Source::Images(images),
    })
}

fn file(path: &Path, programs: &Programs) -> Result<Opened> {
    let mut file = File::open(path).map_err(|e| Error::read(path, e))?;
    let mut head = Vec::new();
    (&mut file)
        .take(1 << 16)
        .read_to_end(&mut head)
        .map_err(|e| Error::read(path, e))?;

    if head.is_empty() {
        return Err(Error::damaged(path, "an empty file"));
    }
    if let Some(still) = ffmpeg::still(&head) {
        return still_picture(path, programs, still);
    }
    if mp4::is_mp4(&head) {
        return movie(path, programs, &mut file);
    }
    if let Some(format) = images::format(&head) {
        return picture(path, programs, format, file);
    }
    if let Some(codec) = ffmpeg::sniff(&head) {
        return through_ffmpeg(path, programs, &codec);
    }
    // FFmpeg knows hundreds of formats, but would also make a video from a text file.
    let is_text = match std::str::from_utf8(&head) {
        Ok(_) => true,
        // The head may end within a character.
        Err(e) => e.error_len().is_none(),
    };
    if is_text && !head.contains(&0) {
        return Err(Error::UnknownFormat {
            path: path.to_path_buf(),
            what: "it holds text".into(),
        });
    }
    through_ffmpeg(path, programs, "unknown").map_err(|error| match error {
        Error::NeedsFfmpeg { path, .. } | Error::Ffmpeg { path, .. } => Error::UnknownFormat {
            path,
            what: "its content is of no known format".into(),
        },
        error => error,
    })
}

/// Opens an MP4 or MOV file.
fn movie(path: &Path, programs: &Programs, file: &mut File) -> Result<Opened> {
    let track = mp4::read_track(path, file)?;
    let codec = track.codec.clone();
    if codec != "h264" {
        return through_ffmpeg(path, programs, &codec);
    }
    let stream = match h264::Stream::new(path, file, track, programs.max_pixels)? {
        Ok(stream) => stream,
        Err(codec) => return through_ffmpeg(path, programs, codec),
    };
    let (width, height) = stream.size();
    Ok(Opened {
        info: VideoInfo {
            frames: stream.frames(),
            fps: stream.fps,
            width,
            height,
            codec,
        },
        times: stream.times(),
        source: Source::H264(Box::new(stream)),
    })
}

/// Opens an image, still or animated.
fn picture(path: &Path, programs: &Programs, format: ImageFormat, file: File) -> Result<Opened> {
    let max_pixels = programs.max_pixels;
    let mut file = BufReader::new(file);
    // The first bytes were read already.
    std::io::Seek::rewind(&mut file).map_err(|e| Error::read(path, e))?;
    let animation = match format {
        ImageFormat::Gif => Some(gif::read(path, &mut file, max_pixels)?),
        ImageFormat::WebP => webp::read(path, &mut file, max_pixels)?,
        _ => None,
    };
    let codec = format!("{format:?}").to_lowercase();
    let Some(animation) = animation else {
        let frame = images::read_limited(path, max_pixels)?;
        return Ok(Opened {
            info: VideoInfo {
                frames: 1,
                fps: DEFAULT_FPS,
                width: frame.width,
                height: frame.height,
                codec,
            },
            times: None,
            source: Source::Images(vec![path.to_path_buf()]),
        });
    };
    let mut times = animation.milliseconds();
    let frames = animation.parts.len();
    let duration = times.pop().unwrap_or(0.0);
    let times = times.iter().map(|time| time / 1000.0).collect();
    let info = VideoInfo {
        frames,
        fps: if frames == 1 {
            DEFAULT_FPS
        } else {
            frames as f64 * 1000.0 / duration
        },
        width: animation.width,
        height: animation.height,
        codec,
    };
    Ok(Opened {
        info,
        times: Some(times),
        source: Source::Animation(animation),
    })
}

/// Opens a HEIC or AVIF picture, which some versions of FFmpeg read.
fn still_picture(path: &Path, programs: &Programs, still: Still) -> Result<Opened> {
    let refused = |reason: String| Error::Still {
        path: path.to_path_buf(),
        format: still.name,
        reason,
    };
    if still.tiled {
        return Err(refused(
            "of several tiles, which are not put together".into(),
        ));
    }
    through_ffmpeg(path, programs, still.name).map_err(|error| match error {
        Error::NeedsFfmpeg { .. } => {
            refused("which needs the `ffmpeg` program, and that is not on the PATH".into())
        }
        Error::Ffmpeg { message, .. } => refused(format!(
            "which this version of `ffmpeg` cannot read ({message})"
        )),
        Error::Empty { .. } => refused("which this version of `ffmpeg` cannot read".into()),
        error => error,
    })
}

fn through_ffmpeg(path: &Path, programs: &Programs, codec: &str) -> Result<Opened> {
    let probe = programs.probe(path, codec)?;
    let info = VideoInfo {
        frames: probe.frames,
        fps: probe.fps,
        width: probe.width,
        height: probe.height,
        codec: probe.codec.clone(),
    };
    Ok(Opened {
        info,
        times: probe.seconds(),
        source: Source::Ffmpeg(probe),
    })
}
