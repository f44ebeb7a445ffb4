//! Decoding the H.264 of an MP4 file, frame by frame.

use std::collections::BTreeSet;
use std::fs::File;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use rust_h264::decoder::OrderedDecoder;
use rust_h264::error::DecodeError;
use rust_h264::nal::{
    NalUnit, NalUnitType, SpsInfo, parse_avcc, parse_avcc_config, parse_sps_info,
};

use crate::mp4::{Sample, Track, read_range};
use crate::yuv::{Colour, Planes};
use crate::{Error, Frame, Result};

/// A picture of more pixels than this is a damaged header, not a video: level 6.2 ends at 36 M.
const MAX_PIXELS: u64 = 1 << 26;

/// Why decoding ended early.
pub(crate) enum Stop {
    /// The stream uses a tool that this decoder lacks; another decoder may do.
    Unsupported,
    Failed(Error),
}

impl From<Error> for Stop {
    fn from(error: Error) -> Self {
        Self::Failed(error)
    }
}

/// Display size in pixels, before rotation; `None` when only another decoder can tell.
pub(crate) fn size(track: &Track) -> Option<(usize, usize)> {
    let info = sps_info(track)?;
    let supported = info.chroma_format <= 2
        && matches!(info.bit_depth_luma, 8 | 10)
        && info.bit_depth_luma == info.bit_depth_chroma
        && info.width > 0
        && info.height > 0;
    supported.then_some((info.width as usize, info.height as usize))
}

fn sps_info(track: &Track) -> Option<SpsInfo> {
    let config = parse_avcc_config(track.avcc.as_deref()?).ok()?;
    parse_sps_info(config.sps_nals.first()?).ok()
}

/// Decodes the frames `wanted`, by display index, and hands over each as soon as it is there.
///
/// Decoding begins at the nearest sample before a wanted frame at which it can, so far-apart
/// frames cost what lies between each and that sample, and no frame is kept.
pub(crate) fn decode(
    path: &Path,
    file: &mut File,
    track: &Track,
    wanted: &BTreeSet<usize>,
    each: &mut dyn FnMut(usize, Frame) -> Result<()>,
) -> Result<(), Stop> {
    let length = file.metadata().map_err(|e| Error::read(path, e))?.len();
    for (first, last, wanted) in stretches(&track.samples, wanted) {
        let mut missing = wanted;
        let mut stretch = Stretch {
            path,
            file,
            track,
            length,
            decoder: OrderedDecoder::new(),
            colour: Colour::BT601,
        };
        stretch.run(first, last, &mut missing, each)?;
        if let Some(frame) = missing.first() {
            let what = format!("frame {frame} is missing from the stream");
            return Err(Error::damaged(path, what).into());
        }
    }
    Ok(())
}

/// Groups wanted frames by where their decoding begins: first and last sample, and the frames.
fn stretches(samples: &[Sample], wanted: &BTreeSet<usize>) -> Vec<(usize, usize, BTreeSet<usize>)> {
    let mut place = vec![None; samples.len()];
    for (i, sample) in samples.iter().enumerate() {
        if let Some(display) = sample.display {
            place[display] = Some(i);
        }
    }
    let mut stretches: Vec<(usize, usize, BTreeSet<usize>)> = Vec::new();
    for &frame in wanted {
        let Some(at) = place.get(frame).copied().flatten() else {
            continue;
        };
        // A sync sample shown after the frame would not do: what precedes it on the screen may
        // follow it in the file and refer to what came before it.
        let first = (0..=at)
            .rev()
            .find(|&i| samples[i].sync && samples[i].display.is_none_or(|d| d <= frame))
            .unwrap_or(0);
        match stretches.last_mut() {
            Some((start, last, frames)) if *start == first => {
                *last = at.max(*last);
                frames.insert(frame);
            }
            _ => stretches.push((first, at, BTreeSet::from([frame]))),
        }
    }
    stretches
}

/// One run of the decoder over consecutive samples.
struct Stretch<'a> {
    path: &'a Path,
    file: &'a mut File,
    track: &'a Track,
    length: u64,
    decoder: OrderedDecoder<Option<usize>>,
    colour: Colour,
}

