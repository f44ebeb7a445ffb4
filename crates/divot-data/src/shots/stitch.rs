//! From shots to clips: long ones are split, and neighbours that are alike are joined.

use super::Shot;
use crate::Video;

/// What times of frames may be off by, in seconds.
const ROUNDING: f64 = 1e-6;

/// Splits shots of `video` that last longer than `longest` seconds into equal parts that do not.
pub fn split(video: &Video, shots: &[Shot], longest: f64) -> Vec<Shot> {
    let mut parts = Vec::new();
    for shot in shots {
        let (start, end) = (shot.seconds.start, shot.seconds.end);
        let count = ((end - start - ROUNDING) / longest).ceil().max(1.0);
        // A part has a frame at least, so that there are never more.
        let count = count.min(shot.frames.len() as f64) as usize;
        let mut first = shot.frames.start;
        for part in 1..=count {
            let last = match part == count {
                true => shot.frames.end,
                false => {
                    video.frame_at(start + (end - start) * part as f64 / count as f64 + ROUNDING)
                }
            };
            if last <= first {
                continue;
            }
            let ends = match last == shot.frames.end {
                true => end,
                false => video.time(last),
            };
            parts.push(Shot {
                frames: first..last,
                seconds: video.time(first)..ends,
            });
            first = last;
        }
    }
    parts
}

/// Joins neighbouring shots that are alike to one, as long as that lasts at most `longest` seconds.
///
/// `similarities[i]` says how alike the end of shot `i` and the beginning of the next one are. From `threshold` on, they
/// are joined. So a conversation that is cut from face to face stays several shots, and one that is cut within a view
/// becomes one.
///
/// # Panics
/// If there are not as many similarities as pairs of neighbours.
pub fn stitch(shots: &[Shot], similarities: &[f64], threshold: f64, longest: f64) -> Vec<Shot> {
    assert_eq!(
        similarities.len(),
        shots.len().saturating_sub(1),
        "a similarity for each pair of neighbours"
    );
    let mut joined: Vec<Shot> = Vec::new();
    for (index, shot) in shots.iter().enumerate() {
        match joined.last_mut() {
            Some(last)
                if similarities[index - 1] >= threshold
                    && shot.seconds.end - last.seconds.start <= longest + ROUNDING =>
            {
                last.frames.end = shot.frames.end;
                last.seconds.end = shot.seconds.end;
            }
            _ => joined.push(shot.clone()),
        }
    }
    joined
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Frame, write_mp4};

    fn shots(ends: &[usize]) -> Vec<Shot> {
        let starts = std::iter::once(&0).chain(ends);
        let shots = starts.zip(ends).map(|(&from, &to)| Shot {
            frames: from..to,
            seconds: from as f64 / 10.0..to as f64 / 10.0,
        });
        shots.collect()
    }

    fn frames(shots: &[Shot]) -> Vec<(usize, usize)> {
        let frames = shots.iter().map(|it| (it.frames.start, it.frames.end));
        frames.collect()
    }

    #[test]
    fn long_shots_are_split_into_equal_parts() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("film.mp4");
        write_mp4(
            &path,
            &vec![Frame::filled(16, 16, [9; 3]).unwrap(); 60],
            10.0,
        )
        .unwrap();
        let video = Video::open(&path).unwrap();
        let parts = split(&video, &shots(&[10, 20, 50, 60]), 1.0);
        assert_eq!(
            frames(&parts),
            [(0, 10), (10, 20), (20, 30), (30, 40), (40, 50), (50, 60)]
        );
        assert_eq!(parts[3].seconds, 3.0..4.0);
        assert_eq!(
            frames(&split(&video, &shots(&[25]), 1.0)),
            [(0, 8), (8, 16), (16, 25)]
        );
        // Never more parts than frames.
        assert_eq!(split(&video, &shots(&[60]), 1e-9).len(), 60);
    }

    #[test]
    fn neighbours_that_are_alike_are_joined() {
        let shots = shots(&[10, 20, 30, 40]);
        let joined =
            |similarities: &[f64], longest| frames(&stitch(&shots, similarities, 0.8, longest));
        assert_eq!(joined(&[0.9, 0.1, 0.8], 9.0), [(0, 20), (20, 40)]);
        assert_eq!(joined(&[0.9, 0.9, 0.9], 3.0), [(0, 30), (30, 40)]);
        assert_eq!(joined(&[0.7, 0.7, 0.7], 9.0).len(), 4);
        assert_eq!(stitch(&[], &[], 0.8, 9.0), []);
    }
}
