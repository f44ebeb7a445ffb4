//! Reads clips, and checks limits and unreadable files. The files are made by the tests.

use std::fs;
use std::ops::ControlFlow;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use divot_data::sampling::{TOKENIZER_FRAMES, comprehend_indices, reconstruct_indices_from};
use divot_data::{
    Clip, ClipReader, Error, Frame, OpenOptions, Transform, Video, write_gif, write_mp4, write_png,
};
use tempfile::TempDir;

/// Makes frames of different solid colours, so that each can be recognised.
fn frames(count: usize) -> Vec<Frame> {
    (0..count)
        .map(|i| Frame::filled(48, 32, [(i % 8 * 36) as u8, (i / 8 % 8 * 36) as u8, 90]).unwrap())
        .collect()
}

fn reader() -> ClipReader {
    ClipReader::new(Transform {
        size: 16,
        keep_aspect: true,
    })
}

/// Returns the cut frames of the video. All ways of reading clips must agree with them.
fn cut(whole: &[Frame], indices: &[usize]) -> Vec<Frame> {
    let cut = |&index: &usize| reader().transform.frame(&whole[index]).unwrap();
    indices.iter().map(cut).collect()
}

fn check_clips(path: &Path) {
    let video = Video::open(path).unwrap();
    let info = video.info();
    let whole = video.frames(&(0..info.frames).collect::<Vec<_>>()).unwrap();
    let indices = comprehend_indices(info.frames, info.fps, 5).unwrap();
    let mut seen = 0;
    let flow = reader()
        .read_all(&video, 5, |number, count, clip| {
            assert_eq!((number, count), (seen, indices.len()));
            assert_eq!(
                clip.frames(),
                cut(&whole, &indices[number]),
                "clip {number}"
            );
            seen += 1;
            ControlFlow::Continue(())
        })
        .unwrap();
    assert!(flow.is_continue() && seen == indices.len());

    // Reading only the sparse frames gives those of the clips.
    let clip = reader().read(&video, 0.5).unwrap();
    let start = reconstruct_indices_from(info.frames, info.fps, 0.5).unwrap();
    assert_eq!(clip.frames(), cut(&whole, &start));
    let mut seen = 0;
    let flow = reader()
        .read_all_sparse(&video, 5, |number, _, (values, shape)| {
            assert_eq!(shape, [5, 3, 16, 16]);
            let frames = cut(&whole, &indices[number]);
            assert_eq!(values, Clip::new(frames).unwrap().sparse().0);
            seen += 1;
            if seen == 2 {
                ControlFlow::Break(())
            } else {
                ControlFlow::Continue(())
            }
        })
        .unwrap();
    assert!(flow.is_break() && seen == 2);
    assert!(
        reader()
            .read_all(&video, 0, |_, _, _| ControlFlow::Continue(()))
            .is_err()
    );
}

#[test]
fn clips_of_every_kind_of_file() {
    let folder = TempDir::new().unwrap();
    let mp4 = folder.path().join("video.mp4");
    write_mp4(&mp4, &frames(150), 10.0).unwrap();
    check_clips(&mp4);
    let gif = folder.path().join("video.gif");
    write_gif(&gif, &frames(60), 10.0).unwrap();
    check_clips(&gif);
    let images = folder.path().join("images");
    fs::create_dir(&images).unwrap();
    for (i, frame) in frames(40).iter().enumerate() {
        write_png(images.join(format!("{i}.png")), frame).unwrap();
    }
    check_clips(&images);
    let mkv = folder.path().join("video.mkv");
    let made = Command::new("ffmpeg")
        .args(["-v", "error", "-i"])
        .arg(&mp4)
        .args(["-c", "copy"])
        .arg(&mkv)
        .status();
    if made.is_ok_and(|status| status.success()) {
        check_clips(&mkv);
    } else {
        println!("skipped Matroska: there is no ffmpeg on the PATH");
    }
}

#[test]
fn a_clip_is_sixteen_frames_of_which_five_are_sparse() {
    let clip = Clip::new(frames(16)).unwrap();
    assert_eq!((clip.size(), clip.fps()), ([32, 48], 8.0));
    let (dense, shape) = clip.dense();
    assert_eq!(shape, [16, 3, 32, 48]);
    let (sparse, shape) = clip.sparse();
    assert_eq!(shape, [5, 3, 32, 48]);
    let size = 3 * 32 * 48;
    for (place, &frame) in TOKENIZER_FRAMES.iter().enumerate() {
        assert_eq!(
            sparse[place * size..][..size],
            dense[frame * size..][..size]
        );
    }
    assert!(dense.iter().all(|v| (-1.0..=1.0).contains(v)));
    assert!(Clip::new(frames(15)).is_err());
    assert!(Clip::with_sparse(frames(4), vec![0, 3]).is_ok());
    assert!(Clip::with_sparse(frames(4), vec![4]).is_err());
    let mut mixed = frames(16);
    mixed[3] = Frame::filled(8, 8, [0; 3]).unwrap();
    assert!(Clip::new(mixed).is_err());
}

