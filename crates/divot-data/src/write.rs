//! Writers of images and animations, and what all writers share.
//!
//! Every writer fills a temporary file beside the target and renames it at the end. If writing fails,
//! the target does not change.

use std::fs;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use image::codecs::gif::{GifEncoder, Repeat};
use image::{Delay, ImageError, RgbaImage};

use crate::{Error, Frame, Result};

/// Writes an animated GIF that repeats forever. Each frame is reduced to 256 colours.
///
/// `fps` is the frame rate in frames per second, over 0 and at most 50. GIF durations are in hundredths
/// of a second, so the durations of frames may differ by a hundredth. Their average matches `fps`.
///
/// # Errors
/// [`Error::Argument`] for no frames, frames of different sizes or over 65535 pixels a side, or a
/// bad frame rate; [`Error::Write`] when the target cannot be written.
pub fn write_gif(path: impl AsRef<Path>, frames: &[Frame], fps: f64) -> Result<()> {
    let (width, height) = common_size(frames)?;
    // Players show a frame for ten hundredths of a second if its duration is below two.
    if !(fps > 0.0 && fps <= 50.0) || width.max(height) > 65535 {
        return Err(Error::Argument(format!(
            "{width}x{height} at {fps} frames per second cannot be a GIF; give a rate over 0 and at most 50, and at most 65535 pixels a side"
        )));
    }
    atomically(path.as_ref(), |file| {
        let mut encoder = GifEncoder::new_with_speed(file, 10);
        encoder.set_repeat(Repeat::Infinite).map_err(io_error)?;
        let hundredths = |frame: usize| (frame as f64 * 100.0 / fps).round();
        for (i, frame) in frames.iter().enumerate() {
            let rgba = frame
                .rgb
                .chunks_exact(3)
                .flat_map(|p| [p[0], p[1], p[2], 255])
                .collect();
            let image = RgbaImage::from_raw(width as u32, height as u32, rgba)
                .ok_or_else(|| io::Error::other("a frame has the wrong size"))?;
            let delay = (hundredths(i + 1) - hundredths(i)).min(65535.0) as u32;
            let delay = Delay::from_numer_denom_ms(delay * 10, 1);
            encoder
                .encode_frame(image::Frame::from_parts(image, 0, 0, delay))
                .map_err(io_error)?;
        }
        Ok(())
    })
}

/// Writes a PNG file. Its `Software` text names this program, see [`is_own_png`].
///
/// # Errors
/// [`Error::Write`] when the target cannot be written.
pub fn write_png(path: impl AsRef<Path>, frame: &Frame) -> Result<()> {
    atomically(path.as_ref(), |file| write_png_to(file, frame))
}

/// Returns the bytes of the file that [`write_png`] writes.
///
/// # Errors
/// [`Error::Argument`] when the frame has no pixels.
pub fn encode_png(frame: &Frame) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    match write_png_to(&mut bytes, frame) {
        Ok(()) => Ok(bytes),
        Err(error) => Err(Error::Argument(format!(
            "a picture that cannot be encoded ({error}); give a frame with pixels"
        ))),
    }
}

fn write_png_to(file: impl Write, frame: &Frame) -> io::Result<()> {
    let mut encoder = png::Encoder::new(file, frame.width as u32, frame.height as u32);
    encoder.set_color(png::ColorType::Rgb);
    encoder.add_text_chunk(SOFTWARE.into(), PROGRAM.into())?;
    let mut writer = encoder.write_header()?;
    writer.write_image_data(&frame.rgb)?;
    Ok(writer.finish()?)
}

/// Keyword of the PNG text that names the program.
const SOFTWARE: &str = "Software";
const PROGRAM: &str = "divot";

/// Returns whether a file is a PNG that [`write_png`] wrote.
pub fn is_own_png(path: impl AsRef<Path>) -> bool {
    let Ok(file) = fs::File::open(path) else {
        return false;
    };
    let Ok(reader) = png::Decoder::new(io::BufReader::new(file)).read_info() else {
        return false;
    };
    let texts = &reader.info().uncompressed_latin1_text;
    texts
        .iter()
        .any(|text| text.keyword == SOFTWARE && text.text == PROGRAM)
}

