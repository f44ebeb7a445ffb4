//! Reads the index of an MP4 or MOV file: where the samples of its video track are, in which order they are
//! shown, and their codec. The data of the samples is not read.
//!
//! The file may be damaged. Every access is therefore checked, and nothing is allocated only because a
//! length field asks for it.

mod boxes;
mod edits;
mod entry;
mod fragments;
mod tables;

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;

use crate::frame::Orientation;
use crate::{Error, Result};
use boxes::{Bytes, boxes, find};
use edits::{Edit, Segment};

/// Maximum size of an index. Hours of video have a few MiB.
const MAX_INDEX_BYTES: u64 = 1 << 28;

/// Maximum number of samples of a track: 38 hours at 60 frames per second.
const MAX_SAMPLES: u64 = 1 << 23;

/// A coded picture of the track.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Sample {
    /// Offset in the file, in bytes.
    pub offset: u64,
    /// Size in bytes.
    pub size: u32,
    /// Whether the file states that decoding may start here.
    pub sync: bool,
    /// Index of its sample description.
    pub description: u32,
    /// Its index in display order, before edits.
    pub order: u32,
}

/// The video track of a file.
#[derive(Debug)]
pub(crate) struct Track {
    pub codec: String,
    /// The H.264 decoder configuration record of each sample description.
    pub configs: Vec<Vec<u8>>,
    /// The orientation of the picture, or `None` for an angle that is not a multiple of 90 degrees.
    pub orientation: Option<Orientation>,
    /// Matrix coefficients and full range, if the container states them.
    pub colour: Option<(u16, bool)>,
    /// Mean rate of the shown frames in frames per second, or `None` if the file has no times.
    pub fps: Option<f64>,
    /// The samples in decoding order.
    pub samples: Vec<Sample>,
    /// The sample of each shown frame.
    pub shown: Vec<usize>,
    /// The time of each shown frame, in seconds from the first.
    pub times: Vec<f64>,
    /// Lengths of the segments of `shown`, which add up to its length. A segment shows consecutive samples.
    pub segments: Vec<usize>,
    /// The sample at which the decoding of each segment starts.
    pub starts: Vec<usize>,
    /// Whether every sample is a sync sample because there is no table.
    pub all_sync: bool,
    /// Whether the display order is known. It is unknown if composition times are missing or repeat. Then
    /// only the coded pictures determine it, and `shown` has the decoding order within a segment.
    pub ordered: bool,
}

impl Track {
    /// Sorts the samples into the display order of the coded pictures. `keys` has one for each sample.
    pub fn order_by<K: Ord>(&mut self, keys: &[K]) {
        let mut order: Vec<usize> = (0..self.samples.len()).collect();
        order.sort_by_key(|&i| &keys[i]);
        for (place, &i) in order.iter().enumerate() {
            self.samples[i].order = place as u32;
        }
        let mut rest = &mut self.shown[..];
        for &length in &self.segments {
            let (segment, behind) = rest.split_at_mut(length);
            segment.sort_by_key(|&i| self.samples[i].order);
            rest = behind;
        }
        self.ordered = true;
    }
}

/// Returns whether a file's first bytes are those of an MP4 or MOV.
pub(crate) fn is_mp4(head: &[u8]) -> bool {
    let known: [&[u8]; 8] = [
        b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide", b"pnot", b"styp",
    ];
    head.get(4..8).is_some_and(|name| known.contains(&name))
}

