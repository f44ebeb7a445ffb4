//! Caches: training from stored outputs of frozen networks is training from frames.

#[path = "train/common.rs"]
mod common;

use std::fs;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use burn::tensor::Device;
use common::{recipe, samples};
use divot::data::dataset::ElementType;
use divot::data::write_mp4;
use divot_train::{
    CacheOptions, Cached, Error, Event, Recipe, Result, RunOptions, Trainer, cache, run,
};

/// First weights are drawn by the device, whose generator the whole process shares.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

fn alone() -> MutexGuard<'static, ()> {
    ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Stage 1, or stage 2 with another `frozen`.
fn diffusion(clips: &Path, changes: &[&str]) -> Recipe {
    recipe(&head(clips), changes).expect("a valid recipe")
}

fn head(clips: &Path) -> String {
    format!(
        r#"steps = 3
batch = 2
log_every = 1
frozen = ["tokenizer.vision", "detokenizer.vae"]

[objective]
kind = "diffusion"
dropped = 0.4
sampling_steps = 2

[[data]]
source = {{ format = "videos", path = {clips:?}, filter = {{ min_side = 16 }} }}

[rate]
warmup = 0
decay = "constant"
peak = 1e-3

[validation]
every = 3
batches = 1
"#
    )
}

const STAGE_2: [&str; 2] = [
    "frozen=[\"tokenizer\", \"detokenizer.vae\"]",
    "model.start={tokenizer=\"random\", \"detokenizer.vae\"=\"random\"}",
];

const TEXT: &str = concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/../../tests/fixture/pretrained/cvlm_mistral_instruct_tokenizer"
);

fn language(clips: &Path, changes: &[&str]) -> Recipe {
    let head = format!(
        r#"steps = 3
batch = 2
log_every = 1
frozen = ["tokenizer"]

[objective]
kind = "language"

[[data]]
source = {{ format = "captions", path = {:?}, filter = {{ min_side = 16 }}, max_clips = 3 }}
task = "comprehension"
instructions = true

[rate]
warmup = 0
decay = "constant"

[validation]
every = 0
"#,
        clips.join("captions.jsonl")
    );
    let text = format!("model.text_tokenizer={TEXT:?}");
    let all = ["model.start={tokenizer=\"random\"}", &text];
    let all: Vec<&str> = all.iter().chain(changes).copied().collect();
    recipe(&head, &all).expect("a valid recipe")
}

/// Five clips of four seconds, whose clips start at random, a file that is no clip, and captions.
fn data(folder: &Path) -> PathBuf {
    let folder = folder.join("clips");
    fs::create_dir_all(&folder).expect("a folder");
    let mut captions = String::new();
    for (number, sample) in samples(5, 32).iter().enumerate() {
        let frames = sample.clips[0].frames();
        let frames: Vec<_> = frames.iter().chain(frames).cloned().collect();
        let name = format!("{number}.mp4");
        write_mp4(folder.join(&name), &frames, 8.0).expect("a clip is written");
        captions += &format!("{{\"video\": {name:?}, \"caption\": \"square {number}\"}}\n");
    }
    fs::write(folder.join("broken.mp4"), b"no film").expect("a file");
    fs::write(folder.join("captions.jsonl"), captions).expect("a file");
    folder
}

fn options() -> CacheOptions {
    CacheOptions {
        // A few samples each.
        shard_bytes: 20_000,
        ..CacheOptions::default()
    }
}

fn make(recipe: &Recipe, to: &Path, options: &CacheOptions) -> Result<Vec<Cached>> {
    cache(recipe, to, &Device::default(), options, &mut |_| {
        ControlFlow::Continue(())
    })
}

/// What is set to train from a cache.
fn from(cached: &Cached) -> String {
    let Cached { key, folder, .. } = cached;
    format!("{key}.source={{format=\"cache\", path={folder:?}}}")
}

/// The losses of a run, and the validation loss if it has one.
fn losses(recipe: &Recipe, folder: &Path) -> (Vec<f64>, Option<f64>) {
    let options = RunOptions {
        resume: false,
        allow_changes: false,
        workers: 2,
        ..RunOptions::default()
    };
    let (mut losses, mut validation) = (Vec::new(), None);
    let result = run(recipe, folder, &Device::default(), &options, &mut |event| {
        match event {
            Event::Step(Some(status)) => losses.push(status.loss.expect("it is logged")),
            Event::Validated(loss) => validation = Some(loss),
            Event::Warning(warning) => panic!("{warning}"),
            _ => {}
        }
        ControlFlow::Continue(())
    });
    result.unwrap_or_else(|error| panic!("{error}"));
    (losses, validation)
}

