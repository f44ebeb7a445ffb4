//! Every recipe of the examples at toy size, one after another as a user goes from vision tower to story, on files
//! that are made here; those of divot-tiny on its world. And every format of data.

#[path = "train/common.rs"]
mod common;

use std::collections::{BTreeMap, HashSet};
use std::fs;
use std::io::Write;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use burn::tensor::Device;
use common::{STEPS, samples, toy};
use divot::data::dataset::{Sample, Samples, Source};
use divot::data::{write_gif, write_mp4, write_png};
use divot::language::TextTokenizer;
use divot::weights::StoredType;
use divot_train::checkpoint::{self, State};
use divot_train::{CacheOptions, Event, Recipe, RunOptions, Trainer, Weights, cache, export, run};
use flate2::Compression;
use flate2::write::GzEncoder;
use tempfile::TempDir;
use toml::Table;

const RECIPES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../examples/recipes");
const TEXT_TOKENIZER: &str = concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/../../tests/fixture/pretrained/cvlm_mistral_instruct_tokenizer"
);
/// Steps in which the loss on one batch falls to half.
const STEPS_TO_HALF: usize = 30;
/// What makes a batch learned fast.
const FAST: [&str; 3] = ["rate.peak=3e-3", "rate.warmup=0", "rate.decay=constant"];

/// First weights are drawn by the device, whose generator all tests of a process share, and paths of recipes are
/// relative to the current folder, which they share too: each test holds this from its first line.
fn alone() -> MutexGuard<'static, ()> {
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner)
}

fn text(path: &str, content: impl AsRef<[u8]>) {
    fs::create_dir_all(Path::new(path).parent().expect("a folder")).expect("a folder");
    fs::write(path, content).expect("a file");
}

const CAPTIONS: [&str; 4] = [
    "a red square moves",
    "the blue box goes right",
    "green on grey",
    "here is something else",
];

/// Makes a folder with everything that the recipes name the current one.
fn workplace() -> TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    std::env::set_current_dir(folder.path()).expect("it is there");
    for name in [
        "clips",
        "images",
        "questions",
        "models/divot/llm-generation",
    ] {
        fs::create_dir_all(name).expect("a folder");
    }
    let text_tokenizer = TextTokenizer::open(Path::new(TEXT_TOKENIZER)).expect("the fixture");
    let saved = text_tokenizer.save(Path::new("models/divot/llm-generation/tokenizer.json"));
    saved.expect("a text tokenizer");

    let mut captions = String::new();
    let mut images = String::new();
    for (number, sample) in samples(4, 112).iter().enumerate() {
        let frames = sample.clips[0].frames();
        let caption = CAPTIONS[number];
        for folder in ["clips", "questions"] {
            write_mp4(format!("{folder}/{number}.mp4"), frames, 8.0).expect("a clip");
        }
        write_png(format!("images/{number}.png"), &frames[5]).expect("a picture");
        captions += &format!("{{\"video\": \"{number}.mp4\", \"caption\": \"{caption}\"}}\n");
        let either = format!("[\"{caption}\", \"in other words, {caption}\"]");
        images += &format!("{{\"image\": \"{number}.png\", \"caption\": {either}}}\n");
    }
    text("clips/captions.jsonl", captions);
    text("images/captions.jsonl", images);
    let clip = samples(1, 112).remove(0).clips.remove(0);
    write_png("questions/0.png", &clip.frames()[0]).expect("a picture");
    write_gif("questions/0.gif", clip.frames(), 8.0).expect("an animation");
    text(
        "questions/videos.jsonl",
        r#"{"video": "0.mp4", "question": "<video>\nWhat is it?", "answer": "A square."}
{"video": "1.mp4", "questions": ["What is it?", "Which way?"], "answers": ["A box.", "To the right."]}
{"video": "0.gif", "data": ["What is it?", "A square.", "Does it move?", "Yes."]}
"#,
    );
    text(
        "questions/images.jsonl",
        r#"{"image": "0.png", "question": "What is it?", "answer": "A picture."}
{"image": "0.png", "data": ["Is it red?", "No."]}
"#,
    );
    text(
        "stories.jsonl",
        r#"{"instruction": "Tell a story.", "scenes": [{"video": "clips/0.mp4", "start": 0.0, "text": "A square wakes up."}, {"video": "clips/1.mp4", "text": "It leaves."}], "ending": "The end."}
{"scenes": [{"video": "clips/2.mp4", "start": 0.0, "end": 2.0, "text": "Another one."}]}
"#,
    );
    folder
}

