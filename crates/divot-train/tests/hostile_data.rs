//! Hostile data: a run goes on, counts exactly what it left out, takes no memory for it, and touches nothing else.

#[path = "train/common.rs"]
mod common;

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::mpsc::channel;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;

use burn::tensor::Device;
use common::{recipe, samples};
use divot::data::dataset::{Loader, LoaderConfig, MixedSource, Sample, Source, Text};
use divot::data::{Frame, write_mp4, write_png};
use divot::peak_memory;
use divot_train::{Event, Recipe, RunOptions, run};
use flate2::Compression;
use flate2::write::GzEncoder;
use serde_json::Value;

/// First weights are drawn by the device, whose generator all tests of a process share: each holds this from its
/// first line.
fn alone() -> MutexGuard<'static, ()> {
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner)
}

/// How often samples of a source are left out, by source and reason.
type Counts = BTreeMap<String, u64>;

fn counts(source: &Path, reasons: &[(&str, u64)]) -> Counts {
    let count = |(reason, count): &(&str, u64)| {
        let name = format!("skipped/{}: {reason}", source.display());
        (name, *count)
    };
    reasons.iter().map(count).collect()
}

/// The clip of a sample.
fn clip(number: usize) -> Vec<Frame> {
    samples(number + 1, 32)[number].clips[0].frames().to_vec()
}

/// A PNG file whose header says that it has a side of `side` pixels, and little else.
fn png(path: &Path, side: u32) {
    write_png(path, &Frame::filled(64, 64, [9; 3]).expect("a frame")).expect("a picture");
    let mut bytes = fs::read(path).expect("a picture");
    bytes[16..20].copy_from_slice(&side.to_be_bytes());
    bytes[20..24].copy_from_slice(&side.to_be_bytes());
    let mut sum = flate2::Crc::new();
    sum.update(&bytes[12..29]);
    bytes[29..33].copy_from_slice(&sum.sum().to_be_bytes());
    fs::write(path, bytes).expect("a picture");
}

/// An archive of samples, each a picture and a caption. Names are kept as they are.
fn archive(names: &[&str], captions: &[&[u8]], picture: &[u8]) -> Vec<u8> {
    let mut archive = tar::Builder::new(Vec::new());
    for (name, caption) in names.iter().zip(captions) {
        let kind = if caption.starts_with(b"{") {
            "json"
        } else {
            "txt"
        };
        let files = [
            (format!("{name}.png"), picture),
            (format!("{name}.{kind}"), *caption),
        ];
        for (name, content) in files {
            let mut header = tar::Header::new_gnu();
            header.set_size(content.len() as u64);
            header.set_mode(0o644);
            // The builder itself refuses names that climb out.
            header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
            header.set_cksum();
            archive.append(&header, content).expect("it is in memory");
        }
    }
    archive.into_inner().expect("an archive")
}

/// Everything below a folder, but for what vanishes: size and content.
fn everything(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        if path.is_symlink() {
            found.insert(path, Vec::new());
        } else if path.is_dir() {
            found.extend(everything(&path));
            found.insert(path, Vec::new());
        } else if path.file_stem().is_none_or(|name| name != "gone") {
            let content = fs::read(&path).expect("a file");
            found.insert(path, content);
        }
    }
    found
}

/// What was left out by the last line of a run's numbers, and by its log. Checks the log's lines.
fn left_out(folder: &Path) -> [Counts; 2] {
    let metrics = fs::read_to_string(folder.join("metrics.jsonl")).expect("metrics");
    let last: BTreeMap<String, Value> =
        serde_json::from_str(metrics.lines().next_back().expect("a line")).expect("JSON");
    let numbers = last
        .into_iter()
        .filter(|(name, _)| name.starts_with("skipped/"));
    let numbers = numbers.map(|(name, count)| (name, count.as_f64().expect("a number") as u64));

    let mut logged = Counts::new();
    for line in fs::read_to_string(folder.join("skipped.jsonl"))
        .expect("a log")
        .lines()
    {
        let line: Value = serde_json::from_str(line).expect("a line of JSON");
        let [source, key, reason, message] =
            ["source", "key", "reason", "message"].map(|name| line[name].as_str().expect("a text"));
        assert!(
            !key.is_empty() && !message.is_empty() && !message.contains('\n'),
            "{line}"
        );
        let reason = match reason {
            "passed_over" => "file passed over".to_owned(),
            reason => reason.replace('_', " "),
        };
        *logged
            .entry(format!("skipped/{source}: {reason}"))
            .or_default() += 1;
    }
    [numbers.collect(), logged]
}

