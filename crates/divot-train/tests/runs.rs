//! Runs: interrupted ones end as uninterrupted ones do, to the bit.

#[path = "train/common.rs"]
mod common;

use std::fs;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

use burn::tensor::{DType, Device};
use common::{recipe, samples};
use divot::checkpoint::{Checkpoint, WEIGHTS};
use divot::data::{Video, write_mp4};
use divot::weights::StoredType;
use divot::{Detokenizer, Tokenizer};
use divot_train::{Error, Event, Recipe, RunOptions, Trainer, Weights, checkpoint, export, run};
use rayon::ThreadPoolBuilder;

/// A recipe with everything that a checkpoint has to keep: an average, dropped conditions, dropout,
/// accumulation.
fn diffusion(clips: &Path, changes: &[&str]) -> Recipe {
    let head = format!(
        r#"steps = 6
batch = 2
micro_batch = 1
average = 0.9
log_every = 1
frozen = ["tokenizer.vision", "detokenizer.vae"]

[objective]
kind = "diffusion"
dropped = 0.2
sampling_steps = 2

[[data]]
source = {{ format = "videos", path = {clips:?}, filter = {{ min_side = 16 }} }}

[rate]
warmup = 2

[validation]
every = 3
batches = 1

[checkpoints]
every = 2
"#
    );
    let changes: Vec<&str> = ["model.detokenizer.unet.dropout=0.1"]
        .iter()
        .chain(changes)
        .copied()
        .collect();
    recipe(&head, &changes).expect("a valid recipe")
}

fn clips(folder: &Path) {
    for (number, sample) in samples(3, 32).iter().enumerate() {
        let path = folder.join(format!("{number}.mp4"));
        write_mp4(&path, sample.clips[0].frames(), 8.0).expect("a clip is written");
    }
}

fn options() -> RunOptions {
    RunOptions {
        resume: false,
        allow_changes: false,
        workers: 2,
        ..RunOptions::default()
    }
}

fn resuming() -> RunOptions {
    RunOptions {
        resume: true,
        ..options()
    }
}

/// Dropout and first weights are drawn by the device, whose generator all tests of a process share: each holds
/// this from its first line.
fn alone() -> MutexGuard<'static, ()> {
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Runs until `stop` steps are done, or to the end. Returns the losses that were logged.
fn go(recipe: &Recipe, folder: &Path, options: &RunOptions, stop: usize) -> Vec<f64> {
    let mut losses = Vec::new();
    let result = run(recipe, folder, &Device::default(), options, &mut |event| {
        match event {
            Event::Step(Some(status)) => losses.push(status.loss.expect("it is logged")),
            Event::Warning(warning) => panic!("{warning}"),
            _ => {}
        }
        match losses.len() == stop {
            true => ControlFlow::Break(()),
            false => ControlFlow::Continue(()),
        }
    });
    match result {
        Ok(_) => {}
        Err(Error::Stopped) => assert_eq!(losses.len(), stop),
        Err(error) => panic!("{error}"),
    }
    losses
}

/// The files of the newest checkpoint, but for the state.
fn weights(folder: &Path) -> Vec<(String, Vec<u8>)> {
    let newest = checkpoint::newest(folder)
        .expect("readable")
        .expect("a checkpoint");
    let mut files: Vec<(String, Vec<u8>)> = fs::read_dir(newest.folder())
        .expect("its folder")
        .map(|entry| {
            let path = entry.expect("an entry").path();
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            (name.into_owned(), fs::read(&path).expect("a file"))
        })
        .collect();
    files.sort();
    assert_eq!(files.len(), 4);
    files
}

