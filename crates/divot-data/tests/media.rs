//! Files of every kind, valid and damaged, made by the tests with the crate's own writers.

use std::fs;
use std::path::{Path, PathBuf};

use divot_data::metrics::psnr;
use divot_data::{
    Error, Frame, OpenOptions, Video, check_writable, contact_sheet, read_image, write_gif,
    write_mp4, write_png,
};
use tempfile::TempDir;

/// Makes a clip with smooth colours and a moving bright disc, so that frames differ and compress well.
fn clip(frames: usize, width: usize, height: usize) -> Vec<Frame> {
    (0..frames)
        .map(|t| {
            let (cx, cy) = (width as f64 * (0.2 + 0.04 * t as f64), height as f64 * 0.5);
            let radius = height as f64 * 0.25;
            let rgb = (0..height * width)
                .flat_map(|i| {
                    let (x, y) = ((i % width) as f64, (i / width) as f64);
                    let edge = (radius - (x - cx).hypot(y - cy)).clamp(-4.0, 4.0) / 8.0 + 0.5;
                    let (u, v) = (x / width as f64, y / height as f64);
                    [
                        30.0 + 150.0 * u * (1.0 - edge) + 200.0 * edge,
                        60.0 + 120.0 * v,
                        90.0 + 60.0 * (u + v) * 0.5 + 40.0 * edge,
                    ]
                    .map(|value| value as u8)
                })
                .collect();
            Frame::new(width, height, rgb).unwrap()
        })
        .collect()
}

/// Options with which no program is found.
fn alone() -> OpenOptions {
    OpenOptions {
        ffmpeg: "/nonexistent/ffmpeg".into(),
        ffprobe: "/nonexistent/ffprobe".into(),
        ..OpenOptions::default()
    }
}

fn open(path: &Path) -> divot_data::Result<Video> {
    Video::open_with(path, &alone())
}

fn all(video: &Video) -> divot_data::Result<Vec<Frame>> {
    video.frames(&(0..video.info().frames).collect::<Vec<_>>())
}

fn worst_psnr(a: &[Frame], b: &[Frame]) -> f64 {
    assert_eq!(a.len(), b.len());
    a.iter()
        .zip(b)
        .map(|(a, b)| psnr(a, b).unwrap())
        .fold(f64::INFINITY, f64::min)
}

/// Returns the error, which must be one line that starts with the file's path and contains a remedy.
fn one_line(error: &Error, path: &Path) -> String {
    let line = error.to_string();
    assert!(!line.contains('\n'), "{line}");
    assert!(line.starts_with(&path.display().to_string()), "{line}");
    assert!(line.contains("; "), "no remedy: {line}");
    println!("{line}");
    line
}

fn entries(folder: &Path) -> Vec<PathBuf> {
    fs::read_dir(folder)
        .unwrap()
        .map(|e| e.unwrap().path())
        .collect()
}

#[test]
fn an_mp4_comes_back_as_it_was() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("clip.mp4");
    let frames = clip(16, 256, 256);
    write_mp4(&path, &frames, 8.0).unwrap();
    assert_eq!(entries(folder.path()), [path.as_path()]);

    let video = open(&path).unwrap();
    let info = video.info();
    assert_eq!(
        (info.frames, info.fps, info.codec.as_str()),
        (16, 8.0, "h264")
    );
    assert_eq!((info.width, info.height), (256, 256));
    assert_eq!(info.duration(), 2.0);
    let quality = worst_psnr(&frames, &all(&video).unwrap());
    println!(
        "{} bytes, worst frame {quality:.1} dB",
        fs::metadata(&path).unwrap().len()
    );
    assert!(quality > 40.0, "{quality}");
}

#[test]
fn ffmpeg_reads_what_we_write() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("clip.mp4");
    write_mp4(&path, &clip(16, 256, 144), 8.0).unwrap();
    let entries = "stream=codec_name,width,height,avg_frame_rate,nb_frames,color_space,color_range";
    let probe = std::process::Command::new("ffprobe")
        .args([
            "-v",
            "error",
            "-show_entries",
            entries,
            "-of",
            "default=noprint_wrappers=1",
        ])
        .arg(&path)
        .output();
    let Ok(probe) = probe else {
        println!("skipped: there is no ffprobe on the PATH");
        return;
    };
    let text = String::from_utf8(probe.stdout).unwrap();
    assert!(probe.stderr.is_empty());
    for line in [
        "codec_name=h264",
        "width=256",
        "height=144",
        "avg_frame_rate=8/1",
        "nb_frames=16",
        "color_space=smpte170m",
        "color_range=tv",
    ] {
        assert!(text.lines().any(|l| l == line), "no {line} in {text}");
    }
    let decoded = std::process::Command::new("ffmpeg")
        .args(["-v", "error", "-i"])
        .arg(&path)
        .args(["-f", "rawvideo", "-pix_fmt", "rgb24", "-"])
        .output()
        .unwrap();
    assert!(decoded.stderr.is_empty());
    let theirs: Vec<Frame> = decoded
        .stdout
        .chunks_exact(256 * 144 * 3)
        .map(|rgb| Frame::new(256, 144, rgb.to_vec()).unwrap())
        .collect();
    let ours = all(&open(&path).unwrap()).unwrap();
    assert!(worst_psnr(&ours, &theirs) > 45.0);
}

