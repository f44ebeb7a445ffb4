//! The decoders of H.264.

use rust_h264::decoder::OrderedDecoder;
use rust_h264::error::DecodeError;
use rust_h264::nal::{NalUnit, NalUnitType};
use rust_h264::threading::ThreadedDecoder;

use super::Decoding;
use crate::Frame;
use crate::yuv::{Colour, Planes};

/// Number of pictures that are decoded at the same time.
///
/// The decoder's coordinator sleeps for 20 ms if all of them are in progress and none has just finished, so
/// more pictures than processors keep those busy. Of 2, 4, 6, 8 and 16, two processors are fastest with 6
/// and 8.
const PICTURES_AT_ONCE: usize = 8;

pub(super) enum Decoder {
    /// `rusty_h264`, for progressive 4:2:0 video of 8 bits in pictures of one slice, which is most. It is faster
    /// than the others, and gives each picture at once, in decoding order.
    Fast(Box<rusty_h264::Decoder>),
    /// `rust_h264`, in the calling thread. Pictures come in display order.
    Single(Box<OrderedDecoder>),
    /// The same in a thread for each picture. It takes more processor time in all.
    Parallel(Box<ThreadedDecoder>),
}

/// A decoded picture.
pub(super) enum Decoded {
    Fast(rusty_h264::YuvFrame),
    Any(rust_h264::decoder::Frame),
}

impl Decoder {
    pub fn new(decoding: Decoding) -> Self {
        match decoding {
            Decoding::Fast => Self::Fast(Box::new(rusty_h264::Decoder::new())),
            Decoding::Single => Self::Single(Box::new(OrderedDecoder::new())),
            Decoding::Parallel => Self::Parallel(Box::new(ThreadedDecoder::new(PICTURES_AT_ONCE))),
        }
    }

    pub fn is_fast(&self) -> bool {
        matches!(self, Self::Fast(_))
    }

    pub fn decode(&mut self, nal: &NalUnit<'_>) -> Result<Vec<Decoded>, DecodeError> {
        let pictures = match self {
            Self::Fast(decoder) => {
                let picture = decoder
                    .decode(&annex_b(nal))
                    .map_err(|_| DecodeError::Unsupported("by the fast decoder"))?;
                return Ok(picture.into_iter().map(Decoded::Fast).collect());
            }
            Self::Single(decoder) => decoder.decode_nal(nal)?,
            Self::Parallel(decoder) => decoder.decode_nal(nal)?,
        };
        Ok(pictures.into_iter().map(Decoded::Any).collect())
    }

    pub fn flush(&mut self) -> Vec<Decoded> {
        let pictures = match self {
            Self::Fast(_) => Vec::new(),
            Self::Single(decoder) => decoder.flush(),
            Self::Parallel(decoder) => decoder.flush(),
        };
        pictures.into_iter().map(Decoded::Any).collect()
    }
}

impl Decoded {
    /// Width and height in pixels.
    pub fn size(&self) -> (usize, usize) {
        match self {
            Self::Fast(picture) => (picture.width, picture.height),
            Self::Any(picture) => (picture.width as usize, picture.height as usize),
        }
    }

    /// Converts to RGB. Returns `None` if the picture has no content.
    pub fn to_rgb(&self, colour: Colour) -> Option<Frame> {
        let (width, height) = self.size();
        let planes = match self {
            Self::Fast(picture) => Planes {
                width,
                height,
                y: &picture.y,
                u: &picture.u,
                v: &picture.v,
                chroma_width: width / 2,
                chroma_height: height / 2,
                bit_depth: 8,
            },
            Self::Any(picture) => Planes {
                width,
                height,
                y: &picture.y,
                u: &picture.u,
                v: &picture.v,
                chroma_width: picture.chroma_width() as usize,
                chroma_height: picture.chroma_height() as usize,
                bit_depth: picture.bit_depth,
            },
        };
        planes.to_rgb(colour)
    }
}

/// Returns a slice or a parameter set as a byte stream (ITU-T H.264, annex B), with a start code, and a byte 3
/// wherever the content looks like one.
fn annex_b(nal: &NalUnit<'_>) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(nal.rbsp.len() + nal.rbsp.len() / 64 + 8);
    let kind = match nal.nal_unit_type {
        NalUnitType::SliceIdr => 5,
        NalUnitType::Sps => 7,
        NalUnitType::Pps => 8,
        _ => 1,
    };
    bytes.extend([0, 0, 1, nal.nal_ref_idc << 5 | kind]);
    let mut zeros = 0;
    for &byte in nal.rbsp.iter() {
        if zeros == 2 && byte <= 3 {
            bytes.push(3);
            zeros = 0;
        }
        bytes.push(byte);
        zeros = if byte == 0 { zeros + 1 } else { 0 };
    }
    bytes
}
