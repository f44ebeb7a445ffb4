//! TransNetV2 against its package, with small random weights that `xtask/peer/transnet.py --fixture` wrote.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::Path;

use burn::tensor::TensorData;
use divot::data::{Frame, Video, write_mp4};
use divot::weights::{Source, TensorSpec, write_safetensors};
use divot::{TransNet, device};

const SMALL: &str = concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/tests/transnet/small.safetensors"
);

#[test]
fn probabilities_are_those_of_the_package() {
    let network = TransNet::load(Path::new(SMALL), &device::host()).unwrap();
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
    assert_eq!((ours.len(), expected.len()), (120, 120));
    for (ours, expected) in ours.iter().zip(&expected) {
        assert!((ours - expected).abs() < 1e-4, "{ours} and {expected}");
    }
    for count in [0, 1, 50, 51] {
        let some = network.probabilities(&frames[..count]).unwrap();
        assert_eq!(some.len(), count);
    }
}

#[test]
fn shots_of_a_video_are_where_probabilities_are_low() {
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
    let threshold = f64::from(sorted[65]);

    let shots = network.shots(&video, threshold, |_| go_on).unwrap();
    let shots = shots.continue_value().unwrap();
    assert!(shots.len() > 1);
    let is_shown = |frame: usize| shots.iter().any(|shot| shot.frames.contains(&frame));
    let is_transition = |frame: usize| f64::from(probabilities[frame]) > threshold;
    for frame in 0..130 {
        // The first frame of a transition is the last of a shot.
        let ends = frame > 0 && is_transition(frame) && !is_transition(frame - 1);
        assert_eq!(is_shown(frame), ends || !is_transition(frame), "{frame}");
    }
    for shot in &shots {
        let seconds = [shot.frames.start, shot.frames.end].map(|frame| frame as f64 / 25.0);
        assert!((shot.seconds.start - seconds[0]).abs() < 1e-6);
        assert!((shot.seconds.end - seconds[1]).abs() < 1e-6);
    }
    let stopped = network.shots(&video, 0.5, |_| ControlFlow::Break(()));
    assert!(stopped.unwrap().is_break());
}

#[test]
fn other_weights_are_refused() {
    let refused = |path: &Path| {
        let error = TransNet::load(path, &device::host()).unwrap_err();
        error.to_string()
    };
    let other = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/checkpoints/plain.pt");
    let error = refused(Path::new(other));
    assert!(
        error.contains("SDDCNN.0.DDCNN.0.Conv3D_1.layers"),
        "{error}"
    );

    // Other shapes and numbers under the right names.
    let source = Source::open(Path::new(SMALL)).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("changed.safetensors");
    for (name, shape, value, says) in [
        (
            "SDDCNN.0.DDCNN.0.Conv3D_2.layers.0.weight",
            vec![4, 3, 1, 5, 5],
            0.1,
            "[4, 3, 3, 3]",
        ),
        (
            "SDDCNN.0.DDCNN.1.Conv3D_8.layers.1.weight",
            vec![2, 4, 5, 1, 1],
            0.1,
            "[2, 4, 3]",
        ),
        ("SDDCNN.1.DDCNN.0.bn.weight", vec![1], 0.1, "[16]"),
        ("SDDCNN.1.DDCNN.0.bn.running_var", vec![16], -1.0, "below 0"),
        (
            "color_hist_layer.fc.weight",
            vec![128, 100],
            0.1,
            "no middle",
        ),
        ("fc1.weight", vec![6, 7], 0.1, "[6, 7]"),
        ("cls_layer1.weight", vec![2, 6], 0.1, "[1, 6]"),
        ("cls_layer1.bias", vec![1], f32::NAN, "cls_layer1.bias"),
    ] {
        let mut tensors = Vec::new();
        for tensor in source.tensors().filter(|it| !it.name.starts_with("test.")) {
            let data = match tensor.name == name {
                true => TensorData::new(vec![value; shape.iter().product()], shape.clone()),
                false => tensor.read().unwrap(),
            };
            tensors.push((tensor.name.clone(), data));
        }
        let specs: Vec<TensorSpec> = tensors
            .iter()
            .map(|(name, data)| TensorSpec {
                name: name.clone(),
                shape: data.shape().to_vec(),
                dtype: data.dtype(),
            })
            .collect();
        let metadata = BTreeMap::new();
        write_safetensors(&path, &specs, &metadata, |i| Ok(tensors[i].1.clone())).unwrap();
        let error = refused(&path);
        for part in ["changed.safetensors", name, says] {
            assert!(error.contains(part), "{name}: {error}");
        }
    }
}
