//! Reads the structure of WebP animations, and decodes their pictures with the `image-webp` crate.
//!
//! That crate's own compositing keeps what a disposed picture drew, so it is not used.

use std::io::{self, Cursor, Read, Seek, SeekFrom};
use std::path::Path;

use image_webp::WebPDecoder;

use crate::animation::{Animation, Disposal, Format, Part};
use crate::{Error, Result};

/// Bytes of an `ANMF` chunk before the picture's own chunks.
const FRAME_HEADER: u64 = 16;

/// Reads the structure of a WebP file. Returns `None` if it is a still image.
///
/// # Errors
/// [`Error::TooLarge`] for more than `max_pixels`, or [`Error::Damaged`].
pub(crate) fn read<R: Read + Seek>(
    path: &Path,
    file: &mut R,
    max_pixels: u64,
) -> Result<Option<Animation>> {
    let mut parts = Vec::new();
    let size = match walk(file, &mut parts) {
        Ok(Some(size)) => size,
        Ok(None) => return Ok(None),
        Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => {
            let what = format!("the animation ends after frame {}", parts.len());
            return Err(Error::damaged(path, what));
        }
        Err(e) if e.kind() == io::ErrorKind::InvalidData => {
            return Err(Error::damaged(path, e.to_string()));
        }
        Err(e) => return Err(Error::read(path, e)),
    };
    if parts.is_empty() {
        return Err(Error::Empty {
            path: path.to_path_buf(),
        });
    }
    let (width, height) = size;
    Error::check_size(path, width as u64, height as u64, max_pixels)?;
    if parts
        .iter()
        .any(|p| p.left + p.width > width || p.top + p.height > height)
    {
        return Err(Error::damaged(path, "a picture lies outside the canvas"));
    }
    Ok(Some(Animation {
        format: Format::WebP,
        width,
        height,
        parts,
    }))
}

/// Collects the pictures of an animation and returns the size of the canvas.
fn walk<R: Read + Seek>(file: &mut R, parts: &mut Vec<Part>) -> io::Result<Option<(usize, usize)>> {
    let length = file.seek(SeekFrom::End(0))?;
    file.seek(SeekFrom::Start(12))?;
    let mut size = None;
    while let Some((name, chunk)) = next_chunk(file)? {
        let start = file.stream_position()?;
        let end = start.saturating_add(chunk);
        match &name {
            b"VP8X" => {
                let mut header = [0; 10];
                file.read_exact(&mut header)?;
                if header[0] & 2 == 0 {
                    return Ok(None);
                }
                size = Some((u24(&header[4..]) + 1, u24(&header[7..]) + 1));
            }
            b"ANMF" if size.is_some() => {
                let mut header = [0; FRAME_HEADER as usize];
                file.read_exact(&mut header)?;
                let data = chunk
                    .checked_sub(FRAME_HEADER)
                    .ok_or_else(|| invalid("a picture has no header"))?;
                if end > length {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
                parts.push(Part {
                    offset: start + FRAME_HEADER,
                    length: data,
                    left: u24(&header) * 2,
                    top: u24(&header[3..]) * 2,
                    width: u24(&header[6..]) + 1,
                    height: u24(&header[9..]) + 1,
                    delay: u24(&header[12..]) as u32,
                    disposal: if header[15] & 1 == 0 {
                        Disposal::Keep
                    } else {
                        Disposal::Clear
                    },
                    blends: header[15] & 2 == 0,
                });
            }
            // A plain file with one picture.
            b"VP8 " | b"VP8L" if size.is_none() => return Ok(None),
            _ => {}
        }
        // Chunks have an even number of bytes.
        file.seek(SeekFrom::Start(end.saturating_add(chunk & 1)))?;
    }
    Ok(size)
}

/// Decodes one picture: `[height, width, 4]`.
pub(crate) fn decode<R: Read + Seek>(path: &Path, file: &mut R, part: &Part) -> Result<Vec<u8>> {
    let mut data = Vec::new();
    file.seek(SeekFrom::Start(part.offset))
        .and_then(|_| file.take(part.length).read_to_end(&mut data))
        .map_err(|e| Error::read(path, e))?;
    let failed = |e: &dyn std::fmt::Display| Error::damaged(path, e.to_string());
    let single = as_file(part, &data).map_err(|e| failed(&e))?;
    let mut decoder = WebPDecoder::new(Cursor::new(single)).map_err(|e| failed(&e))?;
    let (width, height) = decoder.dimensions();
    if (width as usize, height as usize) != (part.width, part.height) {
        return Err(failed(&format!(
            "a picture of {width}x{height} in a frame of {}x{}",
            part.width, part.height
        )));
    }
    let pixels = part.width * part.height;
    if decoder.has_alpha() {
        let mut rgba = vec![0; pixels * 4];
        decoder.read_image(&mut rgba).map_err(|e| failed(&e))?;
        return Ok(rgba);
    }
    let mut rgb = vec![0; pixels * 3];
    decoder.read_image(&mut rgb).map_err(|e| failed(&e))?;
    Ok(rgb
        .chunks_exact(3)
        .flat_map(|p| [p[0], p[1], p[2], 255])
        .collect())
}

/// Makes a file of one picture from its chunks.
fn as_file(part: &Part, data: &[u8]) -> io::Result<Vec<u8>> {
    let mut chunks = Vec::new();
    let mut alpha = false;
    let mut rest = Cursor::new(data);
    while let Some((name, size)) = next_chunk(&mut rest)? {
        let start = rest.position() as usize;
        let content = data
            .get(start..start.saturating_add(size as usize))
            .ok_or(io::ErrorKind::UnexpectedEof)?;
        if matches!(&name, b"ALPH" | b"VP8 " | b"VP8L") {
            alpha |= &name == b"ALPH";
            push_chunk(&mut chunks, name, content);
        }
        rest.set_position(start as u64 + size + (size & 1));
    }
    let mut body = b"WEBP".to_vec();
    if alpha {
        let mut header = vec![0x10, 0, 0, 0];
        header.extend(&(part.width as u32 - 1).to_le_bytes()[..3]);
        header.extend(&(part.height as u32 - 1).to_le_bytes()[..3]);
        push_chunk(&mut body, *b"VP8X", &header);
    }
    body.extend(chunks);
    let mut file = Vec::with_capacity(body.len() + 8);
    push_chunk(&mut file, *b"RIFF", &body);
    Ok(file)
}

fn push_chunk(out: &mut Vec<u8>, name: [u8; 4], content: &[u8]) {
    out.extend(name);
    out.extend((content.len() as u32).to_le_bytes());
    out.extend(content);
    if content.len() % 2 == 1 {
        out.push(0);
    }
}

/// Reads the name and size of the next chunk. Returns `None` at the end.
fn next_chunk<R: Read>(file: &mut R) -> io::Result<Option<([u8; 4], u64)>> {
    let mut header = Vec::new();
    file.take(8).read_to_end(&mut header)?;
    let Some((&name, size)) = header.split_first_chunk::<4>() else {
        return Ok(None);
    };
    let Ok(size) = size.try_into() else {
        return Ok(None);
    };
    Ok(Some((name, u32::from_le_bytes(size).into())))
}

fn u24(bytes: &[u8]) -> usize {
    usize::from(bytes[0]) | usize::from(bytes[1]) << 8 | usize::from(bytes[2]) << 16
}

fn invalid(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}
