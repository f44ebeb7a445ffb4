//! Conversion of checkpoints in the released layout.

use std::fs;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use burn::config::Config;
use burn::module::Module;
use burn::tensor::{Device, FloatDType, Tensor, TensorData};
use divot::checkpoint::{Checkpoint, Part};
use divot::convert::{Job, ReleasedConfig, convert};
use divot::weights::{Saver, Source, StoredType, TensorSpec, write_safetensors};
use divot::{Detokenizer, DynamiCrafterConfig, Step, Tokenizer};

/// Returns the folder of the parity fixture: the one that `DIVOT_FIXTURE` names, or the project's own.
fn fixture() -> PathBuf {
    std::env::var_os("DIVOT_FIXTURE").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixture"),
        PathBuf::from,
    )
}

const EVERY_TYPE: [StoredType; 4] = [
    StoredType::F32,
    StoredType::F16,
    StoredType::Bf16,
    StoredType::Q8,
];

fn go(_: divot::Progress<'_>) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

#[test]
fn every_part_of_the_fixture_converts_and_loads() {
    let fixture = fixture();
    let sizes = ReleasedConfig::read(&fixture.join("config.json")).unwrap();
    for dtype in EVERY_TYPE {
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
    let job = Job::of(Part::Tokenizer, &[fixture.join("pretrained")]);
    let to = tempfile::tempdir().unwrap();
    let device = Device::default();
    let mut earlier: Option<Vec<f32>> = None;
    for dtype in EVERY_TYPE {
        let report = convert(&job, &sizes, to.path(), dtype, go).unwrap();
        assert_eq!(report.not_stored, None);
        let mut checkpoint = Checkpoint::new(to.path(), &device);
        let stored = numbers(checkpoint.unconditional().unwrap().unwrap());

        // The tokens equal those that the program computes from the same weights, to the bit.
        let (tokenizer, config) = Tokenizer::load(&mut checkpoint).unwrap();
        assert_eq!(stored, numbers(tokenizer.unconditional()), "{dtype:?}");
        // They are close to those of tokenizing the whole clip.
        let size = config.frame_size;
        let whole = tokenizer.tokenize(Tensor::zeros([1, 5, 3, size, size], &device));
        for (stored, whole) in stored.iter().zip(numbers(whole)) {
            assert!((stored - whole).abs() < 1e-4, "{stored} is not {whole}");
        }
        // Other element types give other tokens, so none are left over from an earlier conversion. f16 may
        // hold a fixture's weights exactly.
        let same = earlier.replace(stored.clone()) == Some(stored);
        assert!(!same || dtype == StoredType::F16, "{dtype:?}");
    }
}

#[test]
fn a_conversion_can_be_stopped_at_the_grey_clip() {
    let fixture = fixture();
    let sizes = ReleasedConfig::read(&fixture.join("config.json")).unwrap();
    let to = tempfile::tempdir().unwrap();
    let job = Job::of(Part::Tokenizer, &[fixture.join("pretrained")]);
    let mut complete = 0;
    let stop = |progress: divot::Progress<'_>| {
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
    let job = Job::of(Part::Tokenizer, &[fixture.join("pretrained")]);
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
    // The right shape, but no fingerprint of the weights.
    write("unconditional", &[1, tokens, width], 0.0);
    refused("other weights");

    // Other weights of the same shapes, and then another configuration.
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

    // Without the tokenizer's weights and configuration, the tokens are used unchecked.
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
    let job = Job::of(Part::Tokenizer, &[fixture.join("pretrained")]);
    let mut tensors = 0;
    let stop = |progress: divot::Progress<'_>| {
        assert!(progress.step == Step::Save && progress.done < progress.total);
        tensors += 1;
        match tensors {
            5 => ControlFlow::Break(()),
            _ => ControlFlow::Continue(()),
        }
    };
    let error = convert(&job, &sizes, to.path(), FloatDType::F32, stop).unwrap_err();
    assert!(error.is_stopped());
    assert_eq!(error.to_string(), "stopped");
    assert_eq!(fs::read_dir(to.path()).unwrap().count(), 0);
}

#[test]
fn the_wrong_sizes_are_named() {
    let fixture = fixture();
    let to = tempfile::tempdir().unwrap();
    let jobs = Job::find(&fixture.join("pretrained")).unwrap().jobs;
    // A language model brings its own sizes.
    for job in jobs.into_iter().filter(|job| !job.part.is_llm()) {
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
    let job = Job::of(Part::Detokenizer, &[empty.path()]);
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

/// Imitates DynamiCrafter's checkpoint with the fixture's tensors: names start with `model.`, as in a
/// `state_dict`; there are eight input channels, no alpha, a separate image projection, and CLIP's towers.
#[test]
fn dynamicrafter_becomes_a_start_with_four_channels() {
    let fixture = fixture();
    let sizes = ReleasedConfig::read(&fixture.join("config.json")).unwrap();
    let open = |file: &str| Source::open(&fixture.join("pretrained").join(file)).unwrap();
    let released = open("Divot_tokenizer_detokenizer/Divot_detokenizer_stage1.bin");
    let clip = open("CLIP-ViT-H-14-laion2B-s32B-b79K/open_clip_pytorch_model.bin");
    let mut specs = Vec::new();
    let mut values = Vec::new();
    let unet = released.tensors().map(|tensor| match &tensor.name {
        name if name.starts_with("diffusion_model.") => (format!("model.{name}"), tensor),
        name => (name.clone(), tensor),
    });
    let towers = clip.tensors().map(|tensor| match &tensor.name {
        name if name.starts_with("visual.") => (format!("embedder.model.{name}"), tensor),
        name => (format!("cond_stage_model.model.{name}"), tensor),
    });
    for (renamed, tensor) in unet.chain(towers) {
        if renamed.ends_with(".alpha") {
            continue;
        }
        let mut shape = tensor.shape.clone();
        let mut data: Vec<f32> = tensor.read().unwrap().iter::<f32>().collect();
        if renamed == "model.diffusion_model.input_blocks.0.0.weight" {
            // Four channels of the condition after the four channels of the noise.
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

    let job = Job::of(Part::DynamiCrafter, &[&file]);
    let report = convert(&job, &sizes, to.path(), FloatDType::F32, go).unwrap();
    assert!(!report.defaulted.is_empty());
    assert!(report.defaulted.iter().all(|name| name.ends_with(".alpha")));

    // The UNet has four channels, and all networks have the fixture's weights.
    assert_eq!(report.folder, to.path().join("dynamicrafter"));
    assert_eq!(report.narrowed, ["unet.conv_in.weight"]);
    assert!(report.to_string().contains("unet.conv_in.weight"));
    let checkpoint = Checkpoint::new(to.path(), &Device::default());
    let config: DynamiCrafterConfig = checkpoint.config(Part::DynamiCrafter).unwrap();
    assert_eq!(config.unet.in_channels, 4);
    let converted = Source::open(&report.folder.join("model.safetensors")).unwrap();
    for (ours, source, theirs) in [
        (
            "unet.conv_in.weight",
            &released,
            "diffusion_model.input_blocks.0.0.weight",
        ),
        (
            "vae.quant_conv.bias",
            &released,
            "first_stage_model.quant_conv.bias",
        ),
        ("image.latents", &released, "image_proj_model.latents"),
        ("vision.class_embedding", &clip, "visual.class_embedding"),
        ("text.positional_embedding", &clip, "positional_embedding"),
    ] {
        let numbers = |source: &Source, name: &str| -> Vec<f32> {
            source.get(name).unwrap().read().unwrap().iter().collect()
        };
        assert_eq!(numbers(&converted, ours), numbers(source, theirs), "{ours}");
    }
}

/// The same weights in fewer bits, in memory or on disk, give nearly the same tokens, context and prediction.
#[test]
fn fewer_bits_are_close() {
    let fixture = fixture();
    let sizes = ReleasedConfig::read(&fixture.join("config.json")).unwrap();
    let folders = [StoredType::F32, StoredType::Q8].map(|stored| {
        let to = tempfile::tempdir().unwrap();
        for job in &Job::find(&fixture.join("pretrained")).unwrap().jobs {
            convert(job, &sizes, to.path(), stored, go).unwrap();
        }
        to
    });
    let [plain, rounded] = folders.each_ref().map(|folder| folder.path());
    let device = Device::default();
    let stages = |folder: &Path, dtype: FloatDType| -> [Vec<f32>; 3] {
        let mut checkpoint = Checkpoint::new(folder, &device).with_dtype(dtype);
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
    let exact = stages(plain, FloatDType::F32);
    for (name, found, limit) in [
        ("f16", stages(plain, FloatDType::F16), 1e-2),
        ("bf16", stages(plain, FloatDType::BF16), 6e-2),
        ("q8 on disk", stages(rounded, FloatDType::F32), 6e-2),
    ] {
        for (ours, exact) in found.iter().zip(&exact) {
            let square = |values: &mut dyn Iterator<Item = f32>| {
                values.map(|v| f64::from(v).powi(2)).sum::<f64>()
            };
            let difference = square(&mut ours.iter().zip(exact).map(|(a, b)| a - b));
            let error = (difference / square(&mut exact.iter().copied())).sqrt();
            println!("{name}: {error:.1e}");
            assert!(error > 0.0 && error < limit, "{name}: {error}");
        }
    }
}

/// A saved part equals a conversion of the same weights, byte for byte.
#[test]
fn a_saved_tokenizer_is_the_converted_one() {
    let fixture = fixture();
    let sizes = ReleasedConfig::read(&fixture.join("config.json")).unwrap();
    let to = tempfile::tempdir().unwrap();
    let job = Job::of(Part::Tokenizer, &[fixture.join("pretrained")]);
    convert(&job, &sizes, to.path(), FloatDType::F32, go).unwrap();
    let device = Device::default();
    let (tokenizer, config) = Tokenizer::load(&mut Checkpoint::new(to.path(), &device)).unwrap();

    let other = tempfile::tempdir().unwrap();
    let folder = other.path().join("models/new");
    let mut done = 0;
    let mut checkpoint = Checkpoint::new(&folder, &device).with_progress(|progress| {
        assert!(done <= progress.done && progress.done <= progress.total);
        done = progress.done;
        ControlFlow::Continue(())
    });
    let saved = checkpoint
        .save(Part::Tokenizer, &config, tokenizer.clone(), None)
        .unwrap();
    assert_eq!(saved.not_stored, None);
    assert_eq!(saved.folder, folder.join("tokenizer"));
    drop(checkpoint);
    let names = |folder: &Path| {
        let entries = fs::read_dir(folder).unwrap();
        let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        names
    };
    assert_eq!(names(&folder), ["tokenizer"]);
    let (converted, saved) = (to.path().join("tokenizer"), saved.folder);
    assert_eq!(
        names(&saved),
        [
            "config.json",
            "model.safetensors",
            "unconditional.safetensors"
        ]
    );
    assert_eq!(names(&saved), names(&converted));
    for name in names(&saved) {
        let read = |folder: &Path| fs::read(folder.join(&name)).unwrap();
        assert_eq!(read(&saved), read(&converted), "{name:?}");
    }

    // Saving replaces an older part. If it is stopped, the older one stays.
    let before = fs::read(saved.join("model.safetensors")).unwrap();
    let mut checkpoint = Checkpoint::new(&folder, &device)
        .with_stored_type(StoredType::F16)
        .with_progress(|_| ControlFlow::Break(()));
    let error = checkpoint
        .save(Part::Tokenizer, &config, tokenizer.clone(), None)
        .unwrap_err();
    assert!(error.is_stopped(), "{error}");
    assert_eq!(fs::read(saved.join("model.safetensors")).unwrap(), before);
    let mut checkpoint = Checkpoint::new(&folder, &device).with_stored_type(StoredType::F16);
    checkpoint
        .save(Part::Tokenizer, &config, tokenizer.clone(), None)
        .unwrap();
    assert!(fs::read(saved.join("model.safetensors")).unwrap().len() < before.len());
    assert_eq!(names(&folder), ["tokenizer"]);

    // In 8 bits too.
    convert(&job, &sizes, to.path(), StoredType::Q8, go).unwrap();
    let mut checkpoint = Checkpoint::new(&folder, &device).with_stored_type(StoredType::Q8);
    checkpoint
        .save(Part::Tokenizer, &config, tokenizer.clone(), None)
        .unwrap();
    for name in names(&saved) {
        let read = |folder: &Path| fs::read(folder.join(&name)).unwrap();
        assert_eq!(read(&saved), read(&converted), "{name:?}");
    }

    // A language model without its text tokenizer could not be used.
    let error = checkpoint
        .save(Part::Llm, &config, tokenizer, None)
        .unwrap_err();
    assert!(error.to_string().contains("text tokenizer"), "{error}");
}

/// Runs two conversions into one folder at the same time. One succeeds completely, and the other reports it.
#[test]
fn the_second_of_two_conversions_says_that_it_was_overtaken() {
    let fixture = fixture();
    let sizes = ReleasedConfig::read(&fixture.join("config.json")).unwrap();
    let job = Job::of(Part::Clip, &[fixture.join("pretrained")]);
    for replacing in [false, true] {
        let to = tempfile::tempdir().unwrap();
        if replacing {
            convert(&job, &sizes, to.path(), FloatDType::F32, go).unwrap();
        }
        let mut first = true;
        let error = convert(&job, &sizes, to.path(), FloatDType::F32, |_| {
            // The other conversion starts later and finishes earlier.
            if std::mem::take(&mut first) {
                convert(&job, &sizes, to.path(), FloatDType::F16, go).unwrap();
            }
            ControlFlow::Continue(())
        });
        let line = error.unwrap_err().to_string();
        assert_eq!(line.lines().count(), 1);
        assert!(line.contains("another process wrote it first"), "{line}");
        assert!(line.contains("clip"), "{line}");
        let entries: Vec<_> = fs::read_dir(to.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .collect();
        assert_eq!(entries, ["clip"]);
        let source = Source::open(&to.path().join("clip/model.safetensors")).unwrap();
        let half = burn::tensor::DType::F16;
        assert!(source.tensors().all(|tensor| tensor.dtype == half));
    }
}

/// A damaged tensor stops the conversion when it is read. Nothing stays: no file, and no folder that was
/// created for it.
#[test]
fn a_damaged_tensor_leaves_nothing_behind() {
    let fixture = fixture();
    let sizes = ReleasedConfig::read(&fixture.join("config.json")).unwrap();
    let here = tempfile::tempdir().unwrap();
    let name = "CLIP-ViT-H-14-laion2B-s32B-b79K/open_clip_pytorch_model.bin";
    let whole = fixture.join("pretrained").join(name);
    let source = Source::open(&whole).unwrap();
    // The last tensor of the text tower in the written file.
    let tensor = source.get("text_projection").unwrap().read().unwrap();
    let mut bytes = fs::read(&whole).unwrap();
    let at = bytes
        .windows(tensor.as_bytes().len())
        .position(|window| window == tensor.as_bytes());
    bytes[at.unwrap()] ^= 1;
    let damaged = here.path().join("clip.bin");
    fs::write(&damaged, bytes).unwrap();

    let job = Job::of(Part::Clip, &[&damaged]);
    let to = here.path().join("models/new");
    let mut tensors = 0;
    let error = convert(&job, &sizes, &to, FloatDType::F32, |_| {
        tensors += 1;
        ControlFlow::Continue(())
    });
    let line = error.unwrap_err().to_string();
    assert!(tensors > 0, "the damage was to show late: {line}");
    assert_eq!(line.lines().count(), 1);
    for word in ["clip.bin", "text_projection", "checksum"] {
        assert!(line.contains(word), "{line} lacks {word}");
    }
    let left: Vec<_> = fs::read_dir(here.path()).unwrap().flatten().collect();
    assert_eq!(left.len(), 1, "{left:?}");

    // Folders that existed before stay.
    fs::create_dir(here.path().join("models")).unwrap();
    convert(&job, &sizes, &to, FloatDType::F32, go).unwrap_err();
    assert!(here.path().join("models").is_dir() && !to.exists());
}

/// A missing shard is named, for every part.
#[test]
fn a_missing_shard_is_named() {
    let here = tempfile::tempdir().unwrap();
    let index = here.path().join("model.safetensors.index.json");
    let shard = "model-00002-of-00002.safetensors";
    fs::write(&index, format!(r#"{{"weight_map": {{"a": "{shard}"}}}}"#)).unwrap();
    let says = |job: &Job| {
        let to = here.path().join("to");
        let error = convert(job, &ReleasedConfig::divot(), &to, FloatDType::F16, go);
        let line = error.unwrap_err().to_string();
        assert!(line.contains(shard), "{line}");
        assert!(line.contains("this shard of"), "{line}");
        assert!(!to.exists());
    };
    for part in [Part::Detokenizer, Part::Clip, Part::DynamiCrafter] {
        says(&Job::of(part, &[here.path()]));
        says(&Job::of(part, &[&index]));
    }

    // A download in which a folder of shards has replaced the file.
    let download = tempfile::tempdir().unwrap();
    let path = "Divot_tokenizer_detokenizer/Divot_detokenizer_stage1";
    let folder = download.path().join(path);
    fs::create_dir_all(&folder).unwrap();
    fs::copy(&index, folder.join("model.safetensors.index.json")).unwrap();
    let found = Job::find(download.path()).unwrap();
    assert_eq!(found.jobs.len(), 1);
    says(&found.jobs[0]);
}
