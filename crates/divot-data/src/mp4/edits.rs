//! Edit lists (`elst`), which determine which samples are shown, and when.
//!
//! They are applied as in FFmpeg (`mov_fix_index`). Media rates are ignored, empty edits at the beginning
//! only delay, and the times of an edit are rounded to the nearest tick of the track.

use super::Timed;
use super::boxes::{Bytes, entries};

/// An edit.
#[derive(Debug, Clone, Copy)]
pub struct Edit {
    /// Duration in ticks of the movie.
    pub duration: u64,
    /// Start in ticks of the track, or -1 for an empty edit.
    pub start: i64,
}

/// The samples that an edit shows.
#[derive(Debug)]
pub struct Segment {
    /// The sample at which decoding starts, in decoding order.
    pub first: usize,
    /// The shown samples, in decoding order.
    pub shown: Vec<usize>,
    /// Offset from a sample's time to its time in the movie, in ticks of the track.
    pub shift: i64,
}

/// Reads an `elst` box.
pub fn read(elst: &[u8]) -> Option<Vec<Edit>> {
    let (version, _) = Bytes(elst).full()?;
    entries(elst, |b| {
        let (duration, start) = if version == 1 {
            (b.u64()?, b.u64()? as i64)
        } else {
            (b.u32()?.into(), b.i32()?.into())
        };
        b.skip(4)?;
        Some(Edit { duration, start })
    })
}

/// Applies a list that is not empty. `scale` is the timescales of the track and of the movie. `delayed`
/// states whether the track has composition times.
pub fn follow(edits: &[Edit], scale: (u32, u32), delayed: bool, samples: &[Timed]) -> Vec<Segment> {
    let mut segments = Vec::new();
    let mut movie_time = 0i64;
    // A list may refer to the same samples many times.
    let mut budget = samples.len().saturating_mul(4).saturating_add(1 << 16);
    for edit in edits {
        let mut duration = rescale(edit.duration, scale);
        if edit.start == -1 && segments.is_empty() {
            movie_time = movie_time.saturating_add(duration);
            continue;
        }
        if duration.checked_add(edit.start).is_none() {
            duration = 0;
        }
        let end = edit.start.saturating_add(duration);
        let first = beginning(edit.start, delayed, samples);
        let mut shown = Vec::new();
        let mut key_behind = false;
        for (i, sample) in samples.iter().enumerate().skip(first) {
            if budget == 0 {
                return segments;
            }
            budget -= 1;
            if (edit.start..end).contains(&sample.shown_at) {
                shown.push(i);
            }
            let length = samples
                .get(i + 1)
                .map_or(duration, |next| next.decoded_at - sample.decoded_at);
            if sample.shown_at.saturating_add(length) >= end && sample.sample.sync {
                // Pictures that are shown before this one may follow it in the file.
                if !delayed || key_behind {
                    break;
                }
                key_behind = true;
            }
        }
        segments.push(Segment {
            first,
            shown,
            shift: movie_time.saturating_sub(edit.start),
        });
        movie_time = movie_time.saturating_add(duration);
    }
    segments
}

/// Returns the sync sample at which decoding must start for an edit that starts at `start`.
///
/// It is the last one that is neither decoded nor shown later than `start`. If several have the same
/// decoding time, it is the first of them. Without a sync sample, any sample counts. Otherwise it is the
/// first sample.
fn beginning(start: i64, delayed: bool, samples: &[Timed]) -> usize {
    let until = samples.partition_point(|s| s.decoded_at <= start);
    let find = |any: bool| {
        let may = |i: &usize| any || samples[*i].sample.sync;
        let last = (0..until).rev().find(may)?;
        let time = samples[last].decoded_at;
        let same = samples.partition_point(|s| s.decoded_at < time);
        let index = (same..=last).find(may)?;
        if !delayed {
            return Some(index);
        }
        let shown = |i: &usize| samples[*i].shown_at <= start;
        (0..=index).rev().find(|i| may(i) && shown(i))
    };
    find(false).or_else(|| find(true)).unwrap_or(0)
}

/// Converts ticks of the movie to ticks of the track, rounded to the nearest.
fn rescale(duration: u64, (track, movie): (u32, u32)) -> i64 {
    let movie = u128::from(movie.max(1));
    let scaled = (u128::from(duration) * u128::from(track) + movie / 2) / movie;
    i64::try_from(scaled).unwrap_or(i64::MAX)
}
