//! Presentation times of the frames of a video.

/// Returns whether a time line may have this frame rate, in frames per second.
pub(crate) fn is_plausible(fps: f64) -> bool {
    fps.is_finite() && fps > 1e-4 && fps <= 1000.0
}

/// Presentation times of the frames of a video, in seconds from the first.
#[derive(Debug, Clone)]
pub(crate) enum Timeline {
    /// Frame `i` is shown at `i / fps`.
    Constant(f64),
    /// Increasing times, one for each frame.
    Variable(Vec<f64>),
}

impl Timeline {
    /// Creates a time line from measured times. If all times are less than half a frame away from those of
    /// a constant rate, the rate is taken as constant, because containers round times.
    pub fn new(fps: f64, times: Option<Vec<f64>>) -> Self {
        let Some(times) = times else {
            return Self::Constant(fps);
        };
        let is_near = |(i, time): (usize, &f64)| (time * fps - i as f64).abs() < 0.5;
        let span = times.last().copied().unwrap_or(0.0);
        let is_broken = !times.is_sorted() || !is_plausible(times.len() as f64 / span.max(1e-9));
        if times.iter().enumerate().all(is_near) || is_broken {
            Self::Constant(fps)
        } else {
            Self::Variable(times)
        }
    }

    /// Returns the time of a frame, in seconds.
    pub fn time(&self, index: usize) -> f64 {
        match self {
            Self::Constant(fps) => index as f64 / fps,
            Self::Variable(times) => times.get(index).or(times.last()).copied().unwrap_or(0.0),
        }
    }

    /// Returns the frame shown at `seconds`, in a video of `frames` frames.
    pub fn frame_at(&self, seconds: f64, frames: usize) -> usize {
        let index = match self {
            Self::Constant(fps) => (seconds * fps) as usize,
            Self::Variable(times) => times.partition_point(|&t| t <= seconds).saturating_sub(1),
        };
        index.min(frames.saturating_sub(1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounded_times_are_constant_and_others_are_not() {
        let rounded = (0..100).map(|i| (f64::from(i) * 1000.0 / 30.0).round() / 1000.0);
        let line = Timeline::new(30.0, Some(rounded.collect()));
        assert!(matches!(line, Timeline::Constant(_)));
        assert_eq!(line.frame_at(1.0, 100), 30);
        assert_eq!(line.frame_at(1e9, 100), 99);

        let times = vec![0.0, 0.1, 0.2, 5.0, 6.0];
        let line = Timeline::new(1.0, Some(times));
        assert!(matches!(line, Timeline::Variable(_)));
        assert_eq!(line.time(3), 5.0);
        let at = [0.0, 0.15, 4.99, 5.0, 100.0].map(|t| line.frame_at(t, 5));
        assert_eq!(at, [0, 1, 2, 3, 4]);
        // Times that are all zero are ignored.
        let line = Timeline::new(10.0, Some(vec![0.0; 30]));
        assert!(matches!(line, Timeline::Constant(_)));
    }
}
