//! Small data sets.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use divot_data::dataset::{Format, Reason, Sample, Samples, Skip, Source, SourceConfig};
use divot_data::{Clip, ClipReader, Frame, write_gif, write_mp4, write_png};
use flate2::Compression;
use flate2::write::GzEncoder;

/// Difference in brightness from one frame to the next.
const STEP: usize = 4;

/// A frame by which its number in the video can be told.
pub fn frame(number: usize) -> Frame {
    Frame::filled(112, 112, [(STEP * number) as u8; 3]).unwrap()
}

pub fn frames(count: usize) -> Vec<Frame> {
    (0..count).map(frame).collect()
}

/// The numbers of a clip's frames.
pub fn shown(clip: &Clip) -> Vec<usize> {
    let number = |frame: &Frame| (frame.mean_rgb()[0] / STEP as f64).round() as usize;
    clip.frames().iter().map(number).collect()
}

pub fn parent(path: &Path) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
}

pub fn video(path: impl AsRef<Path>, count: usize, fps: f64) {
    parent(path.as_ref());
    write_mp4(path, &frames(count), fps).unwrap();
}

pub fn gif(path: impl AsRef<Path>, count: usize, fps: f64) {
    parent(path.as_ref());
    write_gif(path, &frames(count), fps).unwrap();
}

/// A picture that looks like frame `number` of a video.
pub fn picture(path: impl AsRef<Path>, number: usize) {
    parent(path.as_ref());
    write_png(path, &frame(number)).unwrap();
}

/// The bytes of a picture of a side of `side` pixels.
pub fn jpeg(side: u32, number: usize) -> Vec<u8> {
    let picture = image::RgbImage::from_pixel(side, side, image::Rgb([(STEP * number) as u8; 3]));
    let mut bytes = std::io::Cursor::new(Vec::new());
    picture
        .write_to(&mut bytes, image::ImageFormat::Jpeg)
        .unwrap();
    bytes.into_inner()
}

pub fn text(path: impl AsRef<Path>, text: impl AsRef<[u8]>) -> PathBuf {
    parent(path.as_ref());
    fs::write(&path, text).unwrap();
    path.as_ref().to_path_buf()
}

/// An archive of files.
pub fn tar(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut archive = tar::Builder::new(Vec::new());
    for (name, content) in files {
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        // The builder refuses names that climb out.
        match archive.append_data(&mut header.clone(), name, *content) {
            Ok(()) => {}
            Err(_) => {
                header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
                header.set_cksum();
                archive.append(&header, *content).unwrap();
            }
        }
    }
    archive.into_inner().unwrap()
}

pub fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut packed = GzEncoder::new(Vec::new(), Compression::fast());
    packed.write_all(bytes).unwrap();
    packed.finish().unwrap()
}

pub fn config(format: Format, path: impl Into<PathBuf>) -> SourceConfig {
    SourceConfig::new(format, path)
}

pub fn open(config: &SourceConfig) -> divot_data::Result<Source> {
    Source::open(config, &ClipReader::of_size(16))
}

/// Reads every sample, with `draw` for everything random.
pub fn read(source: &Source, draw: f64) -> Vec<Result<Sample, Skip>> {
    let read = |index| source.read(index, &mut || draw);
    (0..source.len()).map(read).collect()
}

/// The samples, all of which are sound.
pub fn all(config: &SourceConfig, draw: f64) -> Vec<Sample> {
    let read = read(&open(config).unwrap(), draw);
    read.into_iter().collect::<Result<_, _>>().unwrap()
}

/// Why each sample is left out; `None` for those that are not. Messages are single lines.
pub fn reasons(source: &Source) -> Vec<Option<Reason>> {
    let reason = |read: Result<Sample, Skip>| {
        let skip = read.err()?;
        println!("{} {}: {}", skip.reason, skip.key, skip.message);
        assert!(!skip.message.contains('\n') && !skip.message.is_empty());
        Some(skip.reason)
    };
    read(source, 0.5).into_iter().map(reason).collect()
}

/// Five samples of a picture and a caption.
pub fn five() -> Vec<u8> {
    let picture = jpeg(200, 5);
    let names: Vec<_> = (0..5)
        .map(|i| [format!("{i}.jpg"), format!("{i}.txt")])
        .collect();
    let files = names.iter().flat_map(|[image, text]| {
        [
            (image.as_str(), &picture[..]),
            (text.as_str(), b"a caption"),
        ]
    });
    tar(&files.collect::<Vec<_>>())
}
