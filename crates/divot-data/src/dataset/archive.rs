//! Samples in tar archives, as WebDataset keeps them: consecutive files of one name and several extensions.

use std::cell::Cell;
use std::fs::File;
use std::io::{self, BufReader, Read, Seek, Write};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::{Arc, Mutex, PoisonError};

use flate2::bufread::MultiGzDecoder;
use tempfile::NamedTempFile;

use super::files::skip;
use super::records::{MAX_RECORD, Problem};
use super::sample::{Reason, Skip};

/// Unpacked archives that are kept.
const MAX_UNPACKED: usize = 2;
/// The longest name of a file that is read, in bytes.
const MAX_NAME: u64 = 1 << 16;
/// The largest picture that is read into memory, in bytes. Larger files go through a temporary one.
const MAX_IN_MEMORY: u64 = 1 << 26;
const BLOCK: u64 = 512;

const MEDIA: [&str; 6] = ["jpg", "jpeg", "png", "webp", "gif", "mp4"];

/// A file in an archive: its content begins at a block, whose header is the block before it.
#[derive(Debug, Clone, Copy)]
struct Member {
    block: u32,
    bytes: u32,
}

impl Member {
    fn new(offset: u64, bytes: u64) -> Option<Self> {
        Some(Self {
            block: u32::try_from(offset / BLOCK).ok()?,
            bytes: u32::try_from(bytes).ok()?,
        })
    }

    fn offset(self) -> u64 {
        u64::from(self.block) * BLOCK
    }