fn close(one: f64, other: f64) -> bool {
    (one - other).abs() <= 1e-6 * other.abs().max(1.0)
}

/// Names and contents of the files of a cache.
fn files(folder: &Path) -> Vec<(String, Vec<u8>)> {
    let entries = fs::read_dir(folder).expect("a folder");
    let mut files: Vec<_> = entries
        .map(|entry| {
            let path = entry.expect("an entry").path();
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            (name.into_owned(), fs::read(&path).expect("a file"))
        })
        .collect();
    files.sort();
    files
}

#[test]
fn training_from_a_cache_is_training_from_frames() {
    let _guard = alone();
    let folder = tempfile::tempdir().expect("a folder");
    let clips = data(folder.path());
    let stage_1: &dyn Fn(&[&str]) -> Recipe = &|changes| diffusion(&clips, changes);
    let stage_2: &dyn Fn(&[&str]) -> Recipe = &|changes| {
        let all: Vec<&str> = STAGE_2.iter().chain(changes).copied().collect();
        diffusion(&clips, &all)
    };
    let variational: &dyn Fn(&[&str]) -> Recipe = &|changes| {
        let all = ["model.tokenizer.resampler.variational=true"];
        stage_2(&all.iter().chain(changes).copied().collect::<Vec<_>>())
    };
    let reading: &dyn Fn(&[&str]) -> Recipe = &|changes| language(&clips, changes);
    let captions: &dyn Fn(&[&str]) -> Recipe = &|changes| {
        let all = [
            "frozen=[\"tokenizer.vision\", \"llm\"]",
            "model.start={\"tokenizer.vision\"=\"random\", llm=\"random\"}",
        ];
        language(
            &clips,
            &all.iter().chain(changes).copied().collect::<Vec<_>>(),
        )
    };
    let adaptation: &dyn Fn(&[&str]) -> Recipe = &|changes| {
        let all = [
            "frozen=[\"tokenizer\", \"llm\", \"detokenizer.vae\"]",
            "model.start={tokenizer=\"random\", llm=\"random\", \"detokenizer.vae\"=\"random\"}",
            "objective={kind=\"adaptation\", dropped=0.4, sampling_steps=2}",
            "data.0.task=generation",
        ];
        language(
            &clips,
            &all.iter().chain(changes).copied().collect::<Vec<_>>(),
        )
    };
    for (name, recipe) in [
        ("stage 1", stage_1),
        ("stage 2", stage_2),
        ("variational", variational),
        ("reading", reading),
        ("captions", captions),
        ("adaptation", adaptation),
    ] {
        let to = folder.path().join(name);
        let made = make(&recipe(&[]), &to, &options()).expect("it is made");
        let [cached] = &made[..] else {
            panic!("one source: {made:?}")
        };
        let (expected, measured) = losses(&recipe(&[]), &to.join("frames"));
        let (found, validated) = losses(&recipe(&[&from(cached)]), &to.join("stored"));
        assert_eq!(expected.len(), 3);
        for (found, expected) in found.iter().zip(&expected) {
            assert!(close(*found, *expected), "{name}: {found} {expected}");
        }
        // Validation draws other clips, but has as many.
        assert_eq!(validated.is_some(), measured.is_some());
        assert!(validated.is_none_or(f64::is_finite));
    }
}

#[test]
fn a_cache_of_patch_tokens_serves_a_frozen_tokenizer() {
    let _guard = alone();
    let folder = tempfile::tempdir().expect("a folder");
    let clips = data(folder.path());
    let stage_2 = |changes: &[&str]| {
        let all: Vec<&str> = STAGE_2.iter().chain(changes).copied().collect();
        diffusion(&clips, &all)
    };
    let made = make(&diffusion(&clips, &[]), folder.path(), &options()).expect("it is made");
    let (expected, _) = losses(&stage_2(&[]), &folder.path().join("frames"));
    let (found, _) = losses(&stage_2(&[&from(&made[0])]), &folder.path().join("stored"));
    for (found, expected) in found.iter().zip(&expected) {
        assert!(close(*found, *expected), "{found} {expected}");
    }
    // But tokens do not serve one that is trained.
    let to = folder.path().join("tokens");
    let made = make(&stage_2(&[]), &to, &options()).expect("it is made");
    let recipe = diffusion(&clips, &[&from(&made[0])]);
    let error = Trainer::new(&recipe, &Device::default()).err();
    let error = error.expect("it is refused").to_string();
    assert!(error.contains("needs patches"), "{error}");
}

