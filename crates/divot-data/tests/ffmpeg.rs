//! Reads files that FFmpeg made, like those of other programs, and compares them with FFmpeg's decoding.
//! Prints a line for each test that is skipped.

use std::fs;
use std::ops::ControlFlow;
use std::path::Path;
use std::process::Command;

use divot_data::metrics::psnr;
use divot_data::{Frame, OpenOptions, Video};
use tempfile::TempDir;

/// Runs `ffmpeg` on a moving test picture; `false` when it is missing or lacks the encoder.
fn make(path: &Path, input: &[&str], output: &[&str]) -> bool {
    let done = Command::new("ffmpeg")
        .args(["-v", "error", "-y"])
        .args(input)
        .args([
            "-f",
            "lavfi",
            "-i",
            "testsrc2=size=160x96:rate=25:duration=3",
        ])
        .args(output)
        .arg(path)
        .output();
    let made = done.as_ref().is_ok_and(|o| o.status.success());
    if !made {
        println!("skipped {}: {done:?}", path.display());
    }
    made
}

/// Returns the frames that FFmpeg decodes from the file.
fn theirs(path: &Path, width: usize, height: usize) -> Vec<Frame> {
    let output = Command::new("ffmpeg")
        .args(["-v", "error", "-i"])
        .arg(path)
        .args([
            "-fps_mode",
            "passthrough",
            "-f",
            "rawvideo",
            "-pix_fmt",
            "rgb24",
            "-",
        ])
        .output()
        .unwrap();
    output
        .stdout
        .chunks_exact(width * height * 3)
        .map(|rgb| Frame::new(width, height, rgb.to_vec()).unwrap())
        .collect()
}

/// Returns the largest difference between two bytes.
fn difference(ours: &[Frame], theirs: &[Frame]) -> u8 {
    ours.iter()
        .zip(theirs)
        .flat_map(|(a, b)| a.rgb.iter().zip(&b.rgb))
        .map(|(a, b)| a.abs_diff(*b))
        .max()
        .unwrap_or(0)
}

fn alone() -> OpenOptions {
    OpenOptions {
        ffmpeg: "/nonexistent/ffmpeg".into(),
        ffprobe: "/nonexistent/ffprobe".into(),
        ..OpenOptions::default()
    }
}