#[test]
fn rates_are_kept() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("clip.mp4");
    for fps in [0.25, 1.0, 7.5, 23.976, 29.97, 60.0, 1000.0] {
        write_mp4(&path, &clip(3, 32, 32), fps).unwrap();
        let ours = open(&path).unwrap().info().fps;
        assert!((ours - fps).abs() < 1e-9, "{ours} for {fps}");
    }
    for fps in [0.0, -8.0, f64::NAN, f64::INFINITY, 1001.0] {
        assert!(write_mp4(&path, &clip(1, 32, 32), fps).is_err());
    }
}

#[test]
fn odd_sizes_lose_a_row_or_column() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("odd.mp4");
    for (width, height, even) in [
        (33, 21, (32, 20)),
        (1, 1, (2, 2)),
        (2, 50, (2, 50)),
        (17, 16, (16, 16)),
    ] {
        write_mp4(&path, &clip(2, width, height), 8.0).unwrap();
        let video = open(&path).unwrap();
        assert_eq!((video.info().width, video.info().height), even);
        let frames = all(&video).unwrap();
        assert_eq!((frames[1].width, frames[1].height), even);
    }
}

#[test]
fn one_frame_and_far_apart_frames() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("clip.mp4");
    write_mp4(&path, &clip(1, 32, 32), 8.0).unwrap();
    let video = open(&path).unwrap();
    assert_eq!((video.info().frames, video.info().fps), (1, 8.0));
    assert_eq!(video.frames(&[0, 0]).unwrap().len(), 2);
    assert!(video.frames(&[]).unwrap().is_empty());
    let error = video.frames(&[1]).unwrap_err();
    assert!(matches!(
        error,
        Error::OutOfRange {
            index: 1,
            frames: 1,
            ..
        }
    ));
    one_line(&error, &path);

    // With several keyframes, picked frames equal those of the whole video, in any order.
    write_mp4(&path, &clip(120, 48, 32), 8.0).unwrap();
    let video = open(&path).unwrap();
    let whole = all(&video).unwrap();
    let picks = [119, 3, 47, 48, 49, 3, 100];
    let picked = video.frames(&picks).unwrap();
    assert!(picked.iter().eq(picks.iter().map(|&i| &whole[i])));
}

#[test]
fn a_4k_portrait_video() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("tall.mp4");
    write_mp4(&path, &clip(2, 2160, 3840), 30.0).unwrap();
    let video = open(&path).unwrap();
    assert_eq!((video.info().width, video.info().height), (2160, 3840));
    let mut sizes = Vec::new();
    let transform = divot_data::Transform::default();
    video
        .visit(&[0, 1, 1], |position, frame| {
            let small = transform.frame(frame)?;
            sizes.push((position, small.width, small.height));
            Ok(())
        })
        .unwrap();
    assert_eq!(sizes, [(0, 256, 256), (1, 256, 256), (2, 256, 256)]);
}

#[test]
fn phone_videos_are_turned_upright() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("phone.mp4");
    let frames = clip(2, 64, 32);
    write_mp4(&path, &frames, 8.0).unwrap();
    let mut bytes = fs::read(&path).unwrap();
    let at = position(&bytes, b"tkhd") + 4 + 40;
    let turned: Vec<u8> = [0, 0x1_0000, 0, -0x1_0000, 0, 0, 0, 0, 0x4000_0000i32]
        .iter()
        .flat_map(|v| v.to_be_bytes())
        .collect();
    bytes[at..at + 36].copy_from_slice(&turned);
    fs::write(&path, &bytes).unwrap();
    let video = open(&path).unwrap();
    assert_eq!((video.info().width, video.info().height), (32, 64));
    let upright: Vec<_> = frames.iter().map(|f| f.rotated(1)).collect();
    assert!(worst_psnr(&upright, &all(&video).unwrap()) > 35.0);
}

