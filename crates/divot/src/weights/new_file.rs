//! A file that is written beside its path and renamed when it is complete.

use std::fs::File;
use std::io::{BufWriter, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use tempfile::NamedTempFile;

use super::WeightsError;

/// A new file. It has a temporary name in the same folder until [`finish`](Self::finish), which renames it
/// after everything has reached the disk. Dropping it before that removes it. An older file stays unchanged.
#[derive(Debug)]
pub(super) struct NewFile {
    path: PathBuf,
    file: BufWriter<NamedTempFile>,
}

impl NewFile {
    pub fn create(path: &Path) -> Result<Self, WeightsError> {
        let mut builder = tempfile::Builder::new();
        builder.prefix(".weights-").suffix(".partial");
        // A temporary file is private by default. This one becomes the user's file, so it gets the
        // permissions of any new file.
        #[cfg(unix)]
        builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
        let file = builder
            .tempfile_in(folder_of(path))
            .map_err(|error| WeightsError::writing(path, error))?;
        Ok(Self {
            path: path.to_path_buf(),
            file: BufWriter::with_capacity(1 << 20, file),
        })
    }

    /// Flushes everything to the disk and renames the file.
    pub fn finish(self) -> Result<(), WeightsError> {
        let Self { path, file } = self;
        let writing = |error| WeightsError::writing(&path, error);
        let file = file
            .into_inner()
            .map_err(|error| writing(error.into_error()))?;
        file.as_file().sync_all().map_err(writing)?;
        file.persist(&path).map_err(|error| writing(error.error))?;
        // The new name is on the disk only after the folder is flushed.
        #[cfg(unix)]
        File::open(folder_of(&path))
            .and_then(|folder| folder.sync_all())
            .map_err(writing)?;
        Ok(())
    }
}

impl Write for NewFile {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.file.write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.file.flush()
    }
}

impl Seek for NewFile {
    fn seek(&mut self, to: SeekFrom) -> std::io::Result<u64> {
        self.file.seek(to)
    }
}

fn folder_of(path: &Path) -> &Path {
    match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    }
}
