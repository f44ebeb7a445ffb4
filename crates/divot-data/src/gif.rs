//! Reads the structure of GIF files, and decodes their pictures with the `gif` crate.

use std::io::{self, BufRead, Cursor, Read, Seek, SeekFrom};
use std::path::Path;

use gif::{ColorOutput, DecodeOptions, MemoryLimit};

use crate::animation::{Animation, Disposal, Format, Part};
use crate::{Error, Result};

const EXTENSION: u8 = 0x21;
const GRAPHIC_CONTROL: u8 = 0xf9;
const IMAGE: u8 = 0x2c;
const TRAILER: u8 = 0x3b;

/// Reads the structure of a file: the places of the pictures and their delays.
///
/// # Errors
/// [`Error::TooLarge`] for more than `max_pixels`, or [`Error::Damaged`].
pub(crate) fn read<R: BufRead + Seek>(
    path: &Path,
    file: &mut R,
    max_pixels: u64,
) -> Result<Animation> {
    let mut blocks = Blocks { file, at: 0 };
    let mut parts = Vec::new();
    let walked = blocks.walk(&mut parts);
    let (head, (mut width, mut height)) = match walked {
        Ok(walked) => walked,
        Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => {
            let what = format!("the animation ends after frame {}", parts.len());
            return Err(Error::damaged(path, what));
        }
        Err(e) if e.kind() == io::ErrorKind::InvalidData => {
            return Err(Error::damaged(path, e.to_string()));
        }
        Err(e) => return Err(Error::read(path, e)),
    };
    let Some(first) = parts.first() else {
        return Err(Error::Empty {
            path: path.to_path_buf(),
        });
    };
    // Browsers and Pillow enlarge a canvas that is too small for the first picture.
    width = width.max(first.left + first.width);
    height = height.max(first.top + first.height);
    Error::check_size(path, width as u64, height as u64, max_pixels)?;
    for part in &parts {
        Error::check_size(path, part.width as u64, part.height as u64, max_pixels)?;
    }
    Ok(Animation {
        format: Format::Gif(head),
        width,
        height,
        parts,
    })
}

/// Reads a file block by block.
struct Blocks<'a, R> {
    file: &'a mut R,
    at: u64,
}

