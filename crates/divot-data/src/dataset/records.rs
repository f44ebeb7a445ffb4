//! Records of text files: lines of JSONL, and records of CSV. Only where each begins is kept in memory, 12
//! bytes for each.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom};
use std::ops::Range;
use std::path::{Path, PathBuf};

use memchr::{memchr, memchr_iter};

use super::sample::{Reason, Skip};

/// The longest record that is read, in bytes.
pub(super) const MAX_RECORD: u64 = 1 << 20;

pub(super) const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

/// Why a sample is left out, before it has a name.
#[derive(Debug)]
pub(super) struct Problem {
    pub reason: Reason,
    pub message: String,
}

impl Problem {
    pub fn new(reason: Reason, message: impl Into<String>) -> Self {
        let message = message.into();
        Self { reason, message }
    }

    pub fn malformed(message: impl Into<String>) -> Self {
        Self::new(Reason::Malformed, message)
    }

    /// The sample that is left out.
    pub fn skip(self, key: String) -> Skip {
        // Messages of others may span lines.
        let lines: Vec<_> = self.message.lines().collect();
        Skip {
            key,
            reason: self.reason,
            message: lines.join(" "),
        }
    }
}

impl From<io::Error> for Problem {
    fn from(error: io::Error) -> Self {
        let reason = match error.kind() {
            io::ErrorKind::NotFound => Reason::Missing,
            _ => Reason::Undecodable,
        };
        Self::new(reason, error.to_string())
    }
}

/// A text file whose records were found.
#[derive(Debug)]
pub(super) struct Records {
    pub path: PathBuf,
    starts: Vec<u64>,
    /// The line that each begins on, from 1.
    lines: Vec<u32>,
    /// Where the last one ends.
    end: u64,
}

impl Records {
    fn new(path: &Path) -> Self {
        Self {
            path: path.to_path_buf(),
            starts: Vec::new(),
            lines: Vec::new(),
            end: 0,
        }
    }

    fn push(&mut self, start: u64, line: u64) {
        self.starts.push(start);
        self.lines.push(u32::try_from(line).unwrap_or(u32::MAX));
    }

    fn finish(mut self, end: u64) -> Self {
        self.end = end;
        self.starts.shrink_to_fit();
        self.lines.shrink_to_fit();
        self
    }

    /// Finds the lines that are not blank.
    pub fn lines(path: &Path) -> io::Result<Self> {
        let mut file = Counted::open(path)?;
        let mut found = Self::new(path);
        let mut number = 0;
        loop {
            // Line by line, however long a line is.
            let start = file.offset;
            let mut blank = true;
            number += 1;
            loop {
                let buffer = file.fill()?;
                let Some(end) = memchr(b'\n', buffer).map(|end| end + 1).or_else(|| {
                    let rest = buffer.len();
                    (rest > 0).then_some(rest)
                }) else {
                    break;
                };
                blank = blank && buffer[..end].iter().all(u8::is_ascii_whitespace);
                let ended = buffer[end - 1] == b'\n';
                file.consume(end);
                if ended {
                    break;
                }
            }
            if file.offset == start {
                return Ok(found.finish(start));
            }
            if !blank {
                found.push(start, number);
            }
        }
    }

    /// Finds the records of a CSV file. `each` gets the fields of each, and `None` for one that is too long,
    /// and says whether it is kept.
    pub fn csv(path: &Path, mut each: impl FnMut(Option<&[&[u8]]>) -> bool) -> io::Result<Self> {
        let mut file = Counted::open(path)?;
        let mut found = Self::new(path);
        let mut parser = csv_core::Reader::new();
        let (mut output, mut ends) = (vec![0; MAX_RECORD as usize], vec![0; 1 << 16]);
        let mut line = 1;
        loop {
            // Line breaks between records belong to none.
            while let Some(byte @ (b'\n' | b'\r')) = file.fill()?.first() {
                line += u64::from(*byte == b'\n');
                file.consume(1);
            }
            let (start, first_line) = (file.offset, line);
            let (mut written, mut fields, mut too_long) = (0, 0, false);
            loop {
                let input = file.fill()?;
                let (result, read, bytes, count) =
                    parser.read_record(input, &mut output[written..], &mut ends[fields..]);
                line += memchr_iter(b'\n', &input[..read]).count() as u64;
                file.consume(read);
                (written, fields) = (written + bytes, fields + count);
                match result {
                    csv_core::ReadRecordResult::InputEmpty => {}
                    csv_core::ReadRecordResult::OutputFull
                    | csv_core::ReadRecordResult::OutputEndsFull => {
                        (written, fields, too_long) = (0, 0, true);
                    }
                    csv_core::ReadRecordResult::Record => break,
                    csv_core::ReadRecordResult::End => return Ok(found.finish(start)),
                }
            }
            let keep = match too_long || file.offset - start > MAX_RECORD {
                true => each(None),
                false => each(Some(&split(&output, &ends[..fields]))),
            };
            if keep {
                found.push(start, first_line);
            }
        }
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.starts.len()
    }