fn position(bytes: &[u8], name: &[u8]) -> usize {
    bytes.windows(name.len()).position(|w| w == name).unwrap()
}

#[test]
fn gifs_keep_frames_and_rate() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("clip.gif");
    let frames = clip(16, 64, 48);
    write_gif(&path, &frames, 8.0).unwrap();
    let video = open(&path).unwrap();
    assert_eq!((video.info().frames, video.info().fps), (16, 8.0));
    assert_eq!(video.info().codec, "gif");
    assert!(worst_psnr(&frames, &all(&video).unwrap()) > 28.0);
    assert!(write_gif(&path, &frames, 51.0).is_err());
    assert!(write_gif(&path, &[], 8.0).is_err());

    let whole = fs::read(&path).unwrap();
    fs::write(&path, &whole[..whole.len() / 2]).unwrap();
    one_line(&open(&path).and_then(|v| all(&v)).unwrap_err(), &path);
}

#[test]
fn images_are_videos_of_one_frame() {
    let folder = TempDir::new().unwrap();
    let frame = clip(1, 20, 10).remove(0);
    // The content determines the format, not the name.
    let path = folder.path().join("image.mp4");
    write_png(&path, &frame).unwrap();
    let video = open(&path).unwrap();
    assert_eq!(
        (video.info().frames, video.info().codec.as_str()),
        (1, "png")
    );
    assert_eq!(all(&video).unwrap(), std::slice::from_ref(&frame));
    assert_eq!(read_image(&path).unwrap(), frame);

    let whole = fs::read(&path).unwrap();
    fs::write(&path, &whole[..whole.len() / 2]).unwrap();
    one_line(&open(&path).unwrap_err(), &path);
}

#[test]
fn folders_of_images_sort_naturally() {
    let folder = TempDir::new().unwrap();
    let frames = clip(12, 16, 16);
    for (i, frame) in frames.iter().enumerate() {
        write_png(folder.path().join(format!("frame{i}.png")), frame).unwrap();
    }
    fs::write(folder.path().join("notes.txt"), "not an image").unwrap();
    let options = OpenOptions {
        folder_fps: 24.0,
        ..alone()
    };
    let video = Video::open_with(folder.path(), &options).unwrap();
    assert_eq!((video.info().frames, video.info().fps), (12, 24.0));
    assert_eq!(all(&video).unwrap(), frames);

    write_png(folder.path().join("frame3.png"), &clip(1, 8, 8)[0]).unwrap();
    let error = open(folder.path()).unwrap_err();
    one_line(&error, &folder.path().join("frame3.png"));
    let options = OpenOptions {
        folder_fps: 0.0,
        ..alone()
    };
    assert!(Video::open_with(folder.path(), &options).is_err());
}

#[test]
fn what_is_no_video_is_named() {
    let folder = TempDir::new().unwrap();
    let missing = folder.path().join("missing.mp4");
    let error = open(&missing).unwrap_err();
    assert!(matches!(error, Error::NotFound { .. }));
    one_line(&error, &missing);

    let error = open(folder.path()).unwrap_err();
    assert!(matches!(error, Error::NoImages { .. }));
    one_line(&error, folder.path());

    for (name, content) in [
        ("text.mp4", &b"Dear diary, this is not a video.\n"[..]),
        (
            "bytes.mov",
            &[0x81, 0x00, 0xfe, 0x07, 0x99, 0x13, 0x00, 0xff, 0x42][..],
        ),
        ("empty.mp4", &[][..]),
    ] {
        let path = folder.path().join(name);
        fs::write(&path, content).unwrap();
        one_line(&open(&path).unwrap_err(), &path);
        // With the programs, if they are installed.
        one_line(&Video::open(&path).unwrap_err(), &path);
    }
}

#[test]
fn foreign_containers_name_their_codec() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("film.mkv");
    fs::write(&path, b"\x1a\x45\xdf\xa3....\x86\x85V_VP9\x00\xff").unwrap();
    let line = one_line(&open(&path).unwrap_err(), &path);
    assert!(line.contains("codec vp9 needs"), "{line}");
    let path = folder.path().join("film.avi");
    fs::write(
        &path,
        b"RIFF\x00\x01\x00\x00AVI LIST....strh....vidsXVID\x00\xff",
    )
    .unwrap();
    let line = one_line(&open(&path).unwrap_err(), &path);
    assert!(line.contains("codec XVID (in AVI) needs"), "{line}");
}

