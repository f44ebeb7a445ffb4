//! Training by the program: from a folder of videos to a model, with a recipe of the examples.

mod program;

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
#[cfg(unix)]
use std::time::{Duration, Instant};

use divot::data::{Frame, write_mp4};
use program::{divot, text};
use serde_json::Value;

/// A folder with three short videos.
struct Studio {
    folder: tempfile::TempDir,
}

impl Studio {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("clips")).unwrap();
        for number in 0..3u8 {
            let frame = |t: u8| Frame::filled(112, 112, [60 * number, 15 * t, 90]).unwrap();
            let frames: Vec<Frame> = (0..16).map(frame).collect();
            let path = folder.path().join(format!("clips/{number}.mp4"));
            write_mp4(path, &frames, 8.0).unwrap();
        }
        Self { folder }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Runs a command on the recipe of stage 1, at toy size.
    fn command(&self, command: &str, more: &[&str]) -> Command {
        let recipe = concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/../../examples/recipes/stage1.toml"
        );
        let mut divot = divot();
        divot
            .current_dir(self.folder.path())
            .args([command, recipe]);
        for change in [
            "model.sizes=\"tiny\"",
            "model.start={\"tokenizer.vision\"=\"random\", \"detokenizer.vae\"=\"random\"}",
            "batch=2",
            "micro_batch=2",
            "log_every=1",
            "rate.warmup=0",
            "rate.decay=\"constant\"",
            "validation.every=0",
        ] {
            divot.args(["--set", change]);
        }
        divot.args(["--device", "cpu"]).args(more);
        divot
    }

    fn run(&self, command: &str, more: &[&str]) -> Output {
        self.command(command, more).output().unwrap()
    }

    fn works(&self, command: &str, more: &[&str]) -> String {
        let output = self.run(command, more);
        assert!(output.status.success(), "{}", text(&output.stderr));
        text(&output.stdout)
    }

    /// The losses that a run logged, by step.
    fn losses(&self, run: &str) -> Vec<(u64, f64)> {
        let lines = fs::read_to_string(self.path(run).join("metrics.jsonl")).unwrap();
        let lines = lines
            .lines()
            .map(|line| serde_json::from_str::<Value>(line).unwrap());
        lines
            .filter_map(|line| Some((line["step"].as_u64()?, line["train/loss"].as_f64()?)))
            .collect()
    }

    fn names(&self) -> Vec<String> {
        let entries = fs::read_dir(self.folder.path()).unwrap();
        let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let mut names: Vec<_> = names.collect();
        names.sort();
        names
    }
}

#[test]
fn a_dry_run_measures_and_writes_nothing() {
    let studio = Studio::new();
    let printed = studio.works("train", &["--dry-run", "--json"]);
    assert_eq!(studio.names(), ["clips"]);
    let found: Value = serde_json::from_str(&printed).unwrap();
    let number = |name: &str| found[name].as_u64().unwrap();
    assert!(0 < number("trained") && number("trained") < number("parameters"));
    // A moving average, a gradient and two moments for each trained parameter, in f32.
    let learning = 4 * number("parameters") + 16 * number("trained");
    assert_eq!(number("learning_bytes"), learning);
    assert!(found["seconds_per_step"].as_f64().unwrap() > 0.0);

    let printed = studio.works("train", &["--dry-run"]);
    for line in [
        "  clips: 3 samples, a step ",
        "  activations and all else: ",
        "a step: ",
    ] {
        assert!(printed.contains(line), "{printed}");
    }
}

#[test]
fn a_cache_stands_for_its_source() {
    let studio = Studio::new();
    let printed = studio.works("cache", &["--to", "stored"]);
    let source = printed.lines().nth(1).unwrap().trim();
    let (source, clips) = source.rsplit_once("  ").unwrap();
    assert_eq!(clips, "(3 clips)");
    studio.works(
        "train",
        &["--set", source, "--set", "steps=2", "--output", "run"],
    );
    let losses = studio.losses("run");
    assert_eq!(losses.len(), 2, "{losses:?}");
    assert!(losses.iter().all(|(_, loss)| loss.is_finite()));

    // A second command finds everything made.
    assert_eq!(studio.works("cache", &["--to", "stored"]), printed);
}

/// What systems end programs with saves a checkpoint.
#[cfg(unix)]
#[test]
fn a_run_that_is_to_end_is_saved() {
    let studio = Studio::new();
    let more = ["--set", "steps=1000", "--output", "run"];
    let mut command = studio.command("train", &more);
    let command = command.stdout(Stdio::null()).stderr(Stdio::null());
    let mut child = command.spawn().unwrap();
    let metrics = studio.path("run").join("metrics.jsonl");
    let deadline = Instant::now() + Duration::from_secs(120);
    while !fs::read_to_string(&metrics).is_ok_and(|text| text.contains("train/loss")) {
        if Instant::now() > deadline {
            child.kill().unwrap();
            panic!("no step was taken");
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    let kill = Command::new("kill")
        .args(["-TERM", &child.id().to_string()])
        .status();
    assert!(kill.unwrap().success());
    assert_eq!(child.wait().unwrap().code(), Some(130));
    let saved = fs::read_dir(studio.path("run/checkpoints")).unwrap();
    let saved: Vec<_> = saved.map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(saved.len(), 1, "{saved:?}");
    let last = studio.losses("run").last().unwrap().0;
    assert!(saved[0].to_string_lossy().ends_with(&format!("{last:08}")));
}

#[test]
fn a_run_goes_on_and_becomes_a_model() {
    let studio = Studio::new();
    let steps = ["--set", "steps=4", "--set", "checkpoints.every=2"];
    studio.works("train", &[&steps[..], &["--output", "whole"]].concat());

    let first = [
        "--set",
        "steps=2",
        "--set",
        "checkpoints.every=2",
        "--output",
        "halves",
    ];
    studio.works("train", &first);
    let again = [&steps[..], &["--output", "halves", "--resume"]].concat();
    let refused = studio.run("train", &again);
    let line = text(&refused.stderr);
    let line = line.lines().last().unwrap();
    assert!(!refused.status.success());
    assert!(
        line.contains("steps") && line.contains("--allow-changes"),
        "{line}"
    );
    studio.works("train", &[&again[..], &["--allow-changes"]].concat());
    let [whole, halves] = ["whole", "halves"].map(|run| studio.losses(run));
    assert_eq!(whole.len(), 4);
    assert_eq!(whole, halves);

    let export = |arguments: &[&str]| {
        let output = divot()
            .current_dir(studio.folder.path())
            .args(arguments)
            .output();
        let output = output.unwrap();
        assert!(output.status.success(), "{}", text(&output.stderr));
        text(&output.stdout)
    };
    export(&["export", "whole", "--to", "model"]);
    export(&[
        "reconstruct",
        "--model",
        "model",
        "--input",
        "clips/1.mp4",
        "--output",
        "again.mp4",
        "--steps",
        "2",
        "--device",
        "cpu",
    ]);
    assert!(studio.path("again.mp4").metadata().unwrap().len() > 0);
}
