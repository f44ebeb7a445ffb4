//! Reading the index of an MP4 or MOV file: where the samples of its video track lie, in which
//! order they are shown, and what decodes them. Sample data stays on the disk.
//!
//! Everything read here may be damaged, so every access is checked and nothing is allocated on the
//! word of a length field alone.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;

use crate::{Error, Result};

/// No sane index is larger: hours of video have a few MiB.
const MAX_INDEX_BYTES: u64 = 1 << 28;

/// One coded picture of the track.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Sample {
    /// Place in the file, in bytes.
    pub offset: u64,
    /// Size in bytes.
    pub size: u64,
    /// Decoding may begin here.
    pub sync: bool,
    /// Its place in the order of showing; `None` when an edit list cuts it out.
    pub display: Option<usize>,
}

/// The video track of a file.
#[derive(Debug)]
pub(crate) struct Track {
    pub codec: String,
    /// The decoder configuration record of H.264.
    pub avcc: Option<Vec<u8>>,
    /// Clockwise quarter turns that the player is asked for.
    pub quarter_turns: u8,
    /// Matrix coefficients and full range, where the container tells.
    pub colour: Option<(u16, bool)>,
    pub fps: f64,
    /// In decoding order.
    pub samples: Vec<Sample>,
    /// Number of samples that are shown.
    pub frames: usize,
}

/// Whether a file's first bytes are those of an MP4 or MOV.
pub(crate) fn is_mp4(head: &[u8]) -> bool {
    let known: [&[u8]; 8] = [
        b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide", b"pnot", b"styp",
    ];
    head.get(4..8).is_some_and(|name| known.contains(&name))
}

/// Reads the index and describes the first video track.
pub(crate) fn read_track(path: &Path, file: &mut File) -> Result<Track> {
    let length = file
        .seek(SeekFrom::End(0))
        .map_err(|e| Error::read(path, e))?;
    let mut movie = None;
    let mut fragments = Vec::new();
    let mut at = 0;
    while at + 8 <= length {
        let Some((name, header, size)) = top_level_box(file, at, length)? else {
            break;
        };
        if matches!(&name, b"moov" | b"moof") {
            if size > MAX_INDEX_BYTES || at + size > length {
                return Err(Error::damaged(
                    path,
                    format!("the index is {size} bytes, but the file ends at byte {length}"),
                ));
            }
            let body = read_range(path, file, at + header, size - header)?;
            match &name {
                b"moov" if movie.is_none() => movie = Some(body),
                b"moof" => fragments.push((at, body)),
                _ => {}
            }
        }
        at = at.saturating_add(size);
    }
    let Some(movie) = movie else {
        return Err(Error::damaged(
            path,
            "an MP4 without its index (no moov box)",
        ));
    };
    let track = boxes(&movie)
        .filter(|(name, _)| name == b"trak")
        .find_map(|(_, body)| Header::of_video(body))
        .ok_or_else(|| Error::Empty {
            path: path.to_path_buf(),
        })?;
    track.index(path, &movie, &fragments, length)
}

/// Reads `size` bytes at `offset`, which the caller has checked against the file's length.
pub(crate) fn read_range(path: &Path, file: &mut File, offset: u64, size: u64) -> Result<Vec<u8>> {
    let mut bytes = vec![0; size as usize];
    file.seek(SeekFrom::Start(offset))
        .and_then(|_| file.read_exact(&mut bytes))
        .map_err(|e| Error::read(path, e))?;
    Ok(bytes)
}

/// Name, length of the header and whole length of the box at `at`; `None` when it makes no sense.
fn top_level_box(file: &mut File, at: u64, length: u64) -> Result<Option<([u8; 4], u64, u64)>> {
    let mut head = [0; 16];
    let available = (length - at).min(16) as usize;
    if file.seek(SeekFrom::Start(at)).is_err() || file.read_exact(&mut head[..available]).is_err() {
        return Ok(None);
    }
    let mut bytes = Bytes(&head);
    let short = bytes.u32().unwrap_or(0);
    let name = bytes.name().unwrap_or_default();
    let (header, size) = match short {
        0 => (8, length - at),
        1 => (16, bytes.u64().unwrap_or(0)),
        size => (8, u64::from(size)),
    };
    Ok((size >= header).then_some((name, header, size)))
}

