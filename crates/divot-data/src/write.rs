//! Writers of videos and images.
//!
//! Every writer fills a temporary file beside the target and renames it at the end. If writing fails,
//! the target does not change.

use std::fs;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use image::codecs::gif::{GifEncoder, Repeat};
use image::{Delay, ImageError, RgbaImage};
use rusty_h264::{Encoder, EncoderConfig, Preset, YuvFrame};

use crate::mux::{self, TrackBoxes};
use crate::yuv;
use crate::{Error, Frame, Result};

/// Quantiser of the H.264 writer: visually lossless.
const QUANTISER: u8 = 10;

/// Number of frames from one keyframe to the next.
const KEYFRAME_INTERVAL: u32 = 48;

/// Writes an MP4 file with H.264 video.
///
/// The video is visually lossless, in the High profile, with 4:2:0 chroma. Its colours are BT.601 in the
/// narrow range, and labelled as such. The index comes before the frames.
///
/// `fps` is the frame rate in frames per second, over 0 and at most 1000. 4:2:0 video has even sides. An
/// odd last row or column is left out. A side of 1 is doubled.
///
/// # Errors
/// [`Error::Argument`] for no frames, frames of different sizes or over 16384 pixels a side, or a
/// bad frame rate; [`Error::Write`] when the target cannot be written.
pub fn write_mp4(path: impl AsRef<Path>, frames: &[Frame], fps: f64) -> Result<()> {
    let (tick, timescale) = time_base(fps)?;
    write_mp4_timed(path.as_ref(), frames, timescale, &vec![tick; frames.len()])
}

/// Like [`write_mp4`], with a duration for each frame, in ticks.
pub(crate) fn write_mp4_timed(
    path: &Path,
    frames: &[Frame],
    timescale: u32,
    durations: &[u32],
) -> Result<()> {
    let stream = encode(frames, timescale, durations)?;
    let head = mux::head(&TrackBoxes {
        width: stream.width as u16,
        height: stream.height as u16,
        timescale,
        durations,
        syncs: &stream.syncs,
        sizes: &stream
            .samples
            .iter()
            .map(|s| s.len() as u32)
            .collect::<Vec<_>>(),
        sps: &stream.sps,
        pps: &stream.pps,
    })
    .ok_or_else(|| {
        Error::Argument(format!(
            "{}: the video is over 4 GiB; write it in parts",
            path.display()
        ))
    })?;
    atomically(path, |file| {
        file.write_all(&head)?;
        stream
            .samples
            .iter()
            .try_for_each(|sample| file.write_all(sample))
    })
}

/// Returns `(tick, timescale)`. A frame is shown for `tick / timescale` seconds.
fn time_base(fps: f64) -> Result<(u32, u32)> {
    if !(fps > 0.0 && fps <= 1000.0) {
        return Err(Error::Argument(format!(
            "{fps} is no frame rate for a video; give a number over 0 and at most 1000"
        )));
    }
    // Exact for whole rates, and to a thousandth for others. Rates below 1 need finer ticks.
    Ok(if fps >= 1.0 {
        (1000, (fps * 1000.0).round() as u32)
    } else {
        ((1000.0 / fps).round().min(1e9) as u32, 1000)
    })
}

/// An encoded video: one sample per frame, in display order.
struct Stream {
    width: usize,
    height: usize,
    sps: Vec<u8>,
    pps: Vec<u8>,
    samples: Vec<Vec<u8>>,
    syncs: Vec<bool>,
}

fn encode(frames: &[Frame], timescale: u32, durations: &[u32]) -> Result<Stream> {
    let (width, height) = common_size(frames)?;
    if width.max(height) > 16384 {
        return Err(Error::Argument(format!(
            "frames of {width}x{height} are too large for H.264; resize them to at most 16384 a side"
        )));
    }
    let even = |side: usize| (side & !1).max(2);
    let (width, height) = (even(width), even(height));
    let tick = durations.first().copied().unwrap_or(1).max(1);
    let mut config = EncoderConfig::new(width, height);
    config.preset = Preset::Balanced;
    config.qp = QUANTISER;
    config.gop_size = KEYFRAME_INTERVAL;
    config.framerate = timescale as f32 / tick as f32;
    // One frame in, one sample out: no lookahead.
    config.mbtree = false;
    config.scenecut = 0;
    config.bframes = 0;
    let references = config.num_ref_frames;
    let unfit = |e: &dyn std::fmt::Display| {
        Error::Argument(format!(
            "frames of {width}x{height} cannot be encoded ({e}); resize them"
        ))
    };
    let mut encoder = Encoder::new(config).map_err(|e| unfit(&e))?;

    let mut stream = Stream {
        width,
        height,
        sps: Vec::new(),
        pps: Vec::new(),
        samples: Vec::with_capacity(frames.len()),
        syncs: Vec::with_capacity(frames.len()),
    };
    for frame in frames {
        let (width, height, [y, u, v]) = yuv::from_rgb(frame);
        let picture = YuvFrame {
            width,
            height,
            y,
            u,
            v,
        };
        let unit = encoder.try_encode(&picture).map_err(|e| unfit(&e))?;
        let mut sample = Vec::with_capacity(unit.len());
        let mut sync = false;
        for nal in mux::nal_units(&unit) {
            match nal[0] & 31 {
                7 => stream.sps = mux::with_usability_info(nal, references, tick, timescale),
                8 => stream.pps = nal.to_vec(),
                kind => {
                    sync |= kind == 5;
                    sample.extend((nal.len() as u32).to_be_bytes());
                    sample.extend(nal);
                }
            }
        }
        stream.samples.push(sample);
        stream.syncs.push(sync);
    }
    Ok(stream)
}

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

/// Writes through a temporary file. On an error, the temporary file is removed.
pub(crate) fn atomically(
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Video;

    fn frames(count: usize) -> Vec<Frame> {
        (0..count)
            .map(|i| Frame::filled(32, 32, [20 * i as u8, 100, 50]).unwrap())
            .collect()
    }

    #[test]
    fn a_variable_rate_is_averaged() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("variable.mp4");
        // Ten frames in 4 seconds.
        let durations = [100, 100, 700, 50, 50, 1000, 500, 500, 500, 500];
        write_mp4_timed(&path, &frames(10), 1000, &durations).unwrap();
        let video = Video::open(&path).unwrap();
        assert_eq!((video.info().frames, video.info().fps), (10, 2.5));
        let reds: Vec<_> = video
            .frames(&[0, 3, 9])
            .unwrap()
            .iter()
            .map(|f| f.mean_rgb()[0].round())
            .collect();
        assert!(reds[0] < 5.0 && (reds[1] - 60.0).abs() < 5.0 && (reds[2] - 180.0).abs() < 5.0);
    }

    #[test]
    fn an_index_without_samples_is_an_empty_video() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("empty.mp4");
        let stream = encode(&frames(1), 8000, &[1000]).unwrap();
        let head = mux::head(&TrackBoxes {
            width: 32,
            height: 32,
            timescale: 8000,
            durations: &[],
            syncs: &[],
            sizes: &[],
            sps: &stream.sps,
            pps: &stream.pps,
        });
        fs::write(&path, head.unwrap()).unwrap();
        let error = Video::open(&path).unwrap_err();
        assert!(matches!(error, Error::Empty { .. }), "{error}");
    }
}