fn read(path: &Path, changes: &[String], more: &[&str]) -> Recipe {
    let more = more.iter().map(|change| (*change).to_owned());
    let changes: Vec<String> = changes.iter().cloned().chain(more).collect();
    Recipe::read(path, &changes).unwrap_or_else(|error| panic!("{error}"))
}

/// Runs a recipe. Checks that every loss is finite and that every sample was of use.
fn train(recipe: &Recipe, folder: &Path) -> State {
    let options = RunOptions {
        resume: false,
        allow_changes: false,
        workers: 2,
        ..RunOptions::default()
    };
    let name = &recipe.name;
    let (mut losses, mut validated) = (Vec::new(), 0);
    let state = run(recipe, folder, &Device::default(), &options, &mut |event| {
        match event {
            Event::Step(status) => {
                losses.push(
                    status
                        .and_then(|status| status.loss)
                        .expect("every step is logged"),
                );
            }
            Event::Validated(loss) => {
                assert!(loss.is_finite(), "{name}: a validation loss of {loss}");
                validated += 1;
            }
            Event::Warning(warning) => panic!("{name}: {warning}"),
            Event::Resumed(_) => panic!("{name}: nothing to resume"),
        }
        ControlFlow::Continue(())
    });
    let state = state.unwrap_or_else(|error| panic!("{name}: {error}"));
    let settings = &recipe.settings;
    assert_eq!(losses.len(), settings.steps, "{name}");
    assert!(
        losses.iter().all(|loss| loss.is_finite()),
        "{name}: {losses:?}"
    );
    assert_eq!(state.step, settings.steps, "{name}");
    assert_eq!(state.not_finite, 0, "{name}");
    assert!(!folder.join("skipped.jsonl").exists(), "{name}");
    if let Some(times) = settings.steps.checked_div(settings.validation.every) {
        assert_eq!(validated, times, "{name}");
    }
    let metrics = fs::read_to_string(folder.join("metrics.jsonl")).expect("metrics");
    let logged = metrics
        .lines()
        .filter(|line| line.contains("\"train/loss\":"));
    assert_eq!(logged.count(), settings.steps, "{name}");
    let newest = checkpoint::newest(folder)
        .expect("readable")
        .expect("a checkpoint");
    assert_eq!(newest.step, settings.steps, "{name}");
    state
}

/// A run that is stopped, and goes on with another number of workers, ends where one without a stop ended, to the bit.
fn goes_on(recipe: &Recipe, whole: &Path) {
    let folder = PathBuf::from(format!("{}-again", whole.display()));
    let mut options = RunOptions {
        resume: false,
        ..RunOptions::default()
    };
    for stop in [7, usize::MAX] {
        let mut steps = 0;
        let watch = &mut |event: Event<'_>| {
            steps += usize::from(matches!(event, Event::Step(_)));
            match steps == stop {
                true => ControlFlow::Break(()),
                false => ControlFlow::Continue(()),
            }
        };
        match run(recipe, &folder, &Device::default(), &options, watch) {
            Ok(_) => {}
            Err(divot_train::Error::Stopped) => assert_eq!(steps, stop),
            Err(error) => panic!("{}: {error}", recipe.name),
        }
        options.resume = true;
        options.workers = 1;
    }
    let newest = |folder: &Path| {
        let newest = checkpoint::newest(folder).expect("readable");
        newest.expect("a checkpoint").folder().to_owned()
    };
    let (whole, again) = (newest(whole), newest(&folder));
    for file in fs::read_dir(&whole).expect("its folder") {
        let name = file.expect("a file").file_name();
        let [whole, again] = [&whole, &again].map(|of| fs::read(of.join(&name)).expect("a file"));
        assert!(whole == again, "{}: {name:?} differs", recipe.name);
    }
}

