//! A folder that one process works in.

use std::fs::{self, File, TryLockError};
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};

/// Makes sure that no other process works in a folder. A folder in which nothing was written is removed
/// in the end.
pub(crate) struct Lock {
    folder: PathBuf,
    file: Option<File>,
}

const LOCK: &str = ".lock";

impl Lock {
    pub(crate) fn new(folder: &Path) -> Result<Self> {
        fs::create_dir_all(folder).map_err(|error| Error::io(folder, error))?;
        let path = folder.join(LOCK);
        let file = File::create(&path).map_err(|error| Error::io(&path, error))?;
        match file.try_lock() {
            Ok(()) => Ok(Self {
                folder: folder.to_path_buf(),
                file: Some(file),
            }),
            Err(TryLockError::WouldBlock) => Err(Error::run(
                folder,
                "is in use by another process",
                "wait for it, or choose another folder",
            )),
            Err(TryLockError::Error(error)) => Err(Error::io(&path, error)),
        }
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        // Some systems do not remove an open file.
        self.file = None;
        let entries = fs::read_dir(&self.folder).into_iter().flatten().flatten();
        if entries.map(|entry| entry.file_name()).eq([LOCK]) {
            let _ = fs::remove_file(self.folder.join(LOCK));
            let _ = fs::remove_dir(&self.folder);
        }
    }
}
