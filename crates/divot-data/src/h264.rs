//! Decodes the H.264 track of an MP4 file, frame by frame.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use rust_h264::decoder::OrderedDecoder;
use rust_h264::error::DecodeError;
use rust_h264::nal::{
    AvccConfig, NalUnit, NalUnitType, SpsInfo, parse_avcc, parse_avcc_config, parse_sps_info,
};
use rust_h264::sps::parse_sps;
use rust_h264::threading::ThreadedDecoder;

use crate::frame::Orientation;
use crate::mp4::{Sample, Track, read_range};
use crate::picture_order::{Key, PictureOrder, is_intra};
use crate::yuv::{Colour, Planes};
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
    /// No frame is kept. If `parallel`, several pictures are decoded at the same time.
    pub fn decode(
        &self,
        path: &Path,
        file: &mut File,
        parallel: bool,
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
        for (first, last) in sampler.stretches(places.keys().copied())? {
            let run = Run {
                stream: self,
                path,
                decoder: Decoder::new(parallel),
                order: PictureOrder::default(),
                colour: Colour::BT601,
                pending: BTreeMap::new(),
                places: &mut places,
                wanted,
                each,
            };
            run.run(&mut sampler, first, last)?;
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

/// Number of pictures that are decoded at the same time.
///
/// The decoder's coordinator sleeps for 20 ms if all of them are in progress and none has just finished, so
/// more pictures than processors keep those busy. Of 2, 4, 6, 8 and 16, two processors are fastest with 6
/// and 8.
const PICTURES_AT_ONCE: usize = 8;

/// A decoder that gives pictures in display order.
enum Decoder {
    /// In the calling thread.
    Single(Box<OrderedDecoder>),
    /// In a thread for each picture. It takes more processor time in all.
    Parallel(Box<ThreadedDecoder>),
}

impl Decoder {
    fn new(parallel: bool) -> Self {
        match parallel {
            true => Self::Parallel(Box::new(ThreadedDecoder::new(PICTURES_AT_ONCE))),
            false => Self::Single(Box::new(OrderedDecoder::new())),
        }
    }

    fn decode(&mut self, nal: &NalUnit<'_>) -> Result<Vec<rust_h264::decoder::Frame>, DecodeError> {
        match self {
            Self::Single(decoder) => decoder.decode_nal(nal),
            Self::Parallel(decoder) => decoder.decode_nal(nal),
        }
    }

    fn flush(&mut self) -> Vec<rust_h264::decoder::Frame> {
        match self {
            Self::Single(decoder) => decoder.flush(),
            Self::Parallel(decoder) => decoder.flush(),
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

/// Reads samples from the file.
struct Sampler<'a> {
    path: &'a Path,
    file: &'a mut File,
    track: &'a Track,
    configs: Vec<AvccConfig<'a>>,
    length: u64,
    /// Samples that were examined, and how decoding can start there.
    entries: BTreeMap<usize, Entry>,
}

/// How decoding can start at a sample.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Entry {
    /// No later sample needs an earlier one.
    Whole,
    /// Pictures that are shown after it need no earlier sample.
    Open,
    No,
}

impl<'a> Sampler<'a> {
    fn new(path: &'a Path, file: &'a mut File, track: &'a Track) -> Result<Self> {
        let length = file.metadata().map_err(|e| Error::read(path, e))?.len();
        let configs = track
            .configs
            .iter()
            .map(|config| parse_avcc_config(config).map_err(|e| Error::damaged(path, e)))
            .collect::<Result<_>>()?;
        Ok(Self {
            path,
            file,
            track,
            configs,
            length,
            entries: BTreeMap::new(),
        })
    }

    fn config(&self, sample: &Sample) -> Result<&AvccConfig<'a>> {
        self.configs
            .get(sample.description as usize)
            .ok_or_else(|| Error::damaged(self.path, "a sample without a description"))
    }

    /// Returns the bytes of sample `i`.
    fn read(&mut self, i: usize) -> Result<Vec<u8>> {
        let sample = self.track.samples[i];
        if sample.offset.saturating_add(sample.size.into()) > self.length {
            let what = format!(
                "the file ends at byte {}, within picture {i} of {}",
                self.length,
                self.track.samples.len()
            );
            return Err(Error::damaged(self.path, what));
        }
        read_range(self.path, self.file, sample.offset, sample.size.into())
    }

    /// Returns the display order of the pictures from their headers, or `None` if the headers do not tell
    /// or the order is that of decoding.
    fn keys(&mut self) -> Result<Option<Vec<Key>>> {
        if self.configs.iter().all(shows_in_decoding_order) {
            return Ok(None);
        }
        let mut order = PictureOrder::default();
        let mut keys = Vec::with_capacity(self.track.samples.len());
        let mut description = None;
        for (i, sample) in self.track.samples.iter().enumerate() {
            if description != Some(sample.description) {
                description = Some(sample.description);
                let config = self.config(sample)?;
                order.next(&config.sps_nals);
                order.next(&config.pps_nals);
            }
            // A truncated file still has its first pictures.
            if sample.offset.saturating_add(sample.size.into()) > self.length {
                keys.push((u32::MAX, i as i32));
                continue;
            }
            let data = self.read(i)?;
            let nals = parse_avcc(&data, self.config(sample)?.length_size);
            match order.next(&nals) {
                Some(picture) => keys.push(picture.key),
                None => return Ok(None),
            }
        }
        Ok(Some(keys))
    }

    /// Returns how decoding can start at sample `i`.
    fn entry(&mut self, i: usize) -> Result<Entry> {
        if let Some(&entry) = self.entries.get(&i) {
            return Ok(entry);
        }
        let data = self.read(i)?;
        let nals = parse_avcc(&data, self.config(&self.track.samples[i])?.length_size);
        let mut slices = nals.iter().filter(|nal| is_slice(nal)).peekable();
        let entry = if slices.peek().is_none() {
            Entry::No
        } else if slices
            .clone()
            .all(|nal| nal.nal_unit_type == NalUnitType::SliceIdr)
        {
            Entry::Whole
        } else if !self.track.all_sync && slices.all(is_intra) {
            Entry::Open
        } else {
            Entry::No
        };
        self.entries.insert(i, entry);
        Ok(entry)
    }

    /// Returns whether each shown frame can be decoded from the start of its segment. Otherwise frames need
    /// missing pictures, and their content depends on the decoder.
    fn begins_whole(&mut self) -> Result<bool> {
        let mut from = 0;
        for (&first, &length) in self.track.starts.iter().zip(&self.track.segments) {
            let shown = &self.track.shown[from..from + length];
            from += length;
            let samples = &self.track.samples;
            // The file may be truncated.
            let sample = samples[first];
            if sample.offset.saturating_add(sample.size.into()) > self.length {
                continue;
            }
            let fits = match self.entry(first)? {
                Entry::Whole => true,
                Entry::Open => shown.iter().all(|&i| samples[i].order >= sample.order),
                Entry::No => false,
            };
            if !fits {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Returns the first and last sample of each run of the decoder that the wanted samples need, in order
    /// and without overlap. `wanted` is in decoding order.
    fn stretches(&mut self, wanted: impl Iterator<Item = usize>) -> Result<Vec<(usize, usize)>> {
        let mut stretches: Vec<(usize, usize)> = Vec::new();
        // Where decoding can start, beginning with the last sample at which it can start completely.
        let mut beginnings: Vec<(usize, Entry)> = Vec::new();
        let mut next = 0;
        for last in wanted {
            let mut found = Vec::new();
            for i in (next..=last).rev() {
                if !self.track.samples[i].sync {
                    continue;
                }
                let entry = self.entry(i)?;
                if entry != Entry::No {
                    found.push((i, entry));
                }
                if entry == Entry::Whole {
                    beginnings.clear();
                    break;
                }
            }
            beginnings.extend(found.into_iter().rev());
            next = last + 1;
            let order = |i: usize| self.track.samples[i].order;
            let mut first = beginnings
                .iter()
                .rfind(|&&(i, entry)| entry == Entry::Whole || order(i) <= order(last))
                .map_or(0, |&(i, _)| i);
            // Join neighbours into one run. Pictures shown before a run's first picture may need earlier
            // samples.
            while let Some(&(start, end)) = stretches.last()
                && first <= end + 1
            {
                first = first.min(start);
                stretches.pop();
            }
            stretches.push((first, last));
        }
        Ok(stretches)
    }
}

fn shows_in_decoding_order(config: &AvccConfig<'_>) -> bool {
    config.sps_nals.iter().all(|nal| {
        parse_sps(&nal.rbsp).is_ok_and(|sps| {
            let field_or_frame = sps.frame_mbs_only_flag;
            let in_order = sps.pic_order_cnt_type == 2
                || sps.profile_idc == 66
                || sps.max_num_reorder_frames == Some(0);
            field_or_frame && in_order
        })
    })
}

/// A run of the decoder over consecutive samples.
struct Run<'a> {
    stream: &'a Stream,
    path: &'a Path,
    decoder: Decoder,
    order: PictureOrder,
    colour: Colour,
    /// Samples in the decoder with their colours, in the order in which their pictures will come out.
    pending: BTreeMap<(Key, usize), (usize, Colour)>,
    /// The remaining wanted frames of each sample.
    places: &'a mut BTreeMap<usize, Vec<usize>>,
    wanted: &'a mut BTreeSet<usize>,
    each: &'a mut dyn FnMut(usize, Frame) -> Result<()>,
}

impl Run<'_> {
    fn run(mut self, sampler: &mut Sampler<'_>, first: usize, last: usize) -> Result<(), Stop> {
        let mut description = None;
        for i in first..=last {
            let sample = sampler.track.samples[i];
            if description != Some(sample.description) {
                description = Some(sample.description);
                let config = sampler.config(&sample)?;
                for nals in [&config.sps_nals, &config.pps_nals] {
                    self.order.next(nals);
                    self.read_colour(nals)?;
                    for nal in nals {
                        self.feed(nal)?;
                    }
                }
            }
            let data = sampler.read(i)?;
            let nals = parse_avcc(&data, sampler.config(&sample)?.length_size);
            // No picture refers to this one, so it is decoded only if it is wanted.
            let skip = !self.places.contains_key(&i)
                && nals
                    .iter()
                    .all(|nal| !is_slice(nal) || nal.nal_ref_idc == 0);
            if !skip {
                // A header that is damaged here is damaged for the decoder too.
                self.read_colour(&nals)?;
                if let Some(picture) = self.order.next(&nals)
                    && !picture.second_field
                {
                    self.pending.insert((picture.key, i), (i, self.colour));
                }
            }
            for nal in nals.iter().filter(|nal| !(skip && is_slice(nal))) {
                self.feed(nal)?;
            }
        }
        let decoder = &mut self.decoder;
        let rest = catch_unwind(AssertUnwindSafe(|| decoder.flush()))
            .map_err(|_| self.broken("the decoder gave up"))?;
        rest.into_iter()
            .try_for_each(|picture| self.deliver(picture))
    }

    /// Checks the size in sequence headers and keeps their colours for the following pictures.
    fn read_colour(&mut self, nals: &[NalUnit<'_>]) -> Result<()> {
        let headers = nals
            .iter()
            .filter(|nal| nal.nal_unit_type == NalUnitType::Sps);
        for nal in headers {
            let info = parse_sps_info(nal).map_err(|e| self.broken(&e.to_string()))?;
            let (width, height) = (info.coded_width.into(), info.coded_height.into());
            // The coded picture may be up to a macroblock larger than the displayed part.
            let limit = self.stream.max_pixels.saturating_add(1 << 20);
            Error::check_size(self.path, width, height, limit)?;
            self.colour = match (info.matrix, self.stream.track.colour) {
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
        Ok(())
    }

    fn feed(&mut self, nal: &NalUnit<'_>) -> Result<(), Stop> {
        // Delimiters, filler data and supplemental information do not affect pictures.
        if !is_slice(nal) && !matches!(nal.nal_unit_type, NalUnitType::Sps | NalUnitType::Pps) {
            return Ok(());
        }
        let decoder = &mut self.decoder;
        // The decoder should not panic on damaged data. If it does, the user gets an error, and the decoder
        // is not used again.
        match catch_unwind(AssertUnwindSafe(|| decoder.decode(nal))) {
            Ok(Ok(pictures)) => pictures
                .into_iter()
                .try_for_each(|picture| self.deliver(picture)),
            Ok(Err(DecodeError::Unsupported(_))) => Err(Stop::Unsupported),
            Ok(Err(e)) => Err(self.broken(&e.to_string()).into()),
            Err(_) => Err(self.broken("the decoder gave up").into()),
        }
    }

    /// Passes a picture on if it is wanted.
    fn deliver(&mut self, picture: rust_h264::decoder::Frame) -> Result<(), Stop> {
        let Some((_, (sample, colour))) = self.pending.pop_first() else {
            return Err(self.broken("more pictures than samples").into());
        };
        let Some(places) = self.places.remove(&sample) else {
            return Ok(());
        };
        if (picture.width as usize, picture.height as usize) != self.stream.stored {
            // The size changes midway.
            return Err(Stop::Unsupported);
        }
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
            .to_rgb(colour)
            .ok_or_else(|| self.broken("a picture without content"))?;
        let frame = self.stream.orientation.apply(frame);
        for &place in &places {
            self.wanted.remove(&place);
        }
        // Mostly there is one place, and nothing is copied.
        let Some((&last, others)) = places.split_last() else {
            return Ok(());
        };
        for &place in others {
            (self.each)(place, frame.clone())?;
        }
        Ok((self.each)(last, frame)?)
    }

    fn broken(&self, what: &str) -> Error {
        let frame = self.wanted.first().copied().unwrap_or(0);
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
