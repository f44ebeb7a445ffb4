//! Cuts of video files, which PySceneDetect decoded by itself.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use divot_data::shots::{Adaptive, Content, Detector, Method, Shot, detect};
use divot_data::{Error, Frame, Video, write_mp4};

use crate::made::{Clip, Reference, Settings};

/// How much a score may differ. Scores are stored with four decimals.
const TOLERANCE: f64 = 1e-4;

fn reference() -> Reference {
    serde_json::from_str(include_str!("../data/shot_videos.json")).unwrap()
}

fn shots(video: &Video, method: impl Into<Method>) -> Vec<Shot> {
    match detect(video, method, |_| ControlFlow::Continue(())).unwrap() {
        ControlFlow::Continue(shots) => shots,
        ControlFlow::Break(()) => panic!("nobody stopped it"),
    }
}

/// Compares scores and cuts.
fn compare(clip: &Clip, settings: &[Settings], path: &Path) {
    let video = Video::open(path).unwrap();
    let info = video.info();
    assert_eq!(info.frames, clip.scores.len(), "{}", clip.name);
    let methods: Vec<Method> = settings.iter().map(Settings::method).collect();
    let new = methods
        .iter()
        .map(|method| Detector::new(method.clone(), info.fps).unwrap());
    let mut detectors: Vec<Detector> = new.collect();
    let mut cuts = vec![Vec::new(); detectors.len()];
    let mut worst = 0f64;
    let flow = video.visit_all(|index, frame| {
        for (detector, cuts) in detectors.iter_mut().zip(&mut cuts) {
            cuts.extend(
                detector
                    .push(video.time(index), frame)?
                    .map(|cut| cut.frame),
            );
        }
        let expected: f64 = clip.scores[index].parse().unwrap();
        worst = worst.max((detectors[0].score().total - expected).abs());
        Ok(ControlFlow::Continue(()))
    });
    assert!(flow.unwrap().is_continue());
    assert_eq!(cuts, clip.cuts, "{}", clip.name);
    println!(
        "{}: {} frames, {} cuts of {} detectors, scores differ by {worst:.5} at most",
        clip.name,
        info.frames,
        cuts.iter().map(Vec::len).sum::<usize>(),
        cuts.len()
    );
    assert!(worst < TOLERANCE, "{}: scores differ by {worst}", clip.name);

    for default in [Method::from(Content::default()), Adaptive::default().into()] {
        let number = methods
            .iter()
            .position(|method| *method == default)
            .unwrap();
        check_shots(&video, &shots(&video, default), &cuts[number]);
    }
}

/// Shots cover the video, from cut to cut.
fn check_shots(video: &Video, shots: &[Shot], cuts: &[usize]) {
    let info = video.info();
    let starts: Vec<usize> = shots.iter().map(|shot| shot.frames.start).collect();
    assert_eq!(starts, [&[0], cuts].concat());
    let ends: Vec<usize> = shots.iter().map(|shot| shot.frames.end).collect();
    assert_eq!(ends, [cuts, &[info.frames]].concat());
    for pair in shots.windows(2) {
        assert_eq!(pair[0].seconds.end, pair[1].seconds.start);
    }
    for shot in shots {
        assert_eq!(shot.seconds.start, video.time(shot.frames.start));
    }
    let end = shots.last().unwrap().seconds.end;
    assert!((end - info.duration()).abs() < 1e-6, "{end}");
}

#[test]
fn cuts_of_ten_made_videos_are_equal() {
    let folder = tempfile::tempdir().unwrap();
    // For PySceneDetect, which reads the very files.
    let kept = std::env::var_os("DIVOT_SHOT_VIDEOS").map(PathBuf::from);
    let folder = kept.as_deref().unwrap_or(folder.path());
    let Reference { detectors, clips } = reference();
    let made: Vec<&Clip> = clips.iter().filter(|clip| !clip.parts.is_empty()).collect();
    assert_eq!(made.len(), 10);
    let path = |clip: &Clip| folder.join(format!("{}.mp4", clip.name));
    for clip in &made {
        let frames: Vec<Frame> = clip.frames().collect();
        write_mp4(path(clip), &frames, clip.fps).unwrap();
    }
    for clip in made {
        assert!(!clip.cuts.is_empty(), "{} was not measured", clip.name);
        compare(clip, &detectors, &path(clip));
    }
}

#[test]
fn cuts_of_real_videos_are_equal() {
    let folder = std::env::var_os("DIVOT_FIXTURE").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/reference/mini"),
        PathBuf::from,
    );
    let Reference { detectors, clips } = reference();
    for clip in clips.iter().filter(|clip| clip.parts.is_empty()) {
        let path = folder.join("../videos").join(&clip.name);
        if !path.is_file() {
            println!("skipped: there is no {}; set DIVOT_FIXTURE", path.display());
        } else if let Err(Error::NeedsFfmpeg { .. }) = Video::open(&path) {
            println!(
                "skipped: {} needs ffmpeg, which is not on the PATH",
                clip.name
            );
        } else {
            compare(clip, &detectors, &path);
        }
    }
}

#[test]
fn the_callback_counts_frames_and_may_stop() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.mp4");
    let frames: Vec<Frame> = (0..30)
        .map(|i| Frame::filled(32, 32, [8 * i, 0, 0]).unwrap())
        .collect();
    write_mp4(&path, &frames, 10.0).unwrap();
    let video = Video::open(&path).unwrap();
    let mut counts = Vec::new();
    let flow = detect(&video, Content::default(), |count| {
        counts.push(count);
        if count == 7 {
            ControlFlow::Break(())
        } else {
            ControlFlow::Continue(())
        }
    });
    assert_eq!(flow.unwrap(), ControlFlow::Break(()));
    assert_eq!(counts, [1, 2, 3, 4, 5, 6, 7]);
    // A video without cuts is one shot.
    let all = shots(&video, Content::default());
    assert_eq!(
        all,
        [Shot {
            frames: 0..30,
            seconds: 0.0..3.0
        }]
    );
}
