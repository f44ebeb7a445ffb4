//! Selection of the frames of a clip.
//!
//! A clip is two seconds long: 16 frames at 8 frames per second. The tokenizer uses five of them
//! ([`TOKENIZER_FRAMES`]). All positions are computed in `f64` and truncated to frame indices, like
//! `numpy.linspace(.., endpoint=False)` in the released system.

use crate::{Error, Result};

/// Frames in a clip.
pub const CLIP_FRAMES: usize = 16;

/// Frame rate of a clip, in frames per second.
pub const CLIP_FPS: f64 = 8.0;

/// Maximum number of clips of a video for comprehension.
pub const MAX_CLIPS: usize = 20;

/// Positions of the tokenizer's frames among the 16 of a clip.
pub const TOKENIZER_FRAMES: [usize; 5] = [0, 4, 8, 12, 15];

/// The 16 frames of a clip, as indices into the video. They never decrease.
pub type ClipIndices = [usize; CLIP_FRAMES];

/// Returns the five frames of a clip that the tokenizer uses.
pub fn tokenizer_indices(clip: &ClipIndices) -> [usize; 5] {
    TOKENIZER_FRAMES.map(|i| clip[i])
}

/// Selects the clip for a reconstruction: the first two seconds.
///
/// `frames` is the number of frames of the video, `fps` its frame rate. The frames of a shorter video
/// are spread over the 16 of the clip.
///
/// # Errors
/// [`Error::Argument`] for a video without frames, or when `fps` is not a positive number.
pub fn reconstruct_indices(frames: usize, fps: f64) -> Result<ClipIndices> {
    reconstruct_indices_from(frames, fps, 0.0)
}

/// Like [`reconstruct_indices`], but starts `start` seconds into the video.
///
/// # Errors
/// Those of [`reconstruct_indices`]. [`Error::Argument`] when `start` is negative or not before the end
/// of the video.
pub fn reconstruct_indices_from(frames: usize, fps: f64, start: f64) -> Result<ClipIndices> {
    let interval = check(frames, fps)?;
    let length = frames as f64;
    let first = start * fps;
    if !(0.0..length).contains(&first) {
        return Err(bad_start(start, length / fps));
    }
    Ok(spread(first, first + span(interval), frames))
}

/// Like [`reconstruct_indices_from`], for a video of variable frame rate.
///
/// Positions are times in seconds instead of frames. `frame_at` returns the frame shown at a time.
/// `duration` is the length of the video. If less than two seconds are left, they are spread over the
/// clip.
///
/// # Errors
/// [`Error::Argument`] when `start` is negative or not before `duration`.
pub fn reconstruct_indices_at(
    duration: f64,
    start: f64,
    frame_at: impl Fn(f64) -> usize,
) -> Result<ClipIndices> {
    if !(0.0..duration).contains(&start) {
        return Err(bad_start(start, duration));
    }
    let length = (duration - start).min(CLIP_FRAMES as f64 / CLIP_FPS);
    let step = length / CLIP_FRAMES as f64;
    Ok(std::array::from_fn(|i| frame_at(start + i as f64 * step)))
}

fn bad_start(start: f64, duration: f64) -> Error {
    Error::Argument(format!(
        "a clip cannot start at {start} s of a video of {duration:.2} s; give a start within it"
    ))
}

/// Selects the clips for comprehension.
///
/// If the video is long enough for `max_clips` clips, the starts of that many clips are spread evenly.
/// Otherwise the clips are consecutive, and the last one covers the rest of the video, which may be
/// shorter than two seconds. The reference system uses [`MAX_CLIPS`].
///
/// # Errors
/// [`Error::Argument`] for a video without frames, when `fps` is not a positive number, or when
/// `max_clips` is 0.
pub fn comprehend_indices(frames: usize, fps: f64, max_clips: usize) -> Result<Vec<ClipIndices>> {
    clips(frames, fps, max_clips, || 0.0)
}

/// Like [`comprehend_indices`], with random starts for training.
///
/// A long video is divided into `max_clips` slots, and each clip starts at random within its slot. In a
/// video that is too short for `max_clips` clips, the clips are consecutive and the first one starts at
/// random within 1/8 second. `uniform` draws from `[0, 1)` and is called once per random start.
///
/// With `max_clips` of 1, the result is one clip from anywhere in the video.
///
/// # Errors
/// Those of [`comprehend_indices`].
pub fn train_indices(
    frames: usize,
    fps: f64,
    max_clips: usize,
    uniform: impl FnMut() -> f64,
) -> Result<Vec<ClipIndices>> {
    clips(frames, fps, max_clips, uniform)
}

/// Selects clips for training on questions: as many as [`comprehend_indices`] gives, in equal slots that
/// cover the whole video.
///
/// Each clip starts at random within its slot. In a slot that is shorter than a clip, the distance between
/// frames shrinks. `uniform` draws from `[0, 1)` and is called once per clip.
///
/// # Errors
/// Those of [`comprehend_indices`].
pub fn spread_indices(
    frames: usize,
    fps: f64,
    max_clips: usize,
    mut uniform: impl FnMut() -> f64,
) -> Result<Vec<ClipIndices>> {
    let count = comprehend_indices(frames, fps, max_clips)?.len();
    let slot = frames as f64 / count as f64;
    let span = span(check(frames, fps)?).min(slot);
    let starts = (0..count).map(|i| i as f64 * slot + uniform() * (slot - span));
    Ok(starts
        .map(|start| spread(start, start + span, frames))
        .collect())
}