/// A batch of a recipe's first source.
fn batch(recipe: &Recipe) -> Vec<Sample> {
    let data = &recipe.settings.data[0];
    let reader = recipe.model.tokenizer.clip_reader();
    let source = Source::open(&data.source, &reader).expect("a source");
    let count = data.batch.unwrap_or(recipe.settings.batch);
    let read = |index| {
        source
            .read(index % source.len(), &mut || 0.5)
            .expect("a sample")
    };
    (0..count).map(read).collect()
}

/// The loss on one batch falls to half within so many steps.
fn learn(recipe: &Recipe, steps: usize) {
    let name = &recipe.name;
    let batch = batch(recipe);
    let trainer = Trainer::new(recipe, &Device::default());
    let mut trainer = trainer.unwrap_or_else(|error| panic!("{name}: {error}"));
    let mut loss = || trainer.step(0, 0, &batch).expect("a step").losses.loss();
    let first = loss();
    // The likelihood of features is a density, so that a loss may be below 0.
    let half = first - first.abs() / 2.0;
    let mut losses = (1..steps).map(|_| loss());
    let found = losses.position(|loss| loss < half);
    let found = found.unwrap_or_else(|| panic!("{name}: over {half} for {steps} steps"));
    println!("{name}: {first:.4} falls to half in {} steps", found + 2);
}

#[test]
fn every_recipe_trains_in_the_order_in_which_they_need_each_other() {
    let _alone = alone();
    let _folder = workplace();
    let mut left: BTreeMap<String, (PathBuf, Table)> = fs::read_dir(RECIPES)
        .expect("the recipes")
        .map(|entry| entry.expect("an entry").path())
        .filter(|path| path.is_file())
        .map(|path| {
            let text = fs::read_to_string(&path).expect("a recipe");
            let name = path
                .file_stem()
                .expect("a name")
                .to_string_lossy()
                .into_owned();
            (name, (path, toml::from_str(&text).expect("TOML")))
        })
        .collect();
    assert!(left.len() >= 21, "{:?}", left.keys());

    while !left.is_empty() {
        let before = left.len();
        left.retain(|name, (path, table)| {
            let changes = toy(table);
            let recipe = read(path, &changes, &[]);
            let mut starts = recipe
                .start
                .iter()
                .filter_map(|start| start.folder.as_ref());
            if !starts.all(|folder| folder.exists()) {
                return true;
            }
            let folder = Path::new("outputs").join(name);
            train(&recipe, &folder);
            // One of each objective; stage 1 and the autoencoder are in other tests.
            if [
                "vision",
                "stage0",
                "pretrain",
                "story",
                "tokenizer-caption",
                "adapt",
            ]
            .contains(&name.as_str())
            {
                goes_on(&recipe, &folder);
            }
            // These make clips for a person to see.
            let sheet = folder.join(format!("samples/step-{STEPS:08}-samples.png"));
            let clips = ["stage0", "stage1", "stage2", "adapt"];
            if clips.contains(&name.as_str()) {
                assert!(sheet.exists(), "{name} shows nothing");
                assert!(sheet.with_extension("gif").exists(), "{name}");
            }
            if name == "stage1" {
                let stage0 = "model.start.\"detokenizer.unet\"=\"outputs/stage0\"";
                let recipe = read(path, &changes, &[stage0]);
                train(&recipe, Path::new("outputs/stage1-of-stage0"));
            }
            if ["story", "tune-generation"].contains(&name.as_str()) {
                // With a de-tokenizer, what is generated is shown.
                let changes = [
                    "frozen=[\"tokenizer\", \"detokenizer\"]",
                    "model.start.detokenizer=\"outputs/stage2\"",
                    "objective.sampling_steps=2",
                ];
                let shown = PathBuf::from(format!("{}-shown", folder.display()));
                train(&read(path, &toy(table), &changes), &shown);
                let sheet = sheet.strip_prefix(&folder).expect("a file of the run");
                assert!(shown.join(sheet).exists(), "{name} shows nothing");
                let to = Path::new("models").join(&shown);
                let parts = export(
                    &shown,
                    &to,
                    Weights::Best,
                    StoredType::F32,
                    &Device::default(),
                );
                // The de-tokenizer is another run's.
                assert_eq!(parts.expect("a model").len(), 2, "{name}");
            }
            if name == "story" {
                // An exported model has its text tokenizer beside it.
                let recipe = read(
                    path,
                    &changes,
                    &["model.start.llm=\"models/tune-generation\""],
                );
                let text = recipe.settings.model.text_tokenizer;
                let text = text.expect("that of the model");
                assert!(text.starts_with("models/tune-generation"), "{text:?}");
            }
            if name == "pretrain" {
                let lora = "model.llm.lora={rank=4, alpha=4.0, dropout=0.1, targets=[\"q_proj\"], \
                            train_norms=true, train_embeddings=true}";
                let recipe = read(path, &changes, &[lora, "gradient_checkpointing=true"]);
                let folder = Path::new("outputs/pretrain-lora");
                train(&recipe, folder);
                goes_on(&recipe, folder);
            }

            let exported = export(
                &folder,
                &Path::new("models").join(name),
                Weights::Best,
                StoredType::F32,
                &Device::default(),
            );
            match name.as_str() {
                // Towers and autoencoders are parts of parts.
                "vision" | "vae" => {
                    let error = exported.expect_err("no model").to_string();
                    assert!(error.contains("no part of a model by itself"), "{error}");
                }
                _ => {
                    let folders = exported.unwrap_or_else(|error| panic!("{name}: {error}"));
                    assert!(!folders.is_empty(), "{name}");
                }
            }
            if name != "tokenizer-caption" {
                learn(&read(path, &changes, &FAST), STEPS_TO_HALF);
            }
            false
        });
        assert!(
            left.len() < before,
            "what these start from is made by none: {:?}",
            left.keys()
        );
    }
}

