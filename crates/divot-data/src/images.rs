//! Still images, animations and folders of images.

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Seek};
use std::path::{Path, PathBuf};

use image::metadata::Orientation;
use image::{DynamicImage, ImageDecoder, ImageError, ImageFormat, ImageReader};

use crate::{Error, Frame, Result};

/// Default maximum number of pixels of a picture, 2^27. A frame of the largest video in use, 16K
/// (15360x8640), is just below it and takes 400 MB as RGB.
pub const DEFAULT_MAX_PIXELS: u64 = 1 << 27;

/// Bytes that a decoder may allocate for each pixel: 16 bits for each of four channels, and as much again
/// for its internal state.
const BYTES_PER_PIXEL: u64 = 16;

/// Bytes that a decoder may allocate in addition to pixels: colour profiles, tables, metadata.
const OVERHEAD: u64 = 1 << 26;

/// Detects the format of an image file by its first bytes. Returns `None` if it is not supported.
pub(crate) fn format(head: &[u8]) -> Option<ImageFormat> {
    image::guess_format(head)
        .ok()
        .filter(ImageFormat::reading_enabled)
}

/// Reads a still image, rotated upright by its EXIF data. Transparent pixels become white.
///
/// # Errors
/// [`Error::NotFound`], [`Error::Read`], [`Error::UnknownFormat`], [`Error::Damaged`], or
/// [`Error::TooLarge`] for more than [`DEFAULT_MAX_PIXELS`] pixels. [`Video`](crate::Video) accepts
/// another limit.
pub fn read_image(path: impl AsRef<Path>) -> Result<Frame> {
    read_limited(path.as_ref(), DEFAULT_MAX_PIXELS)
}

/// Like [`read_image`], with a limit of the number of pixels.
pub(crate) fn read_limited(path: &Path, max_pixels: u64) -> Result<Frame> {
    read_from(path, open(path)?, max_pixels)
}

/// [`read_limited`] of what `reader` gives, which errors call `path`.
pub(crate) fn read_from(
    path: &Path,
    reader: impl BufRead + Seek,
    max_pixels: u64,
) -> Result<Frame> {
    let (decoder, orientation) = decoder(path, reader, max_pixels)?;
    let mut image = DynamicImage::from_decoder(decoder).map_err(|e| failed(path, &e))?;
    image.apply_orientation(orientation);
    let (width, height) = (image.width() as usize, image.height() as usize);
    if image.color().has_alpha() {
        on_white(width, height, &image.into_rgba8())
    } else {
        Frame::new(width, height, image.into_rgb8().into_raw())
    }
}

/// Reads the width and height of a still image, upright, without its pixels.
pub(crate) fn size(path: &Path, max_pixels: u64) -> Result<(usize, usize)> {
    size_of(path, open(path)?, max_pixels)
}

/// [`size`] of what `reader` gives, which errors call `path`.
pub(crate) fn size_of(
    path: &Path,
    reader: impl BufRead + Seek,
    max_pixels: u64,
) -> Result<(usize, usize)> {
    let (decoder, orientation) = decoder(path, reader, max_pixels)?;
    let (width, height) = decoder.dimensions();
    let is_sideways = matches!(
        orientation,
        Orientation::Rotate90
            | Orientation::Rotate270
            | Orientation::Rotate90FlipH
            | Orientation::Rotate270FlipH
    );
    Ok(if is_sideways {
        (height as usize, width as usize)
    } else {
        (width as usize, height as usize)
    })
}

fn open(path: &Path) -> Result<BufReader<File>> {
    let file = File::open(path).map_err(|e| Error::read(path, e))?;
    Ok(BufReader::new(file))
}