#[test]
fn a_cache_that_was_interrupted_goes_on() {
    let _guard = alone();
    let folder = tempfile::tempdir().expect("a folder");
    let clips = data(folder.path());
    let recipe = diffusion(&clips, &["micro_batch=1"]);
    let [whole, parts] = ["whole", "parts"].map(|name| folder.path().join(name));
    let options = CacheOptions {
        clips_per_sample: 2,
        ..options()
    };
    let made = make(&recipe, &whole, &options).expect("it is made");
    // Five clips twice, and a file that is none.
    assert_eq!(made[0].clips, 10);

    let kept = |folder: &Path| -> Vec<(String, Vec<u8>)> {
        let mut shards = files(&folder.join("data-0"));
        shards.retain(|(name, _)| name.starts_with("shard-"));
        shards
    };
    let all = kept(&whole);
    assert!(all.len() >= 8, "{}", all.len());
    // A killed process leaves whole shards, perhaps arrays without their lines, and a temporary file.
    let killed = parts.join("data-0");
    fs::create_dir_all(&killed).expect("a folder");
    for (name, content) in &files(&whole.join("data-0")) {
        if name == "manifest.json" || name < &"shard-00002".to_owned() {
            fs::write(killed.join(name), content).expect("a file");
        }
    }
    fs::write(killed.join("shard-00002.safetensors"), b"half").expect("a file");
    fs::write(killed.join(".divot-abc.tmp"), b"half").expect("a file");
    let before = killed.join("shard-00001.safetensors");
    let time = before.metadata().and_then(|info| info.modified());
    let mut first = None;
    let made = cache(
        &recipe,
        &parts,
        &Device::default(),
        &options,
        &mut |status| {
            first.get_or_insert(status.done);
            ControlFlow::Continue(())
        },
    );
    made.expect("it goes on");
    assert!(first.expect("it is told") > 0);
    assert_eq!(kept(&parts), all);
    let now = before.metadata().and_then(|info| info.modified());
    assert_eq!(time.expect("a time"), now.expect("a time"));
    assert!(!killed.join(".divot-abc.tmp").exists());

    // A stop keeps what was computed.
    let stopped = folder.path().join("stopped");
    let stop = cache(
        &recipe,
        &stopped,
        &Device::default(),
        &options,
        &mut |status| match status.done {
            5 => ControlFlow::Break(()),
            _ => ControlFlow::Continue(()),
        },
    );
    assert!(matches!(stop, Err(Error::Stopped)), "{stop:?}");
    let error = losses_error(&diffusion(
        &clips,
        &[&format!(
            "data.0.source={{format=\"cache\", path={:?}}}",
            stopped.join("data-0")
        )],
    ));
    assert!(error.contains("5 of 12"), "{error}");
    let made = make(&recipe, &stopped, &options).expect("it goes on");
    assert_eq!(made[0].clips, 10);
}

/// Why a run cannot begin.
fn losses_error(recipe: &Recipe) -> String {
    let folder = tempfile::tempdir().expect("a folder");
    let options = RunOptions {
        resume: false,
        allow_changes: false,
        workers: 1,
        ..RunOptions::default()
    };
    let device = Device::default();
    let result = run(recipe, folder.path(), &device, &options, &mut |_| {
        ControlFlow::Continue(())
    });
    let text = result.expect_err("it is refused").to_string();
    assert_eq!(text.lines().count(), 1, "{text}");
    text
}

#[test]
fn caches_that_are_stale_or_damaged_are_named() {
    let _guard = alone();
    let folder = tempfile::tempdir().expect("a folder");
    let clips = data(folder.path());
    let to = folder.path().join("cache");
    let made = make(&diffusion(&clips, &[]), &to, &options()).expect("it is made");
    let source = from(&made[0]);

    // Made anew of something else.
    for (changes, what) in [
        (&["seed=1"][..], "`seed` was 0 and is 1"),
        (
            &["data.0.source.filter.min_side=17"],
            "min_side` was 16 and is 17",
        ),
        (
            &STAGE_2,
            "stored` was logvar, mean, patches and is logvar, mean, tokens",
        ),
    ] {
        let result = make(&diffusion(&clips, changes), &to, &options());
        let error = result.expect_err("it is refused").to_string();
        assert!(error.contains(what), "{changes:?}: {error}");
    }
    let half = CacheOptions {
        element: ElementType::F16,
        ..options()
    };
    let error = make(&diffusion(&clips, &[]), &to, &half).expect_err("it is refused");
    assert!(error.to_string().contains("was f32 and is f16"), "{error}");

    // Read by other networks: a random vision tower is another one with another seed.
    for (change, what) in [
        ("seed=1", "other weights or sizes of `tokenizer.vision`"),
        ("model.tokenizer.vision.heads=4", "`tokenizer.vision`"),
        ("model.tokenizer.frame_size=64", "32 pixels a side"),
        (
            "frozen=[\"tokenizer.vision\"]",
            "does not hold `detokenizer.vae`",
        ),
    ] {
        let change = match change.contains("frame_size") {
            true => vec![change, "model.detokenizer.latent_size=[16, 16]"],
            false => vec![change],
        };
        let all: Vec<&str> = [&*source].into_iter().chain(change).collect();
        let error = losses_error(&diffusion(&clips, &all));
        assert!(error.contains(what), "{all:?}: {error}");
    }

    // A shard that was cut short.
    let shard = made[0].folder.join("shard-00001.safetensors");
    let content = fs::read(&shard).expect("a shard");
    fs::write(&shard, &content[..content.len() - 4]).expect("a shard");
    let error = losses_error(&diffusion(&clips, &[&source]));
    assert!(
        error.contains("shard-00001.safetensors: is truncated"),
        "{error}"
    );
    let result = make(&diffusion(&clips, &[]), &to, &options());
    let error = result.expect_err("it is refused").to_string();
    assert!(
        error.contains("shard-00001.safetensors: is truncated"),
        "{error}"
    );
    fs::write(&shard, content).expect("a shard");
    fs::remove_file(made[0].folder.join("shard-00001.jsonl")).expect("a shard");
    let error = losses_error(&diffusion(&clips, &[&source]));
    assert!(error.contains("shard-00001.jsonl: is missing"), "{error}");
}

