//! The sample tables of a track (`stbl`).

use super::boxes::{Bytes, entries, find};
use super::{MAX_SAMPLES, Sample, Samples, Timed};

/// Reads the tables of `stbl`. Returns `None` if they contradict each other or the file's length.
pub fn read(stbl: &[u8], length: u64) -> Option<Samples> {
    let mut sizes = Sizes::read(stbl)?;
    let count = sizes.count;
    // Each sample has at least a byte in the file, which limits the effect of a damaged count.
    if count as u64 > length.min(MAX_SAMPLES) {
        return None;
    }
    let mut samples = Samples::default();
    if count == 0 {
        return Some(samples);
    }

    // Each entry: first chunk (from 1), samples in each chunk, sample description (from 1).
    let mut to_chunk = entries(find(stbl, &[b"stsc"])?, |b| {
        Some((b.u32()?, b.u32()?, b.u32()?))
    })?;
    to_chunk.push((u32::MAX, 0, 0));
    let chunks: Vec<u64> = match find(stbl, &[b"stco"]) {
        Some(stco) => entries(stco, |b| b.u32().map(u64::from))?,
        None => entries(find(stbl, &[b"co64"])?, |b| b.u64())?,
    };
    let durations = entries(find(stbl, &[b"stts"])?, |b| Some((b.u32()?, b.u32()?)))?;
    // A sample past the end of the table has the duration of the last entry.
    let beyond = durations.last().map_or(0, |&(_, duration)| duration);
    let mut durations = Runs::new(durations, beyond);
    let mut delays = Runs::new(
        match find(stbl, &[b"ctts"]) {
            // Version 0 is unsigned in the specification, but signed in existing files.
            Some(ctts) => entries(ctts, |b| Some((b.u32()?, b.i32()?)))?,
            None => Vec::new(),
        },
        0,
    );
    samples.delayed = !delays.is_empty();
    // Sample numbers start at 1. Without the table, every sample is a sync sample.
    let syncs = match find(stbl, &[b"stss"]) {
        Some(stss) => Some(entries(stss, |b| b.u32())?),
        None => None,
    };
    samples.all_sync = syncs.is_none();

    samples.list.reserve(count.min(1 << 20));
    let (mut decoded_at, mut run) = (0i64, 0);
    for (number, &chunk) in chunks.iter().enumerate() {
        while to_chunk
            .get(run + 1)
            .is_some_and(|next| number as u64 + 1 >= u64::from(next.0))
        {
            run += 1;
        }
        let (_, in_chunk, description) = to_chunk[run];
        let mut offset = chunk;
        for _ in 0..in_chunk {
            let number = samples.list.len();
            if number == count {
                break;
            }
            let size = sizes.next()?;
            let duration = durations.next();
            samples.list.push(Timed {
                sample: Sample {
                    offset,
                    size,
                    sync: syncs
                        .as_ref()
                        .is_none_or(|s| s.binary_search(&(number as u32 + 1)).is_ok()),
                    description: description.saturating_sub(1),
                    order: 0,
                },
                decoded_at,
                shown_at: decoded_at.checked_add(delays.next().into())?,
                duration,
            });
            decoded_at = decoded_at.checked_add(duration.into())?;
            offset = offset.checked_add(size.into())?;
        }
    }
    samples.short_delays = samples.delayed && delays.ran_out;
    (samples.list.len() == count).then_some(samples)
}

/// Reads the sample sizes of a `stsz` or `stz2` box.
struct Sizes<'a> {
    count: usize,
    /// 4, 8, 16 or 32 bits for each sample, or 0 if all have the same size.
    bits: u32,
    one_size: u32,
    table: Bytes<'a>,
    /// The second of two sizes of 4 bits.
    half: Option<u32>,
}

impl<'a> Sizes<'a> {
    fn read(stbl: &'a [u8]) -> Option<Self> {
        let compact = find(stbl, &[b"stsz"]).is_none();
        let mut table = Bytes(find(stbl, &[b"stsz"]).or(find(stbl, &[b"stz2"]))?);
        table.full()?;
        let word = table.u32()?;
        let count = table.u32()? as usize;
        let (bits, one_size) = match (compact, word) {
            (false, 0) => (32, 0),
            (false, size) => (0, size),
            (true, word) => (word & 0xff, 0),
        };
        Some(Self {
            count,
            bits,
            one_size,
            table,
            half: None,
        })
    }

    fn next(&mut self) -> Option<u32> {
        match self.bits {
            0 => Some(self.one_size),
            4 => match self.half.take() {
                Some(half) => Some(half),
                None => {
                    let byte = u32::from(self.table.u8()?);
                    self.half = Some(byte & 15);
                    Some(byte >> 4)
                }
            },
            8 => self.table.u8().map(u32::from),
            16 => self.table.u16().map(u32::from),
            32 => self.table.u32(),
            _ => None,
        }
    }
}

/// Reads a run-length table value by value.
struct Runs<T> {
    runs: std::vec::IntoIter<(u32, T)>,
    left: u32,
    value: T,
    /// The value after the end of the table.
    beyond: T,
    /// Whether a value after the end was read.
    ran_out: bool,
}

impl<T: Copy> Runs<T> {
    fn new(runs: Vec<(u32, T)>, beyond: T) -> Self {
        Self {
            runs: runs.into_iter(),
            left: 0,
            value: beyond,
            beyond,
            ran_out: false,
        }
    }

    fn is_empty(&self) -> bool {
        self.runs.len() == 0
    }

    fn next(&mut self) -> T {
        while self.left == 0 {
            match self.runs.next() {
                Some((count, value)) => (self.left, self.value) = (count, value),
                None => {
                    self.ran_out = true;
                    return self.beyond;
                }
            }
        }
        self.left -= 1;
        self.value
    }
}