#[test]
fn a_stopped_run_goes_on_to_the_bit() {
    let _alone = alone();
    let data = tempfile::tempdir().expect("a folder");
    clips(data.path());
    let recipe = diffusion(data.path(), &[]);
    let [whole, parts] = [(); 2].map(|()| tempfile::tempdir().expect("a folder"));
    let losses = go(&recipe, whole.path(), &options(), usize::MAX);
    assert_eq!(losses.len(), 6);

    let resume = RunOptions {
        resume: true,
        workers: 1,
        ..options()
    };
    let mut found = Vec::new();
    // After one step, which no checkpoint was due after, then after two more, then to the end.
    for stop in [1, 2, usize::MAX] {
        found.extend(go(&recipe, parts.path(), &resume, stop));
    }
    assert_eq!(found, losses);
    assert_eq!(weights(parts.path()), weights(whole.path()));

    let metrics = |folder: &Path| {
        let text = fs::read_to_string(folder.join("metrics.jsonl")).expect("metrics");
        text.lines()
            .map(|line| {
                let line: serde_json::Value = serde_json::from_str(line).expect("JSON");
                [&line["step"], &line["train/loss"], &line["validation/loss"]].map(Clone::clone)
            })
            .collect::<Vec<_>>()
    };
    assert_eq!(metrics(parts.path()), metrics(whole.path()));
    assert!(whole.path().join("report.html").exists());
    assert_eq!(
        fs::read_dir(whole.path().join("samples"))
            .expect("sheets")
            .count(),
        4,
        "a sheet and an animation of each validation"
    );
}

/// Lines of the log have the means of the steps since the line before, also of a run that was stopped between them.
#[test]
fn what_is_logged_is_the_mean_since_the_last_line() {
    let _alone = alone();
    let data = tempfile::tempdir().expect("a folder");
    clips(data.path());
    let folders = [(); 3].map(|()| tempfile::tempdir().expect("a folder"));
    let each = diffusion(data.path(), &["validation.every=0"]);
    let each = go(&each, folders[0].path(), &options(), usize::MAX);
    let third = diffusion(data.path(), &["validation.every=0", "log_every=3"]);
    let whole = go(&third, folders[1].path(), &options(), usize::MAX);
    assert_eq!(whole.len(), 2);
    for (mean, losses) in whole.iter().zip(each.chunks(3)) {
        let expected = losses.iter().sum::<f64>() / 3.0;
        assert!((mean - expected).abs() < 1e-6, "{mean} {losses:?}");
    }

    let resume = resuming();
    let mut parts = Vec::new();
    for stop in [2, 2, usize::MAX] {
        let mut steps = 0;
        let device = Device::default();
        let _ = run(&third, folders[2].path(), &device, &resume, &mut |event| {
            if let Event::Step(status) = event {
                steps += 1;
                parts.extend(status.and_then(|status| status.loss));
            }
            match steps == stop {
                true => ControlFlow::Break(()),
                false => ControlFlow::Continue(()),
            }
        });
    }
    assert_eq!(parts, whole);
}

/// Every source of a validation set is measured and shown, however seldom its batches are.
#[test]
fn every_source_is_validated() {
    let _alone = alone();
    let data = tempfile::tempdir().expect("a folder");
    clips(data.path());
    let source = format!(
        "{{format = \"videos\", path = {:?}, filter = {{min_side = 16}}}}",
        data.path()
    );
    let both = format!(
        "validation.data=[{{source = {source}, weight = 1000000.0}}, {{source = {source}, weight = 0.000001}}]"
    );
    let mut heights = Vec::new();
    for changes in [&["validation.shown=1"][..], &["validation.shown=1", &both]] {
        let folder = tempfile::tempdir().expect("a folder");
        go(
            &diffusion(data.path(), changes),
            folder.path(),
            &options(),
            3,
        );
        let samples = fs::read_dir(folder.path().join("samples")).expect("sheets");
        let mut files = samples.map(|file| file.expect("a file").path());
        let sheet = files.find(|file| file.extension().is_some_and(|found| found == "png"));
        let sheet = Video::open(sheet.expect("a sheet")).expect("a picture");
        heights.push(sheet.info().height);
    }
    // What was given over what was made, of one sample and of two.
    assert!(heights[1] > heights[0] * 19 / 10, "{heights:?}");
}

