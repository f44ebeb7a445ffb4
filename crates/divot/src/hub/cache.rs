//! The cache that HuggingFace tools share, and the folder of downloads with links into it.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use hf_hub::{Cache, Repo};

use super::checksum::{accept, verify};
use super::names::{fits, is_inside, is_plain};
use super::transfer::Client;
use super::{Fetched, HubError};
use crate::checkpoint::Release;
use crate::progress::{Progress, Step, Watch};

/// A file of a repository and its locations.
pub(super) struct Item {
    pub repository: &'static str,
    pub name: String,
    pub commit: String,
    /// The checksum, which is its name in the cache.
    pub etag: String,
    pub size: u64,
    /// Its contents in the cache.
    pub blob: PathBuf,
    /// Its name in the cache, which links to the contents.
    pub pointer: PathBuf,
    /// Its path in the folder of downloads.
    pub path: PathBuf,
}

impl Item {
    /// Returns the name for error messages.
    pub fn title(&self) -> String {
        format!("{}/{}", self.repository, self.name)
    }

    /// Returns the complete file in the cache. If links are not possible, tools store the contents under
    /// the name of the file instead.
    pub fn stored(&self) -> Option<&Path> {
        [&self.blob, &self.pointer]
            .into_iter()
            .find(|path| path.is_file())
            .map(PathBuf::as_path)
    }

    /// Returns the path of a file beside the contents, named as in hf-hub.
    pub fn beside(&self, extension: &str) -> PathBuf {
        let mut path = OsString::from(&self.blob);
        path.push(".");
        path.push(extension);
        path.into()
    }

    pub fn progress(&self, step: Step, done: u64) -> Progress<'_> {
        Progress {
            name: &self.name,
            step,
            done,
            total: self.size,
        }
    }
}

/// A call of [`Hub::download`].
pub(super) struct Run<'a> {
    /// `None` when offline.
    pub client: Option<Client<'a>>,
    pub cache: Cache,
    pub to: &'a Path,
}

