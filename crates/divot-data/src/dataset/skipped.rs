//! Broken samples that were met: their counts, and the log that names them.

use std::collections::hash_map::DefaultHasher;
use std::collections::{BTreeMap, HashSet};
use std::fs::{File, OpenOptions};
use std::hash::{Hash, Hasher};
use std::io::{self, BufRead, BufReader, ErrorKind, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::sample::{Reason, Skip};
use crate::Error;

/// Broken samples, each counted once.
///
/// What the log names already counts too. So a run that was interrupted counts like one that was not.
#[derive(Debug, Default)]
pub(super) struct Skipped {
    /// Hashes of the samples, so that of each no more than 8 bytes stay in memory.
    known: HashSet<u64>,
    /// By source and reason.
    counts: BTreeMap<(String, Reason), u64>,
    log: Option<Log>,
    problem: Option<Error>,
}

/// A line of the log.
#[derive(Serialize, Deserialize)]
struct Line {
    source: String,
    /// Number of the sample in its source, from 0. Archives may use a key more than once. None of a file that was
    /// passed over, and of a sample that was read before it was found not to fit.
    index: Option<usize>,
    key: String,
    reason: Reason,
    message: String,
}

#[derive(Debug)]
struct Log {
    path: PathBuf,
    /// Opened when there is something to write.
    file: Option<File>,
    /// Whether its last line was cut off.
    torn: bool,
}

impl Skipped {
    /// None but those that the log names.
    pub fn new(log: Option<&Path>) -> Self {
        let mut skipped = Self::default();
        if let Some(path) = log {
            match skipped.read(path) {
                Ok(log) => skipped.log = Some(log),
                Err(error) => skipped.problem = Some(Error::read(path, error)),
            }
        }
        skipped
    }

    fn read(&mut self, path: &Path) -> io::Result<Log> {
        let mut log = Log {
            path: path.to_path_buf(),
            file: None,
            torn: false,
        };
        let mut file = match File::open(path) {
            Ok(file) => BufReader::new(file),
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(log),
            Err(error) => return Err(error),
        };
        let mut bytes = Vec::new();
        while file.read_until(b'\n', &mut bytes)? > 0 {
            log.torn = !bytes.ends_with(b"\n");
            // A line that was cut off counts for nothing: its sample is met again.
            if let Ok(line) = serde_json::from_slice(&bytes) {
                self.count(&line);
            }
            bytes.clear();
        }
        Ok(log)
    }

    /// Counts a sample. Returns whether it is new.
    fn count(&mut self, line: &Line) -> bool {
        let mut hasher = DefaultHasher::new();
        (&line.source, line.index, &line.key).hash(&mut hasher);
        // Without a number, the message tells apart what has the same key.
        if line.index.is_none() {
            line.message.hash(&mut hasher);
        }
        let new = self.known.insert(hasher.finish());
        if new {
            let kind = (line.source.clone(), line.reason);
            *self.counts.entry(kind).or_default() += 1;
        }
        new
    }

    /// Counts and names a broken sample, if it is new.
    pub fn add(&mut self, source: &str, index: Option<usize>, skip: &Skip) {
        let line = Line {
            source: source.to_owned(),
            index,
            key: skip.key.clone(),
            reason: skip.reason,
            message: skip.message.clone(),
        };
        if !self.count(&line) {
            return;
        }
        if let Some(log) = &mut self.log
            && let Err(error) = log.write(&line)
        {
            self.problem = Some(Error::write(&log.path, error));
            self.log = None;
        }
    }

    /// How many there are of each source and reason.
    pub fn counts(&self) -> impl Iterator<Item = (&str, Reason, u64)> {
        let counts = self.counts.iter();
        counts.map(|((source, reason), &count)| (source.as_str(), *reason, count))
    }

    /// Why the log is not written any more, told once.
    pub fn take_problem(&mut self) -> Option<Error> {
        self.problem.take()
    }
}

impl Log {
    fn write(&mut self, line: &Line) -> io::Result<()> {
        let file = match &mut self.file {
            Some(file) => file,
            none => none.insert(
                OpenOptions::new()
                    .create(true)
                    .append(true)
                    .open(&self.path)?,
            ),
        };
        // In one piece, so that a process which is killed leaves whole lines.
        let start = if self.torn { "\n" } else { "" };
        let line = serde_json::to_string(line)?;
        file.write_all(format!("{start}{line}\n").as_bytes())?;
        self.torn = false;
        Ok(())
    }
}
