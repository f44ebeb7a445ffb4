//! Ranks over MPI. Needs the feature `mpi`, and `mpirun`: several processes train as one does.

#![cfg(feature = "mpi")]

#[path = "train/common.rs"]
mod common;

use std::collections::BTreeMap;
use std::env;
use std::fs;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, abort, exit};
use std::sync::{Mutex, MutexGuard, PoisonError};

use burn::tensor::Device;
use common::{recipe, samples};
use divot::data::write_mp4;
use divot::weights::Source;
use divot_train::{Event, Ranks, RunOptions, Trainer, checkpoint, run};

/// The folder of a child's run.
const RUN: &str = "DIVOT_TEST_RUN";
/// Settings of a child's recipe, one to a line.
const CHANGES: &str = "DIVOT_TEST_CHANGES";
/// A rank, and the step after which it dies.
const DIES: &str = "DIVOT_TEST_DIES";

const STEPS: usize = 10;

/// Children share the processor; the tests take turns.
fn alone() -> MutexGuard<'static, ()> {
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner)
}

fn diffusion(clips: &Path, changes: &[&str]) -> divot_train::Recipe {
    let head = format!(
        r#"steps = {STEPS}
batch = 6
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
every = 5
batches = 1

[checkpoints]
every = 3
"#
    );
    recipe(&head, changes).expect("a valid recipe")
}

/// What each process does.
#[test]
fn child() {
    let Some(folder) = env::var_os(RUN).map(PathBuf::from) else {
        return;
    };
    let changes = env::var(CHANGES).unwrap_or_default();
    let changes: Vec<&str> = changes.lines().collect();
    let clips = folder.parent().expect("a folder").join("clips");
    let recipe = diffusion(&clips, &changes);
    let ranks = Ranks::start().expect("ranks");
    let dies = env::var(DIES).ok();
    let mut steps = 0;
    let options = RunOptions {
        resume: true,
        ranks: ranks.clone(),
        ..RunOptions::default()
    };
    let device = Device::default();
    let result = run(&recipe, &folder, &device, &options, &mut |event| {
        if let Event::Step(_) = event {
            steps += 1;
        }
        if dies == Some(format!("{} {steps}", ranks.rank())) {
            abort();
        }
        ControlFlow::Continue(())
    });
    if let Err(error) = result {
        eprintln!("rank {}: {error}", ranks.rank());
        ranks.abort();
        exit(1);
    }
    // What the optimiser keeps.
    let trainer = Trainer::new(&recipe, &device).and_then(|trainer| trainer.with_ranks(&ranks));
    let mut trainer = trainer.expect("a model");
    let batch = samples(6 / ranks.count(), 32);
    trainer.step(0, 0, &batch).expect("a step");
    println!("rank {} keeps {}", ranks.rank(), trainer.optimizer_size());
}

/// Clips, and runs on them.
struct Bench(tempfile::TempDir);