#[test]
fn truncated_mp4s() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("cut.mp4");
    write_mp4(&path, &clip(16, 64, 48), 8.0).unwrap();
    let whole = fs::read(&path).unwrap();
    let data = position(&whole, b"mdat");

    // Truncated within the samples: the index and the first frames are readable.
    fs::write(&path, &whole[..data + (whole.len() - data) / 2]).unwrap();
    let video = open(&path).unwrap();
    assert_eq!(video.info().frames, 16);
    assert!(video.frames(&[0]).is_ok());
    let error = all(&video).unwrap_err();
    assert!(one_line(&error, &path).contains("the file ends at byte"));

    // Truncated within the index, and before it.
    for end in [
        position(&whole, b"stbl"),
        position(&whole, b"moov") - 4,
        20,
        9,
    ] {
        fs::write(&path, &whole[..end]).unwrap();
        let error = open(&path).unwrap_err();
        assert!(matches!(error, Error::Damaged { .. }));
        one_line(&error, &path);
    }
    // No index after the samples.
    let mut backwards = whole[..32].to_vec();
    backwards.extend(&whole[data - 4..]);
    fs::write(&path, &backwards).unwrap();
    assert!(one_line(&open(&path).unwrap_err(), &path).contains("no moov box"));
}

#[test]
fn damage_is_an_error_or_a_picture_but_never_a_panic() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("damaged.mp4");
    write_mp4(&path, &clip(6, 48, 32), 8.0).unwrap();
    let whole = fs::read(&path).unwrap();
    let data = position(&whole, b"mdat");
    // A small random generator (xorshift), so that a failure can be repeated.
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut random = |below: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state % below as u64) as usize
    };
    let (mut errors, mut pictures) = (0, 0);
    for round in 0..600 {
        let mut bytes = whole.clone();
        for _ in 0..=random(4) {
            // Half of the damage affects the index, half the samples.
            let at = if round % 2 == 0 {
                random(data)
            } else {
                data + random(whole.len() - data)
            };
            bytes[at] = random(256) as u8;
        }
        if round % 5 == 0 {
            bytes.truncate(1 + random(whole.len() - 1));
        }
        fs::write(&path, &bytes).unwrap();
        match open(&path).and_then(|video| all(&video)) {
            Ok(_) => pictures += 1,
            Err(error) => {
                errors += 1;
                assert!(!error.to_string().contains('\n'));
            }
        }
    }
    println!("{errors} errors, {pictures} with pictures");
    assert!(errors > 100);
}

#[test]
fn targets_that_cannot_be_written() {
    let folder = TempDir::new().unwrap();
    let frames = clip(2, 16, 16);
    let path = folder.path().join("nowhere/clip.mp4");
    one_line(&check_writable(&path).unwrap_err(), &path);
    one_line(&write_mp4(&path, &frames, 8.0).unwrap_err(), &path);
    one_line(&write_gif(&path, &frames, 8.0).unwrap_err(), &path);
    one_line(&write_png(&path, &frames[0]).unwrap_err(), &path);
    one_line(&check_writable(folder.path()).unwrap_err(), folder.path());
    assert!(check_writable("").is_err());

    let path = folder.path().join("clip.mp4");
    check_writable(&path).unwrap();
    assert!(entries(folder.path()).is_empty());
    // A failed write leaves the existing file.
    fs::write(&path, "precious").unwrap();
    assert!(write_mp4(&path, &[], 8.0).is_err());
    assert!(
        write_mp4(
            &path,
            &[clip(1, 16, 16).remove(0), clip(1, 8, 8).remove(0)],
            8.0
        )
        .is_err()
    );
    assert_eq!(fs::read(&path).unwrap(), b"precious");
    check_writable(&path).unwrap();
    assert_eq!(entries(folder.path()), [path.as_path()]);
}

#[test]
fn contact_sheets_have_gaps() {
    let red = Frame::filled(4, 3, [255, 0, 0]).unwrap();
    let blue = Frame::filled(2, 2, [0, 0, 255]).unwrap();
    let sheet = contact_sheet(&[&[red.clone(), red], &[blue]], 2).unwrap();
    assert_eq!((sheet.width, sheet.height), (10, 8));
    assert_eq!(sheet.pixel(3, 2), [255, 0, 0]);
    assert_eq!(sheet.pixel(4, 2), [255; 3]);
    assert_eq!(sheet.pixel(6, 0), [255, 0, 0]);
    assert_eq!(sheet.pixel(1, 6), [0, 0, 255]);
    assert_eq!(sheet.pixel(2, 6), [255; 3]);
    assert!(contact_sheet(&[], 2).is_err());
    assert!(contact_sheet(&[&[]], 2).is_err());
}
