//! TransNetV2 against its package, with small random weights that `xtask/peer/transnet.py --fixture` wrote.

use std::path::Path;

use divot::data::Frame;
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
    let scenes = read("test.scenes").into_vec::<u8>().unwrap();
    let expected = read("test.probabilities").into_vec::<f32>().unwrap();
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
