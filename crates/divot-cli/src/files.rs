//! Files that commands write.

use std::path::Path;

use anyhow::{Context, Result, bail};

/// Checks that files can be written to a folder. The folder may not exist yet.
pub fn check_folder(folder: &Path) -> Result<()> {
    if folder.exists() && !folder.is_dir() {
        bail!("{}: is not a folder; choose another", folder.display());
    }
    staging(folder).map(drop)
}

/// Creates a hidden folder from which files are renamed to their final places. It is in `folder`, or in the
/// folder where that will be created. It is removed when it is dropped.
pub fn staging(folder: &Path) -> Result<tempfile::TempDir> {
    let place = folder
        .ancestors()
        .map(|place| match place.as_os_str().is_empty() {
            true => Path::new("."),
            false => place,
        })
        .find(|place| place.exists())
        .unwrap_or(folder);
    tempfile::Builder::new()
        .prefix(".divot-")
        .tempdir_in(place)
        .with_context(|| not_written(folder))
}

/// Returns the message for a folder that cannot be written.
pub fn not_written(folder: &Path) -> String {
    format!(
        "{}: cannot be written; choose another folder or check its permissions and the free space",
        folder.display()
    )
}