    fn end(self) -> u64 {
        self.offset() + u64::from(self.bytes)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum TextKind {
    Plain,
    Json,
}

/// The files of a sample.
#[derive(Debug, Clone, Copy)]
struct Entry {
    media: Member,
    text: Option<(Member, TextKind)>,
}

/// Archives whose samples were found.
#[derive(Debug)]
pub(super) struct Archives {
    shards: Vec<Shard>,
    entries: Vec<Entry>,
    /// The archives that were unpacked last, the latest at the end.
    unpacked: Mutex<Vec<(usize, Arc<File>)>>,
}

#[derive(Debug)]
struct Shard {
    path: PathBuf,
    compressed: bool,
    entries: Range<usize>,
    /// Where the content of its last sample ends.
    end: u64,
}

/// A video or image out of an archive.
pub(super) enum Media {
    Bytes(Vec<u8>),
    File(NamedTempFile),
}

impl Archives {
    /// Finds the samples of archives. What comes before a damage is used; the damage is added to
    /// `passed_over`.
    pub fn index(paths: Vec<PathBuf>, passed_over: &mut Vec<Skip>) -> Self {
        let mut entries = Vec::new();
        let mut shards = Vec::new();
        for path in paths {
            let first = entries.len();
            let compressed = index_shard(&path, &mut entries, |what| {
                passed_over.push(skip(&path, what));
            });
            let compressed = compressed.unwrap_or_else(|error| {
                passed_over.push(skip(&path, error.to_string()));
                false
            });
            let ends = entries[first..].iter().map(|entry: &Entry| {
                let text = entry.text.map_or(0, |(text, _)| text.end());
                entry.media.end().max(text)
            });
            shards.push(Shard {
                end: ends.max().unwrap_or(0),
                entries: first..entries.len(),
                path,
                compressed,
            });
        }
        entries.shrink_to_fit();
        Self {
            shards,
            entries,
            unpacked: Mutex::new(Vec::new()),
        }
    }

    /// How many samples there are.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// The samples of each archive.
    pub fn groups(&self) -> Vec<Range<usize>> {
        let groups = self.shards.iter().map(|shard| shard.entries.clone());
        groups.filter(|group| !group.is_empty()).collect()
    }

    /// The archives.
    pub fn paths(&self) -> impl Iterator<Item = &Path> {
        self.shards.iter().map(|shard| shard.path.as_path())
    }

    /// The archive of a sample.
    fn shard(&self, index: usize) -> usize {
        self.shards
            .partition_point(|shard| shard.entries.end <= index)
    }

    /// The path of a sample's archive.
    pub fn path(&self, index: usize) -> &Path {
        &self.shards[self.shard(index)].path
    }

    /// The name of a sample's video or image, and the archive, opened.
    pub fn open(&self, index: usize) -> Result<(String, Arc<File>), Problem> {
        let shard = self.shard(index);
        let file = match self.shards[shard].compressed {
            true => self.unpack(shard)?,
            false => Arc::new(File::open(&self.shards[shard].path)?),
        };
        let name = check(&file, self.entries[index].media)?;
        Ok((name, file))
    }

    /// Reads the text of a sample, and whether it is JSON; `None` if it is not wanted.
    pub fn text(
        &self,
        index: usize,
        file: &Arc<File>,
        wanted: bool,
    ) -> Result<Option<(Vec<u8>, bool)>, Problem> {
        if !wanted {
            return Ok(None);
        }
        let no_text = || Problem::new(Reason::NoText, "has neither `.txt` nor `.json`");
        let (text, kind) = self.entries[index].text.ok_or_else(no_text)?;
        if u64::from(text.bytes) > MAX_RECORD {
            let message = format!(
                "a text of {} bytes, more than the limit of {MAX_RECORD}",
                text.bytes
            );
            return Err(Problem::new(Reason::TooMuchText, message));
        }
        check(file, text)?;
        Ok(Some((whole(file, text)?, kind == TextKind::Json)))
    }

    /// Reads the video or image of a sample.
    pub fn media(&self, index: usize, file: &Arc<File>) -> Result<Media, Problem> {
        let member = self.entries[index].media;
        let mut head = Vec::new();
        Section::new(file, member).take(64).read_to_end(&mut head)?;
        let is_picture = crate::images::format(&head).is_some();
        if is_picture && u64::from(member.bytes) <= MAX_IN_MEMORY {
            return Ok(Media::Bytes(whole(file, member)?));
        }
        let mut copy = NamedTempFile::new()?;
        let copied = io::copy(&mut Section::new(file, member), &mut copy)?;
        copy.flush()?;
        complete(copied, member)?;
        Ok(Media::File(copy))
    }

    /// An archive without its compression, as far as samples go, in a file without a name, which ends with
    /// its last user.
    fn unpack(&self, shard: usize) -> io::Result<Arc<File>> {
        let mut unpacked = self.unpacked.lock().unwrap_or_else(PoisonError::into_inner);
        let known = unpacked.iter().position(|(known, _)| *known == shard);
        let file = match known {
            Some(index) => unpacked.remove(index).1,
            None => {
                // Before the new one is written, so that there are never more.
                if unpacked.len() == MAX_UNPACKED {
                    unpacked.remove(0);
                }
                let Shard { path, end, .. } = &self.shards[shard];
                let mut file = tempfile::tempfile()?;
                let packed = BufReader::with_capacity(1 << 16, File::open(path)?);
                io::copy(&mut MultiGzDecoder::new(packed).take(*end), &mut file)?;
                Arc::new(file)
            }
        };
        unpacked.push((shard, file.clone()));
        Ok(file)
    }
}

/// Checks that a file's header is still before its content. Returns the file's name, which may be cut off.
fn check(file: &Arc<File>, member: Member) -> Result<String, Problem> {
    let mut header = tar::Header::new_old();
    let mut block = Section {
        file: file.clone(),
        at: member.offset() - BLOCK,
        left: BLOCK,
    };
    let read = block.read_exact(header.as_mut_bytes());
    let bytes = header.as_bytes();
    // The checksum counts its own field as spaces.
    let others = bytes[..148].iter().chain(&bytes[156..]);
    let sum = 8 * u32::from(b' ') + others.map(|&byte| u32::from(byte)).sum::<u32>();
    let same = read.is_ok()
        && header.cksum().is_ok_and(|known| known == sum)
        && header
            .entry_size()
            .is_ok_and(|size| size == u64::from(member.bytes));
    match same {
        true => Ok(String::from_utf8_lossy(&header.path_bytes())
            .escape_debug()
            .to_string()),
        false => Err(changed()),
    }
}

fn changed() -> Problem {
    Problem::new(
        Reason::Changed,
        "the archive was changed after it was indexed",
    )
}

fn complete(read: u64, member: Member) -> Result<(), Problem> {
    match read == u64::from(member.bytes) {
        true => Ok(()),
        false => Err(changed()),
    }
}

fn whole(file: &Arc<File>, member: Member) -> Result<Vec<u8>, Problem> {
    let mut bytes = Vec::new();
    Section::new(file, member).read_to_end(&mut bytes)?;
    complete(bytes.len() as u64, member)?;
    Ok(bytes)
}

/// A part of a file. It has a position of its own, which threads do not share.
struct Section {
    file: Arc<File>,
    at: u64,
    left: u64,
}

impl Section {
    fn new(file: &Arc<File>, member: Member) -> Self {
        Self {
            file: file.clone(),
            at: member.offset(),
            left: member.bytes.into(),
        }
    }
}

impl Read for Section {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = buffer
            .len()
            .min(usize::try_from(self.left).unwrap_or(usize::MAX));
        let buffer = &mut buffer[..length];
        #[cfg(unix)]
        let read = std::os::unix::fs::FileExt::read_at(&*self.file, buffer, self.at)?;
        #[cfg(windows)]
        let read = std::os::windows::fs::FileExt::seek_read(&*self.file, buffer, self.at)?;
        self.at += read as u64;
        self.left -= read as u64;
        Ok(read)
    }
}

/// Counts the bytes that are read through it.
struct Counted<R> {
    inner: R,
    count: Rc<Cell<u64>>,
}

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(buffer)?;
        self.count.set(self.count.get() + read as u64);
        Ok(read)
    }
}

