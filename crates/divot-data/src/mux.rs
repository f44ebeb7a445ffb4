//! Writes the boxes of an MP4 file with one H.264 track.

/// The description of the track in the index.
pub(crate) struct TrackBoxes<'a> {
    pub width: u16,
    pub height: u16,
    /// Ticks per second.
    pub timescale: u32,
    /// Duration of each sample in ticks.
    pub durations: &'a [u32],
    /// Whether decoding can start at each sample.
    pub syncs: &'a [bool],
    pub sizes: &'a [u32],
    /// Sequence parameter set without start code.
    pub sps: &'a [u8],
    /// Picture parameter set without start code.
    pub pps: &'a [u8],
}

/// Returns all of the file before the samples. Players can start at once because the index comes first.
///
/// Returns `None` when the file is too large for 32-bit offsets.
pub(crate) fn head(track: &TrackBoxes<'_>) -> Option<Vec<u8>> {
    let mut head = boxed(b"ftyp", |b| {
        b.extend(b"isom");
        b.extend(512u32.to_be_bytes());
        b.extend(b"isomiso2avc1mp41");
    });
    let data: u64 = track.sizes.iter().map(|&s| u64::from(s)).sum();
    let index = movie(track, 0).len();
    let start = u32::try_from(head.len() + index + 8).ok()?;
    let data = u32::try_from(data + 8)
        .ok()
        .filter(|d| d.checked_add(start).is_some())?;
    head.extend(movie(track, start));
    head.extend(data.to_be_bytes());
    head.extend(b"mdat");
    Some(head)
}