#[test]
fn an_image_is_a_clip_of_itself() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("image.png");
    write_png(&path, &frames(1)[0]).unwrap();
    let clip = reader().image(&Video::open(&path).unwrap()).unwrap();
    assert_eq!(clip.frames().len(), 16);
    assert!(clip.frames().iter().all(|f| *f == clip.frames()[0]));
}

#[test]
fn seeking_gives_the_frames_of_decoding_from_the_start() {
    let folder = TempDir::new().unwrap();
    // The video is long enough for a seek to pay off.
    for (name, options) in [
        (
            "hevc.mkv",
            "-c:v libx265 -preset ultrafast -x265-params log-level=error:keyint=60",
        ),
        (
            "h264.mkv",
            "-c:v libx264 -preset ultrafast -bf 2 -g 60 -pix_fmt yuv420p",
        ),
    ] {
        let path = folder.path().join(name);
        let source = "testsrc2=size=640x480:rate=30:duration=24";
        let made = Command::new("ffmpeg")
            .args(["-v", "error", "-f", "lavfi", "-i", source])
            .args(options.split(' '))
            .arg(&path)
            .status();
        if !made.is_ok_and(|status| status.success()) {
            println!("skipped {name}");
            continue;
        }
        let video = Video::open(&path).unwrap();
        assert_eq!(video.info().frames, 720, "{name}");
        let picks = [400, 555, 599, 600, 601, 719];
        // With the first frame too, one pass decodes all of them.
        let whole: Vec<usize> = (0..720).step_by(20).chain(picks).collect();
        let whole = video.frames(&whole).unwrap();
        for (index, expected) in picks.iter().zip(&whole[36..]) {
            let alone = video.frames(&[*index]).unwrap();
            assert!(alone[0] == *expected, "{name}: frame {index}");
        }
    }
}

/// Returns the error, which must be one line that starts with the path.
fn line(path: &Path, options: &OpenOptions) -> String {
    let line = Video::open_with(path, options).unwrap_err().to_string();
    println!("{line}");
    assert!(
        line.starts_with(&path.display().to_string()) && !line.contains('\n'),
        "{line}"
    );
    line
}

#[test]
fn sizes_are_checked_before_memory_is_taken() {
    let folder = TempDir::new().unwrap();
    let default = OpenOptions::default();
    let frame = &frames(1)[0];
    let big = |name: &str, at: &dyn Fn(&[u8]) -> usize, size: &[u8]| {
        let path = folder.path().join(name);
        let made = match name {
            "a.gif" => write_gif(&path, std::slice::from_ref(frame), 8.0),
            _ => fs::write(&path, webp_animation()).map_err(|_| unreachable!()),
        };
        made.unwrap();
        let mut bytes = fs::read(&path).unwrap();
        let at = at(&bytes);
        bytes[at..at + size.len()].copy_from_slice(size);
        fs::write(&path, bytes).unwrap();
        let error = line(&path, &default);
        assert!(
            error.contains("more than the limit of 134217728"),
            "{error}"
        );
        assert!(error.contains("`OpenOptions::max_pixels`"), "{error}");
    };
    let after = |bytes: &[u8], name: &[u8]| {
        bytes.windows(name.len()).position(|w| w == name).unwrap() + name.len()
    };
    big("a.gif", &|_| 6, &[255; 4]);
    big(
        "a.webp",
        &|b| after(b, b"VP8X") + 8,
        &[31, 0, 0, 0x1f, 0, 0x4c],
    );
    // The following checksum is now wrong. It is a valid reason too.
    let path = folder.path().join("a.png");
    write_png(&path, frame).unwrap();
    let small = OpenOptions {
        max_pixels: 48 * 32 - 1,
        ..OpenOptions::default()
    };
    let mp4 = folder.path().join("a.mp4");
    write_mp4(&mp4, &frames(2), 8.0).unwrap();
    for path in [&path, &mp4] {
        assert!(line(path, &small).contains("48x32 pixels, more than the limit of 1535"));
        assert!(Video::open(path).is_ok());
    }
    // Through ffmpeg: in one file the container states the size, in the other only the pictures do.
    for name in ["a.mkv", "a.avi"] {
        let path = folder.path().join(name);
        let made = Command::new("ffmpeg")
            .args(["-v", "error", "-i"])
            .arg(&mp4)
            .args(["-c:v", "mjpeg"])
            .arg(&path)
            .status();
        if made.is_ok_and(|status| status.success()) {
            assert!(
                line(&path, &small).contains("48x32 pixels, more than"),
                "{name}"
            );
        } else {
            println!("skipped {name}: there is no ffmpeg on the PATH");
        }
    }
}

