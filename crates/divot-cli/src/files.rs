//! Files that commands write.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use divot::data::sampling::CLIP_FPS;
use divot::data::transform::resize;
use divot::data::{Frame, check_writable, contact_sheet, write_mp4, write_png};

/// A clip to write, with a contact sheet beside it.
pub struct ClipFiles {
    /// The MP4.
    pub clip: PathBuf,
    /// The contact sheet.
    pub sheet: PathBuf,
}

impl ClipFiles {
    /// Finds out whether they can be written without harm to `inputs`.
    pub fn check(clip: &Path, inputs: &[&Path]) -> Result<Self> {
        check_output(clip, "mp4", "an MP4", inputs)?;
        let sheet = clip.with_extension("png");
        check_output(&sheet, "png", "a PNG", inputs)?;
        Ok(Self {
            clip: clip.to_path_buf(),
            sheet,
        })
    }

    /// Writes both.
    pub fn write(&self, frames: &[Frame], rows: &[&[Frame]]) -> Result<()> {
        write_mp4(&self.clip, frames, CLIP_FPS)?;
        write_png(&self.sheet, &sheet(rows)?)?;
        Ok(())
    }
}

/// Finds out whether a file can be written, and is neither an input nor part of one that is a folder.
pub fn check_output(output: &Path, extension: &str, what: &str, inputs: &[&Path]) -> Result<()> {
    let is_so = |found: &OsStr| found.eq_ignore_ascii_case(extension);
    if !output.extension().is_some_and(is_so) {
        bail!(
            "{}: what is written is {what}; choose an output that ends in .{extension}",
            output.display()
        );
    }
    for input in inputs {
        if let (Ok(found), Ok(input)) = (output.canonicalize(), input.canonicalize())
            && found.starts_with(&input)
        {
            bail!(
                "{}: would be overwritten by the output; choose another --output",
                output.display()
            );
        }
    }
    check_writable(output)?;
    Ok(())
}

/// Finds out whether files can be put into a folder, which may be yet to make.
pub fn check_folder(folder: &Path) -> Result<()> {
    if folder.exists() && !folder.is_dir() {
        bail!("{}: is no folder; choose another", folder.display());
    }
    staging(folder).map(drop)
}

/// A hidden folder, in the folder or where that will be made, from which files are renamed to their
/// places. It is removed when it is dropped.
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

/// What to say of a folder that cannot be written.
pub fn not_written(folder: &Path) -> String {
    format!(
        "{}: cannot be written; choose another folder or check its permissions and the free space",
        folder.display()
    )
}

/// Rows of frames, each 128 pixels wide.
pub fn sheet(rows: &[&[Frame]]) -> Result<Frame> {
    let rows = rows
        .iter()
        .map(|row| {
            row.iter()
                .map(|frame| resize(frame, 128, (128 * frame.height / frame.width).max(1)))
                .collect::<Result<Vec<_>, _>>()
        })
        .collect::<Result<Vec<_>, _>>()?;
    let rows: Vec<&[Frame]> = rows.iter().map(Vec::as_slice).collect();
    Ok(contact_sheet(&rows, 4)?)
}

/// A clip in rows of eight.
pub fn rows(frames: &[Frame]) -> Vec<&[Frame]> {
    frames.chunks(8).collect()
}