/// Reads the index and returns the first video track that is neither a cover picture nor chapter
/// pictures.
pub(crate) fn read_track(path: &Path, file: &mut File) -> Result<Track> {
    let length = file
        .seek(SeekFrom::End(0))
        .map_err(|e| Error::read(path, e))?;
    let mut movie = None;
    let mut fragments = Vec::new();
    let mut at = 0;
    let mut index_bytes = 0;
    while at + 8 <= length {
        let Some((name, header, size)) = top_level_box(file, at, length)? else {
            break;
        };
        if matches!(&name, b"moov" | b"moof") {
            index_bytes += size;
            if index_bytes > MAX_INDEX_BYTES || at + size > length {
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
    let tracks = || boxes(&movie).filter(|(name, _)| name == b"trak");
    let chapters: BTreeSet<u32> = tracks()
        .filter_map(|(_, trak)| find(trak, &[b"tref", b"chap"]))
        .flat_map(|chap| chap.chunks_exact(4))
        .filter_map(|id| Bytes(id).u32())
        .collect();
    let matrix = find(&movie, &[b"mvhd"]).and_then(movie_matrix);
    let mut videos = tracks()
        .filter_map(|(_, trak)| Header::of_video(trak, matrix))
        .filter(|header| !chapters.contains(&header.id));
    let empty = || Error::Empty {
        path: path.to_path_buf(),
    };
    let track = videos
        .find(|header| !header.is_still_picture())
        .ok_or_else(empty)?;
    track.index(path, &movie, &fragments, length)
}

/// Reads `size` bytes at `offset`. The caller has checked them against the file's length.
pub(crate) fn read_range(path: &Path, file: &mut File, offset: u64, size: u64) -> Result<Vec<u8>> {
    let mut bytes = vec![0; size as usize];
    file.seek(SeekFrom::Start(offset))
        .and_then(|_| file.read_exact(&mut bytes))
        .map_err(|e| Error::read(path, e))?;
    Ok(bytes)
}

/// Reads the name, the header length and the total length of the box at `at`. Returns `None` if they are
/// invalid.
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

/// A display matrix in fixed point (16.16 and 2.30), row by row.
type Matrix = [[i32; 3]; 3];

fn read_matrix(bytes: &mut Bytes<'_>) -> Option<Matrix> {
    let mut matrix = Matrix::default();
    for value in matrix.as_flattened_mut() {
        *value = bytes.i32()?;
    }
    Some(matrix)
}

fn movie_matrix(mvhd: &[u8]) -> Option<Matrix> {
    let mut bytes = Bytes(mvhd);
    let (version, _) = bytes.full()?;
    bytes.skip(if version == 1 { 28 } else { 16 } + 16)?;
    read_matrix(&mut bytes)
}

/// Applies the track's matrix and then the movie's. Returns the upper left quarter, row by row.
fn product(track: Matrix, movie: Matrix) -> [i64; 4] {
    let entry = |row: usize, column: usize| -> i64 {
        (0..3)
            .map(|k| {
                let shift = if k == 2 { 30 } else { 16 };
                (i64::from(track[row][k]) * i64::from(movie[k][column])) >> shift
            })
            .sum()
    };
    [entry(0, 0), entry(0, 1), entry(1, 0), entry(1, 1)]
}

/// The times of a sample, in ticks of the track's timescale.
struct Timed {
    sample: Sample,
    decoded_at: i64,
    shown_at: i64,
    duration: u32,
}

/// The samples of a track in decoding order.
#[derive(Default)]
struct Samples {
    list: Vec<Timed>,
    /// Whether there are composition times.
    delayed: bool,
    /// Whether composition times are missing for some samples.
    short_delays: bool,
    /// Whether there is no table of sync samples.
    all_sync: bool,
}

/// The boxes of a video track that describe it.
struct Header<'a> {
    id: u32,
    orientation: Option<Orientation>,
    timescale: u32,
    edits: Vec<Edit>,
    fourcc: [u8; 4],
    /// The sample entries with this `fourcc`, without their headers.
    descriptions: Vec<&'a [u8]>,
    tables: &'a [u8],
}

impl<'a> Header<'a> {
    /// Reads a `trak` box. Returns `None` if it is not a video track.
    fn of_video(trak: &'a [u8], movie: Option<Matrix>) -> Option<Self> {
        let media = find(trak, &[b"mdia"])?;
        if find(media, &[b"hdlr"])?.get(8..12)? != b"vide" {
            return None;
        }
        let tables = find(media, &[b"minf", b"stbl"])?;
        let entries: Vec<_> = boxes(find(tables, &[b"stsd"])?.get(8..)?).collect();
        let &(fourcc, _) = entries.first()?;

        let mut mdhd = Bytes(find(media, &[b"mdhd"])?);
        let (version, _) = mdhd.full()?;
        mdhd.skip(if version == 1 { 16 } else { 8 })?;
        let timescale = mdhd.u32()?;

        let mut tkhd = Bytes(find(trak, &[b"tkhd"])?);
        let (version, _) = tkhd.full()?;
        tkhd.skip(if version == 1 { 16 } else { 8 })?;
        let id = tkhd.u32()?;
        tkhd.skip(if version == 1 { 28 } else { 24 })?;
        let matrix = read_matrix(&mut tkhd)?;
        let orientation = match movie {
            Some(movie) => Orientation::of_matrix(product(matrix, movie)),
            None => Orientation::of_matrix([
                matrix[0][0].into(),
                matrix[0][1].into(),
                matrix[1][0].into(),
                matrix[1][1].into(),
            ]),
        };

        let edits = find(trak, &[b"edts", b"elst"])
            .and_then(edits::read)
            .unwrap_or_default();
        Some(Self {
            id,
            orientation,
            timescale,
            edits,
            fourcc,
            descriptions: entries
                .into_iter()
                .filter(|(name, _)| *name == fourcc)
                .map(|(_, entry)| entry)
                .collect(),
            tables,
        })
    }

    /// Returns the boxes after the fixed part of a sample entry.
    fn extensions(&self, description: usize) -> &'a [u8] {
        let entry = self.descriptions.get(description).copied();
        entry.and_then(|e| e.get(78..)).unwrap_or_default()
    }

    fn codec(&self) -> String {
        entry::codec_name(self.fourcc, self.extensions(0))
    }

    /// Returns whether the track is a single image, such as the cover of music.
    fn is_still_picture(&self) -> bool {
        let one =
            find(self.tables, &[b"stsz"]).and_then(|stsz| stsz.get(8..12)) == Some(&[0, 0, 0, 1]);
        one && matches!(
            self.codec().as_str(),
            "mjpeg" | "png" | "bmp" | "gif" | "tiff"
        )
    }

    /// Lists the samples in display order.
    fn index(
        &self,
        path: &Path,
        movie: &[u8],
        fragments: &[(u64, Vec<u8>)],
        length: u64,
    ) -> Result<Track> {
        let broken = |table: &str| Error::damaged(path, format!("the index is broken ({table})"));
        let mut samples =
            tables::read(self.tables, length).ok_or_else(|| broken("sample table"))?;
        let in_movie = samples.list.len();
        if !fragments.is_empty() && in_movie == 0 {
            samples.all_sync = false;
        }
        for (at, fragment) in fragments {
            fragments::read(self.id, movie, *at, fragment, &mut samples, length)
                .ok_or_else(|| broken("movie fragment"))?;
        }
        let timed = &samples.list;
        let segments = self.shown(movie, &samples, in_movie);

        let mut order: Vec<usize> = (0..timed.len()).collect();
        order.sort_by_key(|&i| timed[i].shown_at);
        let repeats = order
            .windows(2)
            .any(|pair| timed[pair[0]].shown_at == timed[pair[1]].shown_at);
        let ordered = samples.delayed && !samples.short_delays && !repeats;
        let mut list: Vec<_> = timed.iter().map(|t| t.sample).collect();
        if ordered {
            for (place, &i) in order.iter().enumerate() {
                list[i].order = place as u32;
            }
        } else {
            for (place, sample) in list.iter_mut().enumerate() {
                sample.order = place as u32;
            }
        }

        let seconds = |ticks: i64| ticks as f64 / f64::from(self.timescale.max(1));
        let (mut shown, mut times, mut ticks) = (Vec::new(), Vec::new(), 0u64);
        for segment in &segments {
            let mut here = segment.shown.clone();
            here.sort_by_key(|&i| list[i].order);
            // In display order, even if it is not known yet which picture has which time.
            let mut at: Vec<i64> = here
                .iter()
                .map(|&i| timed[i].shown_at.saturating_add(segment.shift))
                .collect();
            at.sort_unstable();
            times.extend(at.into_iter().map(seconds));
            ticks += here
                .iter()
                .map(|&i| u64::from(timed[i].duration))
                .sum::<u64>();
            shown.extend(here);
        }
        if shown.is_empty() {
            return Err(Error::Empty {
                path: path.to_path_buf(),
            });
        }
        let first = times[0];
        times.iter_mut().for_each(|time| *time -= first);
        let fps = shown.len() as f64 * f64::from(self.timescale) / ticks as f64;

        let config = |d| find(self.extensions(d), &[b"avcC"]).map(<[u8]>::to_vec);
        Ok(Track {
            codec: self.codec(),
            configs: (0..self.descriptions.len()).filter_map(config).collect(),
            orientation: self.orientation,
            colour: find(self.extensions(0), &[b"colr"]).and_then(entry::colour),
            fps: (fps.is_finite() && fps > 0.0).then_some(fps),
            samples: list,
            shown,
            times,
            segments: segments.iter().map(|s| s.shown.len()).collect(),
            starts: segments.iter().map(|s| s.first).collect(),
            all_sync: samples.all_sync,
            ordered,
        })
    }

    /// Applies the edit list to the samples. All samples in fragments are shown, as in FFmpeg.
    fn shown(&self, movie: &[u8], samples: &Samples, in_movie: usize) -> Vec<Segment> {
        let (indexed, fragmented) = samples.list.split_at(in_movie);
        let all = |first: usize, count: usize| Segment {
            first,
            shown: (first..first + count).collect(),
            shift: 0,
        };
        let mut segments = if self.edits.is_empty() || indexed.is_empty() {
            vec![all(0, indexed.len())]
        } else {
            let timescale = find(movie, &[b"mvhd"]).and_then(|mvhd| {
                let mut bytes = Bytes(mvhd);
                let (version, _) = bytes.full()?;
                bytes.skip(if version == 1 { 16 } else { 8 })?;
                bytes.u32()
            });
            let scale = (self.timescale, timescale.unwrap_or(self.timescale));
            edits::follow(&self.edits, scale, samples.delayed, indexed)
        };
        if !fragmented.is_empty() {
            segments.push(all(in_movie, fragmented.len()));
        }
        segments.retain(|segment| !segment.shown.is_empty());
        segments
    }
}
