//! Describes a video with `ffprobe`: the number of its stream, and the time of each picture.

use std::collections::HashSet;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;

use super::Programs;
use super::run::refused_size;
use crate::timeline::is_plausible;
use crate::{DEFAULT_FPS, Error, Result};

/// The video stream of a file.
#[derive(Debug, Clone)]
pub(crate) struct Probe {
    pub codec: String,
    /// The stream's number in the file.
    pub stream: usize,
    /// Number of pictures.
    pub frames: usize,
    pub fps: f64,
    /// Size in pixels, upright.
    pub width: usize,
    pub height: usize,
    /// Presentation times in units of `time_base`, increasing, one for each picture. Empty if unknown.
    pub times: Vec<i64>,
    /// The unit of `times` in seconds, as a fraction.
    pub time_base: (i64, i64),
    /// Pictures at which decoding can start, if seeking is possible.
    pub keys: Vec<usize>,
    /// Whether seeks must start one key earlier than needed, and a little before it.
    pub careful: bool,
}

/// A line of `ffprobe`'s compact output: the name of a section, and keys with values.
struct Line<'a>(&'a str);

impl<'a> Line<'a> {
    fn is(&self, section: &str) -> bool {
        self.0
            .strip_prefix(section)
            .is_some_and(|rest| rest.starts_with('|'))
    }

    /// Returns the value of a key, or `None` if it is unknown.
    fn value(&self, key: &str) -> Option<&'a str> {
        self.0
            .split('|')
            .filter_map(|field| field.split_once('='))
            .find(|&(k, v)| k == key && v != "N/A")
            .map(|(_, v)| v.trim())
    }

    fn number<T: std::str::FromStr>(&self, key: &str) -> Option<T> {
        self.value(key)?.parse().ok()
    }
}

/// A packet of a stream.
struct Packet {
    stream: usize,
    time: Option<i64>,
    duration: i64,
    key: bool,
    /// Whether the picture is decoded but hidden by an edit list.
    hidden: bool,
    /// Whether the packet is known to be damaged.
    corrupt: bool,
}