/// What is frozen is not in a checkpoint, and would be read from a run that went on, also through another run.
#[test]
fn a_run_that_others_started_from_may_not_move() {
    let _alone = alone();
    let data = tempfile::tempdir().expect("a folder");
    clips(data.path());
    let folders = [(); 3].map(|()| tempfile::tempdir().expect("a folder"));
    let [first, second, third] = folders.each_ref().map(|folder| folder.path());
    let before = diffusion(data.path(), &["validation.every=0"]);
    let after = |folder: &Path| {
        let start = format!("model.start={{tokenizer={folder:?}, detokenizer={folder:?}}}");
        let frozen = "frozen=[\"tokenizer\", \"detokenizer.vae\"]";
        diffusion(data.path(), &["validation.every=0", &start, frozen])
    };
    let [from_first, from_second] = [after(first), after(second)];
    go(&before, first, &options(), 2);
    go(&from_first, second, &options(), 2);
    go(&from_second, third, &options(), 2);

    let resume = resuming();
    // Nothing that is frozen comes from the second.
    go(&from_first, second, &resume, 2);
    go(&from_second, third, &resume, 1);
    go(&before, first, &resume, 2);
    let device = Device::default();
    for (recipe, folder) in [(&from_first, second), (&from_second, third)] {
        let result = run(recipe, folder, &device, &resume, &mut |_| {
            ControlFlow::Continue(())
        });
        let text = result.expect_err("it is refused").to_string();
        assert!(text.contains("of step 2 of"), "{text}");
        assert!(text.contains("is now at step 4"), "{text}");
    }
    let allowed = RunOptions {
        allow_changes: true,
        ..resume.clone()
    };
    go(&from_first, second, &allowed, 1);
    go(&from_first, second, &resume, usize::MAX);
}

/// Validation losses on other samples do not compare, and a change of what is shown is none.
#[test]
fn the_best_is_forgotten_where_losses_do_not_compare() {
    let _alone = alone();
    let data = tempfile::tempdir().expect("a folder");
    clips(data.path());
    for (change, stays) in [
        ("validation.shown=1", true),
        ("objective.dropped=0.3", false),
        ("data.0.source.filter.min_side=17", false),
    ] {
        let folder = tempfile::tempdir().expect("a folder");
        go(&diffusion(data.path(), &[]), folder.path(), &options(), 3);
        let allowed = RunOptions {
            resume: true,
            allow_changes: true,
            ..options()
        };
        let changes = ["validation.every=6", change];
        go(
            &diffusion(data.path(), &changes),
            folder.path(),
            &allowed,
            2,
        );
        let newest = checkpoint::newest(folder.path());
        let state = newest
            .expect("readable")
            .expect("there")
            .state()
            .expect("a state");
        assert_eq!(state.best.is_some(), stays, "{change}");
    }
}

/// A part that starts at random is none of the folder that the part around it starts from.
#[test]
fn what_starts_at_random_is_not_read() {
    let _alone = alone();
    let data = tempfile::tempdir().expect("a folder");
    clips(data.path());
    let before = tempfile::tempdir().expect("a folder");
    go(
        &diffusion(data.path(), &["validation.every=0"]),
        before.path(),
        &options(),
        2,
    );
    let model = |inner: &str| {
        let start = format!("model.start={{tokenizer={:?}{inner}}}", before.path());
        let recipe = diffusion(data.path(), &["seed=9", &start, "frozen=[\"tokenizer\"]"]);
        let trainer = Trainer::new(&recipe, &Device::default()).expect("a model");
        let tokenizer = trainer.learned().tokenizer().clone();
        let vision = tokenizer.vision.class_embedding.val().into_data();
        (vision, tokenizer.resampler.norm.gamma.val().into_data())
    };
    let (vision, norm) = model("");
    let (vision_again, norm_again) = model(", \"tokenizer.resampler\"=\"random\"");
    assert_eq!(vision, vision_again);
    // New norms are ones, those of the run have learned.
    assert_ne!(norm, norm_again);
}