/// The boxes in a body, as far as they make sense.
fn boxes(mut body: &[u8]) -> impl Iterator<Item = ([u8; 4], &[u8])> {
    std::iter::from_fn(move || {
        let mut bytes = Bytes(body);
        let short = bytes.u32()?;
        let name = bytes.name()?;
        let (header, size) = match short {
            0 => (8, body.len()),
            1 => (16, usize::try_from(bytes.u64()?).ok()?),
            size => (8, size as usize),
        };
        let content = body.get(header..size)?;
        body = &body[size..];
        Some((name, content))
    })
}

/// The first box at the end of a path of names.
fn find<'a>(body: &'a [u8], names: &[&[u8; 4]]) -> Option<&'a [u8]> {
    names.iter().try_fold(body, |body, &name| {
        boxes(body).find(|(n, _)| n == name).map(|(_, b)| b)
    })
}

/// Big-endian numbers off the front of a slice.
#[derive(Clone, Copy)]
struct Bytes<'a>(&'a [u8]);

impl<'a> Bytes<'a> {
    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (front, rest) = self.0.split_first_chunk::<N>()?;
        self.0 = rest;
        Some(*front)
    }
    fn skip(&mut self, n: usize) -> Option<()> {
        self.0 = self.0.get(n..)?;
        Some(())
    }
    fn name(&mut self) -> Option<[u8; 4]> {
        self.take()
    }
    fn u8(&mut self) -> Option<u8> {
        self.take().map(u8::from_be_bytes)
    }
    fn u16(&mut self) -> Option<u16> {
        self.take().map(u16::from_be_bytes)
    }
    fn u32(&mut self) -> Option<u32> {
        self.take().map(u32::from_be_bytes)
    }
    fn i32(&mut self) -> Option<i32> {
        self.take().map(i32::from_be_bytes)
    }
    fn u64(&mut self) -> Option<u64> {
        self.take().map(u64::from_be_bytes)
    }
    /// A number of 32 bits in version 0 of a box and 64 in version 1.
    fn word(&mut self, version: u8) -> Option<u64> {
        if version == 1 {
            self.u64()
        } else {
            self.u32().map(u64::from)
        }
    }
    /// Steps over tag and length of an MPEG-4 descriptor; `None` when it is another one.
    fn descriptor(&mut self, tag: u8) -> Option<()> {
        if self.u8()? != tag {
            return None;
        }
        // The length has up to four bytes of seven bits.
        for _ in 0..4 {
            if self.u8()? & 0x80 == 0 {
                break;
            }
        }
        Some(())
    }
    /// Version and flags of a "full" box.
    fn full(&mut self) -> Option<(u8, u32)> {
        let word = self.u32()?;
        Some(((word >> 24) as u8, word & 0x00ff_ffff))
    }
}

/// The boxes of a video track that say what it is.
struct Header<'a> {
    id: u32,
    quarter_turns: u8,
    timescale: u32,
    /// `(duration in the movie's timescale, start in the track's)` of each edit that shows
    /// something.
    edits: Vec<(u64, i64)>,
    fourcc: [u8; 4],
    /// The fixed part of the sample entry and the boxes after it.
    entry: &'a [u8],
    tables: &'a [u8],
}

impl<'a> Header<'a> {
    /// Reads a `trak` box; `None` when it is not a video track.
    fn of_video(trak: &'a [u8]) -> Option<Self> {
        let media = find(trak, &[b"mdia"])?;
        if find(media, &[b"hdlr"])?.get(8..12)? != b"vide" {
            return None;
        }
        let tables = find(media, &[b"minf", b"stbl"])?;
        let (fourcc, entry) = boxes(find(tables, &[b"stsd"])?.get(8..)?).next()?;

        let mut mdhd = Bytes(find(media, &[b"mdhd"])?);
        let (version, _) = mdhd.full()?;
        mdhd.skip(if version == 1 { 16 } else { 8 })?;
        let timescale = mdhd.u32()?;

        let mut tkhd = Bytes(find(trak, &[b"tkhd"])?);
        let (version, _) = tkhd.full()?;
        tkhd.skip(if version == 1 { 16 } else { 8 })?;
        let id = tkhd.u32()?;
        tkhd.skip(if version == 1 { 28 } else { 24 })?;
        let (a, b) = (tkhd.i32()?, tkhd.i32()?);
        tkhd.skip(4)?;
        let (c, d) = (tkhd.i32()?, tkhd.i32()?);
        let quarter_turns = match (a.signum(), b.signum(), c.signum(), d.signum()) {
            (0, 1, -1, 0) => 1,
            (-1, 0, 0, -1) => 2,
            (0, -1, 1, 0) => 3,
            _ => 0,
        };

        let edits = find(trak, &[b"edts", b"elst"])
            .and_then(edits)
            .unwrap_or_default();
        Some(Self {
            id,
            quarter_turns,
            timescale,
            edits,
            fourcc,
            entry,
            tables,
        })
    }