impl<R: BufRead + Seek> Blocks<'_, R> {
    /// Collects the pictures. Returns the bytes before the first block, and the size of the canvas.
    fn walk(&mut self, parts: &mut Vec<Part>) -> io::Result<(Vec<u8>, (usize, usize))> {
        let mut head = self.take::<13>()?.to_vec();
        if !head.starts_with(b"GIF8") {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "it is no GIF"));
        }
        let canvas = (u16_at(&head, 6), u16_at(&head, 8));
        let mut palette = vec![0; palette_size(head[10])];
        self.read(&mut palette)?;
        head.extend(palette);

        // The graphic control block before a picture: its offset and content.
        let mut control: Option<(u64, [u8; 4])> = None;
        loop {
            let start = self.at;
            match self.maybe_byte()? {
                Some(EXTENSION) => {
                    let label = self.take::<1>()?[0];
                    if label == GRAPHIC_CONTROL {
                        let size = self.take::<1>()?[0];
                        if size != 4 {
                            return Err(broken());
                        }
                        control = Some((start, self.take()?));
                    }
                    self.skip_blocks()?;
                }
                Some(IMAGE) => {
                    let descriptor = self.take::<9>()?;
                    self.skip(palette_size(descriptor[8]) as u64)?;
                    // The size of a code, then the codes.
                    self.skip(1)?;
                    self.skip_blocks()?;
                    let (offset, [flags, low, high, _]) = control.take().unwrap_or((start, [0; 4]));
                    let (width, height) = (u16_at(&descriptor, 4), u16_at(&descriptor, 6));
                    if width == 0 || height == 0 {
                        return Err(broken());
                    }
                    parts.push(Part {
                        offset,
                        length: self.at - offset,
                        left: u16_at(&descriptor, 0),
                        top: u16_at(&descriptor, 2),
                        width,
                        height,
                        delay: u32::from(u16::from_le_bytes([low, high])) * 10,
                        disposal: match flags >> 2 & 7 {
                            2 => Disposal::Clear,
                            3 | 4 => Disposal::Restore,
                            _ => Disposal::Keep,
                        },
                        blends: flags & 1 != 0,
                    });
                }
                // Some writers omit the trailer, or pad blocks with zeros.
                Some(TRAILER) | None => return Ok((head, canvas)),
                Some(0) => {}
                Some(_) if parts.is_empty() => return Err(broken()),
                // Data after the last picture is ignored by all viewers.
                Some(_) => return Ok((head, canvas)),
            }
        }
    }

    fn read(&mut self, bytes: &mut [u8]) -> io::Result<()> {
        self.file.read_exact(bytes)?;
        self.at += bytes.len() as u64;
        Ok(())
    }

    fn take<const N: usize>(&mut self) -> io::Result<[u8; N]> {
        let mut bytes = [0; N];
        self.read(&mut bytes)?;
        Ok(bytes)
    }

    fn maybe_byte(&mut self) -> io::Result<Option<u8>> {
        if self.file.fill_buf()?.is_empty() {
            return Ok(None);
        }
        Ok(Some(self.take::<1>()?[0]))
    }

    fn skip(&mut self, length: u64) -> io::Result<()> {
        let mut left = length;
        while left > 0 {
            let buffered = self.file.fill_buf()?.len() as u64;
            if buffered == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            let step = buffered.min(left);
            self.file.consume(step as usize);
            left -= step;
        }
        self.at += length;
        Ok(())
    }

    /// Skips data blocks up to the empty one that ends them.
    fn skip_blocks(&mut self) -> io::Result<()> {
        loop {
            match self.take::<1>()?[0] {
                0 => return Ok(()),
                size => self.skip(size.into())?,
            }
        }
    }
}

/// Decodes one picture: `[height, width, 4]`.
pub(crate) fn decode<R: Read + Seek>(
    path: &Path,
    file: &mut R,
    head: &[u8],
    part: &Part,
) -> Result<Vec<u8>> {
    file.seek(SeekFrom::Start(part.offset))
        .map_err(|e| Error::read(path, e))?;
    // Make a file with this picture only.
    let stream = Cursor::new(head)
        .chain(file.take(part.length))
        .chain(Cursor::new([TRAILER]));
    let bytes = part.width * part.height * 4;
    let mut options = DecodeOptions::new();
    options.set_color_output(ColorOutput::RGBA);
    // Accept frames of any size. They were checked when the file was opened.
    options.set_memory_limit(
        std::num::NonZeroU64::new(bytes as u64 + (1 << 20))
            .map_or(MemoryLimit::Unlimited, MemoryLimit::Bytes),
    );
    let failed = |e: &dyn std::fmt::Display| Error::damaged(path, e.to_string());
    let mut decoder = options.read_info(stream).map_err(|e| failed(&e))?;
    let frame = decoder
        .next_frame_info()
        .map_err(|e| failed(&e))?
        .ok_or_else(|| failed(&"a picture is missing"))?;
    if (usize::from(frame.width), usize::from(frame.height)) != (part.width, part.height) {
        return Err(failed(&"a picture changed its size"));
    }
    let mut rgba = vec![0; bytes];
    decoder
        .read_into_buffer(&mut rgba)
        .map_err(|e| failed(&e))?;
    Ok(rgba)
}

/// Returns the length of the palette in bytes, from the header's flags.
fn palette_size(flags: u8) -> usize {
    if flags & 0x80 == 0 {
        0
    } else {
        3 << ((flags & 7) + 1)
    }
}

fn u16_at(bytes: &[u8], at: usize) -> usize {
    usize::from(u16::from_le_bytes([bytes[at], bytes[at + 1]]))
}

fn broken() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "a block makes no sense")
}