impl Bench {
    fn new() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let clips = folder.path().join("clips");
        fs::create_dir(&clips).expect("a folder");
        for (number, sample) in samples(3, 32).iter().enumerate() {
            let path = clips.join(format!("{number}.mp4"));
            write_mp4(&path, sample.clips[0].frames(), 8.0).expect("a clip is written");
        }
        Self(folder)
    }

    fn folder(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn start(&self, name: &str, ranks: usize, changes: &[&str], dies: Option<&str>) -> Output {
        let program = env::current_exe().expect("this program");
        let mut command = match ranks {
            1 => Command::new(program),
            ranks => {
                let mut command = Command::new("mpirun");
                command
                    .args(["--allow-run-as-root", "--oversubscribe", "-n"])
                    .arg(ranks.to_string())
                    .arg(program);
                command
            }
        };
        command
            .args(["child", "--exact", "--nocapture", "--test-threads=1"])
            .env(RUN, self.folder(name))
            .env(CHANGES, changes.join("\n"))
            .env("RAYON_NUM_THREADS", "1");
        if let Some(dies) = dies {
            command.env(DIES, dies);
        }
        command.output().expect("mpirun, of Open MPI")
    }

    /// Trains to the end. Returns what was printed.
    fn train(&self, name: &str, ranks: usize, changes: &[&str]) -> String {
        let output = self.start(name, ranks, changes, None);
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{name}: {said}");
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// The tensors of the newest checkpoint.
    fn end(&self, name: &str) -> BTreeMap<String, Vec<f32>> {
        let newest = checkpoint::newest(&self.folder(name)).expect("readable");
        let newest = newest.expect("a checkpoint");
        assert_eq!(newest.step, STEPS);
        let mut found = BTreeMap::new();
        for file in ["weights", "average", "optimizer"] {
            let path = newest.folder().join(format!("{file}.safetensors"));
            for tensor in Source::open(&path).expect("tensors").tensors() {
                let values = tensor.read().expect("values").iter::<f32>().collect();
                found.insert(format!("{file} {}", tensor.name), values);
            }
        }
        found
    }
}

/// The largest difference.
fn difference(found: &BTreeMap<String, Vec<f32>>, expected: &BTreeMap<String, Vec<f32>>) -> f32 {
    assert!(found.keys().eq(expected.keys()));
    let all = found.values().flatten().zip(expected.values().flatten());
    all.map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

fn weights(all: BTreeMap<String, Vec<f32>>) -> BTreeMap<String, Vec<f32>> {
    all.into_iter()
        .filter(|(name, _)| name.starts_with("weights"))
        .collect()
}

#[test]
fn two_ranks_train_as_one_process_does() {
    let _alone = alone();
    let bench = Bench::new();
    bench.train("one", 1, &[]);
    bench.train("two", 2, &[]);
    bench.train("again", 2, &[]);
    let (one, two) = (bench.end("one"), bench.end("two"));
    let off = difference(&weights(two.clone()), &weights(one));
    assert!(off < 1e-5, "{off}");
    assert!(two == bench.end("again"), "two runs differ");
}

#[test]
fn a_sharded_optimizer_takes_half_the_memory_and_changes_no_number() {
    let _alone = alone();
    let bench = Bench::new();
    let kept = |said: String| -> Vec<usize> {
        let lines = said.lines().filter(|line| line.contains(" keeps "));
        let counts = lines.filter_map(|line| line.rsplit(' ').next()?.parse().ok());
        counts.collect()
    };
    let whole = kept(bench.train("whole", 2, &[]));
    let parts = kept(bench.train("parts", 2, &["ranks.shard_optimizer=true"]));
    assert_eq!(whole[0], whole[1]);
    assert_eq!(parts.iter().sum::<usize>(), whole[0]);
    let most = parts.iter().max().copied().unwrap_or_default();
    assert!(10 * most < 6 * whole[0], "{parts:?} of {whole:?}");
    assert!(bench.end("whole") == bench.end("parts"));
}

#[test]
fn gradients_in_bf16_are_close() {
    let _alone = alone();
    let bench = Bench::new();
    bench.train("f32", 2, &[]);
    bench.train("bf16", 2, &["ranks.bf16_gradients=true"]);
    let (exact, rounded) = (weights(bench.end("f32")), weights(bench.end("bf16")));
    let off = difference(&rounded, &exact);
    assert!(off > 0.0 && off < 1e-2, "{off}");
}

#[test]
fn a_rank_that_dies_ends_the_run_and_two_others_go_on() {
    let _alone = alone();
    let bench = Bench::new();
    bench.train("whole", 1, &[]);
    let output = bench.start("broken", 3, &["ranks.shard_optimizer=true"], Some("1 5"));
    assert!(!output.status.success());
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("rank 1"), "{said}");
    let newest = checkpoint::newest(&bench.folder("broken")).expect("readable");
    assert_eq!(newest.map(|newest| newest.step), Some(3));
    bench.train("broken", 2, &["ranks.shard_optimizer=true"]);
    let off = difference(&weights(bench.end("broken")), &weights(bench.end("whole")));
    assert!(off < 1e-5, "{off}");
}

#[test]
fn a_batch_that_cannot_be_divided_takes_one_line() {
    let _alone = alone();
    let bench = Bench::new();
    let output = bench.start("odd", 4, &[], None);
    assert!(!output.status.success());
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(
        said.contains("tiny.toml:2: 6 samples cannot be divided among 4 ranks"),
        "{said}"
    );
}
