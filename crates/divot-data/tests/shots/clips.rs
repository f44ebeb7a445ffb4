//! Shots as files of their own, of a video whose frames last differently long.

use std::ops::ControlFlow;
use std::path::Path;

use divot_data::shots::{Shot, cut, split};
use divot_data::{Error, Frame, Video, write_mp4};

#[test]
fn clips_of_a_variable_rate_show_what_is_seen_at_their_times() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/cases/vfr2.mp4");
    let video = Video::open(path).unwrap();
    assert!(video.is_variable());
    let info = video.info();
    let end = video.time(info.frames - 1) + 1.0 / info.fps;
    let whole = Shot {
        frames: 0..info.frames,
        seconds: 0.0..end,
    };
    let parts = split(&video, &[whole], end / 3.0);
    assert_eq!(parts.len(), 3);
    assert_eq!(parts[2].frames.end, info.frames);
    // A part begins with the frame that is shown there, which may have lasted for half a second.
    for part in &parts {
        let third = (part.seconds.end - part.seconds.start) * 3.0;
        assert!((third - end).abs() < 1.6, "{part:?}");
    }

    let folder = tempfile::tempdir().unwrap();
    let files: Vec<_> = parts
        .iter()
        .enumerate()
        .map(|(number, part)| (part.clone(), folder.path().join(format!("{number}.mp4"))))
        .collect();
    let flow = cut(&video, &files, 1000, |_| ControlFlow::Continue(()));
    assert_eq!(flow.unwrap(), ControlFlow::Continue(()));
    for (part, path) in &files {
        let clip = Video::open(path).unwrap();
        let seconds = part.seconds.end - part.seconds.start;
        assert!((clip.info().duration() - seconds).abs() <= 0.5 / info.fps + 1e-3);
        let count = clip.info().frames;
        let indices: Vec<usize> = (0..count).collect();
        let shown: Vec<usize> = indices
            .iter()
            .map(|&number| video.frame_at(part.seconds.start + number as f64 / info.fps))
            .collect();
        let frames = clip.frames(&indices).unwrap();
        for (frame, original) in frames.iter().zip(video.frames(&shown).unwrap()) {
            let differences = frame.rgb.iter().zip(&original.rgb);
            let sum: u64 = differences.map(|(a, b)| u64::from(a.abs_diff(*b))).sum();
            let mean = sum as f64 / original.rgb.len() as f64;
            assert!(mean < 4.0, "{mean}");
        }
    }
}

#[test]
fn frames_that_are_not_there_cannot_be_cut_out() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("film.mp4");
    write_mp4(&path, &vec![Frame::filled(16, 16, [9; 3]).unwrap(); 4], 8.0).unwrap();
    let video = Video::open(&path).unwrap();
    for frames in [0..5, 2..2, 3..usize::MAX] {
        let shot = Shot {
            frames,
            seconds: 0.0..0.5,
        };
        let shots = [(shot, folder.path().join("shot.mp4"))];
        let cut = cut(&video, &shots, 1000, |_| ControlFlow::Continue(()));
        assert!(matches!(cut, Err(Error::Argument(_))), "{cut:?}");
    }
}