/// What a cache lacks is named: the tokens of images are of their first frame alone, and videos have no text, which only
/// the source that was cached tells.
#[test]
fn what_a_cache_lacks_is_told() {
    let _guard = alone();
    let folder = tempfile::tempdir().expect("a folder");
    let clips = data(folder.path());
    let to = folder.path().join("cache");
    let made = make(&diffusion(&clips, &STAGE_2), &to, &options()).expect("it is made");
    let source = from(&made[0]);
    let images = [STAGE_2[0], STAGE_2[1], &source, "objective.frames=1"];
    let error = losses_error(&diffusion(&clips, &images));
    assert!(error.contains("this recipe needs patches"), "{error}");

    let joint = ["objective.text_weight=1.0", &source];
    let refused = recipe(&head(&clips), &joint).expect_err("it is refused");
    let refused = refused.to_string();
    assert!(refused.contains("needs a source with text"), "{refused}");
}

#[test]
fn what_cannot_be_cached_is_told() {
    let _guard = alone();
    let folder = tempfile::tempdir().expect("a folder");
    let clips = data(folder.path());
    let to = folder.path().join("cache");
    for (changes, what) in [
        (
            &["objective={kind=\"autoencoder\"}", "frozen=[]"][..],
            "learns from frames",
        ),
        (&["frozen=[]"], "`tokenizer.vision`, whose outputs change"),
        (
            &["data.0.source={format=\"cache\", path=\"x\"}"],
            "is a cache already",
        ),
        (&["data.0.source.path=\"nowhere\""], "nowhere"),
    ] {
        let result = make(&diffusion(&clips, changes), &to, &options());
        let error = result.expect_err("it is refused").to_string();
        assert_eq!(error.lines().count(), 1, "{error}");
        assert!(error.contains(what), "{changes:?}: {error}");
        assert!(!to.exists(), "{changes:?}");
    }
}

/// Half precision changes losses little, and takes half the room.
#[test]
fn numbers_may_be_stored_in_half_precision() {
    let _guard = alone();
    let folder = tempfile::tempdir().expect("a folder");
    let clips = data(folder.path());
    let (expected, _) = losses(&diffusion(&clips, &[]), &folder.path().join("frames"));
    let mut sizes = Vec::new();
    for (element, tolerance) in [
        (ElementType::F32, 1e-6),
        (ElementType::F16, 2e-3),
        (ElementType::Bf16, 2e-2),
    ] {
        let to = folder.path().join(element.name());
        let options = CacheOptions {
            element,
            ..CacheOptions::default()
        };
        let made = make(&diffusion(&clips, &[]), &to, &options).expect("it is made");
        let recipe = diffusion(&clips, &[&from(&made[0])]);
        let (found, _) = losses(&recipe, &to.join("run"));
        for (found, expected) in found.iter().zip(&expected) {
            assert!(
                (found / expected - 1.0).abs() < tolerance,
                "{found} {expected}"
            );
        }
        let shards = files(&made[0].folder);
        let arrays = shards
            .iter()
            .filter(|(name, _)| name.ends_with(".safetensors"));
        sizes.push(arrays.map(|(_, content)| content.len()).sum::<usize>());
    }
    assert!(
        sizes[1] < sizes[0] * 6 / 10 && sizes[1] == sizes[2] || sizes[1].abs_diff(sizes[2]) < 64
    );
}
