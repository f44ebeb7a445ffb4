//! The files that a clip is written to: a video, and a contact sheet beside it.

use std::path::{Path, PathBuf};

use crate::sampling::CLIP_FPS;
use crate::transform::resize;
use crate::write::{check_writable, contact_sheet, is_own_png, write_png};
use crate::write_mp4::write_mp4;
use crate::{Error, Frame, Result};

/// Width of a frame on a contact sheet, in pixels.
const SHEET_WIDTH: usize = 128;

/// The paths of a clip's files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClipFiles {
    /// The MP4.
    pub clip: PathBuf,
    /// The PNG beside it, which shows every frame.
    pub sheet: PathBuf,
}

impl ClipFiles {
    /// Returns the files of a clip at `clip`. The contact sheet has the same name with the extension
    /// `.png`.
    ///
    /// # Errors
    /// [`Error::Argument`] when `clip` does not end in `.mp4`.
    pub fn new(clip: &Path) -> Result<Self> {
        let is_mp4 = clip
            .extension()
            .is_some_and(|extension| extension.eq_ignore_ascii_case("mp4"));
        if !is_mp4 {
            return Err(Error::Argument(format!(
                "{}: what is written is an MP4; choose an output that ends in .mp4",
                clip.display()
            )));
        }
        Ok(Self {
            clip: clip.to_path_buf(),
            sheet: clip.with_extension("png"),
        })
    }

    /// Checks that both files can be written.
    ///
    /// Neither may be one of `inputs`, or inside one that is a folder. An existing file at the sheet's path
    /// that is not a contact sheet is an error, unless `replace` is set.
    ///
    /// # Errors
    /// [`Error::Argument`], [`Error::Exists`] or [`Error::Write`].
    pub fn check(&self, inputs: &[&Path], replace: bool) -> Result<()> {
        for output in [&self.clip, &self.sheet] {
            check_output(output, inputs)?;
        }
        match !replace && self.sheet.exists() && !is_own_png(&self.sheet) {
            true => Err(Error::Exists {
                path: self.sheet.clone(),
            }),
            false => Ok(()),
        }
    }

    /// Writes the clip at 8 frames per second, and rows of frames as its contact sheet.
    ///
    /// # Errors
    /// Those of [`write_mp4`] and [`write_png`].
    pub fn write(&self, frames: &[Frame], rows: &[&[Frame]]) -> Result<()> {
        write_mp4(&self.clip, frames, CLIP_FPS)?;
        write_png(&self.sheet, &clip_sheet(rows)?)
    }
}

/// Checks that a file can be written. It may not be one of `inputs`, or inside one that is a folder.
///
/// # Errors
/// [`Error::Argument`] or [`Error::Write`].
pub fn check_output(output: &Path, inputs: &[&Path]) -> Result<()> {
    for input in inputs {
        if let (Ok(found), Ok(input)) = (output.canonicalize(), input.canonicalize())
            && found.starts_with(&input)
        {
            return Err(Error::Argument(format!(
                "{}: is an input and would be overwritten; choose another output",
                output.display()
            )));
        }
    }
    check_writable(output)
}

/// Makes a contact sheet of rows of frames. Each frame is 128 pixels wide.
///
/// # Errors
/// Those of [`contact_sheet`].
pub fn clip_sheet(rows: &[&[Frame]]) -> Result<Frame> {
    let small = |frame: &Frame| {
        let height = (SHEET_WIDTH * frame.height / frame.width).max(1);
        resize(frame, SHEET_WIDTH, height)
    };
    let rows = rows
        .iter()
        .map(|row| row.iter().map(small).collect::<Result<Vec<_>>>())
        .collect::<Result<Vec<_>>>()?;
    let rows: Vec<&[Frame]> = rows.iter().map(Vec::as_slice).collect();
    contact_sheet(&rows, 4)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_picture_beside_the_clip_is_kept() {
        let dir = tempfile::tempdir().unwrap();
        let files = ClipFiles::new(&dir.path().join("cat.mp4")).unwrap();
        let frames = vec![Frame::filled(16, 16, [9, 9, 9]).unwrap(); 2];
        std::fs::write(&files.sheet, b"my cat").unwrap();
        let refused = files.check(&[], false);
        assert!(matches!(refused, Err(Error::Exists { path }) if path == files.sheet));
        files.check(&[], true).unwrap();

        // A contact sheet from an earlier run is replaced.
        files.write(&frames, &[&frames]).unwrap();
        files.check(&[], false).unwrap();
        assert!(ClipFiles::new(&files.sheet).is_err());
        assert!(files.check(&[&files.clip], true).is_err());
    }
}