#[test]
fn h264_of_many_kinds_decodes_as_ffmpeg_does() {
    let folder = TempDir::new().unwrap();
    // Name, options, and whether the bytes must be equal. For other depths, FFmpeg uses a converter that
    // interpolates chroma.
    let kinds: [(&str, &str, bool); 20] = [
        ("plain.mp4", "-pix_fmt yuv420p", true),
        ("bframes.mp4", "-pix_fmt yuv420p -bf 3 -g 12", true),
        (
            "open_gop.mp4",
            "-pix_fmt yuv420p -bf 2 -g 10 -x264-params open-gop=1",
            true,
        ),
        ("movie.mov", "-pix_fmt yuv420p -bf 2", true),
        (
            "fragments.mp4",
            "-pix_fmt yuv420p -bf 2 -g 20 -movflags frag_keyframe+empty_moov",
            true,
        ),
        (
            "dash.mp4",
            "-pix_fmt yuv420p -g 20 -movflags frag_keyframe+empty_moov+default_base_moof",
            true,
        ),
        (
            "interlaced.mp4",
            "-pix_fmt yuv420p -flags +ilme+ildct -x264-params tff=1",
            true,
        ),
        (
            "bt709.mp4",
            "-pix_fmt yuv420p -colorspace bt709 -color_range tv",
            true,
        ),
        ("full.mp4", "-pix_fmt yuvj420p", true),
        ("ten_bits.mp4", "-pix_fmt yuv420p10le", false),
        ("chroma422.mp4", "-pix_fmt yuv422p", true),
        ("baseline.mp4", "-pix_fmt yuv420p -profile:v baseline", true),
        (
            "slices.mp4",
            "-pix_fmt yuv420p -bf 2 -tune zerolatency -x264-params slices=4",
            true,
        ),
        (
            "temporal.mp4",
            "-pix_fmt yuv420p -bf 5 -x264-params direct=temporal:weightb=1:b-pyramid=strict",
            true,
        ),
        (
            "references.mp4",
            "-pix_fmt yuv420p -bf 8 -refs 8 -x264-params b-pyramid=normal:weightp=2:keyint=50",
            true,
        ),
        (
            "without_cabac.mp4",
            "-pix_fmt yuv420p -bf 3 -coder 0 -x264-params 8x8dct=1",
            true,
        ),
        (
            "matrices.mp4",
            "-pix_fmt yuv420p -bf 3 -x264-params cqm=jvt:8x8dct=1",
            true,
        ),
        (
            "refreshed.mp4",
            "-pix_fmt yuv420p -x264-params intra-refresh=1:keyint=20",
            true,
        ),
        (
            "deblocked.mp4",
            "-pix_fmt yuv420p -bf 2 -x264-params deblock=3,-3:constrained-intra=1",
            true,
        ),
        (
            "fine.mp4",
            "-pix_fmt yuv420p -bf 2 -crf 1 -x264-params partitions=all:me=umh:subme=9",
            true,
        ),
    ];
    for (name, options, exact) in kinds {
        let path = folder.path().join(name);
        let mut output: Vec<_> = options.split(' ').collect();
        output.extend(["-c:v", "libx264", "-preset", "fast"]);
        if !make(&path, &[], &output) {
            continue;
        }
        let theirs = theirs(&path, 160, 96);
        assert_eq!(theirs.len(), 75, "{name}");
        for parallel in [false, true] {
            let options = OpenOptions {
                parallel,
                ..alone()
            };
            let video = Video::open_with(&path, &options).unwrap();
            let info = video.info();
            assert_eq!(
                (info.frames, info.width, info.height),
                (75, 160, 96),
                "{name}"
            );
            assert!((info.fps - 25.0).abs() < 0.01, "{name} at {}", info.fps);
            let ours = video.frames(&(0..75).collect::<Vec<_>>()).unwrap();
            let worst = difference(&ours, &theirs);
            let quality = psnr(&ours[40], &theirs[40]).unwrap();
            println!("{name}: {worst} levels, {quality:.1} dB");
            assert!(worst == 0 || !exact && quality > 28.0, "{name}");
            let picks = [74, 20, 19, 21, 9, 60];
            let picked = video.frames(&picks).unwrap();
            assert!(picked.iter().eq(picks.iter().map(|&i| &ours[i])), "{name}");
            let mut in_order = Vec::new();
            let flow = video.visit_all(|_, frame| {
                in_order.push(frame.clone());
                Ok(ControlFlow::Continue(()))
            });
            assert!(flow.unwrap().is_continue());
            assert!(in_order == ours, "{name}");
        }
    }
}

#[test]
fn trimmed_and_turned() {
    let folder = TempDir::new().unwrap();
    let whole = folder.path().join("whole.mp4");
    if !make(
        &whole,
        &[],
        &["-c:v", "libx264", "-pix_fmt", "yuv420p", "-bf", "2"],
    ) {
        return;
    }
    // A copy that starts between two keyframes starts with frames that an edit list hides.
    let path = folder.path().join("cut.mp4");
    let done = Command::new("ffmpeg")
        .args(["-v", "error", "-ss", "1", "-i"])
        .arg(&whole)
        .args(["-c", "copy"])
        .arg(&path)
        .status();
    assert!(done.unwrap().success());
    let video = Video::open_with(&path, &alone()).unwrap();
    let theirs_all = theirs(&path, 160, 96);
    assert_eq!(video.info().frames, theirs_all.len());
    let ours = video
        .frames(&(0..theirs_all.len()).collect::<Vec<_>>())
        .unwrap();
    assert_eq!(difference(&ours, &theirs_all), 0);

    for (degrees, size) in [("90", (96, 160)), ("180", (160, 96)), ("270", (96, 160))] {
        let path = folder.path().join(format!("turned{degrees}.mp4"));
        let done = Command::new("ffmpeg")
            .args(["-v", "error", "-i"])
            .arg(&whole)
            .args(["-c", "copy", "-metadata:s:v", &format!("rotate={degrees}")])
            .arg(&path)
            .status();
        if !done.unwrap().success() {
            continue;
        }
        let video = Video::open_with(&path, &alone()).unwrap();
        assert_eq!((video.info().width, video.info().height), size, "{degrees}");
        let ours = video.frames(&[0, 40]).unwrap();
        let theirs = theirs(&path, size.0, size.1);
        assert!(difference(&ours[..1], &theirs[..1]) <= 40, "{degrees}");
        assert!(psnr(&ours[1], &theirs[40]).unwrap() > 25.0, "{degrees}");
    }
}

