//! Clips of a training sample's file.

use std::fs::File;
use std::io::{BufRead, BufReader, Cursor, Read, Seek};
use std::ops::ControlFlow;
use std::path::Path;

use image::ImageFormat;

use super::config::{Format, SourceConfig};
use super::records::Problem;
use super::sample::{Medium, Reason};
use crate::sampling::{CLIP_FRAMES, ClipIndices, spread_indices, train_indices};
use crate::{Clip, ClipReader, Error, OpenOptions, Result, Video, images};

/// Frame rate that GIFs count as in questions, in frames per second, as released.
const GIF_FPS: f64 = 24.0;

/// Which part of a video clips are taken of.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Part {
    /// Anywhere, at random.
    Random,
    /// The two seconds that start there, in seconds.
    From(f64),
    /// At random between two times, in seconds.
    Within(f64, f64),
}

impl From<Error> for Problem {
    fn from(error: Error) -> Self {
        let reason = match &error {
            Error::NotFound { .. } => Reason::Missing,
            Error::Empty { .. } => Reason::TooShort,
            Error::TooLarge { .. } => Reason::TooLarge,
            _ => Reason::Undecodable,
        };
        Self::new(reason, error.to_string())
    }
}

/// Reads clips as a source's configuration has them.
#[derive(Debug)]
pub(super) struct MediaReader {
    config: SourceConfig,
    clips: ClipReader,
    options: OpenOptions,
}

type Clips = (Medium, Vec<Clip>);

impl MediaReader {
    pub fn new(config: &SourceConfig, clips: &ClipReader) -> Self {
        let mut clips = clips.clone();
        clips.transform.keep_aspect = config.keep_aspect.unwrap_or(clips.transform.keep_aspect);
        let options = OpenOptions {
            max_pixels: config.filter.max_pixels,
            // Samples are read in parallel.
            parallel: false,
            ..OpenOptions::default()
        };
        Self {
            config: config.clone(),
            clips,
            options,
        }
    }

    /// Reads the clips of a file. Of an `image` only the first frame is taken.
    pub fn file(
        &self,
        path: &Path,
        image: bool,
        part: Part,
        uniform: &mut dyn FnMut() -> f64,
    ) -> Result<Clips, Problem> {
        let kind = path.metadata().map_err(|error| Error::read(path, error))?;
        if kind.is_file() {
            let mut file = BufReader::new(File::open(path)?);
            let mut head = Vec::new();
            (&mut file).take(64).read_to_end(&mut head)?;
            if is_still(&head) {
                file.rewind()?;
                return self.still(path, file);
            }
        }
        self.video(path, image, part, uniform)
    }

    /// Reads the clips of a picture in memory, which is called `name`. Animations go through a file.
    pub fn bytes(
        &self,
        name: &Path,
        bytes: &[u8],
        uniform: &mut dyn FnMut() -> f64,
    ) -> Result<Clips, Problem> {
        if is_still(bytes) {
            return self.still(name, Cursor::new(bytes));
        }
        let mut file = tempfile::NamedTempFile::new()?;
        std::io::Write::write_all(&mut file, bytes)?;
        self.temporary(name, file.path(), uniform)
    }

    /// Reads the clips of a temporary file. Messages have `name` instead.
    pub fn temporary(
        &self,
        name: &Path,
        path: &Path,
        uniform: &mut dyn FnMut() -> f64,
    ) -> Result<Clips, Problem> {
        self.file(path, false, Part::Random, uniform)
            .map_err(|problem| {
                let [path, name] = [path, name].map(|path| path.display().to_string());
                Problem {
                    message: problem.message.replace(&path, &name),
                    ..problem
                }
            })
    }

    /// A still picture: only its header is read before it is known to pass.
    fn still(&self, path: &Path, mut file: impl BufRead + Seek) -> Result<Clips, Problem> {
        let (width, height) = images::size_of(path, &mut file, self.options.max_pixels)?;
        self.check_size(width, height, true)?;
        file.rewind()?;
        let frame = images::read_from(path, &mut file, self.options.max_pixels)?;
        let frame = self.clips.transform.frame(&frame)?;
        let clip = Clip::with_sparse(vec![frame; CLIP_FRAMES], self.clips.sparse.clone())?;
        Ok((Medium::Image, vec![clip]))
    }

