//! Damage to files: random faults, wrong sizes and counts, and contents that checksums would hide.

use std::io::{Cursor, Read, Write};
use std::ops::Range;

use chacha20::ChaCha12Rng;
use flate2::Compression;
use flate2::read::GzDecoder;
use flate2::write::GzEncoder;
use rand_core::{Rng, SeedableRng};
use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, ZipArchive, ZipWriter};

/// A seeded source of choices.
pub struct Random(ChaCha12Rng);

impl Random {
    /// Choices of the input `number` under `seed`.
    pub fn new(seed: u64, number: u64) -> Self {
        let mut rng = ChaCha12Rng::seed_from_u64(seed);
        rng.set_stream(number);
        Self(rng)
    }

    /// A number below `end`, or 0 for an `end` of 0.
    fn below(&mut self, end: usize) -> usize {
        (self.0.next_u64() % end.max(1) as u64) as usize
    }

    /// One of the items.
    pub fn pick<'a, T>(&mut self, items: &'a [T]) -> &'a T {
        &items[self.below(items.len())]
    }

    fn range(&mut self, length: usize, most: usize) -> Range<usize> {
        let start = self.below(length);
        start..(start + 1 + self.below(most)).min(length)
    }
}

/// How gzip's files begin.
const GZIP: [u8; 2] = [0x1f, 0x8b];

/// Integers at which sizes, counts and offsets overflow.
const INTEGERS: [u64; 17] = [
    0,
    1,
    2,
    7,
    8,
    0x7F,
    0x80,
    0xFF,
    0x7FFF,
    0xFFFF,
    0x0100_0000,
    0x7FFF_FFFF,
    0x8000_0000,
    0xFFFF_FFFF,
    1 << 40,
    i64::MAX as u64,
    u64::MAX,
];

/// Values that readers of JSON may stumble over.
const JSON: [&str; 12] = [
    "null",
    "-1",
    "0",
    "1e999",
    "18446744073709551616",
    "4294967295",
    "\"\"",
    "[]",
    "{}",
    "true",
    "[[[[[[[[[[",
    "\"\\ud800\"",
];

/// A damaged copy of `good`, with pieces of `other` in places.
pub fn mutate(random: &mut Random, good: &[u8], other: &[u8]) -> Vec<u8> {
    // The contents of an archive are damaged behind its checksums half of the time.
    if good.starts_with(b"PK") && random.below(2) == 0 {
        return mutate_archive(random, good).unwrap_or_else(|| good.to_vec());
    }
    if good.starts_with(&GZIP) && random.below(4) > 0 {
        return mutate_packed(random, good).unwrap_or_else(|| good.to_vec());
    }
    let mut bytes = good.to_vec();
    for _ in 0..1 + random.below(6) {
        if bytes.is_empty() {
            bytes.push(0);
        }
        one(random, &mut bytes, other);
    }
    if random.below(4) > 0 {
        repair_png(&mut bytes);
        repair_tar(&mut bytes);
    }
    bytes
}

fn one(random: &mut Random, bytes: &mut Vec<u8>, other: &[u8]) {
    match random.below(10) {
        0 => {
            let at = place(random, bytes);
            bytes[at] ^= 1 << random.below(8);
        }
        1 => {
            let at = place(random, bytes);
            bytes[at] = random.below(256) as u8;
        }
        2 | 3 => integer(random, bytes),
        4 => bytes.truncate(place(random, bytes)),
        5 => {
            let range = random.range(bytes.len(), 4096);
            bytes.drain(range);
        }
        6 => {
            let chunk = bytes[random.range(bytes.len(), 4096)].to_vec();
            let at = random.below(bytes.len());
            bytes.splice(at..at, chunk);
        }
        7 => {
            let chunk = other[random.range(other.len(), 4096)].to_vec();
            let range = random.range(bytes.len(), 4096);
            bytes.splice(range, chunk);
        }
        8 => json(random, bytes),
        _ => chunks(random, bytes),
    }
}

/// A position: anywhere, near the start or the end, or in the header of a box or chunk.
fn place(random: &mut Random, bytes: &[u8]) -> usize {
    let near = bytes.len().min(256);
    let at = match random.below(4) {
        0 => random.below(near),
        1 => bytes.len() - 1 - random.below(near),
        2 => name(random, bytes).unwrap_or(0).saturating_sub(8) + random.below(32),
        _ => random.below(bytes.len()),
    };
    at.min(bytes.len() - 1)
}

/// Where the name of a box, chunk or record begins. Searched from a random position.
fn name(random: &mut Random, bytes: &[u8]) -> Option<usize> {
    let last = bytes.len().saturating_sub(4);
    let start = random.below(last);
    (start..last).chain(0..start).find(|&i| {
        bytes[i..i + 4].iter().all(u8::is_ascii_alphabetic) || bytes[i..].starts_with(b"PK")
    })
}

