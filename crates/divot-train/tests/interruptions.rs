//! Runs in processes of their own that are killed, or whose disk is full: resumed, they end as uninterrupted ones
//! do, to the bit.
#![cfg(unix)]

#[path = "train/common.rs"]
mod common;

use std::collections::BTreeMap;
use std::env;
use std::fs;
use std::hash::{BuildHasher, RandomState};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio, exit};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use burn::tensor::Device;
use common::{recipe, samples};
use divot::Noise;
use divot::data::write_mp4;
use divot_train::{Event, Recipe, RunOptions, checkpoint, run};
use serde_json::Value;

/// The folder of a child's run; it makes a test a child.
const RUN: &str = "DIVOT_TEST_RUN";
const CLIPS: &str = "DIVOT_TEST_CLIPS";
const STEPS: &str = "DIVOT_TEST_STEPS";
const WORKERS: &str = "DIVOT_TEST_WORKERS";
/// The child stops after so many steps.
const STOP: &str = "DIVOT_TEST_STOP";
/// How often a run is killed.
const KILLS: &str = "DIVOT_TEST_KILLS";
/// What the moments are drawn with.
const SEED: &str = "DIVOT_TEST_SEED";

/// Children share the processor; the tests take turns.
fn alone() -> MutexGuard<'static, ()> {
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner)
}

fn number(name: &str) -> Option<u64> {
    let text = env::var(name).ok()?;
    Some(
        text.parse()
            .unwrap_or_else(|_| panic!("{name}={text} is no number")),
    )
}

/// A recipe with everything that a checkpoint has to keep: an average, dropped conditions, dropout, accumulation.
/// Each step is followed by a checkpoint.
fn settings(clips: &Path, steps: u64) -> Recipe {
    let head = format!(
        r#"steps = {steps}
batch = 2
micro_batch = 1
average = 0.9
log_every = 1
frozen = ["tokenizer.vision", "detokenizer.vae"]

[objective]
kind = "diffusion"
dropped = 0.2
sampling_steps = 1

[[data]]
source = {{ format = "videos", path = {clips:?}, filter = {{ min_side = 16 }} }}

[rate]
warmup = 2

[validation]
every = 7
batches = 1

[checkpoints]
every = 1
"#
    );
    let changes = [
        "model.detokenizer.unet.dropout=0.1",
        "model.tokenizer.resampler.variational=true",
    ];
    recipe(&head, &changes).expect("a valid recipe")
}

/// What the children do.
#[test]
fn child() {
    let Some(folder) = env::var_os(RUN).map(PathBuf::from) else {
        return;
    };
    let clips = env::var_os(CLIPS).map(PathBuf::from).expect("the clips");
    let recipe = settings(&clips, number(STEPS).expect("the steps"));
    let stop = number(STOP);
    let options = RunOptions {
        resume: true,
        allow_changes: false,
        workers: number(WORKERS).unwrap_or(1) as usize,
        ..RunOptions::default()
    };
    let mut steps = 0;
    let result = run(
        &recipe,
        &folder,
        &Device::default(),
        &options,
        &mut |event| {
            if let Event::Step(_) = event {
                steps += 1;
            }
            match stop == Some(steps) {
                true => ControlFlow::Break(()),
                false => ControlFlow::Continue(()),
            }
        },
    );
    if let Err(error) = result {
        eprintln!("{error}");
        exit(1);
    }
}

/// A data set and how a run of it ends that nobody interrupts.
struct Expected {
    folder: tempfile::TempDir,
    steps: u64,
}

impl Expected {
    fn new(steps: u64) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let expected = Self { folder, steps };
        fs::create_dir(expected.clips()).expect("a folder");
        for (number, sample) in samples(3, 32).iter().enumerate() {
            let path = expected.clips().join(format!("{number}.mp4"));
            write_mp4(&path, sample.clips[0].frames(), 8.0).expect("a clip is written");
        }
        expected.finish(&expected.run());
        expected
    }

    fn clips(&self) -> PathBuf {
        self.folder.path().join("clips")
    }

    fn run(&self) -> PathBuf {
        self.folder.path().join("whole")
    }

    /// A child that trains in a folder. `before` is put before its command.
    fn command(&self, folder: &Path, before: &[&str]) -> Command {
        let program = env::current_exe().expect("this program");
        let mut words = before.iter().map(AsRef::as_ref).collect::<Vec<_>>();
        words.push(program.as_os_str());
        let mut command = Command::new(words[0]);
        command
            .args(&words[1..])
            .args(["child", "--exact", "--nocapture"])
            .env(RUN, folder)
            .env(CLIPS, self.clips())
            .env(STEPS, self.steps.to_string())
            .stdin(Stdio::null())
            .stdout(Stdio::null());
        command
    }

    /// Goes on to the end.
    fn finish(&self, folder: &Path) {
        let output = self.command(folder, &[]).output().expect("a child");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{said}");
    }

    /// Checks that a run that was interrupted came to the same end.
    fn check(&self, folder: &Path) {
        let (found, expected) = (losses(folder), losses(&self.run()));
        assert_eq!(expected.len() as u64, self.steps);
        assert_eq!(found, expected);
        let (found, expected) = (checkpoints(folder), checkpoints(&self.run()));
        assert!(expected.len() >= 2 * 4, "{:?}", expected.keys());
        assert!(found.keys().eq(expected.keys()), "{:?}", found.keys());
        for (name, bytes) in expected {
            assert!(found[&name] == bytes, "{} differs", name.display());
        }
    }
}

