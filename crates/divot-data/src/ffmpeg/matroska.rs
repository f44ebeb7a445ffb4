//! Reads raw frames and their time stamps from the Matroska stream that `ffmpeg` writes to a pipe.
//!
//! A stream of raw video would have the pixels but not the time stamps that identify the frames.

use std::io::{self, Read};

const SEGMENT: u32 = 0x1853_8067;
const CLUSTER: u32 = 0x1f43_b675;
const BLOCK_GROUP: u32 = 0xa0;
const BLOCK: u32 = 0xa1;
const SIMPLE_BLOCK: u32 = 0xa3;
const TIMESTAMP: u32 = 0xe7;

/// Length of the track number, the relative time stamp and the flags before a block's data, in bytes.
const BLOCK_HEADER: u64 = 4;

/// Reads the blocks of the first track in order.
pub(super) struct Blocks<R> {
    input: R,
    cluster: i64,
}

impl<R: Read> Blocks<R> {
    pub fn new(input: R) -> Self {
        Self { input, cluster: 0 }
    }

    /// Returns the time stamp in milliseconds and the length in bytes of the next block. The caller reads
    /// its data with [`Blocks::read`]. Returns `None` at the end.
    pub fn next(&mut self) -> io::Result<Option<(i64, u64)>> {
        loop {
            let Some(id) = self.id()? else {
                return Ok(None);
            };
            let size = self.size()?;
            match id {
                SEGMENT | CLUSTER | BLOCK_GROUP => {}
                TIMESTAMP => {
                    self.cluster = 0;
                    for _ in 0..size.min(8) {
                        self.cluster = self.cluster << 8 | i64::from(self.byte()?);
                    }
                }
                SIMPLE_BLOCK | BLOCK => {
                    let mut header = [0; BLOCK_HEADER as usize];
                    self.input.read_exact(&mut header)?;
                    let relative = i16::from_be_bytes([header[1], header[2]]);
                    let length = size.checked_sub(BLOCK_HEADER).ok_or_else(broken)?;
                    return Ok(Some((self.cluster.wrapping_add(relative.into()), length)));
                }
                _ => self.skip(size)?,
            }
        }
    }

    /// Fills `data` with the next bytes of the current block.
    pub fn read(&mut self, data: &mut [u8]) -> io::Result<()> {
        self.input.read_exact(data)
    }

    /// Skips `length` bytes.
    pub fn skip(&mut self, length: u64) -> io::Result<()> {
        let skipped = io::copy(&mut self.input.by_ref().take(length), &mut io::sink())?;
        if skipped == length {
            Ok(())
        } else {
            Err(broken())
        }
    }

    fn byte(&mut self) -> io::Result<u8> {
        let mut byte = [0];
        self.input.read_exact(&mut byte)?;
        Ok(byte[0])
    }

    /// Reads the ID of an element, with its length marker. Returns `None` at the end of the stream.
    fn id(&mut self) -> io::Result<Option<u32>> {
        let first = match self.byte() {
            Ok(first) => first,
            Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
            Err(e) => return Err(e),
        };
        if first.leading_zeros() > 3 {
            return Err(broken());
        }
        let mut id = u32::from(first);
        for _ in 0..first.leading_zeros() {
            id = id << 8 | u32::from(self.byte()?);
        }
        Ok(Some(id))
    }

    /// Reads the size of an element, without its length marker.
    fn size(&mut self) -> io::Result<u64> {
        let first = self.byte()?;
        let more = first.leading_zeros();
        if more > 7 {
            return Err(broken());
        }
        let mut size = u64::from(first) & (0x7f >> more);
        for _ in 0..more {
            size = size << 8 | u64::from(self.byte()?);
        }
        Ok(size)
    }
}

fn broken() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "its output is broken")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_of_known_and_unknown_sizes() {
        let mut stream = vec![0x1a, 0x45, 0xdf, 0xa3, 0x81, 9];
        stream.extend([0x18, 0x53, 0x80, 0x67, 1, 255, 255, 255, 255, 255, 255, 255]);
        stream.extend([0x1f, 0x43, 0xb6, 0x75, 0xff, 0xe7, 0x82, 0x01, 0x00]);
        stream.extend([0xa3, 0x86, 0x81, 0, 5, 0, 7, 8]);
        stream.extend([0xa0, 0x87, 0xa1, 0x85, 0x81, 0xff, 0xff, 0, 9]);
        let mut blocks = Blocks::new(&stream[..]);
        assert_eq!(blocks.next().unwrap(), Some((261, 2)));
        let mut data = [0; 2];
        blocks.read(&mut data).unwrap();
        assert_eq!(data, [7, 8]);
        assert_eq!(blocks.next().unwrap(), Some((255, 1)));
        blocks.skip(1).unwrap();
        assert_eq!(blocks.next().unwrap(), None);
        // Truncated within an element, and no element at all.
        assert!(Blocks::new(&stream[..stream.len() - 12]).next().is_err());
        assert!(Blocks::new(&[0u8, 1][..]).next().is_err());
    }
}