/// Trains to the end. `watch` is told each step.
fn train(recipe: &Recipe, folder: &Path, mut watch: impl FnMut(usize)) {
    let options = RunOptions {
        resume: false,
        allow_changes: false,
        workers: 2,
        ..RunOptions::default()
    };
    let mut step = 0;
    let state = run(recipe, folder, &Device::default(), &options, &mut |event| {
        match event {
            Event::Step(status) => {
                let loss = status.and_then(|status| status.loss).expect("it is logged");
                assert!(loss.is_finite());
                step += 1;
                watch(step);
            }
            Event::Warning(warning) => panic!("{warning}"),
            _ => {}
        }
        ControlFlow::Continue(())
    });
    let state = state.unwrap_or_else(|error| panic!("{error}"));
    assert_eq!([state.step, state.not_finite], [recipe.settings.steps, 0]);
}

/// A folder of hostile files, and good ones between them.
struct Hostile {
    root: tempfile::TempDir,
}

impl Hostile {
    fn new() -> Self {
        let root = tempfile::tempdir().expect("a folder");
        let hostile = Self { root };
        let [videos, shards] = ["videos", "shards"].map(|name| hostile.path(name));
        for folder in [&videos, &shards] {
            fs::create_dir_all(folder).expect("a folder");
        }
        for number in 0..3 {
            let path = videos.join(format!("good{number}.mp4"));
            write_mp4(path, &clip(number), 8.0).expect("a clip");
        }
        write_mp4(videos.join("gone.mp4"), &clip(3), 8.0).expect("a clip");
        write_mp4(hostile.root.path().join("outside.mp4"), &clip(3), 8.0).expect("a clip");
        // An hour.
        let frames: Vec<Frame> = clip(0).into_iter().cycle().take(3600).collect();
        write_mp4(videos.join("hour.mp4"), &frames, 1.0).expect("a long clip");
        fs::write(videos.join("zero.mp4"), "").expect("a file");
        fs::write(videos.join("text.mp4"), "no video at all").expect("a file");
        // 100 megapixels, which are allowed and not there, and 10 gigapixels.
        png(&videos.join("large.png"), 10_000);
        png(&videos.join("huge.png"), 100_000);

        hostile.lines();
        hostile.archives(&shards);
        #[cfg(unix)]
        std::os::unix::fs::symlink(&videos, videos.join("round")).expect("a link");
        hostile
    }

    fn path(&self, name: &str) -> PathBuf {
        self.root.path().join("data").join(name)
    }

