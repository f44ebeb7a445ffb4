//! Reads samples, and finds those with which decoding can start.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::Path;

use rust_h264::nal::{AvccConfig, NalUnitType, parse_avcc, parse_avcc_config};
use rust_h264::sps::parse_sps;

use super::is_slice;
use super::picture_order::{Key, PictureOrder, is_intra};
use crate::mp4::{Sample, Track, read_range};
use crate::{Error, Result};

/// Reads samples from the file.
pub(super) struct Sampler<'a> {
    path: &'a Path,
    file: &'a mut File,
    pub track: &'a Track,
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
    pub fn new(path: &'a Path, file: &'a mut File, track: &'a Track) -> Result<Self> {
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

    pub fn config(&self, sample: &Sample) -> Result<&AvccConfig<'a>> {
        self.configs
            .get(sample.description as usize)
            .ok_or_else(|| Error::damaged(self.path, "a sample without a description"))
    }

    /// Returns the bytes of sample `i`.
    pub fn read(&mut self, i: usize) -> Result<Vec<u8>> {
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
    pub fn keys(&mut self) -> Result<Option<Vec<Key>>> {
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
    pub fn begins_whole(&mut self) -> Result<bool> {
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
    pub fn stretches(
        &mut self,
        wanted: impl Iterator<Item = usize>,
    ) -> Result<Vec<(usize, usize)>> {
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
