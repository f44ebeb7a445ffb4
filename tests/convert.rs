//! Conversion of checkpoints in the released layout.

use std::fs;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use burn::config::Config;
use burn::module::Module;
use burn::tensor::{Device, FloatDType, Tensor, TensorData};
use divot::checkpoint::{Checkpoint, Part};
use divot::convert::{Job, ReleasedConfig, Target, convert};
use divot::weights::{Saver, Source, TensorSpec, write_safetensors};
use divot::{Detokenizer, Tokenizer};

/// A parity fixture: the project's own, or the one that `DIVOT_FIXTURE` names.
fn fixture() -> PathBuf {
    std::env::var_os("DIVOT_FIXTURE").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixture"),
        PathBuf::from,
    )
}

fn go(_: divot::convert::Progress) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

#[test]
fn every_part_of_the_fixture_converts_and_loads() {
    let fixture = fixture();
    let sizes = ReleasedConfig::read(&fixture.join("config.json")).unwrap();
    for dtype in [FloatDType::F32, FloatDType::F16, FloatDType::BF16] {
        let to = tempfile::tempdir().unwrap();
        let jobs = Job::find(&fixture.join("pretrained")).unwrap().jobs;
        assert_eq!(jobs.len(), 4);
        for job in &jobs {
            let report = convert(job, &sizes, to.path(), dtype, go).unwrap();
            assert!(report.converted > 0 && report.defaulted.is_empty());
            // Converting again replaces what is there.
            convert(job, &sizes, to.path(), dtype, go).unwrap();
        }
        let mut checkpoint = Checkpoint::new(to.path(), &Device::default());
        let (tokenizer, _) = Tokenizer::load(&mut checkpoint).unwrap();
        let (detokenizer, _) = Detokenizer::load(&mut checkpoint).unwrap();
        assert!(tokenizer.num_params() > 0 && detokenizer.num_params() > 0);
        let left: Vec<_> = fs::read_dir(to.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .filter(|name| name.starts_with('.'))
            .collect();
        assert!(left.is_empty(), "{left:?}");
    }
}

fn numbers<const D: usize>(tokens: Tensor<D>) -> Vec<f32> {
    tokens.into_data().iter().collect()
}

#[test]
fn the_tokens_of_a_grey_clip_are_stored() {
    let fixture = fixture();
    let sizes = ReleasedConfig::read(&fixture.join("config.json")).unwrap();
    let job = Job::of(Target::Tokenizer, &[fixture.join("pretrained")]);
    let to = tempfile::tempdir().unwrap();
    let device = Device::default();
    let mut earlier: Option<Vec<f32>> = None;
    for dtype in [FloatDType::F32, FloatDType::F16, FloatDType::BF16] {
        let report = convert(&job, &sizes, to.path(), dtype, go).unwrap();
        assert_eq!(report.not_stored, None);
        let mut checkpoint = Checkpoint::new(to.path(), &device);
        let stored = numbers(checkpoint.unconditional().unwrap().unwrap());

        // What the program computes of the same weights, to the bit …
        let (tokenizer, config) = Tokenizer::load(&mut checkpoint).unwrap();
        assert_eq!(stored, numbers(tokenizer.unconditional()), "{dtype:?}");
        // … which is what the whole clip gives.
        let size = config.frame_size;
        let whole = tokenizer.tokenize(Tensor::zeros([1, 5, 3, size, size], &device));
        for (stored, whole) in stored.iter().zip(numbers(whole)) {
            assert!((stored - whole).abs() < 1e-4, "{stored} is not {whole}");
        }
        // Coarser weights give other tokens (f16 may hold a fixture's exactly): none are left over from
        // an earlier conversion.
        let same = earlier.replace(stored.clone()) == Some(stored);
        assert!(!same || dtype == FloatDType::F16, "{dtype:?}");
    }
}

#[test]
fn a_conversion_can_be_stopped_at_the_grey_clip() {
    let fixture = fixture();
    let sizes = ReleasedConfig::read(&fixture.join("config.json")).unwrap();
    let to = tempfile::tempdir().unwrap();
    let job = Job::of(Target::Tokenizer, &[fixture.join("pretrained")]);
    let mut complete = 0;
    let stop = |progress: divot::convert::Progress| {
        complete += usize::from(progress.done == progress.total);
        match complete {
            2 => ControlFlow::Break(()),
            _ => ControlFlow::Continue(()),
        }
    };
    let error = convert(&job, &sizes, to.path(), FloatDType::F32, stop).unwrap_err();
    assert_eq!(error.to_string(), "stopped");
    assert_eq!(fs::read_dir(to.path()).unwrap().count(), 0);
}

#[test]
fn stored_tokens_that_do_not_fit_are_named() {
    let fixture = fixture();
    let sizes = ReleasedConfig::read(&fixture.join("config.json")).unwrap();
    let job = Job::of(Target::Tokenizer, &[fixture.join("pretrained")]);
    let to = tempfile::tempdir().unwrap();
    convert(&job, &sizes, to.path(), FloatDType::F32, go).unwrap();
    let device = Device::default();
    let folder = to.path().join("tokenizer");
    let file = folder.join("unconditional.safetensors");
    let good = fs::read(&file).unwrap();
    let stored = Checkpoint::new(to.path(), &device).unconditional();
    let [_, tokens, width] = stored.unwrap().unwrap().dims();
    let refused = |says: &str| {
        let error = Checkpoint::new(to.path(), &device).unconditional();
        let line = error.unwrap_err().to_string();
        assert_eq!(line.lines().count(), 1, "{line}");
        assert!(line.contains("unconditional.safetensors"), "{line}");
        assert!(line.contains(says) && line.contains("convert"), "{line}");
    };

    for damaged in [&b""[..], b"no weights", &good[..good.len() - 1]] {
        fs::write(&file, damaged).unwrap();
        refused("is damaged");
    }
    let write = |name: &str, shape: &[usize], value: f32| {
        let spec = TensorSpec {
            name: name.to_owned(),
            shape: shape.to_vec(),
            dtype: burn::tensor::DType::F32,
        };
        let data = TensorData::new(vec![value; shape.iter().product()], shape.to_vec());
        write_safetensors(&file, &[spec], &Default::default(), |_| Ok(data.clone())).unwrap();
    };
    write("tokens", &[1, tokens, width], 0.0);
    refused("holds no tokens");
    write("unconditional", &[2, tokens, width], 0.0);
    refused("holds no tokens");
    write("unconditional", &[tokens, width], 0.0);
    refused("holds no tokens");
    write("unconditional", &[1, tokens, width + 1], 0.0);
    refused("another tokenizer");
    // As they should be, but nothing says of which weights.
    write("unconditional", &[1, tokens, width], 0.0);
    refused("other weights");

    // Other weights of the same form, and then other sizes.
    fs::write(&file, &good).unwrap();
    let mut checkpoint = Checkpoint::new(to.path(), &device);
    assert!(checkpoint.unconditional().unwrap().is_some());
    let (tokenizer, config) = Tokenizer::load(&mut checkpoint).unwrap();
    let weights = folder.join("model.safetensors");
    let before = fs::read(&weights).unwrap();
    let mut trained = tokenizer.clone();
    let gamma = &mut trained.resampler.norm.gamma;
    *gamma = burn::module::Param::from_tensor(gamma.val() * 1.001);
    Saver::new(&weights, FloatDType::F32)
        .add("", trained)
        .finish()
        .unwrap();
    refused("other weights");
    fs::write(&weights, &before).unwrap();
    assert!(checkpoint.unconditional().unwrap().is_some());
    let config_file = folder.join("config.json");
    let before = fs::read(&config_file).unwrap();
    config.with_frame_size(64).save(&config_file).unwrap();
    refused("other weights");
    fs::write(&config_file, &before).unwrap();

    // Without the tokenizer there is nothing that they could be at odds with.
    fs::remove_file(&weights).unwrap();
    assert!(checkpoint.unconditional().unwrap().is_some());
    fs::remove_file(&config_file).unwrap();
    assert!(checkpoint.unconditional().unwrap().is_some());
    write("unconditional", &[1, tokens, width], f32::NAN);
    refused("no number");
    fs::remove_file(&file).unwrap();
    assert!(checkpoint.unconditional().unwrap().is_none());
}

#[test]
fn a_stopped_conversion_leaves_nothing_behind() {
    let fixture = fixture();
    let sizes = ReleasedConfig::read(&fixture.join("config.json")).unwrap();
    let to = tempfile::tempdir().unwrap();
    let job = Job::of(Target::Tokenizer, &[fixture.join("pretrained")]);
    let stop = |progress: divot::convert::Progress| match progress.done {
        5 => ControlFlow::Break(()),
        _ => ControlFlow::Continue(()),
    };
    let error = convert(&job, &sizes, to.path(), FloatDType::F32, stop).unwrap_err();
    assert_eq!(error.to_string(), "stopped");
    assert_eq!(fs::read_dir(to.path()).unwrap().count(), 0);
}

#[test]
fn the_wrong_sizes_are_named() {
    let fixture = fixture();
    let to = tempfile::tempdir().unwrap();
    let jobs = Job::find(&fixture.join("pretrained")).unwrap().jobs;
    // A language model comes with its own sizes.
    for job in jobs.into_iter().filter(|job| !job.target.is_llm()) {
        let error = convert(
            &job,
            &ReleasedConfig::divot(),
            to.path(),
            FloatDType::F16,
            go,
        );
        let message = error.unwrap_err().to_string();
        assert_eq!(message.lines().count(), 1, "{message}");
        assert!(message.contains(".bin"), "{message}");
    }
    assert_eq!(fs::read_dir(to.path()).unwrap().count(), 0);
}

#[test]
fn nothing_to_convert() {
    let empty = tempfile::tempdir().unwrap();
    let error = Job::find(empty.path()).unwrap_err().to_string();
    assert!(error.contains("Divot_tokenizer.bin"), "{error}");
    let job = Job::of(Target::Detokenizer, &[empty.path()]);
    let error = convert(
        &job,
        &ReleasedConfig::divot(),
        empty.path(),
        FloatDType::F16,
        go,
    );
    let error = error.unwrap_err().to_string();
    assert!(error.contains("Divot_detokenizer_stage1.bin"), "{error}");
}

/// DynamiCrafter's checkpoint, imitated with the fixture's tensors: names below `model.` in a
/// `state_dict`'s manner, eight input channels, no alpha, an image projection of its own.
#[test]
fn dynamicrafter_becomes_a_start_with_four_channels() {
    let fixture = fixture();
    let sizes = ReleasedConfig::read(&fixture.join("config.json")).unwrap();
    let released = Source::open(
        &fixture.join("pretrained/Divot_tokenizer_detokenizer/Divot_detokenizer_stage1.bin"),
    )
    .unwrap();
    let mut specs = Vec::new();
    let mut values = Vec::new();
    for tensor in released.tensors() {
        let renamed = match tensor.name.strip_prefix("diffusion_model.") {
            Some(rest) => format!("model.diffusion_model.{rest}"),
            None => tensor.name.clone(),
        };
        if renamed.ends_with(".alpha") {
            continue;
        }
        let mut shape = tensor.shape.clone();
        let mut data: Vec<f32> = tensor.read().unwrap().iter::<f32>().collect();
        if renamed == "model.diffusion_model.input_blocks.0.0.weight" {
            // Four channels of the condition after the four of the noise.
            let inner = shape[2] * shape[3];
            data = data
                .chunks_exact(shape[1] * inner)
                .flat_map(|row| row.iter().copied().chain(vec![7.0; 4 * inner]))
                .collect();
            shape[1] += 4;
        }
        specs.push(TensorSpec {
            name: renamed,
            shape: shape.clone(),
            dtype: burn::tensor::DType::F32,
        });
        values.push(TensorData::new(data, shape));
    }
    let to = tempfile::tempdir().unwrap();
    let file = to.path().join("model.ckpt");
    write_safetensors(
        &file,
        &specs,
        &Default::default(),
        |i| Ok(values[i].clone()),
    )
    .unwrap();

    let job = Job::of(Target::DynamiCrafter, &[&file]);
    let report = convert(&job, &sizes, to.path(), FloatDType::F32, go).unwrap();
    assert!(!report.defaulted.is_empty());
    assert!(report.defaulted.iter().all(|name| name.ends_with(".alpha")));

    // It is a de-tokenizer of four channels, whose weights are the fixture's.
    let models = to.path().join("models");
    fs::create_dir(&models).unwrap();
    fs::rename(&report.folder, Part::Detokenizer.folder(&models)).unwrap();
    let mut checkpoint = Checkpoint::new(&models, &Device::default());
    let (detokenizer, config) = Detokenizer::load(&mut checkpoint).unwrap();
    assert_eq!(config.unet.in_channels, 4);
    let ours = detokenizer.unet.conv_in.weight.val().into_data();
    let theirs = released
        .get("diffusion_model.input_blocks.0.0.weight")
        .unwrap()
        .read()
        .unwrap();
    assert_eq!(
        ours.iter::<f32>().collect::<Vec<_>>(),
        theirs.iter::<f32>().collect::<Vec<_>>()
    );
}

/// The same weights as half-precision numbers give nearly the same tokens, context and prediction.
#[test]
fn half_precision_is_close() {
    let fixture = fixture();
    let sizes = ReleasedConfig::read(&fixture.join("config.json")).unwrap();
    let to = tempfile::tempdir().unwrap();
    for job in &Job::find(&fixture.join("pretrained")).unwrap().jobs {
        convert(job, &sizes, to.path(), FloatDType::F32, go).unwrap();
    }
    let device = Device::default();
    let stages = |dtype: FloatDType| -> [Vec<f32>; 3] {
        let mut checkpoint = Checkpoint::new(to.path(), &device).with_dtype(dtype);
        let (tokenizer, _) = Tokenizer::load(&mut checkpoint).unwrap();
        let (detokenizer, config) = Detokenizer::load(&mut checkpoint).unwrap();
        let mut noise = divot::Noise::new(1);
        let frames = noise.normal([1, 5, 3, 64, 80], &device).clamp(-1.0, 1.0);
        let tokens = tokenizer.tokenize(frames);
        let context = detokenizer.context(tokens.clone());
        let [height, width] = config.latent_size;
        let latents = noise.normal([1, config.unet.in_channels, 3, height, width], &device);
        let prediction = divot::unet::Denoiser::new(&detokenizer.unet, context.clone(), 3.0)
            .predict(latents, 500);
        let floats = |data: TensorData| data.iter::<f32>().collect();
        [
            floats(tokens.into_data()),
            floats(context.into_data()),
            floats(prediction.into_data()),
        ]
    };
    let exact = stages(FloatDType::F32);
    for (dtype, limit) in [(FloatDType::F16, 1e-2), (FloatDType::BF16, 6e-2)] {
        for (ours, exact) in stages(dtype).iter().zip(&exact) {
            let square = |values: &mut dyn Iterator<Item = f32>| {
                values.map(|v| f64::from(v).powi(2)).sum::<f64>()
            };
            let difference = square(&mut ours.iter().zip(exact).map(|(a, b)| a - b));
            let error = (difference / square(&mut exact.iter().copied())).sqrt();
            println!("{dtype:?}: {error:.1e}");
            assert!(error > 0.0 && error < limit, "{dtype:?}: {error}");
        }
    }
}