    fn lines(&self) {
        let line = |video: &str, caption: &str| {
            format!(r#"{{"video": "{video}", "caption": "{caption}"}}"#)
        };
        let lines = [
            line("good0.mp4", "sound"),
            "no JSON".to_owned(),
            r#"{"video": "good0.mp4", "caption": "cut"#.to_owned(),
            r#"{"video": "good0.mp4", "caption": "a", "caption": "b"}"#.to_owned(),
            r#"{"video": "good0.mp4", "video": "good1.mp4", "caption": "b"}"#.to_owned(),
            line("../../outside.mp4", "climbs"),
            line("/etc/passwd", "climbs"),
            line("none.mp4", "missing"),
            line("zero.mp4", "empty"),
            line("huge.png", "huge"),
            line("gone.mp4", "vanishes"),
            line("good1.mp4", &"word ".repeat(200_000)),
            line("good1.mp4", &"a".repeat(1_000_000)),
            line("good1.mp4", &"a".repeat(1 << 20)),
            line("good2.mp4", "sound"),
            line("hour.mp4", "an hour"),
        ];
        fs::write(self.path("captions.jsonl"), lines.join("\n")).expect("a file");
    }

    fn archives(&self, shards: &Path) {
        let picture = shards.join("picture.png");
        write_png(&picture, &Frame::filled(64, 64, [99; 3]).expect("a frame")).expect("a picture");
        let bytes = fs::read(&picture).expect("a picture");
        fs::remove_file(&picture).expect("a file");
        let write =
            |name: &str, content: &[u8]| fs::write(shards.join(name), content).expect("a file");

        let climbing = ["../../../outside", "/divot-outside", "a/../../b"];
        write(
            "climbing.tar",
            &archive(&climbing, &[b"x" as &[u8]; 3], &bytes),
        );
        let captions: [&[u8]; 4] = [
            b"{\"caption\": \"a\", \"caption\": \"b\"}",
            b"{\"caption\"",
            b"\xff\xfe",
            b"sound",
        ];
        write(
            "captions.tar",
            &archive(&["0", "1", "2", "3"], &captions, &bytes),
        );
        let three = archive(&["0", "1", "2"], &[b"x" as &[u8]; 3], &bytes);
        // Within the last picture.
        let end = (three.len() - 1024) / 3 * 2 + 600;
        write("truncated.tar", &three[..end]);
        let mut packed = GzEncoder::new(Vec::new(), Compression::none());
        packed.write_all(&three).expect("it is in memory");
        let packed = packed.finish().expect("an archive");
        write("truncated.tar.gz", &packed[..end + 100]);
        write("gone.tar", &three);
        write(
            "garbage.tar",
            &b"no archive, but more than a header has".repeat(30),
        );

        let mut looping = tar::Builder::new(Vec::new());
        for kind in [tar::EntryType::Symlink, tar::EntryType::Link] {
            for (name, target) in [("a.png", "a.png"), ("b.png", "c.png"), ("c.png", "b.png")] {
                let mut header = tar::Header::new_gnu();
                header.set_entry_type(kind);
                header.set_size(0);
                looping
                    .append_link(&mut header, name, target)
                    .expect("it is in memory");
            }
        }
        let mut looping = looping.into_inner().expect("an archive");
        // Without its end.
        looping.truncate(looping.len() - 1024);
        looping.extend(archive(&["a", "d"], &[b"x" as &[u8]; 2], &bytes));
        write("looping.tar", &looping);
    }
}

#[test]
fn a_run_goes_on_over_hostile_data() {
    let _alone = alone();
    let hostile = Hostile::new();
    let [videos, captions, shards] =
        ["videos", "captions.jsonl", "shards"].map(|name| hostile.path(name));
    // Batches as large as their sources: each sample is met whenever its source is.
    let source = |format: &str, path: &Path, batch: usize| {
        format!(
            "[[data]]\nsource = {{ format = {format:?}, path = {path:?}, media = {videos:?}, \
             filter = {{ min_side = 16 }} }}\nbatch = {batch}\n"
        )
    };
    let recipe_of = |steps: usize, sources: &[String]| {
        let head = format!(
            "steps = {steps}\nbatch = 1\nlog_every = 1\nrate.warmup = 1\nobjective.kind = \"autoencoder\"\n\
             validation.every = 0\n{}",
            sources.concat()
        );
        recipe(&head, &["model.start={}"]).expect("a valid recipe")
    };
    let runs = tempfile::tempdir().expect("a folder");
    let good = source("videos", &videos.join("good0.mp4"), 16);
    train(&recipe_of(3, &[good]), &runs.path().join("good"), |_| {});
    let before = (everything(hostile.root.path()), peak_memory());

    let (vanish, told) = channel();
    let gone = [videos.join("gone.mp4"), shards.join("gone.tar")];
    let deleting = thread::spawn(move || {
        told.recv().expect("the run takes steps");
        for path in gone {
            fs::remove_file(path).expect("a file");
        }
    });
    let sources = [
        source("videos", &videos, 9),
        source("captions", &captions, 16),
        source("webdataset", &shards, 17),
    ];
    let folder = runs.path().join("hostile");
    train(&recipe_of(30, &sources), &folder, |step| {
        if step == 3 {
            vanish.send(()).expect("the thread waits");
        }
    });
    deleting.join().expect("a thread");

    let expected: Counts = [
        counts(
            &videos,
            &[
                ("missing", 1),
                ("undecodable", 3),
                ("too large", 1),
                #[cfg(unix)]
                ("file passed over", 1),
            ],
        ),
        counts(
            &captions,
            &[
                ("malformed", 6),
                ("missing", 2),
                ("undecodable", 1),
                ("too large", 1),
                ("too much text", 1),
            ],
        ),
        counts(
            &shards,
            &[("malformed", 3), ("missing", 3), ("file passed over", 3)],
        ),
    ]
    .into_iter()
    .flatten()
    .collect();
    let [numbers, logged] = left_out(&folder);
    assert_eq!(numbers, expected);
    assert_eq!(logged, expected);

    let after = (everything(hostile.root.path()), peak_memory());
    assert!(after.0.keys().eq(before.0.keys()));
    assert!(after.0 == before.0);
    assert!(!Path::new("/divot-outside.png").exists());
    if let (Some(before), Some(after)) = (before.1, after.1) {
        let more = (after - before) >> 20;
        println!("{more} MiB more than good data took");
        assert!(more < 200, "{more} MiB");
    }
}

/// Captions of a megabyte fit a record. A language model's row takes the beginning of one.
#[test]
fn captions_of_a_megabyte_are_cut() {
    let _alone = alone();
    let hostile = Hostile::new();
    let (videos, captions) = (hostile.path("videos"), hostile.path("captions.jsonl"));
    let text = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../../tests/fixture/pretrained/cvlm_mistral_instruct_tokenizer"
    );
    let source = |task: &str| {
        format!(
            "[[data]]\ntask = {task:?}\nmax_length = 180\nsource = {{ format = \"captions\", \
             path = {captions:?}, media = {videos:?}, filter = {{ min_side = 16 }} }}\n"
        )
    };
    let head = format!(
        "steps = 6\nbatch = 4\nlog_every = 1\nfrozen = [\"tokenizer\"]\nrate.warmup = 1\n\
         objective.kind = \"language\"\nvalidation.every = 0\n{}{}",
        source("comprehension"),
        source("generation")
    );
    let changes = [
        "model.start={tokenizer=\"random\"}",
        &format!("model.text_tokenizer={text:?}"),
    ];
    let recipe = recipe(&head, &changes).expect("a valid recipe");
    let folder = tempfile::tempdir().expect("a folder");
    train(&recipe, folder.path(), |_| {});
    let [numbers, logged] = left_out(folder.path());
    assert_eq!(numbers, logged);