/// A decoder whose picture is no larger than allowed, and which way up the picture is.
fn decoder<'a, R: BufRead + Seek + 'a>(
    path: &Path,
    mut reader: R,
    max_pixels: u64,
) -> Result<(impl ImageDecoder + use<'a, R>, Orientation)> {
    let mut head = Vec::new();
    let read = (&mut reader).take(26).read_to_end(&mut head);
    read.and_then(|_| reader.rewind())
        .map_err(|e| Error::read(path, e))?;
    if format(&head) == Some(ImageFormat::Bmp) {
        // Its decoder refuses long sides in its own words.
        let (width, height) = bmp_size(path, &head)?;
        Error::check_size(path, width, height, max_pixels)?;
    }
    let mut reader = ImageReader::new(reader)
        .with_guessed_format()
        .map_err(|e| Error::read(path, e))?;
    let mut limits = image::Limits::no_limits();
    let bytes = max_pixels.saturating_mul(BYTES_PER_PIXEL);
    limits.max_alloc = Some(bytes.saturating_add(OVERHEAD));
    reader.limits(limits);
    let mut decoder = reader.into_decoder().map_err(|e| failed(path, &e))?;
    let (width, height) = decoder.dimensions();
    Error::check_size(path, width.into(), height.into(), max_pixels)?;
    // Damaged EXIF data is no reason to refuse a valid picture.
    let orientation = decoder.orientation().unwrap_or(Orientation::NoTransforms);
    Ok((decoder, orientation))
}

/// Width and height in the header of a BMP file.
fn bmp_size(path: &Path, head: &[u8]) -> Result<(u64, u64)> {
    let Ok([.., kind, _, _, _, a, b, c, d, e, f, g, h]) = <[u8; 26]>::try_from(head) else {
        return Err(Error::damaged(path, "the header breaks off"));
    };
    // The oldest kind of header has 16 bits a side, too few for a picture that is too large.
    if kind == 12 {
        return Ok((0, 0));
    }
    // A negative height turns the picture around.
    let side = |bytes| u64::from(i32::from_le_bytes(bytes).unsigned_abs());
    Ok((side([a, b, c, d]), side([e, f, g, h])))
}

/// Lists the images of a folder in natural order: `2.png` before `10.png`.
pub(crate) fn in_folder(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut images = Vec::new();
    for entry in folder.read_dir().map_err(|e| Error::read(folder, e))? {
        let path = entry.map_err(|e| Error::read(folder, e))?.path();
        let hidden = path
            .file_name()
            .is_none_or(|name| name.to_string_lossy().starts_with('.'));
        let is_image = ImageFormat::from_path(&path).is_ok_and(|f| f.reading_enabled());
        if !hidden && is_image && path.is_file() {
            images.push(path);
        }
    }
    if images.is_empty() {
        return Err(Error::NoImages {
            path: folder.to_path_buf(),
        });
    }
    images.sort_by_cached_key(|path| natural_key(&path.to_string_lossy()));
    Ok(images)
}

/// Sort key that orders runs of digits by their value. The text itself breaks ties (`01`, `1`).
fn natural_key(text: &str) -> (Vec<(String, u128)>, String) {
    let mut parts = Vec::new();
    let mut rest = text;
    while !rest.is_empty() {
        let digits = rest
            .find(|c: char| c.is_ascii_digit())
            .unwrap_or(rest.len());
        let (word, tail) = rest.split_at(digits);
        let end = tail
            .find(|c: char| !c.is_ascii_digit())
            .unwrap_or(tail.len());
        let (number, tail) = tail.split_at(end);
        parts.push((word.to_lowercase(), number.parse().unwrap_or(u128::MAX)));
        rest = tail;
    }
    (parts, text.to_owned())
}

/// Removes the alpha channel of `[height, width, 4]` by compositing on white.
pub(crate) fn on_white(width: usize, height: usize, rgba: &[u8]) -> Result<Frame> {
    let mut rgb = Vec::with_capacity(width * height * 3);
    for pixel in rgba.chunks_exact(4) {
        let alpha = u32::from(pixel[3]);
        let level = |v: u8| ((u32::from(v) * alpha + 255 * (255 - alpha) + 127) / 255) as u8;
        rgb.extend([level(pixel[0]), level(pixel[1]), level(pixel[2])]);
    }
    Frame::new(width, height, rgb)
}

fn failed(path: &Path, error: &ImageError) -> Error {
    match error {
        ImageError::Unsupported(e) => Error::UnknownFormat {
            path: path.to_path_buf(),
            what: e.to_string().lines().collect::<Vec<_>>().join(" "),
        },
        e => Error::damaged(path, e.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::natural_key;

    #[test]
    fn numbers_sort_by_value() {
        let mut names = ["f10.png", "f2.png", "F1.png", "f02.png", "a.png"];
        names.sort_by_cached_key(|name| natural_key(name));
        assert_eq!(names, ["a.png", "F1.png", "f02.png", "f2.png", "f10.png"]);
    }
}
