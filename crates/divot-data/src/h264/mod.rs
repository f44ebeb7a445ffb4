//! Decodes the H.264 track of an MP4 file, frame by frame.

mod decoder;
mod picture_order;
mod references;
mod run;
mod sampler;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use rust_h264::nal::{NalUnit, NalUnitType, SpsInfo, parse_avcc_config, parse_sps_info};
use rust_h264::sps::parse_sps;

use self::decoder::Decoder;
use self::run::Run;
use self::sampler::Sampler;
use crate::frame::Orientation;
use crate::mp4::Track;
use crate::{DEFAULT_FPS, Error, Frame, Result};

/// Why decoding stopped early.
pub(crate) enum Stop {
    /// The stream uses a feature that this decoder lacks. Another decoder may support it.
    Unsupported,
    Failed(Error),
}

impl From<Error> for Stop {
    fn from(error: Error) -> Self {
        Self::Failed(error)
    }
}

/// How pictures are decoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Decoding {
    /// By the fast decoder, as far as it can. Frames come in decoding order.
    Fast,
    /// In the calling thread. Frames come in display order.
    Single,
    /// In a thread for each picture. Frames come in display order.
    Parallel,
}

/// The H.264 track of a file.
#[derive(Debug)]
pub(crate) struct Stream {
    track: Track,
    orientation: Orientation,
    /// Stored width and height in pixels.
    stored: (usize, usize),
    /// Maximum number of pixels of a picture.
    max_pixels: u64,
    /// Frames per second.
    pub fps: f64,
    /// Whether the fast decoder has stopped.
    refused: AtomicBool,
}

impl Stream {
    /// Prepares a track. If only another decoder can decode it, the inner error is the track with a name
    /// for it.
    ///
    /// # Errors
    /// The outer error: [`Error::TooLarge`], or an error of reading.
    pub fn new(
        path: &Path,
        file: &mut File,
        mut track: Track,
        max_pixels: u64,
    ) -> Result<Result<Self, &'static str>> {
        let Some(stored) = size(&track) else {
            return Ok(Err("h264 of an unusual profile"));
        };
        Error::check_size(path, stored.0 as u64, stored.1 as u64, max_pixels)?;
        let Some(orientation) = track.orientation else {
            return Ok(Err("h264 that is turned by an odd angle"));
        };
        let mut sampler = Sampler::new(path, file, &track)?;
        if !track.ordered {
            if let Some(keys) = sampler.keys()? {
                track.order_by(&keys);
            }
            sampler = Sampler::new(path, file, &track)?;
        }
        if !sampler.begins_whole()? {
            return Ok(Err("h264 that begins within a group of pictures"));
        }
        let fps = track
            .fps
            .or_else(|| stream_rate(&track))
            .unwrap_or(DEFAULT_FPS);
        Ok(Ok(Self {
            track,
            orientation,
            stored,
            max_pixels,
            fps,
            refused: AtomicBool::new(false),
        }))
    }

    /// Returns the number of frames.
    pub fn frames(&self) -> usize {
        self.track.shown.len()
    }

    /// Returns the width and height in pixels, upright.
    pub fn size(&self) -> (usize, usize) {
        self.orientation.size(self.stored)
    }

    /// Returns the time of each frame in seconds from the first, or `None` if the file has no times.
    pub fn times(&self) -> Option<Vec<f64>> {
        self.track.fps.map(|_| self.track.times.clone())
    }

    /// Decodes the `wanted` frames, given by their index in display order. Removes each from the set and
    /// passes it on as soon as it is decoded.
    ///
    /// Decoding starts at the nearest possible sample before a wanted frame and goes through the file once.
    /// No frame is kept.
    pub fn decode(
        &self,
        path: &Path,
        file: &mut File,
        decoding: Decoding,
        wanted: &mut BTreeSet<usize>,
        each: &mut dyn FnMut(usize, Frame) -> Result<()>,
    ) -> Result<(), Stop> {
        // An edit list may show a sample more than once.
        let mut places: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
        for &frame in wanted.iter() {
            if let Some(&sample) = self.track.shown.get(frame) {
                places.entry(sample).or_default().push(frame);
            }
        }
        let mut sampler = Sampler::new(path, file, &self.track)?;
        let others = match decoding {
            Decoding::Fast => Decoding::Single,
            others => others,
        };
        for (first, last) in sampler.stretches(places.keys().copied())? {
            let mut run = |decoder| {
                Run::new(self, path, decoder, &mut places, wanted, each).run(
                    &mut sampler,
                    first,
                    last,
                )
            };
            if decoding == Decoding::Fast && !self.refused.load(Ordering::Relaxed) {
                match run(Decoder::new(Decoding::Fast)) {
                    Err(Stop::Unsupported) => self.refused.store(true, Ordering::Relaxed),
                    done => {
                        done?;
                        continue;
                    }
                }
            }
            run(Decoder::new(others))?;
        }
        match wanted.first() {
            None => Ok(()),
            Some(frame) => {
                let what = format!("frame {frame} is missing from the stream");
                Err(Error::damaged(path, what).into())
            }
        }
    }
}