impl Programs {
    /// Describes the video. `codec` is the best known name of the codec, for error messages.
    ///
    /// Pictures are counted by packets if each packet is one picture. Otherwise they are counted by
    /// decoding.
    pub fn probe(&self, path: &Path, codec: &str) -> Result<Probe> {
        let entries = "packet=stream_index,pts,duration,flags\
            :stream=index,codec_name,width,height,avg_frame_rate,r_frame_rate,time_base\
            :stream_disposition=attached_pic,timed_thumbnails\
            :stream_tags=rotate:stream_side_data=rotation:format=format_name";
        let mut packets = Vec::new();
        let mut streams = Vec::new();
        let mut format = String::new();
        let arguments = [
            "-select_streams",
            "v",
            "-show_entries",
            entries,
            "-of",
            "compact",
        ];
        let messages = self.lines(path, codec, &arguments, |text| {
            let line = Line(text);
            if line.is("packet") {
                let flags = line.value("flags").unwrap_or_default();
                packets.push(Packet {
                    stream: line.number("stream_index").unwrap_or(0),
                    time: line.number("pts"),
                    duration: line.number("duration").unwrap_or(0),
                    key: flags.contains('K'),
                    hidden: flags.contains('D'),
                    corrupt: flags.contains('C'),
                });
            } else if line.is("stream") {
                streams.push(text.to_owned());
            } else if line.is("format") {
                format = line.value("format_name").unwrap_or_default().to_owned();
            }
        })?;

        let empty = || Error::Empty {
            path: path.to_path_buf(),
        };
        let is_set = |stream: &Line<'_>, key| stream.value(key) == Some("1");
        let stream = streams.iter().map(|s| Line(s)).find(|s| {
            !is_set(s, "disposition:attached_pic") && !is_set(s, "disposition:timed_thumbnails")
        });
        let Some(stream) = stream else {
            return Err(if streams.is_empty() {
                empty()
            } else {
                Error::CoverOnly {
                    path: path.to_path_buf(),
                }
            });
        };
        let index = stream.number("index").unwrap_or(0);
        packets.retain(|p| p.stream == index);
        let (mut width, mut height) = (
            stream.number("width").unwrap_or(0),
            stream.number("height").unwrap_or(0),
        );
        let claimed = if width == 0 || height == 0 {
            refused_size(&messages)
        } else {
            Some((width as u64, height as u64))
        };
        if let Some((width, height)) = claimed {
            Error::check_size(path, width, height, self.max_pixels)?;
        }
        if width == 0 || height == 0 || packets.is_empty() {
            return Err(empty());
        }
        // ffmpeg rotates the frames itself.
        let degrees = stream.number("rotation").or(stream.number("tag:rotate"));
        if degrees.is_some_and(|d: f64| d.abs().round() as i64 % 180 == 90) {
            (width, height) = (height, width);
        }

        let codec = stream.value("codec_name").unwrap_or(codec).to_owned();
        let time_base = stream
            .value("time_base")
            .and_then(|t| t.split_once('/'))
            .and_then(|(n, d)| Some((n.parse().ok()?, d.parse().ok()?)))
            .filter(|&(n, d): &(i64, i64)| n > 0 && d > 0);
        let last = packets.iter().map(|p| p.duration).next_back().unwrap_or(0);
        let mut times = by_packets(&packets, &format);
        if let Some(counted) = &mut times
            && matches!(codec.as_str(), "vp8" | "vp9")
        {
            // Invisible pictures of these codecs may have their own packets.
            let shown = self.shown(path, &codec, index)?.unwrap_or_default();
            counted.retain(|time| shown.contains(time));
            if counted.len() != shown.len() {
                times = None;
            }
        }
        let by_packets = times.is_some() && time_base.is_some();
        let (times, frames) = match times {
            Some(times) => {
                let frames = times.len();
                (times, frames)
            }
            None => self.decoded(path, &codec, index)?,
        };
        if frames == 0 {
            return Err(empty());
        }
        // If an edit list hides pictures in the middle, times do not determine positions.
        let shown_from = packets.iter().position(|p| !p.hidden).unwrap_or(0);
        let cut = packets[shown_from..].iter().any(|p| p.hidden);
        let keys = if by_packets && !cut {
            let keys = packets.iter().filter(|p| p.key && !p.hidden);
            let keys = keys.filter_map(|p| times.binary_search(&p.time?).ok());
            let keys: std::collections::BTreeSet<_> = keys.collect();
            keys.into_iter().collect()
        } else {
            Vec::new()
        };
        let rate = |key| stream.value(key).and_then(ratio);
        let mut probe = Probe {
            careful: codec == "h264" || !is_indexed(&format),
            codec,
            stream: index,
            frames,
            fps: 0.0,
            width,
            height,
            times,
            time_base: time_base.unwrap_or((1, 1)),
            keys,
        };
        let measured = probe.measured_fps(last);
        let fps = match (rate("avg_frame_rate"), measured) {
            // A rate that does not match the times was guessed from the first pictures.
            (Some(fps), Some(measured)) if (fps / measured - 1.0).abs() > 0.05 && frames > 2 => {
                Some(measured)
            }
            (fps, measured) => fps.or(measured),
        };
        probe.fps = fps.or(rate("r_frame_rate")).unwrap_or(DEFAULT_FPS);
        Ok(probe)
    }

    /// Decodes all pictures. Returns their times, if all have one, and their number.
    pub fn decoded(&self, path: &Path, codec: &str, stream: usize) -> Result<(Vec<i64>, usize)> {
        let (mut times, mut frames) = (Vec::new(), 0);
        let stream = stream.to_string();
        let entries = "frame=best_effort_timestamp";
        let arguments = [
            "-select_streams",
            &stream,
            "-show_entries",
            entries,
            "-of",
            "compact",
        ];
        self.lines(path, codec, &arguments, |text| {
            let line = Line(text);
            if line.is("frame") || text == "frame" {
                frames += 1;
                times.extend(line.number::<i64>("best_effort_timestamp"));
            }
        })?;
        if times.len() != frames || !times.is_sorted_by(|a, b| a < b) {
            times.clear();
        }
        Ok((times, frames))
    }

