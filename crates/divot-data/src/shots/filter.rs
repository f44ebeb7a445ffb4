//! Shortest shots.

use super::Cut;

/// Shortest shot.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum MinLength {
    /// In frames. In a video of variable rate, of those that it would have at its average rate.
    Frames(usize),
    /// In seconds.
    Seconds(f64),
}

impl Default for MinLength {
    /// 15 frames.
    fn default() -> Self {
        Self::Frames(15)
    }
}

/// What happens to cuts that follow one another too quickly, in the content detector. In both cases, nothing is cut
/// until the video has lasted for the shortest shot.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Filter {
    /// They are one cut, at the last of them. It counts when for the length of the shortest shot there was no other.
    /// So a flash, which is two cuts, is at most one, and a quick montage is a shot of its own.
    #[default]
    Merge,
    /// They are ignored until the shortest shot is over.
    Suppress,
}

/// A shortest shot at a frame rate.
#[derive(Debug)]
pub(super) struct Length {
    pub shortest: MinLength,
    /// Frames per second.
    pub fps: f64,
}

impl Length {
    /// Returns whether a shot from one frame to another is long enough.
    pub fn is_met(&self, from: Cut, to: Cut) -> bool {
        let micros = |time: f64| (time * 1e6).round();
        let seconds = (micros(to.time) - micros(from.time)).max(0.0) / 1e6;
        match self.shortest {
            MinLength::Frames(frames) => (seconds * self.fps).round_ties_even() >= frames as f64,
            MinLength::Seconds(shortest) => seconds >= shortest,
        }
    }
}

/// Applies a [`Filter`] to the frames of a video.
#[derive(Debug)]
pub(super) struct Flashes {
    filter: Filter,
    length: Length,
    /// The last frame above the threshold. With [`Filter::Suppress`], the last cut. At first, the first frame.
    last: Option<Cut>,
    /// Whether there was a cut.
    begun: bool,
    /// The first of the cuts that are being merged.
    merging: Option<Cut>,
}

impl Flashes {
    pub fn new(filter: Filter, length: Length) -> Self {
        Self {
            filter,
            length,
            last: None,
            begun: false,
            merging: None,
        }
    }

    /// Takes the next frame, which is above the threshold or not. Returns the cut that is certain now.
    pub fn push(&mut self, now: Cut, above: bool) -> Option<Cut> {
        let last = *self.last.get_or_insert(now);
        let long = self.length.is_met(last, now);
        match self.filter {
            Filter::Suppress if above && long => {
                self.last = Some(now);
                Some(now)
            }
            Filter::Suppress => None,
            Filter::Merge if above => {
                self.last = Some(now);
                if self.merging.is_some() {
                    return None;
                }
                if long {
                    self.begun = true;
                    return Some(now);
                }
                // What flickers at the beginning belongs to the first shot.
                self.merging = self.begun.then_some(now);
                None
            }
            Filter::Merge => {
                let first = self.merging?;
                if !long || !self.length.is_met(first, last) {
                    return None;
                }
                self.merging = None;
                Some(last)
            }
        }
    }
}