/// The stages of divot-tiny follow each other at their own sizes, on a few samples of the world.
#[test]
fn the_recipes_of_divot_tiny_fit_together() {
    let _alone = alone();
    let folder = tempfile::tempdir().expect("a folder");
    std::env::set_current_dir(folder.path()).expect("it is there");
    fs::create_dir_all("outputs/tiny").expect("a folder");
    let text = TextTokenizer::open(Path::new(TEXT_TOKENIZER)).expect("the fixture");
    let saved = text.save(Path::new("outputs/tiny/tokenizer.json"));
    saved.expect("a text tokenizer");

    let stages = [
        "vae",
        "vision",
        "stage0",
        "stage1-images",
        "stage1-places",
        "vision-shapes",
        "stage1",
        "language",
        "tokenizer-questions",
        "stage1-joint",
        "cache-captions",
        "cache-turns",
        "stage2",
        "pretrain",
        "tune-comprehension",
        "tune-generation",
        "story",
        "adapt",
    ];
    for name in stages {
        let path = Path::new(RECIPES).join(format!("tiny/{name}.toml"));
        let table: Table =
            toml::from_str(&fs::read_to_string(&path).expect("a recipe")).expect("TOML");
        let few = few_samples(&table);
        let recipe = read(&path, &few, &[]);
        let folder = Path::new("outputs/tiny").join(name);
        if name.starts_with("cache") {
            let options = CacheOptions::default();
            let watch = &mut |_: &_| ControlFlow::Continue(());
            let made = cache(&recipe, &folder, &Device::default(), &options, watch);
            made.unwrap_or_else(|error| panic!("{name}: {error}"));
        } else {
            train(&recipe, &folder);
        }
    }
    assert_eq!(
        fs::read_dir(Path::new(RECIPES).join("tiny"))
            .expect("recipes")
            .count(),
        stages.len()
    );

    let export_to = |name: &str, model: &str| {
        let run = Path::new("outputs/tiny").join(name);
        let cpu = Device::default();
        let stored = StoredType::F32;
        export(&run, Path::new(model), Weights::Best, stored, &cpu).expect("a model")
    };
    for name in ["stage2", "tune-comprehension", "adapt"] {
        export_to(name, "model");
    }
    // The formats of cached sources say that it learned generation only.
    let told = export_to("story", "told");
    assert!(
        told.contains(&PathBuf::from("told/llm-generation")),
        "{told:?}"
    );
    for part in [
        "tokenizer",
        "detokenizer",
        "detokenizer-adapted",
        "llm-comprehension",
        "llm-generation",
    ] {
        assert!(
            Path::new("model")
                .join(part)
                .join("model.safetensors")
                .exists(),
            "{part}"
        );
    }
}