#[test]
fn what_a_kill_leaves_is_passed_over() {
    let _alone = alone();
    let data = tempfile::tempdir().expect("a folder");
    clips(data.path());
    let recipe = diffusion(data.path(), &["validation.every=0"]);
    let [whole, killed] = [(); 2].map(|()| tempfile::tempdir().expect("a folder"));
    go(&recipe, whole.path(), &options(), usize::MAX);
    go(&recipe, killed.path(), &options(), 3);
    // A checkpoint that was being written, and steps that were logged after the last one.
    let partial = killed.path().join("checkpoints/.partial-abc/step-00000004");
    fs::create_dir_all(&partial).expect("a folder");
    fs::write(partial.join("weights.safetensors"), b"half").expect("a file");
    let metrics = killed.path().join("metrics.jsonl");
    let mut text = fs::read_to_string(&metrics).expect("metrics");
    text += "{\"step\":4,\"seconds\":1.0,\"train/loss\":9.0}\n{\"step\":5,\"sec";
    fs::write(&metrics, text).expect("metrics");

    let resume = resuming();
    go(&recipe, killed.path(), &resume, usize::MAX);
    assert_eq!(weights(killed.path()), weights(whole.path()));
    assert!(!killed.path().join("checkpoints/.partial-abc").exists());
    let text = fs::read_to_string(&metrics).expect("metrics");
    assert_eq!(text.lines().count(), 6, "{text}");
}

/// Frozen parts are kept in bf16, those that are read from a checkpoint too.
#[test]
fn a_run_in_half_precision_goes_on_to_the_bit() {
    let _alone = alone();
    let data = tempfile::tempdir().expect("a folder");
    clips(data.path());
    let full = diffusion(data.path(), &["validation.every=0"]);
    let half = diffusion(data.path(), &["validation.every=0", "precision=\"bf16\""]);
    let folders = [(); 3].map(|()| tempfile::tempdir().expect("a folder"));
    let full = go(&full, folders[0].path(), &options(), usize::MAX);
    let losses = go(&half, folders[1].path(), &options(), usize::MAX);
    assert_ne!(losses, full);

    let resume = resuming();
    let mut found = go(&half, folders[2].path(), &resume, 3);
    found.extend(go(&half, folders[2].path(), &resume, usize::MAX));
    assert_eq!(found, losses);
    assert_eq!(weights(folders[2].path()), weights(folders[1].path()));

    let trainer = Trainer::new(&half, &Device::default()).expect("a model");
    let model = trainer.model();
    let types = [
        model.tokenizer().vision.class_embedding.val().dtype(),
        model.detokenizer().unet.conv_in.weight.val().dtype(),
    ];
    assert_eq!(types, [DType::BF16, DType::F32]);

    // What starts from a folder is frozen in the same way.
    let start = format!("model.start={{tokenizer={:?}}}", folders[0].path());
    let frozen = "frozen=[\"tokenizer\"]";
    let changes = ["precision=\"bf16\"", frozen, &start];
    let later = Trainer::new(&diffusion(data.path(), &changes), &Device::default());
    let later = later.expect("a model");
    let tokenizer = later.model().tokenizer();
    let norm = tokenizer.resampler.norm.gamma.val().dtype();
    let types = [tokenizer.vision.class_embedding.val().dtype(), norm];
    assert_eq!(types, [DType::BF16; 2]);
}

