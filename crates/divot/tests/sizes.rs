//! The presets have the parameter counts of the released networks, to 0.1 M.

use burn::module::Module;
use burn::tensor::Device;
use divot::weights::module_layout;
use divot::{DetokenizerConfig, TokenizerConfig};

/// Returns millions of parameters, counted without initialising them.
fn millions(module: &impl Module) -> f64 {
    let count: usize = module_layout(module)
        .iter()
        .map(|spec| spec.shape.iter().product::<usize>())
        .sum();
    count as f64 / 1e6
}

#[test]
fn parameter_counts() {
    let device = Device::default();
    let tokenizer = TokenizerConfig::divot().init(&device);
    let detokenizer = DetokenizerConfig::divot().init(&device);
    for (network, ours, released) in [
        ("vision tower", millions(&tokenizer.vision), 632.1),
        (
            "rest of the tokenizer",
            millions(&tokenizer.resampler),
            171.6,
        ),
        ("Perceiver", millions(&detokenizer.resampler), 77.0),
        ("UNet", millions(&detokenizer.unet), 1438.8),
        ("VAE", millions(&detokenizer.vae), 83.7),
    ] {
        println!("{network}: {ours:.2} M");
        assert!(
            (ours - released).abs() < 0.1,
            "{network} has {ours:.2} M parameters, released are {released} M"
        );
    }
}