fn movie(track: &TrackBoxes<'_>, data: u32) -> Vec<u8> {
    let ticks: u32 = track
        .durations
        .iter()
        .fold(0, |sum, &d| sum.saturating_add(d));
    boxed(b"moov", |b| {
        b.extend(full(b"mvhd", 0, |b| {
            words(b, &[0, 0, track.timescale, ticks, 0x1_0000]);
            // Full volume, and ten reserved bytes.
            b.extend([1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
            b.extend(MATRIX.iter().flat_map(|v| v.to_be_bytes()));
            words(b, &[0, 0, 0, 0, 0, 0, 2]);
        }));
        b.extend(boxed(b"trak", |b| {
            // Enabled, and part of the movie.
            b.extend(full(b"tkhd", 3, |b| {
                words(b, &[0, 0, 1, 0, ticks, 0, 0, 0, 0]);
                b.extend(MATRIX.iter().flat_map(|v| v.to_be_bytes()));
                words(
                    b,
                    &[u32::from(track.width) << 16, u32::from(track.height) << 16],
                );
            }));
            b.extend(boxed(b"mdia", |b| {
                b.extend(full(b"mdhd", 0, |b| {
                    words(b, &[0, 0, track.timescale, ticks]);
                    // Language "und", in five bits per letter.
                    b.extend([0x55, 0xc4, 0, 0]);
                }));
                b.extend(full(b"hdlr", 0, |b| {
                    words(b, &[0]);
                    b.extend(b"vide");
                    words(b, &[0, 0, 0]);
                    b.extend(b"video\0");
                }));
                b.extend(boxed(b"minf", |b| {
                    b.extend(full(b"vmhd", 1, |b| b.extend([0; 8])));
                    b.extend(boxed(b"dinf", |b| {
                        b.extend(full(b"dref", 0, |b| {
                            words(b, &[1]);
                            // Flag 1: the samples are in this file.
                            b.extend(full(b"url ", 1, |_| {}));
                        }));
                    }));
                    b.extend(sample_table(track, data));
                }));
            }));
        }));
    })
}

/// The identity matrix (no rotation), in 16.16 and 2.30 fixed point.
const MATRIX: [u32; 9] = [0x1_0000, 0, 0, 0, 0x1_0000, 0, 0, 0, 0x4000_0000];

fn sample_table(track: &TrackBoxes<'_>, data: u32) -> Vec<u8> {
    let count = track.sizes.len() as u32;
    boxed(b"stbl", |b| {
        b.extend(full(b"stsd", 0, |b| {
            words(b, &[1]);
            b.extend(boxed(b"avc1", |b| {
                b.extend([0, 0, 0, 0, 0, 0, 0, 1]);
                b.extend([0; 16]);
                b.extend(track.width.to_be_bytes());
                b.extend(track.height.to_be_bytes());
                // 72 dpi, one frame per sample, no compressor name, 24 bits of colour.
                words(b, &[0x48_0000, 0x48_0000, 0]);
                b.extend([0, 1]);
                b.extend([0; 32]);
                b.extend([0, 24, 0xff, 0xff]);
                b.extend(boxed(b"avcC", |b| decoder_config(b, track.sps, track.pps)));
                b.extend(boxed(b"colr", |b| {
                    b.extend(b"nclx");
                    for number in COLOUR {
                        b.extend(u16::from(number).to_be_bytes());
                    }
                    b.push(0);
                }));
            }));
        }));
        let mut runs: Vec<[u32; 2]> = Vec::new();
        for &duration in track.durations {
            match runs.last_mut() {
                Some([n, d]) if *d == duration => *n += 1,
                _ => runs.push([1, duration]),
            }
        }
        b.extend(full(b"stts", 0, |b| {
            words(b, &[runs.len() as u32]);
            words(b, runs.as_flattened());
        }));
        let syncs: Vec<u32> = (1..)
            .zip(track.syncs)
            .filter(|(_, s)| **s)
            .map(|(n, _)| n)
            .collect();
        b.extend(full(b"stss", 0, |b| {
            words(b, &[syncs.len() as u32]);
            words(b, &syncs);
        }));
        // One chunk holds all samples.
        b.extend(full(b"stsc", 0, |b| {
            if count == 0 {
                words(b, &[0])
            } else {
                words(b, &[1, 1, count, 1])
            }
        }));
        b.extend(full(b"stsz", 0, |b| {
            words(b, &[0, count]);
            words(b, track.sizes);
        }));
        b.extend(full(b"stco", 0, |b| {
            if count == 0 {
                words(b, &[0])
            } else {
                words(b, &[1, data])
            }
        }));
    })
}

/// Colour primaries, transfer function and matrix.
///
/// The primaries and the transfer function are those of BT.709, which are close to sRGB. The matrix is
/// that of BT.601, which readers assume if they ignore the label.
const COLOUR: [u8; 3] = [1, 1, 6];

fn decoder_config(b: &mut Vec<u8>, sps: &[u8], pps: &[u8]) {
    // Profile, compatibility and level are the first three bytes of the SPS.
    let profile = sps.get(1..4).unwrap_or(&[100, 0, 30]);
    b.push(1);
    b.extend(profile);
    // Four-byte lengths, one SPS.
    b.extend([0xff, 0xe1]);
    b.extend((sps.len() as u16).to_be_bytes());
    b.extend(sps);
    b.push(1);
    b.extend((pps.len() as u16).to_be_bytes());
    b.extend(pps);
    if profile[0] >= 100 {
        // 4:2:0 in 8 bits, no extensions.
        b.extend([0xfd, 0xf8, 0xf8, 0]);
    }
}

fn boxed(name: &[u8; 4], body: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let mut bytes = vec![0; 4];
    bytes.extend(name);
    body(&mut bytes);
    let size = bytes.len() as u32;
    bytes[..4].copy_from_slice(&size.to_be_bytes());
    bytes
}

/// Writes a box with version 0 and flags.
fn full(name: &[u8; 4], flags: u32, body: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    boxed(name, |b| {
        b.extend(flags.to_be_bytes());
        body(b);
    })
}

fn words(b: &mut Vec<u8>, words: &[u32]) {
    b.extend(words.iter().flat_map(|w| w.to_be_bytes()));
}

/// Splits a stream with start codes into NAL units.
pub(crate) fn nal_units(stream: &[u8]) -> Vec<&[u8]> {
    let starts: Vec<usize> = stream
        .windows(3)
        .enumerate()
        .filter(|(_, w)| *w == [0, 0, 1])
        .map(|(i, _)| i + 3)
        .collect();
    starts
        .iter()
        .enumerate()
        .map(|(i, &start)| {
            let end = starts.get(i + 1).map_or(stream.len(), |next| next - 3);
            let unit = &stream[start..end];
            // Zeros before a start code belong to the start code.
            let length = unit
                .iter()
                .rposition(|&b| b != 0)
                .map_or(0, |last| last + 1);
            &unit[..length]
        })
        .filter(|unit| !unit.is_empty())
        .collect()
}

/// Adds video usability information to an SPS without any.
///
/// The information holds the colours and the frame rate. It also states that frames are stored in
/// display order, so that players need not wait for later frames.
///
/// `references` is the number of reference frames that the SPS allows. The frame rate is
/// `timescale / tick`.
pub(crate) fn with_usability_info(
    sps: &[u8],
    references: u32,
    tick: u32,
    timescale: u32,
) -> Vec<u8> {
    let mut bits = Bits::default();
    for byte in unescaped(sps) {
        bits.put(byte.into(), 8);
    }
    // An SPS ends with the flag of this information, then a 1, then zeros up to a whole byte.
    while bits.0.pop() == Some(false) {}
    if bits.0.pop() != Some(false) {
        return sps.to_vec();
    }
    bits.put(1, 1);
    // No aspect ratio, no overscan. Signal type: unspecified format (5), narrow range, colours.
    for (value, count) in [(0, 1), (0, 1), (1, 1), (5, 3), (0, 1), (1, 1)] {
        bits.put(value, count);
    }
    for number in COLOUR {
        bits.put(number.into(), 8);
    }
    // No chroma location. Timing counts fields, so its rate is twice the frame rate.
    bits.put(0, 1);
    bits.put(1, 1);
    bits.put(tick, 32);
    bits.put(timescale.saturating_mul(2), 32);
    bits.put(1, 1);
    // No buffering models (there are two kinds), no picture structure.
    bits.put(0, 3);
    // Restrictions: motion vectors may point outside the picture. Only the last two limits apply: the
    // number of reordered frames (none) and the number of frames in the decoder's buffer.
    bits.put(0b11, 2);
    for limit in [0, 0, 16, 16, 0, references] {
        bits.put_exp_golomb(limit);
    }
    bits.put(1, 1);
    escaped(&bits.into_bytes())
}

#[derive(Default)]
struct Bits(Vec<bool>);

impl Bits {
    fn put(&mut self, value: u32, count: u32) {
        self.0.extend((0..count).rev().map(|i| value >> i & 1 == 1));
    }

    fn put_exp_golomb(&mut self, value: u32) {
        let length = (value + 1).ilog2() + 1;
        self.put(0, length - 1);
        self.put(value + 1, length);
    }

    fn into_bytes(self) -> Vec<u8> {
        let byte = |bits: &[bool]| {
            (0..8).fold(0, |byte, i| {
                byte << 1 | u8::from(bits.get(i) == Some(&true))
            })
        };
        self.0.chunks(8).map(byte).collect()
    }
}

/// Removes the emulation prevention bytes: the 3 after two zeros.
fn unescaped(unit: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(unit.len());
    for &byte in unit {
        bytes.push(byte);
        if bytes.ends_with(&[0, 0, 3]) {
            bytes.pop();
        }
    }
    bytes
}

fn escaped(bytes: &[u8]) -> Vec<u8> {
    let mut unit: Vec<u8> = Vec::with_capacity(bytes.len() + 4);
    for &byte in bytes {
        if byte <= 3 && unit.ends_with(&[0, 0]) {
            unit.push(3);
        }
        unit.push(byte);
    }
    unit
}
