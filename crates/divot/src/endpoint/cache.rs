//! Answers that were paid for.

use std::collections::HashMap;
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};

use super::request::Key;
use super::{Answer, EndpointError};

/// The first line, by which a cache is known.
const HEADER: &str = "{\"divot\":\"answers\",\"version\":1}\n";
/// The longest line that is read, in bytes. Replies are shorter.
const LONGEST_LINE: u64 = 64 << 20;

/// A file of answers, each under a hash of its whole request: address, model, messages and options. The key is no
/// part of it.
///
/// It is JSONL, and lines are only ever added. A line is written the moment its answer arrives, so that the end of
/// the program, however sudden, loses none; what the end left of an unfinished line is dropped when the file
/// is opened next. (The end of the machine may lose the last seconds.) While one program has it open, no other can,
/// except on file systems without locks. Memory holds only where each answer is, about 100 bytes for each.
pub struct Cache {
    store: Arc<Mutex<Store>>,
}

impl Cache {
    /// Opens the file, or creates it, with its folder.
    ///
    /// # Errors
    /// If another program uses it; if it is another file, or damaged elsewhere than at its end; if it cannot
    /// be read and written.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, EndpointError> {
        Ok(Self {
            store: Arc::new(Mutex::new(Store::open(path.as_ref())?)),
        })
    }

    /// Returns the number of answers.
    pub fn len(&self) -> usize {
        lock(&self.store).places.len()
    }

    /// Returns whether there are no answers.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub(super) fn get(&self, key: &Key) -> Result<Option<Answer>, EndpointError> {
        lock(&self.store).get(key)
    }

    /// Returns another hold on the same answers, for a thread that adds some.
    pub(super) fn writer(&self) -> Writer {
        Writer(self.store.clone())
    }
}

/// Adds answers to a cache.
#[derive(Clone)]
pub(super) struct Writer(Arc<Mutex<Store>>);

impl Writer {
    pub fn put(&self, key: &Key, answer: &Answer) -> Result<(), EndpointError> {
        lock(&self.0).put(key, answer)
    }
}

fn lock(store: &Mutex<Store>) -> MutexGuard<'_, Store> {
    store.lock().unwrap_or_else(PoisonError::into_inner)
}

#[derive(Serialize, Deserialize)]
struct Entry {
    key: String,
    #[serde(flatten)]
    answer: Answer,
}

struct Store {
    path: PathBuf,
    file: File,
    /// Where each answer's line begins, and its length.
    places: HashMap<Key, (u64, usize)>,
    /// Where the next line begins.
    end: u64,
}

impl Drop for Store {
    fn drop(&mut self) {
        // A process that is being started on another thread may hold the file a moment longer.
        let _ = self.file.unlock();
    }
}

impl Store {
    fn open(path: &Path) -> Result<Self, EndpointError> {
        if let Some(folder) = path
            .parent()
            .filter(|folder| !folder.as_os_str().is_empty())
        {
            std::fs::create_dir_all(folder).map_err(EndpointError::io("create it", folder))?;
        }
        let file = OpenOptions::new()
            .read(true)
            .append(true)
            .create(true)
            .open(path)
            .map_err(EndpointError::io("write it", path))?;
        match file.try_lock() {
            Err(TryLockError::WouldBlock) => {
                return Err(EndpointError::Busy {
                    path: path.to_path_buf(),
                });
            }
            // Some network file systems do not support locks.
            Ok(()) | Err(TryLockError::Error(_)) => {}
        }
        let mut store = Self {
            path: path.to_path_buf(),
            file,
            places: HashMap::new(),
            end: 0,
        };
        store.read()?;
        Ok(store)
    }

    /// Finds the answers, and drops an unfinished last line.
    fn read(&mut self) -> Result<(), EndpointError> {
        let mut reader = BufReader::new(&self.file);
        let mut line = Vec::new();
        let mut number = 0;
        let mut end = 0;
        let mut places = HashMap::new();
        loop {
            line.clear();
            let length = (&mut reader)
                .take(LONGEST_LINE)
                .read_until(b'\n', &mut line)
                .map_err(EndpointError::io("read it", &self.path))?;
            number += 1;
            let is_whole = line.last() == Some(&b'\n');
            if number == 1 {
                let begins = match is_whole {
                    true => line == HEADER.as_bytes(),
                    false => HEADER.as_bytes().starts_with(&line),
                };
                if !begins {
                    return Err(EndpointError::NoCache {
                        path: self.path.clone(),
                    });
                }
            } else if is_whole {
                let place = serde_json::from_slice::<Entry>(&line)
                    .ok()
                    .and_then(|entry| parse(&entry.key))
                    .ok_or_else(|| self.damaged(number))?;
                places.insert(place, (end, length));
            } else if length as u64 == LONGEST_LINE {
                return Err(self.damaged(number));
            }
            if !is_whole {
                break;
            }
            end += length as u64;
        }
        self.file
            .set_len(end)
            .map_err(EndpointError::io("write it", &self.path))?;
        self.places = places;
        self.end = end;
        if end == 0 {
            self.append(HEADER.as_bytes())?;
        }
        Ok(())
    }

    fn damaged(&self, line: usize) -> EndpointError {
        EndpointError::Damaged {
            path: self.path.clone(),
            line,
        }
    }

    fn get(&mut self, key: &Key) -> Result<Option<Answer>, EndpointError> {
        let Some(&(start, length)) = self.places.get(key) else {
            return Ok(None);
        };
        let mut line = vec![0; length];
        let entry: Entry = self
            .file
            .seek(SeekFrom::Start(start))
            .and_then(|_| self.file.read_exact(&mut line))
            .and_then(|()| serde_json::from_slice(&line).map_err(io::Error::from))
            .map_err(EndpointError::io("read it", &self.path))?;
        let mut answer = entry.answer;
        answer.cached = true;
        Ok(Some(answer))
    }

    fn put(&mut self, key: &Key, answer: &Answer) -> Result<(), EndpointError> {
        let entry = Entry {
            key: format(key),
            answer: answer.clone(),
        };
        let mut line = serde_json::to_vec(&entry).expect("texts and numbers are always JSON");
        line.push(b'\n');
        let place = (self.end, line.len());
        self.append(&line)?;
        self.places.insert(*key, place);
        Ok(())
    }

    /// Adds whole lines, or nothing.
    fn append(&mut self, lines: &[u8]) -> Result<(), EndpointError> {
        if let Err(error) = self.file.write_all(lines) {
            // What was written of them would damage the next line. If this fails too, opening drops it.
            let _ = self.file.set_len(self.end);
            return Err(EndpointError::io("write it", &self.path)(error));
        }
        self.end += lines.len() as u64;
        Ok(())
    }
}

fn format(key: &Key) -> String {
    key.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn parse(key: &str) -> Option<Key> {
    let mut parsed = Key::default();
    if key.len() != 2 * parsed.len() || !key.is_ascii() {
        return None;
    }
    for (index, byte) in parsed.iter_mut().enumerate() {
        *byte = u8::from_str_radix(&key[2 * index..2 * index + 2], 16).ok()?;
    }
    Some(parsed)
}