    /// The line of the file that a record begins on, from 1.
    pub fn line(&self, index: usize) -> u32 {
        self.lines[index]
    }

    /// The bytes of the file that a record is, with its line break and blank lines behind it.
    pub fn range(&self, index: usize) -> Range<u64> {
        let end = self.starts.get(index + 1).copied().unwrap_or(self.end);
        self.starts[index]..end
    }

    /// The bytes before the first record.
    pub fn head(&self) -> Range<u64> {
        0..self.starts.first().copied().unwrap_or(self.end)
    }

    /// Reads a record.
    pub fn read(&self, index: usize) -> Result<Vec<u8>, Problem> {
        let Range { start, end } = self.range(index);
        check_length(end - start)?;
        // The byte before it tells whether it still begins there.
        let before = u64::from(start > 0);
        let mut file = File::open(&self.path)?;
        file.seek(SeekFrom::Start(start - before))?;
        let mut bytes = Vec::new();
        let length = end - start + before;
        file.take(length).read_to_end(&mut bytes)?;
        let moved = before == 1 && !matches!(bytes.first(), Some(b'\n' | b'\r'));
        if moved || bytes.len() as u64 != length {
            let message = "the file was changed after it was indexed";
            return Err(Problem::new(Reason::Changed, message));
        }
        bytes.drain(..before as usize);
        if start == 0 && bytes.starts_with(BYTE_ORDER_MARK) {
            bytes.drain(..BYTE_ORDER_MARK.len());
        }
        bytes.truncate(bytes.trim_ascii_end().len());
        Ok(bytes)
    }
}

/// Refuses a record that is too long.
pub(super) fn check_length(length: u64) -> Result<(), Problem> {
    match length > MAX_RECORD {
        true => {
            let message = format!("{length} bytes, more than the limit of {MAX_RECORD}");
            Err(Problem::new(Reason::TooMuchText, message))
        }
        false => Ok(()),
    }
}

/// The fields of a CSV record.
pub(super) fn csv_fields(record: &[u8]) -> Result<Vec<String>, Problem> {
    let mut output = vec![0; record.len() + 1];
    let mut ends = vec![0; memchr_iter(b',', record).count() + 2];
    let mut parser = csv_core::Reader::new();
    let (_, read, written, mut count) = parser.read_record(record, &mut output, &mut ends);
    if read < record.len() {
        let message = "the file was changed after it was indexed";
        return Err(Problem::new(Reason::Changed, message));
    }
    // An empty input ends the record.
    let (_, _, _, last) = parser.read_record(&[], &mut output[written..], &mut ends[count..]);
    count += last;
    // Ends that were found by the second call are counted on from the first's, as positions in the output.
    let text = |field: &[u8]| {
        let text = std::str::from_utf8(field);
        text.map(str::to_owned)
            .map_err(|_| Problem::malformed("is not UTF-8"))
    };
    split(&output, &ends[..count])
        .into_iter()
        .map(text)
        .collect()
}

fn split<'a>(output: &'a [u8], ends: &[usize]) -> Vec<&'a [u8]> {
    let mut start = 0;
    let fields = ends.iter().map(|&end| {
        let field = &output[start..end];
        start = end;
        field
    });
    fields.collect()
}

/// A file and how much of it was read.
struct Counted {
    file: BufReader<File>,
    offset: u64,
}

impl Counted {
    fn open(path: &Path) -> io::Result<Self> {
        let file = BufReader::with_capacity(1 << 18, File::open(path)?);
        Ok(Self { file, offset: 0 })
    }

    fn fill(&mut self) -> io::Result<&[u8]> {
        self.file.fill_buf()
    }

    fn consume(&mut self, bytes: usize) {
        self.file.consume(bytes);
        self.offset += bytes as u64;
    }
}