#[test]
fn a_folder_is_not_overwritten_and_a_changed_recipe_is_named() {
    let _alone = alone();
    let data = tempfile::tempdir().expect("a folder");
    clips(data.path());
    let folder = tempfile::tempdir().expect("a folder");
    let recipe = diffusion(data.path(), &["validation.every=0"]);
    go(&recipe, folder.path(), &options(), 2);
    let refusal = |recipe: &Recipe, options: &RunOptions| {
        let device = Device::default();
        let result = run(recipe, folder.path(), &device, options, &mut |_| {
            ControlFlow::Continue(())
        });
        result.expect_err("it is refused").to_string()
    };
    let text = refusal(&recipe, &options());
    assert!(text.contains("got to step 2"), "{text}");

    let resume = resuming();
    let changed = diffusion(data.path(), &["validation.every=0", "rate.peak=0.5"]);
    let text = refusal(&changed, &resume);
    assert!(
        text.contains("`rate.peak` was nothing and is 0.5"),
        "{text}"
    );

    // The recipe leaves the precision to the device, and the run has another one.
    let newest = checkpoint::newest(folder.path());
    let state = newest
        .expect("readable")
        .expect("there")
        .folder()
        .join("state.json");
    let text = fs::read_to_string(&state).expect("a state");
    assert!(
        text.contains("\"precision\":\"f32\"") || text.contains("\"precision\": \"f32\""),
        "{text}"
    );
    let other = text.replace("\"f32\"", "\"bf16\"");
    fs::write(&state, other).expect("a state");
    let said = refusal(&recipe, &resume);
    assert!(
        said.contains("`precision` was bf16, and this device has f32"),
        "{said}"
    );
    fs::write(&state, text).expect("a state");

    let allowed = RunOptions {
        allow_changes: true,
        ..resume
    };
    assert_eq!(go(&changed, folder.path(), &allowed, usize::MAX).len(), 4);
    // What was trained last is what the checkpoint says.
    let newest = checkpoint::newest(folder.path())
        .expect("readable")
        .expect("there");
    assert_eq!(newest.state().expect("a state").recipe, changed.text);
}

#[test]
fn a_run_that_cannot_start_leaves_nothing() {
    let _alone = alone();
    let data = tempfile::tempdir().expect("a folder");
    let folder = data.path().join("runs/first");
    let recipe = diffusion(&data.path().join("nowhere"), &[]);
    let device = Device::default();
    let result = run(&recipe, &folder, &device, &options(), &mut |_| {
        ControlFlow::Continue(())
    });
    let text = result.expect_err("there is no data").to_string();
    assert!(text.contains("nowhere"), "{text}");
    assert!(!folder.exists());
}

#[test]
fn the_last_checkpoints_and_the_best_stay() {
    let _alone = alone();
    let data = tempfile::tempdir().expect("a folder");
    clips(data.path());
    let folder = tempfile::tempdir().expect("a folder");
    // The rate is so high that the loss only rises.
    let changes = [
        "checkpoints.every=1",
        "validation.every=1",
        "rate.peak=0.5",
        "average=0.0",
    ];
    let recipe = diffusion(data.path(), &changes);
    go(&recipe, folder.path(), &options(), usize::MAX);
    let all = checkpoint::all(folder.path()).expect("readable");
    let steps: Vec<usize> = all.iter().map(|checkpoint| checkpoint.step).collect();
    let state = all.last().expect("there").state().expect("a state");
    let (_, best) = state.best.expect("it was measured");
    assert!(steps.ends_with(&[5, 6]), "{steps:?}");
    assert!(steps.contains(&best), "{steps:?}, best {best}");
    assert!(steps.len() <= 3, "{steps:?}");
}

