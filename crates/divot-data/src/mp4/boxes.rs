//! The box structure of an MP4 file.

/// Returns the boxes in a body, up to the first one that does not fit.
pub fn boxes(mut body: &[u8]) -> impl Iterator<Item = ([u8; 4], &[u8])> {
    std::iter::from_fn(move || {
        let mut bytes = Bytes(body);
        let short = bytes.u32()?;
        let name = bytes.name()?;
        let (header, size) = match short {
            0 => (8, body.len()),
            1 => (16, usize::try_from(bytes.u64()?).ok()?),
            size => (8, size as usize),
        };
        let content = body.get(header..size)?;
        body = &body[size..];
        Some((name, content))
    })
}

/// Returns the first box at the end of a path of names.
pub fn find<'a>(body: &'a [u8], names: &[&[u8; 4]]) -> Option<&'a [u8]> {
    names.iter().try_fold(body, |body, &name| {
        boxes(body).find(|(n, _)| n == name).map(|(_, b)| b)
    })
}

/// Reads big-endian numbers from the front of a slice.
#[derive(Clone, Copy)]
pub struct Bytes<'a>(pub &'a [u8]);

impl<'a> Bytes<'a> {
    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (front, rest) = self.0.split_first_chunk::<N>()?;
        self.0 = rest;
        Some(*front)
    }
    pub fn skip(&mut self, n: usize) -> Option<()> {
        self.0 = self.0.get(n..)?;
        Some(())
    }
    pub fn name(&mut self) -> Option<[u8; 4]> {
        self.take()
    }
    pub fn u8(&mut self) -> Option<u8> {
        self.take().map(u8::from_be_bytes)
    }
    pub fn u16(&mut self) -> Option<u16> {
        self.take().map(u16::from_be_bytes)
    }
    pub fn u32(&mut self) -> Option<u32> {
        self.take().map(u32::from_be_bytes)
    }
    pub fn i32(&mut self) -> Option<i32> {
        self.take().map(i32::from_be_bytes)
    }
    pub fn u64(&mut self) -> Option<u64> {
        self.take().map(u64::from_be_bytes)
    }
    /// Reads a number of 32 bits in version 0 of a box, and of 64 bits in version 1.
    pub fn word(&mut self, version: u8) -> Option<u64> {
        if version == 1 {
            self.u64()
        } else {
            self.u32().map(u64::from)
        }
    }
    /// Skips the tag and length of an MPEG-4 descriptor. Returns `None` if it has another tag.
    pub fn descriptor(&mut self, tag: u8) -> Option<()> {
        if self.u8()? != tag {
            return None;
        }
        // The length has up to four bytes of seven bits.
        for _ in 0..4 {
            if self.u8()? & 0x80 == 0 {
                break;
            }
        }
        Some(())
    }
    /// Reads the version and flags of a "full" box.
    pub fn full(&mut self) -> Option<(u8, u32)> {
        let word = self.u32()?;
        Some(((word >> 24) as u8, word & 0x00ff_ffff))
    }
}

/// Returns the entries of a "full" box that is a table with a count.
pub fn entries<T>(
    body: &[u8],
    mut entry: impl FnMut(&mut Bytes<'_>) -> Option<T>,
) -> Option<Vec<T>> {
    let mut bytes = Bytes(body);
    bytes.full()?;
    let count = bytes.u32()?;
    (0..count).map(|_| entry(&mut bytes)).collect()
}