#[test]
fn everything_else_goes_through_the_program() {
    let folder = TempDir::new().unwrap();
    for (name, options, codec) in [
        ("film.webm", "-c:v libvpx -b:v 1M", "vp8"),
        ("film.mkv", "-c:v libx264 -pix_fmt yuv420p", "h264"),
        ("film.avi", "-c:v mpeg4", "mpeg4"),
        ("film.ts", "-c:v mpeg2video", "mpeg2video"),
        ("chroma444.mp4", "-c:v libx264 -pix_fmt yuv444p", "h264"),
        (
            "hevc.mp4",
            "-c:v libx265 -x265-params log-level=error",
            "hevc",
        ),
        ("mjpeg.mov", "-c:v mjpeg -pix_fmt yuvj420p", "mjpeg"),
    ] {
        let path = folder.path().join(name);
        if !make(&path, &[], &options.split(' ').collect::<Vec<_>>()) {
            continue;
        }
        let error = Video::open_with(&path, &alone()).unwrap_err();
        println!("{error}");
        assert!(
            error.to_string().contains("needs the `ffmpeg` program"),
            "{error}"
        );

        let video = Video::open(&path).unwrap();
        let info = video.info();
        assert_eq!((info.frames, info.codec.as_str()), (75, codec), "{name}");
        assert!((info.fps - 25.0).abs() < 0.01, "{name} at {}", info.fps);
        let picks = [74, 0, 30, 30];
        let picked = video.frames(&picks).unwrap();
        let theirs = theirs(&path, info.width, info.height);
        assert!(
            picked.iter().eq(picks.iter().map(|&i| &theirs[i])),
            "{name}"
        );
        // As many frames as a comprehension prompt needs.
        let many: Vec<_> = (0..320).map(|i| i % 75).collect();
        assert_eq!(video.frames(&many).unwrap().len(), 320);
    }
}

#[test]
fn damaged_b_frames_do_not_panic() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("damaged.mp4");
    if !make(
        &path,
        &[],
        &[
            "-c:v",
            "libx264",
            "-pix_fmt",
            "yuv420p",
            "-bf",
            "3",
            "-frames:v",
            "12",
        ],
    ) {
        return;
    }
    let whole = fs::read(&path).unwrap();
    let mut state = 1u64;
    let mut random = |below: usize| {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as usize % below
    };
    let rounds = std::env::var("DIVOT_FUZZ_ROUNDS")
        .ok()
        .and_then(|r| r.parse().ok())
        .unwrap_or(200);
    let mut errors = 0;
    for round in 0..rounds {
        let mut bytes = whole.clone();
        for _ in 0..=random(6) {
            let at = random(bytes.len());
            bytes[at] = random(256) as u8;
        }
        fs::write(&path, &bytes).unwrap();
        let options = OpenOptions {
            parallel: round % 2 == 0,
            ..alone()
        };
        let outcome = Video::open_with(&path, &options)
            .and_then(|v| v.frames(&(0..v.info().frames).collect::<Vec<_>>()));
        if let Err(error) = outcome {
            errors += 1;
            assert!(
                !error.to_string().contains("gave up"),
                "the decoder panicked: {error}"
            );
        }
    }
    println!("{errors} errors in {rounds} rounds");
}