/// Returns the display size in pixels before rotation, or `None` if only another decoder can tell.
fn size(track: &Track) -> Option<(usize, usize)> {
    let mut sizes = track.configs.iter().map(|config| {
        let config = parse_avcc_config(config).ok()?;
        let info = parse_sps_info(config.sps_nals.first()?).ok()?;
        is_supported(&info).then_some((info.width as usize, info.height as usize))
    });
    let first = sizes.next()??;
    sizes.all(|size| size == Some(first)).then_some(first)
}

fn is_supported(info: &SpsInfo) -> bool {
    info.chroma_format <= 2
        && matches!(info.bit_depth_luma, 8 | 10)
        && info.bit_depth_luma == info.bit_depth_chroma
        && info.width > 0
        && info.height > 0
}

/// Returns the frame rate in the stream's own header, in frames per second.
fn stream_rate(track: &Track) -> Option<f64> {
    let config = parse_avcc_config(track.configs.first()?).ok()?;
    let sps = parse_sps(&config.sps_nals.first()?.rbsp).ok()?;
    let (numerator, denominator) = sps.frame_rate()?;
    let fps = f64::from(numerator) / f64::from(denominator);
    (fps.is_finite() && fps > 0.0).then_some(fps)
}

/// Returns whether the unit is more than a delimiter, filler data or supplemental information.
fn changes_pictures(nal: &NalUnit<'_>) -> bool {
    is_slice(nal) || matches!(nal.nal_unit_type, NalUnitType::Sps | NalUnitType::Pps)
}

fn is_slice(nal: &NalUnit<'_>) -> bool {
    matches!(
        nal.nal_unit_type,
        NalUnitType::Slice | NalUnitType::SliceIdr
    )
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;
    use crate::mp4::read_track;

    /// Returns whether the fast decoder takes a video that FFmpeg makes with these options. Returns `None` without
    /// FFmpeg.
    fn is_fast(options: &str) -> Option<bool> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("video.mp4");
        let made = Command::new("ffmpeg")
            .args([
                "-v",
                "error",
                "-f",
                "lavfi",
                "-i",
                "testsrc2=s=160x96:r=25:d=2",
            ])
            .args(["-pix_fmt", "yuv420p", "-c:v", "libx264"])
            .args(options.split_whitespace())
            .arg(&path)
            .status();
        if !made.is_ok_and(|status| status.success()) {
            println!("skipped: no ffmpeg with x264");
            return None;
        }
        let mut file = File::open(&path).unwrap();
        let track = read_track(&path, &mut file).unwrap();
        let stream = Stream::new(&path, &mut file, track, 1 << 20)
            .unwrap()
            .unwrap();
        let mut wanted: BTreeSet<usize> = (0..stream.frames()).collect();
        let places = stream.track.shown.iter().zip(0..);
        let mut places = places
            .map(|(&sample, frame)| (sample, vec![frame]))
            .collect();
        let last = stream.track.samples.len() - 1;
        let mut sampler = Sampler::new(&path, &mut file, &stream.track).unwrap();
        let decoder = Decoder::new(Decoding::Fast);
        let each = &mut |_, _| Ok(());
        let run = Run::new(&stream, &path, decoder, &mut places, &mut wanted, each);
        match run.run(&mut sampler, 0, last) {
            Ok(()) => Some(true),
            Err(Stop::Unsupported) => Some(false),
            Err(Stop::Failed(error)) => panic!("{error}"),
        }
    }

    #[test]
    fn what_the_fast_decoder_takes() {
        for (options, expected) in [
            ("", true),
            ("-bf 0 -profile:v baseline", true),
            (
                "-bf 8 -refs 8 -x264-params b-pyramid=normal:direct=spatial",
                true,
            ),
            ("-bf 3 -coder 0", true),
            ("-x264-params slices=4", false),
            ("-bf 3 -x264-params direct=temporal", false),
            ("-x264-params interlaced=1", false),
        ] {
            let Some(found) = is_fast(options) else {
                return;
            };
            assert_eq!(found, expected, "{options}");
        }
    }
}