    /// Returns the times of the packets of VP8 or VP9 that show a picture, or `None` if they are unknown.
    fn shown(&self, path: &Path, codec: &str, stream: usize) -> Result<Option<HashSet<i64>>> {
        let map = format!("0:{stream}");
        let before = ["-copyts".to_owned()];
        // The IVF writer joins invisible pictures of VP9 to the next visible one.
        let after = [
            "-map",
            &map,
            "-c",
            "copy",
            "-avoid_negative_ts",
            "disabled",
            "-f",
            "ivf",
        ];
        let mut run = self.ffmpeg(path, codec, &before, &after)?;
        let mut read = || -> std::io::Result<HashSet<i64>> {
            let pipe = run.output();
            let mut shown = HashSet::new();
            let mut header = [0; 32];
            pipe.read_exact(&mut header)?;
            let mut frame = [0; 13];
            loop {
                match pipe.read_exact(&mut frame) {
                    Ok(()) => {}
                    Err(e) if e.kind() == std::io::ErrorKind::UnexpectedEof => return Ok(shown),
                    Err(e) => return Err(e),
                }
                let [a, b, c, d, time @ .., first] = frame;
                let size = u64::from(u32::from_le_bytes([a, b, c, d]));
                let rest = size.saturating_sub(1);
                std::io::copy(&mut pipe.by_ref().take(rest), &mut std::io::sink())?;
                // RFC 6386, section 9.1: this bit states whether the picture is shown.
                if codec != "vp8" || first & 0x10 != 0 {
                    shown.insert(i64::from_le_bytes(time));
                }
            }
        };
        let shown = read();
        Ok(match (shown, run.finish()) {
            (Ok(shown), Ok(())) => Some(shown),
            _ => None,
        })
    }

    /// Runs `ffprobe` and passes on the lines of its output. Returns its error messages.
    fn lines(
        &self,
        path: &Path,
        codec: &str,
        arguments: &[&str],
        mut each: impl FnMut(&str),
    ) -> Result<String> {
        let mut run = self.ffprobe(path, codec, arguments)?;
        let mut text = Vec::new();
        let mut lines = BufReader::new(run.output());
        loop {
            text.clear();
            match lines.read_until(b'\n', &mut text) {
                Ok(0) => break,
                Ok(_) => each(String::from_utf8_lossy(&text).trim()),
                Err(e) => {
                    drop(lines);
                    return Err(run.failed(&e.to_string()));
                }
            }
        }
        drop(lines);
        let outcome = run.finish();
        let messages = run.messages();
        if let Err(error) = outcome {
            if messages.contains("not on whitelist") {
                return Err(Error::UnknownFormat {
                    path: path.to_path_buf(),
                    what: "a playlist, a script, or a format that is not read".into(),
                });
            }
            return Err(error);
        }
        Ok(messages)
    }
}

impl Probe {
    /// Computes the frame rate from the times. `last` is the duration of the last picture.
    fn measured_fps(&self, last: i64) -> Option<f64> {
        let &[first, .., end] = &self.times[..] else {
            return None;
        };
        let unit = self.time_base.0 as f64 / self.time_base.1 as f64;
        let between = end.saturating_sub(first) as f64 * unit;
        let mean = between / (self.frames - 1) as f64;
        let last = last as f64 * unit;
        // The duration of the last picture is often missing, or covers the rest of the file.
        let last = if last > 0.0 && last < 10.0 * mean {
            last
        } else {
            mean
        };
        let fps = self.frames as f64 / (between + last);
        is_plausible(fps).then_some(fps)
    }

    /// Returns the times of the pictures in seconds from the first.
    pub fn seconds(&self) -> Option<Vec<f64>> {
        let first = *self.times.first()?;
        let unit = self.time_base.0 as f64 / self.time_base.1 as f64;
        let seconds = |&time: &i64| time.saturating_sub(first) as f64 * unit;
        Some(self.times.iter().map(seconds).collect())
    }
}

/// Returns the increasing times of the pictures, or `None` if a packet may not be exactly one picture.
fn by_packets(packets: &[Packet], format: &str) -> Option<Vec<i64>> {
    // AVI has packets for repeated pictures, and packets of several pictures ("packed B-frames").
    let one_each = format != "avi";
    let begins = packets.first()?.key;
    if !one_each || !begins || packets.iter().any(|p| p.corrupt) {
        return None;
    }
    let shown = packets.iter().filter(|p| !p.hidden);
    let mut times: Vec<i64> = shown.map(|p| p.time).collect::<Option<_>>()?;
    times.sort_unstable();
    times.is_sorted_by(|a, b| a < b).then_some(times)
}

/// Returns whether a container has an index of its key pictures.
fn is_indexed(format: &str) -> bool {
    format.starts_with("matroska") || format.starts_with("mov")
}

/// Parses a fraction such as `30000/1001`. Returns `None` for `0/0`.
fn ratio(text: &str) -> Option<f64> {
    let (numerator, denominator) = text.split_once('/')?;
    let rate = numerator.parse::<f64>().ok()? / denominator.parse::<f64>().ok()?;
    (rate.is_finite() && rate > 0.0).then_some(rate)
}