impl Stretch<'_> {
    fn run(
        &mut self,
        first: usize,
        last: usize,
        missing: &mut BTreeSet<usize>,
        each: &mut dyn FnMut(usize, Frame) -> Result<()>,
    ) -> Result<(), Stop> {
        let config = self.track.avcc.as_deref().unwrap_or_default();
        let config = parse_avcc_config(config).map_err(|e| Error::damaged(self.path, e))?;
        for nal in config.sps_nals.iter().chain(&config.pps_nals) {
            self.feed(nal, None, missing, each)?;
        }
        for sample in &self.track.samples[first..=last] {
            if sample.offset.saturating_add(sample.size) > self.length {
                return Err(Error::damaged(
                    self.path,
                    format!(
                        "the file ends at byte {}, within frame {} of {}",
                        self.length,
                        sample.display.unwrap_or(0),
                        self.track.frames
                    ),
                )
                .into());
            }
            let data = read_range(self.path, self.file, sample.offset, sample.size)?;
            let nals = parse_avcc(&data, config.length_size);
            let is_wanted = sample.display.is_some_and(|d| missing.contains(&d));
            // Nothing refers to such a picture, so unless it is wanted it need not be decoded.
            let skip = !is_wanted
                && nals
                    .iter()
                    .all(|nal| !is_slice(nal) || nal.nal_ref_idc == 0);
            for nal in nals.iter().filter(|nal| !(skip && is_slice(nal))) {
                self.feed(nal, sample.display, missing, each)?;
            }
        }
        let decoder = &mut self.decoder;
        let rest = catch_unwind(AssertUnwindSafe(|| decoder.flush_with_meta()))
            .map_err(|_| self.broken(missing, "the decoder gave up"))?;
        for (picture, display) in rest {
            self.deliver(picture, display, missing, each)?;
        }
        Ok(())
    }

    fn feed(
        &mut self,
        nal: &NalUnit<'_>,
        display: Option<usize>,
        missing: &mut BTreeSet<usize>,
        each: &mut dyn FnMut(usize, Frame) -> Result<()>,
    ) -> Result<(), Stop> {
        match nal.nal_unit_type {
            NalUnitType::Sps => {
                let info = parse_sps_info(nal).map_err(|e| self.broken(missing, &e.to_string()))?;
                if u64::from(info.coded_width) * u64::from(info.coded_height) > MAX_PIXELS {
                    return Err(self.broken(missing, "an impossible picture size").into());
                }
                self.colour = match (info.matrix, self.track.colour) {
                    // 2 is "unspecified".
                    (2, Some((matrix, full_range))) => Colour {
                        matrix,
                        full_range: full_range || info.full_range,
                    },
                    (matrix, _) => Colour {
                        matrix: matrix.into(),
                        full_range: info.full_range,
                    },
                };
            }
            NalUnitType::Pps => {}
            _ if is_slice(nal) => {}
            // Delimiters, filler and side information change no picture.
            _ => return Ok(()),
        }
        let decoder = &mut self.decoder;
        // The decoder is meant never to panic on damaged data. Should it, a user still gets an
        // error; the decoder is not used again.
        let decoded = catch_unwind(AssertUnwindSafe(|| {
            decoder.decode_nal_with_meta(nal, display)
        }));
        match decoded {
            Ok(Ok(pictures)) => {
                for (picture, display) in pictures {
                    self.deliver(picture, display, missing, each)?;
                }
                Ok(())
            }
            Ok(Err(DecodeError::Unsupported(_))) => Err(Stop::Unsupported),
            Ok(Err(e)) => Err(self.broken(missing, &e.to_string()).into()),
            Err(_) => Err(self.broken(missing, "the decoder gave up").into()),
        }
    }

    /// Passes a picture on if it is wanted.
    fn deliver(
        &self,
        picture: rust_h264::decoder::Frame,
        display: Option<usize>,
        missing: &mut BTreeSet<usize>,
        each: &mut dyn FnMut(usize, Frame) -> Result<()>,
    ) -> Result<()> {
        let Some(display) = display.filter(|d| missing.remove(d)) else {
            return Ok(());
        };
        let planes = Planes {
            width: picture.width as usize,
            height: picture.height as usize,
            y: &picture.y,
            u: &picture.u,
            v: &picture.v,
            chroma_width: picture.chroma_width() as usize,
            chroma_height: picture.chroma_height() as usize,
            bit_depth: picture.bit_depth,
        };
        let frame = planes
            .to_rgb(self.colour)
            .ok_or_else(|| Error::damaged(self.path, format!("frame {display} has no picture")))?;
        let turns = self.track.quarter_turns;
        each(
            display,
            if turns == 0 {
                frame
            } else {
                frame.rotated(turns)
            },
        )
    }

    fn broken(&self, missing: &BTreeSet<usize>, what: &str) -> Error {
        let frame = missing.first().copied().unwrap_or(0);
        Error::damaged(
            self.path,
            format!("decoding towards frame {frame} failed ({what})"),
        )
    }
}

fn is_slice(nal: &NalUnit<'_>) -> bool {
    matches!(
        nal.nal_unit_type,
        NalUnitType::Slice | NalUnitType::SliceIdr
    )
}
