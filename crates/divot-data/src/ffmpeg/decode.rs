//! Decodes frames with `ffmpeg`.
//!
//! Wanted frames are read in runs. A run that starts at the beginning of the file identifies frames by
//! their number. A run that seeks identifies them by their presentation time. Only wanted frames are sent
//! through the pipe, each with its number or time. Frames that are not found after a seek are read from the
//! beginning.

use std::collections::BTreeSet;
use std::io;
use std::path::Path;

use super::matroska::Blocks;
use super::{Probe, Programs};
use crate::{Error, Frame, Result};

/// Number of pixels that are decoded in the time it takes to start the program. A gap of fewer pixels
/// between two wanted frames is decoded and dropped.
const RESTART_PIXELS: usize = 1 << 26;

/// One in this many frames is sent although it is not wanted, to show that the program is still working.
const SIGN_OF_LIFE: usize = 100;

/// Maximum number of ranges of frames in one filter expression.
const MAX_RANGES: usize = 500;

/// Number of frames at the end that may be missing. The last frame stands in for them.
const STAND_INS: usize = 16;

/// Distance before the key that careful seeks aim at, in seconds.
const MARGIN: f64 = 0.5;

/// Distance after the key that other seeks aim at, in seconds.
const PAST_KEY: f64 = 0.2;

/// The largest integer up to which `f64`, the type of FFmpeg's expressions, is exact.
const EXACT: i128 = 1 << 53;

/// Frames that are read in one run.
struct Stretch {
    /// The key to seek to, or `None` to start at the first frame.
    key: Option<usize>,
    wanted: BTreeSet<usize>,
}

/// Receives a frame and its index in the video.
type Each<'a> = &'a mut dyn FnMut(usize, Frame) -> Result<()>;

impl Programs {
    /// Decodes the wanted frames and passes them on one by one, in no particular order.
    ///
    /// # Errors
    /// [`Error::OutOfRange`] with the actual number of frames, if the stream contains fewer than `probe`
    /// states. [`Error::Ffmpeg`], and the errors of `each`.
    pub fn decode(
        &self,
        path: &Path,
        probe: &Probe,
        wanted: &BTreeSet<usize>,
        each: Each<'_>,
    ) -> Result<()> {
        let mut missing = BTreeSet::new();
        for mut stretch in probe.stretches(wanted) {
            self.run(path, probe, &mut stretch, each)?;
            missing.append(&mut stretch.wanted);
        }
        if missing.is_empty() {
            return Ok(());
        }
        let mut rest = Stretch {
            key: None,
            wanted: missing,
        };
        let (error, last) = self.run(path, probe, &mut rest, each)?;
        let Some(&first) = rest.wanted.first() else {
            return Ok(());
        };
        let (_, frames) = self.decoded(path, &probe.codec, probe.stream)?;
        // The run's own count, up to the first missing frame, is more reliable.
        let frames = frames.min(first);
        match last {
            Some(last) if frames > 0 && frames + STAND_INS >= probe.frames => rest
                .wanted
                .iter()
                .try_for_each(|&index| each(index, last.clone())),
            _ if frames > 0 && frames < probe.frames => Err(Error::OutOfRange {
                path: path.to_path_buf(),
                index: first,
                frames,
            }),
            _ => Err(error),
        }
    }

    /// Reads one stretch and removes the decoded frames from its wanted ones. Returns the error if some are
    /// missing, and the last decoded frame.
    fn run(
        &self,
        path: &Path,
        probe: &Probe,
        stretch: &mut Stretch,
        each: Each<'_>,
    ) -> Result<(Error, Option<Frame>)> {
        let size = format!("scale={}:{}", probe.width, probe.height);
        // Keep one filter graph: after a change of size, a new one would count from 0 again.
        let mut before = vec!["-reinit_filter".into(), "0".into()];
        let filter = match stretch.key {
            None => {
                let mut select = selection("n", stretch.wanted.iter().map(|&i| i as i64));
                if let Some(late) = stretch.wanted.last().filter(|&&i| probe.is_late(i)) {
                    select.push_str(&format!("+gte(n,{})", late.saturating_sub(STAND_INS)));
                }
                format!("settb=1/1000,setpts=N,select='{select}',{size}")
            }
            Some(key) => {
                let first = stretch.wanted.first().copied().unwrap_or(key);
                before.extend(
                    ["-seek_timestamp", "1", "-noaccurate_seek", "-copyts", "-ss"].map(Into::into),
                );
                before.push(format!("{:.6}", probe.seek_seconds(key, first)));
                let times = stretch.wanted.iter().map(|&i| probe.times[i]);
                let select = selection("pts", times);
                let (first, factor) = (probe.times[0], probe.factor());
                format!("select='{select}',setpts='(PTS-({first}))*{factor}',settb=1/1000,{size}")
            }
        };
        let map = format!("0:{}", probe.stream);
        let after = [
            &["-map", &map, "-vf", &filter, "-enc_time_base", "1:1000"][..],
            &["-c:v", "rawvideo", "-pix_fmt", "rgb24"],
            &["-f", "matroska", "-allow_raw_vfw", "1"],
        ]
        .concat();
        let mut run = self.ffmpeg(path, &probe.codec, &before, &after)?;

        let bytes = probe.width * probe.height * 3;
        let mut last = None;
        let mut outcome = Ok(());
        let mut blocks = Blocks::new(run.output());
        let mut read = || -> io::Result<()> {
            while !stretch.wanted.is_empty() {
                let Some((stamp, length)) = blocks.next()? else {
                    break;
                };
                if length != bytes as u64 {
                    return Err(io::Error::other(format!("a frame of {length} bytes")));
                }
                let wanted = stretch.wanted.iter().copied();
                let index = match stretch.key {
                    None => usize::try_from(stamp).ok(),
                    Some(_) => wanted
                        .take(1)
                        .find(|&i| probe.stamp(i) == i128::from(stamp)),
                };
                let is_wanted = index.filter(|i| stretch.wanted.contains(i));
                // The last picture may have to stand in for missing ones.
                let is_late =
                    stretch.key.is_none() && index.is_some_and(|i| probe.is_late(i + STAND_INS));
                if is_wanted.is_none() && !is_late {
                    blocks.skip(length)?;
                    continue;
                }
                let mut rgb = vec![0; bytes];
                blocks.read(&mut rgb)?;
                let frame = Frame {
                    width: probe.width,
                    height: probe.height,
                    rgb,
                };
                if is_late {
                    last = Some(frame.clone());
                }
                if let Some(index) = is_wanted {
                    stretch.wanted.remove(&index);
                    outcome = each(index, frame);
                    if outcome.is_err() {
                        break;
                    }
                }
            }
            Ok(())
        };
        let read = read();
        outcome?;
        let reason = match (read, stretch.wanted.first()) {
            (Err(e), _) => e.to_string(),
            (Ok(()), Some(index)) => match run.finish() {
                Ok(()) => format!("no frame {index} came out"),
                Err(_) => String::new(),
            },
            (Ok(()), None) => String::new(),
        };
        Ok((run.failed(&reason), last))
    }
}