/// Selects clips for comprehension or training. `uniform` returns the position of a start within its
/// range, in `[0, 1)`.
fn clips(
    frames: usize,
    fps: f64,
    max_clips: usize,
    mut uniform: impl FnMut() -> f64,
) -> Result<Vec<ClipIndices>> {
    let interval = check(frames, fps)?;
    if max_clips == 0 {
        return Err(Error::Argument(
            "0 clips were asked for; ask for at least 1".into(),
        ));
    }

    let length = frames as f64;
    let available = floor_div(length, interval);
    if available >= (max_clips * CLIP_FRAMES) as f64 {
        let slot = (frames / max_clips) as f64;
        // The integer division may shorten a slot by up to a frame, so that a clip no longer fits.
        let squeezed = floor_div(slot, interval) < CLIP_FRAMES as f64;
        let span = if squeezed { slot } else { span(interval) };
        return Ok((0..max_clips)
            .map(|i| {
                let start = i as f64 * slot + uniform() * (slot - span);
                spread(start, start + span, frames)
            })
            .collect());
    }

    let mut clips = Vec::new();
    // The start is before the end of the video, so there is at least one clip.
    let mut start = uniform() * interval.min(length);
    while start < length && clips.len() < max_clips {
        clips.push(spread(start, (start + span(interval)).min(length), frames));
        start += span(interval);
    }
    Ok(clips)
}

/// Checks the arguments. Returns the distance between a clip's frames, in frames of the video.
fn check(frames: usize, fps: f64) -> Result<f64> {
    if frames == 0 {
        return Err(Error::Argument(
            "a video without frames has no clips; give one with at least one frame".into(),
        ));
    }
    if !(fps.is_finite() && fps > 0.0) {
        return Err(Error::Argument(format!(
            "{fps} is no frame rate; give a positive number of frames per second"
        )));
    }
    Ok(fps / CLIP_FPS)
}

fn span(interval: f64) -> f64 {
    CLIP_FRAMES as f64 * interval
}

/// Returns 16 even positions in `start..end`, truncated to indices. The end of the video limits `end`.
fn spread(start: f64, end: f64, frames: usize) -> ClipIndices {
    let step = (end.min(frames as f64) - start) / CLIP_FRAMES as f64;
    std::array::from_fn(|i| ((i as f64 * step + start) as usize).min(frames - 1))
}

/// Divides like Python's `//` on floats. The remainder is exact, so a quotient just below an integer is
/// not rounded up.
fn floor_div(a: f64, b: f64) -> f64 {
    ((a - a % b) / b).round()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(serde::Deserialize)]
    struct Case {
        frames: usize,
        fps: f64,
        reconstruct: [usize; 5],
        comprehend: Vec<[usize; 5]>,
    }

    #[test]
    fn every_case_of_the_reference_system() {
        let cases: Vec<Case> =
            serde_json::from_str(include_str!("../tests/data/frames.json")).unwrap();
        assert!(!cases.is_empty());
        for Case {
            frames,
            fps,
            reconstruct,
            comprehend,
        } in cases
        {
            let ours = reconstruct_indices(frames, fps).unwrap();
            assert_eq!(tokenizer_indices(&ours), reconstruct, "{frames} at {fps}");
            let ours = comprehend_indices(frames, fps, MAX_CLIPS).unwrap();
            let ours: Vec<_> = ours.iter().map(tokenizer_indices).collect();
            assert_eq!(ours, comprehend, "{frames} at {fps}");
        }
    }

    #[test]
    fn a_single_frame_is_repeated() {
        assert_eq!(reconstruct_indices(1, 25.0).unwrap(), [0; 16]);
        assert_eq!(comprehend_indices(1, 25.0, 20).unwrap(), vec![[0; 16]]);
    }

    #[test]
    fn nonsense_is_an_error() {
        for fps in [0.0, -1.0, f64::NAN, f64::INFINITY] {
            assert!(reconstruct_indices(10, fps).is_err());
        }
        assert!(reconstruct_indices(0, 8.0).is_err());
        assert!(comprehend_indices(0, 8.0, 20).is_err());
        assert!(comprehend_indices(10, 8.0, 0).is_err());
        assert!(reconstruct_indices_from(10, 8.0, -0.1).is_err());
        assert!(reconstruct_indices_from(10, 8.0, 1.25).is_err());
    }

    #[test]
    fn a_start_shifts_the_clip() {
        let clip = reconstruct_indices_from(100, 8.0, 2.0).unwrap();
        assert_eq!(clip, std::array::from_fn(|i| 16 + i));
        // The rest of the video is spread over the clip.
        let clip = reconstruct_indices_from(24, 8.0, 2.0).unwrap();
        assert_eq!((clip[0], clip[15]), (16, 23));
    }

    #[test]
    fn slots_that_do_not_divide_evenly_start_at_whole_frames() {
        // 1807 / 20 = 90.35: the slots are 90 frames.
        let clips = comprehend_indices(1807, 30.0, 20).unwrap();
        assert_eq!(clips.len(), 20);
        assert_eq!(clips[19][0], 19 * 90);
    }

    #[test]
    fn training_stays_inside_the_slots() {
        for u in [0.0, 0.5, 0.999_999] {
            let clips = train_indices(1800, 30.0, 20, || u).unwrap();
            for (i, clip) in clips.iter().enumerate() {
                assert!(clip[0] >= i * 90 && clip[15] < (i + 1) * 90);
            }
            let clips = train_indices(3, 30.0, 1, || u).unwrap();
            assert_eq!(clips.len(), 1);
            assert!(clips[0][15] < 3);
        }
    }
}
