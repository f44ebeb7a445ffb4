//! The writer of MP4 files with H.264 video.

use std::io::Write;
use std::path::{Path, PathBuf};

use rusty_h264::{Encoder, EncoderConfig, Preset, YuvFrame};

use crate::mux::{self, TrackBoxes};
use crate::write::{atomically, common_size};
use crate::{Error, Frame, Result, yuv};

/// Quantiser of the H.264 writer: visually lossless.
const QUANTISER: u8 = 10;

/// Number of frames from one keyframe to the next.
const KEYFRAME_INTERVAL: u32 = 48;

/// Writes an MP4 file with H.264 video.
///
/// The video is visually lossless, in the High profile, with 4:2:0 chroma. Its colours are BT.601 in the
/// narrow range, and labelled as such. The index comes before the frames.
///
/// `fps` is the frame rate in frames per second, over 0 and at most 1000. 4:2:0 video has even sides. An
/// odd last row or column is left out. A side of 1 is doubled.
///
/// # Errors
/// [`Error::Argument`] for no frames, frames of different sizes or over 16384 pixels a side, or a
/// bad frame rate; [`Error::Write`] when the target cannot be written.
pub fn write_mp4(path: impl AsRef<Path>, frames: &[Frame], fps: f64) -> Result<()> {
    let (tick, timescale) = time_base(fps)?;
    write_mp4_timed(path.as_ref(), frames, timescale, &vec![tick; frames.len()])
}

/// Like [`write_mp4`], with a duration for each frame, in ticks.
fn write_mp4_timed(path: &Path, frames: &[Frame], timescale: u32, durations: &[u32]) -> Result<()> {
    let stream = encode(frames, timescale, durations)?;
    write_stream(path, &stream, timescale, durations)
}

fn write_stream(path: &Path, stream: &Stream, timescale: u32, durations: &[u32]) -> Result<()> {
    let head = mux::head(&TrackBoxes {
        width: stream.width as u16,
        height: stream.height as u16,
        timescale,
        durations,
        syncs: &stream.syncs,
        sizes: &stream
            .samples
            .iter()
            .map(|s| s.len() as u32)
            .collect::<Vec<_>>(),
        sps: &stream.sps,
        pps: &stream.pps,
    })
    .ok_or_else(|| {
        Error::Argument(format!(
            "{}: the video is over 4 GiB; write it in parts",
            path.display()
        ))
    })?;
    atomically(path, |file| {
        file.write_all(&head)?;
        stream
            .samples
            .iter()
            .try_for_each(|sample| file.write_all(sample))
    })
}

/// Returns `(tick, timescale)`. A frame is shown for `tick / timescale` seconds.
fn time_base(fps: f64) -> Result<(u32, u32)> {
    if !(fps > 0.0 && fps <= 1000.0) {
        return Err(Error::Argument(format!(
            "{fps} is no frame rate for a video; give a number over 0 and at most 1000"
        )));
    }
    // Exact for whole rates, and to a thousandth for others. Rates below 1 need finer ticks.
    Ok(if fps >= 1.0 {
        (1000, (fps * 1000.0).round() as u32)
    } else {
        ((1000.0 / fps).round().min(1e9) as u32, 1000)
    })
}

/// Writes an MP4 file frame by frame: memory holds the compressed video, and one frame.
///
/// The file is what [`write_mp4`] writes. It comes into being with [`finish`](Self::finish).
pub struct Mp4Writer {
    path: PathBuf,
    tick: u32,
    timescale: u32,
    encoding: Option<Encoding>,
}

impl Mp4Writer {
    /// Begins a file. `fps` is the frame rate in frames per second, over 0 and at most 1000.
    ///
    /// # Errors
    /// [`Error::Argument`] for another frame rate.
    pub fn new(path: impl Into<PathBuf>, fps: f64) -> Result<Self> {
        let (tick, timescale) = time_base(fps)?;
        Ok(Self {
            path: path.into(),
            tick,
            timescale,
            encoding: None,
        })
    }

    /// Adds a frame, of the size of the first one.
    ///
    /// # Errors
    /// [`Error::Argument`] for another size, or over 16384 pixels a side.
    pub fn push(&mut self, frame: &Frame) -> Result<()> {
        let size = (frame.width, frame.height);
        let encoding = match &mut self.encoding {
            Some(encoding) => encoding,
            none => none.insert(Encoding::new(size, self.timescale, self.tick)?),
        };
        if encoding.frame_size != size {
            return Err(Error::Argument(format!(
                "{}: a frame of {}x{} in a video of {}x{}; resize the frames to one size",
                self.path.display(),
                size.0,
                size.1,
                encoding.frame_size.0,
                encoding.frame_size.1
            )));
        }
        encoding.push(frame)
    }

    /// Writes the file.
    ///
    /// # Errors
    /// [`Error::Argument`] for no frames; [`Error::Write`] when the file cannot be written.
    pub fn finish(self) -> Result<()> {
        let stream = match self.encoding {
            Some(encoding) => encoding.stream,
            None => return common_size(&[]).map(drop),
        };
        let durations = vec![self.tick; stream.samples.len()];
        write_stream(&self.path, &stream, self.timescale, &durations)
    }
}

