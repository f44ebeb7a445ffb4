//! Samples in tar archives, as WebDataset keeps them: files of one name and several extensions.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use flate2::read::GzDecoder;
use tempfile::NamedTempFile;

/// The longest text of a sample that is read, in bytes.
pub(super) const MAX_TEXT: u64 = 4 << 20;
/// Unpacked archives that are kept.
const MAX_UNPACKED: usize = 2;

const IMAGES: [&str; 5] = ["jpg", "jpeg", "png", "webp", "gif"];

/// A file in an archive.
#[derive(Debug, Clone, Copy)]
pub(super) struct Member {
    offset: u64,
    pub size: u64,
}

/// The files of a sample.
#[derive(Debug, Clone, Copy)]
pub(super) struct Entry {
    shard: u32,
    /// Where its header begins, which names it in the log.
    pub media: Member,
    /// Extension of the picture or video.
    pub extension: &'static str,
    /// The text, and whether it is JSON.
    pub text: Option<(Member, bool)>,
}

/// Archives whose samples were found.
#[derive(Debug)]
pub(super) struct Archives {
    pub shards: Vec<PathBuf>,
    /// Sorted by archive.
    pub entries: Vec<Entry>,
    /// Archives that end too early or are damaged, and how.
    pub damaged: Vec<(PathBuf, String)>,
    unpacked: Mutex<Vec<(u32, Arc<File>)>>,
}

fn is_compressed(path: &Path) -> bool {
    let extension = path.extension().and_then(|extension| extension.to_str());
    matches!(extension, Some("gz" | "tgz"))
}

impl Archives {
    /// Finds the samples of archives. What comes before a damage is used.
    pub fn index(shards: Vec<PathBuf>) -> Self {
        let mut entries = Vec::new();
        let mut damaged = Vec::new();
        for (number, path) in shards.iter().enumerate() {
            let shard = number as u32;
            let result = File::open(path).and_then(|file| match is_compressed(path) {
                true => {
                    let mut archive = tar::Archive::new(GzDecoder::new(file));
                    index_shard(shard, archive.entries()?, &mut entries)
                }
                false => {
                    let mut archive = tar::Archive::new(file);
                    index_shard(shard, archive.entries_with_seek()?, &mut entries)
                }
            });
            if let Err(error) = result {
                damaged.push((path.clone(), error.to_string()));
            }
        }
        Self {
            shards,
            entries,
            damaged,
            unpacked: Mutex::new(Vec::new()),
        }
    }

    /// The archive of an entry.
    pub fn shard(&self, entry: &Entry) -> &Path {
        &self.shards[entry.shard as usize]
    }

    /// How many samples each archive holds, in order.
    pub fn counts(&self) -> Vec<usize> {
        let mut counts = vec![0; self.shards.len()];
        for entry in &self.entries {
            counts[entry.shard as usize] += 1;
        }
        counts
    }

    /// Copies the picture or video into a temporary file. The names in the archive name no file.
    pub fn media(&self, entry: &Entry) -> io::Result<NamedTempFile> {
        let suffix = format!(".{}", entry.extension);
        let mut file = tempfile::Builder::new().suffix(&suffix).tempfile()?;
        let copied = io::copy(&mut self.member(entry, entry.media)?, &mut file)?;
        file.flush()?;
        match copied == entry.media.size {
            true => Ok(file),
            false => Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }

    /// Reads the text of a sample.
    pub fn text(&self, entry: &Entry, member: Member) -> io::Result<Vec<u8>> {
        let mut text = Vec::new();
        self.member(entry, member)?.read_to_end(&mut text)?;
        Ok(text)
    }

    fn member(&self, entry: &Entry, member: Member) -> io::Result<impl Read> {
        let path = self.shard(entry);
        let mut file = match is_compressed(path) {
            true => self.unpack(entry.shard)?,
            false => File::open(path)?,
        };
        file.seek(SeekFrom::Start(member.offset))?;
        Ok(file.take(member.size))
    }

    /// An archive without its compression, in a file without a name that ends with the last handle.
    fn unpack(&self, shard: u32) -> io::Result<File> {
        let mut unpacked = self.unpacked.lock().unwrap_or_else(PoisonError::into_inner);
        let found = unpacked.iter().position(|(known, _)| *known == shard);
        let file = match found {
            Some(index) => unpacked.remove(index).1,
            None => {
                let mut file = tempfile::tempfile()?;
                let mut decoder = GzDecoder::new(File::open(&self.shards[shard as usize])?);
                // What comes before a damage is used.
                let _ = io::copy(&mut decoder, &mut file);
                Arc::new(file)
            }
        };
        unpacked.push((shard, file.clone()));
        if unpacked.len() > MAX_UNPACKED {
            unpacked.remove(0);
        }
        // A handle of its own: handles that were cloned share their position.
        reopen(&file)
    }
}

/// Opens a file without a name once more, with a position of its own.
#[cfg(target_os = "linux")]
fn reopen(file: &File) -> io::Result<File> {
    use std::os::fd::AsRawFd;
    File::open(format!("/proc/self/fd/{}", file.as_raw_fd()))
}

/// Copies the file, where it cannot be opened again.
#[cfg(not(target_os = "linux"))]
fn reopen(file: &File) -> io::Result<File> {
    let mut from = file.try_clone()?;
    from.seek(SeekFrom::Start(0))?;
    let mut copy = tempfile::tempfile()?;
    io::copy(&mut from, &mut copy)?;
    Ok(copy)
}

/// A sample whose files were not all seen yet.
struct Open {
    key: Vec<u8>,
    media: Option<(Member, &'static str)>,
    text: Option<(Member, bool)>,
}

/// Finds the samples of one archive. Links and folders are passed over.
fn index_shard<R: Read>(
    shard: u32,
    files: tar::Entries<'_, R>,
    entries: &mut Vec<Entry>,
) -> io::Result<()> {
    let mut open: Option<Open> = None;
    let mut close = |open: Option<Open>| {
        if let Some(Open {
            media: Some((media, extension)),
            text,
            ..
        }) = open
        {
            entries.push(Entry {
                shard,
                media,
                extension,
                text,
            });
        }
    };
    let index = || -> io::Result<()> {
        for file in files {
            let file = file?;
            if !file.header().entry_type().is_file() {
                continue;
            }
            let name = file.path_bytes();
            // The key ends at the first dot of the file's name.
            let start = name.iter().rposition(|&b| b == b'/').map_or(0, |i| i + 1);
            let Some(dot) = name[start..].iter().position(|&b| b == b'.') else {
                continue;
            };
            let key = &name[..start + dot];
            let extension = String::from_utf8_lossy(&name[start + dot + 1..]).to_lowercase();
            let member = Member {
                offset: file.raw_file_position(),
                size: file.size(),
            };
            if open.as_ref().is_none_or(|open| open.key != key) {
                let key = key.to_vec();
                close(open.take());
                open = Some(Open {
                    key,
                    media: None,
                    text: None,
                });
            }
            let Some(open) = &mut open else { continue };
            let known = IMAGES.iter().chain(&["mp4"]);
            if let Some(&known) = known.into_iter().find(|&&known| known == extension) {
                open.media.get_or_insert((member, known));
            } else if extension == "txt" || extension == "json" && open.text.is_none() {
                open.text = Some((member, extension == "json"));
            }
        }
        Ok(())
    };
    let result = index();
    close(open.take());
    result
}