    /// Lists the samples and puts them into the order of showing.
    fn index(
        &self,
        path: &Path,
        movie: &[u8],
        fragments: &[(u64, Vec<u8>)],
        length: u64,
    ) -> Result<Track> {
        let broken = |table: &str| Error::damaged(path, format!("the index is broken ({table})"));
        let mut timed = sample_table(self.tables, length).ok_or_else(|| broken("sample table"))?;
        for (at, fragment) in fragments {
            read_fragment(self.id, movie, *at, fragment, &mut timed, length)
                .ok_or_else(|| broken("movie fragment"))?;
        }
        if timed.is_empty() {
            return Err(Error::Empty {
                path: path.to_path_buf(),
            });
        }

        let ticks: u64 = timed.iter().map(|s| u64::from(s.duration)).sum();
        let fps = timed.len() as f64 * f64::from(self.timescale) / ticks as f64;

        let mut shown = self.shown(movie, &timed);
        shown.sort_by_key(|&i| timed[i].shown_at);
        let mut samples: Vec<_> = timed.iter().map(|s| s.sample).collect();
        for (display, &i) in shown.iter().enumerate() {
            samples[i].display = Some(display);
        }

        let extensions = self.entry.get(78..).unwrap_or_default();
        Ok(Track {
            codec: codec_name(self.fourcc, extensions),
            avcc: find(extensions, &[b"avcC"]).map(<[u8]>::to_vec),
            quarter_turns: self.quarter_turns,
            colour: find(extensions, &[b"colr"]).and_then(colour),
            // A single frame, or times that were never filled in.
            fps: if fps.is_finite() && fps > 0.0 {
                fps
            } else {
                crate::DEFAULT_FPS
            },
            samples,
            frames: shown.len(),
        })
    }

    /// The samples that the edit list leaves.
    ///
    /// One edit that trims the ends is what cameras and editors write. Lists that rearrange the
    /// video are rare, and not followed: all samples are shown then.
    fn shown(&self, movie: &[u8], timed: &[Timed]) -> Vec<usize> {
        let all = || (0..timed.len()).collect();
        let &[(duration, start)] = &self.edits[..] else {
            return all();
        };
        let movie_timescale = find(movie, &[b"mvhd"])
            .and_then(|mvhd| {
                let mut bytes = Bytes(mvhd);
                let (version, _) = bytes.full()?;
                bytes.skip(if version == 1 { 16 } else { 8 })?;
                bytes.u32()
            })
            .filter(|&t| t > 0);
        let end = match movie_timescale {
            // The duration is rounded to the movie's ticks: one of those is no reason to cut.
            Some(ticks) if duration > 0 => {
                let scaled =
                    (u128::from(duration) + 1) * u128::from(self.timescale) / u128::from(ticks);
                start.saturating_add(i64::try_from(scaled).unwrap_or(i64::MAX))
            }
            _ => i64::MAX,
        };
        let kept: Vec<usize> = (0..timed.len())
            .filter(|&i| (start..end).contains(&timed[i].shown_at))
            .collect();
        if kept.is_empty() { all() } else { kept }
    }
}

/// A sample with its times, in ticks of the track's timescale.
struct Timed {
    sample: Sample,
    shown_at: i64,
    duration: u32,
}

