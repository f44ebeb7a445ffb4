//! Compares with the reference material, if present: `DIVOT_FIXTURE` names the folder of the parity fixture,
//! with the demo videos beside it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use divot_data::metrics::psnr;
use divot_data::sampling::reconstruct_indices;
use divot_data::{Error, Frame, OpenOptions, Transform, Video, write_mp4};
use safetensors::SafeTensors;

fn fixture() -> Option<PathBuf> {
    let folder = std::env::var_os("DIVOT_FIXTURE").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/reference/mini"),
        PathBuf::from,
    );
    if folder.is_dir() {
        return Some(folder);
    }
    println!(
        "skipped: there is no {}; set DIVOT_FIXTURE",
        folder.display()
    );
    None
}

fn demo(name: &str) -> Option<PathBuf> {
    let path = fixture()?.join("../videos").join(name);
    if path.is_file() {
        return Some(path);
    }
    println!("skipped: there is no {}", path.display());
    None
}

#[derive(serde::Deserialize)]
struct Expected {
    codec: String,
    frames: usize,
    fps: f64,
    width: usize,
    height: usize,
    mean_rgb: Vec<[f64; 3]>,
}

fn expected(video: &Path) -> Expected {
    let text = std::fs::read_to_string(video.with_file_name("expected.json")).unwrap();
    let mut all: BTreeMap<String, Expected> = serde_json::from_str(&text).unwrap();
    all.remove(video.file_name().unwrap().to_str().unwrap())
        .unwrap()
}

/// Decodes everything with these programs and returns the largest deviation of a mean.
fn deviation(path: &Path, options: &OpenOptions) -> f64 {
    let expected = expected(path);
    let video = Video::open_with(path, options).unwrap();
    let info = video.info();
    assert_eq!(info.codec, expected.codec);
    assert_eq!(info.frames, expected.frames);
    assert_eq!(info.fps, expected.fps);
    assert_eq!((info.width, info.height), (expected.width, expected.height));

    let all: Vec<_> = (0..info.frames).collect();
    let start = std::time::Instant::now();
    let frames = video.frames(&all).unwrap();
    println!("{} frames in {:.2?}", frames.len(), start.elapsed());
    let worst = frames
        .iter()
        .zip(&expected.mean_rgb)
        .flat_map(|(frame, expected)| {
            let ours = frame.mean_rgb();
            (0..3).map(move |c| (ours[c] - expected[c]).abs())
        })
        .fold(0.0, f64::max);
    println!("{}: largest deviation of a mean {worst:.3}", path.display());

    // Frames that are read one by one equal those of the whole video.
    let picked = video.frames(&[1, 5, 5, info.frames - 1]).unwrap();
    let whole: [&Frame; 4] = [&frames[1], &frames[5], &frames[5], &frames[info.frames - 1]];
    assert!(picked.iter().eq(whole));
    worst
}

fn no_programs() -> OpenOptions {
    OpenOptions {
        ffmpeg: "/nonexistent/ffmpeg".into(),
        ffprobe: "/nonexistent/ffprobe".into(),
        ..OpenOptions::default()
    }
}

#[test]
fn h264_needs_no_program() {
    if let Some(path) = demo("wine.mp4") {
        assert!(deviation(&path, &no_programs()) < 2.0);
    }
}

#[test]
fn what_is_written_is_visually_lossless() {
    let Some(path) = demo("wine.mp4") else { return };
    let video = Video::open(&path).unwrap();
    let indices = reconstruct_indices(video.info().frames, video.info().fps).unwrap();
    let frames: Vec<Frame> = video
        .frames(&indices)
        .unwrap()
        .iter()
        .map(|frame| Transform::default().frame(frame).unwrap())
        .collect();
    let folder = tempfile::tempdir().unwrap();
    let target = folder.path().join("wine.mp4");
    let start = std::time::Instant::now();
    write_mp4(&target, &frames, 8.0).unwrap();
    let took = start.elapsed();
    let back = Video::open(&target)
        .unwrap()
        .frames(&(0..16).collect::<Vec<_>>())
        .unwrap();
    let worst = frames
        .iter()
        .zip(&back)
        .map(|(a, b)| psnr(a, b).unwrap())
        .fold(f64::INFINITY, f64::min);
    let bytes = std::fs::metadata(&target).unwrap().len();
    println!("16 frames written in {took:.2?}, {bytes} bytes, worst {worst:.1} dB");
    assert!(worst > 40.0);
}

#[test]
fn other_codecs_go_through_ffmpeg() {
    let Some(path) = demo("car.mp4") else { return };
    match Video::open(&path) {
        Err(Error::NeedsFfmpeg { .. }) => println!("skipped: there is no ffmpeg on the PATH"),
        _ => assert!(deviation(&path, &OpenOptions::default()) < 2.0),
    }
}

#[test]
fn a_missing_program_is_named_with_the_codec() {
    let Some(path) = demo("car.mp4") else { return };
    let error = Video::open_with(&path, &no_programs()).unwrap_err();
    assert!(matches!(&error, Error::NeedsFfmpeg { codec, .. } if codec == "mpeg4"));
    let line = error.to_string();
    assert!(line.contains("car.mp4: codec mpeg4 needs the"), "{line}");
    assert!(line.contains("convert the video to H.264"), "{line}");
    assert!(!line.contains('\n'));
}

#[test]
fn transforms_match_the_fixture() {
    let Some(folder) = fixture() else { return };
    let bytes = std::fs::read(folder.join("io.safetensors")).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let input = tensors.tensor("preprocess/frames_u8").unwrap();
    let &[count, height, width, 3] = input.shape() else {
        panic!("frames of shape {:?}", input.shape())
    };
    let frames: Vec<Frame> = input
        .data()
        .chunks_exact(height * width * 3)
        .map(|rgb| Frame::new(width, height, rgb.to_vec()).unwrap())
        .collect();
    assert_eq!(frames.len(), count);

    for (name, keep_aspect, frames) in [
        ("preprocess/dc_256", true, &frames[..]),
        ("preprocess/dc_256_fixed", false, &frames[..1]),
    ] {
        let theirs = tensors.tensor(name).unwrap();
        let size = *theirs.shape().last().unwrap();
        let theirs: Vec<f32> = theirs
            .data()
            .chunks_exact(4)
            .map(|b| f32::from_le_bytes(b.try_into().unwrap()))
            .collect();
        let (ours, shape) = Transform { size, keep_aspect }.clip(frames).unwrap();
        assert_eq!(shape, [frames.len(), 3, size, size]);
        assert_eq!(ours.len(), theirs.len());
        let norm = |values: &mut dyn Iterator<Item = f32>| {
            values.map(|v| f64::from(v).powi(2)).sum::<f64>().sqrt()
        };
        let error = norm(&mut ours.iter().zip(&theirs).map(|(a, b)| a - b))
            / norm(&mut theirs.iter().copied());
        let unequal = ours.iter().zip(&theirs).filter(|(a, b)| a != b).count();
        println!(
            "{name}: relative error {error:.2e}, {unequal} of {} unequal",
            ours.len()
        );
        assert_eq!(error, 0.0, "{name}");
    }
}