#[test]
fn the_best_is_kept_between_checkpoints() {
    let _alone = alone();
    let data = tempfile::tempdir().expect("a folder");
    clips(data.path());
    let folder = tempfile::tempdir().expect("a folder");
    let changes = [
        "checkpoints.every=100",
        "validation.every=2",
        "rate.peak=0.5",
        "rate.warmup=4",
        "average=0.0",
    ];
    let recipe = diffusion(data.path(), &changes);
    go(&recipe, folder.path(), &options(), usize::MAX);
    let all = checkpoint::all(folder.path()).expect("readable");
    let state = all.last().expect("there").state().expect("a state");
    let (_, best) = state.best.expect("it was measured");
    let steps: Vec<usize> = all.iter().map(|checkpoint| checkpoint.step).collect();
    assert!(steps.contains(&best), "{steps:?}, best {best}");

    // A checkpoint that is not the newest one is exported by its own folder.
    let first = &all[0];
    assert_ne!(first.step, all[all.len() - 1].step);
    let exported = [first.folder(), folder.path()].map(|from| {
        let to = folder.path().join("model");
        let device = Device::default();
        let parts = export(from, &to, Weights::Last, StoredType::F32, &device).expect("a model");
        let weights = fs::read(parts[0].join(WEIGHTS)).expect("weights");
        fs::remove_dir_all(&to).expect("removed");
        weights
    });
    assert!(exported[0] != exported[1]);

    // A field of another version is passed over.
    let path = first.folder().join("state.json");
    let text = fs::read_to_string(&path).expect("a state");
    let state = first.state().expect("a state");
    fs::write(&path, text.replacen('{', "{\"left_out\": 0,", 1)).expect("written");
    assert_eq!(first.state().expect("it is read"), state);

    // A recipe that was changed in a checkpoint is not taken for the one of the run.
    fs::write(&path, text.replace("batch = 2", "batch = 3")).expect("written");
    let error = first.state().expect_err("it is refused").to_string();
    assert!(error.contains("its recipe is not the one"), "{error}");
}

/// A rate that makes every number of the model infinite.
#[test]
fn losses_that_are_no_numbers_are_left_out_and_end_the_run() {
    let _alone = alone();
    let data = tempfile::tempdir().expect("a folder");
    clips(data.path());
    let folder = tempfile::tempdir().expect("a folder");
    let changes = [
        "steps=100",
        "rate.peak=1e30",
        "rate.warmup=0",
        "validation.every=0",
        "checkpoints.every=1",
        "checkpoints.keep=100",
    ];
    let recipe = diffusion(data.path(), &changes);
    let device = Device::default();
    let error = run(&recipe, folder.path(), &device, &options(), &mut |_| {
        ControlFlow::Continue(())
    });
    let error = error.expect_err("it is ended");
    let Error::NotFinite { step, steps: 20 } = error else {
        panic!("{error}");
    };
    let all = checkpoint::all(folder.path()).expect("readable");
    let last = all.last().expect("there");
    let state = last.state().expect("a state");
    // The last checkpoint was saved one step before the run ended.
    assert_eq!((last.step, state.not_finite_in_a_row), (step - 1, 19));
    assert!(state.not_finite >= 19);
    let before = &all[all.len() - 19];
    let [before, after] = [before, last].map(|it| fs::read(it.weights()).expect("weights"));
    assert!(before == after, "such a step changed the weights");
}

/// The number of threads changes no number, in bf16 neither.
#[test]
fn one_thread_computes_what_two_do() {
    let _alone = alone();
    let data = tempfile::tempdir().expect("a folder");
    clips(data.path());
    for precision in ["f32", "bf16"] {
        let precision = format!("precision=\"{precision}\"");
        let recipe = diffusion(data.path(), &["validation.every=0", &precision]);
        let [one, two] = [1, 2].map(|threads| {
            let folder = tempfile::tempdir().expect("a folder");
            let pool = ThreadPoolBuilder::new().num_threads(threads).build();
            let losses = pool
                .expect("threads")
                .install(|| go(&recipe, folder.path(), &options(), usize::MAX));
            (losses, weights(folder.path()))
        });
        assert!(one == two, "{precision}");
    }
}

