//! Lists of captions, row by row, for what copies some of the rows.

use std::fs::File;
use std::io::{BufReader, Read};
use std::ops::Range;
use std::path::{Path, PathBuf};

use super::annotations;
use super::config::Columns;
use super::records::{BYTE_ORDER_MARK, Problem, Records, check_length};
use super::sample::Skip;
use super::table::Table;
use crate::{Error, Result};

/// A file of captions: JSONL of the format `captions`, or CSV of the format `csv`, as its name ends.
///
/// Only the places of the rows are kept in memory.
#[derive(Debug)]
pub struct CaptionList {
    path: PathBuf,
    content: Content,
}

#[derive(Debug)]
enum Content {
    Lines(Records),
    Table(Table),
}

/// A row of a list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CaptionRow {
    /// The row as the file has it, with its line break. The last row of a file may have none.
    pub bytes: Vec<u8>,
    /// Its captions, at least one, none of them blank: several in a line with a list, and in a record of Panda-70M.
    /// Otherwise, why the row is of no use.
    pub captions: Result<Vec<String>, Skip>,
}

impl CaptionList {
    /// Finds the rows of a file. `columns` names those of a CSV file; without it, they are found as a
    /// [`Source`](super::Source) finds them.
    ///
    /// # Errors
    /// If the file cannot be read or is of another kind; [`Error::NoSamples`] for a CSV file without the columns.
    pub fn open(path: &Path, columns: Option<&Columns>) -> Result<Self> {
        if !path.metadata().map_err(|e| Error::read(path, e))?.is_file() {
            return Err(Error::Argument(format!(
                "{}: is no file; give a .jsonl or .csv file of captions",
                path.display()
            )));
        }
        let extension = path.extension().unwrap_or_default().to_ascii_lowercase();
        let content = match extension.to_str() {
            Some("jsonl") => {
                Content::Lines(Records::lines(path).map_err(|error| Error::read(path, error))?)
            }
            Some("csv") => Content::Table(Table::index(path, columns)?),
            _ => {
                return Err(Error::Argument(format!(
                    "{}: is no list of captions by its name; give a .jsonl or .csv file",
                    path.display()
                )));
            }
        };
        Ok(Self {
            path: path.to_path_buf(),
            content,
        })
    }

    /// Its path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// How many rows there are, without the header of a CSV file.
    pub fn len(&self) -> usize {
        self.records().len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// What stands before the rows of a CSV file, as it has it. Nothing for JSONL.
    ///
    /// # Errors
    /// If the file cannot be read.
    pub fn header(&self) -> Result<Vec<u8>> {
        let range = match &self.content {
            Content::Lines(_) => return Ok(Vec::new()),
            Content::Table(table) => table.records.head(),
        };
        let read = || {
            let mut bytes = Vec::new();
            let file = File::open(&self.path)?;
            file.take(range.end).read_to_end(&mut bytes)?;
            Ok(bytes)
        };
        read().map_err(|error| Error::read(&self.path, error))
    }

    /// The rows, in order. The file is read once, and one row is in memory at a time.
    ///
    /// # Errors
    /// If the file cannot be opened. An item is an error if it cannot be read, or has changed since it was opened.
    pub fn rows(&self) -> Result<CaptionRows<'_>> {
        let file = File::open(&self.path).map_err(|error| Error::read(&self.path, error))?;
        Ok(CaptionRows {
            list: self,
            file: BufReader::with_capacity(1 << 18, file),
            at: 0,
            next: 0,
        })
    }

    fn records(&self) -> &Records {
        match &self.content {
            Content::Lines(records) => records,
            Content::Table(table) => &table.records,
        }
    }

    fn captions(&self, index: usize, bytes: &[u8]) -> Result<Vec<String>, Skip> {
        let bytes = bytes.trim_ascii_end();
        let captions = match &self.content {
            Content::Lines(_) => annotations::captions(bytes),
            Content::Table(table) => table.captions(bytes),
        };
        captions.map_err(|problem| self.skip(index, problem))
    }

    fn skip(&self, index: usize, problem: Problem) -> Skip {
        let line = self.records().line(index);
        problem.skip(format!("{}:{line}", self.path.display()))
    }
}

/// The rows of a [`CaptionList`].
#[derive(Debug)]
pub struct CaptionRows<'a> {
    list: &'a CaptionList,
    file: BufReader<File>,
    /// Where in the file it is.
    at: u64,
    next: usize,
}

impl CaptionRows<'_> {
    fn read(&mut self, index: usize) -> Result<CaptionRow> {
        let Range { start, end } = self.list.records().range(index);
        if let Err(problem) = check_length(end - start) {
            return Ok(CaptionRow {
                bytes: Vec::new(),
                captions: Err(self.list.skip(index, problem)),
            });
        }
        let path = &self.list.path;
        // The byte before it tells whether it still begins there.
        let from = start.saturating_sub(1);
        if from != self.at {
            let seek = self.file.seek_relative(from as i64 - self.at as i64);
            seek.map_err(|error| Error::read(path, error))?;
        }
        let mut bytes = Vec::new();
        let read = (&mut self.file).take(end - from).read_to_end(&mut bytes);
        read.map_err(|error| Error::read(path, error))?;
        self.at = from + bytes.len() as u64;
        let moved = start > 0 && !matches!(bytes.first(), Some(b'\n' | b'\r'));
        if moved || self.at != end {
            return Err(Error::NoSamples {
                path: path.clone(),
                what: "the file was changed while it was read".into(),
                remedy: "run again when nothing writes to it".into(),
            });
        }
        bytes.drain(..(start - from) as usize);
        if start == 0 && bytes.starts_with(BYTE_ORDER_MARK) {
            bytes.drain(..BYTE_ORDER_MARK.len());
        }
        bytes.truncate(row_length(&bytes));
        Ok(CaptionRow {
            captions: self.list.captions(index, &bytes),
            bytes,
        })
    }
}

impl Iterator for CaptionRows<'_> {
    type Item = Result<CaptionRow>;

    fn next(&mut self) -> Option<Self::Item> {
        let index = self.next;
        (index < self.list.len()).then(|| {
            self.next += 1;
            self.read(index)
        })
    }
}

/// The length of a row with one line break, without blank lines behind it.
fn row_length(bytes: &[u8]) -> usize {
    let text = bytes.trim_ascii_end().len();
    match bytes[text..].iter().position(|&byte| byte == b'\n') {
        Some(end) => text + end + 1,
        None => bytes.len(),
    }
}