    fn video(
        &self,
        path: &Path,
        image: bool,
        part: Part,
        uniform: &mut dyn FnMut() -> f64,
    ) -> Result<Clips, Problem> {
        let video = Video::open_with(path, &self.options)?;
        let info = video.info();
        let image = image || info.frames == 1 && matches!(&*info.codec, "gif" | "webp");
        self.check_size(info.width, info.height, image)?;
        if image {
            return Ok((Medium::Image, vec![self.clips.image(&video)?]));
        }

        let filter = &self.config.filter;
        let whole = info.duration();
        let seconds = match part {
            Part::Within(start, end) => end.min(whole) - start,
            _ => whole,
        };
        let length = || format!("{} frames in {whole:.2} s", info.frames);
        let starts_inside = match part {
            Part::Random => true,
            Part::From(start) => self.clips.check_start(&video, start).is_ok(),
            Part::Within(start, _) => start < whole,
        };
        if !starts_inside {
            let message = format!("the part of it begins after its end: {}", length());
            return Err(Problem::new(Reason::TooShort, message));
        }
        if info.frames < filter.min_frames || seconds < filter.min_seconds {
            return Err(Problem::new(Reason::TooShort, length()));
        }
        if seconds > filter.max_seconds {
            return Err(Problem::new(Reason::TooLong, length()));
        }
        if let Part::From(start) = part {
            return Ok((Medium::Video, vec![self.clips.read(&video, start)?]));
        }
        let mut frames = info.frames;
        loop {
            let indices = self.indices(&video, frames, part, uniform)?;
            let mut clips = Vec::with_capacity(indices.len());
            let outcome = self.clips.read_clips(&video, &indices, |_, clip| {
                clips.push(clip);
                ControlFlow::Continue(())
            });
            match outcome {
                // The file holds fewer frames than it says, which is known now.
                Err(Error::OutOfRange { frames: found, .. }) if (1..frames).contains(&found) => {
                    frames = found;
                }
                Err(error) => return Err(error.into()),
                Ok(_) => return Ok((Medium::Video, clips)),
            }
        }
    }

    /// Which frames make the clips.
    fn indices(
        &self,
        video: &Video,
        frames: usize,
        part: Part,
        uniform: &mut dyn FnMut() -> f64,
    ) -> Result<Vec<ClipIndices>> {
        let max_clips = match self.config.format {
            Format::Story => 1,
            _ => self.config.max_clips(),
        };
        let info = video.info();
        let questions = self.config.format == Format::Questions;
        let fps = match questions && info.codec == "gif" {
            true => GIF_FPS,
            false => info.fps,
        };
        let (start, end) = match part {
            Part::Within(start, end) => (start, end),
            _ => (0.0, f64::INFINITY),
        };
        let first = ((start * fps) as usize).min(frames - 1);
        let last = ((end * fps).ceil() as usize).clamp(first + 1, frames);
        let mut clips = match questions {
            true => spread_indices(last - first, fps, max_clips, uniform)?,
            false => train_indices(last - first, fps, max_clips, uniform)?,
        };
        clips.iter_mut().flatten().for_each(|index| *index += first);
        Ok(clips)
    }

    fn check_size(&self, width: usize, height: usize, image: bool) -> Result<(), Problem> {
        let (shorter, longer) = (width.min(height), width.max(height));
        let refused = |reason| Err(Problem::new(reason, format!("{width}x{height} pixels")));
        if shorter < self.config.min_side(image) {
            return refused(Reason::TooSmall);
        }
        if (shorter as f64) < self.config.min_aspect() * longer as f64 {
            return refused(Reason::Aspect);
        }
        Ok(())
    }
}

/// Whether this is the beginning of a picture that cannot be an animation here.
fn is_still(head: &[u8]) -> bool {
    matches!(
        images::format(head),
        Some(ImageFormat::Jpeg | ImageFormat::Png | ImageFormat::Bmp)
    )
}