/// Finds the samples of one archive. Returns whether it is compressed.
fn index_shard(
    path: &Path,
    entries: &mut Vec<Entry>,
    damaged: impl FnOnce(&str),
) -> io::Result<bool> {
    let mut file = File::open(path)?;
    let mut magic = Vec::new();
    (&mut file).take(2).read_to_end(&mut magic)?;
    file.rewind()?;
    let first = entries.len();
    let compressed = magic == [0x1f, 0x8b];
    let ((outcome, end), length) = if compressed {
        let count = Rc::new(Cell::new(0));
        let mut archive = tar::Archive::new(Counted {
            inner: MultiGzDecoder::new(BufReader::with_capacity(1 << 16, file)),
            count: count.clone(),
        });
        let (outcome, end) = index(archive.entries()?, entries);
        // The checksum stands behind the archive's end.
        let rest = io::copy(&mut archive.into_inner(), &mut io::sink());
        ((outcome.and(rest.map(drop)), end), count.get())
    } else {
        let length = file.metadata()?.len();
        let mut archive = tar::Archive::new(file);
        (index(archive.entries_with_seek()?, entries), length)
    };
    let is_there = |member: Member| member.end() <= length;
    let mut number = 0;
    entries.retain(|entry| {
        number += 1;
        number <= first
            || is_there(entry.media) && entry.text.is_none_or(|(text, _)| is_there(text))
    });
    match outcome {
        Ok(()) if end <= length => {}
        Ok(()) => damaged("the archive ends within a file; what is before it is used"),
        Err(error) => damaged(&format!(
            "the archive is damaged ({error}); what is before it is used"
        )),
    }
    Ok(compressed)
}

/// A sample whose files were not all seen yet.
#[derive(Default)]
struct Open {
    key: Vec<u8>,
    media: Option<Member>,
    text: Option<(Member, TextKind)>,
}

impl Open {
    /// Adds a file, after the end of the sample before it if its name is another.
    fn add(&mut self, name: &[u8], member: Member, entries: &mut Vec<Entry>) {
        // The key ends at the first dot of the file's name, and is not empty.
        let slash = name.iter().rposition(|&byte| byte == b'/');
        let start = slash.map_or(0, |slash| slash + 1);
        let dot = name[start..].iter().position(|&byte| byte == b'.');
        let Some(dot) = dot.filter(|&dot| dot > 0) else {
            return;
        };
        let (key, extension) = name.split_at(start + dot);
        if self.key != key {
            std::mem::take(self).close(entries);
            self.key = key.to_vec();
        }
        let extension = extension[1..].to_ascii_lowercase();
        if MEDIA.iter().any(|known| known.as_bytes() == extension) {
            self.media.get_or_insert(member);
        } else if extension == b"txt" {
            self.text = Some((member, TextKind::Plain));
        } else if extension == b"json" && self.text.is_none() {
            self.text = Some((member, TextKind::Json));
        }
    }

    fn close(self, entries: &mut Vec<Entry>) {
        if let Some(media) = self.media {
            entries.push(Entry {
                media,
                text: self.text,
            });
        }
    }
}

/// Goes through an archive. Links, folders and files of other extensions are passed over. No name is more
/// than a name here.
fn index<R: Read>(files: tar::Entries<'_, R>, entries: &mut Vec<Entry>) -> (io::Result<()>, u64) {
    let mut end = 0;
    let mut open = Open::default();
    let mut long_name = None;
    // The headers as they are. Those that hold names are read here, no more of them than a name has.
    let outcome = files.raw(true).try_for_each(|file| {
        let mut file = file?;
        end = file.raw_file_position().saturating_add(file.size());
        let kind = file.header().entry_type();
        if kind.is_gnu_longname() || kind.is_pax_local_extensions() {
            let mut content = Vec::new();
            (&mut file).take(MAX_NAME).read_to_end(&mut content)?;
            let name = match kind.is_gnu_longname() {
                true => content.split(|&byte| byte == 0).next(),
                false => tar::PaxExtensions::new(&content)
                    .filter_map(Result::ok)
                    .find(|extension| extension.key_bytes() == b"path")
                    .map(|extension| extension.value_bytes()),
            };
            long_name = name.map(<[u8]>::to_vec).or(long_name.take());
            return Ok(());
        }
        if kind.is_gnu_longlink() || kind.is_pax_global_extensions() {
            return Ok(());
        }
        let name = long_name.take();
        let name = name.unwrap_or_else(|| file.path_bytes().into_owned());
        // Larger ones than 4 GiB are no samples.
        let member = Member::new(file.raw_file_position(), file.size());
        if let (true, Some(member)) = (kind.is_file(), member) {
            open.add(&name, member, entries);
        }
        Ok(())
    });
    open.close(entries);
    (outcome, end)
}