/// Reads the tables of `stbl`; `None` when they contradict each other or the file's length.
fn sample_table(stbl: &[u8], length: u64) -> Option<Vec<Timed>> {
    let mut stsz = Bytes(find(stbl, &[b"stsz"])?);
    stsz.full()?;
    let (one_size, count) = (stsz.u32()?, stsz.u32()? as usize);
    // Each sample has at least a byte in the file, so this bounds what a broken count can ask for.
    if count as u64 > length {
        return None;
    }
    if count == 0 {
        return Some(Vec::new());
    }

    let mut to_chunk = entries(find(stbl, &[b"stsc"])?, |b| {
        let entry = (b.u32()?, b.u32()?);
        b.skip(4)?;
        Some(entry)
    })?;
    to_chunk.push((u32::MAX, 0));
    let chunks: Vec<u64> = match find(stbl, &[b"stco"]) {
        Some(stco) => entries(stco, |b| b.u32().map(u64::from))?,
        None => entries(find(stbl, &[b"co64"])?, |b| b.u64())?,
    };
    let mut durations = Runs::new(entries(find(stbl, &[b"stts"])?, |b| {
        Some((b.u32()?, b.u32()?))
    })?);
    let mut delays = Runs::new(match find(stbl, &[b"ctts"]) {
        // Version 0 is unsigned by the letter, but signed in the wild.
        Some(ctts) => entries(ctts, |b| Some((b.u32()?, b.i32()?)))?,
        None => Vec::new(),
    });
    // 1-based numbers; without the table, every sample is one.
    let syncs = match find(stbl, &[b"stss"]) {
        Some(stss) => Some(entries(stss, |b| b.u32())?),
        None => None,
    };

    let mut samples = Vec::with_capacity(count.min(1 << 20));
    let (mut decoded_at, mut run) = (0i64, 0);
    for (number, &chunk) in chunks.iter().enumerate() {
        while to_chunk
            .get(run + 1)
            .is_some_and(|next| number as u64 + 1 >= u64::from(next.0))
        {
            run += 1;
        }
        let mut offset = chunk;
        for _ in 0..to_chunk[run].1 {
            if samples.len() == count {
                break;
            }
            let size = u64::from(if one_size == 0 { stsz.u32()? } else { one_size });
            let duration = durations.next();
            samples.push(Timed {
                sample: Sample {
                    offset,
                    size,
                    sync: syncs
                        .as_ref()
                        .is_none_or(|s| s.binary_search(&(samples.len() as u32 + 1)).is_ok()),
                    display: None,
                },
                shown_at: decoded_at + i64::from(delays.next()),
                duration,
            });
            decoded_at += i64::from(duration);
            offset = offset.checked_add(size)?;
        }
    }
    (samples.len() == count).then_some(samples)
}

/// Reads one `moof` box into `samples`.
fn read_fragment(
    id: u32,
    movie: &[u8],
    at: u64,
    moof: &[u8],
    samples: &mut Vec<Timed>,
    length: u64,
) -> Option<()> {
    const NOT_SYNC: u32 = 0x1_0000;
    // Defaults of the whole movie: duration, size and flags of a sample.
    let defaults = find(movie, &[b"mvex"])
        .and_then(|mvex| {
            boxes(mvex)
                .filter(|(name, _)| name == b"trex")
                .find_map(|(_, body)| {
                    let mut b = Bytes(body);
                    b.full()?;
                    let track = b.u32()?;
                    b.skip(4)?;
                    (track == id).then_some((b.u32()?, b.u32()?, b.u32()?))
                })
        })
        .unwrap_or((0, 0, 0));

    for (_, traf) in boxes(moof).filter(|(name, _)| name == b"traf") {
        let mut tfhd = Bytes(find(traf, &[b"tfhd"])?);
        let (_, flags) = tfhd.full()?;
        if tfhd.u32()? != id {
            continue;
        }
        let mut optional = |bit: u32, default: u32| {
            if flags & bit != 0 {
                tfhd.u32()
            } else {
                Some(default)
            }
        };
        let base = if flags & 1 != 0 {
            let high = optional(1, 0)?;
            u64::from(high) << 32 | u64::from(optional(1, 0)?)
        } else {
            at
        };
        optional(2, 0)?;
        let default_duration = optional(8, defaults.0)?;
        let default_size = optional(16, defaults.1)?;
        let default_flags = optional(32, defaults.2)?;

        let mut decoded_at = match find(traf, &[b"tfdt"]) {
            Some(tfdt) => {
                let mut b = Bytes(tfdt);
                let (version, _) = b.full()?;
                i64::try_from(b.word(version)?).ok()?
            }
            None => samples.iter().map(|s| i64::from(s.duration)).sum(),
        };
        let mut offset = base;
        for (_, trun) in boxes(traf).filter(|(name, _)| name == b"trun") {
            let mut b = Bytes(trun);
            let (_, flags) = b.full()?;
            let count = b.u32()?;
            if flags & 1 != 0 {
                offset = base.checked_add_signed(b.i32()?.into())?;
            }
            let mut first_flags = if flags & 4 != 0 { Some(b.u32()?) } else { None };
            if samples.len() as u64 + u64::from(count) > length {
                return None;
            }
            for _ in 0..count {
                let mut field = |bit: u32, default: u32| {
                    if flags & bit != 0 {
                        b.u32()
                    } else {
                        Some(default)
                    }
                };
                let duration = field(0x100, default_duration)?;
                let size = u64::from(field(0x200, default_size)?);
                let own_flags = field(0x400, first_flags.take().unwrap_or(default_flags))?;
                let delay = field(0x800, 0)? as i32;
                samples.push(Timed {
                    sample: Sample {
                        offset,
                        size,
                        sync: own_flags & NOT_SYNC == 0,
                        display: None,
                    },
                    shown_at: decoded_at.checked_add(delay.into())?,
                    duration,
                });
                decoded_at = decoded_at.checked_add(duration.into())?;
                offset = offset.checked_add(size)?;
            }
        }
    }
    Some(())
}

