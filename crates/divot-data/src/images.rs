//! Still images, animations and folders of images.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::BufReader;
use std::path::{Path, PathBuf};

use image::codecs::gif::GifDecoder;
use image::codecs::webp::WebPDecoder;
use image::{
    AnimationDecoder, DynamicImage, Frames, ImageDecoder, ImageError, ImageFormat, ImageReader,
    RgbaImage,
};

use crate::{DEFAULT_FPS, Error, Frame, Result};

/// A file of several pictures that are decoded one after another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Animation {
    Gif,
    WebP,
}

/// What there is to know of an animation without keeping its frames.
pub(crate) struct Summary {
    pub frames: usize,
    pub fps: f64,
    pub width: usize,
    pub height: usize,
}

/// Pixels of the largest picture that is read.
const MAX_PIXELS: u64 = 1 << 28;

/// The format of an image file by its first bytes, if it is one that we read.
pub(crate) fn format(head: &[u8]) -> Option<ImageFormat> {
    image::guess_format(head)
        .ok()
        .filter(ImageFormat::reading_enabled)
}

/// The animation in a file of this format; `None` when it is a still image.
pub(crate) fn animation(path: &Path, format: ImageFormat) -> Result<Option<Animation>> {
    Ok(match format {
        ImageFormat::Gif => Some(Animation::Gif),
        ImageFormat::WebP => WebPDecoder::new(open(path)?)
            .map_err(|e| failed(path, &e))?
            .has_animation()
            .then_some(Animation::WebP),
        _ => None,
    })
}

impl Animation {
    fn frames(self, path: &Path) -> Result<Frames<'static>> {
        let file = open(path)?;
        let fail = |e| failed(path, &e);
        // A few bytes may claim any size: look before anything of that size is allocated.
        Ok(match self {
            Self::Gif => {
                let decoder = GifDecoder::new(file).map_err(fail)?;
                check_size(path, decoder.dimensions())?;
                decoder.into_frames()
            }
            Self::WebP => {
                let decoder = WebPDecoder::new(file).map_err(fail)?;
                check_size(path, decoder.dimensions())?;
                decoder.into_frames()
            }
        })
    }

    /// Goes through the whole animation: these formats have no index.
    pub fn summary(self, path: &Path) -> Result<Summary> {
        let (mut frames, mut milliseconds, mut size) = (0, 0.0, (0, 0));
        for frame in self.frames(path)? {
            let frame = frame.map_err(|e| failed(path, &e))?;
            let (numerator, denominator) = frame.delay().numer_denom_ms();
            let delay = f64::from(numerator) / f64::from(denominator.max(1));
            // Browsers and FFmpeg show a frame without a usable delay for 100 ms.
            milliseconds += if delay < 20.0 { 100.0 } else { delay };
            size = frame.buffer().dimensions();
            frames += 1;
        }
        if frames == 0 {
            return Err(Error::Empty {
                path: path.to_path_buf(),
            });
        }
        Ok(Summary {
            frames,
            fps: if frames == 1 {
                DEFAULT_FPS
            } else {
                frames as f64 * 1000.0 / milliseconds
            },
            width: size.0 as usize,
            height: size.1 as usize,
        })
    }

    /// Decodes up to the last wanted frame and hands over the wanted ones.
    pub fn decode(
        self,
        path: &Path,
        wanted: &BTreeSet<usize>,
        each: &mut dyn FnMut(usize, Frame) -> Result<()>,
    ) -> Result<()> {
        let count = wanted.last().map_or(0, |last| last + 1);
        let mut seen = 0;
        for (index, frame) in self.frames(path)?.take(count).enumerate() {
            let frame = frame.map_err(|e| failed(path, &e))?;
            if wanted.contains(&index) {
                each(index, on_white(frame.buffer())?)?;
            }
            seen = index + 1;
        }
        if seen < count {
            return Err(Error::damaged(
                path,
                format!("the animation ends after frame {seen}"),
            ));
        }
        Ok(())
    }
}

/// Refuses pictures larger than any camera's.
fn check_size(path: &Path, (width, height): (u32, u32)) -> Result<()> {
    if u64::from(width) * u64::from(height) > MAX_PIXELS {
        return Err(Error::damaged(
            path,
            format!("it claims {width}x{height} pixels, more than {MAX_PIXELS}"),
        ));
    }
    Ok(())
}

/// Reads a still image, upright as its EXIF data has it. What is transparent becomes white.
///
/// # Errors
/// [`Error::NotFound`], [`Error::Read`], [`Error::UnknownFormat`] or [`Error::Damaged`].
pub fn read_image(path: impl AsRef<Path>) -> Result<Frame> {
    let path = path.as_ref();
    let reader = ImageReader::new(open(path)?)
        .with_guessed_format()
        .map_err(|e| Error::read(path, e))?;
    let mut decoder = reader.into_decoder().map_err(|e| failed(path, &e))?;
    check_size(path, decoder.dimensions())?;
    let orientation = decoder.orientation();
    let mut image = DynamicImage::from_decoder(decoder).map_err(|e| failed(path, &e))?;
    // Broken EXIF data is no reason to refuse a sound picture.
    if let Ok(orientation) = orientation {
        image.apply_orientation(orientation);
    }
    if image.color().has_alpha() {
        on_white(&image.into_rgba8())
    } else {
        let image = image.into_rgb8();
        Frame::new(
            image.width() as usize,
            image.height() as usize,
            image.into_raw(),
        )
    }
}

/// The images of a folder, in natural order: `2.png` before `10.png`.
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

/// Sorts like the text, but runs of digits by their value. The text itself breaks ties (`01`, `1`).
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

/// Drops the alpha channel by laying the picture on white.
fn on_white(image: &RgbaImage) -> Result<Frame> {
    let rgb = image
        .pixels()
        .flat_map(|pixel| {
            let [r, g, b, a] = pixel.0.map(u32::from);
            [r, g, b].map(|v| ((v * a + 255 * (255 - a) + 127) / 255) as u8)
        })
        .collect();
    Frame::new(image.width() as usize, image.height() as usize, rgb)
}

fn open(path: &Path) -> Result<BufReader<File>> {
    let file = File::open(path).map_err(|e| Error::read(path, e))?;
    Ok(BufReader::new(file))
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