/// What makes a recipe of the world twenty steps of a few samples.
fn few_samples(recipe: &Table) -> Vec<String> {
    let mut changes: Vec<String> = [
        "steps=20",
        "batch=2",
        "rate.warmup=0",
        "log_every=1",
        "validation.every=20",
        "validation.batches=1",
        "checkpoints.every=20",
    ]
    .map(str::to_owned)
    .into();
    if matches!(
        recipe["objective"]["kind"].as_str(),
        Some("diffusion" | "adaptation")
    ) {
        changes.push("objective.sampling_steps=2".to_owned());
    }
    for (key, data) in [
        ("data", &recipe["data"]),
        ("validation.data", &recipe["validation"]["data"]),
    ] {
        for (number, data) in data.as_array().expect("sources").iter().enumerate() {
            if data.get("batch").is_some() {
                changes.push(format!("{key}.{number}.batch=2"));
            }
            if data["source"].get("world").is_some() {
                changes.push(format!("{key}.{number}.source.world.count=4"));
            }
        }
    }
    changes
}

/// A language model that was trained on captions tells a tokenizer that it does not know what to say.
#[test]
fn a_tokenizer_learns_from_captions_through_a_trained_language_model() {
    let _alone = alone();
    let _folder = workplace();
    let toy_recipe = |name: &str, more: &[&str]| {
        let path = Path::new(RECIPES).join(name);
        let text = fs::read_to_string(&path).expect("a recipe");
        let changes = toy(&toml::from_str(&text).expect("TOML"));
        read(&path, &changes, &[&FAST, more].concat())
    };
    let captions = "data=[{source={format=\"captions\", path=\"clips/captions.jsonl\"}, \
                    task=\"comprehension\"}]";
    let start = "model.start={tokenizer=\"random\"}";
    let more = [captions, start, "batch=4", "steps=80", "validation.every=0"];
    train(
        &toy_recipe("pretrain.toml", &more),
        Path::new("outputs/pretrain"),
    );
    let start = "model.start.\"tokenizer.vision\"=random";
    let more = [start, "seed=7", "batch=4"];
    learn(&toy_recipe("tokenizer-caption.toml", &more), 60);
}

