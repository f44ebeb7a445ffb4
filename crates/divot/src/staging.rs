//! A folder that is written beside its final place and renamed when it is complete.

use std::fs::{self, Metadata};
use std::io;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use tempfile::TempDir;

use crate::error::{Error, Result};
use crate::weights::WeightsError;

/// A new folder, in a hidden folder beside its final place.
///
/// Dropping it removes everything that was written, together with the folders that were created for it.
pub(crate) struct Staged {
    hidden: TempDir,
    made: Made,
    /// The folder that is written.
    folder: PathBuf,
    /// The final place.
    place: PathBuf,
    /// The file by which a state of the place is known.
    mark: &'static str,
    /// The older folder at the start, if any.
    before: Option<Version>,
}

/// Created folders, outermost first.
#[derive(Default)]
struct Made(Vec<PathBuf>);

impl Staged {
    /// Starts a folder called `name` that will be at `place`. The file `mark` in it is written anew each time.
    pub fn beside(place: &Path, name: &str, mark: &'static str) -> Result<Self> {
        let before = Version::of(place, mark);
        let parent = parent(place);
        let mut missing: Vec<PathBuf> = parent
            .ancestors()
            .take_while(|folder| !folder.as_os_str().is_empty() && !folder.exists())
            .map(Path::to_path_buf)
            .collect();
        missing.reverse();
        let made = Made(missing);
        let make = || {
            fs::create_dir_all(parent)?;
            let prefix = place.file_name().unwrap_or_default().to_string_lossy();
            tempfile::Builder::new()
                .prefix(&format!(".{prefix}-"))
                .tempdir_in(parent)
        };
        let hidden = make()
            // Another process may have failed and removed the folder that it had created.
            .or_else(|error| match error.kind() {
                io::ErrorKind::NotFound => make(),
                _ => Err(error),
            })
            .map_err(|error| not_written(parent, &error))?;
        // A sub-folder, because the temporary folder is readable only by its owner.
        let folder = hidden.path().join(name);
        fs::create_dir(&folder).map_err(|error| not_written(place, &error))?;
        Ok(Self {
            hidden,
            made,
            folder,
            place: place.to_path_buf(),
            mark,
            before,
        })
    }

    /// Returns the folder that is written.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Returns the hidden folder that contains it.
    pub fn hidden(&self) -> &Path {
        self.hidden.path()
    }

    /// Writes a small file.
    pub fn write(&self, name: impl AsRef<Path>, contents: impl AsRef<[u8]>) -> Result<()> {
        let written = fs::write(self.folder.join(name), contents);
        written.map_err(|error| not_written(&self.place, &error))
    }

    /// Replaces the hidden folder in the path of an error by the final place.
    pub fn in_place<T>(&self, result: Result<T, WeightsError>) -> Result<T> {
        Ok(result.map_err(|mut error| {
            if let WeightsError::Io { path, .. }
            | WeightsError::File { path, .. }
            | WeightsError::Tensor {
                path: Some(path), ..
            } = &mut error
                && let Ok(rest) = path.strip_prefix(&self.folder)
            {
                *path = self.place.join(rest);
            }
            error
        })?)
    }

    /// Renames the new folder to its final place, and returns that. An older folder is moved to the hidden
    /// folder first, and restored if the rename fails.
    ///
    /// # Errors
    /// If the rename fails, or another process wrote the folder in the meantime.
    pub fn put_in_place(mut self) -> Result<PathBuf> {
        self.swap()?;
        self.made.0.clear();
        Ok(std::mem::take(&mut self.place))
    }

    fn swap(&self) -> Result<()> {
        let version = || Version::of(&self.place, self.mark);
        if version() != self.before {
            return Err(self.overtaken());
        }
        let failed = |error: io::Error| match version() == self.before {
            true => not_written(&self.place, &error),
            false => self.overtaken(),
        };
        if !self.place.exists() {
            return fs::rename(&self.folder, &self.place).map_err(failed);
        }
        let aside = self.hidden().join("old");
        fs::rename(&self.place, &aside).map_err(failed)?;
        fs::rename(&self.folder, &self.place).map_err(|error| {
            // This fails if another process has put a new folder there, which is then kept.
            match fs::rename(&aside, &self.place) {
                Ok(()) => not_written(&self.place, &error),
                Err(_) => self.overtaken(),
            }
        })
    }

    fn overtaken(&self) -> Error {
        Error::config(
            &self.place,
            "another process wrote it first, and what that wrote is kept",
            "run again to replace it",
        )
    }
}

impl Drop for Made {
    fn drop(&mut self) {
        while let Some(folder) = self.0.pop() {
            // Only empty folders are removed. Files of others stay.
            let _ = fs::remove_dir(folder);
        }
    }
}

/// Identifies a state of a folder by one of its files.
#[derive(Debug, PartialEq)]
struct Version {
    modified: Option<SystemTime>,
    bytes: u64,
    inode: u64,
}

impl Version {
    fn of(place: &Path, mark: &str) -> Option<Self> {
        let folder = fs::metadata(place).ok()?;
        let file = fs::metadata(place.join(mark)).unwrap_or(folder);
        Some(Self {
            modified: file.modified().ok(),
            bytes: file.len(),
            inode: inode(&file),
        })
    }
}

#[cfg(unix)]
fn inode(file: &Metadata) -> u64 {
    std::os::unix::fs::MetadataExt::ino(file)
}

#[cfg(not(unix))]
fn inode(_: &Metadata) -> u64 {
    0
}

fn parent(place: &Path) -> &Path {
    match place.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

pub(crate) fn not_written(path: &Path, error: &io::Error) -> Error {
    Error::config(
        path,
        format!("cannot be written ({error})"),
        "choose a folder with room that you may write to",
    )
}
