//! Clips: the frames of a video that the networks read, cut to their square.

use std::collections::BTreeMap;
use std::ops::ControlFlow;

use crate::sampling::{
    CLIP_FPS, CLIP_FRAMES, ClipIndices, TOKENIZER_FRAMES, comprehend_indices,
    reconstruct_indices_at, reconstruct_indices_from,
};
use crate::transform::frame_to_chw;
use crate::write::common_size;
use crate::{Error, Frame, Result, Transform, Video};

/// The frames of two seconds of a video, all of one size: 16 of them, at 8 frames per second.
///
/// The tokenizer sees a few of them, the sparse frames; the de-tokenizer learns to make all of
/// them, the dense frames.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Clip {
    frames: Vec<Frame>,
    sparse: Vec<usize>,
}

impl Clip {
    /// A clip of frames, of which the tokenizer sees those at [`TOKENIZER_FRAMES`].
    ///
    /// # Errors
    /// [`Error::Argument`] if there are not [`CLIP_FRAMES`], or they differ in size.
    pub fn new(frames: Vec<Frame>) -> Result<Self> {
        if frames.len() != CLIP_FRAMES {
            return Err(Error::Argument(format!(
                "a clip is {CLIP_FRAMES} frames of one size, not {}; read it with `ClipReader`",
                frames.len()
            )));
        }
        Self::with_sparse(frames, TOKENIZER_FRAMES.to_vec())
    }

    /// A clip of any number of frames, of which the tokenizer sees those at the places `sparse`.
    ///
    /// # Errors
    /// [`Error::Argument`] for no frames, frames of different sizes, no sparse frames, or a place
    /// that is not in the clip.
    pub fn with_sparse(frames: Vec<Frame>, sparse: Vec<usize>) -> Result<Self> {
        common_size(&frames)?;
        if sparse.is_empty() || sparse.iter().any(|&i| i >= frames.len()) {
            return Err(Error::Argument(format!(
                "{sparse:?} are no sparse frames of a clip of {}; give places from 0 to {}",
                frames.len(),
                frames.len() - 1
            )));
        }
        Ok(Self { frames, sparse })
    }

    /// All frames, in order.
    pub fn frames(&self) -> &[Frame] {
        &self.frames
    }

    /// The frames, without the clip.
    pub fn into_frames(self) -> Vec<Frame> {
        self.frames
    }

    /// Places of the sparse frames in the clip.
    pub fn sparse_places(&self) -> &[usize] {
        &self.sparse
    }

    /// Frame rate in frames per second: [`CLIP_FPS`].
    pub fn fps(&self) -> f64 {
        CLIP_FPS
    }

    /// Height and width of every frame in pixels.
    pub fn size(&self) -> [usize; 2] {
        let Frame { width, height, .. } = self.frames[0];
        [height, width]
    }

    /// Values of the frames that the tokenizer sees, in [-1, 1], and their shape
    /// `[sparse frames, 3, height, width]`.
    pub fn sparse(&self) -> (Vec<f32>, [usize; 4]) {
        values(self.sparse.iter().map(|&i| &self.frames[i]))
    }

    /// Values of all frames, in [-1, 1], and their shape `[frames, 3, height, width]`.
    pub fn dense(&self) -> (Vec<f32>, [usize; 4]) {
        values(self.frames.iter())
    }
}

/// Reads clips of videos. It needs no network, only the size that one reads.
///
/// ```no_run
/// use std::ops::ControlFlow;
/// use divot_data::{ClipReader, Video};
///
/// # fn main() -> divot_data::Result<()> {
/// let video = Video::open("dog.mp4")?;
/// let reader = ClipReader::default();
/// let (values, shape) = reader.read(&video, 0.0)?.sparse();
/// assert_eq!(shape, [5, 3, 256, 256]);
/// // Up to 20 clips of the whole video, in one pass over the file.
/// let finished = reader.read_all(&video, 20, |number, count, clip| {
///     println!("clip {number} of {count}: {:?}", clip.size());
///     ControlFlow::Continue(())
/// })?;
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClipReader {
    /// How frames are cut to the square that the network reads.
    pub transform: Transform,
    /// Which of a clip's frames the tokenizer sees, by their places in the clip.
    pub sparse: Vec<usize>,
}

impl Default for ClipReader {
    /// The released system's: 256 pixels a side, frames 0, 4, 8, 12 and 15.
    fn default() -> Self {
        Self::new(Transform::default())
    }
}