impl Run<'_> {
    /// Adds the files of `releases`, which all belong to one repository.
    pub fn find(
        &self,
        repository: &'static str,
        releases: &[Release],
        watch: &mut Watch<'_>,
        items: &mut Vec<Item>,
    ) -> Result<(), HubError> {
        let (commit, names) = match &self.client {
            Some(client) => client.list(repository, watch)?,
            None => self.listed(repository)?,
        };
        let mut wanted = BTreeMap::new();
        for release in releases {
            for pattern in release.files.iter().chain(release.extras) {
                let mut fitting = names.iter().filter(|name| fits(name, pattern)).peekable();
                if fitting.peek().is_none() && release.files.contains(pattern) {
                    return Err(self.lacks(repository, pattern));
                }
                wanted.extend(fitting.map(|name| (name, Path::new(release.folder).join(name))));
            }
        }
        if self.client.is_some() {
            self.remember(repository, &commit, &names)?;
        }
        let cached = self.cache.model(repository.to_owned());
        for (name, path) in wanted {
            let pointer = cached.pointer_path(&commit).join(name);
            let (etag, size) = match &self.client {
                Some(client) => client.locate(repository, &commit, name, watch)?,
                None => identify(&pointer).ok_or_else(|| self.lacks(repository, name))?,
            };
            items.push(Item {
                repository,
                name: name.clone(),
                commit: commit.clone(),
                blob: cached.blob_path(&etag),
                etag,
                size,
                pointer,
                path: self.to.join(path),
            });
        }
        Ok(())
    }

    fn lacks(&self, repository: &str, file: &str) -> HubError {
        match self.client {
            Some(_) => HubError::NoFile {
                repository: repository.to_owned(),
                file: file.to_owned(),
            },
            None => HubError::Offline {
                file: format!("{repository}/{file}"),
                cache: self.cache.path().clone(),
            },
        }
    }

    /// Returns the path that stores the names of a repository's files for use without a network.
    fn listing(&self, repository: &str, commit: &str) -> PathBuf {
        let folder = Repo::model(repository.to_owned()).folder_name();
        self.cache.path().join(folder).join("files").join(commit)
    }

    fn remember(&self, repository: &str, commit: &str, names: &[String]) -> Result<(), HubError> {
        let path = self.listing(repository, commit);
        create_parent(&path)?;
        fs::write(&path, names.join("\n")).map_err(HubError::io("write it", &path))
    }

    /// Returns the commit and files of a repository from the cache. If another tool filled the cache, there
    /// is no list, and the files are those in the cache.
    fn listed(&self, repository: &str) -> Result<(String, Vec<String>), HubError> {
        let cached = Repo::model(repository.to_owned()).folder_name();
        let head = self.cache.path().join(cached).join("refs/main");
        let commit = fs::read_to_string(head)
            .ok()
            .map(|commit| commit.trim().to_owned())
            .filter(|commit| is_plain(commit))
            .ok_or_else(|| HubError::Offline {
                file: repository.to_owned(),
                cache: self.cache.path().clone(),
            })?;
        let names = match fs::read_to_string(self.listing(repository, &commit)) {
            Ok(names) => names.lines().map(str::to_owned).collect(),
            Err(_) => {
                let snapshot = self
                    .cache
                    .model(repository.to_owned())
                    .pointer_path(&commit);
                let mut names = Vec::new();
                collect_files(&snapshot, "", &mut names);
                names
            }
        };
        let names = names.into_iter().filter(|name| is_inside(name)).collect();
        Ok((commit, names))
    }

    /// Returns an error if the disk has too little space, before anything is downloaded.
    pub fn check_room(&self, items: &[Item]) -> Result<(), HubError> {
        let Some(client) = &self.client else {
            return Ok(());
        };
        let missing: Vec<&Item> = items
            .iter()
            .filter(|item| item.stored().is_none() && !is_regular(&item.path))
            .collect();
        let needed: u64 = missing
            .iter()
            .map(|item| item.size.saturating_sub(length(&item.beside("part"))))
            .fold(0, u64::saturating_add);
        match free_space(self.cache.path()) {
            Some(free) if needed > free => Err(HubError::Full {
                file: match missing[..] {
                    [item] => item.title(),
                    _ => format!("{} files of {}", missing.len(), client.hub.endpoint),
                },
                folder: self.cache.path().clone(),
                needed: Some(needed),
                free: Some(free),
            }),
            _ => Ok(()),
        }
    }

    /// Provides one file: downloads, verifies and links it.
    pub fn obtain(&self, item: Item, watch: &mut Watch<'_>) -> Result<Fetched, HubError> {
        let mut downloaded = 0;
        if is_regular(&item.path) {
            if !verify(&item, &item.path, watch)? {
                return Err(HubError::InTheWay {
                    path: item.path,
                    repository: item.repository.to_owned(),
                });
            }
        } else {
            match (item.stored(), &self.client) {
                (Some(stored), _) => accept(&item, stored, watch)?,
                (None, Some(client)) => downloaded = client.fetch(&item, watch)?,
                (None, None) => return Err(self.lacks(item.repository, &item.name)),
            }
            self.link(&item)?;
        }
        Ok(Fetched {
            repository: item.repository,
            file: item.name,
            path: item.path,
            size: item.size,
            downloaded,
        })
    }

    /// Creates the file's name in the cache and its path in the folder of downloads.
    fn link(&self, item: &Item) -> Result<(), HubError> {
        if !item.pointer.exists() {
            // A relative link, so that the whole cache can be moved.
            let up = Path::new(&item.name).components().count() + 1;
            let mut target: PathBuf = std::iter::repeat_n("..", up).collect();
            target.push("blobs");
            target.push(&item.etag);
            place(&item.pointer, &target, &item.blob)?;
        }
        if self.client.is_some() {
            let cached = self.cache.model(item.repository.to_owned());
            cached
                .create_ref(&item.commit)
                .map_err(HubError::io("write it", self.cache.path()))?;
        }
        let same = |a: &Path, b: &Path| {
            fs::canonicalize(a).is_ok_and(|a| fs::canonicalize(b).is_ok_and(|b| a == b))
        };
        if same(&item.path, &item.pointer) {
            return Ok(());
        }
        place(
            &item.path,
            &item.pointer,
            item.stored().unwrap_or(&item.blob),
        )
    }
}