#[test]
fn an_exported_run_is_a_model_and_a_start() {
    let _alone = alone();
    let data = tempfile::tempdir().expect("a folder");
    clips(data.path());
    let [folder, exported] = [(); 2].map(|()| tempfile::tempdir().expect("a folder"));
    let recipe = diffusion(data.path(), &["validation.every=0"]);
    go(&recipe, folder.path(), &options(), usize::MAX);
    let device = Device::default();
    let to = exported.path().join("model");
    let trained = || {
        let newest = checkpoint::newest(folder.path())
            .expect("readable")
            .expect("there");
        let trainer = Trainer::new(&recipe, &device).expect("a model");
        trainer.resume(&newest).expect("its weights")
    };
    for (weights, model) in [
        (Weights::Last, trained().learned()),
        (Weights::Best, trained().evaluated()),
    ] {
        let folders =
            export(folder.path(), &to, weights, StoredType::F32, &device).expect("it is exported");
        assert_eq!(folders, [to.join("tokenizer"), to.join("detokenizer")]);
        let mut loaded = Checkpoint::new(&to, &device);
        let (tokenizer, _) = Tokenizer::load(&mut loaded).expect("a tokenizer");
        let (detokenizer, _) = Detokenizer::load(&mut loaded).expect("a de-tokenizer");
        let frames = burn::tensor::Tensor::<5>::ones([1, 5, 3, 32, 32], &device) * 0.5;
        let tokens = tokenizer.tokenize(frames.clone());
        let expected = model.tokenizer().tokenize(frames);
        assert_eq!(tokens.to_data(), expected.to_data());
        let context = detokenizer.context(tokens);
        let expected = model.detokenizer().context(expected);
        assert_eq!(context.to_data(), expected.to_data());
    }

    // A later stage starts from the run itself or from what was exported of it: from the moving average. The run's
    // own vision tower is random, and in its checkpoint.
    let later = |folder: &Path| {
        let start = format!("model.start={{tokenizer={folder:?}, \"detokenizer\"={folder:?}}}");
        let changes = ["frozen=[\"tokenizer\", \"detokenizer.vae\"]", &start];
        let recipe = diffusion(data.path(), &changes);
        Trainer::new(&recipe, &device).map(|trainer| trainer.learned())
    };
    let frames = burn::tensor::Tensor::<5>::ones([1, 5, 3, 32, 32], &device) * 0.5;
    let [learned, averaged] = [trained().learned(), trained().evaluated()]
        .map(|model| model.tokenizer().tokenize(frames.clone()).to_data());
    assert_ne!(learned, averaged);
    for folder in [folder.path(), &to] {
        let model = later(folder).expect("it starts");
        let tokens = model.tokenizer().tokenize(frames.clone());
        assert_eq!(tokens.to_data(), averaged);
    }
    // What was exported in 8 bits is nearly the same start.
    let small = exported.path().join("small");
    export(
        folder.path(),
        &small,
        Weights::Best,
        StoredType::Q8,
        &device,
    )
    .expect("it is exported");
    let size = |folder: &Path| {
        let weights = folder.join("detokenizer/model.safetensors");
        fs::metadata(weights).expect("weights").len()
    };
    assert!(size(&small) < size(&to) / 2);
    let [tokens, expected] = [&small, &to].map(|folder| {
        let model = later(folder).expect("it starts");
        model.tokenizer().tokenize(frames.clone())
    });
    let difference = (tokens - expected.clone()).abs().max().into_scalar::<f32>();
    let largest = expected.abs().max().into_scalar::<f32>();
    assert!(
        difference > 0.0 && difference < 0.1 * largest,
        "{difference} of {largest}"
    );

    let text = later(data.path())
        .expect_err("there is nothing")
        .to_string();
    assert!(
        text.contains("neither a run nor a converted model"),
        "{text}"
    );

    // A third stage finds what the second had frozen where that came from.
    let second = exported.path().join("second");
    let start = format!(
        "model.start={{tokenizer={:?}, detokenizer={:?}}}",
        folder.path(),
        to
    );
    let frozen = "frozen=[\"tokenizer\", \"detokenizer.vae\"]";
    let changes = ["validation.every=0", "steps=3", frozen, &start];
    let recipe = diffusion(data.path(), &changes);
    go(&recipe, &second, &options(), usize::MAX);
    let model = later(&second).expect("it starts");
    let tokens = model.tokenizer().tokenize(frames.clone());
    let expected = later(folder.path())
        .expect("it starts")
        .tokenizer()
        .tokenize(frames);
    assert_eq!(tokens.to_data(), expected.to_data());
}