/// The entries of a "full" box that is a counted table.
fn entries<T>(body: &[u8], mut entry: impl FnMut(&mut Bytes<'_>) -> Option<T>) -> Option<Vec<T>> {
    let mut bytes = Bytes(body);
    bytes.full()?;
    let count = bytes.u32()?;
    (0..count).map(|_| entry(&mut bytes)).collect()
}

/// A run-length table read value by value. Past its end the last value goes on.
struct Runs<T> {
    runs: std::vec::IntoIter<(u32, T)>,
    left: u32,
    value: T,
}

impl<T: Copy + Default> Runs<T> {
    fn new(runs: Vec<(u32, T)>) -> Self {
        Self {
            runs: runs.into_iter(),
            left: 0,
            value: T::default(),
        }
    }

    fn next(&mut self) -> T {
        while self.left == 0 {
            match self.runs.next() {
                Some((count, value)) => (self.left, self.value) = (count, value),
                None => return self.value,
            }
        }
        self.left -= 1;
        self.value
    }
}

/// `(duration, start)` of the edits that are not gaps.
fn edits(elst: &[u8]) -> Option<Vec<(u64, i64)>> {
    let (version, _) = Bytes(elst).full()?;
    let all = entries(elst, |b| {
        let edit = if version == 1 {
            (b.u64()?, b.u64()? as i64)
        } else {
            (b.u32()?.into(), b.i32()?.into())
        };
        b.skip(4)?;
        Some(edit)
    })?;
    Some(all.into_iter().filter(|&(_, start)| start >= 0).collect())
}

/// Matrix and range of a `colr` box.
fn colour(colr: &[u8]) -> Option<(u16, bool)> {
    let mut b = Bytes(colr);
    let kind = b.name()?;
    b.skip(4)?;
    let matrix = b.u16()?;
    match &kind {
        b"nclx" => Some((matrix, b.u8()? & 0x80 != 0)),
        b"nclc" => Some((matrix, false)),
        _ => None,
    }
}

/// The usual name of a codec, as FFmpeg calls it.
fn codec_name(fourcc: [u8; 4], extensions: &[u8]) -> String {
    let known = match &fourcc {
        b"avc1" | b"avc2" | b"avc3" | b"avc4" => "h264",
        b"hvc1" | b"hev1" | b"dvh1" | b"dvhe" => "hevc",
        b"vvc1" | b"vvi1" => "vvc",
        b"vp08" => "vp8",
        b"vp09" => "vp9",
        b"av01" => "av1",
        b"jpeg" | b"mjpa" | b"mjpb" => "mjpeg",
        b"s263" | b"h263" => "h263",
        b"apch" | b"apcn" | b"apcs" | b"apco" | b"ap4h" | b"ap4x" => "prores",
        b"encv" => "encrypted video",
        b"mp4v" => match find(extensions, &[b"esds"]).and_then(object_type) {
            Some(0x60..=0x65) => "mpeg2video",
            Some(0x6a) => "mpeg1video",
            Some(0x6c) => "mjpeg",
            _ => "mpeg4",
        },
        _ => return String::from_utf8_lossy(&fourcc).escape_debug().to_string(),
    };
    known.into()
}

/// The object type in an elementary stream descriptor.
fn object_type(esds: &[u8]) -> Option<u8> {
    const STREAM: u8 = 3;
    const DECODER_CONFIG: u8 = 4;
    let mut b = Bytes(esds.get(4..)?);
    b.descriptor(STREAM)?;
    b.skip(2)?;
    let flags = b.u8()?;
    if flags & 0x80 != 0 {
        b.skip(2)?;
    }
    if flags & 0x40 != 0 {
        let url = b.u8()?;
        b.skip(url.into())?;
    }
    if flags & 0x20 != 0 {
        b.skip(2)?;
    }
    b.descriptor(DECODER_CONFIG)?;
    b.u8()
}