impl ClipReader {
    /// A reader of [`TOKENIZER_FRAMES`] that cuts frames with `transform`.
    pub fn new(transform: Transform) -> Self {
        Self {
            transform,
            sparse: TOKENIZER_FRAMES.to_vec(),
        }
    }

    /// A reader of [`TOKENIZER_FRAMES`] that cuts frames to a square of `size` pixels a side,
    /// keeping their aspect ratio.
    pub fn of_size(size: usize) -> Self {
        Self::new(Transform {
            size,
            ..Transform::default()
        })
    }

    /// The clip that starts `start` seconds into the video. What is left of a video that ends
    /// sooner is spread over the clip.
    ///
    /// From the start, the frames are those of the released system, which takes the frame rate for
    /// constant. A later start of a video of variable rate goes by the times of its frames.
    ///
    /// # Errors
    /// [`Error::Argument`] when `start` is not within the video, and what decoding finds wrong.
    pub fn read(&self, video: &Video, start: f64) -> Result<Clip> {
        let indices = clip_indices(video, start)?;
        match self.one(video, indices) {
            // The file holds fewer frames than it says, which is known now.
            Err(Error::OutOfRange { frames, .. }) if frames > 0 && frames < video.info().frames => {
                let fps = video.info().fps;
                self.one(video, reconstruct_indices_from(frames, fps, start)?)
            }
            outcome => outcome,
        }
    }

    /// The first frame as a clip: it is shown all along.
    ///
    /// # Errors
    /// What decoding finds wrong.
    pub fn image(&self, video: &Video) -> Result<Clip> {
        self.one(video, [0; CLIP_FRAMES])
    }

    /// Checks that a video has a clip that starts at `start` seconds.
    ///
    /// # Errors
    /// [`Error::Argument`] when `start` is not within the video.
    pub fn check_start(&self, video: &Video, start: f64) -> Result<()> {
        clip_indices(video, start).map(drop)
    }

    /// How many clips [`read_all`](Self::read_all) gives of a video.
    ///
    /// # Errors
    /// [`Error::Argument`] when `max_clips` is 0.
    pub fn count(&self, video: &Video, max_clips: usize) -> Result<usize> {
        let info = video.info();
        Ok(comprehend_indices(info.frames, info.fps, max_clips)?.len())
    }

    /// Clips of the whole video, in order, each in memory for itself: consecutive ones, or
    /// `max_clips` spread evenly over a video of more. The file is read once.
    ///
    /// `each` gets a clip's number from 0, how many there are, and the clip. It may stop the
    /// reading; the result says whether it did.
    ///
    /// # Errors
    /// [`Error::Argument`] when `max_clips` is 0, and what decoding finds wrong.
    pub fn read_all(
        &self,
        video: &Video,
        max_clips: usize,
        mut each: impl FnMut(usize, usize, Clip) -> ControlFlow<()>,
    ) -> Result<ControlFlow<()>> {
        let places: Vec<usize> = (0..CLIP_FRAMES).collect();
        self.whole(video, max_clips, &places, |number, count, frames| {
            let clip = Clip::with_sparse(frames, self.sparse.clone())?;
            Ok(each(number, count, clip))
        })
    }

    /// [`ClipReader::read_all`] of what the tokenizer sees: only sparse frames are read. `each`
    /// gets their values in [-1, 1] and the shape `[sparse frames, 3, size, size]`.
    ///
    /// # Errors
    /// Those of [`ClipReader::read_all`].
    pub fn read_all_sparse(
        &self,
        video: &Video,
        max_clips: usize,
        mut each: impl FnMut(usize, usize, (Vec<f32>, [usize; 4])) -> ControlFlow<()>,
    ) -> Result<ControlFlow<()>> {
        self.whole(video, max_clips, &self.sparse, |number, count, frames| {
            Ok(each(number, count, values(frames.iter())))
        })
    }

    /// The given clips in order, each in memory for itself, in one pass over the file: those of
    /// [`sampling::train_indices`](crate::sampling::train_indices), for example.
    ///
    /// `each` gets a clip's number from 0 and the clip, and may stop the reading.
    ///
    /// # Errors
    /// What decoding finds wrong.
    pub fn read_clips(
        &self,
        video: &Video,
        clips: &[ClipIndices],
        mut each: impl FnMut(usize, Clip) -> ControlFlow<()>,
    ) -> Result<ControlFlow<()>> {
        let rows: Vec<Vec<usize>> = clips.iter().map(|clip| clip.to_vec()).collect();
        self.rows(video, &rows, &mut |number, frames| {
            let clip = Clip::with_sparse(frames, self.sparse.clone())?;
            Ok(each(number, clip))
        })
    }

