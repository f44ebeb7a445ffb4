//! Detects the format of a file by its first bytes.

/// A still picture in an ISO container, with items instead of a movie.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Still {
    /// `HEIC` or `AVIF`.
    pub name: &'static str,
    /// Whether it is cut into tiles, which only newer versions of FFmpeg assemble.
    pub tiled: bool,
}

/// Returns the still picture if these are the first bytes of one.
pub(crate) fn still(head: &[u8]) -> Option<Still> {
    if head.get(4..8)? != b"ftyp" {
        return None;
    }
    let name = match head.get(8..12)? {
        b"heic" | b"heix" | b"heim" | b"heis" => "HEIC",
        b"avif" => "AVIF",
        // HEIC or AVIF. The compatible brands determine which.
        b"mif1" | b"mif2" | b"miaf" => {
            let has = |brand: &[u8]| {
                head.get(16..64)
                    .is_some_and(|b| b.chunks(4).any(|b| b == brand))
            };
            if has(b"avif") { "AVIF" } else { "HEIC" }
        }
        _ => return None,
    };
    let has = |word: &[u8]| head.windows(word.len()).any(|w| w == word);
    Some(Still {
        name,
        tiled: has(b"grid"),
    })
}

/// Returns the container and, if the first bytes tell, the codec. Returns `None` for unknown formats.
pub(crate) fn sniff(head: &[u8]) -> Option<String> {
    let find = |needle: &[u8]| head.windows(needle.len()).position(|w| w == needle);
    let starts = |magic: &[u8]| head.starts_with(magic);
    if starts(&[0x1a, 0x45, 0xdf, 0xa3]) {
        // Matroska names codecs in plain text, such as V_VP9 or V_MPEG4/ISO/AVC.
        let codec = find(b"V_").map(|at| {
            let name = |b: &&u8| b.is_ascii_alphanumeric() || matches!(b, b'/' | b'_');
            let name: Vec<u8> = head[at + 2..].iter().take_while(name).copied().collect();
            match &name[..] {
                b"MPEG4/ISO/AVC" => "h264 in Matroska".into(),
                b"MPEGH/ISO/HEVC" => "hevc".into(),
                name => String::from_utf8_lossy(name).to_lowercase(),
            }
        });
        return Some(codec.unwrap_or_else(|| "unknown (in Matroska or WebM)".into()));
    }
    if starts(b"RIFF") && head.get(8..12) == Some(b"AVI ") {
        let handler = find(b"vids").and_then(|at| head.get(at + 4..at + 8));
        let name = handler.map(|h| String::from_utf8_lossy(h).trim().escape_debug().to_string());
        return Some(format!("{} (in AVI)", name.as_deref().unwrap_or("unknown")));
    }
    // Packets of 188 bytes. Those of cameras and discs start with four more bytes.
    let packets =
        |at: usize, step: usize| (0..3).all(|i| head.get(at + i * step).is_none_or(|&b| b == 0x47));
    let transport_stream = head.len() >= 188 && (packets(0, 188) || packets(4, 192));
    let name = if transport_stream {
        "unknown (in an MPEG transport stream)"
    } else if starts(&[0, 0, 1, 0xba]) || starts(&[0, 0, 1, 0xb3]) {
        "MPEG-1 or MPEG-2"
    } else if starts(&[0, 0, 0, 1]) || starts(&[0, 0, 1]) {
        "unknown (a raw stream)"
    } else if starts(b"FLV") {
        "unknown (in Flash Video)"
    } else if starts(b"OggS") {
        "unknown (in Ogg)"
    } else if starts(&[0x30, 0x26, 0xb2, 0x75]) {
        "unknown (in ASF or WMV)"
    } else if starts(b"YUV4MPEG2") {
        "raw video (YUV4MPEG)"
    } else if starts(b"DKIF") {
        "unknown (in IVF)"
    } else {
        return None;
    };
    Some(name.into())
}