    // The same samples again: there were such captions for both tasks.
    let reader = recipe.model.tokenizer.clip_reader();
    let sources = recipe.settings.data.iter().map(|data| MixedSource {
        name: data.source.name(),
        samples: Box::new(Source::open(&data.source, &reader).expect("a source")),
        weight: data.weight,
        batch: recipe.settings.batch,
    });
    let config = LoaderConfig {
        seed: recipe.settings.seed,
        ..LoaderConfig::default()
    };
    let loader = Loader::new(sources.collect(), config).expect("a loader");
    let is_long =
        |sample: &Sample| matches!(&sample.text, Text::Caption(text) if text.len() == 1_000_000);
    let mut long = [false; 2];
    for batch in loader.take(recipe.settings.steps) {
        let batch = batch.expect("a batch");
        long[batch.source] |= batch.samples.iter().any(is_long);
    }
    assert_eq!(long, [true; 2]);
}

/// A PNG file with so many pixels of one colour, written row by row.
fn large_picture(path: &Path, side: u32, colour: [u8; 3]) {
    let file = std::io::BufWriter::new(fs::File::create(path).expect("a file"));
    let mut encoder = png::Encoder::new(file, side, side);
    encoder.set_color(png::ColorType::Rgb);
    let mut writer = encoder.write_header().expect("a header");
    let mut rows = writer.stream_writer().expect("a stream");
    let row = colour.repeat(side as usize);
    for _ in 0..side {
        rows.write_all(&row).expect("a row");
    }
    rows.finish().expect("the last row");
}

/// Two of them are in memory at a time, of 286 MiB each, and no more.
#[test]
fn pictures_of_100_megapixels_are_read() {
    let _alone = alone();
    let folder = tempfile::tempdir().expect("a folder");
    let first = folder.path().join("0.png");
    large_picture(&first, 10_000, [30, 60, 90]);
    for number in 1..6 {
        fs::copy(&first, folder.path().join(format!("{number}.png"))).expect("a copy");
    }
    let head = format!(
        "steps = 3\nbatch = 2\nrate.warmup = 1\nobjective.kind = \"autoencoder\"\n\
         [[data]]\nsource = {{ format = \"videos\", path = {:?} }}\n",
        folder.path()
    );
    let recipe = recipe(&head, &["model.start={}"]).expect("a valid recipe");
    let data = &recipe.settings.data[0];
    let reader = recipe.model.tokenizer.clip_reader();
    let source = MixedSource {
        name: data.source.name(),
        samples: Box::new(Source::open(&data.source, &reader).expect("a source")),
        weight: 1.0,
        batch: recipe.settings.batch,
    };
    let config = LoaderConfig {
        workers: 2,
        ..LoaderConfig::default()
    };
    // On Linux, this makes the peak what is taken now.
    let _ = fs::write("/proc/self/clear_refs", "5");
    let before = peak_memory();
    let loader = Loader::new(vec![source], config).expect("a loader");
    for batch in loader.take(recipe.settings.steps) {
        let samples = batch.expect("a batch").samples;
        assert_eq!(samples.len(), 2);
        for sample in samples {
            let frame = &sample.clips[0].frames()[0];
            assert!(frame.width < 1000, "{}", frame.width);
            assert_eq!(frame.pixel(0, 0), [30, 60, 90]);
        }
    }
    if let (Some(before), Some(after)) = (before, peak_memory()) {
        let more = (after - before) >> 20;
        println!("{more} MiB");
        assert!(more < 3 * 286, "{more} MiB");
    }
}
