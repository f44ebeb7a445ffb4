//! Compares files in `data/cases`, of kinds that users have and that are easily read wrongly, with FFmpeg's
//! decoding. Prints a line if FFmpeg is missing.

use std::path::{Path, PathBuf};
use std::process::Command;

use divot_data::sampling::{comprehend_indices, reconstruct_indices};
use divot_data::{ClipReader, Error, Frame, Video};

fn case(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/data/cases")
        .join(name)
}

/// Returns whether FFmpeg is installed.
fn ffmpeg() -> bool {
    let found = Command::new("ffmpeg").arg("-version").output().is_ok();
    if !found {
        println!("skipped: there is no ffmpeg on the PATH");
    }
    found
}

/// Returns the frames that FFmpeg decodes from a file.
fn theirs(path: &Path, stream: &str, width: usize, height: usize) -> Vec<Frame> {
    let output = Command::new("ffmpeg")
        .args(["-v", "error", "-nostdin", "-i"])
        .arg(path)
        .args(["-map", stream, "-vsync", "passthrough"])
        .args(["-f", "rawvideo", "-pix_fmt", "rgb24", "-"])
        .output()
        .unwrap();
    let bytes = width * height * 3;
    assert_eq!(output.stdout.len() % bytes, 0, "{}", path.display());
    output
        .stdout
        .chunks_exact(bytes)
        .map(|rgb| Frame::new(width, height, rgb.to_vec()).unwrap())
        .collect()
}

/// Opens a case, checks the number and rate of its frames, and compares all frames and some single ones.
fn check(name: &str, stream: &str, frames: usize, fps: f64) -> Video {
    let path = case(name);
    let video = Video::open(&path).unwrap();
    let info = video.info();
    assert_eq!(info.frames, frames, "{name}");
    assert!((info.fps - fps).abs() < 1e-3, "{name} at {}", info.fps);
    let theirs = theirs(&path, stream, info.width, info.height);
    assert_eq!(theirs.len(), frames, "{name}");
    let all: Vec<usize> = (0..frames).collect();
    let mut equal = 0;
    video
        .visit(&all, |index, frame| {
            equal += usize::from(*frame == theirs[index]);
            Ok(())
        })
        .unwrap();
    assert_eq!(equal, frames, "{name}");
    for index in [0, frames / 3, frames / 2, frames - 1] {
        assert!(
            video.frames(&[index]).unwrap()[0] == theirs[index],
            "{name}: frame {index}"
        );
    }
    video
}

#[test]
fn an_edit_list_hides_the_first_packets() {
    if !ffmpeg() {
        return;
    }
    let video = check("hevc_trim.mov", "0:0", 182, 30.0);
    assert_eq!(format!("{:.2}", video.info().duration()), "6.07");
    let clips = comprehend_indices(182, video.info().fps, 20).unwrap();
    assert_eq!(clips.len(), 4);
}

#[test]
fn invisible_pictures_are_not_counted() {
    if !ffmpeg() {
        return;
    }
    let video = check("altref.webm", "0:0", 750, 30.0);
    assert_eq!(video.info().duration(), 25.0);
}

#[test]
fn a_video_changes_its_size_or_format() {
    if !ffmpeg() {
        return;
    }
    let video = check("ramp.webm", "0:0", 120, 10.0);
    println!("{:?}", video.info());
    check("fmt_change.ts", "0:0", 40, 10.0);
}

#[test]
fn a_raw_stream_has_no_times() {
    if !ffmpeg() {
        return;
    }
    check("raw264.h264", "0:0", 30, 10.0);
}

#[test]
fn a_cover_is_no_video() {
    if !ffmpeg() {
        return;
    }
    let video = check("cover_first.mp4", "0:1", 30, 10.0);
    assert_eq!(video.info().codec, "hevc");
}

#[test]
fn stills_in_an_iso_container() {
    if !ffmpeg() {
        return;
    }
    for (name, format) in [("photo.heic", "HEIC"), ("a.avif", "AVIF")] {
        let path = case(name);
        match Video::open(&path) {
            Ok(video) => {
                let info = video.info();
                assert_eq!(
                    (info.frames, info.width, info.height),
                    (1, 96, 64),
                    "{name}"
                );
                let theirs = theirs(&path, "0:0", 96, 64);
                assert_eq!(video.frames(&[0]).unwrap(), theirs[..1], "{name}");
            }
            Err(error) => {
                assert!(matches!(error, Error::Still { format: f, .. } if f == format));
                let line = error.to_string();
                assert!(line.contains("convert it to PNG or JPEG"), "{line}");
                println!("{line}");
            }
        }
    }
}