/// A WebP animation of one empty picture.
fn webp_animation() -> Vec<u8> {
    let mut body = b"WEBPVP8X".to_vec();
    body.extend([10, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    body.extend(b"ANMF");
    body.extend([16, 0, 0, 0]);
    body.extend([0; 16]);
    let mut file = b"RIFF".to_vec();
    file.extend((body.len() as u32).to_le_bytes());
    file.extend(body);
    file
}

#[test]
fn what_is_no_file_is_named() {
    let folder = TempDir::new().unwrap();
    let default = OpenOptions::default();
    assert!(line(Path::new("https://example.org/a.mp4"), &default).contains("download it first"));
    assert!(line(Path::new("-"), &default).contains("standard input"));
    let pipe = folder.path().join("pipe.mp4");
    if Command::new("mkfifo")
        .arg(&pipe)
        .status()
        .is_ok_and(|s| s.success())
    {
        assert!(line(&pipe, &default).contains("a pipe"));
    }
    let empty = folder.path().join("empty.mkv");
    fs::write(&empty, "").unwrap();
    assert!(line(&empty, &default).contains("empty"));
}

#[test]
fn scripts_do_not_open_other_files() {
    let folder = TempDir::new().unwrap();
    let real = folder.path().join("real.mp4");
    write_mp4(&real, &frames(8), 8.0).unwrap();
    let real = real.display();
    for (name, content) in [
        ("concat.mp4", format!("ffconcat version 1.0\nfile {real}\n")),
        ("list.mp4", format!("#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1\n{real}\n#EXT-X-ENDLIST\n")),
        ("call.mp4", "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 9 RTP/AVP 96\na=rtpmap:96 H264/90000\n".into()),
    ] {
        let path = folder.path().join(name);
        // As text, and as bytes that do not look like text.
        for end in [&b""[..], b"#\xff\x00\n"] {
            fs::write(&path, [content.as_bytes(), end].concat()).unwrap();
            let error = Video::open(&path).unwrap_err();
            assert!(matches!(error, Error::UnknownFormat { .. }), "{error}");
        }
    }
}

#[test]
fn odd_names_are_only_names() {
    let folder = TempDir::new().unwrap();
    let mp4 = folder.path().join("a.mp4");
    write_mp4(&mp4, &frames(8), 8.0).unwrap();
    for name in [
        "-i.mkv",
        "concat:a|b.mkv",
        "x%03d.mkv",
        "http:a.mkv",
        "a b'c\".mkv",
    ] {
        let path = folder.path().join(name);
        let made = Command::new("ffmpeg")
            .args(["-v", "error", "-i"])
            .arg(&mp4)
            .args(["-c", "copy", "-f", "matroska"])
            .arg(format!("file:{}", path.display()))
            .status();
        if !made.is_ok_and(|status| status.success()) {
            println!("skipped {name}");
            continue;
        }
        assert_eq!(
            Video::open(&path).unwrap().frames(&[7]).unwrap().len(),
            1,
            "{name}"
        );
    }
}

#[cfg(unix)]
#[test]
fn a_program_that_says_nothing_is_ended() {
    use std::os::unix::fs::PermissionsExt;
    let folder = TempDir::new().unwrap();
    let program = folder.path().join("ffprobe");
    fs::write(&program, "#!/bin/sh\nexec sleep 100\n").unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    let path = folder.path().join("a.mkv");
    fs::write(&path, b"\x1a\x45\xdf\xa3....V_VP9\x00").unwrap();
    let options = OpenOptions {
        ffprobe: program,
        silence: Duration::from_millis(300),
        ..OpenOptions::default()
    };
    let started = Instant::now();
    assert!(line(&path, &options).contains("no output for 0.3 s"));
    assert!(started.elapsed() < Duration::from_secs(30));
}

#[test]
fn fewer_pictures_than_packets() {
    let folder = TempDir::new().unwrap();
    let (whole, path) = (folder.path().join("whole.mkv"), folder.path().join("a.mkv"));
    let source = "testsrc2=size=160x96:rate=25:duration=6";
    let run = |input: &[&str], file: &Path, output: &[&str], target: &Path| {
        Command::new("ffmpeg")
            .args(["-v", "error"])
            .args(input)
            .arg("-i")
            .arg(file)
            .args(output)
            .arg(target)
            .status()
            .is_ok_and(|status| status.success())
    };
    let hevc = "-c:v libx265 -x265-params log-level=error:keyint=50";
    let hevc: Vec<_> = hevc.split(' ').collect();
    // From its 61st packet on, the stream is noise. 60 of 150 pictures remain.
    let noise = ["-c", "copy", "-bsf:v", "noise=amount='if(gt(n,60),1,-1)'"];
    if !run(&["-f", "lavfi"], Path::new(source), &hevc, &whole) || !run(&[], &whole, &noise, &path)
    {
        println!("skipped: there is no ffmpeg that makes such a file");
        return;
    }
    let video = Video::open(&path).unwrap();
    assert_eq!(video.info().frames, 150);
    let mut counts = Vec::new();
    let flow = reader().read_all(&video, 20, |number, count, _| {
        counts.push((number, count));
        ControlFlow::Continue(())
    });
    assert!(flow.unwrap().is_continue());
    // Three clips by the number of packets, two by the number of pictures.
    let count = counts.last().unwrap().1;
    assert_eq!(counts.last().unwrap().0 + 1, count, "{counts:?}");
    assert!(count < 3, "{counts:?}");
    assert!(matches!(
        video.frames(&[149]).unwrap_err(),
        Error::OutOfRange { frames: 50..70, .. }
    ));
}

/// Writes a video of 60 frames at 10 frames per second with an edit list: first frames, of which it shows `length`.
fn edited(path: &Path, starts: &[u32], length: u32) {
    write_mp4(path, &frames(60), 10.0).unwrap();
    let mut bytes = fs::read(path).unwrap();
    let place = |bytes: &[u8], name: &[u8]| bytes.windows(4).position(|w| w == name).unwrap();
    let mut list = Vec::new();
    let edits = starts
        .iter()
        .flat_map(|&start| [length * 1000, start * 1000, 0x1_0000]);
    let size = 16 + 12 * starts.len() as u32;
    for word in [size + 8, 0, size, 0, 0, starts.len() as u32]
        .into_iter()
        .chain(edits)
    {
        list.extend(word.to_be_bytes());
    }
    list[4..8].copy_from_slice(b"edts");
    list[12..16].copy_from_slice(b"elst");

    // At the end of the track, which is that of the index. The pictures move back.
    let mut enlarge = |at: usize, by: usize| {
        let value = u32::from_be_bytes(bytes[at..at + 4].try_into().unwrap()) as usize;
        bytes[at..at + 4].copy_from_slice(&((value + by) as u32).to_be_bytes());
        value
    };
    let text = fs::read(path).unwrap();
    let movie = place(&text, b"moov") - 4;
    let end = movie + enlarge(movie, list.len());
    enlarge(place(&text, b"trak") - 4, list.len());
    let chunks = place(&text, b"stco") + 8;
    for chunk in 0..enlarge(chunks, 0) {
        enlarge(chunks + 4 * (chunk + 1), list.len());
    }
    bytes.splice(end..end, list);
    fs::write(path, bytes).unwrap();
}

#[test]
fn every_frame_comes_in_order() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.mp4");
    for starts in [&[0][..], &[5, 40], &[0, 0], &[30, 10, 10, 50, 0]] {
        edited(&path, starts, 10);
        let video = Video::open(&path).unwrap();
        let count = video.info().frames;
        assert_eq!(count, 10 * starts.len(), "{starts:?}");
        let expected = video.frames(&(0..count).collect::<Vec<_>>()).unwrap();
        for stop in [count, 3, 17] {
            let mut next = 0;
            let flow = video.visit_all(|index, frame| {
                assert_eq!(index, next, "{starts:?}");
                assert!(*frame == expected[index], "{starts:?}: frame {index}");
                next += 1;
                Ok(if next == stop {
                    ControlFlow::Break(())
                } else {
                    ControlFlow::Continue(())
                })
            });
            assert_eq!(flow.unwrap().is_break(), stop <= count);
            assert_eq!(next, stop.min(count));
        }
    }
    // From the last frame to the first.
    let backwards: Vec<u32> = (0..60).rev().collect();
    edited(&path, &backwards, 1);
    let video = Video::open(&path).unwrap();
    assert_eq!(video.info().frames, 60);
    let error = video
        .visit_all(|_, _| Ok(ControlFlow::Continue(())))
        .unwrap_err();
    let line = error.to_string();
    assert!(
        line.contains("a.mp4: its edit list") && !line.contains('\n'),
        "{line}"
    );
    // An error of the caller ends it.
    let error = video
        .visit_all(|_, _| Err(Error::Argument("mine".into())))
        .unwrap_err();
    assert_eq!(error.to_string(), "mine");
}
