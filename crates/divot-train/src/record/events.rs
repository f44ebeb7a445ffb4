//! Event files that TensorBoard reads.
//!
//! A file is a sequence of TFRecords, each of which holds an `Event` of TensorFlow's `event.proto`. Only the
//! few messages that are needed are written, field by field.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use super::RecordError;
use super::files::Appender;

const PREFIX: &str = "events.out.tfevents.";

/// The event file of a run, or of one part of an interrupted run.
#[derive(Debug)]
pub(super) struct EventWriter {
    file: Appender,
}

impl EventWriter {
    /// Begins a new file in a run's folder.
    ///
    /// What older files say of `from` and later steps does not count: TensorBoard drops it.
    pub(super) fn create(folder: &Path, from: usize) -> Result<Self, RecordError> {
        let path = file_path(folder).map_err(|error| RecordError::read(folder, error))?;
        let mut file = Appender::open(path)?;
        let mut start = record(&event(0, |event| event.bytes(3, b"brain.Event:2")));
        start.extend(record(&event(from, |event| {
            // SessionLog.START
            event.message(7, |log| log.int(1, 1));
        })));
        file.append(&start)
            .map_err(|error| RecordError::write(file.path(), error))?;
        Ok(Self { file })
    }

    pub(super) fn path(&self) -> &Path {
        self.file.path()
    }

    pub(super) fn scalars<'a>(
        &mut self,
        step: usize,
        values: impl IntoIterator<Item = (&'a str, f64)>,
    ) -> io::Result<()> {
        self.summary(step, |summary| {
            for (tag, number) in values {
                summary.message(1, |value| {
                    value.bytes(1, tag.as_bytes());
                    value.float(2, number as f32);
                });
            }
        })
    }

    /// A PNG image. `size` is its width and height in pixels.
    pub(super) fn image(
        &mut self,
        step: usize,
        tag: &str,
        png: &[u8],
        [width, height]: [u32; 2],
    ) -> io::Result<()> {
        self.summary(step, |summary| {
            summary.message(1, |value| {
                value.bytes(1, tag.as_bytes());
                value.message(4, |image| {
                    image.int(1, height.into());
                    image.int(2, width.into());
                    image.int(3, 3); // RGB
                    image.bytes(4, png);
                });
            });
        })
    }

    /// A text, which TensorBoard shows as Markdown.
    pub(super) fn text(&mut self, step: usize, tag: &str, text: &str) -> io::Result<()> {
        self.summary(step, |summary| {
            summary.message(1, |value| {
                value.bytes(1, tag.as_bytes());
                value.message(8, |tensor| {
                    tensor.int(1, 7); // DT_STRING
                    tensor.message(2, |shape| shape.message(2, |side| side.int(1, 1)));
                    tensor.bytes(8, text.as_bytes());
                });
                value.message(9, |metadata| {
                    metadata.message(1, |plugin| plugin.bytes(1, b"text"));
                });
            });
        })
    }

    /// Writes what could not be written before.
    pub(super) fn flush(&mut self) -> io::Result<()> {
        self.file.append(b"")
    }

    fn summary(&mut self, step: usize, fill: impl FnOnce(&mut Message)) -> io::Result<()> {
        let event = event(step, |event| event.message(5, fill));
        self.file.append(&record(&event))
    }
}

/// Where the next file goes. TensorBoard reads a folder's files in the order of their names, so the time in
/// the name is later than that of every other file.
fn file_path(folder: &Path) -> io::Result<PathBuf> {
    let mut seconds = now().as_secs();
    for entry in fs::read_dir(folder)? {
        let name = entry?.file_name();
        let time = name.to_str().and_then(|name| name.strip_prefix(PREFIX));
        if let Some(time) = time.and_then(|rest| rest.split('.').next()?.parse::<u64>().ok()) {
            seconds = seconds.max(time.saturating_add(1));
        }
    }
    Ok(folder.join(format!("{PREFIX}{seconds:010}.{}", host())))
}

/// The machine's name, as far as it can be part of a file's name.
fn host() -> String {
    let name = fs::read_to_string("/proc/sys/kernel/hostname")
        .ok()
        .or_else(|| std::env::var("HOSTNAME").ok())
        .or_else(|| std::env::var("COMPUTERNAME").ok())
        .unwrap_or_default();
    let plain = |c: &char| c.is_ascii_alphanumeric() || "-._".contains(*c);
    let name: String = name.trim().chars().filter(plain).take(64).collect();
    match name.is_empty() {
        true => "localhost".to_owned(),
        false => name,
    }
}

