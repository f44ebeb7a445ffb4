//! TransNetV2 against its package, with small random weights that `xtask/peer/transnet.py --fixture` wrote.

use std::path::Path;

use std::ops::ControlFlow;

use divot::data::{Frame, Video, write_mp4};
use divot::weights::Source;
use divot::{TransNet, device};

const SMALL: &str = concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/tests/transnet/small.safetensors"
);

#[test]
fn probabilities_are_those_of_the_package() {
    let device = device::host();
    let network = TransNet::load(Path::new(SMALL), &device).unwrap();
    let source = Source::open(Path::new(SMALL)).unwrap();
    let read = |name: &str| source.get(name).unwrap().read().unwrap();
    let scenes = read("test.scenes").try_into_vec::<u8>().unwrap();
    let expected = read("test.probabilities").try_into_vec::<f32>().unwrap();
    let frames: Vec<Frame> = (0..120)
        .map(|i| {
            let scene = &scenes[(i / 31) * 27 * 48 * 3..][..27 * 48 * 3];
            // Rolled down by a row every three frames.
            let mut rows: Vec<&[u8]> = scene.chunks_exact(48 * 3).collect();
            rows.rotate_right(i / 3 % 27);
            Frame::new(48, 27, rows.concat()).unwrap()
        })
        .collect();
    let ours = network.probabilities(&frames).unwrap();
    assert_eq!(ours.len(), 120);
    for (ours, expected) in ours.iter().zip(&expected) {
        assert!((ours - expected).abs() < 1e-4, "{ours} and {expected}");
    }
}

#[test]
fn shots_cover_a_video_and_begin_after_transitions() {
    let network = TransNet::load(Path::new(SMALL), &device::host()).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("film.mp4");
    let colours = [[200, 0, 0], [0, 90, 0], [0, 0, 250], [90, 90, 90]];
    let frames: Vec<Frame> = (0..130)
        .map(|i| Frame::filled(64, 48, colours[i / 7 % 4]).unwrap())
        .collect();
    write_mp4(&path, &frames, 25.0).unwrap();
    let video = Video::open(&path).unwrap();
    let mut seen = Vec::new();
    let go_on = ControlFlow::Continue(());
    let flow = video.visit_all(|_, frame| {
        seen.push(frame.clone());
        Ok(go_on)
    });
    assert!(flow.unwrap().is_continue());
    let probabilities = network.probabilities(&seen).unwrap();
    let mut sorted = probabilities.clone();
    sorted.sort_by(f32::total_cmp);
    let threshold = sorted[65];

    let shots = network.shots(&video, threshold, |_| go_on).unwrap();
    let shots = shots.continue_value().unwrap();
    assert!(shots.len() > 1);
    assert_eq!(
        (shots[0].frames.start, shots[shots.len() - 1].frames.end),
        (0, 130)
    );
    for pair in shots.windows(2) {
        let start = pair[1].frames.start;
        assert_eq!(pair[0].frames.end, start);
        assert!(probabilities[start - 1] > threshold && probabilities[start] <= threshold);
    }
    let stopped = network.shots(&video, 0.5, |_| ControlFlow::Break(()));
    assert!(stopped.unwrap().is_break());
}

#[test]
fn other_weights_are_named() {
    let other = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/checkpoints/plain.pt");
    let error = TransNet::load(Path::new(other), &device::host()).unwrap_err();
    assert!(
        error
            .to_string()
            .contains("SDDCNN.0.DDCNN.0.Conv3D_1.layers.0.weight"),
        "{error}"
    );
}