/// Returns the checksum and size of a file in the cache.
pub(super) fn identify(pointer: &Path) -> Option<(String, u64)> {
    let blob = fs::canonicalize(pointer).ok()?;
    let etag = blob.file_name()?.to_str()?.to_owned();
    let metadata = fs::metadata(&blob).ok()?;
    metadata.is_file().then_some((etag, metadata.len()))
}

/// Makes `at` a link to `target`. If links are not possible, makes it a hard link or a copy of `source`.
pub(super) fn place(at: &Path, target: &Path, source: &Path) -> Result<(), HubError> {
    create_parent(at)?;
    if at.is_symlink() {
        fs::remove_file(at).map_err(HubError::io("replace it", at))?;
    }
    symlink(target, at)
        .or_else(|_| hard_link_or_copy(source, at))
        .map_err(HubError::io("write it", at))
}

#[cfg(unix)]
pub(super) fn symlink(target: &Path, at: &Path) -> io::Result<()> {
    std::os::unix::fs::symlink(target, at)
}

#[cfg(windows)]
pub(super) fn symlink(target: &Path, at: &Path) -> io::Result<()> {
    std::os::windows::fs::symlink_file(target, at)
}

#[cfg(not(any(unix, windows)))]
pub(super) fn symlink(_: &Path, _: &Path) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}

/// Hard-links or copies a file. A copy is renamed at the end, so that an incomplete one never has the name.
pub(super) fn hard_link_or_copy(source: &Path, at: &Path) -> io::Result<()> {
    fs::hard_link(source, at).or_else(|_| {
        let mut copy = OsString::from(at);
        copy.push(".part");
        fs::copy(source, &copy)?;
        fs::rename(&copy, at)
    })
}

pub(super) fn create_parent(path: &Path) -> Result<(), HubError> {
    match path.parent() {
        None => Ok(()),
        Some(folder) => fs::create_dir_all(folder).map_err(HubError::io("create it", folder)),
    }
}

/// Collects the names of all files in a folder, with slashes.
pub(super) fn collect_files(folder: &Path, prefix: &str, names: &mut Vec<String>) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let Ok(name) = entry.file_name().into_string() else {
            continue;
        };
        let name = format!("{prefix}{name}");
        if entry.path().is_dir() {
            collect_files(&entry.path(), &format!("{name}/"), names);
        } else {
            names.push(name);
        }
    }
}

/// Returns whether the path exists and is not a link.
pub(super) fn is_regular(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok_and(|metadata| !metadata.is_symlink())
}

pub(super) fn length(path: &Path) -> u64 {
    fs::metadata(path).map_or(0, |metadata| metadata.len())
}

/// Returns the free space in bytes for a folder. The folder may not exist yet.
#[cfg(unix)]
pub(super) fn free_space(folder: &Path) -> Option<u64> {
    let folder = folder.ancestors().find(|folder| folder.is_dir())?;
    let disk = rustix::fs::statvfs(folder).ok()?;
    disk.f_bavail.checked_mul(disk.f_frsize)
}

#[cfg(not(unix))]
pub(super) fn free_space(_: &Path) -> Option<u64> {
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Linking fails across file systems. Files are copied then.
    #[test]
    fn without_links_there_are_copies() {
        let here = tempfile::tempdir().unwrap();
        let source = here.path().join("source");
        fs::write(&source, "contents").unwrap();
        let mut places = vec![here.path().join("at")];
        let other = tempfile::tempdir_in("/dev/shm");
        places.extend(other.iter().map(|other| other.path().join("at")));
        for at in places {
            hard_link_or_copy(&source, &at).unwrap();
            assert_eq!(fs::read_to_string(&at).unwrap(), "contents");
            assert!(!at.is_symlink());
        }
    }
}