    fn one(&self, video: &Video, indices: ClipIndices) -> Result<Clip> {
        let mut clip = None;
        // It ends with the only clip.
        let _ = self.read_clips(video, &[indices], |_, read| {
            clip = Some(read);
            ControlFlow::Continue(())
        })?;
        clip.ok_or_else(|| Error::damaged(video.path(), "frames are missing"))
    }

    /// Frames at `places` of each clip of the whole video.
    fn whole(
        &self,
        video: &Video,
        max_clips: usize,
        places: &[usize],
        mut each: impl FnMut(usize, usize, Vec<Frame>) -> Result<ControlFlow<()>>,
    ) -> Result<ControlFlow<()>> {
        let info = video.info();
        let (mut frames, mut done) = (info.frames, 0);
        loop {
            let clips = comprehend_indices(frames, info.fps, max_clips)?;
            let mut rows = Vec::with_capacity(clips.len());
            for clip in clips.iter().skip(done) {
                let row = places.iter().map(|&place| clip.get(place).copied());
                let row = row.collect::<Option<Vec<_>>>().ok_or_else(|| {
                    Error::Argument(format!(
                        "{places:?} are no frames of a clip of {CLIP_FRAMES}; give places from 0 to {}",
                        CLIP_FRAMES - 1
                    ))
                })?;
                rows.push(row);
            }
            let first = done;
            let outcome = self.rows(video, &rows, &mut |number, frames| {
                done = first + number + 1;
                each(first + number, clips.len(), frames)
            });
            match outcome {
                // The file holds fewer frames than it says, which is known now: the clips that are
                // left are chosen anew.
                Err(Error::OutOfRange { frames: found, .. }) if found > 0 && found < frames => {
                    frames = found;
                }
                outcome => return outcome,
            }
        }
    }

    /// Rows of frames, each handed over when it is complete and those before it were.
    fn rows(
        &self,
        video: &Video,
        rows: &[Vec<usize>],
        each: &mut dyn FnMut(usize, Vec<Frame>) -> Result<ControlFlow<()>>,
    ) -> Result<ControlFlow<()>> {
        let indices: Vec<usize> = rows.iter().flatten().copied().collect();
        let places: Vec<(usize, usize)> = rows
            .iter()
            .enumerate()
            .flat_map(|(row, frames)| (0..frames.len()).map(move |place| (row, place)))
            .collect();
        let mut open: BTreeMap<usize, Vec<Option<Frame>>> = BTreeMap::new();
        let mut next = 0;
        let mut cut: Option<(usize, Frame)> = None;
        video.visit_until(&indices, |position, frame| {
            let (row, place) = places[position];
            // Repeats of a frame follow each other.
            let frame = match cut.take() {
                Some((index, frame)) if index == indices[position] => frame,
                _ => self.transform.frame(frame)?,
            };
            cut = Some((indices[position], frame.clone()));
            let slots = open
                .entry(row)
                .or_insert_with(|| vec![None; rows[row].len()]);
            slots[place] = Some(frame);
            while open
                .get(&next)
                .is_some_and(|slots| slots.iter().all(Option::is_some))
            {
                let frames = open.remove(&next).into_iter().flatten().flatten().collect();
                let flow = each(next, frames)?;
                next += 1;
                if flow.is_break() {
                    return Ok(flow);
                }
            }
            Ok(ControlFlow::Continue(()))
        })
    }
}

/// Values of frames of one size, in [-1, 1], and their shape `[frames, 3, height, width]`.
fn values<'a>(frames: impl ExactSizeIterator<Item = &'a Frame>) -> (Vec<f32>, [usize; 4]) {
    let mut shape = [frames.len(), 3, 0, 0];
    let mut values = Vec::new();
    for frame in frames {
        shape[2..].copy_from_slice(&[frame.height, frame.width]);
        values.extend(frame_to_chw(frame));
    }
    (values, shape)
}

/// Indices of the clip that starts `start` seconds into a video.
fn clip_indices(video: &Video, start: f64) -> Result<ClipIndices> {
    let info = video.info();
    if start > 0.0 && video.is_variable() {
        // Gaps may make the frames last longer than their number and the mean rate say.
        let last = video.time(info.frames - 1) + 1.0 / info.fps;
        reconstruct_indices_at(info.duration().max(last), start, |at| video.frame_at(at))
    } else {
        reconstruct_indices_from(info.frames, info.fps, start)
    }
}