/// Arranges rows of frames on a white sheet, e.g. a clip above its reconstruction.
///
/// All cells have the size of the largest frame. A frame is in the top left corner of its cell. Rows may
/// differ in length. `gap` is the distance between cells in pixels.
///
/// # Errors
/// [`Error::Argument`] when there are no frames, or the sheet would have more than 2^28 pixels.
pub fn contact_sheet(rows: &[&[Frame]], gap: usize) -> Result<Frame> {
    let frames = || rows.iter().copied().flatten();
    let cell_width = frames().map(|f| f.width).max().unwrap_or(0);
    let cell_height = frames().map(|f| f.height).max().unwrap_or(0);
    let columns = rows.iter().map(|row| row.len()).max().unwrap_or(0);
    if columns == 0 {
        return Err(Error::Argument(
            "a contact sheet of no frames; give at least one".into(),
        ));
    }
    let side = |cells: usize, cell: usize| cells.saturating_mul(cell.saturating_add(gap)) - gap;
    let (width, height) = (side(columns, cell_width), side(rows.len(), cell_height));
    if width.saturating_mul(height) > 1 << 28 {
        return Err(Error::Argument(format!(
            "a contact sheet of {width}x{height} pixels is too large; give fewer or smaller frames"
        )));
    }
    let mut sheet = Frame::filled(width, height, [255; 3])?;
    for (row, frames) in rows.iter().enumerate() {
        for (column, frame) in frames.iter().enumerate() {
            let (left, top) = (column * (cell_width + gap), row * (cell_height + gap));
            for (y, line) in frame.rgb.chunks_exact(frame.width * 3).enumerate() {
                let at = ((top + y) * width + left) * 3;
                sheet.rgb[at..at + line.len()].copy_from_slice(line);
            }
        }
    }
    Ok(sheet)
}

/// Checks that a file can be written at the path, without changing an existing file.
///
/// Call this before a long computation, so that the error comes before it.
///
/// # Errors
/// [`Error::Write`] when the file cannot be written.
pub fn check_writable(path: impl AsRef<Path>) -> Result<()> {
    let path = path.as_ref();
    temporary(path)
        .map(|_| ())
        .map_err(|e| Error::write(path, e))
}

/// Writes a file as a whole: `write` fills a temporary one beside it, which is renamed at the end. If it fails, the
/// temporary file is removed, and what was at the path before stays.
///
/// # Errors
/// [`Error::Write`] for the error of `write`, or when the file cannot be created.
pub fn atomically(
    path: &Path,
    write: impl FnOnce(&mut BufWriter<&mut fs::File>) -> io::Result<()>,
) -> Result<()> {
    let run = || {
        let (mut file, target) = temporary(path)?;
        let mut buffer = BufWriter::new(file.as_file_mut());
        write(&mut buffer)?;
        buffer.flush()?;
        drop(buffer);
        file.persist(target).map_err(|e| e.error)?;
        Ok(())
    };
    run().map_err(|e| Error::write(path, e))
}

/// How names of temporary files begin and end.
pub(crate) const TEMPORARY: (&str, &str) = (".divot-", ".tmp");

/// Creates a temporary file beside the target. Returns it and the target with symbolic links resolved.
pub(crate) fn temporary(path: &Path) -> io::Result<(tempfile::NamedTempFile, PathBuf)> {
    let target = match fs::metadata(path) {
        Ok(meta) if meta.is_dir() => return Err(io::Error::other("it is a folder")),
        // Renaming would replace a device or a pipe instead of writing to it.
        Ok(meta) if !meta.is_file() => return Err(io::Error::other("it is not a regular file")),
        Ok(_) => fs::canonicalize(path)?,
        Err(_) => path.to_path_buf(),
    };
    if target.file_name().is_none() {
        return Err(io::Error::other("it names no file"));
    }
    let folder = match target.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    if !folder.is_dir() {
        return Err(io::Error::other(format!(
            "there is no folder {}",
            folder.display()
        )));
    }
    let mut builder = tempfile::Builder::new();
    builder.prefix(TEMPORARY.0).suffix(TEMPORARY.1);
    // Temporary files are private by default; the result is an ordinary file.
    #[cfg(unix)]
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
    let file = builder
        .tempfile_in(folder)
        // The original message names the temporary file, which means nothing to the user.
        .map_err(|e| io::Error::from(e.kind()))?;
    Ok((file, target))
}

fn io_error(error: ImageError) -> io::Error {
    match error {
        ImageError::IoError(e) => e,
        e => io::Error::other(e.to_string().lines().collect::<Vec<_>>().join(" ")),
    }
}

/// Returns the width and height of all frames, or an error if they differ.
pub(crate) fn common_size(frames: &[Frame]) -> Result<(usize, usize)> {
    let first = frames
        .first()
        .ok_or_else(|| Error::Argument("a clip of no frames; give at least one".into()))?;
    let size = (first.width, first.height);
    if let Some(i) = frames.iter().position(|f| (f.width, f.height) != size) {
        return Err(Error::Argument(format!(
            "frame {i} is {}x{} in a clip of {}x{}; resize the frames to one size",
            frames[i].width, frames[i].height, size.0, size.1
        )));
    }
    Ok(size)
}