/// Files in the formats that no recipe of the examples names.
fn other_formats() {
    let clip = samples(1, 112).remove(0).clips.remove(0);
    let twice = [clip.frames(), clip.frames()].concat();
    for folder in ["table", "table/000001_000050"] {
        fs::create_dir_all(folder).expect("a folder");
        write_mp4(format!("{folder}/aB3.mp4"), &twice, 8.0).expect("a clip");
    }
    text(
        "table/webvid.csv",
        "videoid,contentUrl,duration,page_dir,name\naB3,https://example.org/1.mp4,PT00H00M04S,000001_000050,\
         \"A square, moving.\"\n",
    );
    text(
        "table/msrvtt.csv",
        "video_id,caption\naB3,a square moves\naB3,something moves\n",
    );
    text(
        "table/msrvtt.json",
        r#"{"sentences": [{"video_id": "aB3", "caption": "a square moves", "sen_id": 1}]}"#,
    );
    text(
        "table/panda.csv",
        "videoID,url,timestamp,caption\naB3,https://example.org/aB3,\"[['0:00:00.000', '0:00:02.000'], \
         ['0:00:02.000', '0:00:04.000']]\",\"['A square moves.', 'It moves again.']\"\n",
    );
    fs::create_dir("shards").expect("a folder");
    write_png(
        "shards/picture.png",
        &samples(1, 200)[0].clips[0].frames()[0],
    )
    .expect("a picture");
    let picture = fs::read("shards/picture.png").expect("a picture");
    let video = fs::read("table/aB3.mp4").expect("a video");
    let animation = fs::read("questions/0.gif").expect("an animation");
    let archive = |number: usize| {
        let mut archive = tar::Builder::new(Vec::new());
        let files: [(&str, &[u8]); 6] = [
            ("a.png", &picture),
            ("a.txt", b"a picture"),
            ("b.json", br#"{"caption": ["a video", "a clip"]}"#),
            ("b.mp4", &video),
            ("c.gif", &animation),
            ("c.txt", b"an animation"),
        ];
        for (name, content) in files {
            let mut header = tar::Header::new_gnu();
            header.set_size(content.len() as u64);
            let name = format!("{number}/{name}");
            archive
                .append_data(&mut header, name, content)
                .expect("a file");
        }
        archive.into_inner().expect("an archive")
    };
    for number in 0..3 {
        fs::write(format!("shards/{number:02}.tar"), archive(number)).expect("an archive");
    }
    fs::create_dir("packed").expect("a folder");
    let mut packed = GzEncoder::new(Vec::new(), Compression::fast());
    packed.write_all(&archive(7)).expect("it is in memory");
    fs::write("packed/7.tar.gz", packed.finish().expect("an archive")).expect("an archive");
}

#[test]
fn every_format_is_learned_from() {
    let _alone = alone();
    let _folder = workplace();
    other_formats();
    let path = Path::new(RECIPES).join("pretrain.toml");
    let pretrain = fs::read_to_string(&path).expect("a recipe");
    let mut changes = toy(&toml::from_str(&pretrain).expect("TOML"));
    changes.retain(|change| !change.starts_with("data."));
    changes.push("model.start={tokenizer=\"random\"}".to_owned());

    let mut sources = Vec::new();
    for (format, paths, count) in [
        ("captions", r#"["clips/captions.jsonl", "images"]"#, 8),
        ("csv", "\"table/webvid.csv\"", 1),
        ("csv", "\"table/msrvtt.csv\"", 2),
        ("csv", "\"table/msrvtt.json\"", 1),
        ("panda", "\"table/panda.csv\"", 2),
        ("webdataset", "\"shards\"", 9),
        ("webdataset", "\"shards/{00..01}.tar\"", 6),
        ("webdataset", r#"["packed/7.tar.gz", "shards/02.tar"]"#, 6),
        ("questions", "\"questions/videos.jsonl\"", 3),
        ("questions", "\"questions/images.jsonl\"", 2),
        ("story", "\"stories.jsonl\"", 2),
    ] {
        let source = format!("source={{format=\"{format}\", path={paths}}}");
        // Each sample once in a step.
        let one = format!("data=[{{{source}, batch={count}}}]");
        let mut recipe = read(&path, &changes, &[&one, "steps=3", "validation.every=0"]);
        recipe.name = format!("{format} {paths}");
        let folder = Path::new("outputs").join(sources.len().to_string());
        let state = train(&recipe, &folder);
        assert_eq!(state.samples, 3 * count, "{}", recipe.name);
        let task = ["comprehension", "generation"][sources.len() % 2];
        sources.push(match format {
            "questions" | "story" => format!("{{{source}}}"),
            _ => format!("{{{source}, task=\"{task}\"}}"),
        });
    }
    let all = format!("data=[{}]", sources.join(", "));
    train(&read(&path, &changes, &[&all]), Path::new("outputs/all"));
}

/// A source that gives nothing to learn from ends the run, with the reason.
#[test]
fn a_source_of_which_nothing_fits_ends_the_run() {
    let _alone = alone();
    let _folder = workplace();
    let path = Path::new(RECIPES).join("tune-generation.toml");
    let table: Table = toml::from_str(&fs::read_to_string(&path).expect("a recipe")).expect("TOML");
    let text = "model.text_tokenizer=\"models/divot/llm-generation/tokenizer.json\"";
    let changes = [
        "model.start={tokenizer=\"random\"}",
        text,
        "data.0.max_length=9",
        "data.1.max_length=9",
        "batch=12",
    ];
    let recipe = read(&path, &toy(&table), &changes);
    let options = RunOptions::default();
    let quiet = &mut |_: Event<'_>| ControlFlow::Continue(());
    let folder = Path::new("outputs/nothing");
    let error = run(&recipe, folder, &Device::default(), &options, quiet).expect_err("it learned");
    let line = error.to_string();
    assert!(
        line.contains("captions.jsonl") && line.contains("in a row"),
        "{line}"
    );
    assert!(line.contains('9') && line.contains("max_length"), "{line}");

    // Each is named once, however often it came.
    let log = fs::read_to_string(folder.join("skipped.jsonl")).expect("a log");
    let (mut lines, count) = (log.lines(), log.lines().collect::<HashSet<_>>().len());
    assert!(lines.all(|line| line.contains("\"does_not_fit\"")), "{log}");
    assert_eq!(log.lines().count(), count, "{log}");
    assert!(count >= CAPTIONS.len(), "{log}");
}
