//! The codec and the colours in a sample entry.

use super::boxes::{Bytes, find};

/// Reads the matrix and the range of a `colr` box.
pub fn colour(colr: &[u8]) -> Option<(u16, bool)> {
    let mut b = Bytes(colr);
    let kind = b.name()?;
    b.skip(4)?;
    let matrix = b.u16()?;
    match &kind {
        b"nclx" => Some((matrix, b.u8()? & 0x80 != 0)),
        b"nclc" => Some((matrix, false)),
        _ => None,
    }
}

/// Returns the usual name of a codec, as in FFmpeg.
pub fn codec_name(fourcc: [u8; 4], extensions: &[u8]) -> String {
    let known = match &fourcc {
        b"avc1" | b"avc2" | b"avc3" | b"avc4" => "h264",
        b"hvc1" | b"hev1" | b"dvh1" | b"dvhe" => "hevc",
        b"vvc1" | b"vvi1" => "vvc",
        b"vp08" => "vp8",
        b"vp09" => "vp9",
        b"av01" => "av1",
        b"jpeg" | b"mjpa" | b"mjpb" => "mjpeg",
        b"s263" | b"h263" => "h263",
        b"apch" | b"apcn" | b"apcs" | b"apco" | b"ap4h" | b"ap4x" => "prores",
        b"encv" => "encrypted video",
        b"mp4v" => match find(extensions, &[b"esds"]).and_then(object_type) {
            Some(0x60..=0x65) => "mpeg2video",
            Some(0x6a) => "mpeg1video",
            Some(0x6c) => "mjpeg",
            _ => "mpeg4",
        },
        _ => return String::from_utf8_lossy(&fourcc).escape_debug().to_string(),
    };
    known.into()
}

/// Reads the object type in an elementary stream descriptor.
fn object_type(esds: &[u8]) -> Option<u8> {
    const STREAM: u8 = 3;
    const DECODER_CONFIG: u8 = 4;
    let mut b = Bytes(esds.get(4..)?);
    b.descriptor(STREAM)?;
    b.skip(2)?;
    let flags = b.u8()?;
    if flags & 0x80 != 0 {
        b.skip(2)?;
    }
    if flags & 0x40 != 0 {
        let url = b.u8()?;
        b.skip(url.into())?;
    }
    if flags & 0x20 != 0 {
        b.skip(2)?;
    }
    b.descriptor(DECODER_CONFIG)?;
    b.u8()
}
