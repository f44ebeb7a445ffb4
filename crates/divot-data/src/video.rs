//! Opening a video of any kind and reading frames of it.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use crate::ffmpeg::{self, Probe, Programs};
use crate::h264::{self, Stop};
use crate::images::{self, Animation, read_image};
use crate::mp4::{self, Track};
use crate::{DEFAULT_FPS, Error, Frame, Result};

/// What a video is.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct VideoInfo {
    /// Number of frames, at least 1.
    pub frames: usize,
    /// Frames per second: of a variable rate the average, of a still image
    /// [`DEFAULT_FPS`].
    pub fps: f64,
    /// Width in pixels, upright.
    pub width: usize,
    /// Height in pixels, upright.
    pub height: usize,
    /// What the frames are coded in, e.g. `h264`, `gif` or `png`.
    pub codec: String,
}

impl VideoInfo {
    /// Length in seconds.
    pub fn duration(&self) -> f64 {
        self.frames as f64 / self.fps
    }
}

/// How to open a video.
#[derive(Debug, Clone)]
pub struct OpenOptions {
    /// Frame rate of a folder of images, in frames per second.
    pub folder_fps: f64,
    /// The `ffmpeg` program, for codecs that are not decoded here; a plain name is looked up on
    /// the PATH.
    pub ffmpeg: PathBuf,
    /// The `ffprobe` program, which comes with `ffmpeg`.
    pub ffprobe: PathBuf,
}

impl Default for OpenOptions {
    /// Eight frames per second, and the programs on the PATH.
    fn default() -> Self {
        Self {
            folder_fps: DEFAULT_FPS,
            ffmpeg: "ffmpeg".into(),
            ffprobe: "ffprobe".into(),
        }
    }
}

/// A video file, an image, or a folder of images.
///
/// Only its description is kept in memory; frames are decoded when they are asked for.
#[derive(Debug)]
pub struct Video {
    path: PathBuf,
    info: VideoInfo,
    source: Source,
    programs: Programs,
}

#[derive(Debug)]
enum Source {
    H264(Box<Track>),
    Animation(Animation),
    Images(Vec<PathBuf>),
    Ffmpeg(Probe),
}

impl Video {
    /// Opens a video. What it is is told by its content, not its name:
    ///
    /// - MP4 and MOV with H.264, decoded here, turned upright as the file asks;
    /// - GIF and WebP animations;
    /// - a PNG, JPEG, BMP or WebP image, which is one frame;
    /// - a folder of such images, in natural order of their names;
    /// - anything else through the `ffmpeg` program.
    ///
    /// # Errors
    /// Any but those of writing; each is one line naming the file and the remedy.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        Self::open_with(path, &OpenOptions::default())
    }

    /// [`Video::open`] with options.
    ///
    /// # Errors
    /// Those of [`Video::open`].
    pub fn open_with(path: impl AsRef<Path>, options: &OpenOptions) -> Result<Self> {
        let path = path.as_ref();
        let programs = Programs {
            ffmpeg: options.ffmpeg.clone(),
            ffprobe: options.ffprobe.clone(),
        };
        let (info, source) = if path.is_dir() {
            folder(path, options.folder_fps)?
        } else {
            file(path, &programs)?
        };
        Ok(Self {
            path: path.to_path_buf(),
            info,
            source,
            programs,
        })
    }

    /// What the video is.
    pub fn info(&self) -> &VideoInfo {
        &self.info
    }

    /// The path that was opened.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Frames by their place in the order of showing, from 0. Any order and repeats are fine.
    ///
    /// All of them are held in memory at their full size; [`Video::visit`] holds one at a time.
    ///
    /// # Errors
    /// [`Error::OutOfRange`] for an index at or past the end, or what decoding finds wrong.
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

    /// Decodes frames as [`Video::frames`] does and calls `each` with the position in `indices`
    /// and the frame, one frame at a time, in the order in which they come out of the decoder.
    ///
    /// # Errors
    /// Those of [`Video::frames`], and the first error of `each`, which ends the decoding.
    pub fn visit(
        &self,
        indices: &[usize],
        mut each: impl FnMut(usize, &Frame) -> Result<()>,
    ) -> Result<()> {
        let frames = self.info.frames;
        if let Some(&index) = indices.iter().find(|&&i| i >= frames) {
            return Err(Error::OutOfRange {
                path: self.path.clone(),
                index,
                frames,
            });
        }
        let wanted: BTreeSet<usize> = indices.iter().copied().collect();
        if wanted.is_empty() {
            return Ok(());
        }
        self.decode(&wanted, &mut |index, frame| {
            let positions = (0..indices.len()).filter(|&p| indices[p] == index);
            positions
                .into_iter()
                .try_for_each(|position| each(position, &frame))
        })
    }

    fn decode(
        &self,
        wanted: &BTreeSet<usize>,
        each: &mut dyn FnMut(usize, Frame) -> Result<()>,
    ) -> Result<()> {
        let path = &self.path;
        match &self.source {
            Source::H264(track) => {
                let mut file = File::open(path).map_err(|e| Error::read(path, e))?;
                match h264::decode(path, &mut file, track, wanted, each) {
                    Ok(()) => Ok(()),
                    Err(Stop::Failed(error)) => Err(error),
                    // Found only now: the header gave no sign of it.
                    Err(Stop::Unsupported) => {
                        let probe = self.programs.probe(path, &self.info.codec)?;
                        self.programs.decode(path, &probe, wanted, each)
                    }
                }
            }
            Source::Animation(animation) => animation.decode(path, wanted, each),
            Source::Images(paths) => wanted.iter().try_for_each(|&index| {
                let frame = read_image(&paths[index])?;
                if (frame.width, frame.height) != (self.info.width, self.info.height) {
                    return Err(Error::Argument(format!(
                        "{}: is {}x{} among images of {}x{}; resize it or take it out of the folder",
                        paths[index].display(),
                        frame.width,
                        frame.height,
                        self.info.width,
                        self.info.height
                    )));
                }
                each(index, frame)
            }),
            Source::Ffmpeg(probe) => self.programs.decode(path, probe, wanted, each),
        }
    }
}

