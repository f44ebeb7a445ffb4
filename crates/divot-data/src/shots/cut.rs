//! Shots as files of their own.

use std::collections::VecDeque;
use std::ops::ControlFlow;
use std::path::PathBuf;

use super::Shot;
use crate::transform::resize;
use crate::{Error, Frame, Mp4Writer, Result, Video};

/// Writes shots of a video to MP4 files of its frame rate, in one pass over the video.
///
/// The shots are in order and do not overlap. Frames whose shorter side is over `side` pixels are resized to it. In a
/// video of variable rate, frames are repeated or left out, so that each shot has the average rate.
///
/// Each file is written as a whole when its shot is over. Memory holds one frame, and one compressed shot. `each` is
/// called for every frame of the video with the number of files that are written, and may stop the work.
///
/// # Errors
/// [`Error::Argument`] for shots of other frames than the video's. Those of [`Video::visit_all`] and [`Mp4Writer`].
pub fn cut(
    video: &Video,
    shots: &[(Shot, PathBuf)],
    side: usize,
    mut each: impl FnMut(usize) -> ControlFlow<()>,
) -> Result<ControlFlow<()>> {
    let all = video.info().frames;
    let is_foreign = |shot: &Shot| shot.frames.is_empty() || shot.frames.end > all;
    if let Some((shot, _)) = shots.iter().find(|(shot, _)| is_foreign(shot)) {
        return Err(Error::Argument(format!(
            "{}: frames {} to {} were to be cut out of {all}; find its shots again",
            video.path().display(),
            shot.frames.start,
            shot.frames.end
        )));
    }
    let mut left = shots.iter();
    let mut written = 0;
    let mut current = next(video, &mut left)?;
    if current.is_none() {
        return Ok(ControlFlow::Continue(()));
    }
    let mut stopped = false;
    let _ = video.visit_all(|index, frame| {
        stopped = each(written).is_break();
        if stopped {
            return Ok(ControlFlow::Break(()));
        }
        if let Some(file) = &mut current {
            file.push(index, frame, side)?;
        }
        while let Some(file) = current.take_if(|file| file.frames.is_empty()) {
            file.writer.finish()?;
            written += 1;
            current = next(video, &mut left)?;
        }
        Ok(match &current {
            Some(_) => ControlFlow::Continue(()),
            None => ControlFlow::Break(()),
        })
    })?;
    match (stopped, current) {
        (true, _) => Ok(ControlFlow::Break(())),
        (false, Some(_)) => Err(Error::damaged(video.path(), "frames are missing")),
        (false, None) => Ok(ControlFlow::Continue(())),
    }
}

/// A file that is being written.
struct Current {
    writer: Mp4Writer,
    /// The frames that it still lacks, in order. One may come several times.
    frames: VecDeque<usize>,
}

impl Current {
    fn push(&mut self, index: usize, frame: &Frame, side: usize) -> Result<()> {
        if self.frames.front() != Some(&index) {
            return Ok(());
        }
        let small = shrunk(frame, side)?;
        while self
            .frames
            .pop_front_if(|wanted| *wanted == index)
            .is_some()
        {
            self.writer.push(small.as_ref().unwrap_or(frame))?;
        }
        Ok(())
    }
}

fn next<'a>(
    video: &Video,
    left: &mut impl Iterator<Item = &'a (Shot, PathBuf)>,
) -> Result<Option<Current>> {
    let Some((shot, path)) = left.next() else {
        return Ok(None);
    };
    Ok(Some(Current {
        writer: Mp4Writer::new(path, video.info().fps)?,
        frames: frames(video, shot),
    }))
}

/// The frames of a shot at the video's average rate.
fn frames(video: &Video, shot: &Shot) -> VecDeque<usize> {
    if !video.is_variable() {
        return shot.frames.clone().collect();
    }
    let (fps, seconds) = (video.info().fps, &shot.seconds);
    let count = ((seconds.end - seconds.start) * fps).round().max(1.0) as usize;
    let at = |number| video.frame_at(seconds.start + number as f64 / fps);
    let within = |frame: usize| frame.clamp(shot.frames.start, shot.frames.end - 1);
    (0..count).map(|number| within(at(number))).collect()
}

/// The frame with a shorter side of `side` pixels and even sides, if it is larger.
fn shrunk(frame: &Frame, side: usize) -> Result<Option<Frame>> {
    let shorter = frame.width.min(frame.height);
    if shorter <= side {
        return Ok(None);
    }
    let scaled = |length: usize| (length * side / shorter).max(2) & !1;
    resize(frame, scaled(frame.width), scaled(frame.height)).map(Some)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::write_mp4;

    #[test]
    fn shots_become_files() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        let grey = |number: usize| Frame::filled(60, 40, [8 * number as u8; 3]).unwrap();
        let film: Vec<Frame> = (0..30).map(grey).collect();
        write_mp4(path("film.mp4"), &film, 10.0).unwrap();
        let video = Video::open(path("film.mp4")).unwrap();
        let shot = |frames: std::ops::Range<usize>| Shot {
            seconds: frames.start as f64 / 10.0..frames.end as f64 / 10.0,
            frames,
        };
        let shots = [
            (shot(2..10), path("a.mp4")),
            (shot(10..11), path("b.mp4")),
            (shot(20..30), path("c.mp4")),
        ];
        let mut most = 0;
        let flow = cut(&video, &shots, 20, |written| {
            most = written;
            ControlFlow::Continue(())
        });
        assert_eq!(flow.unwrap(), ControlFlow::Continue(()));
        assert_eq!(most, 2);
        for (shot, path) in &shots {
            let clip = Video::open(path).unwrap();
            let info = clip.info();
            assert_eq!((info.width, info.height, info.fps), (30, 20, 10.0));
            assert_eq!(info.frames, shot.frames.len());
            let all: Vec<usize> = (0..info.frames).collect();
            for (frame, number) in clip.frames(&all).unwrap().iter().zip(shot.frames.clone()) {
                let brightness = frame.mean_rgb()[1];
                assert!((brightness - 8.0 * number as f64).abs() < 4.0, "{number}");
            }
        }

        let again = [(shot(0..5), path("d.mp4")), (shot(5..30), path("e.mp4"))];
        let flow = cut(&video, &again, 20, |written| match written {
            0 => ControlFlow::Continue(()),
            _ => ControlFlow::Break(()),
        });
        assert_eq!(flow.unwrap(), ControlFlow::Break(()));
        assert!(path("d.mp4").exists() && !path("e.mp4").exists());
    }
}