impl Probe {
    /// Groups wanted frames into runs.
    fn stretches(&self, wanted: &BTreeSet<usize>) -> Vec<Stretch> {
        let mut stretches: Vec<Stretch> = Vec::new();
        let mut reached = 0;
        for &frame in wanted {
            let key = self.key_before(frame);
            let begin = key.unwrap_or(0);
            let skipped = begin.saturating_sub(reached);
            let pays = skipped.saturating_mul(self.width * self.height) > RESTART_PIXELS;
            match stretches.last_mut() {
                Some(stretch) if !pays => {
                    stretch.wanted.insert(frame);
                }
                _ => stretches.push(Stretch {
                    key: key.filter(|_| pays),
                    wanted: BTreeSet::from([frame]),
                }),
            }
            reached = frame + 1;
        }
        stretches
    }

    /// Returns the key at which decoding must start for a frame, or `None` for the start of the file.
    fn key_before(&self, frame: usize) -> Option<usize> {
        let seekable = i128::from(self.factor()) * self.span() < EXACT;
        let after = self.keys.partition_point(|&key| key <= frame);
        let back = if self.careful { 2 } else { 1 };
        // The first key is the start of the file.
        after
            .checked_sub(back)
            .filter(|&i| seekable && i > 0)
            .map(|i| self.keys[i])
    }

    /// Returns whether a frame is so near the end that another may have to stand in for it.
    fn is_late(&self, frame: usize) -> bool {
        frame + STAND_INS >= self.frames
    }

    fn span(&self) -> i128 {
        match self.times[..] {
            [first, .., last] => i128::from(last) - i128::from(first),
            _ => 0,
        }
    }

    /// Returns the position to seek to for a key and the first wanted frame, in seconds of the file's
    /// clock.
    fn seek_seconds(&self, key: usize, wanted: usize) -> f64 {
        let seconds = |index: usize| {
            self.times[index] as f64 * self.time_base.0 as f64 / self.time_base.1 as f64
        };
        if self.careful {
            return seconds(key) - MARGIN;
        }
        // A little after the key: ffmpeg itself goes back by 0.13 s if pictures are reordered, and some
        // containers are searched by decoding time, which is earlier.
        seconds(wanted).min(seconds(key) + PAST_KEY)
    }

    /// Returns the factor for times that makes them distinct in milliseconds.
    fn factor(&self) -> i64 {
        let (numerator, denominator) = self.time_base;
        (denominator / numerator.saturating_mul(1000) + 1).max(1)
    }

    /// Returns the time stamp in milliseconds that ffmpeg sends with a frame of a run that seeks.
    fn stamp(&self, index: usize) -> i128 {
        let (numerator, denominator) = (i128::from(self.time_base.0), i128::from(self.time_base.1));
        let time = i128::from(self.times[index]) - i128::from(self.times[0]);
        let scaled = time * i128::from(self.factor()) * numerator * 1000;
        (scaled + denominator / 2) / denominator
    }
}

/// Returns an expression that is true for frames whose `variable` is among the increasing `values`, and for
/// one in [`SIGN_OF_LIFE`] frames.
fn selection(variable: &str, values: impl Iterator<Item = i64>) -> String {
    let mut ranges: Vec<(i64, i64)> = Vec::new();
    for value in values {
        match ranges.last_mut() {
            Some((_, end)) if *end + 1 == value => *end = value,
            _ => ranges.push((value, value)),
        }
    }
    if ranges.len() > MAX_RANGES {
        ranges = vec![(ranges[0].0, ranges[ranges.len() - 1].1)];
    }
    let terms: Vec<String> = ranges
        .iter()
        .map(|(first, last)| format!("between({variable},{first},{last})"))
        .collect();
    format!("{}+not(mod(n,{SIGN_OF_LIFE}))", sum(&terms))
}

/// Writes a sum as a balanced tree. FFmpeg refuses expressions that are nested more than 100 deep, and it
/// nests a plain sum once per term.
fn sum(terms: &[String]) -> String {
    match terms {
        [] => "0".into(),
        [term] => term.clone(),
        terms => {
            let (left, right) = terms.split_at(terms.len() / 2);
            format!("({}+{})", sum(left), sum(right))
        }
    }
}
