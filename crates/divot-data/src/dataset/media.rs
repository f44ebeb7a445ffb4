//! Clips of a training sample's file.

use std::ops::ControlFlow;
use std::path::Path;

use super::config::{Format, SourceConfig};
use super::sample::{Medium, Reason, Skip};
use crate::sampling::{ClipIndices, spread_indices, train_indices};
use crate::{Clip, ClipReader, Error, Video};

/// Frame rate that GIFs count as in questions, in frames per second, as released.
const GIF_FPS: f64 = 24.0;

/// Which part of a video clips are taken of.
#[derive(Debug, Clone, Copy)]
pub(super) enum Part {
    /// Anywhere, at random.
    Random,
    /// The two seconds that start there, in seconds.
    From(f64),
    /// At random between two times, in seconds.
    Within(f64, f64),
}

/// Reads the clips of a file.
pub(super) fn read(
    config: &SourceConfig,
    reader: &ClipReader,
    path: &Path,
    key: &str,
    part: Part,
    uniform: &mut dyn FnMut() -> f64,
) -> Result<(Medium, Vec<Clip>), Skip> {
    let skip = |reason, message: String| Skip {
        key: key.to_owned(),
        reason,
        message,
    };
    let failed = |error: Error| {
        let reason = match &error {
            Error::NotFound { .. } => Reason::Missing,
            Error::Empty { .. } => Reason::TooShort,
            _ => Reason::Undecodable,
        };
        skip(reason, error.to_string())
    };
    let video = Video::open(path).map_err(failed)?;
    let info = video.info();
    let image = info.frames == 1;
    let [shorter, longer] = [info.width.min(info.height), info.width.max(info.height)];
    if shorter < config.min_side() {
        let message = format!("{}x{} pixels", info.width, info.height);
        return Err(skip(Reason::TooSmall, message));
    }
    if (shorter as f64) < config.min_aspect() * longer as f64 {
        let message = format!("{}x{} pixels", info.width, info.height);
        return Err(skip(Reason::Aspect, message));
    }
    if image {
        let clip = reader.image(&video).map_err(failed)?;
        return Ok((Medium::Image, vec![clip]));
    }
    let seconds = info.duration();
    if info.frames < config.filter.min_frames || seconds < config.filter.min_seconds {
        let message = format!("{} frames in {seconds:.1} s", info.frames);
        return Err(skip(Reason::TooShort, message));
    }
    if seconds > config.filter.max_seconds {
        return Err(skip(Reason::TooLong, format!("{seconds:.1} s")));
    }

    let questions = config.format == Format::Questions;
    let fps = match questions && info.codec == "gif" {
        true => GIF_FPS,
        false => info.fps,
    };
    let clips = match part {
        Part::From(start) => {
            let clip = reader.read(&video, start).map_err(failed)?;
            return Ok((Medium::Video, vec![clip]));
        }
        Part::Random if questions => spread_indices(info.frames, fps, config.max_clips, uniform),
        Part::Random => train_indices(info.frames, fps, config.max_clips, uniform),
        Part::Within(start, end) => {
            let first = ((start * fps) as usize).min(info.frames - 1);
            let last = ((end * fps).ceil() as usize).clamp(first + 1, info.frames);
            train_indices(last - first, fps, config.max_clips, uniform).map(|clips| {
                clips
                    .into_iter()
                    .map(|clip| clip.map(|i| i + first))
                    .collect()
            })
        }
    };
    let clips: Vec<ClipIndices> = clips.map_err(failed)?;
    let mut read = Vec::with_capacity(clips.len());
    let flow = reader.read_clips(&video, &clips, |_, clip| {
        read.push(clip);
        ControlFlow::Continue(())
    });
    let _ = flow.map_err(failed)?;
    Ok((Medium::Video, read))
}