fn folder(path: &Path, fps: f64) -> Result<(VideoInfo, Source)> {
    if !(fps.is_finite() && fps > 0.0) {
        return Err(Error::Argument(format!(
            "{}: {fps} is no frame rate for a folder of images; give a positive number",
            path.display()
        )));
    }
    let images = images::in_folder(path)?;
    let first = read_image(&images[0])?;
    let info = VideoInfo {
        frames: images.len(),
        fps,
        width: first.width,
        height: first.height,
        codec: "images".into(),
    };
    Ok((info, Source::Images(images)))
}

fn file(path: &Path, programs: &Programs) -> Result<(VideoInfo, Source)> {
    let mut file = File::open(path).map_err(|e| Error::read(path, e))?;
    let mut head = Vec::new();
    (&mut file)
        .take(1 << 16)
        .read_to_end(&mut head)
        .map_err(|e| Error::read(path, e))?;

    if head.is_empty() {
        return Err(Error::damaged(path, "an empty file"));
    }
    if mp4::is_mp4(&head) {
        let track = mp4::read_track(path, &mut file)?;
        if track.codec == "h264"
            && let Some((width, height)) = h264::size(&track)
        {
            let sideways = track.quarter_turns % 2 == 1;
            let (width, height) = if sideways {
                (height, width)
            } else {
                (width, height)
            };
            let info = VideoInfo {
                frames: track.frames,
                fps: track.fps,
                width,
                height,
                codec: track.codec.clone(),
            };
            return Ok((info, Source::H264(Box::new(track))));
        }
        let codec = match track.codec.as_str() {
            "h264" => "h264 of an unusual profile",
            codec => codec,
        };
        return through_ffmpeg(path, programs, codec);
    }
    if let Some(format) = images::format(&head) {
        if let Some(animation) = images::animation(path, format)? {
            let summary = animation.summary(path)?;
            let info = VideoInfo {
                frames: summary.frames,
                fps: summary.fps,
                width: summary.width,
                height: summary.height,
                codec: format!("{format:?}").to_lowercase(),
            };
            return Ok((info, Source::Animation(animation)));
        }
        let frame = read_image(path)?;
        let info = VideoInfo {
            frames: 1,
            fps: DEFAULT_FPS,
            width: frame.width,
            height: frame.height,
            codec: format!("{format:?}").to_lowercase(),
        };
        return Ok((info, Source::Images(vec![path.to_path_buf()])));
    }
    if let Some(codec) = ffmpeg::sniff(&head) {
        return through_ffmpeg(path, programs, &codec);
    }
    // FFmpeg knows hundreds of formats, but would also make a video of a text file.
    let is_text = std::str::from_utf8(&head).is_ok_and(|t| !t.contains('\0'));
    if is_text {
        return Err(Error::UnknownFormat {
            path: path.to_path_buf(),
            what: "it holds text".into(),
        });
    }
    through_ffmpeg(path, programs, "unknown").map_err(|error| match error {
        Error::NeedsFfmpeg { path, .. } => Error::UnknownFormat {
            path,
            what: "its content is of no known format".into(),
        },
        error => error,
    })
}

fn through_ffmpeg(path: &Path, programs: &Programs, codec: &str) -> Result<(VideoInfo, Source)> {
    let probe = programs.probe(path, codec)?;
    let info = VideoInfo {
        frames: probe.frames,
        fps: probe.fps,
        width: probe.width,
        height: probe.height,
        codec: probe.codec.clone(),
    };
    Ok((info, Source::Ffmpeg(probe)))
}