fn now() -> std::time::Duration {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
}

fn event(step: usize, fill: impl FnOnce(&mut Message)) -> Vec<u8> {
    let mut event = Message::default();
    event.double(1, now().as_secs_f64());
    event.int(2, step as u64);
    fill(&mut event);
    event.0
}

/// A TFRecord: length and content, each followed by its checksum.
fn record(content: &[u8]) -> Vec<u8> {
    let length = (content.len() as u64).to_le_bytes();
    let mut record = Vec::with_capacity(content.len() + 16);
    record.extend(length);
    record.extend(masked_crc(&length).to_le_bytes());
    record.extend(content);
    record.extend(masked_crc(content).to_le_bytes());
    record
}

/// The CRC-32C of TFRecords. It is masked, since the CRC of data that holds its own CRC is a constant.
fn masked_crc(data: &[u8]) -> u32 {
    crc32c::crc32c(data)
        .rotate_right(15)
        .wrapping_add(0xa282_ead8)
}

/// A message of Protocol Buffers.
#[derive(Default)]
struct Message(Vec<u8>);

impl Message {
    fn varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.0.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.0.push(value as u8);
    }

    fn key(&mut self, field: u64, wire: u64) {
        self.varint(field << 3 | wire);
    }

    fn int(&mut self, field: u64, value: u64) {
        self.key(field, 0);
        self.varint(value);
    }

    fn double(&mut self, field: u64, value: f64) {
        self.key(field, 1);
        self.0.extend(value.to_le_bytes());
    }

    fn float(&mut self, field: u64, value: f32) {
        self.key(field, 5);
        self.0.extend(value.to_le_bytes());
    }

    fn bytes(&mut self, field: u64, value: &[u8]) {
        self.key(field, 2);
        self.varint(value.len() as u64);
        self.0.extend(value);
    }

    fn message(&mut self, field: u64, fill: impl FnOnce(&mut Self)) {
        let mut inner = Self::default();
        fill(&mut inner);
        self.bytes(field, &inner.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checksums_are_those_of_the_standard() {
        // RFC 3720, B.4, and the mask undone.
        let unmask = |crc: u32| crc.wrapping_sub(0xa282_ead8).rotate_left(15);
        let ascending: Vec<u8> = (0..32).collect();
        for (data, crc) in [
            ([0; 32].as_slice(), 0x8a91_36aa),
            (&[0xff; 32], 0x62a8_ab43),
            (&ascending, 0x46dd_794e),
            (b"123456789", 0xe306_9283),
        ] {
            assert_eq!(unmask(masked_crc(data)), crc);
        }
    }

    /// The first record of every file that TensorFlow writes, with a time of 1.5e9 seconds.
    #[test]
    fn a_record_is_framed_as_tensorflow_frames_it() {
        let mut event = Message::default();
        event.double(1, 1.5e9);
        event.bytes(3, b"brain.Event:2");
        let record = record(&event.0);
        // The length is 24 in each such file, and so its checksum is known.
        assert_eq!(&record[..12], b"\x18\0\0\0\0\0\0\0\xa3\x7f\x4b\x22");
        assert_eq!(&record[12..14], b"\x09\0");
        assert_eq!(&record[21..36], b"\x1a\x0dbrain.Event:2");
        assert_eq!(record.len(), 40);
        assert_eq!(record[36..], masked_crc(&event.0).to_le_bytes());
    }

    #[test]
    fn integers_are_varints() {
        let mut message = Message::default();
        message.int(2, 300);
        message.int(16, 0);
        assert_eq!(message.0, [0x10, 0xac, 0x02, 0x80, 0x01, 0]);
    }

    #[test]
    fn a_later_file_has_a_later_name() {
        let folder = tempfile::tempdir().unwrap();
        let mut names: Vec<_> = (0..12)
            .map(|_| {
                let writer = EventWriter::create(folder.path(), 0).unwrap();
                writer.path().file_name().unwrap().to_owned()
            })
            .collect();
        assert!(names.is_sorted());
        names.dedup();
        assert_eq!(names.len(), 12);
    }
}