#[test]
fn a_start_is_in_seconds_of_the_real_times() {
    let video = Video::open(case("vfr2.mp4")).unwrap();
    assert!(video.is_variable());
    assert_eq!(video.info().frames, 160);
    // Five seconds at 30 frames per second, then 2 frames per second.
    assert_eq!(video.frame_at(4.99), 149);
    assert_eq!(video.frame_at(8.2), 156);
    assert!((video.time(156) - 8.0).abs() < 1e-9);
    let indices: Vec<usize> = (0..16).map(|i| 152 + i / 4).collect();
    let expected = video.frames(&indices).unwrap();
    let reader = ClipReader::default();
    let clip = reader.read(&video, 6.0).unwrap();
    let cut: Vec<Frame> = expected
        .iter()
        .map(|f| reader.transform.frame(f).unwrap())
        .collect();
    assert_eq!(clip.frames(), cut);
    // At the start, the clip follows the released system's rule, which knows only the average rate.
    let indices = reconstruct_indices(160, video.info().fps).unwrap();
    let cut: Vec<Frame> = video
        .frames(&indices)
        .unwrap()
        .iter()
        .map(|f| reader.transform.frame(f).unwrap())
        .collect();
    assert_eq!(reader.read(&video, 0.0).unwrap().frames(), cut);
    assert!(reader.read(&video, 9.6).is_err());
}

/// Computes the checksum of Python's `zlib.crc32`.
fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0, |crc, &byte| {
        (0..8).fold(crc ^ u32::from(byte), |crc, _| {
            (crc >> 1) ^ (0xedb8_8320 & (crc & 1).wrapping_neg())
        })
    })
}

/// Compares checksums of the frames with those of Pillow 13, composited on white.
#[test]
fn animations_are_composited_as_pillow_does() {
    for (name, expected) in [
        (
            "anim_alpha.webp",
            [
                1760153610, 4062277851, 3463099264, 2577969587, 1872842651, 2923052325,
            ],
        ),
        (
            "anim_blend.webp",
            [
                2137377928, 1954869179, 2285100557, 1563156435, 179117259, 3930431754,
            ],
        ),
        (
            "anim_dispose.gif",
            [
                2015395487, 3767065844, 1944907616, 627923949, 1205813597, 298126426,
            ],
        ),
    ] {
        let video = Video::open(case(name)).unwrap();
        let frames = video.frames(&[0, 1, 2, 3, 4, 5]).unwrap();
        let ours: Vec<u32> = frames.iter().map(|f| crc32(&f.rgb)).collect();
        assert_eq!(ours, expected, "{name}");
        for index in (0..6).rev() {
            assert!(
                video.frames(&[index]).unwrap()[0] == frames[index],
                "{name}: {index}"
            );
        }
    }
    // The delays are 100, 40, 0 (shown for 100), 200, 70 and 30 ms.
    let video = Video::open(case("anim_blend.webp")).unwrap();
    assert!((video.info().duration() - 0.54).abs() < 1e-9);
    assert_eq!(
        (
            video.frame_at(0.14),
            video.frame_at(0.239),
            video.frame_at(9.0)
        ),
        (2, 2, 5)
    );
}

/// Like [`check`], but without any program for decoding.
fn check_native(name: &str, frames: usize, fps: f64, size: (usize, usize)) {
    let options = divot_data::OpenOptions {
        ffmpeg: "/nonexistent/ffmpeg".into(),
        ffprobe: "/nonexistent/ffprobe".into(),
        ..Default::default()
    };
    let info = Video::open_with(case(name), &options)
        .unwrap()
        .info()
        .clone();
    assert_eq!((info.width, info.height), size, "{name}");
    check(name, "0:v:0", frames, fps);
}

#[test]
fn sync_samples_that_are_no_key_pictures() {
    if !ffmpeg() {
        return;
    }
    check_native("h264_intrarefresh.mp4", 30, 10.0, (160, 120));
    check_native("x_nostss.mp4", 30, 10.0, (160, 120));
}

#[test]
fn mirrored_pictures() {
    if !ffmpeg() {
        return;
    }
    check_native("x_mat_hflip.mp4", 30, 10.0, (160, 120));
    check_native("x_mat_vflip.mp4", 30, 10.0, (160, 120));
    check_native("x_mat_transpose.mp4", 30, 10.0, (120, 160));
}

#[test]
fn edits_cut_to_the_frame() {
    if !ffmpeg() {
        return;
    }
    check_native("x_elst_mid.mp4", 10, 10.0, (160, 120));
    check_native("x_elst_two_contig.mp4", 20, 10.0, (160, 120));
    check_native("x_elst_cut_middle.mp4", 20, 10.0, (160, 120));
}

#[test]
fn picture_order_where_the_file_has_no_times() {
    if !ffmpeg() {
        return;
    }
    check_native("x_noctts_b.mp4", 30, 10.0, (160, 120));
    check_native("x_stts_zero.mp4", 30, 10.0, (160, 120));
}

#[test]
fn times_of_a_variable_rate() {
    if !ffmpeg() {
        return;
    }
    let video = check("vfr2.mp4", "0:0", 160, 160.0 / 9.533_333);
    assert!(video.is_variable());
    // 5 s at 30 frames per second, then 2 frames per second.
    assert_eq!(video.frame_at(4.5), 135);
    let late = video.frame_at(8.0);
    assert!((video.time(late) - 8.0).abs() < 0.5, "{late}");
    assert!(late > 150, "{late}");
}