/// Losses of training and validation by step, as far as their lines are whole.
fn losses(folder: &Path) -> BTreeMap<u64, [Value; 2]> {
    let text = fs::read_to_string(folder.join("metrics.jsonl")).unwrap_or_default();
    let mut losses = BTreeMap::<u64, [Value; 2]>::new();
    for line in text
        .split_inclusive('\n')
        .filter(|line| line.ends_with('\n'))
    {
        let line: Value = serde_json::from_str(line).expect("a line of JSON");
        let found = losses
            .entry(line["step"].as_u64().expect("a step"))
            .or_default();
        for (loss, name) in found.iter_mut().zip(["train/loss", "validation/loss"]) {
            if !line[name].is_null() {
                *loss = line[name].clone();
            }
        }
    }
    losses
}

/// The files of all checkpoints.
fn checkpoints(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut files = BTreeMap::new();
    for checkpoint in checkpoint::all(folder).expect("readable") {
        for entry in fs::read_dir(checkpoint.folder()).expect("its folder") {
            let path = entry.expect("an entry").path();
            let name = path
                .strip_prefix(folder)
                .expect("it is below")
                .to_path_buf();
            files.insert(name, fs::read(&path).expect("a file"));
        }
    }
    files
}

/// Whether a checkpoint is being written.
fn is_writing(folder: &Path) -> bool {
    let entries = fs::read_dir(folder.join("checkpoints"))
        .into_iter()
        .flatten()
        .flatten();
    let mut names = entries.map(|entry| entry.file_name());
    names.any(|name| name.to_string_lossy().starts_with(".partial-"))
}

/// Waits until something is so, or the child ended. Returns whether it still runs.
fn wait_for(child: &mut Child, mut is_so: impl FnMut() -> bool) -> bool {
    loop {
        if child.try_wait().expect("a child").is_some() {
            return false;
        }
        if is_so() {
            return true;
        }
        thread::sleep(Duration::from_micros(200));
    }
}

#[test]
fn a_run_that_is_killed_at_any_moment_goes_on_to_the_bit() {
    let _alone = alone();
    let kills = number(KILLS).unwrap_or(5);
    let seed = number(SEED).unwrap_or_else(|| RandomState::new().hash_one(0) >> 32);
    println!("{SEED}={seed}");
    let mut draw = Noise::new(seed);
    let mut below = |end: f64| draw.uniform() * end;

    let steps = 6 * kills;
    let started = Instant::now();
    let expected = Expected::new(steps);
    let step = started.elapsed().div_f64(steps as f64);
    let whole = losses(&expected.run());

    let folder = tempfile::tempdir().expect("a folder");
    let (mut done, mut within_a_save) = (0, 0);
    while done < kills {
        let workers = 1 + below(3.0) as u64;
        let mut command = expected.command(folder.path(), &[]);
        let mut child = command
            .env(WORKERS, workers.to_string())
            .spawn()
            .expect("a child");
        // After so many more steps, and then at once, at some time within a step, or while a checkpoint is written.
        let newest = checkpoint::newest(folder.path()).expect("readable");
        let steps = newest.map_or(0, |newest| newest.step as u64) + below(4.0) as u64;
        let done_so_far = || {
            losses(folder.path())
                .keys()
                .next_back()
                .copied()
                .unwrap_or(0)
        };
        let mut runs = wait_for(&mut child, || done_so_far() >= steps);
        match done % 3 {
            0 => runs = runs && wait_for(&mut child, || is_writing(folder.path())),
            1 => thread::sleep(step.mul_f64(below(2.0))),
            _ => {}
        }
        // SIGKILL.
        child.kill().expect("a signal");
        child.wait().expect("a child");
        assert!(runs, "the run ended before it was killed {kills} times");
        done += 1;
        within_a_save += u64::from(is_writing(folder.path()));
        for (step, [loss, _]) in losses(folder.path()) {
            assert_eq!(loss, whole[&step][0], "step {step}, after {done} kills");
        }
    }
    println!("{done} kills, {within_a_save} of them within a save");
    assert!(within_a_save > 0);
    expected.finish(folder.path());
    expected.check(folder.path());
}

/// A limit on the size of files stands for a full disk: the system refuses to write as well.
#[test]
fn a_full_disk_leaves_the_last_checkpoint() {
    let _alone = alone();
    let expected = Expected::new(5);
    let folder = tempfile::tempdir().expect("a folder");
    let mut stopping = expected.command(folder.path(), &[]);
    let stopped = stopping.env(STOP, "2").output().expect("a child");
    assert!(String::from_utf8_lossy(&stopped.stderr).contains("stopped"));
    let before = checkpoints(folder.path());
    assert_eq!(before.len(), 2 * 4);

    for name in ["weights", "optimizer"] {
        let last = format!("checkpoints/step-00000002/{name}.safetensors");
        // In blocks of 512 bytes, of which the file needs one more.
        let blocks = (before[Path::new(&last)].len() - 1) / 512;
        let script = format!("trap '' XFSZ; ulimit -f {blocks}; exec \"$0\" \"$@\"");
        let mut limited = expected.command(folder.path(), &["sh", "-c", &script]);
        let output = limited.output().expect("a child");
        let said = String::from_utf8_lossy(&output.stderr);
        println!("{said}");
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert_eq!(said.lines().count(), 1, "{said}");
        let place = folder.path().join("checkpoints");
        assert!(said.starts_with(&place.display().to_string()), "{said}");
        assert!(said.contains("step 3") && said.contains("; "), "{said}");
        assert!(!said.contains(".partial"), "{said}");
        assert!(checkpoints(folder.path()) == before);
        assert!(!is_writing(folder.path()));
    }
    expected.finish(folder.path());
    expected.check(folder.path());
}
