//! Files that grow by whole records, and files that are replaced whole.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead, BufReader, BufWriter, Read, Write};
use std::path::{Path, PathBuf};

use super::RecordError;

/// Bytes that wait for a disk that takes nothing. What comes after is lost.
const MAX_PENDING: usize = 4 << 20;
/// A longer line is none of ours.
const MAX_LINE: u64 = 1 << 20;

/// A file that grows by whole records.
///
/// Where a record cannot be written, the file is cut to the last whole one, and the record waits for the
/// next call.
#[derive(Debug)]
pub(super) struct Appender {
    path: PathBuf,
    file: File,
    /// Bytes of whole records in the file.
    length: u64,
    /// The file may hold a part of a record after `length`, which could not be cut off.
    torn: bool,
    pending: Vec<u8>,
}

impl Appender {
    /// Opens a file to append to. It is created if it does not exist.
    pub(super) fn open(path: PathBuf) -> Result<Self, RecordError> {
        let open = || {
            let file = OpenOptions::new().append(true).create(true).open(&path)?;
            let length = file.metadata()?.len();
            Ok((file, length))
        };
        let (file, length) = open().map_err(|error| RecordError::write(&path, error))?;
        Ok(Self {
            path,
            file,
            length,
            torn: false,
            pending: Vec::new(),
        })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Appends a record, after those that wait.
    pub(super) fn append(&mut self, record: &[u8]) -> io::Result<()> {
        if self.pending.len() + record.len() <= MAX_PENDING {
            self.pending.extend(record);
        }
        if self.torn {
            self.file.set_len(self.length)?;
            self.torn = false;
        }
        if let Err(error) = self.file.write_all(&self.pending) {
            self.torn = self.file.set_len(self.length).is_err();
            return Err(error);
        }
        self.length += self.pending.len() as u64;
        self.pending.clear();
        Ok(())
    }
}

/// Opens a file of lines for a run that goes on, without the lines that are not to be kept. The file is
/// replaced by one without them.
///
/// `keep` says whether a line is kept, or nothing if the line cannot be read. Such a line is dropped at the
/// end of the file, where a crash may have left it.
///
/// # Errors
/// If the file cannot be read or written, or another line than the last cannot be read.
pub(super) fn resume_lines(
    path: PathBuf,
    mut keep: impl FnMut(&[u8]) -> Option<bool>,
) -> Result<Appender, RecordError> {
    let old = match File::open(&path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Appender::open(path),
        Err(error) => return Err(RecordError::read(&path, error)),
    };
    let mut old = BufReader::new(old);
    let mut foreign = None;
    let mut number = 0;
    let mut line = Vec::new();
    let copied = replace(&path, |new| {
        loop {
            number += 1;
            line.clear();
            if old.by_ref().take(MAX_LINE).read_until(b'\n', &mut line)? == 0 {
                return Ok(());
            }
            let whole = line.pop_if(|byte| *byte == b'\n').is_some();
            match keep(&line) {
                Some(true) => {
                    new.write_all(&line)?;
                    new.write_all(b"\n")?;
                }
                Some(false) => {}
                None if !whole && old.fill_buf()?.is_empty() => {}
                None => {
                    foreign = Some(number);
                    return Err(io::ErrorKind::InvalidData.into());
                }
            }
        }
    });
    match (foreign, copied) {
        (Some(line), _) => Err(RecordError::Foreign { path, line }),
        (None, Err(error)) => Err(RecordError::write(&path, error)),
        (None, Ok(())) => Appender::open(path),
    }
}

/// Writes a file beside its place and renames it, so that it is whole or as it was before.
///
/// Only one process works in a run's folder. The name beside is therefore always the same, and what a
/// killed process left is overwritten.
pub(super) fn replace(
    path: &Path,
    write: impl FnOnce(&mut BufWriter<File>) -> io::Result<()>,
) -> io::Result<()> {
    let mut partial = path.as_os_str().to_owned();
    partial.push(".partial");
    let written = (|| {
        let mut file = BufWriter::new(File::create(&partial)?);
        write(&mut file)?;
        file.into_inner()?.sync_data()?;
        fs::rename(&partial, path)
    })();
    if written.is_err() {
        let _ = fs::remove_file(&partial);
    }
    written
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbers_up_to(last: u32) -> impl FnMut(&[u8]) -> Option<bool> {
        move |line| {
            let number: u32 = std::str::from_utf8(line).ok()?.parse().ok()?;
            Some(number <= last)
        }
    }

    #[test]
    fn lines_are_cut_and_a_half_one_is_dropped() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("lines");
        for (before, after) in [
            ("1\n2\n3\n4\n", "1\n2\n3\n"),
            ("1\n2\n3", "1\n2\n3\n"),
            ("1\n2\n{", "1\n2\n"),
            ("", ""),
        ] {
            fs::write(&path, before).unwrap();
            let mut lines = resume_lines(path.clone(), numbers_up_to(3)).unwrap();
            assert_eq!(fs::read_to_string(&path).unwrap(), after);
            lines.append(b"5\n").unwrap();
            assert_eq!(
                fs::read_to_string(&path).unwrap(),
                format!("{after}5\n"),
                "after {before:?}"
            );
        }
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_foreign_file_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("lines");
        let long = [
            b"1\n".as_slice(),
            &vec![b'1'; MAX_LINE as usize + 5],
            b"\n2\n",
        ]
        .concat();
        for before in [b"1\nshopping list\n2\n".as_slice(), &long] {
            fs::write(&path, before).unwrap();
            let error = resume_lines(path.clone(), numbers_up_to(3)).unwrap_err();
            assert!(error.to_string().contains("lines:2: "), "{error}");
            assert_eq!(fs::read(&path).unwrap(), before);
            assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
        }
    }

    #[test]
    fn a_failed_replacement_leaves_what_was_there() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("page");
        fs::write(&path, "old").unwrap();
        let failed = replace(&path, |file| {
            file.write_all(&vec![b'n'; 1 << 20])?;
            // Nobody sees a part of the new file.
            assert_eq!(fs::read_to_string(&path)?, "old");
            Err(io::ErrorKind::StorageFull.into())
        });
        assert!(failed.is_err());
        assert_eq!(fs::read_to_string(&path).unwrap(), "old");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
        replace(&path, |file| file.write_all(b"new")).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "new");
    }

    #[test]
    fn records_wait_for_space() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("records");
        let mut records = Appender::open(path.clone()).unwrap();
        records.append(b"one\n").unwrap();
        // A file that cannot be written stands for a full disk; a part of the record got through.
        let writable = std::mem::replace(&mut records.file, File::open(&path).unwrap());
        assert!(records.append(b"two\n").is_err());
        (&writable).write_all(b"tw").unwrap();
        assert!(records.append(b"three\n").is_err());
        assert!(records.append(&vec![b'x'; MAX_PENDING]).is_err());
        records.file = writable;
        records.append(b"four\n").unwrap();
        assert_eq!(
            fs::read_to_string(&path).unwrap(),
            "one\ntwo\nthree\nfour\n"
        );
    }
}
