//! Samples that are lines of text files. Only where each line begins is kept in memory.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

/// The longest line that is read, in bytes.
pub(super) const MAX_LINE: u64 = 4 << 20;

/// A text file whose lines were found.
#[derive(Debug)]
pub(super) struct Lines {
    pub path: PathBuf,
    /// Where the lines that are not blank begin, and their numbers from 1 in the file.
    starts: Vec<u64>,
    numbers: Vec<u32>,
}

impl Lines {
    /// Finds the lines of a file.
    pub fn index(path: &Path) -> io::Result<Self> {
        let mut file = BufReader::with_capacity(1 << 20, File::open(path)?);
        let (mut starts, mut numbers) = (Vec::new(), Vec::new());
        let (mut offset, mut number) = (0, 0);
        loop {
            // Line by line, however long a line is.
            let start = offset;
            let mut blank = true;
            let ended = loop {
                let buffer = file.fill_buf()?;
                if buffer.is_empty() {
                    break false;
                }
                let end = buffer.iter().position(|&byte| byte == b'\n');
                let line = &buffer[..end.unwrap_or(buffer.len())];
                blank &= line.iter().all(u8::is_ascii_whitespace);
                let used = line.len() + usize::from(end.is_some());
                file.consume(used);
                offset += used as u64;
                if end.is_some() {
                    break true;
                }
            };
            number += 1;
            if !blank {
                starts.push(start);
                numbers.push(number);
            }
            if !ended {
                break;
            }
        }
        Ok(Self {
            path: path.to_path_buf(),
            starts,
            numbers,
        })
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.starts.len()
    }

    /// The number of a line in the file, from 1.
    pub fn number(&self, index: usize) -> u32 {
        self.numbers[index]
    }

    /// Reads a line; `None` if it is longer than [`MAX_LINE`].
    pub fn read(&self, index: usize) -> io::Result<Option<String>> {
        let mut file = File::open(&self.path)?;
        file.seek(SeekFrom::Start(self.starts[index]))?;
        let mut line = Vec::new();
        let mut file = BufReader::new(file.take(MAX_LINE + 1));
        file.read_until(b'\n', &mut line)?;
        if line.len() as u64 > MAX_LINE {
            return Ok(None);
        }
        let line = String::from_utf8(line);
        line.map(Some)
            .map_err(|_| io::Error::new(io::ErrorKind::InvalidData, "is not UTF-8"))
    }
}
