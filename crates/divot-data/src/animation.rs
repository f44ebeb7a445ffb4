//! GIF and WebP animations: pictures that are drawn over one another on a canvas.
//!
//! The structure of the file is read once, without decoding. Decoding then starts at the last frame before
//! the requested ones that does not depend on earlier frames.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::BufReader;
use std::path::Path;

use crate::images::on_white;
use crate::{Error, Frame, Result, gif, webp};

/// Shortest delay that is used as stored, in milliseconds. Browsers and FFmpeg replace shorter ones by
/// [`USUAL_DELAY`].
const MIN_DELAY: u32 = 20;
const USUAL_DELAY: u32 = 100;

/// What happens to a picture before the next one is drawn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Disposal {
    /// It stays.
    Keep,
    /// Its rectangle becomes transparent.
    Clear,
    /// The canvas is restored to its state before the picture.
    Restore,
}

/// One picture of an animation.
#[derive(Debug, Clone)]
pub(crate) struct Part {
    /// Offset of its data in the file, and the length of the data, in bytes.
    pub offset: u64,
    pub length: u64,
    /// Its rectangle on the canvas, in pixels.
    pub left: usize,
    pub top: usize,
    pub width: usize,
    pub height: usize,
    /// Delay in milliseconds, as stored in the file.
    pub delay: u32,
    pub disposal: Disposal,
    /// Whether the canvas below shows through transparent pixels.
    pub blends: bool,
}

/// The file format of an animation.
#[derive(Debug, Clone)]
pub(crate) enum Format {
    /// GIF, with the bytes before the first picture: the header and the global palette.
    Gif(Vec<u8>),
    WebP,
}

/// A file with several pictures. Their pixels are not kept in memory.
#[derive(Debug, Clone)]
pub(crate) struct Animation {
    pub format: Format,
    pub width: usize,
    pub height: usize,
    pub parts: Vec<Part>,
}

impl Animation {
    /// Returns the times in milliseconds at which the frames are shown, and then the end of the last one.
    pub fn milliseconds(&self) -> Vec<f64> {
        let mut end = 0u64;
        let mut times = vec![0.0];
        for part in &self.parts {
            end += u64::from(if part.delay < MIN_DELAY {
                USUAL_DELAY
            } else {
                part.delay
            });
            times.push(end as f64);
        }
        times
    }

    /// Decodes the wanted frames and passes them on in order. Transparent pixels become white.
    pub fn decode(
        &self,
        path: &Path,
        wanted: &BTreeSet<usize>,
        each: &mut dyn FnMut(usize, Frame) -> Result<()>,
    ) -> Result<()> {
        let mut file = BufReader::new(File::open(path).map_err(|e| Error::read(path, e))?);
        let keys = self.keys();
        let mut canvas = Canvas::new(self);
        let mut next = 0;
        for &frame in wanted {
            let key = (next..=frame).rev().find(|&i| keys[i]);
            if let Some(key) = key.filter(|&key| key > next) {
                canvas.clear();
                next = key;
            }
            while next <= frame {
                let part = &self.parts[next];
                let pixels = match &self.format {
                    Format::Gif(head) => gif::decode(path, &mut file, head, part)?,
                    Format::WebP => webp::decode(path, &mut file, part)?,
                };
                canvas.draw(part, &pixels, keys[next]);
                next += 1;
            }
            each(frame, on_white(self.width, self.height, &canvas.rgba)?)?;
        }
        Ok(())
    }

    /// Returns, for each frame, whether it does not depend on earlier frames.
    fn keys(&self) -> Vec<bool> {
        let is_full = |part: &Part| {
            (part.left, part.top) == (0, 0)
                && part.width >= self.width
                && part.height >= self.height
        };
        // Whether the canvas is transparent before a frame is drawn.
        let mut blank = true;
        self.parts
            .iter()
            .map(|part| {
                let key = blank || is_full(part) && !part.blends;
                blank = match part.disposal {
                    Disposal::Keep => false,
                    Disposal::Clear => blank || is_full(part),
                    Disposal::Restore => blank,
                };
                key
            })
            .collect()
    }
}

/// The canvas and the pictures drawn so far.
struct Canvas<'a> {
    animation: &'a Animation,
    rgba: Vec<u8>,
    /// The last picture, and the canvas before it if that must be restored.
    last: Option<(&'a Part, Vec<u8>)>,
}

impl<'a> Canvas<'a> {
    fn new(animation: &'a Animation) -> Self {
        Self {
            animation,
            rgba: vec![0; animation.width * animation.height * 4],
            last: None,
        }
    }

    fn clear(&mut self) {
        self.rgba.fill(0);
        self.last = None;
    }

    /// Draws a picture of `[height, width, 4]`. A key is drawn on an empty canvas.
    fn draw(&mut self, part: &'a Part, pixels: &[u8], key: bool) {
        let cleared = self.dispose();
        if key {
            self.rgba.fill(0);
        }
        let before = if part.disposal == Disposal::Restore {
            self.rgba.clone()
        } else {
            Vec::new()
        };
        let copies = key || !part.blends;
        for (y, row) in pixels.chunks_exact(part.width * 4).enumerate() {
            for (x, pixel) in row.chunks_exact(4).enumerate() {
                let (x, y) = (part.left + x, part.top + y);
                if x >= self.animation.width || y >= self.animation.height {
                    break;
                }
                let at = (y * self.animation.width + x) * 4;
                let below = &mut self.rgba[at..at + 4];
                if copies || cleared.is_some_and(|c| c.contains(x, y)) {
                    below.copy_from_slice(pixel);
                } else {
                    blend(pixel, below);
                }
            }
        }
        self.last = Some((part, before));
    }

    /// Disposes of the last picture. Returns it if it was cleared.
    fn dispose(&mut self) -> Option<&'a Part> {
        let (part, before) = self.last.take()?;
        match part.disposal {
            Disposal::Keep => None,
            Disposal::Restore => {
                self.rgba = before;
                None
            }
            Disposal::Clear => {
                let (width, height) = (self.animation.width, self.animation.height);
                let (left, right) = (part.left.min(width), (part.left + part.width).min(width));
                for y in part.top.min(height)..(part.top + part.height).min(height) {
                    self.rgba[(y * width + left) * 4..(y * width + right) * 4].fill(0);
                }
                Some(part)
            }
        }
    }
}

impl Part {
    fn contains(&self, x: usize, y: usize) -> bool {
        (self.left..self.left + self.width).contains(&x)
            && (self.top..self.top + self.height).contains(&y)
    }
}

/// Blends a pixel over another, both with straight alpha, in the integer arithmetic of libwebp
/// (`anim_decode.c`).
fn blend(pixel: &[u8], below: &mut [u8]) {
    let alpha = u32::from(pixel[3]);
    match alpha {
        0 => return,
        255 => return below.copy_from_slice(pixel),
        _ => {}
    }
    let rest = (u32::from(below[3]) * (256 - alpha)) >> 8;
    let total = alpha + rest;
    let scale = (1u64 << 24) / u64::from(total);
    for (below, &above) in below.iter_mut().zip(&pixel[..3]) {
        let sum = u32::from(above) * alpha + u32::from(*below) * rest;
        *below = ((u64::from(sum) * scale) >> 24) as u8;
    }
    below[3] = total as u8;
}