/// An encoded video: one sample per frame, in display order.
#[derive(Default)]
struct Stream {
    width: usize,
    height: usize,
    sps: Vec<u8>,
    pps: Vec<u8>,
    samples: Vec<Vec<u8>>,
    syncs: Vec<bool>,
}

/// A video that is being encoded.
struct Encoding {
    encoder: Encoder,
    frame_size: (usize, usize),
    timescale: u32,
    tick: u32,
    references: u32,
    stream: Stream,
}

impl Encoding {
    fn new(frame_size: (usize, usize), timescale: u32, tick: u32) -> Result<Self> {
        let (width, height) = frame_size;
        if width.max(height) > 16384 {
            return Err(Error::Argument(format!(
                "frames of {width}x{height} are too large for H.264; resize them to at most 16384 a side"
            )));
        }
        let even = |side: usize| (side & !1).max(2);
        let (width, height) = (even(width), even(height));
        let mut config = EncoderConfig::new(width, height);
        config.preset = Preset::Balanced;
        config.qp = QUANTISER;
        config.gop_size = KEYFRAME_INTERVAL;
        config.framerate = timescale as f32 / tick as f32;
        // One frame in, one sample out: no lookahead.
        config.mbtree = false;
        config.scenecut = 0;
        config.bframes = 0;
        let references = config.num_ref_frames;
        Ok(Self {
            encoder: Encoder::new(config).map_err(|e| unfit(width, height, &e))?,
            frame_size,
            timescale,
            tick,
            references,
            stream: Stream {
                width,
                height,
                ..Stream::default()
            },
        })
    }

    fn push(&mut self, frame: &Frame) -> Result<()> {
        let (width, height, [y, u, v]) = yuv::from_rgb(frame);
        let picture = YuvFrame {
            width,
            height,
            y,
            u,
            v,
        };
        let unit = self.encoder.try_encode(&picture);
        let unit = unit.map_err(|e| unfit(width, height, &e))?;
        let stream = &mut self.stream;
        let mut sample = Vec::with_capacity(unit.len());
        let mut sync = false;
        for nal in mux::nal_units(&unit) {
            match nal[0] & 31 {
                7 => {
                    let (references, tick) = (self.references, self.tick);
                    stream.sps = mux::with_usability_info(nal, references, tick, self.timescale);
                }
                8 => stream.pps = nal.to_vec(),
                kind => {
                    sync |= kind == 5;
                    sample.extend((nal.len() as u32).to_be_bytes());
                    sample.extend(nal);
                }
            }
        }
        stream.samples.push(sample);
        stream.syncs.push(sync);
        Ok(())
    }
}

fn unfit(width: usize, height: usize, error: &dyn std::fmt::Display) -> Error {
    Error::Argument(format!(
        "frames of {width}x{height} cannot be encoded ({error}); resize them"
    ))
}

fn encode(frames: &[Frame], timescale: u32, durations: &[u32]) -> Result<Stream> {
    let tick = durations.first().copied().unwrap_or(1).max(1);
    let mut encoding = Encoding::new(common_size(frames)?, timescale, tick)?;
    for frame in frames {
        encoding.push(frame)?;
    }
    Ok(encoding.stream)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::Video;

    fn frames(count: usize) -> Vec<Frame> {
        (0..count)
            .map(|i| Frame::filled(32, 32, [20 * i as u8, 100, 50]).unwrap())
            .collect()
    }

    #[test]
    fn a_variable_rate_is_averaged() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("variable.mp4");
        // Ten frames in 4 seconds.
        let durations = [100, 100, 700, 50, 50, 1000, 500, 500, 500, 500];
        write_mp4_timed(&path, &frames(10), 1000, &durations).unwrap();
        let video = Video::open(&path).unwrap();
        assert_eq!((video.info().frames, video.info().fps), (10, 2.5));
        let reds: Vec<_> = video
            .frames(&[0, 3, 9])
            .unwrap()
            .iter()
            .map(|f| f.mean_rgb()[0].round())
            .collect();
        assert!(reds[0] < 5.0 && (reds[1] - 60.0).abs() < 5.0 && (reds[2] - 180.0).abs() < 5.0);
    }

    #[test]
    fn an_index_without_samples_is_an_empty_video() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("empty.mp4");
        let stream = encode(&frames(1), 8000, &[1000]).unwrap();
        let head = mux::head(&TrackBoxes {
            width: 32,
            height: 32,
            timescale: 8000,
            durations: &[],
            syncs: &[],
            sizes: &[],
            sps: &stream.sps,
            pps: &stream.pps,
        });
        fs::write(&path, head.unwrap()).unwrap();
        let error = Video::open(&path).unwrap_err();
        assert!(matches!(error, Error::Empty { .. }), "{error}");
    }
}