/// Writes an integer of 1, 2, 4 or 8 bytes, or changes the one there by a little.
fn integer(random: &mut Random, bytes: &mut [u8]) {
    let width = *random.pick(&[1, 2, 4, 8]);
    // The field before a box's name, or one of a few behind it.
    let at = match name(random, bytes) {
        Some(name) if random.below(2) == 0 => (name + 4 * random.below(10)).saturating_sub(4),
        _ => place(random, bytes),
    };
    let Some(field) = bytes.get_mut(at..at + width) else {
        return;
    };
    let big_endian = random.below(2) == 0;
    if big_endian {
        field.reverse();
    }
    let mut value = [0; 8];
    value[..width].copy_from_slice(field);
    let value = if random.below(3) == 0 {
        u64::from_le_bytes(value).wrapping_add_signed(random.below(33) as i64 - 16)
    } else {
        *random.pick(&INTEGERS)
    };
    field.copy_from_slice(&value.to_le_bytes()[..width]);
    if big_endian {
        field.reverse();
    }
}

/// Removes or repeats what lies between two names.
fn chunks(random: &mut Random, bytes: &mut Vec<u8>) {
    let (Some(a), Some(b)) = (name(random, bytes), name(random, bytes)) else {
        return;
    };
    let range = a.min(b).saturating_sub(4)..a.max(b).saturating_sub(4);
    if random.below(2) == 0 {
        bytes.drain(range);
    } else if range.len() < 1 << 16 {
        let chunk = bytes[range.clone()].to_vec();
        bytes.splice(range.start..range.start, chunk);
    }
}

/// Replaces a value of JSON, where one is found.
fn json(random: &mut Random, bytes: &mut Vec<u8>) {
    let start = random.below(bytes.len());
    let Some(at) = bytes[start..].iter().position(|b| b":,[".contains(b)) else {
        return;
    };
    let at = start + at + 1;
    let end = bytes[at..].iter().position(|b| b",]}".contains(b));
    let end = end.map_or(at, |length| at + length);
    bytes.splice(at..end, random.pick(&JSON).bytes());
}

/// Makes the checksums of a PNG's chunks right again.
fn repair_png(bytes: &mut [u8]) {
    if !bytes.starts_with(b"\x89PNG\r\n\x1a\n") {
        return;
    }
    let mut at = 8;
    while let Some(&[a, b, c, d]) = bytes.get(at..at + 4) {
        let end = at + 8 + u32::from_be_bytes([a, b, c, d]) as usize;
        let Some(covered) = bytes.get(at + 4..end) else {
            return;
        };
        let mut crc = flate2::Crc::new();
        crc.update(covered);
        if let Some(stored) = bytes.get_mut(end..end + 4) {
            stored.copy_from_slice(&crc.sum().to_be_bytes());
        }
        at = end + 4;
    }
}

/// Makes the checksums of a tar archive's headers right again.
fn repair_tar(bytes: &mut [u8]) {
    for header in bytes.chunks_exact_mut(512) {
        if header[257..].starts_with(b"ustar") {
            header[148..156].fill(b' ');
            let sum: u32 = header.iter().map(|&byte| u32::from(byte)).sum();
            header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        }
    }
}

/// Damages what is compressed and compresses it anew.
fn mutate_packed(random: &mut Random, good: &[u8]) -> Option<Vec<u8>> {
    let mut content = Vec::new();
    GzDecoder::new(good).read_to_end(&mut content).ok()?;
    let damaged = mutate(random, &content, &content);
    let mut packed = GzEncoder::new(Vec::new(), Compression::fast());
    packed.write_all(&damaged).ok()?;
    packed.finish().ok()
}

/// Damages one file of a zip archive and writes the archive anew.
fn mutate_archive(random: &mut Random, good: &[u8]) -> Option<Vec<u8>> {
    let mut archive = ZipArchive::new(Cursor::new(good)).ok()?;
    // A pickle is damaged more often than a tensor's values.
    let pickle = (0..archive.len()).find(|&i| {
        let name = archive.name_for_index(i);
        name.is_some_and(|name| name.is_ok_and(|name| name.ends_with(".pkl")))
    });
    let damaged = match pickle {
        Some(pickle) if random.below(4) > 0 => pickle,
        _ => random.below(archive.len()),
    };
    let mut written = ZipWriter::new(Cursor::new(Vec::new()));
    let options = SimpleFileOptions::default().compression_method(CompressionMethod::Stored);
    for index in 0..archive.len() {
        let mut content = Vec::new();
        let mut file = archive.by_index(index).ok()?;
        file.read_to_end(&mut content).ok()?;
        if index == damaged {
            let other = content.clone();
            for _ in 0..1 + random.below(4) {
                if content.is_empty() {
                    content.push(0);
                }
                one(random, &mut content, &other);
            }
        }
        let name = file.name().ok()?.into_owned();
        drop(file);
        written.start_file(name, options).ok()?;
        written.write_all(&content).ok()?;
    }
    Some(written.finish().ok()?.into_inner())
}
